"""Trajectory: which way did training go, and how did the loss fall on it?

Snapshots of training on the plane that holds most of their path (Li et al. 2018, section 7), and in the polar coordinates of
the first version of Park & Kim, "How Do Vision Transformers Work?" (arXiv 2202.06709v1), whose author withdrew them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import UserError
from ..evidence import evidence, sha256
from ..numerics import plane
from ..numerics.bootstrap import mean_interval
from ..objective import Objective, Predicate, everything, soft_cross_entropy, uncompiled
from ..pieces import Pieces
from ..result import Claim, Result, Row, columns
from ..trace import plain_attention
from .directions import Snapshot, path_of, principal_axes
from .landscape import Watch, landscape
from .moving import Images, Loss, copied, refuse_unfit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

#: Why polar coordinates come with a warning.
WARNING = (
    "radius and angle depend on the scale of weights in front of a normalisation, which changes nothing that the model "
    "computes; for this their author withdrew the figure (issue 13 of the authors' repository)"
)


def trajectory(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    snapshots: Sequence[Snapshot] = (),
    loss: Loss = soft_cross_entropy,
    weight_decay: float = 0.05,
    decayed: Predicate = everything,
    statistics: str = "running",
    grid: int = 0,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
    pieces: Pieces | None = None,
    watch: Watch = lambda rows: rows,
) -> Trajectory:
    """The path of training through ``snapshots`` to the model: on its principal plane, in polar coordinates, and its loss.

    ``snapshots`` are models or state dicts in the order of training; the model itself comes last.  The path is one of
    trained parameters; the loss at a snapshot is computed with its own buffers too.  ``grid``: points along each axis of
    the loss surface over the plane, with the model's buffers; 0: none.
    Errors: UserError for fewer than three different points, or snapshots of another model.
    """
    started = time.perf_counter()
    model = uncompiled(model)
    objective = Objective(loss, weight_decay, decayed, statistics)
    refuse_unfit(model)
    images = Images.held(model, batches, objective)
    path = path_of(model, snapshots)
    products = plane.gram(path, path[-1])
    axes = principal_axes(path, 2)
    radius, angle = plane.polar(products)
    states = [*snapshots[: len(path) - 1], model]
    seen = _scores(model, images, objective, states, watch)  # (points, 2, n)
    own = dict(model.named_parameters())
    decaying = [{name: w for name, w in point.items() if decayed(name, own[name])} for point in path]
    decay = weight_decay / 2 * np.array([np.trace(plane.gram([point])) if point else 0.0 for point in decaying])
    table = _table(seen, axes.coordinates, radius, angle, np.sqrt(np.diag(products)), decay, resamples, seed)
    around = (
        landscape(
            model, batches, grid=grid, directions="path", snapshots=snapshots, loss=loss, weight_decay=weight_decay,
            decayed=decayed, statistics=statistics, radius=1.2, resamples=resamples, seed=seed, pieces=pieces, watch=watch,
        ) if grid else None
    )  # fmt: skip
    facts = evidence(
        model, batches, images=images.count, resamples=resamples, seed=seed, weight_decay=weight_decay,
        statistics=statistics, grid=grid, snapshots=len(path) - 1,
    ) | {
        "explained": axes.explained.tolist(),
        "explained_by": "share of the variance of the path about its mean",
        "polar_warning": WARNING,
        "parameters": {"in_the_path": sum(w.numel() for w in path[-1].values())},
        "snapshots_sha256": [sha256(point) for point in path],
        "switched_off": "dropout and drop path",
        "seconds": round(time.perf_counter() - started, 3),
    }  # fmt: skip
    arrays = {"distances": _distances(products)} | (_surface(around, float(np.abs(axes.coordinates).max())) if around else {})
    return Trajectory(name or type(model).__name__, table, _claims(seen, resamples, seed), facts, arrays)


def _scores(model: nn.Module, images: Images, objective: Objective, states: Sequence[Snapshot], watch: Watch) -> Array:
    """Loss and correctness of each image at each point of the path.  Shapes: -> (T, 2, n)."""
    moved = copied(model, objective.statistics)
    found = []
    for i in watch(list(range(len(states)))):
        _load(moved, states[i], i)
        with torch.inference_mode(), plain_attention():
            found.append(images.scores(moved, objective)[:2])
    return np.stack(found)


def _load(model: nn.Module, snapshot: Snapshot, i: int) -> None:
    """Put a snapshot's parameters and buffers into a private copy.  Errors: UserError if it lacks some."""
    state = snapshot.state_dict() if isinstance(snapshot, nn.Module) else snapshot
    named = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    lacking = [name for name in model.state_dict() if name not in named]
    if lacking:
        raise UserError(f"snapshot {i} has no {lacking[0]}: give whole state dicts, buffers too")
    try:
        model.load_state_dict(named, strict=False)
    except RuntimeError as error:
        raise UserError(f"snapshot {i} is not one of this model: {str(error).splitlines()[-1].strip()}") from error


def _table(
    seen: Array, places: Array, radius: Array, angle: Array, distance: Array, decay: Array, resamples: int, seed: int
) -> list[Row]:
    """A row a point of the path."""
    own = mean_interval(seen.transpose(2, 0, 1), resamples=resamples, seed=seed)  # (T, 2) each
    return [
        {"snapshot": t, "x": places[t, 0], "y": places[t, 1], "distance": distance[t], "radius": radius[t], "angle": angle[t]}
        | columns("nll", (end[t, 0] for end in own))
        | {"decay": decay[t]}
        | columns("loss", (end[t, 0] + decay[t] for end in own))
        | columns("accuracy", (end[t, 1] for end in own))
        for t in range(len(seen))
    ]


def _distances(products: Array) -> Array:
    """How far apart any two points of the path are.  Shapes: (T, T) -> (T, T)."""
    squares = np.diag(products)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))


def _surface(around: Any, unit: float) -> dict[str, np.ndarray]:
    """The surface over the plane, its axes in Euclidean length as the table's are."""
    x, y, z = around.surface("nll")
    return {"surface_x": x * unit, "surface_y": y * unit, "surface": z}


def _claims(seen: Array, resamples: int, seed: int) -> list[Claim]:
    """Whether training lowered the loss that is looked at: the least that a path must show."""
    interval = mean_interval(seen[-1, 0] - seen[0, 0], resamples=resamples, seed=seed)
    return [
        Claim.of_sign(
            "negative",
            interval,
            statement="From the first snapshot to the last the loss falls on these images.",
            source="Version 1, learning trajectories",
            quantity="NLL of the model less NLL of the first snapshot (nats), paired over images",
        )
    ]


@dataclass(frozen=True)
class Trajectory(Result):
    """A row a snapshot, the model last: place on the principal plane and distance from the model (lengths in the space of
    parameters), polar coordinates (radius as a share of the first, angle in radians), NLL, decay, their sum, accuracy.

    ``arrays``: ``distances`` (T, T); with a surface, ``surface`` (Y, X) of NLL and its axes.
    """

    analysis: ClassVar[str] = "trajectory"
    panels: ClassVar[tuple[str, ...]] = ("plane", "polar", "loss")

    def figure(self) -> Figure:
        """The path on its plane, in polar coordinates, and its loss."""
        found = super().figure()
        found.set_size_inches(found.get_figwidth(), 1.05 * found.get_figheight())
        return found

    def _draw(self, ax: Axes, panel: str) -> None:
        from .. import surfaces

        surfaces.PATH_PANELS[panel](ax, self)
