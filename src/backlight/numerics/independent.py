"""The interval of a difference of two numbers of which nothing but their own intervals is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backlight.numerics.bootstrap import Interval

Array = NDArray[np.float64]


def difference_interval(first: ArrayLike, second: ArrayLike) -> Interval:
    """``second`` minus ``first``, each (value, low, high): both distances to the ends, squared and added.

    Newcombe, "Interval Estimation for the Difference Between Independent Proportions" (Statistics in Medicine 1998), method 10,
    for any number (Zou & Donner, Statistics in Medicine 2008).  Of two models on the same images, which mostly err on the same
    ones, it is too wide.  Shapes: (3, ...), (3, ...) -> (...).

    >>> [float(x) for x in difference_interval((1.0, 0.7, 1.3), (2.0, 1.6, 2.4))]
    [1.0, 0.5, 1.5]
    """
    (a, a_low, a_high), (b, b_low, b_high) = (np.asarray(ends, np.float64) for ends in (first, second))
    value = b - a
    return Interval(value, value - np.hypot(b - b_low, a_high - a), value + np.hypot(b_high - b, a - a_low))
