"""Figures with a panel a model, each as the result draws it, on one scale: 2a, 8, 9, 10a and 10b."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backlight.results.figures import HEIGHT, PANEL, paper_style
from backlight.study.folder import Model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Panels in a row.
ACROSS = 3


def amplitudes(models: Sequence[Model]) -> Figure:
    """Figure 2a."""
    return side_by_side(models, "fourier", "spectrum")


def highest_amplitude(models: Sequence[Model]) -> Figure:
    """Figure 8.  The steps of a ViT are small beside the stages of a CNN, so each model has a scale of its own."""
    return side_by_side(models, "fourier", "depth", one_scale=False)


def transfers(models: Sequence[Model]) -> Figure:
    """Figure 2a unit by unit and absolute: what each unit does to a frequency."""
    return side_by_side(models, "fourier", "transfer", one_scale=False)


def steps(models: Sequence[Model]) -> Figure:
    """The steps of figure 8 in two parts: whether a unit changes the mean of a map or its highest frequency."""
    return side_by_side(models, "fourier", "steps", one_scale=False)


def variances(models: Sequence[Model]) -> Figure:
    """Figure 9.  Variances of models differ by orders of magnitude, so each has a scale of its own."""
    return side_by_side(models, "variance", None, one_scale=False)


def similarities(models: Sequence[Model]) -> Figure:
    """Figure 10a."""
    return side_by_side(models, "similarity", "matrix", one_scale=False)


def lesions(models: Sequence[Model]) -> Figure:
    """Figure 10b."""
    return side_by_side(models, "lesion", "accuracy")


def side_by_side(models: Sequence[Model], analysis: str, panel: str | None, *, one_scale: bool = True) -> Figure:
    """One panel of the result of each model, with its name above; the label of the vertical axis once a row."""
    with paper_style():
        figure, axes = grid_of(len(models))
        for i, (ax, model) in enumerate(zip(axes, models, strict=True)):
            model.results[analysis].draw(ax, panel)
            ax.set_title(model.name, loc="left", pad=16 if ax.get_legend() else 6, fontweight="bold")
            if i % ACROSS and analysis != "similarity":
                ax.set_ylabel("")
        if one_scale:
            share_scale(axes)
    return figure


def grid_of(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, in rows of `ACROSS`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across, down = min(ACROSS, panels), -(-panels // ACROSS)
    figure = Figure(figsize=(1.15 * PANEL * across, 1.1 * HEIGHT * down), layout="constrained", dpi=200)
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(down, across, i + 1) for i in range(panels)]


def share_scale(axes: Sequence[Axes]) -> None:
    """Give several axes the same vertical limits."""
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
