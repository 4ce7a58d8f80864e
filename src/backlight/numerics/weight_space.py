"""Directions, planes and paths in the space of a model's parameters, as pure functions of tensors by name.

Random directions with filter normalisation and the projection of a path onto its principal plane: Li, Xu, Taylor, Studer &
Goldstein, "Visualizing the Loss Landscape of Neural Nets" (NeurIPS 2018), sections 4 and 7.  Inner products are summed in
float64, because a float32 sum over ten million entries is wrong in the third digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
#: A point or a direction: name of a parameter -> tensor.  Mappings in one call have the same names in the same order.
Weights = Mapping[str, Tensor]

#: Entries converted to float64 at once.
CHUNK = 131_072
#: The authors' guard against a division by zero.
GUARD = 1e-7


# --- directions


def gaussians(weights: Weights, count: int, seed: int) -> list[dict[str, Tensor]]:
    """``count`` standard normal directions; the same on every device and for every dtype of the weights."""
    generator = torch.Generator().manual_seed(seed)
    return [{name: torch.randn(w.shape, generator=generator).to(w) for name, w in weights.items()} for _ in range(count)]


def filter_normalised(direction: Weights, weights: Weights, ignore: Iterable[str] = ()) -> dict[str, Tensor]:
    """The direction, each filter scaled to the length of the weights' filter (Li et al., section 4).

    A filter is a slice along the first axis: the weights of one output.  Tensors of one axis (biases, norms), tensors whose
    name contains a word of ``ignore``, and filters whose weights or whose direction are zero, become zero.
    """

    def normalised(name: str, d: Tensor, w: Tensor) -> Tensor:
        if _fixed(name, w, ignore):
            return torch.zeros_like(w)
        length, target = (t.double().flatten(1).norm(dim=1) for t in (d, w))
        scale = torch.where(length > 0, target / length, 0)
        return (d.double() * scale.view(-1, *[1] * (w.ndim - 1))).to(w)

    return {name: normalised(name, direction[name], w) for name, w in weights.items()}


def authors_normalised(direction: Weights, weights: Weights, ignore: Iterable[str] = ()) -> dict[str, Tensor]:
    """The direction as the code of Park & Kim (2022) normalises it: norms *over* the first axis, across filters.

    A filter much larger than the others does not get a larger direction, unlike the filter normalisation of Li et al.
    Fixed tensors become zero, as in `filter_normalised`.
    """

    def normalised(name: str, d: Tensor, w: Tensor) -> Tensor:
        if _fixed(name, w, ignore):
            return torch.zeros_like(w)
        return d * w.norm(dim=0, keepdim=True) / (d.norm(dim=0, keepdim=True) + GUARD)

    return {name: normalised(name, direction[name], w) for name, w in weights.items()}


def _fixed(name: str, weight: Tensor, ignore: Iterable[str]) -> bool:
    """Whether random directions are zero in this tensor."""
    return weight.ndim < 2 or any(word in name for word in ignore)


def by_name(vector: Tensor, weights: Weights) -> dict[str, Tensor]:
    """A flat vector as tensors in the shapes of the weights.  Shapes: (P,) -> as ``weights``."""
    parts = vector.split([w.numel() for w in weights.values()])
    return {name: part.view(w.shape).to(w) for part, (name, w) in zip(parts, weights.items(), strict=True)}


def combination(coefficients: Iterable[float], vectors: Sequence[Weights]) -> dict[str, Tensor]:
    """The sum of vectors times coefficients, computed in float64."""
    factors = [float(c) for c in coefficients]

    def summed(name: str, like: Tensor) -> Tensor:
        total = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
        for factor, vector in zip(factors, vectors, strict=True):
            total.add_(vector[name].detach().double(), alpha=factor)
        return total.to(like)

    return {name: summed(name, w) for name, w in vectors[0].items()}


# --- inner products, and what can be computed from them alone


def grams(vectors: Sequence[Weights], origin: Weights | None = None) -> dict[str, Array]:
    """Inner products of the vectors, minus ``origin`` if given, for each tensor.  Shapes: T vectors -> (T, T) each."""
    return {name: _gram([v[name] for v in vectors], None if origin is None else origin[name]) for name in vectors[0]}


def gram(vectors: Sequence[Weights], origin: Weights | None = None) -> Array:
    """Inner products of the vectors, minus ``origin`` if given, over all tensors.  Shapes: T vectors -> (T, T)."""
    size = len(vectors)
    return sum(grams(vectors, origin).values(), np.zeros((size, size)))


def _gram(tensors: Sequence[Tensor], origin: Tensor | None) -> Array:
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat[0].device)
    for start in range(0, flat[0].numel(), CHUNK):
        chunk = torch.stack([tensor[start : start + CHUNK].double() for tensor in flat])
        if origin is not None:
            chunk -= origin.detach().reshape(-1)[start : start + CHUNK].double()
        total += chunk @ chunk.T
    return total.cpu().numpy()


def squared_norm(products: Array, x: Array | float, y: Array | float = 0.0) -> Array:
    """||w + x d + y e||^2 from the inner products of w, d and e, or of w and d, without the weights.

    Shapes: products (..., 3, 3) or (..., 2, 2); x and y of one shape S -> (..., *S).
    """
    g = np.asarray(products, np.float64)
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    point = np.stack([np.ones_like(x), x, y][: g.shape[-1]]).reshape(g.shape[-1], -1)
    return np.einsum("...ij,ik,jk->...k", g, point, point).reshape(*g.shape[:-2], *x.shape)


class Principal(NamedTuple):
    """The K principal axes of a path of T points.  Axis k is the sum of the points times ``coefficients[k]``."""

    coefficients: Array  # (K, T); each row sums to 0
    coordinates: Array  # (T, K) of the points; the last point is the origin
    explained: Array  # (K,) share of the path's variance along each axis


def principal(products: Array, axes: int = 2) -> Principal:
    """Principal axes of a path from the inner products of its points minus the last point.  Shapes: (T, T) -> `Principal`.

    The axes have length 1 and point towards the start of the path.  Variance is around the mean of the path.  An axis without
    variance has explained 0 and coefficients 0.
    """
    size = len(products)
    centring = np.eye(size) - 1 / size
    values, vectors = np.linalg.eigh(centring @ products @ centring)
    values, vectors = np.maximum(values[::-1], 0), centring @ vectors[:, ::-1]
    values = np.pad(values, (0, max(0, axes - size)))[: max(axes, size)]
    nonzero = values[:axes] > 1e-12 * max(values[0], np.finfo(float).tiny)
    coefficients = np.zeros((axes, size))
    for k in np.flatnonzero(nonzero):
        coefficients[k] = vectors[:, k] / np.sqrt(values[k])
    coordinates = products @ coefficients.T
    first = np.array([next((c for c in column if abs(c) > 1e-9 * np.abs(column).max()), 1.0) for column in coordinates.T])
    signs = np.where(first < 0, -1.0, 1.0)
    share = values[:axes] * nonzero / values.sum() if values.sum() > 0 else np.zeros(axes)
    return Principal(coefficients * signs[:, None], coordinates * signs + 0.0, share)  # + 0.0: the end is at 0, not at -0


def coordinates(products: Array, axes: int) -> Array:
    """Coordinates of points projected onto a plane, along axes that need not be orthogonal or of length 1.

    ``products``: inner products of the axes and then of the points minus the plane's origin.
    Shapes: (A + T, A + T) -> (T, A).
    """
    return np.asarray(np.linalg.lstsq(products[:axes, :axes], products[:axes, axes:], rcond=None)[0].T, np.float64)


def polar(products: Array) -> tuple[Array, Array]:
    """A path in polar coordinates around its end: radius, and angle in radians (Park & Kim 2022, first arXiv version).

    The radius is |w_t - w_end| / |w_0 - w_end|; the angle is between w_t - w_end and w_0 - w_end, NaN at the end.
    ``products``: inner products of the points minus the last point.  Shapes: (T, T) -> (T,), (T,).
    """
    squares, along = np.diag(products), products[0]
    across = np.sqrt(np.maximum(squares * squares[0] - along**2, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(squares / squares[0]), np.where(squares > 0, np.arctan2(across, along), np.nan)
