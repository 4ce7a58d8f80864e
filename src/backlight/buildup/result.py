"""The result of a build-up search: figure 12a of the paper as a table of trials, with its claims and its drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from backlight.buildup.rule import UNDECIDED, Estimate, Trial
from backlight.numerics.bootstrap import Interval
from backlight.numerics.proportions import paired_difference_interval, share_interval
from backlight.numerics.student import student
from backlight.results.claim import Claim
from backlight.results.figures import KIND_COLOUR, LEGEND
from backlight.results.figures import label as axis_labels
from backlight.results.over import counted
from backlight.results.result import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def claims(trials: Sequence[Trial], gains: dict[str, dict[str, Any]], seeds: int) -> list[Claim]:
    """The claims that the search can decide.  The first replacement is fixed beforehand, so its claim has no selection bias."""
    points = "percentage points of accuracy"
    decided = []
    if len(trials) > 1:
        decided.append(
            Claim.of_sign(
                "positive",
                [100 * x for x in trials[1].difference],
                id="buildup/first",
                count=seeds,
                over="seeds",
                statement=f"Attention instead of unit {trials[1].units[0]}, the first of the rule, improves the baseline.",
                source="Section 4.1, figure 12a",
                quantity=f"{points} on held-out images, paired over seeds and images",
            )
        )
    statements = {
        "winner": "The network that results from the build-up rule is more accurate than its baseline.",
        "matched": "This also holds when attention has as many parameters as the convolutions had.",
    }
    for role, gain in gains.items():
        decided.append(
            Claim.of_sign(
                "positive",
                [100 * x for x in gain["both"]],
                id=f"buildup/{role}",
                count=seeds,
                over="seeds",
                statement=statements[role],
                source="Section 4.1, figure 12a",
                quantity=f"{points} on the test images, paired over seeds and images",
            )
        )
    return decided


def over_both(scores: np.ndarray) -> dict[str, Estimate]:
    """The mean of accuracies with its interval over seeds, over images, and over both.  Shapes: (S, n), from 0 to 1."""
    return _over_both(scores, share_interval(scores.mean(0)))


def gain_over_both(scores: np.ndarray, baseline: np.ndarray) -> dict[str, Estimate]:
    """The mean difference of accuracies with its intervals, paired over seeds and images.  Shapes: (S, n) twice."""
    return _over_both(scores - baseline, paired_difference_interval(scores.mean(0), baseline.mean(0)))


def _over_both(scores: np.ndarray, over_images: Interval) -> dict[str, Estimate]:
    """Over seeds: Student's, the images fixed; over images, the seeds fixed; over both: the two half-widths added as squares.

    That counts the noise of a seed and an image together twice, so the interval is rather too wide.
    """
    value, low, high = student(scores.mean(1).tolist())
    _, least, most = map(float, over_images)
    both = value - math.hypot(value - low, value - least), value + math.hypot(high - value, most - value)
    return {"seeds": (value, low, high), "images": (value, least, most), "both": (value, *both)}


@dataclass(frozen=True, repr=False)
class Buildup(Result):
    """A row for each trial in the order of the search, then the controls; accuracies on held-out images.

    Intervals of accuracies are over seeds, those of differences the wider ones of those over seeds and over images.

    Shapes: ``arrays["accuracy"]`` (rows, seeds).
    """

    analysis: ClassVar[str] = "buildup"
    panels: ClassVar[tuple[str, ...]] = ("accuracy",)

    @property
    def measured(self) -> str:
        """The seeds: "3 seeds"."""
        return counted(self.arrays["accuracy"].shape[1], "seed")

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 12a: accuracy against the number of attentions; kept trials on a line, others open, controls grey."""
        from matplotlib.ticker import MaxNLocator

        drawn: dict[int, int] = {}  # marks at each number of attentions
        for name, style in STYLES.items():
            rows = [row for row in self.table if VERDICTS[row["verdict"]] == name]
            x = []
            for row in rows:
                drawn[row["attentions"]] = drawn.get(row["attentions"], 0) + 1
                x.append(row["attentions"] + 0.16 * (drawn[row["attentions"]] - 1))
                if name != "parameters matched":
                    label(ax, row, x[-1])
            if rows:
                ends = [[100 * row[f"accuracy{end}"] for row in rows] for end in ("", "_low", "_high")]
                value, low, high = np.where(np.isfinite(ends), ends, np.nan)
                ax.errorbar(x, value, [value - low, high - value], elinewidth=0.7, label=name, **style)
        axis_labels(ax, self.chart(panel))
        ax.set_xlim(-0.2, max(drawn) + 0.9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(**LEGEND)


#: Group of rows -> how the figure shows them.
STYLES: dict[str, dict[str, Any]] = {
    "kept": {"fmt": "o-", "color": KIND_COLOUR["attention"], "zorder": 3},
    "rejected": {"fmt": "o", "color": KIND_COLOUR["attention"], "markerfacecolor": "white", "zorder": 2},
    "undecided": {"fmt": "D", "color": KIND_COLOUR["attention"], "markerfacecolor": "white", "zorder": 2},
    "parameters matched": {"fmt": "s", "color": "0.6", "zorder": 1},
}
#: Verdict -> group of rows.
VERDICTS = {
    "baseline": "kept", "keep": "kept", "reject": "rejected", UNDECIDED: "undecided", "control": "parameters matched",
}  # fmt: skip


def label(ax: Axes, row: Row, x: float) -> None:
    """Write the layout beside its mark; above it if a line comes from the lower left."""
    above: dict[str, Any] = {"xytext": (-2, 2), "ha": "right"}
    position = above if row["verdict"] == "keep" else {"xytext": (4, 0), "va": "center"}
    text = f"({row['layout'].replace(' ', '')})"
    mark = (x, 100 * row["accuracy"])
    ax.annotate(text, mark, textcoords="offset points", fontsize=5, color="0.3", zorder=4, **position)


def summary(result: Buildup) -> str:
    """The outcome of the search in a line."""
    images, test = result.provenance["images"], result.provenance["test"]
    if "winner" not in test:
        return f"no replacement was kept; the baseline on {images} test images: {percent(test['baseline']['both'])}"
    gain = signed(result.provenance["test_gain"]["winner"]["both"])
    word = next(row["word"] for row in reversed(result.table) if row["verdict"] == "keep")
    return f"{word} on {images} test images: {percent(test['winner']['both'])}, {gain} over the baseline"


def percent(ends: Estimate) -> str:
    """An accuracy for people, with its interval if there is one."""
    value, low, high = (100 * x for x in ends)
    return f"{value:.1f}%" + (f" [{low:.1f}, {high:.1f}]" if math.isfinite(low + high) else "")


def signed(ends: Estimate) -> str:
    """A difference of accuracies for people."""
    value, low, high = (100 * x for x in ends)
    return f"{value:+.1f} points" + (f" [{low:+.1f}, {high:+.1f}]" if math.isfinite(low + high) else "")
