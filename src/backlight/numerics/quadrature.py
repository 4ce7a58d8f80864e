"""The spectral density and the trace of a symmetric operator that is known only by its products with vectors.

Density: stochastic Lanczos quadrature, Ubaru, Chen & Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature"
(SIAM Journal on Matrix Analysis 2017).  Trace: Hutchinson (1990).  Both estimate only what known Ritz pairs leave over, as
Hutch++ does with a random sketch (Meyer, Musco, Musco & Woodruff 2021): the few largest eigenvalues of a Hessian make most of
the variance, and a search for them has their vectors already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backlight.errors import UserError
from backlight.numerics.bootstrap import Interval, mean_interval
from backlight.numerics.lanczos import MEMORY, Array, Basis, Eigenpairs, Operator, dot, errors, signs


@dataclass(frozen=True)
class Density:
    """The density of eigenvalues, smoothed by a normal curve."""

    grid: Array  # (points,) eigenvalues
    density: Interval  # (points,) each; integrates to 1
    width: float  # standard deviation of the normal curve
    nodes: Array  # (probes, known + steps) known eigenvalues and Ritz values; NaN where fewer steps were enough
    weights: Array  # (probes, known + steps) share of the eigenvalues near each node
    matvecs: int  # products used, without those for the known pairs


def density(
    operator: Operator,
    *,
    known: Eigenpairs | None = None,
    probes: int = 4,
    steps: int = 30,
    seed: int = 0,
    points: int = 1000,
    width: float | None = None,
    memory: int = MEMORY,
) -> Density:
    """The spectral density by stochastic Lanczos quadrature, with a 95% interval over probes (NaN for one probe).

    Each probe is a random vector of signs.  Its Ritz values, weighted by the squared first coordinates of the Ritz vectors,
    are a quadrature of the density, exact for polynomials of degree up to 2 ``steps`` - 1.  ``known``: eigenpairs, from
    `lanczos` or `ritz_pairs`.  Those that have converged are counted exactly, 1/P each; the probes are then random directions
    orthogonal to them and estimate the rest.  ``width``: 1% of the range of the nodes by default.
    Costs ``probes`` x ``steps`` products.
    Errors: UserError if a basis of ``steps`` vectors does not fit into ``memory`` bytes.
    """
    outer = np.flatnonzero(known.converged) if known else np.arange(0)
    rest = Rest(operator, known.vectors[:, outer]) if known else operator
    size, count = operator.size, len(outer)
    steps = min(steps, size - count)
    if probes < 1 or steps < 1 or points < 2:
        raise UserError(
            f"a density needs at least 1 probe, 1 step, 2 points and 1 eigenvalue that is not known, got {probes}, {steps} and "
            f"{points}, and {count} of {size} are known"
        )
    if steps > (most := memory // (size * operator.dtype.itemsize)):
        raise UserError(f"{steps} steps need a basis of {steps} vectors, and {most} fit into the memory; lower steps")
    nodes, weights = np.full((2, probes, count + steps), np.nan)
    if known:
        nodes[:, :count], weights[:, :count] = known.values[outer], 1 / size
    matvecs = 0
    for i, probe in enumerate(_directions(rest, probes, seed) if isinstance(rest, Rest) else signs(operator, probes, seed)):
        basis = _grown(rest, probe, steps)
        ritz_values, coordinates, _ = basis.ritz()
        end = count + len(ritz_values)
        nodes[i, count:end], weights[i, count:end] = ritz_values, (1 - count / size) * coordinates[0] ** 2
        matvecs += basis.matvecs
    low, high = np.nanmin(nodes), np.nanmax(nodes)
    width = width or 0.01 * (high - low) or 0.01 * abs(high) or 0.01
    grid = np.linspace(low - 5 * width, high + 5 * width, points)
    per_probe = np.stack(
        [smoothed(grid, v[used], w[used], width) for v, w in zip(nodes, weights, strict=True) for used in [~np.isnan(v)]]
    )
    return Density(grid, mean_interval(per_probe, seed=seed), float(width), nodes, weights, matvecs)


def trace(operator: Operator, *, known: Eigenpairs | None = None, probes: int = 16, seed: int = 0) -> Interval:
    """The trace with a 95% interval over probes.  Costs ``probes`` products.

    ``known``: Ritz pairs, from `lanczos` or `ritz_pairs`, converged or not.  The trace on their span is the sum of their
    values, and the probes estimate that of the rest.  Without them it is exact for a diagonal operator.
    """
    if probes < 1:
        raise UserError(f"a trace needs at least 1 probe, got {probes}")
    rest = Rest(operator, known.vectors) if known else operator
    samples = [dot(rest.matvec(z), z) for z in signs(operator, probes, seed)]
    return mean_interval(np.array(samples) + (known.values.sum() if known else 0), seed=seed)


def ritz_pairs(operator: Operator, steps: int, *, tol: float = 1e-3, seed: int = 0) -> Eigenpairs:
    """All Ritz pairs of a basis of ``steps`` products from a random start, in ascending order.

    ``converged``: the error of the value is at most ``tol`` times the value.  Nothing is said about eigenvalues in between.
    """
    basis = _grown(operator, next(signs(operator, 1, seed)), min(steps, operator.size))
    values, coordinates, residuals = basis.ritz()
    converged = errors(values, residuals) <= tol * abs(values)
    return Eigenpairs(values, basis.combined(coordinates).T, residuals, basis.matvecs, converged)


class Rest:
    """An operator A without the span of orthonormal vectors U: (1 - UU') A (1 - UU').  Shapes: U (P, d)."""

    def __init__(self, operator: Operator, vectors: Tensor) -> None:
        self.operator, self.vectors = operator, vectors
        self.size, self.device, self.dtype = operator.size, operator.device, operator.dtype

    def matvec(self, v: Tensor) -> Tensor:
        """Shapes: (P,) -> (P,)."""
        return self.without(self.operator.matvec(self.without(v)))

    def without(self, v: Tensor) -> Tensor:
        """The part of a vector that is orthogonal to U.  Shapes: (P,) -> (P,)."""
        return v - self.vectors @ (self.vectors.T @ v)


def _directions(rest: Rest, count: int, seed: int) -> Iterator[Tensor]:
    """Random vectors of uniform direction, orthogonal to what is left out.  Shapes: -> (P,) each."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield rest.without(torch.randn(rest.size, generator=generator).to(rest.device, rest.dtype))


def _grown(operator: Operator, start: Tensor, steps: int) -> Basis:
    """A basis of ``steps`` products, or fewer if its span is invariant."""
    basis = Basis(operator, steps, seed=0)
    basis.add(start)
    while basis.done < min(basis.held, steps):
        basis.take(operator.matvec(basis.vectors[basis.done]))
    return basis


def smoothed(grid: Array, values: Array, weights: Array, width: float) -> Array:
    """The weighted sum of normal curves around values.  Shapes: (points,), (n,), (n,) -> (points,)."""
    distance = (grid[:, None] - values) / width
    return np.exp(-(distance**2) / 2) @ weights / (width * math.sqrt(2 * math.pi))
