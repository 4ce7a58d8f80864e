"""How far a classifier's probabilities can be trusted: NLL, Brier, ECE, reliability (Guo et al. 2017).

Everything is a function of per-image numbers and of how often each image counts, so that the bootstrap can resample
without the probabilities, which are never kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

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
