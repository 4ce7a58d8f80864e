"""Figures with a point a model: 5 (and the left of 7), 12a and 12b."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from backlight.figures.drawing import colours
from backlight.figures.panels import grid_of
from backlight.figures.spectra import densities
from backlight.results.charts import CHARTS
from backlight.results.figures import LEGEND, label, paper_figure, paper_style
from backlight.results.result import Row
from backlight.study.folder import Model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Value, low, high.
Ends = tuple[float, float, float]


def error_and_nll(models: Sequence[Model]) -> Figure:
    """Figure 5."""
    return _of_points(models, training_nll, error, "models/error_and_nll")


def robustness(models: Sequence[Model]) -> Figure:
    """Figure 12b."""
    return _of_points(models, accuracy, corrupted_accuracy, "models/robustness")


def locality(models: Sequence[Model]) -> Figure:
    """Figure 7: the points, and the spectra."""
    with paper_style():
        figure, (points, negative, positive) = grid_of(3)
        scatter(points, models, training_nll, error)
        label(points, CHARTS["models/error_and_nll"])
        densities(negative, positive, models)
        negative.set_ylabel("Density")
    return figure


def build_up(models: Sequence[Model]) -> Figure:
    """Figure 12a: accuracy by the number of attentions, the word of each model below."""
    ordered = sorted(models, key=lambda model: (attentions(model), model.name))
    words = list(dict.fromkeys(word(model) for model in ordered))
    colour = colours([model.name for model in ordered])
    with paper_style():
        figure, (ax,) = paper_figure(1)
        for model in ordered:
            value, low, high = accuracy(model)
            named = f"{model.name}, {model.parameters / 1e6:.2f} M" if model.parameters else model.name
            ends = [[value - low], [high - value]]
            ax.errorbar(words.index(word(model)), value, ends, fmt="o", color=colour[model.name], lw=0.8, label=named)
        ax.set_xticks(range(len(words)), [f"{text.count('a')}\n{text.replace(' ', chr(10))}" for text in words])
        ax.set_xlim(-0.5, len(words) - 0.5)
        label(ax, CHARTS["models/build_up"])
        ax.legend(**{**LEGEND, "ncols": 2})
    return figure


# --- the numbers of a model


def error(model: Model) -> Ends:
    """The test error in percent."""
    value, low, high = accuracy(model)
    return 100 - value, 100 - high, 100 - low


def accuracy(model: Model) -> Ends:
    """The test accuracy in percent."""
    row = next(row for row in model.results["calibration"].table if row["metric"] == "accuracy")
    return 100 * row["value"], 100 * row["low"], 100 * row["high"]


def training_nll(model: Model) -> Ends:
    """The NLL of augmented training images: the centre of the landscape."""
    row = next(row for row in model.results["landscape"].table if row["x"] == row["y"] == 0)
    return _ends(row, "nll", 1)


def corrupted_accuracy(model: Model) -> Ends:
    """The accuracy in percent, the mean over corruptions and severities."""
    rows = model.results["corruption"].table
    return _ends(next(row for row in rows if row["corruption"] == "mean" and row["severity"] is None), "accuracy", 100)


def _ends(row: Row, column: str, scale: float) -> Ends:
    return scale * row[column], scale * row[f"{column}_low"], scale * row[f"{column}_high"]


def attentions(model: Model) -> int:
    """How many units are attention."""
    return sum(unit["kind"] == "attention" for unit in model.units)


def word(model: Model) -> str:
    """A letter a unit, a group a stage."""
    stages = groupby(model.units, key=lambda unit: unit["stage"])
    return " ".join("".join(unit["kind"][0] for unit in stage) for _, stage in stages)


# --- points


Number = Callable[[Model], Ends]


def _of_points(models: Sequence[Model], x: Number, y: Number, chart: str) -> Figure:
    with paper_style():
        figure, (ax,) = paper_figure(1)
        scatter(ax, models, x, y)
        label(ax, CHARTS[chart])
    return figure


def scatter(ax: Axes, models: Sequence[Model], x: Number, y: Number) -> None:
    """A point a model with both intervals; the seeds of a model have one colour and one entry in the legend."""
    colour, labelled = colours([model.name for model in models]), set()
    for model in models:
        (across, left, right), (up, low, high) = x(model), y(model)
        group = model.name.partition("/seed-")[0]
        entry = None if group in labelled else group
        labelled.add(group)
        bars = [[up - low], [high - up]], [[across - left], [right - across]]
        ax.errorbar(across, up, *bars, fmt="o", color=colour[model.name], elinewidth=0.6, label=entry)
    ax.legend(**{**LEGEND, "ncols": 3})
