"""Student's interval of a mean (Student 1908): for a few values, such as accuracies over seeds, too few for a bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t


def student(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of normally distributed values and its 95% interval: (mean, low, high).  One value has an infinite interval."""
    if len(values) < 2:
        return values[0], -math.inf, math.inf
    mean, standard_error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * standard_error
    return mean, mean - half, mean + half
