"""Trajectory: the path that training took, and the loss along it.

Snapshots of training on the plane that holds most of their variance (Li et al. 2018, section 7), and in the polar coordinates
of the first version of Park & Kim, "How Do Vision Transformers Work?" (arXiv 2202.06709v1), which its author withdrew.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from backlight.analyses.entry import Track
from backlight.analyses.landscape.measure import measure as measure_landscape
from backlight.analyses.landscape.result import Landscape
from backlight.analyses.landscape.settings import LandscapeSettings
from backlight.analyses.training_loss import training_objective
from backlight.analyses.trajectory.settings import TrajectorySettings
from backlight.curvature.directions import Snapshot, principal_axes, training_path
from backlight.curvature.loss import Loss, Objective, Predicate
from backlight.curvature.perturbed import (
    Batch,
    evaluation_copy,
    fixed_batches,
    image_count,
    image_scores,
    refuse_unfit_weights,
)
from backlight.errors import UserError
from backlight.files import PartialResults
from backlight.numerics import weight_space
from backlight.numerics.bootstrap import mean_interval
from backlight.numerics.proportions import share_interval
from backlight.results.claim import Claim
from backlight.results.provenance import provenance, sha256
from backlight.results.result import Result, Row, columns
from backlight.tracing.trace import inside, model_name, plain_attention

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

#: The edge of the surface, in distances from the model to the farthest snapshot along an axis.
RADIUS = 1.2
#: The warning that polar coordinates carry.
WARNING = (
    "radius and angle depend on the scale of weights in front of a normalisation, which does not change what the model "
    "computes; for this reason their author withdrew the figure (issue 13 of the authors' repository)"
)


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    settings: TrajectorySettings,
    *,
    snapshots: Sequence[Snapshot],
    loss: Loss | None,
    decayed: Predicate | None,
    resamples: int,
    seed: int,
    name: str | None,
    partial_results: PartialResults | None,
    track: Track,
) -> Trajectory:
    """The result of `backlight.trajectory` with these settings."""
    started = time.perf_counter()
    model = inside(model)
    settings, objective, recipe = training_objective(settings, model, batches, loss=loss, decayed=decayed)
    refuse_unfit_weights(model)
    fixed = fixed_batches(model, batches, objective)
    path = training_path(model, snapshots)
    products = weight_space.gram(path, path[-1])
    axes = principal_axes(path, 2)
    scores = _scores(model, fixed, objective, [*snapshots[: len(path) - 1], model], track)
    table = _table(scores, axes.coordinates, products, _decay(model, path, objective), resamples, seed)
    arrays = {"distances": _distances(products)}
    if settings.grid:
        landscape = measure_landscape(
            model, batches, _over_plane(settings), snapshots=snapshots, loss=loss, decayed=decayed, resamples=resamples,
            seed=seed, name=None, partial_results=partial_results, shard=(0, 1), track=track,
        )  # fmt: skip
        arrays |= _surface(landscape, float(np.abs(axes.coordinates).max()))
    recorded = asdict(settings) | {"snapshots": len(path) - 1}
    facts = provenance(model, batches, images=image_count(fixed), resamples=resamples, seed=seed, **recorded) | {
        "explained": axes.explained.tolist(),
        "recipe": recipe,
        "explained_by": "share of the variance of the path about its mean",
        "polar_warning": WARNING,
        "parameters": {"in_the_path": sum(w.numel() for w in path[-1].values())},
        "snapshots_sha256": [sha256(point) for point in path],
        "switched_off": "dropout and drop path",
        "seconds": round(time.perf_counter() - started, 3),
    }
    return Trajectory(model_name(model, name), table, [_claim(scores, resamples, seed)], facts, arrays)


def _scores(
    model: nn.Module, batches: Sequence[Batch], objective: Objective, states: Sequence[Snapshot], track: Track
) -> Array:
    """Loss and correctness of each image at each point of the path.  Shapes: -> (T, 2, n)."""
    at_snapshot = evaluation_copy(model, objective.statistics)
    scores = []
    for i in track(list(range(len(states)))):
        _load(at_snapshot, states[i], i)
        with torch.inference_mode(), plain_attention():
            scores.append(image_scores(at_snapshot, batches, objective)[:2])
    return np.stack(scores)


def _load(model: nn.Module, snapshot: Snapshot, i: int) -> None:
    """Load the parameters and buffers of snapshot ``i`` into a copy of the model.  Errors: UserError if some are missing."""
    state = snapshot.state_dict() if isinstance(snapshot, nn.Module) else snapshot
    named = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    missing = [name for name in model.state_dict() if name not in named]
    if missing:
        raise UserError(f"snapshot {i} has no {missing[0]}; give complete state dicts, buffers too")
    try:
        model.load_state_dict(named, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"snapshot {i} is not one of this model: {reason}") from error


def _over_plane(settings: TrajectorySettings) -> LandscapeSettings:
    """The settings of the loss surface over the plane of the path."""
    return LandscapeSettings(
        grid=settings.grid, radius=RADIUS, directions="path", weight_decay=settings.weight_decay,
        decay_all=settings.decay_all, statistics=settings.statistics,
    )  # fmt: skip


def _decay(model: nn.Module, path: Sequence[weight_space.Weights], objective: Objective) -> Array:
    """The weight decay term at each point of the path.  Shapes: -> (T,)."""
    parameters = dict(model.named_parameters())
    decaying = [{name: w for name, w in point.items() if objective.decayed(name, parameters[name])} for point in path]
    return objective.weight_decay / 2 * np.array([np.trace(weight_space.gram([w])) if w else 0.0 for w in decaying])


def _table(scores: Array, coordinates: Array, products: Array, decay: Array, resamples: int, seed: int) -> list[Row]:
    """A row per point of the path.  Shapes: scores (T, 2, n), coordinates (T, 2), products (T, T), decay (T,)."""
    nll = mean_interval(scores[:, 0].T, resamples=resamples, seed=seed)  # (T,) each
    accuracy = share_interval(scores[:, 1].T)
    radius, angle = weight_space.polar(products)
    distance = np.sqrt(np.diag(products))
    return [
        {"snapshot": t, "x": coordinates[t, 0], "y": coordinates[t, 1]}
        | {"distance": distance[t], "radius": radius[t], "angle": angle[t]}
        | columns("nll", (end[t] for end in nll))
        | {"decay": decay[t]}
        | columns("loss", (end[t] + decay[t] for end in nll))
        | columns("accuracy", (end[t] for end in accuracy))
        for t in range(len(scores))
    ]


def _distances(products: Array) -> Array:
    """The distance between any two points of the path.  Shapes: (T, T) -> (T, T)."""
    squares = np.diag(products)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))


def _surface(landscape: Landscape, unit: float) -> dict[str, np.ndarray]:
    """NLL over the plane, with axes in Euclidean length as in the table."""
    surface = landscape.surface("nll")
    return {"surface_x": surface.x * unit, "surface_y": surface.y * unit, "surface": surface.z}


def _claim(scores: Array, resamples: int, seed: int) -> Claim:
    """Training lowered the loss: the least that a path must show."""
    return Claim.of_sign(
        "negative",
        mean_interval(scores[-1, 0] - scores[0, 0], resamples=resamples, seed=seed),
        id="trajectory/loss-falls",
        count=scores.shape[-1],
        statement="From the first snapshot to the last the loss falls on these images.",
        source="Version 1, learning trajectories",
        quantity="NLL of the model less NLL of the first snapshot (nats), paired over images",
    )


@dataclass(frozen=True, repr=False)
class Trajectory(Result):
    """A row per snapshot, the model last.

    Columns: coordinates on the principal plane and distance from the model, in Euclidean length; polar coordinates, the radius
    as a share of the first and the angle in radians; NLL, weight decay, their sum, accuracy.
    ``arrays``: ``distances`` (T, T); with a surface, ``surface`` (Y, X) of NLL and its axes.
    """

    analysis: ClassVar[str] = "trajectory"
    panels: ClassVar[tuple[str, ...]] = ("plane", "polar", "loss")

    def figure(self) -> Figure:
        """The path on its plane, in polar coordinates, and its loss."""
        figure = super().figure()
        figure.set_size_inches(figure.get_figwidth(), 1.05 * figure.get_figheight())
        return figure

    def _draw(self, ax: Axes, panel: str) -> None:
        from backlight.results import surface_figures

        if panel == "plane":
            path = np.stack([self._column("x"), self._column("y")], 1)
            names = {"x": "surface_x", "y": "surface_y", "z": "surface"}
            surface = {axis: self.arrays[name] for axis, name in names.items()} if "surface" in self.arrays else None
            surface_figures.path_on_plane(ax, path, self.provenance["explained"], surface)
        elif panel == "polar":
            surface_figures.path_in_polar(ax, self._column("radius"), self._column("angle"))
        else:
            surface_figures.loss_at_snapshots(ax, *(self._column(f"nll{end}") for end in ("", "_low", "_high")))

    def _column(self, name: str) -> Array:
        return np.array([row[name] for row in self.table], float)
