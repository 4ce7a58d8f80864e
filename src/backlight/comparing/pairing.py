"""The same numbers of two models: unit by unit where their words agree, over normalised depth where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from backlight.comparing.series import Number, Series

Array = NDArray[np.float64]

#: Parts of the depth, of equal length: each holds at least two units of a model of ten.
PARTS = 5


def aligned(first: Series, second: Series) -> tuple[Series, Series] | None:
    """Both series with the same numbers in the same order; None if they have none in common.

    Units of one word are the same numbers, each at its depth.  Those of two words become means over parts of the depth.
    """
    if first.by_unit and second.by_unit:
        if first.numbers != second.numbers:
            return None if first.some_units else (over_depth(first), over_depth(second))
        placed = at_depths(first.numbers)
        return replace(first, numbers=placed), replace(second, numbers=placed)
    common = [number for number in first.numbers if number in second.numbers]
    return (first.only(common), second.only(common)) if common else None


def at_depths(numbers: Sequence[Number]) -> tuple[Number, ...]:
    """The units, each at its depth."""
    return tuple(number._replace(depth=float(depth)) for number, depth in zip(numbers, depths(numbers), strict=True))


def depths(numbers: Sequence[Number]) -> Array:
    """The normalised depth of each unit: 0 for the first (the stem where there is one), 1 for the last.  Shapes: -> (K,)."""
    units = np.array([number.unit for number in numbers], np.float64)
    return (units - units[0]) / max(units[-1] - units[0], 1)


def over_depth(series: Series) -> Series:
    """The mean over each part of the depth of the line through the units.

    The mean is a weighted sum, so the samples of an image become those of the parts.  Of an interval without samples the ends
    are averaged alike, as if the units rose and fell together, which makes it too wide rather than too short.
    """
    edges = np.linspace(0, 1, PARTS + 1)
    weights = part_weights(depths(series.numbers), edges)
    numbers = tuple(
        Number(series.numbers[0].quantity, f"depth {low:.1f} to {high:.1f}", depth=float(low + high) / 2)
        for low, high in pairwise(edges)
    )
    samples = None if series.samples is None else series.samples @ weights.T
    return replace(series, numbers=numbers, ends=series.ends @ weights.T, samples=samples)


def part_weights(places: Array, edges: Array) -> Array:
    """How much each place counts in the mean, between two edges, of the line through the values at the places.

    Outside of the places the line is level.  Exact: the line is integrated between all places and edges by the trapezoidal
    rule.  Shapes: (K,) ascending, (P + 1,) -> (P, K), rows of sum 1.

    >>> part_weights(np.array([0.0, 1.0]), np.array([0.0, 0.5, 1.0]))
    array([[0.75, 0.25],
           [0.25, 0.75]])
    """
    knots = np.union1d(places, edges)
    lines = np.stack([np.interp(knots, places, unit) for unit in np.eye(len(places))], 1)  # (knots, K)
    areas = np.diff(knots)[:, None] * (lines[1:] + lines[:-1]) / 2
    middles = (knots[1:] + knots[:-1]) / 2
    inside = (middles > edges[:-1, None]) & (middles < edges[1:, None])
    return inside @ areas / np.diff(edges)[:, None]
