"""The style of figures: a colour for each kind of unit, a line at the end of each stage, the width of a column in print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from backlight.results.charts import ChartText

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: A row of a result's table.
Row = Mapping[str, Any]

#: Okabe & Ito's palette, which colour-blind readers can distinguish; the page uses it too.
KIND_COLOUR = {
    "attention": "#D55E00",
    "conv": "#0072B2",
    "mlp": "#009E73",
    "blur": "#CC79A7",
    "parallel": "#E69F00",
    "other": "#56B4E9",
    "stem": "#8A8A8A",
}
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
#: Inches: a column in print, one of several panels that share the width of a page, and the height of both.
COLUMN, PANEL, HEIGHT = 3.25, 2.3, 2.2
#: A caption: points, inches a line, letters an inch; and the letters of a vertical label on a line.
SMALL, LINE, LETTERS, LETTERS_OF_PANEL = 6.5, 0.11, 21, 28
STYLE = {
    "text.parse_math": False,  # a model can be called $$x$$
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "figure.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # text stays text in a paper's PDF
}
LEGEND = {  # a row above the axes, where it covers no data
    "loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 4, "frameon": False, "borderaxespad": 0.2,
    "handletextpad": 0.3, "handlelength": 1.2, "columnspacing": 0.9,
}  # fmt: skip


def paper_style() -> AbstractContextManager[None]:
    """Within the block figures have the sizes of a column in print."""
    import matplotlib as mpl

    return mpl.rc_context(STYLE)  # type: ignore[arg-type]


def paper_figure(panels: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure of one panel as wide as a column, or of several that share the width of a page.  No window is opened."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN if panels == 1 else PANEL * panels, HEIGHT), layout="constrained", dpi=200)
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, panels, i + 1) for i in range(panels)]


def title(figure: Figure, name: str) -> None:
    """The name of a model above all panels, in several lines if the figure is too narrow."""
    figure.suptitle(textwrap.fill(name, int(15 * figure.get_figwidth())))  # 15 letters per inch


def caption_below(figure: Figure, text: str) -> None:
    """A caption below all panels; the figure grows by its lines, so that the panels keep their size."""
    width = int(LETTERS * figure.get_figwidth())
    filled = "\n".join(textwrap.fill(line, width) for line in text.splitlines())
    figure.set_figheight(figure.get_figheight() + LINE * (1 + filled.count("\n")))
    figure.supxlabel(filled, x=0.01, ha="left", fontsize=SMALL, color="0.25")


def label(ax: Axes, text: ChartText) -> None:
    """The labels of both axes, in lines that a panel has room for."""
    ax.set_xlabel(text.x)
    ax.set_ylabel(textwrap.fill(text.y, LETTERS_OF_PANEL))


def by_unit(table: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of each unit, one unit after the other."""
    for _, rows in groupby(table, key=lambda row: row["unit"]):
        yield list(rows)


def spectra(ax: Axes, table: Iterable[Row], column: str) -> None:
    """A curve per unit over frequency with its interval as a band; deeper units are darker."""
    import matplotlib as mpl

    curves = list(by_unit(table))
    light_to_dark = mpl.colormaps["plasma_r"](np.linspace(0.08, 1, 256))  # the lightest yellows are invisible on white
    colours = mpl.colors.ListedColormap(light_to_dark)
    for rows, colour in zip(curves, colours(np.linspace(0, 1, len(curves))), strict=True):
        _curve(ax, rows, column, len(curves), color=colour)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), colours)
    ax.figure.colorbar(scale, ax=ax, label="Normalised depth", pad=0.02, aspect=30, ticks=[0, 0.5, 1])
    _frequency_axis(ax)


def transfers(ax: Axes, table: Iterable[Row], column: str) -> None:
    """A curve per unit over frequency with its interval as a band, coloured by kind."""
    curves = [rows for rows in by_unit(table) if np.isfinite(rows[0][column])]
    ax.axhline(0, color="0.2", lw=0.6)
    for rows in curves:
        _curve(ax, rows, column, len(curves), color=KIND_COLOUR[rows[0]["kind"]], alpha=0.7, lw=0.8)
    for kind in dict.fromkeys(rows[0]["kind"] for rows in curves):
        ax.plot([], [], color=KIND_COLOUR[kind], label=kind)
    _frequency_axis(ax)
    if curves:
        ax.legend(**LEGEND)


def _curve(ax: Axes, rows: Sequence[Row], column: str, curves: int, *, color: Any, **line: Any) -> None:
    """One of several curves with its band; bands of many curves are fainter, so that the lines stay visible."""
    frequency, value, low, high = (
        np.array([row[name] for row in rows], float) for name in ("frequency", column, f"{column}_low", f"{column}_high")
    )
    ax.fill_between(frequency, low, high, color=color, alpha=min(0.2, 1 / curves), lw=0)
    ax.plot(frequency, value, color=color, **line)


def powers_of_ten(value: float, _: object = None) -> str:
    """A tick of a logarithmic axis, without markup.

    >>> powers_of_ten(1000), powers_of_ten(-0.01), powers_of_ten(0), powers_of_ten(1)
    ('10³', '−10⁻²', '0', '1')
    """
    if not value:
        return "0"
    exponent = round(float(np.log10(abs(value))))
    power = f"10{str(exponent).translate(RAISED)}" if exponent else "1"
    return f"−{power}" if value < 0 else power


def _frequency_axis(ax: Axes) -> None:
    """Frequencies from 0 to pi, as multiples of pi."""
    ax.set_xticks([0, 0.5, 1], ["0", "0.5π", "1.0π"])
    ax.set_xticks(np.linspace(0, 1, 11), minor=True)
    ax.set(xlabel="Frequency", xlim=(0, 1))


def over_depth(ax: Axes, rows: Sequence[Row], column: str) -> None:
    """A number after each unit over normalised depth: interval as a band, attention shaded, a line at the end of a stage."""
    steps = max(1, len(rows) - 1)
    depth = np.arange(len(rows)) / steps
    value, low, high = (np.array([row[f"{column}{end}"] for row in rows], float) for end in ("", "_low", "_high"))
    for i, row in enumerate(rows):
        if row["kind"] == "attention":  # from the stream before it to the stream after it
            ax.axvspan(depth[i] - 1 / steps, depth[i], color=KIND_COLOUR["attention"], alpha=0.10, lw=0)
        if i and row["stage"] != rows[i - 1]["stage"]:
            ax.axvline(depth[i] - 0.5 / steps, color="0.6", lw=0.8, ls=":")
    ax.fill_between(depth, low, high, color="0.3", alpha=0.25, lw=0)
    ax.plot(depth, value, color="0.35", zorder=2)
    size = min(3.5, 180 / len(rows))  # points: the marks of a deep model do not touch
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [i for i, row in enumerate(rows) if row["kind"] == kind]
        ax.plot(depth[own], value[own], "o", color=KIND_COLOUR[kind], label=kind, zorder=3, markersize=size)
    ax.set(xlabel="Normalised depth", xlim=(-0.02, 1.02))
    ax.legend(**LEGEND)


def bars(ax: Axes, rows: Sequence[Row], column: str, scale: float = 1) -> None:
    """A bar per unit with its interval, coloured by kind, a line at the end of a stage."""
    from matplotlib.ticker import MaxNLocator

    value, low, high = (scale * np.array([row[f"{column}{end}"] for row in rows], float) for end in ("", "_low", "_high"))
    x = np.array([row["unit"] for row in rows])
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [i for i, row in enumerate(rows) if row["kind"] == kind]
        ax.bar(x[own], value[own], color=KIND_COLOUR[kind], label=kind, width=0.8)
    ax.errorbar(x, value, np.abs([value - low, high - value]), fmt="none", ecolor="0.2", elinewidth=0.7)
    for row, following in pairwise(rows):
        if row["stage"] != following["stage"]:
            ax.axvline((row["unit"] + following["unit"]) / 2, color="0.6", lw=0.8, ls=":")
    ax.axhline(0, color="0.2", lw=0.6)
    least, most = ax.get_ylim()
    ax.set(xlabel="Unit", xlim=(x[0] - 0.7, x[-1] + 0.7), ylim=(min(least, -0.01 * scale), max(most, 0.01 * scale)))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(**LEGEND)


def steps(ax: Axes, rows: Sequence[Row], start: str, end: str) -> None:
    """Two numbers per unit with their intervals, an open and a filled mark joined by a line, coloured by kind."""
    from matplotlib.ticker import MaxNLocator

    ax.axhline(0, color="0.2", lw=0.6)
    size, labelled = min(3.5, 120 / max(1, len(rows))), set()
    for row in rows:
        x, colour, kind = (row["unit"] - 0.2, row["unit"] + 0.2), KIND_COLOUR[row["kind"]], row["kind"]
        ax.plot(x, [row[start], row[end]], color=colour, alpha=0.5, zorder=2)
        for at, column, face in zip(x, (start, end), ("white", colour), strict=True):
            ax.plot([at, at], [row[f"{column}_low"], row[f"{column}_high"]], color="0.2", lw=0.7, zorder=2)
            label = kind if column == end and kind not in labelled else None
            ax.plot(at, row[column], "o", color=colour, markerfacecolor=face, markersize=size, label=label, zorder=3)
        labelled.add(kind)
    for row, following in pairwise(rows):
        if row["stage"] != following["stage"]:
            ax.axvline((row["unit"] + following["unit"]) / 2, color="0.6", lw=0.8, ls=":")
    ax.set_xlabel("Unit")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if rows:
        ax.legend(**LEGEND)


def reliability(ax: Axes, diagram: np.ndarray) -> None:
    """Accuracy over confidence.  Shapes: (3, 3, bins): (value, low, high) x (confidence, accuracy, share)."""
    (_, accuracy, share), low, high = diagram[0], diagram[1][1], diagram[2][1]
    bins = len(accuracy)
    edges = np.linspace(0, 1, bins + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    ax.bar(centres, np.nan_to_num(accuracy), width=0.9 / bins, color=KIND_COLOUR["conv"], alpha=0.8, label="accuracy")
    ax.errorbar(centres, accuracy, np.abs([accuracy - low, high - accuracy]), fmt="none", ecolor="0.2", elinewidth=0.7)
    ax.stairs(share, edges, color=KIND_COLOUR["attention"], lw=1.0, label="share of images")
    ax.plot([0, 1], [0, 1], color="0.2", lw=0.8, ls="--", label="calibrated")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.legend(**LEGEND)
