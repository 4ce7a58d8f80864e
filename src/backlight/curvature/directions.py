"""Directions from the trained weights: random, along eigenvectors of the Hessian, or along a path of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backlight.curvature.hessian import Hessian
from backlight.curvature.loss import Objective
from backlight.curvature.perturbed import Batch, trainable_weights
from backlight.errors import UserError
from backlight.numerics import weight_space
from backlight.numerics.lanczos import lanczos
from backlight.numerics.weight_space import Principal, Weights
from backlight.results.provenance import sha256

Array = NDArray[np.float64]
#: An earlier state of a model in training: a model or a state dict.
Snapshot = nn.Module | Mapping[str, Tensor]

#: Directions with at most this many entries are stored; longer ones can be drawn again from the seed.
STORED_ENTRIES = 100_000
#: Images whose graph a product with the Hessian holds at once.
MICRO_BATCH = 32


@dataclass(frozen=True)
class Plane:
    """Directions from the trained weights, facts about them for the provenance, and arrays to store with the result."""

    directions: list[dict[str, Tensor]]
    provenance: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @classmethod
    def of(cls, model: nn.Module, directions: Sequence[Weights], facts: Mapping[str, Any], path: Array | None = None) -> Plane:
        """The plane of these directions.  Shapes: path (T, directions).  Errors: UserError if a direction is zero."""
        weights = trainable_weights(model)
        products = weight_space.gram([weights, *directions])
        if not (np.diag(products)[1:] > 0).all():
            raise UserError(f"{type(model).__name__} has nothing but biases and norms to move; say normalise='none'")
        fixed = [name for name in weights if not any(d[name].any() for d in directions)]
        lengths = np.sqrt(np.diag(products))
        size = sum(w.numel() for w in weights.values())
        arrays = {"products": products} | ({} if path is None else {"path": path})
        if size <= STORED_ENTRIES:
            arrays["directions"] = np.stack([torch.cat([t.flatten() for t in d.values()]).cpu().numpy() for d in directions])
        measured = {
            "sha256": sha256(*directions),
            "lengths": lengths[1:].tolist(),
            "length_of_weights": float(lengths[0]),
            "cosine": float(products[1, 2] / (lengths[1] * lengths[2])) if len(directions) == 2 else None,
            "parameters_moved": size - sum(weights[name].numel() for name in fixed),
            "left_alone": fixed,
        }
        return cls([dict(d) for d in directions], {**facts, **measured}, arrays)


def random_plane(
    model: nn.Module, count: int, seed: int, normalise: str, ignore: Sequence[str], *, paper: bool = False
) -> Plane:
    """Gaussian directions; the same seed gives the same directions on every device."""
    weights = trainable_weights(model)
    directions = weight_space.gaussians(weights, count, seed)
    if paper:
        directions = [weight_space.authors_normalised(d, weights, ignore) for d in directions]
    else:
        directions = _normalised(directions, weights, normalise, ignore)
    return Plane.of(model, directions, {"seed": seed})


def eigenvector_plane(
    model: nn.Module, batches: Sequence[Batch], objective: Objective, count: int, seed: int, normalise: str
) -> Plane:
    """The eigenvectors of the Hessian with the largest eigenvalues, of length 1.

    Errors: UserError if the model has fewer trainable parameters than directions.
    """
    micro_batch = MICRO_BATCH if objective.statistics == "running" else None
    hessian = Hessian(model, objective, batches, micro_batch=micro_batch)
    pairs = lanczos(hessian, k=count, which="largest", seed=seed)
    if len(pairs.values) < count:
        raise UserError(f"the model has {hessian.size} trainable parameter, too few for a plane; take dimensions=1")
    weights = trainable_weights(model)
    vectors = [weight_space.by_name(vector, weights) for vector in pairs.vectors.unbind(1)]
    facts = {
        "eigenvalues": pairs.values.tolist(),
        "residuals": pairs.residuals.tolist(),
        "converged": pairs.converged.tolist(),
        "matvecs": pairs.matvecs,
    }
    return Plane.of(model, _normalised(vectors, weights, normalise), facts)


def path_plane(model: nn.Module, snapshots: Sequence[Snapshot], count: int, normalise: str) -> Plane:
    """The principal axes of a path of training, from its end, scaled so that coordinate 1 reaches the farthest snapshot."""
    path = training_path(model, snapshots)
    principal = principal_axes(path, count)
    axes = [weight_space.combination(c, path) for c in principal.coefficients]
    axes = _normalised(axes, trainable_weights(model), normalise)
    steps = [weight_space.combination((1, -1), (point, path[-1])) for point in path]
    coordinates = weight_space.coordinates(weight_space.gram([*axes, *steps]), count)
    scale = float(np.abs(coordinates).max()) if normalise == "none" else 1.0
    scaled = [{name: t * scale for name, t in axis.items()} for axis in axes]
    facts = {"explained": principal.explained.tolist(), "snapshots": len(path) - 1}
    return Plane.of(model, scaled, facts, coordinates / scale)


def _normalised(
    directions: Sequence[dict[str, Tensor]], weights: Weights, normalise: str, ignore: Sequence[str] = ()
) -> list[dict[str, Tensor]]:
    if normalise == "none":
        return list(directions)
    return [weight_space.filter_normalised(d, weights, ignore) for d in directions]


# --- a path of training


def training_path(model: nn.Module, snapshots: Sequence[Snapshot]) -> list[dict[str, Tensor]]:
    """The trainable weights of each snapshot, then of the model, unless the last snapshot has the same weights.

    Errors: UserError for a snapshot that lacks a parameter, or has it in another shape, or not finite.
    """
    weights = trainable_weights(model)
    states = [dict(s.state_dict() if isinstance(s, nn.Module) else s) for s in snapshots]
    path = [{name: _parameter(state, i, name, w) for name, w in weights.items()} for i, state in enumerate(states)]
    ends_at_model = path and all(torch.equal(path[-1][name], w) for name, w in weights.items())
    return path if ends_at_model else [*path, weights]


def _parameter(state: Mapping[str, Tensor], i: int, name: str, weight: Tensor) -> Tensor:
    """One parameter of snapshot ``i``, with the type and device of ``weight``."""
    parameter = state.get(name, state.get(f"_orig_mod.{name}"))  # the name in a compiled model
    if parameter is None:
        raise UserError(f"snapshot {i} has no {name}; give snapshots of this model")
    if parameter.shape != weight.shape:
        shapes = f"{tuple(parameter.shape)} in snapshot {i} and {tuple(weight.shape)} in the model"
        raise UserError(f"{name} is of shape {shapes}; give snapshots of this model")
    if not torch.isfinite(parameter).all():
        raise UserError(f"{name} of snapshot {i} holds values that are not finite")
    return parameter.detach().to(weight)


def principal_axes(path: Sequence[Weights], count: int) -> Principal:
    """The principal axes of a path.  Errors: UserError if the path has fewer dimensions than ``count``."""
    needed = "two snapshots before the model" if count == 2 else "a snapshot before the model"
    principal = weight_space.principal(weight_space.gram(path, path[-1]), count)
    if not (principal.explained > 0).all():
        where = "in a point" if not principal.explained[0] else "on a line"
        raise UserError(f"the snapshots lie {where}; give at least {needed}, all different")
    return principal
