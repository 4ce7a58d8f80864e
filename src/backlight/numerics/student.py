"""Student's interval (Student 1908): for a few independent parts, such as seeds or mini-batches, too few for a bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from backlight.numerics.bootstrap import Interval

Array = NDArray[np.float64]


def student(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of normally distributed values and its 95% interval: (mean, low, high).  One value has an infinite interval."""
    if len(values) < 2:
        return values[0], -math.inf, math.inf
    mean, standard_error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * standard_error
    return mean, mean - half, mean + half


def jackknife_interval(value: Array, without: Array) -> Interval:
    """A smooth statistic of n independent parts, such as a ratio of sums, with its 95% interval; NaN for one part.

    ``without``: the statistic of all parts but one, for each of them.  Their spread gives the standard error (Tukey, "Bias and
    Confidence in Not-quite Large Samples", Annals of Mathematical Statistics 1958), Student's t with n - 1 degrees of freedom
    the length.  Of a mean it is `student`.  Shapes: (...), (n, ...) -> (...).
    """
    parts = len(without)
    spread = np.square(without - without.mean(0)).sum(0)
    half = float(t.ppf(0.975, parts - 1)) * np.sqrt(spread * (parts - 1) / parts)
    return Interval(value, value - half, value + half)
