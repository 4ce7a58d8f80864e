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


class Radii(NamedTuple):
    """The distance of each ray's first crossing, and the two grid points between which it lies.  Shapes: (..., rays) each."""

    value: Array
    low: Array
    high: Array


def rise_radii(surface: Array, along: Iterable[Ray], rise: float) -> Radii:
    """Where the surface is first ``rise`` above the centre; if it never is, at infinity, and at least at the end of the ray.

    Between the two grid points the surface is unknown: the value is that of a surface whose square root is linear there, as
    around a minimum; ``low`` and ``high`` are the two points, which hold the crossing of any surface that does not rise and
    fall again between points.  Unit: grid steps.  Shapes: (..., points) -> (..., rays).
    """
    crossings = [_first_crossing(surface[..., ray.at], ray.distance, rise) for ray in along]
    return Radii(*(np.stack(end, axis=-1) for end in zip(*crossings, strict=True)))


def _first_crossing(heights: Array, distance: Array, rise: float) -> tuple[Array, Array, Array]:
    """Where the heights first exceed the first height by ``rise``, between which points.  Shapes: (..., m), (m,) -> (...)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        above = heights - heights[..., :1]
        reached = above >= rise
        after = np.maximum(reached.argmax(-1), 1)
        below = np.where(np.arange(len(distance)) < after[..., None], ~np.isnan(above), False)
        before = below.shape[-1] - 1 - below[..., ::-1].argmax(-1)  # the last known point before
        root = np.sign(above) * np.sqrt(abs(above))
        start, end = (np.take_along_axis(root, at[..., None], -1)[..., 0] for at in (before, after))
        share = np.where(np.isinf(end), 0.0, (np.sqrt(rise) - start) / (end - start))
        reaches, last = reached.any(-1), distance[len(distance) - 1 - (~np.isnan(above))[..., ::-1].argmax(-1)]
    ends = np.where(reaches, distance[before], last), np.where(reaches, distance[after], np.inf)
    value = np.where(reaches, distance[before] + share * (distance[after] - distance[before]), np.inf)
    low, high, value = (np.where(np.isnan(heights[..., 0]), np.nan, d) for d in (*ends, value))
    return value, low, high


def second_differences(behind: Array, centre: Array, ahead: Array, step: float) -> Array:
    """Curvature from the values a step behind, at and ahead of a point.  Error: step^2 / 12 times the fourth derivative."""
    return (behind - 2 * centre + ahead) / step**2
