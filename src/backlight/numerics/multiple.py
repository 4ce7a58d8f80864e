"""Many statements at once: the p-value that an interval implies, and Holm's correction.

Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (Scandinavian Journal of Statistics 1979).  It needs no
assumption about how the statements depend on each other, and those of one model on the same images do depend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

#: The level of all intervals is 1 - ALPHA.
ALPHA = 0.05


def implied_p_value(value: float, low: float, high: float, at: float, freedom: float) -> float:
    """The two-sided p-value of ``at`` that a 95% interval implies: below 0.05 if and only if the interval excludes ``at``.

    The end of the interval on the side of ``at`` is taken as that of Student's interval with ``freedom`` degrees of freedom.
    NaN if an end is not finite.

    >>> round(implied_p_value(1.0, 0.0, 3.0, at=0.0, freedom=50), 6)
    0.05
    """
    if not all(map(math.isfinite, (value, low, high))):
        return math.nan
    half = value - low if value > at else high - value
    distance = abs(value - at)
    scores = stdtrit(freedom, 1 - ALPHA / 2) * distance / half if half > 0 else 0.0
    p = 2 * float(stdtr(freedom, -scores))
    excluded = low > at or high < at
    return min(p, math.nextafter(ALPHA, 0)) if excluded else max(p, ALPHA)


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Holm's adjusted p-values: those below alpha reject with a chance of at most alpha of any false rejection.

    NaN is no test: it stays NaN and does not count.  Shapes: (m,) -> (m,).

    >>> [float(round(p, 2)) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p, kind="stable")[: np.isfinite(p).sum()]  # NaN is sorted last
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(order), 0, -1) * p[order]))
    return adjusted
