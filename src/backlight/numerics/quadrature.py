"""The spectral density and the trace of a symmetric operator that is known only by its products with vectors.

Density: stochastic Lanczos quadrature, Ubaru, Chen & Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature"
(SIAM Journal on Matrix Analysis 2017).  Trace: Hutchinson (1990).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from backlight.errors import UserError
from backlight.numerics.bootstrap import Interval, mean_interval
from backlight.numerics.lanczos import MEMORY, Array, Basis, Operator, dot, signs


@dataclass(frozen=True)
class Density:
    """The density of eigenvalues, smoothed by a normal curve."""

    grid: Array  # (points,) eigenvalues
    density: Interval  # (points,) each; integrates to 1
    width: float  # standard deviation of the normal curve
    nodes: Array  # (probes, steps) Ritz values; NaN where fewer steps were enough
    weights: Array  # (probes, steps) share of the eigenvalues near each node
    matvecs: int  # products used


def density(
    operator: Operator,
    *,
    probes: int = 4,
    steps: int = 30,
    seed: int = 0,
    points: int = 1000,
    width: float | None = None,
    memory: int = MEMORY,
) -> Density:
    """The spectral density by stochastic Lanczos quadrature, with a 95% interval over probes (NaN for one probe).

    Each probe is a random vector of signs.  Its Ritz values, weighted by the squared first coordinates of the Ritz vectors,
    are a quadrature of the density, exact for polynomials of degree up to 2 ``steps`` - 1.  ``width``: 1% of the range of the
    Ritz values by default.  Costs ``probes`` x ``steps`` products.
    Errors: UserError if a basis of ``steps`` vectors does not fit into ``memory`` bytes.
    """
    steps = min(steps, operator.size)
    if probes < 1 or steps < 1 or points < 2:
        raise UserError(f"a density needs at least 1 probe, 1 step and 2 points, got {probes}, {steps} and {points}")
    if steps > (most := memory // (operator.size * operator.dtype.itemsize)):
        raise UserError(f"{steps} steps need a basis of {steps} vectors, and {most} fit into the memory; lower steps")
    nodes, weights = np.full((2, probes, steps), np.nan)
    matvecs = 0
    for i, probe in enumerate(signs(operator, probes, seed)):
        basis = Basis(operator, steps, seed)
        basis.add(probe)
        while basis.done < min(basis.held, steps):
            basis.take(operator.matvec(basis.vectors[basis.done]))
        values, coordinates, _ = basis.ritz()
        nodes[i, : len(values)], weights[i, : len(values)] = values, coordinates[0] ** 2
        matvecs += basis.matvecs
    low, high = np.nanmin(nodes), np.nanmax(nodes)
    width = width or 0.01 * (high - low) or 0.01 * abs(high) or 0.01
    grid = np.linspace(low - 5 * width, high + 5 * width, points)
    per_probe = np.stack(
        [smoothed(grid, v[known], w[known], width) for v, w in zip(nodes, weights, strict=True) for known in [~np.isnan(v)]]
    )
    return Density(grid, mean_interval(per_probe, seed=seed), float(width), nodes, weights, matvecs)


def trace(operator: Operator, *, probes: int = 16, seed: int = 0) -> Interval:
    """The trace with a 95% interval over probes; exact for a diagonal operator.  Costs ``probes`` products."""
    if probes < 1:
        raise UserError(f"a trace needs at least 1 probe, got {probes}")
    samples = [dot(operator.matvec(z), z) for z in signs(operator, probes, seed)]
    return mean_interval(np.array(samples), seed=seed)


def smoothed(grid: Array, values: Array, weights: Array, width: float) -> Array:
    """The weighted sum of normal curves around values.  Shapes: (points,), (n,), (n,) -> (points,)."""
    distance = (grid[:, None] - values) / width
    return np.exp(-(distance**2) / 2) @ weights / (width * math.sqrt(2 * math.pi))
