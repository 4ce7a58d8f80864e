"""The result of `landscape` and its figures: figure 1a of Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from backlight.errors import UserError
from backlight.results.figures import caption_below, paper_style
from backlight.results.result import Result
from backlight.results.surface_figures import PANELS, Surface, figure, shared_levels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What figures write beside heights above the lowest point.
LABELS = {"nll": "NLL above its minimum (nats)", "loss": "Loss above its minimum"}
#: What the axes are, for each setting of ``directions``.
AXES = {"random": "Direction", "eigenvectors": "Eigenvector", "path": "Principal axis"}


@dataclass(frozen=True, repr=False)
class Landscape(Result):
    """A row per grid point, x fastest: NLL, weight decay, their sum ``loss`` (nats), accuracy and ECE (fractions).

    ``arrays``: ``products``, the inner products of weights and directions; ``directions`` (directions, P) if they are small;
    for a path of training ``path`` (snapshots, directions), in coordinates of the plane; ``per_image/nll`` (n,): the NLL of
    each image at the centre; ``per_image/rise`` (n,): its mean rise from the centre to a distance of half the radius.
    """

    analysis: ClassVar[str] = "landscape"
    panels: ClassVar[tuple[str, ...]] = ("contour", "surface", "line")

    @property
    def height(self) -> str:
        """The column that figures show: NLL, or with ``paper`` the sum, as in the authors' figure."""
        return "loss" if self.provenance.get("settings", {}).get("paper") else "nll"

    @property
    def axes(self) -> tuple[str, str]:
        """Labels of the two axes."""
        axis = AXES.get(self.provenance.get("settings", {}).get("directions", ""), "Direction")
        return f"{axis} 1", f"{axis} 2"

    def surface(self, column: str | None = None) -> Surface:
        """A column as a surface over the grid; default: the column that figures show.  Errors: UserError if there is none."""
        column = column or self.height
        if column not in self.table[0]:
            raise UserError(f"the landscape has no column {column!r}; there are {', '.join(self.table[0])}")
        x, y = (np.unique([row[axis] for row in self.table]) for axis in ("x", "y"))
        z, low, high = (np.full((len(y), len(x)), np.nan) for _ in range(3))
        for row in self.table:
            point = np.searchsorted(y, row["y"]), np.searchsorted(x, row["x"])
            for values, end in ((z, ""), (low, "_low"), (high, "_high")):
                values[point] = row.get(f"{column}{end}", np.nan)
        label = LABELS.get(column, f"{column} above its minimum")
        return Surface(self.model, x, y, z, low, high, label, self.axes, self.arrays.get("path"))

    def shown(self) -> tuple[str, ...]:
        """Contours, the surface and cross-sections; of a line only the line."""
        return ("line",) if len({row["y"] for row in self.table}) < 2 else self.panels

    def figure(self) -> Figure:
        """All panels with a caption."""
        drawn = figure([self.surface()], self.shown())
        with paper_style():
            caption_below(drawn, self.caption())
        return drawn

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 1a as contours, in space (on 3-D axes), and as cross-sections."""
        surface = self.surface()
        PANELS[panel](ax, surface, shared_levels([surface]))
