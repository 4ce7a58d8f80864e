"""Student's interval of a mean: for the few values, accuracies over seeds, of which a bootstrap has too little to draw from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t


def student(values: Sequence[float]) -> tuple[float, float, float]:
    """A mean and its 95% interval, for values that are normally distributed; without end for a single one."""
    if len(values) < 2:
        return values[0], -math.inf, math.inf
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - reach, mean + reach
