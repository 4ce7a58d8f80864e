"""A surface over a grid whose centre is a point of it: where it rises and falls on the way out, and how strongly it curves.

Straight ways from the centre that meet grid points, so that nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Ray(NamedTuple):
    """A straight way outwards over points of the grid, from the centre.  Shapes: (m,) each."""

    at: NDArray[np.int64]  # into the flattened grid
    distance: Array  # in steps of the grid


def rays(rows: int, columns: int) -> list[Ray]:
    """The ways from the centre on which grid points lie close together: along rows, columns, diagonals and knight's moves.

    16 in a plane, 2 on a line.  They meet grid points, so nothing is interpolated.
    """
    centre = np.array([rows // 2, columns // 2])
    found = []
    for step in [(a, b) for a in range(-2, 3) for b in range(-2, 3) if np.gcd(a, b) == 1]:
        move = np.array(step)
        steps = min(c // abs(m) for c, m in zip(centre, move, strict=True) if m)
        if steps:
            at = centre + np.arange(steps + 1)[:, None] * move
            found.append(Ray(at @ np.array([columns, 1]), np.arange(steps + 1) * float(np.hypot(*step))))
    return found


def outward_steps(surface: Array, ways: Iterable[Ray]) -> Array:
    """How much the surface rises over each step outwards.  Shapes: (..., points) -> (..., steps of all ways)."""
    with np.errstate(invalid="ignore"):
        return np.concatenate([np.diff(surface[..., way.at], axis=-1) for way in ways], axis=-1)


def never_falling(surface: Array, ways: Sequence[Ray]) -> Array:
    """The share of ways along which the surface never falls, among those on which all of it is known.  Shapes: (..., points)
    -> (...); NaN if there are none."""
    with np.errstate(invalid="ignore"):
        steps = [np.diff(surface[..., way.at], axis=-1) for way in ways]
    unknown = np.stack([np.isnan(surface[..., way.at]).any(-1) for way in ways])
    rises = np.stack([~(step < 0).any(-1) for step in steps])
    with np.errstate(invalid="ignore", divide="ignore"):
        return (rises & ~unknown).sum(0) / (~unknown).sum(0)


def rise_radii(surface: Array, ways: Iterable[Ray], rise: float) -> Array:
    """How far out, in steps of the grid, the surface first lies ``rise`` above the centre, between points on a straight line.

    Infinite where it does not within the grid.  Shapes: (..., points) -> (..., ways).
    """
    return np.stack([_first_crossing(surface[..., way.at], way.distance, rise) for way in ways], axis=-1)


def _first_crossing(heights: Array, distance: Array, rise: float) -> Array:
    """Shapes: (..., m), (m,) -> (...)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        above = heights - heights[..., :1]
        reached = above >= rise
        k = np.maximum(reached.argmax(-1), 1)
        before, after = (np.take_along_axis(above, i[..., None], -1)[..., 0] for i in (k - 1, k))
        share = np.where(np.isinf(after), 0.0, np.where(np.isnan(before), 1.0, (rise - before) / (after - before)))
    found = distance[k - 1] + share * (distance[k] - distance[k - 1])
    return np.where(reached.any(-1), found, np.where(np.isnan(heights[..., 0]), np.nan, np.inf))


def second_differences(behind: Array, centre: Array, ahead: Array, step: float) -> Array:
    """Curvature from values a step behind, at and ahead of a point, wrong by step^2 / 12 times the fourth derivative."""
    return (behind - 2 * centre + ahead) / step**2
