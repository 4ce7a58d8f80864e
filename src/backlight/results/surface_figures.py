"""Figures of loss surfaces and of paths of training: contours, a surface in space, cross-sections; all on one scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backlight.errors import UserError
from backlight.results.figures import COLUMN, HEIGHT, KIND_COLOUR, LEGEND, PANEL, paper_style, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

#: Bands of colour.
BANDS = 12
COLOURS = "plasma"


@dataclass(frozen=True, eq=False)
class Surface:
    """A quantity over a grid of points, with what a figure says about it; NaN where it was not measured.

    Shapes: x (X,), y (Y,), z and the ends of its interval (Y, X), path (T, 2).  On a line Y is 1.
    """

    model: str
    x: Array
    y: Array
    z: Array
    low: Array
    high: Array
    label: str  # of heights above the lowest point, with the unit
    axes: tuple[str, str]
    path: Array | None = None

    @property
    def heights(self) -> Array:
        """Heights above the lowest point, so that models with different losses fit one scale.  Shapes: -> (Y, X)."""
        return above_lowest(self.z)


def above_lowest(z: Array) -> Array:
    """Heights minus the lowest finite one; unchanged if none is finite."""
    return z - np.min(z[np.isfinite(z)], initial=np.inf) if np.isfinite(z).any() else z


def shared_levels(surfaces: Iterable[Surface]) -> Array:
    """Levels of colour that several surfaces share.  Shapes: -> (BANDS + 1,)."""
    return colour_levels(np.concatenate([surface.heights.ravel() for surface in surfaces]))


def colour_levels(heights: Array) -> Array:
    """Levels from 0 to the highest finite height, closer near 0.  Shapes: any -> (BANDS + 1,)."""
    highest = float(np.max(heights[np.isfinite(heights)], initial=0)) or 1.0
    return highest * np.linspace(0, 1, BANDS + 1) ** 2


def figure(surfaces: Sequence[Surface], panels: Sequence[str] = ("surface",)) -> Figure:
    """Surfaces of several models on the same axes and scale, one row per model.  ``panels``: keys of PANELS."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with paper_style():
        size = (PANEL * len(panels) if len(panels) > 1 else COLUMN, HEIGHT * len(surfaces))
        drawn = Figure(figsize=size, layout="constrained", dpi=200)
        FigureCanvasAgg(drawn)
        levels = shared_levels(surfaces)
        columns: dict[str, list[Any]] = {panel: [] for panel in panels}
        for r, surface in enumerate(surfaces):
            for p, panel in enumerate(panels):
                projection = {"projection": "3d"} if panel == "surface" else {}
                ax = drawn.add_subplot(len(surfaces), len(panels), r * len(panels) + p + 1, **projection)
                PANELS[panel](ax, surface, levels)
                columns[panel].append(ax)
                if p == 0 and len(surfaces) > 1:
                    ax.set_title(surface.model, loc="left", pad=16)
        for axes in columns.values():
            _share_limits(axes)
        if len(surfaces) == 1:
            title(drawn, surfaces[0].model)
    return drawn


def _share_limits(axes: Sequence[Any]) -> None:
    """Give several axes the same limits."""
    for side in ("x", "y"):
        limits = np.array([getattr(ax, f"get_{side}lim")() for ax in axes])
        for ax in axes:
            getattr(ax, f"set_{side}lim")(limits[:, 0].min(), limits[:, 1].max())


def contour(ax: Axes, surface: Surface, levels: Array) -> None:
    """Height as colour.  The trained weights are a cross, a path of training is a line; not finite: blank."""
    _refuse_line(surface)
    x, y, z = surface.x, surface.y, np.ma.masked_invalid(surface.heights)
    filled = ax.contourf(x, y, z, levels=levels, cmap=COLOURS, norm=_norm(levels), extend="neither")
    ax.contour(x, y, z, levels=levels[1:], colors="white", linewidths=0.35, alpha=0.6)
    _colour_bar(ax, filled, surface.label, levels[[0, 4, 6, 8, 10, 12]])
    if surface.path is not None:
        ax.plot(*surface.path.T, color="white", marker="o", markersize=2, lw=0.8)
    ax.plot(0, 0, marker="+", color="white", markersize=5, mew=0.9)
    first, second = surface.axes
    ax.set(xlabel=first, ylabel=second, xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal")


def in_space(ax: Any, surface: Surface, levels: Array) -> None:
    """Figure 1a: the surface in three dimensions.  Errors: UserError if the axes have two."""
    if ax.name != "3d":
        raise UserError("the panel 'surface' needs 3-D axes; make them with figure.add_subplot(projection='3d')")
    from matplotlib.ticker import MaxNLocator

    _refuse_line(surface)
    x, y, z = surface.x, surface.y, surface.heights
    finite = np.where(np.isfinite(z), z, np.nan)
    mesh = {"rcount": 60, "ccount": 60, "lw": 0.15, "edgecolor": (1, 1, 1, 0.5)}
    ax.plot_surface(*np.meshgrid(x, y), finite, cmap=COLOURS, norm=_norm(levels), **mesh)
    ax.view_init(elev=25, azim=-60)
    ax.set_box_aspect((1, 1, 0.8), zoom=1.0)
    ax.set(zlim=(0, levels[-1]), xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    ax.tick_params(pad=-3, labelsize=6)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_pane_color((1, 1, 1, 0))
        axis._axinfo["grid"] |= {"linewidth": 0.3, "color": "0.8"}
    for axis, label, pad in ((ax.xaxis, surface.axes[0], -8), (ax.yaxis, surface.axes[1], -5)):
        axis.set_major_locator(MaxNLocator(4, prune="both"))  # the labels of two axes overlap at the ends
        axis.set_major_formatter("{x:.2g}")
        axis.set_label_text(label)
        axis.labelpad = pad
    ax.zaxis.set_major_locator(MaxNLocator(4))


def sections(ax: Axes, surface: Surface, levels: Array) -> None:
    """Cross-sections through the trained weights with their intervals as bands, above the lowest point."""
    finite = surface.z[np.isfinite(surface.z)]
    lowest = finite.min() if finite.size else 0.0
    cuts = (
        (surface.x, lambda z: z[surface.y == 0], surface.axes[0], KIND_COLOUR["conv"]),
        (surface.y, lambda z: z[:, surface.x == 0].T, surface.axes[1], KIND_COLOUR["attention"]),
    )
    for at, cut, label, colour in cuts:
        if len(at) > 1 and len(cut(surface.z)):
            value, low, high = (cut(z)[0] - lowest for z in (surface.z, surface.low, surface.high))
            ax.fill_between(at, low, high, color=colour, alpha=0.2, lw=0)
            ax.plot(at, value, color=colour, label=label)
            ax.set_xlim(at[0], at[-1])
    ax.set(xlabel="Coordinate", ylabel=surface.label, ylim=(0, None))
    ax.legend(**LEGEND)


PANELS = {"contour": contour, "surface": in_space, "line": sections}


def _norm(levels: Array) -> Any:
    """Colours that change as fast as the levels."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, levels[-1])


def _colour_bar(ax: Axes, filled: Any, label: str, ticks: Array) -> None:
    bar = ax.figure.colorbar(filled, ax=ax, label=label, pad=0.03, aspect=25, ticks=ticks)
    bar.ax.set_yticklabels([f"{level:.2g}" for level in ticks])


def _refuse_line(surface: Surface) -> None:
    if len(surface.y) < 2:
        raise UserError("this landscape is a line; draw its panel 'line'")


# --- a path of training


def path_on_plane(ax: Axes, path: Array, explained: Sequence[float], surface: Mapping[str, Array] | None) -> None:
    """A path of training on its principal plane, over the loss if that was measured; the model is a cross.

    ``explained``: the share of variance along each axis.  ``surface``: the arrays x (X,), y (Y,) and z (Y, X).
    Shapes: path (T, 2).
    """
    if surface is not None:
        z = above_lowest(surface["z"])
        levels = colour_levels(z)
        masked = np.ma.masked_invalid(z)
        filled = ax.contourf(surface["x"], surface["y"], masked, levels=levels, cmap=COLOURS, norm=_norm(levels))
        _colour_bar(ax, filled, "NLL above its minimum (nats)", levels[::4])
    _snapshots(ax, path[:, 0], path[:, 1], "0.3" if surface is None else "white")
    first, second = (100 * share for share in explained)
    ax.set(xlabel=f"Axis 1 ({first:.0f}% of variance)", ylabel=f"Axis 2 ({second:.0f}%)")
    ax.set_aspect("equal", adjustable="datalim" if surface is None else "box")


def path_in_polar(ax: Axes, radius: Array, angle: Array) -> None:
    """A path of training in polar coordinates about the model, with the note that they were withdrawn.  Shapes: (T,) x 2."""
    angle = np.where(np.isnan(angle), 0, angle)
    _snapshots(ax, radius * np.cos(angle), radius * np.sin(angle), "0.3")
    ax.set(xlabel="r cos θ", ylabel="r sin θ")
    ax.set_title("withdrawn by its author", color="0.4", style="italic")
    ax.set_aspect("equal", adjustable="datalim")


def loss_at_snapshots(ax: Axes, value: Array, low: Array, high: Array) -> None:
    """NLL at each snapshot with its interval.  Shapes: (T,) each."""
    from matplotlib.ticker import MaxNLocator

    at = range(len(value))
    ax.fill_between(at, low, high, color=KIND_COLOUR["conv"], alpha=0.2, lw=0)
    ax.plot(at, value, color=KIND_COLOUR["conv"], marker="o", markersize=2.5)
    ax.set(xlabel="Snapshot", ylabel="NLL (nats)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _snapshots(ax: Axes, x: Array, y: Array, colour: str) -> None:
    """A line with a mark for each snapshot, later ones lighter, and a cross at its end."""
    ax.plot(x, y, color=colour, lw=0.8, zorder=2)
    ax.scatter(x[:-1], y[:-1], c=np.arange(len(x) - 1), cmap="viridis", s=10, zorder=3, edgecolors=colour, linewidths=0.4)
    ax.plot(x[-1], y[-1], marker="+", color=colour if colour == "white" else "black", markersize=6, mew=1.0, zorder=4)
