"""How surfaces are drawn: from above, in space, and cut through the centre, several models on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .drawing import COLUMN, HEIGHT, KIND_COLOUR, LEGEND, PANEL, paper_style, title
from .errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .analyses.landscape import Landscape
    from .analyses.trajectory import Trajectory

Array = NDArray[np.float64]

#: Bands of colour.
BANDS = 12
COLOURS = "plasma"


def levels(results: Sequence[Landscape]) -> Array:
    """Heights that several surfaces share, each counted from its own lowest point, closer where it is low.  -> (BANDS + 1,)."""
    heights = np.concatenate([risen(result)[2].ravel() for result in results])
    return spaced(heights)


def spaced(heights: Array) -> Array:
    """From 0 to the highest that is finite, closer where it is low.  Shapes: any -> (BANDS + 1,)."""
    most = float(np.max(heights[np.isfinite(heights)], initial=0)) or 1.0
    return most * np.linspace(0, 1, BANDS + 1) ** 2


def risen(result: Landscape, column: str | None = None) -> tuple[Array, Array, Array]:
    """A surface above its lowest point, so that models of different losses fit one scale.  Shapes: (X,), (Y,), (Y, X)."""
    x, y, z = result.surface(column)
    return x, y, above_lowest(z)


def above_lowest(z: Array) -> Array:
    """Heights less the lowest that is finite; as they are if none is."""
    return z - np.min(z[np.isfinite(z)], initial=np.inf) if np.isfinite(z).any() else z


def figure(results: Sequence[Landscape], panels: Sequence[str] = ("surface",)) -> Figure:
    """Landscapes of models on the same axes and scale, a row a model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with paper_style():
        size = (PANEL * len(panels) if len(panels) > 1 else COLUMN, HEIGHT * len(results))
        found = Figure(figsize=size, layout="constrained", dpi=200)
        FigureCanvasAgg(found)
        shared = levels(results)
        drawn: dict[str, list[Any]] = {panel: [] for panel in panels}
        for r, result in enumerate(results):
            for p, panel in enumerate(panels):
                space = {"projection": "3d"} if panel == "surface" else {}
                ax = found.add_subplot(len(results), len(panels), r * len(panels) + p + 1, **space)
                PANELS[panel](ax, result, shared)
                drawn[panel].append(ax)
                if p == 0 and len(results) > 1:
                    ax.set_title(result.model, loc="left", pad=16)
        for axes in drawn.values():
            for side in ("x", "y"):
                ends = np.array([getattr(ax, f"get_{side}lim")() for ax in axes])
                for ax in axes:
                    getattr(ax, f"set_{side}lim")(ends[:, 0].min(), ends[:, 1].max())
        if len(results) == 1:
            title(found, results[0].model)
    return found


def contour(ax: Axes, result: Landscape, shared: Array) -> None:
    """Height in colour; the trained weights are a cross, a path of training a line; blank where the loss is not finite."""
    x, y, z = risen(result)
    _refuse_line(y)
    shown = np.ma.masked_invalid(z)
    filled = ax.contourf(x, y, shown, levels=shared, cmap=COLOURS, norm=_norm(shared), extend="neither")
    ax.contour(x, y, shown, levels=shared[1:], colors="white", linewidths=0.35, alpha=0.6)
    bar = ax.figure.colorbar(filled, ax=ax, label=_label(result), pad=0.03, aspect=25, ticks=shared[[0, 4, 6, 8, 10, 12]])
    bar.ax.set_yticklabels([f"{level:.2g}" for level in shared[[0, 4, 6, 8, 10, 12]]])
    if (path := result.arrays.get("path")) is not None:
        ax.plot(*path.T, color="white", marker="o", markersize=2, lw=0.8)
    ax.plot(0, 0, marker="+", color="white", markersize=5, mew=0.9)
    first, second = result.axes
    ax.set(xlabel=first, ylabel=second, xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal")


def space(ax: Any, result: Landscape, shared: Array) -> None:
    """Figure 1a: the surface in space.  Errors: UserError on flat axes."""
    if ax.name != "3d":
        raise UserError("a surface is drawn on axes in space: figure.add_subplot(projection='3d')")
    from matplotlib.ticker import MaxNLocator

    x, y, z = risen(result)
    _refuse_line(y)
    known = np.where(np.isfinite(z), z, np.nan)
    mesh = {"rcount": 60, "ccount": 60, "lw": 0.15, "edgecolor": (1, 1, 1, 0.5)}
    ax.plot_surface(*np.meshgrid(x, y), known, cmap=COLOURS, norm=_norm(shared), **mesh)
    ax.view_init(elev=25, azim=-60)
    ax.set_box_aspect((1, 1, 0.8), zoom=1.0)
    ax.set(zlim=(0, shared[-1]), xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    ax.tick_params(pad=-3, labelsize=6)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_pane_color((1, 1, 1, 0))
        axis._axinfo["grid"] |= {"linewidth": 0.3, "color": "0.8"}
    for axis, label, pad in ((ax.xaxis, result.axes[0], -8), (ax.yaxis, result.axes[1], -5)):
        axis.set_major_locator(MaxNLocator(4, prune="both"))  # at the ends the labels of two axes meet
        axis.set_major_formatter("{x:.2g}")
        axis.set_label_text(label)
        axis.labelpad = pad
    ax.zaxis.set_major_locator(MaxNLocator(4))


def sections(ax: Axes, result: Landscape, shared: Array) -> None:
    """Cuts through the trained weights with their intervals as bands, above the lowest point."""
    column = result.height
    least = min((row[column] for row in result.table if np.isfinite(row[column])), default=0.0)
    for axis, other, label, colour in zip("xy", "yx", result.axes, ("conv", "attention"), strict=True):
        rows = sorted((row for row in result.table if row[other] == 0), key=lambda row: row[axis])
        if len(rows) > 1:
            at = [row[axis] for row in rows]
            value, low, high = (
                np.array([row[f"{column}{end}"] for row in rows], float) - least for end in ("", "_low", "_high")
            )
            ax.fill_between(at, low, high, color=KIND_COLOUR[colour], alpha=0.2, lw=0)
            ax.plot(at, value, color=KIND_COLOUR[colour], label=label)
            ax.set_xlim(at[0], at[-1])
    ax.set(xlabel="Coordinate", ylabel=_label(result), ylim=(0, None))
    ax.legend(**LEGEND)


PANELS = {"contour": contour, "surface": space, "line": sections}


def _norm(shared: Array) -> Any:
    """Colours as close as the levels."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, shared[-1])


def _label(result: Landscape) -> str:
    return {"nll": "NLL above its lowest (nats)", "loss": "Loss above its lowest"}[result.height]


def _refuse_line(y: Array) -> None:
    if len(y) < 2:
        raise UserError("this landscape is a line: draw its panel 'line'")


# --- a path of training


def path(ax: Axes, result: Trajectory) -> None:
    """The path on its principal plane, over the loss if that was measured; the model is a cross."""
    x, y = (np.array([row[axis] for row in result.table]) for axis in "xy")
    over = "surface" in result.arrays
    if over:
        z = above_lowest(result.arrays["surface"])
        shared = spaced(z)
        places = (result.arrays["surface_x"], result.arrays["surface_y"])
        filled = ax.contourf(*places, np.ma.masked_invalid(z), levels=shared, cmap=COLOURS, norm=_norm(shared))
        bar = ax.figure.colorbar(filled, ax=ax, label="NLL above its lowest (nats)", pad=0.03, aspect=25, ticks=shared[::4])
        bar.ax.set_yticklabels([f"{level:.2g}" for level in shared[::4]])
    _steps(ax, x, y, "white" if over else "0.3")
    first, second = (100 * share for share in result.evidence["explained"])
    ax.set(xlabel=f"Axis 1 ({first:.0f}% of variance)", ylabel=f"Axis 2 ({second:.0f}%)")
    ax.set_aspect("equal", adjustable="box" if over else "datalim")


def polar(ax: Axes, result: Trajectory) -> None:
    """Radius and angle about the model, with the warning that belongs to them."""
    radius, angle = (np.array([row[column] for row in result.table]) for column in ("radius", "angle"))
    angle = np.where(np.isnan(angle), 0, angle)
    _steps(ax, radius * np.cos(angle), radius * np.sin(angle), "0.3")
    ax.set(xlabel="r cos θ", ylabel="r sin θ")
    ax.set_title("withdrawn by its author", color="0.4", style="italic")
    ax.set_aspect("equal", adjustable="datalim")


def falling(ax: Axes, result: Trajectory) -> None:
    """NLL at each snapshot with its interval."""
    from matplotlib.ticker import MaxNLocator

    at = [row["snapshot"] for row in result.table]
    value, low, high = (np.array([row[f"nll{end}"] for row in result.table], float) for end in ("", "_low", "_high"))
    ax.fill_between(at, low, high, color=KIND_COLOUR["conv"], alpha=0.2, lw=0)
    ax.plot(at, value, color=KIND_COLOUR["conv"], marker="o", markersize=2.5)
    ax.set(xlabel="Snapshot", ylabel="NLL (nats)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


PATH_PANELS = {"plane": path, "polar": polar, "loss": falling}


def _steps(ax: Axes, x: Array, y: Array, colour: str) -> None:
    """A way with a mark a snapshot, lighter early, and a cross at its end."""
    ax.plot(x, y, color=colour, lw=0.8, zorder=2)
    ax.scatter(x[:-1], y[:-1], c=np.arange(len(x) - 1), cmap="viridis", s=10, zorder=3, edgecolors=colour, linewidths=0.4)
    ax.plot(x[-1], y[-1], marker="+", color=colour if colour == "white" else "black", markersize=6, mew=1.0, zorder=4)
