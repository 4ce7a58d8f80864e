"""Confidence intervals from the images at hand: the bootstrap over images (Efron 1979).

Images are drawn with replacement, as often as there are; a resample is a vector of how often each image was drawn.  The
same seed gives the same resamples, so that differences between units, or between a model and its lesion, are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

#: Resamples counted at once: bounds the memory at this many times the images.
CHUNK = 32


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval, each of the statistic's shape."""

    value: Array
    low: Array
    high: Array


def mean_interval(samples: Array, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean over images with its percentile interval.  Shapes: (n, ...) -> (...).

    One image has no spread: its interval is NaN.
    """
    flat = np.asarray(samples, np.float64).reshape(len(samples), -1)
    shape = np.shape(samples)[1:]
    value = flat.mean(0)
    if len(flat) < 2:
        nothing = np.full(shape, np.nan)
        return Interval(value.reshape(shape), nothing, nothing)
    centred = flat - value  # a constant far from zero must not cost digits
    deviations = np.concatenate([w @ centred for w in counts(len(flat), resamples, seed)]) / len(flat)
    tail = (1 - level) / 2
    low, high = np.quantile(deviations, [tail, 1 - tail], axis=0)
    return Interval(value.reshape(shape), (value + low).reshape(shape), (value + high).reshape(shape))


def statistic_interval(
    statistic: Callable[[Array], Array],
    images: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    within: tuple[ArrayLike, ArrayLike] = (-np.inf, np.inf),
) -> Interval:
    """Any statistic of weighted images with its basic (pivotal) interval.

    ``statistic`` takes how often each image counts, (n,), and returns an array or a number.  The basic interval reflects
    the resamples about the estimate, because resampling inflates some statistics, as it does ECE (Davison & Hinkley
    1997, section 5.2).  A reflection may leave the range of the statistic, or fall on one side of the estimate where
    resampling can only inflate it; so the ends are kept ``within`` (least, most) and around the estimate.
    NaN resamples (an empty class) are left out.
    """
    value = np.asarray(statistic(np.ones(images)), np.float64)
    low, high = np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    if images < 2:
        return Interval(value, low, high)
    drawn = np.stack([statistic(w) for chunk in counts(images, resamples, seed) for w in chunk])
    tail = (1 - level) / 2
    known = ~np.isnan(drawn).all(0)
    high[known], low[known] = 2 * value[known] - np.nanquantile(drawn[:, known], [tail, 1 - tail], axis=0)
    least, most = within
    return Interval(value, np.minimum(value, np.maximum(low, least)), np.maximum(value, np.minimum(high, most)))


def counts(images: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each resample draws each image, a few resamples at a time.  Shapes: -> (<= CHUNK, n)."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = generator.integers(0, images, (rows, images)) + np.arange(rows)[:, None] * images
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)
