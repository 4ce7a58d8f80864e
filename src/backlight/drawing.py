"""How figures look: one colour a kind of unit, one mark for the end of a stage, sizes fit for a column of print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from .result import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe & Ito's palette, told apart by colour-blind readers too; the page uses the same.
KIND_COLOUR = {
    "attention": "#D55E00",
    "conv": "#0072B2",
    "mlp": "#009E73",
    "blur": "#CC79A7",
    "other": "#8A8A8A",
    "stem": "#8A8A8A",
}
STYLE = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 9,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text in a paper's PDF
}


def paper_style() -> AbstractContextManager[None]:
    """Within the block everything is drawn in the sizes of a paper's column."""
    import matplotlib as mpl

    return mpl.rc_context(STYLE)  # type: ignore[arg-type]


def paper_figure(panels: int) -> tuple[Figure, Sequence[Axes]]:
    """A row of panels, 2.9 inches each, without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9 * panels, 2.4), layout="constrained", dpi=200)
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, panels, i + 1) for i in range(panels)]


def by_unit(table: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of each unit together."""
    for _, rows in groupby(table, key=lambda row: row["unit"]):
        yield list(rows)


def coloured_by_depth(ax: Axes, table: Iterable[Row]) -> Iterator[tuple[list[Row], Any]]:
    """Each unit's rows with a colour that darkens with depth, and a colour bar that says so."""
    import matplotlib as mpl

    curves = list(by_unit(table))
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), mpl.colormaps["plasma_r"].resampled(256))
    for i, rows in enumerate(curves):
        yield rows, scale.to_rgba(0.08 + 0.92 * i / max(1, len(curves) - 1))
    ax.figure.colorbar(scale, ax=ax, label="Normalised depth", pad=0.02, aspect=30)


def over_depth(ax: Axes, rows: Sequence[Row], column: str) -> None:
    """A number after each unit against normalised depth: interval as a band, attention shaded, a line where a stage ends."""
    depth = np.arange(len(rows)) / max(1, len(rows) - 1)
    value, low, high = (np.array([row[f"{column}{end}"] for row in rows], float) for end in ("", "_low", "_high"))
    half = 0.5 / max(1, len(rows) - 1)
    for i, row in enumerate(rows):
        if row["kind"] == "attention":
            ax.axvspan(depth[i] - 2 * half, depth[i], color=KIND_COLOUR["attention"], alpha=0.10, lw=0)
        if i and row["stage"] != rows[i - 1]["stage"]:
            ax.axvline(depth[i] - half, color="0.6", lw=0.8, ls=":")
    ax.fill_between(depth, low, high, color="0.3", alpha=0.2, lw=0)
    ax.plot(depth, value, color="0.35", zorder=2)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        chosen = [i for i, row in enumerate(rows) if row["kind"] == kind]
        ax.plot(depth[chosen], value[chosen], "o", color=KIND_COLOUR[kind], label=kind, zorder=3)
    ax.set(xlabel="Normalised depth", xlim=(-0.02, 1.02))
    ax.legend(frameon=False, handletextpad=0.2)


def bars(ax: Axes, rows: Sequence[Row], column: str, scale: float = 1) -> None:
    """A bar a unit with its interval, coloured by kind, a line where a stage ends."""
    value, low, high = (scale * np.array([row[f"{column}{end}"] for row in rows], float) for end in ("", "_low", "_high"))
    x = np.arange(len(rows))
    ax.bar(x, value, color=[KIND_COLOUR[row["kind"]] for row in rows], width=0.8)
    ax.errorbar(x, value, np.abs([value - low, high - value]), fmt="none", ecolor="0.2", elinewidth=0.7)
    for i in range(1, len(rows)):
        if rows[i]["stage"] != rows[i - 1]["stage"]:
            ax.axvline(i - 0.5, color="0.6", lw=0.8, ls=":")
    ax.axhline(0, color="0.2", lw=0.6)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        ax.bar(0, 0, color=KIND_COLOUR[kind], label=kind)
    ax.set(xlabel="Unit", xlim=(-0.7, len(rows) - 0.3))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(frameon=False)


def reliability(ax: Axes, diagram: np.ndarray) -> None:
    """Accuracy against confidence.  Shapes: (value, low, high) x (confidence, accuracy, share) x bins."""
    (_, accuracy, share), low, high = diagram[0], diagram[1][1], diagram[2][1]
    bins = len(accuracy)
    centres = (np.arange(bins) + 0.5) / bins
    ax.bar(centres, np.nan_to_num(accuracy), width=0.92 / bins, color=KIND_COLOUR["conv"], alpha=0.85, label="accuracy")
    error = np.nan_to_num(np.abs([accuracy - low, high - accuracy]))
    ax.errorbar(centres, accuracy, error, fmt="none", ecolor="0.2", elinewidth=0.7)
    ax.step(
        np.linspace(0, 1, bins + 1),
        np.append(share, share[-1]),
        where="post",
        color="0.45",
        lw=0.9,
        label="share of images",
    )
    ax.plot([0, 1], [0, 1], color="0.2", lw=0.8, ls="--")
    ax.set(xlabel="Confidence", ylabel="Accuracy", xlim=(0, 1), ylim=(0, 1))
    ax.legend(frameon=False, loc="upper left")


def frequency_axis(ax: Axes) -> None:
    """Frequencies from 0 to pi, written as multiples of it."""
    ticks = np.linspace(0, 1, 6)
    ax.set_xticks(ticks, [f"{tick:.1f}π" for tick in ticks])
    ax.set(xlabel="Frequency", xlim=(0, 1))
