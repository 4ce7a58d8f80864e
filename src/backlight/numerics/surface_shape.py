"""The shape of a surface over a grid around its centre: where it rises, where it falls, and how strongly it curves.

Numbers for what figure 1a of Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), shows.  The surface is read along
rays: straight lines from the centre point through points of the grid, so nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Ray(NamedTuple):
    """A straight line of grid points from the centre outwards.  Shapes: (m,) each."""

    at: NDArray[np.int64]  # indices into the flattened grid
    distance: Array  # from the centre, in grid steps


def rays(rows: int, columns: int) -> list[Ray]:
    """The rays along rows, columns, diagonals and knight's moves: 16 in a plane, 2 on a line."""
    centre = np.array([rows // 2, columns // 2])
    lines = []
    for step in [(a, b) for a in range(-2, 3) for b in range(-2, 3) if np.gcd(a, b) == 1]:
        move = np.array(step)
        steps = min(c // abs(m) for c, m in zip(centre, move, strict=True) if m)
        if steps:
            at = centre + np.arange(steps + 1)[:, None] * move
            lines.append(Ray(at @ np.array([columns, 1]), np.arange(steps + 1) * float(np.hypot(*step))))
    return lines


def outward_steps(surface: Array, along: Iterable[Ray]) -> Array:
    """The rise of the surface over each step outwards.  Shapes: (..., points) -> (..., steps of all rays)."""
    with np.errstate(invalid="ignore"):
        return np.concatenate([np.diff(surface[..., ray.at], axis=-1) for ray in along], axis=-1)


def never_falling(surface: Array, along: Sequence[Ray]) -> Array:
    """The share of rays along which the surface never falls, among the rays without NaN; NaN if there are none.

    Shapes: (..., points) -> (...).
    """
    with np.errstate(invalid="ignore"):
        steps = [np.diff(surface[..., ray.at], axis=-1) for ray in along]
    unknown = np.stack([np.isnan(surface[..., ray.at]).any(-1) for ray in along])
    rises = np.stack([~(step < 0).any(-1) for step in steps])
    with np.errstate(invalid="ignore", divide="ignore"):
        return (rises & ~unknown).sum(0) / (~unknown).sum(0)


def rise_radii(surface: Array, along: Iterable[Ray], rise: float) -> Array:
    """The distance at which the surface is first ``rise`` above the centre, linear between points; infinite if it never is.

    Unit: grid steps.  Shapes: (..., points) -> (..., rays).
    """
    return np.stack([_first_crossing(surface[..., ray.at], ray.distance, rise) for ray in along], axis=-1)


def _first_crossing(heights: Array, distance: Array, rise: float) -> Array:
    """The first distance at which the heights exceed the first height by ``rise``.  Shapes: (..., m), (m,) -> (...)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        above = heights - heights[..., :1]
        reached = above >= rise
        k = np.maximum(reached.argmax(-1), 1)
        before, after = (np.take_along_axis(above, i[..., None], -1)[..., 0] for i in (k - 1, k))
        share = np.where(np.isinf(after), 0.0, np.where(np.isnan(before), 1.0, (rise - before) / (after - before)))
    crossing = distance[k - 1] + share * (distance[k] - distance[k - 1])
    return np.where(reached.any(-1), crossing, np.where(np.isnan(heights[..., 0]), np.nan, np.inf))


def second_differences(behind: Array, centre: Array, ahead: Array, step: float) -> Array:
    """Curvature from the values a step behind, at and ahead of a point.  Error: step^2 / 12 times the fourth derivative."""
    return (behind - 2 * centre + ahead) / step**2
