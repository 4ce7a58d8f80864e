"""How far a classifier's probabilities can be trusted: NLL, Brier, ECE, reliability, temperature (Guo et al. 2017).

Everything is a function of per-image numbers and of how often each image counts, so that the bootstrap can resample
without the probabilities, which are never kept.  Only the temperature needs the logits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from torch import Tensor

from .bootstrap import counts

Array = NDArray[np.float64]

#: Confidence above which the paper calls a prediction certain.
CERTAIN = 0.9
#: The least and the most a metric can be, where it is not a share, 0..1.
RANGE = {"nll": (0.0, np.inf), "brier": (0.0, 2.0), "signed_ece": (-1.0, 1.0)}


class Scores(NamedTuple):
    """What is kept of each image.  Shapes: (n,) each."""

    label: Array
    prediction: Array
    confidence: Array  # the largest probability
    nll: Array  # nats
    brier: Array  # squared distance of the probabilities from the label, 0..2
    top5: Array  # 1 where the label is among the five most probable classes


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """Scores of a batch from its logits.  Shapes: (B, C), (B,) -> (B,) each.

    In float64 through log-softmax: a softmax followed by a logarithm underflows to minus infinity.
    """
    logs = logits.cpu().double().log_softmax(1)
    labels = labels.cpu()
    probabilities = logs.exp()
    confidence, prediction = probabilities.max(1)
    own = probabilities.gather(1, labels[:, None]).squeeze(1)
    top = logs.topk(min(5, logs.shape[1]), dim=1).indices
    columns = (
        labels,
        prediction,
        confidence,
        -logs.gather(1, labels[:, None]).squeeze(1),
        probabilities.square().sum(1) - 2 * own + 1,
        (top == labels[:, None]).any(1),
    )
    return Scores(*(column.double().numpy() for column in columns))


def summary(s: Scores, weights: Array, *, bins: int = 10) -> dict[str, float]:
    """The paper's metrics (``ops/tests.py``), each a fraction but NLL (nats) and Brier (0..2).

    ``weights`` says how often each image counts, (n,).  A ratio whose denominator is empty is NaN.
    """
    correct = (s.prediction == s.label).astype(np.float64)
    certain = (s.confidence > CERTAIN).astype(np.float64)
    total = weights.sum()

    def share(of: Array, among: Array) -> float:
        whole = weights @ among
        return float(weights @ (of * among) / whole) if whole else float("nan")

    everything = np.ones_like(correct)
    gaps, mass = calibration_gaps(s.confidence, correct, weights, np.linspace(0, 1, bins + 1))
    adaptive, adaptive_mass = calibration_gaps(s.confidence, correct, weights, equal_mass_edges(s.confidence, weights, bins))
    return {
        "accuracy": share(correct, everything),
        "top5": share(s.top5, everything),
        "nll": float(weights @ s.nll / total),
        "brier": float(weights @ s.brier / total),
        "ece": float(mass @ np.abs(gaps)),
        "signed_ece": float(mass @ gaps),
        "adaptive_ece": float(adaptive_mass @ np.abs(adaptive)),
        "acc_90": share(correct, certain),
        "freq_90": share(certain, everything),
        "unc_90": share(1 - certain, 1 - correct),
        "iou": mean_iou(s.label, s.prediction, weights),
        "iou_90": mean_iou(s.label, s.prediction, weights * certain),
    }


def calibration_gaps(confidence: Array, correct: Array, weights: Array, edges: Array) -> tuple[Array, Array]:
    """Confidence minus accuracy in each bin, and the bin's share of the images.  Shapes: (n,) x 3, (M + 1,) -> (M,) x 2.

    An empty bin has gap 0.
    """
    mass, confident, right = _sums(confidence, correct, weights, edges)
    gap = np.divide(confident - right, mass, out=np.zeros_like(mass), where=mass > 0)
    return gap, mass / mass.sum()


def _sums(confidence: Array, correct: Array, weights: Array, edges: Array) -> tuple[Array, Array, Array]:
    """How many images are in each bin, their confidences' sum, and how many are right.  Shapes: -> (M,) x 3.

    Bins are (a, b]; a confidence of exactly 1.0 is in the last and one of 0.0 in the first.
    """
    bins = len(edges) - 1
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)

    def summed(column: Array) -> Array:
        return np.bincount(which, weights * column, bins).astype(np.float64)

    return summed(np.ones_like(confidence)), summed(confidence), summed(correct)


def equal_mass_edges(confidence: Array, weights: Array, bins: int) -> Array:
    """Edges between which equally many images lie (adaptive ECE, Nguyen & O'Connor 2015).  Shapes: (n,), (n,) -> (M + 1,)."""
    order = np.argsort(confidence, kind="stable")
    reached = np.cumsum(weights[order])
    inner = np.searchsorted(reached, reached[-1] * np.arange(1, bins) / bins)
    return np.unique(np.concatenate([[0.0], confidence[order][inner], [1.0]]))


def mean_iou(label: Array, prediction: Array, weights: Array) -> float:
    """Intersection over union of labels and predictions, averaged over the classes that occur.  NaN if none does."""
    label, prediction = label.astype(np.int64), prediction.astype(np.int64)
    classes = int(max(label.max(), prediction.max())) + 1
    hit = np.bincount(label, weights * (label == prediction), classes)
    union = np.bincount(label, weights, classes) + np.bincount(prediction, weights, classes) - hit
    return float((hit[union > 0] / union[union > 0]).mean()) if (union > 0).any() else float("nan")


class Reliability(NamedTuple):
    """A reliability diagram.  Shapes: (M,) each; a bin without images has NaN confidence and accuracy."""

    confidence: Array
    accuracy: Array
    share: Array


def reliability(s: Scores, weights: Array, *, bins: int = 10) -> Reliability:
    """Mean confidence and accuracy in each of ``bins`` equal bins, with the bin's share of the images."""
    correct = (s.prediction == s.label).astype(np.float64)
    mass, confident, right = _sums(s.confidence, correct, weights, np.linspace(0, 1, bins + 1))
    with np.errstate(invalid="ignore"):
        return Reliability(confident / mass, right / mass, mass / mass.sum())


# Temperature

#: Where a temperature is looked for; at an end of it the NLL has no least value, as of a model that is always right.
COLDEST, HOTTEST = 1e-3, 1e3
#: Images whose slopes are computed at once, times classes: 32 MB in float64.
SLOPES_AT_ONCE = 1 << 22


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T that makes the mean NLL of softmax(logits / T) least.  Shapes: (n, C), (n,) -> a number.

    In b = 1 / T the NLL is log-sum-exp(b z) - b z_label, which is convex, so that its slope has one zero at most; Newton's
    steps are kept within a bracket of it.  Within COLDEST and HOTTEST.
    """
    low, high = 1 / HOTTEST, 1 / COLDEST
    ends = slopes(logits, labels, [low, high])[0].sum(0)
    if ends[0] >= 0:
        return HOTTEST
    if ends[1] <= 0:
        return COLDEST
    b = 1.0
    for _ in range(200):
        slope, bend = (float(x.sum()) for x in slopes(logits, labels, [b]))
        low, high = (b, high) if slope < 0 else (low, b)
        step = b - slope / bend if bend > 0 else low
        further = step if low < step < high else (low * high) ** 0.5
        if abs(further - b) <= 1e-13 * b:
            break
        b = further
    return 1 / b


def slopes(logits: Tensor, labels: Tensor, at: list[float] | Array) -> tuple[Array, Array]:
    """Slope and bend of each image's NLL in b = 1 / T: E z - z_label and Var z under softmax(b z).

    Shapes: (n, C), (n,), (k,) -> (n, k), (n, k).
    """
    parts = []
    for some, own in zip(*(x.split(max(1, SLOPES_AT_ONCE // logits.shape[1])) for x in (logits, labels)), strict=True):
        z = some.cpu().double()
        z = z - z.gather(1, own.cpu()[:, None])  # a shift changes nothing, and now z_label is 0
        columns = []
        for b in at:
            p = (float(b) * z).softmax(1)
            mean = (p * z).sum(1)
            columns.append(torch.stack([mean, (p * (z - mean[:, None]).square()).sum(1)]))
        parts.append(torch.stack(columns, 2))
    slope, bend = torch.cat(parts, 1).numpy()
    return slope, bend


def temperature_interval(
    logits: Tensor, labels: Tensor, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """The temperature with its percentile interval over images.

    Each resample has a temperature of its own.  Its slope is a weighted sum of the images', each of them read at 24 places
    about the estimate and a polynomial between (it is analytic there), so that the logits are gone through once and not a
    thousand times.
    """
    found = temperature(logits, labels)
    slope, bend = slopes(logits, labels, [1 / found])
    if len(labels) < 2 or not COLDEST < found < HOTTEST:
        return found, float("nan"), float("nan")
    error = found * np.sqrt(np.square(slope).sum()) / bend.sum()  # of log b
    reach = min(8 * error, np.log(HOTTEST))
    places = chebyshev.chebpts1(24)
    each, _ = slopes(logits, labels, np.exp(reach * places) / found)
    drawn = np.concatenate([w @ each for w in counts(len(labels), resamples, seed)])
    zeros = _rising_zeros(chebyshev.chebfit(places, drawn.T, len(places) - 1))
    tail = (1 - level) / 2
    low, high = np.quantile(found / np.exp(reach * zeros), [tail, 1 - tail])
    return found, float(low), float(high)


def _rising_zeros(coefficients: Array) -> Array:
    """Where each rising series is zero in [-1, 1]; an end of it where there is none.  Shapes: (k, R) -> (R,)."""
    low, high = -np.ones(coefficients.shape[1]), np.ones(coefficients.shape[1])
    for _ in range(50):
        middle = (low + high) / 2
        below = chebyshev.chebval(middle, coefficients, tensor=False) < 0
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2
