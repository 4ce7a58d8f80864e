"""Confidence intervals of proportions, and of differences of proportions over the same images.

The bootstrap has no spread where all images agree: 20 of 20 correct would be 100% to 100%.  Proportions have Jeffreys'
interval, with Clopper & Pearson's end at 0 and at n (Brown, Cai & DasGupta, "Interval Estimation for a Binomial Proportion",
Statistical Science 2001, section 4).  Paired differences have the score interval of Tango (Statistics in Medicine 1998).  Both
were chosen by their measured coverage: ``docs/statistics.md``.

Some numbers per image are shares, such as the mean over 15 corruptions.  They enter with the number of images of 0 or 1 that
would have their variance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtri

from backlight.numerics.bootstrap import Interval, skewed_mean_interval

Array = NDArray[np.float64]

#: Added to the observed and to the binomial sum of squares, so that their ratio is near 1 where almost all images agree.  It is
#: the variance of one image at a proportion of 1/2.
PRIOR = 0.25
#: Halvings of the bracket of an end: 2^-52 of the range.
HALVINGS = 52


def proportion_interval(successes: ArrayLike, n: ArrayLike, *, level: float = 0.95) -> Interval:
    """Jeffreys' interval of ``successes`` of ``n``, which need not be integers.  NaN where n is 0.

    Shapes: (...), (...) -> (...).

    >>> [round(float(x), 3) for x in proportion_interval(20, 20)]
    [1.0, 0.832, 1.0]
    """
    k, size = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(n, np.float64))
    tail = (1 - level) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        value = k / size
        low, high = (betaincinv(k + 0.5, size - k + 0.5, at) for at in (tail, 1 - tail))
        all_succeed = np.where(value >= 1, tail ** (1 / size), low)
        none_succeeds = np.where(value <= 0, 1 - tail ** (1 / size), high)
    unknown = ~(size > 0)
    low, high = np.where(value <= 0, 0.0, all_succeed), np.where(value >= 1, 1.0, none_succeeds)
    return Interval(value, np.where(unknown, np.nan, low), np.where(unknown, np.nan, high))


def share_interval(samples: ArrayLike, *, level: float = 0.95) -> Interval:
    """The mean over images of numbers from 0 to 1, with its interval; NaN for one image.  Shapes: (n, ...) -> (...)."""
    shares = np.asarray(samples, np.float64)
    interval = ratio_interval(shares, np.ones_like(shares), level=level)
    return Interval(shares.mean(0), interval.low, interval.high)


def ratio_interval(successes: ArrayLike, counts: ArrayLike, *, level: float = 0.95) -> Interval:
    """Successes over counts, both summed over images, such as the accuracy in a bin where an image occurs several times.

    NaN where no image counts; the ends are NaN for one image.  Shapes: (n, ...), (n, ...) -> (...).
    """
    right, count = np.asarray(successes, np.float64), np.asarray(counts, np.float64)
    images, total = (count > 0).sum(0), count.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = right.sum(0) / total
        observed = np.square(right - value * count).sum(0) * (images / total) ** 2
        effective = images * (images * value * (1 - value) + PRIOR) / (observed + PRIOR)
    interval = proportion_interval(value * effective, effective, level=level)
    ends = interval[1:] if len(right) > 1 else np.full((2, *value.shape), np.nan)
    return Interval(value, *ends)


def paired_difference_interval(first: ArrayLike, second: ArrayLike, *, level: float = 0.95) -> Interval:
    """The mean over images of ``first`` minus ``second``, both from 0 to 1, with Tango's interval; NaN for one image.

    Shapes: (n, ...), (n, ...) or broadcastable -> (...).
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    images, value = len(difference), difference.mean(0)
    if images < 2:
        unknown = np.full(value.shape, np.nan)
        return Interval(value, unknown, unknown)
    gained, lost = np.maximum(difference, 0).sum(0), np.maximum(-difference, 0).sum(0)
    trinomial = gained + lost - images * value**2
    observed = np.square(difference - value).sum(0)
    scale = (trinomial + PRIOR) / (observed + PRIOR)  # 1 if every difference is -1, 0 or 1
    low, high = tango_ends(scale * gained, scale * lost, scale * images, level)
    return Interval(value, low, high)


def tango_ends(gained: ArrayLike, lost: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
    """The ends of Tango's interval of (gained - lost) / n: where the score statistic equals a quantile of the normal.

    ``gained``: images that only the first classifies correctly; ``lost``: only the second.  Shapes: (...) x 3 -> (...) x 2.
    """
    b, c, size = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (gained, lost, n)))
    quantile = ndtri((1 + level) / 2)
    value = (b - c) / size

    def end(sign: float) -> Array:
        inside, outside = value, np.full_like(value, sign)
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            excess, variance = _score(b, c, size, middle)
            within = excess**2 <= quantile**2 * variance
            inside, outside = np.where(within, middle, inside), np.where(within, outside, middle)
        return inside

    return end(-1.0), end(1.0)


def _score(b: Array, c: Array, n: Array, difference: Array) -> tuple[Array, Array]:
    """Numerator of the score statistic and its variance if the true difference is ``difference`` (Tango 1998, equation 21)."""
    linear = (2 * n - b + c) * difference - b - c
    constant = -c * difference * (1 - difference)
    lost_share = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
    variance = n * np.maximum(2 * lost_share + difference * (1 - difference), 0)
    return b - c - n * difference, variance


def score_intervals(scores: Array, baseline: Array | None = None, *, resamples: int, seed: int) -> list[Interval]:
    """The interval of each of S scores of an image, of which the first is its correctness and the others are skewed.

    With ``baseline``, those of the paired changes from it.  Shapes: (K, S, n), (1, S, n) -> S intervals of shape (K,).
    """
    images = np.moveaxis(scores, -1, 0)  # (n, K, S)
    if baseline is None:
        first, rest = share_interval(images[..., 0]), images[..., 1:]
    else:
        origin = np.moveaxis(baseline, -1, 0)
        first, rest = paired_difference_interval(images[..., 0], origin[..., 0]), images[..., 1:] - origin[..., 1:]
    others = skewed_mean_interval(rest, resamples=resamples, seed=seed)
    return [first, *(Interval(*(end[..., s] for end in others)) for s in range(rest.shape[-1]))]
