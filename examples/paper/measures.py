"""What is compared of two trainings: numbers of a result, one an image or mini-batch, or a summary with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backlight.claims import comparisons
from backlight.results.claim import Sample
from backlight.results.result import Result

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """A number of one model: ``numbers`` gives one for each image or mini-batch, ``interval`` that of a mean difference."""

    analysis: str
    quantity: str
    numbers: Callable[[Any], Array]
    interval: Callable[[Array, Array], Sequence[float]]
    scale: float = 1
    over: Sample = "images"
    of_the_loss: bool = False  # the shape of the loss depends on how far a model is trained


@dataclass(frozen=True)
class Summary:
    """A number of one model that is not a mean over images: a row of its calibration."""

    metric: str
    quantity: str
    scale: float = 1
    analysis: str = "calibration"

    def interval(self, result: Result) -> tuple[float, float, float]:
        """Value, low, high."""
        row = next(row for row in result.table if row["metric"] == self.metric)
        return row["value"], row["low"], row["high"]

    def difference(self, first: Result, second: Result) -> tuple[float, float, float]:
        """The first less the second.  The two are taken as independent: on the same images the interval is then too long."""
        (one, low, high), (other, other_low, other_high) = self.interval(first), self.interval(second)
        below, above = np.hypot(one - low, other_high - other), np.hypot(high - one, other - other_low)
        value = one - other
        return self.scale * value, self.scale * (value - below), self.scale * (value + above)


def error(result: Result) -> Array:
    """1 for a wrong answer."""
    return 1 - comparisons.clean_accuracy(result)


def training_nll(result: Result) -> Array:
    """The NLL of each augmented training image."""
    return comparisons.per_image(result, "nll")


SHARE, SKEWED, STUDENT = comparisons.share_difference, comparisons.skewed_difference, comparisons.student_difference
UNDER_CHANGE = comparisons.changed_accuracy
POINTS = "(percentage points)"
MEASURES: dict[str, Measure | Summary] = {
    "accuracy": Measure("calibration", f"test accuracy {POINTS}", comparisons.clean_accuracy, SHARE, 100),
    "error": Measure("calibration", f"test error {POINTS}", error, SHARE, 100),
    "nll": Summary("nll", "test NLL (nats)"),
    "ece": Summary("ece_debiased", f"debiased test ECE {POINTS}", 100),
    "training-nll": Measure("landscape", "NLL of augmented training images (nats)", training_nll, SKEWED),
    "corruption": Measure(
        "corruption", f"accuracy, mean over corruptions {POINTS}", UNDER_CHANGE, SHARE, 100
    ),
    "noise": Measure("noise", f"accuracy, mean over bands of noise {POINTS}", UNDER_CHANGE, SHARE, 100),
    "attack": Measure("adversarial", f"accuracy under PGD, mean over epsilons {POINTS}", UNDER_CHANGE, SHARE, 100),
    "noise-high": Measure(
        "noise", f"change of accuracy under noise above 0.5π {POINTS}", comparisons.change_under_high, SHARE, 200
    ),
    "noise-low": Measure(
        "noise", f"change of accuracy under noise below 0.5π {POINTS}", comparisons.change_under_low, SHARE, 200
    ),
    "noise-contrast": Measure(
        "noise", f"accuracy under noise above 0.5π less that below {POINTS}", comparisons.high_less_low, SHARE, 200
    ),
    "high-frequencies": Measure(
        "fourier", "change of Δ log amplitude at the highest frequency, stem to last unit (nepers)",
        comparisons.change_of_high_frequencies, comparisons.mean_difference,
    ),
    "negative-share": Measure(
        "hessian", f"NEP, share of negative ones of the 5 largest eigenvalues of a mini-batch {POINTS}",
        comparisons.negative_share, SHARE, 100, "mini-batches", True,
    ),
    "largest-eigenvalue": Measure(
        "hessian", "log of the largest magnitude of an eigenvalue of a mini-batch (nepers)",
        comparisons.log_largest_eigenvalue, STUDENT, 1, "mini-batches", True,
    ),
    "rise": Measure(
        "landscape", "rise of NLL to half of the radius in one random plane (nats)", comparisons.rise, SKEWED, of_the_loss=True
    ),
}  # fmt: skip
