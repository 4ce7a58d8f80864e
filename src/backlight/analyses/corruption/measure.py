"""Common corruptions: how right the model is, and how well calibrated, on noisy, blurred, foggy or compressed images.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR 2019), which
Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), use in figures 7, 12b and E.1.  Reliability under shift: Ovadia et
al., "Can You Trust Your Model's Uncertainty?" (2019).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import nn

from backlight.analyses.chance import Answers
from backlight.analyses.corruption.corrupted_images import (
    CLEAN,
    Condition,
    GeneratedCorruptions,
    OfficialCorruptions,
    Source,
    corrupted_batches,
)
from backlight.analyses.corruption.settings import CorruptionSettings
from backlight.analyses.shards import joined, own_parts, refuse_no_shard
from backlight.data.corruption_names import COMMON, FAMILIES, SEVERITIES
from backlight.data.normalisation import normalisation_of
from backlight.errors import UserError
from backlight.files import PartialResults
from backlight.inputs import checked_labels, first_tensor, refuse_no_classifier, refuse_not_finite, to_model
from backlight.numerics.bootstrap import Interval, statistic_interval
from backlight.numerics.calibration import scores
from backlight.numerics.proportions import ratio_interval, score_intervals, share_interval
from backlight.results.provenance import provenance
from backlight.results.result import Result, Row, columns
from backlight.tracing.trace import evaluating, model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A row of the table: a corruption or "mean", and a severity or None for all.
Group = tuple[str, int | None]

#: The error of AlexNet, by which a corruption error is divided: mean over the severities, in percent, in the order of `COMMON`.
#: "paper": the files `resources/results/*_alexnet_dnn_corrupted.csv` of Park & Kim's repository; "published": Hendrycks' own.
ALEXNET = {
    "paper": {
        "imagenet": (89.36, 90.21, 93.04, 85.06, 84.09, 80.74, 79.76, 87.43, 83.58, 83.68, 59.64, 87.16, 67.53, 71.78, 65.06),
        "cifar100": (71.30, 65.35, 78.60, 52.18, 70.60, 55.89, 54.98, 58.74, 61.06, 56.54, 48.84, 61.78, 52.24, 46.87, 49.83),
        "cifar10": (31.82, 27.48, 39.54, 16.54, 30.43, 21.10, 16.22, 24.84, 24.46, 23.03, 16.59, 28.12, 19.60, 18.35, 19.72),
    },
    "published": {
        "imagenet": (
            88.6428, 89.4468, 92.2640, 81.9880, 82.6268, 78.5948, 79.8360, 86.6816, 82.6572, 81.9324, 56.4592, 85.3204,
            64.6056, 71.7840, 60.6500,
        ),
    },
}  # fmt: skip
#: The columns that hold a corruption error, and whose AlexNet it is divided by.
RATIOS = {"ce_paper": "paper", "ce_published": "published"}


def measure(
    model: nn.Module,
    data: Iterable[Any],
    settings: CorruptionSettings,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    resamples: int,
    seed: int,
    name: str | None,
    partial_results: PartialResults | None,
    shard: tuple[int, int],
) -> Corruption:
    """The result of `backlight.corruption`."""
    started = time.perf_counter()
    refuse_no_shard(shard)
    partial_results = partial_results or PartialResults(None, {})
    normalisation = normalisation_of(data, mean, std)
    official = settings.folder is not None
    source: Source = OfficialCorruptions.of(settings, data) if official else GeneratedCorruptions.of(settings, seed)
    conditions = [CLEAN, *((corruption, s) for corruption in settings.corruptions for s in settings.severities)]
    own = {conditions[i]: i for i in own_parts(len(conditions), shard, partial_results)}
    batch_scores: dict[Condition, list[NDArray[np.float64]]] = {condition: [] for condition in own}  # (3, B) each
    answers = Answers()
    with evaluating(model), torch.inference_mode():
        for condition, batch, images in corrupted_batches(data, list(own), source, normalisation):
            logits = first_tensor(model(to_model(images, model)))
            if not batch_scores[CLEAN]:
                refuse_no_classifier(model, logits, data)
            labels = batch.labels.to(logits.device) if batch.labels is not None else None
            checked = checked_labels(logits, labels)
            if condition == CLEAN:
                answers.add(*checked)
            s = scores(*checked)
            batch_scores[condition].append(np.stack([s.prediction == s.label, s.nll, s.confidence]))
    if not batch_scores[CLEAN]:
        raise UserError("no images: the data are empty")
    refuse_not_finite(answers.not_finite, answers.images)
    own_scores = {i: np.concatenate(batch_scores[condition], axis=1) for condition, i in own.items()}
    known = joined(own_scores, len(conditions), partial_results)
    missing = [i for i in range(len(conditions)) if i not in known]
    image_scores = np.stack(list(known.values()))
    reference, reason = (None, "no mCE: parts are missing") if missing else reference_of(data, settings)
    groups = _groups([conditions[i] for i in known])
    table, reliability = _summary(image_scores, groups, reference, settings.bins, resamples, seed)
    recorded = asdict(settings) | {"strengths": source.strengths} | asdict(normalisation)
    facts = provenance(model, data, images=image_scores.shape[2], resamples=resamples, seed=seed, **recorded) | {
        "missing_rows": missing,
        "seconds": round(time.perf_counter() - started, 3),
        "mce": reason,
        "summary": {key: [table[-1][f"{key}{end}"] for end in ("", "_low", "_high")] for key in ("accuracy", *RATIOS)},
    }
    facts |= answers.caution(facts)
    arrays: dict[str, np.ndarray] = {"reliability": reliability}
    if not missing:
        arrays["per_image/correct"] = np.stack([image_scores[0, 0], image_scores[1:, 0].mean(0)]).astype(np.float32)
    return Corruption(model_name(model, name), table, [], facts, arrays)


def reference_of(data: Any, settings: CorruptionSettings) -> tuple[str | None, str]:
    """Which of AlexNet's errors fit the data ("imagenet", "cifar10", "cifar100" or None), and why, in a sentence."""
    data_name = settings.folder or str(getattr(data, "provenance", {}).get("data", ""))
    plain_name = re.sub(r"[^a-z0-9]", "", data_name.lower())
    classes = len(getattr(data, "classes", ()) or ())
    sets = {"cifar100": 100, "cifar10": 10, "imagenet": 1000}
    reference = next((key for key, count in sets.items() if key in plain_name and classes in (0, count)), None)
    if reference is None:
        return None, "no mCE: AlexNet's errors are known of CIFAR-10, CIFAR-100 and ImageNet; the mean error is 1 - accuracy"
    if settings.severities != SEVERITIES:
        return None, "no mCE: AlexNet's errors are means over all five severities; the mean error is 1 - accuracy"
    generated = "" if settings.folder else ", the corruptions made here and not the official files"
    return (
        reference,
        f"errors over AlexNet's on {reference}{generated}; ce_paper: Park & Kim's AlexNet, ce_published: Hendrycks'"
        + _not_all(settings.corruptions),
    )


def _not_all(corruptions: Sequence[str]) -> str:
    """The rest of a sentence about corruptions that are not all fifteen of ImageNet-C; empty if all are there.

    >>> _not_all([name for name in COMMON if name != "frost"])
    '; no mCE: means are over 14 corruptions, without frost, and not comparable with a published mCE, which is over 15'
    """
    absent = [name for name in COMMON if name not in corruptions]
    if not absent:
        return ""
    without = ", ".join(absent) if len(absent) < 4 else f"{len(absent)} of ImageNet-C's"
    over = f"{len(corruptions)} corruption{'s' if len(corruptions) > 1 else ''}"
    return f"; no mCE: means are over {over}, without {without}, and not comparable with a published mCE, which is over 15"


def _groups(conditions: Sequence[Condition]) -> dict[Group, list[int]]:
    """Row of the table -> its conditions: each condition, then the means of a corruption, of a severity, and of all."""
    single: dict[Group, list[int]] = {condition: [i] for i, condition in enumerate(conditions)}
    means: dict[Group, list[int]] = {}
    for i, (corruption, severity) in enumerate(conditions[1:], start=1):
        for group in ((corruption, None), ("mean", severity), ("mean", None)):
            means.setdefault(group, []).append(i)
    order = sorted(means, key=lambda group: (group[0] == "mean", group[1] is None, group[1] or 0))
    return single | {group: means[group] for group in order}


def _summary(
    image_scores: NDArray[np.float64],
    groups: dict[Group, list[int]],
    reference: str | None,
    bins: int,
    resamples: int,
    seed: int,
) -> tuple[list[Row], NDArray[np.float64]]:
    """The table, and reliability at each severity.  Shapes: (K + 1, 3, n) -> G rows, (S + 1, 3, 3, bins)."""
    means = np.stack([image_scores[members, :2].mean(0) for members in groups.values()])  # (G, 2, n)
    value = score_intervals(means, resamples=resamples, seed=seed)
    change = score_intervals(means, means[:1], resamples=resamples, seed=seed)
    ece, ece_change = _eces(image_scores, list(groups.values()), bins, resamples, seed)
    ratios = {column: _ratios(means, list(groups), ALEXNET[whose].get(reference or "")) for column, whose in RATIOS.items()}
    table: list[Row] = []
    for g, (corruption, severity) in enumerate(groups):
        row: Row = {"corruption": corruption, "severity": severity}
        for s, score in enumerate(("accuracy", "nll")):
            row |= columns(score, (x[g] for x in value[s])) | columns(f"{score}_change", (x[g] for x in change[s]))
        row |= columns("ece", (x[g] for x in ece)) | columns("ece_change", (x[g] for x in ece_change))
        for column, ratio in ratios.items():
            row |= columns(column, (x[g] for x in ratio))
        table.append(row)
    by_severity = [members for (name, severity), members in groups.items() if name == "clean" or (name == "mean" and severity)]
    sums = np.stack([_bin_sums(image_scores[members], bins) for members in by_severity])  # (S + 1, 3, bins, n)

    def diagram(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        mass, confident, correct = np.moveaxis(sums @ weights, 1, 0)
        with np.errstate(invalid="ignore"):
            return np.stack([confident / mass, correct / mass, mass / mass.sum(-1, keepdims=True)], axis=1)

    reliability = np.stack(
        statistic_interval(diagram, image_scores.shape[2], resamples=resamples, seed=seed, within=(0, 1)), axis=1
    )
    mass, _, correct = np.moveaxis(sums, 3, 0).transpose(2, 0, 1, 3)  # (n, S + 1, bins) each
    for part, interval in ((1, ratio_interval(correct, mass)), (2, share_interval(mass / mass.sum(2, keepdims=True)))):
        reliability[:, 1:, part] = np.stack(interval[1:], axis=1)
    return table, reliability


def _bin(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Bins are (a, b], and 0 is in the first, as in `numerics.calibration`."""
    return np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1, 0, bins - 1)


def _eces(
    image_scores: NDArray[np.float64], groups: list[list[int]], bins: int, resamples: int, seed: int
) -> tuple[Interval, Interval]:
    """ECE of each group, the mean over its conditions, and its change from the first.  Shapes: (K + 1, 3, n) -> (G,), (G,).

    A bin's gap is a sum over images, so a resample is a product with a sparse matrix, (K + 1) bins x n.
    """
    conditions, _, images = image_scores.shape
    correct, confidence = image_scores[:, 0], image_scores[:, 2]
    rows = np.arange(conditions)[:, None] * bins + _bin(confidence, bins)
    gaps = sparse.csr_matrix(
        ((confidence - correct).ravel(), (rows.ravel(), np.tile(np.arange(images), conditions))),
        shape=(conditions * bins, images),
    )
    mixing = np.stack([np.bincount(members, minlength=conditions) / len(members) for members in groups])  # (G, K + 1)

    def eces(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        ece = mixing @ (np.abs((gaps @ weights).reshape(conditions, bins)).sum(1) / weights.sum())
        return np.stack([ece, ece - ece[0]])

    both = statistic_interval(eces, images, resamples=resamples, seed=seed, within=([[0], [-1]], 1))
    return Interval(*(x[0] for x in both)), Interval(*(x[1] for x in both))


def _bin_sums(image_scores: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """In each bin, for each image: how often it is there, its confidence, how often it is correct.

    Shapes: (k, 3, n), k conditions that are counted together -> (3, bins, n).
    """
    correct, confidence = image_scores[:, None, 0], image_scores[:, None, 2]
    inside = _bin(confidence, bins) == np.arange(bins)[:, None]  # (k, bins, n)
    return np.stack([(inside * summand).sum(0) for summand in (1.0, confidence, correct)])


def _ratios(means: NDArray[np.float64], groups: list[Group], alexnet: Sequence[float] | None) -> Interval:
    """Errors over AlexNet's: of each corruption over all severities, and their mean if all fifteen are there (mCE); else NaN.

    Shapes: (G, 2, n), (15,) -> (G,).
    """
    ratios = Interval(*np.full((3, len(groups)), np.nan))
    errors = dict(zip(COMMON, alexnet, strict=True)) if alexnet else {}
    over_severities = {name: g for g, (name, severity) in enumerate(groups) if severity is None and name in errors}
    factors = {g: 100 / errors[name] for name, g in over_severities.items()}
    if not factors:
        return ratios
    samples = {g: 1 - means[g, 0] for g in factors}
    if len(samples) == len(errors):
        weights, shares = np.array(list(factors.values())), np.stack(list(samples.values()))
        mean = groups.index(("mean", None))
        factors[mean], samples[mean] = weights.mean(), np.average(shares, axis=0, weights=weights)
    intervals = share_interval(np.stack(list(samples.values()), axis=1))
    for all_rows, known in zip(ratios, intervals, strict=True):
        all_rows[list(samples)] = known * np.array(list(factors.values()))
    return ratios


@dataclass(frozen=True, repr=False)
class Corruption(Result):
    """A row for each corruption and severity; "clean" has severity 0, "mean" is over corruptions, None over severities.

    Accuracy and ECE are fractions, NLL in nats; a change is corrupted minus clean; ``ce_...`` are errors over AlexNet's.
    ``arrays["reliability"]``: severity, clean first x (value, low, high) x (confidence, accuracy, share of images) x bins.
    ``arrays["per_image/correct"]``: (clean, mean over corruptions and severities) x images, of 1 for a right answer.
    """

    analysis: ClassVar[str] = "corruption"
    panels: ClassVar[tuple[str, ...]] = ("accuracy", "ece", "reliability")

    def over_severities(self, name: str) -> list[Row]:
        """The rows of a corruption or of "mean", from the clean images to the largest severity."""
        return [row for row in self.table if row["severity"] == 0 or (row["corruption"] == name and row["severity"])]

    def _draw(self, ax: Axes, panel: str) -> None:
        """Accuracy or ECE over severity, a line for each corruption; or accuracy over confidence, a line for each severity."""
        {"accuracy": self._lines, "ece": self._lines, "reliability": self._reliability}[panel](ax, panel)

    def _lines(self, ax: Axes, column: str) -> None:
        from backlight.results.figures import LEGEND, label

        families = {name: family for family, names in FAMILIES.items() for name in names}
        family_of = {name: families.get(name, "extra") for name in self.provenance["settings"]["corruptions"]}
        rows = self.over_severities("mean")
        severities = [row["severity"] for row in rows]
        for name, family in family_of.items():
            line = [(row["severity"], 100 * row[column]) for row in self.over_severities(name)]
            ax.plot(*zip(*line, strict=True), color=FAMILY_COLOUR[family], lw=0.7, alpha=0.6)
        for family in dict.fromkeys(family_of.values()):
            ax.plot([], [], color=FAMILY_COLOUR[family], label=family)
        value, low, high = (np.array([100 * row[f"{column}{end}"] for row in rows]) for end in ("", "_low", "_high"))
        ax.fill_between(severities, low, high, color="0.1", alpha=0.2, lw=0)
        ax.plot(severities, value, "o-", color="0.1", label="mean")
        ax.set(xticks=severities, ylim=(0, None))
        label(ax, self.chart(column))
        ax.legend(**LEGEND | {"ncols": 3})

    def _reliability(self, ax: Axes, panel: str) -> None:
        import matplotlib as mpl

        from backlight.results.figures import LEGEND, label

        severities = [row["severity"] for row in self.over_severities("mean")]
        for severity, diagram in zip(severities, self.arrays["reliability"][:, 0], strict=True):
            confidence, accuracy, share = diagram
            filled = share > 0.01  # the accuracy of a bin of few images is noise
            colour = mpl.colormaps["plasma_r"](0.15 + 0.85 * severity / 5)
            name = str(severity) if severity else "clean"
            ax.plot(confidence[filled], accuracy[filled], "o-", ms=2, color=colour, label=name)
        ax.plot([0, 1], [0, 1], color="0.2", lw=0.8, ls="--")
        ax.set(xlim=(0, 1), ylim=(0, 1))
        label(ax, self.chart(panel))
        ax.legend(**LEGEND | {"ncols": 3})


FAMILY_COLOUR = {"noise": "#D55E00", "blur": "#0072B2", "weather": "#009E73", "digital": "#CC79A7", "extra": "#8A8A8A"}
