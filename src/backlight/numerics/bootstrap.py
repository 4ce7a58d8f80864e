"""Confidence intervals by resampling images: the bootstrap.

Efron, "Bootstrap Methods: Another Look at the Jackknife" (Annals of Statistics 1979).  A resample draws n images out of n with
replacement and is stored as the number of times each image is drawn.  The same seed gives the same resamples, so differences
between units, or between a model and its lesion, are paired.  scipy.stats.bootstrap passes copies of the samples to the
statistic; with counts, all resamples of a mean are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

#: The least variance of a resample, as a share of that of the images, when its mean is studentised.  Without it, a resample of
#: equal images has an infinite score.
LEAST_VARIANCE = 0.01
#: Resamples drawn at once: memory is this many times the number of images.
CHUNK = 32


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval, each in the shape of the statistic."""

    value: Array
    low: Array
    high: Array


def mean_interval(samples: Array, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean over images with its percentile interval, which is NaN for one image.  Shapes: (n, ...) -> (...)."""
    flat = np.asarray(samples, np.float64).reshape(len(samples), -1)
    shape = np.shape(samples)[1:]
    value = flat.mean(0)
    if len(flat) < 2:
        unknown = np.full(shape, np.nan)
        return Interval(value.reshape(shape), unknown, unknown)
    centred = flat - value  # keeps the digits of samples that are close together and far from zero
    deviations = np.concatenate([w @ centred for w in counts(len(flat), resamples, seed)]) / len(flat)
    tail = (1 - level) / 2
    low, high = np.quantile(deviations, [tail, 1 - tail], axis=0)
    return Interval(value.reshape(shape), (value + low).reshape(shape), (value + high).reshape(shape))


def skewed_mean_interval(samples: Array, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean over images of a skewed number, such as NLL, with its bootstrap-t interval, which is NaN for one image.

    Each resample's deviation is divided by its own standard deviation, because a sample without images from the long tail has
    both a small mean and a small spread (Hall, "Theoretical Comparison of Bootstrap Confidence Intervals", Annals of Statistics
    1988).  Shapes: (n, ...) -> (...).
    """
    flat = np.asarray(samples, np.float64).reshape(len(samples), -1)
    shape = np.shape(samples)[1:]
    value = flat.mean(0)
    if len(flat) < 2:
        unknown = np.full(shape, np.nan)
        return Interval(value.reshape(shape), unknown, unknown)
    with np.errstate(invalid="ignore"):
        spread = (flat - value).std(0)
        standard = (flat - value) / np.where(spread == 0, 1, spread)
        scores = np.concatenate([_scores(w @ standard, w @ standard**2, len(flat)) for w in counts(len(flat), resamples, seed)])
        tail = (1 - level) / 2
        least, most = np.quantile(scores, [tail, 1 - tail], axis=0)
    return Interval(value.reshape(shape), (value - spread * most).reshape(shape), (value - spread * least).reshape(shape))


def _scores(sums: Array, squares: Array, images: int) -> Array:
    """Means of resamples of standardised numbers, divided by the resamples' standard deviations."""
    means = sums / images
    return means / np.sqrt(np.maximum(squares / images - means**2, LEAST_VARIANCE))


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
    the resamples about the estimate, because resampling inflates some statistics, such as ECE (Davison & Hinkley 1997,
    section 5.2).  The reflection can leave the range of the statistic, or lie on one side of the estimate if resampling can
    only inflate the statistic.  So the ends are clipped to ``within`` (smallest, largest), and extended to the estimate.
    Resamples that are NaN (an empty class) are omitted.  One image has a NaN interval.
    """
    value = np.asarray(statistic(np.ones(images)), np.float64)
    low, high = np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    if images < 2:
        return Interval(value, low, high)
    resampled = np.stack([statistic(w) for chunk in counts(images, resamples, seed) for w in chunk])
    tail = (1 - level) / 2
    known = ~np.isnan(resampled).all(0)
    high[known], low[known] = 2 * value[known] - np.nanquantile(resampled[:, known], [tail, 1 - tail], axis=0)
    least, most = within
    return Interval(value, np.minimum(value, np.maximum(low, least)), np.maximum(value, np.minimum(high, most)))


def basic_interval(value: Array, resampled: Array) -> tuple[Array, Array]:
    """The ends of the 95% basic interval: quantiles of the resamples, reflected about the estimate.

    Shapes: (...), (resamples, ...) -> (...), (...).
    """
    least, most = np.quantile(resampled, [0.025, 0.975], axis=0)
    return 2 * value - most, 2 * value - least


def counts(images: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each resample draws each image, in chunks of resamples.  Shapes: -> (at most CHUNK, n) each."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = generator.integers(0, images, (rows, images)) + np.arange(rows)[:, None] * images
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)
