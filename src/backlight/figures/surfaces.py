"""Figure 1a: the loss around the trained weights of several models, NLL and its sum with the decay term apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backlight.errors import UserError
from backlight.results.figures import HEIGHT, PANEL, paper_style
from backlight.results.surface_figures import Surface, in_space, shared_levels
from backlight.study.folder import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"nll": "NLL", "loss": "NLL + decay term"}


def draw(models: Sequence[Model]) -> Figure:
    """A row a quantity, a column a model; each row on one scale.  With ``paper`` the decay is the term of the authors."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    surfaces = {column: [surface_of(model, column) for model in models] for column in TITLES}
    with paper_style():
        figure = Figure(figsize=(PANEL * len(models), HEIGHT * len(TITLES)), layout="constrained", dpi=200)
        FigureCanvasAgg(figure)
        for r, (column, row) in enumerate(surfaces.items()):
            levels = shared_levels(row)
            for c, surface in enumerate(row):
                ax = figure.add_subplot(len(TITLES), len(models), r * len(models) + c + 1, projection="3d")
                in_space(ax, surface, levels)
                ax.set_title(f"{surface.model}: {TITLES[column]}", pad=0)
    return figure


def surface_of(model: Model, column: str) -> Surface:
    """A column of the landscape as a surface.  Errors: UserError for a line."""
    surface = model.results["landscape"].surface(column)  # type: ignore[attr-defined]
    if len(surface.y) < 2:
        raise UserError(f"the landscape of {model.name} is a line, and figure 1a shows a plane: run it with --dimensions 2")
    return surface
