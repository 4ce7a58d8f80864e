"""Which way to look from the trained weights: at random, along eigenvectors of the Hessian, or along a path of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UserError
from ..evidence import sha256
from ..numerics import plane
from ..numerics.plane import Weights
from ..objective import Objective
from .moving import Images, trained

Array = NDArray[np.float64]
Snapshot = nn.Module | Mapping[str, Tensor]

#: Parameters that random directions leave alone besides biases and norms: the words of the authors' ``losslandscape.ipynb``.
IGNORED = ("pos_embed", "relative_position")
#: Directions of no more entries than this are stored; longer ones can be made again from the seed.
STORED = 100_000
#: Images whose graph a product with the Hessian holds at once.
AT_ONCE = 32


@dataclass(frozen=True)
class Plane:
    """Directions from the trained weights, what is known of them, and what goes with a result."""

    directions: list[dict[str, Tensor]]
    evidence: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @classmethod
    def of(cls, model: nn.Module, directions: Sequence[Weights], told: Mapping[str, Any], path: Array | None = None) -> Plane:
        """Errors: UserError if a direction is zero."""
        weights = trained(model)
        products = plane.gram([weights, *directions])
        if not (np.diag(products)[1:] > 0).all():
            raise UserError(f"{type(model).__name__} has nothing but biases and norms to move: say normalise='none'")
        still = [name for name in weights if not any(d[name].any() for d in directions)]
        lengths = np.sqrt(np.diag(products))
        size = sum(w.numel() for w in weights.values())
        arrays = {"products": products} | ({} if path is None else {"path": path})
        if size <= STORED:
            arrays["directions"] = np.stack([torch.cat([t.flatten() for t in d.values()]).cpu().numpy() for d in directions])
        facts = {
            **told,
            "sha256": sha256(*directions),
            "lengths": lengths[1:].tolist(),
            "length_of_weights": float(lengths[0]),
            "cosine": float(products[1, 2] / (lengths[1] * lengths[2])) if len(directions) == 2 else None,
            "parameters_moved": size - sum(weights[name].numel() for name in still),
            "left_alone": still,
        }
        return cls([dict(d) for d in directions], facts, arrays)


def random_plane(
    model: nn.Module, count: int, seed: int, normalise: str, ignore: Sequence[str] = IGNORED, *, paper: bool = False
) -> Plane:
    """Gaussian directions: the same seed gives the same ones, whatever the device."""
    weights = trained(model)
    found = plane.gaussians(weights, count, seed)
    if paper:
        found = [plane.authors_normalised(d, weights, ignore) for d in found]
    return Plane.of(model, found if paper else _normalised(found, weights, normalise, ignore), {"seed": seed})


def eigenplane(model: nn.Module, images: Images, objective: Objective, count: int, seed: int, normalise: str) -> Plane:
    """The Hessian's eigenvectors of largest eigenvalue, of length 1.  Errors: UserError if they were not found."""
    from ..curvature import Hessian, lanczos

    parts = AT_ONCE if objective.statistics == "running" else None
    hessian = Hessian(model, objective, images.batches, micro_batch=parts)
    found = lanczos(hessian, k=count, which="largest", seed=seed)
    if len(found.values) < count:
        raise UserError(f"the model has {hessian.size} trained parameter, so there is no plane: take dimensions=1")
    weights = trained(model)
    vectors = [plane.by_name(vector, weights) for vector in found.vectors.unbind(1)]
    told = {
        "eigenvalues": found.values.tolist(),
        "residuals": found.residuals.tolist(),
        "converged": found.converged.tolist(),
        "matvecs": found.matvecs,
    }
    return Plane.of(model, _normalised(vectors, weights, normalise), told)


def path_plane(model: nn.Module, snapshots: Sequence[Snapshot], count: int, normalise: str) -> Plane:
    """The principal axes of a path of training, through its end, scaled so that coordinate 1 reaches the farthest snapshot."""
    path = path_of(model, snapshots)
    found = principal_axes(path, count)
    axes = _normalised([plane.combination(c, path) for c in found.coefficients], trained(model), normalise)
    away = [plane.combination((1, -1), (point, path[-1])) for point in path]
    places = plane.coordinates(plane.gram([*axes, *away]), count)
    scale = float(np.abs(places).max()) if normalise == "none" else 1.0
    scaled = [{name: t * scale for name, t in axis.items()} for axis in axes]
    told = {"explained": found.explained.tolist(), "snapshots": len(path) - 1}
    return Plane.of(model, scaled, told, places / scale)


def _normalised(
    directions: Sequence[dict[str, Tensor]], weights: Weights, normalise: str, ignore: Sequence[str] = ()
) -> list[dict[str, Tensor]]:
    return [plane.filter_normalised(d, weights, ignore) if normalise == "filter" else d for d in directions]


# --- a path of training


def path_of(model: nn.Module, snapshots: Sequence[Snapshot]) -> list[dict[str, Tensor]]:
    """The trained weights of each snapshot, and at last of the model, unless the last snapshot holds the same.

    Errors: UserError for a snapshot that lacks a parameter, has it in another shape, or not finite.
    """
    weights = trained(model)
    states = [dict(s.state_dict() if isinstance(s, nn.Module) else s) for s in snapshots]
    path = [{name: _found(state, i, name, w) for name, w in weights.items()} for i, state in enumerate(states)]
    ends_here = path and all(torch.equal(path[-1][name], w) for name, w in weights.items())
    return path if ends_here else [*path, weights]


def _found(state: Mapping[str, Tensor], i: int, name: str, weight: Tensor) -> Tensor:
    """One parameter of a snapshot."""
    found = state.get(name, state.get(f"_orig_mod.{name}"))  # as a compiled model calls it
    if found is None:
        raise UserError(f"snapshot {i} has no {name}: give snapshots of the model itself")
    if found.shape != weight.shape:
        shapes = f"{tuple(found.shape)} in snapshot {i} and {tuple(weight.shape)} in the model"
        raise UserError(f"{name} is of shape {shapes}: give snapshots of the model itself")
    if not torch.isfinite(found).all():
        raise UserError(f"{name} of snapshot {i} holds values that are not finite")
    return found.detach().to(weight)


def principal_axes(path: Sequence[Weights], count: int) -> plane.Principal:
    """The principal axes of a path.  Errors: UserError if it does not go along so many."""
    needed = "two snapshots before the model" if count == 2 else "a snapshot before the model"
    found = plane.principal(plane.gram(path, path[-1]), count)
    if not (found.explained > 0).all():
        where = "in a point" if not found.explained[0] else "on a line"
        raise UserError(f"the snapshots lie {where}: this needs at least {needed}, all different")
    return found
