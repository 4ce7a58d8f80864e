"""How far a classifier's probabilities can be trusted: NLL, Brier score, ECE, reliability diagram, temperature.

ECE, the reliability diagram and temperature scaling: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural
Networks" (ICML 2017).  Metrics: the ``ops/tests.py`` of Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022).

Every metric is a function of a few numbers per image and of the weights of the images, so the bootstrap can resample images
although their probabilities are not stored.  Only the temperature needs the logits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor

from backlight.numerics.bootstrap import Interval, basic_interval, counts

Array = NDArray[np.float64]

#: Confidence above which the paper calls a prediction certain.
CERTAIN = 0.9
#: The smallest and the largest possible value of the metrics that are not a share from 0 to 1.
RANGE = {"nll": (0.0, np.inf), "brier": (0.0, 2.0), "signed_ece": (-1.0, 1.0)}
#: Entries of the array from which `ece_of_points` resamples: 160 MB in float64.
ENTRIES_AT_ONCE = 20_000_000


class Scores(NamedTuple):
    """What is stored of each image.  Shapes: (n,) each."""

    label: Array
    prediction: Array
    confidence: Array  # the largest probability
    nll: Array  # nats
    brier: Array  # squared distance of the probabilities from the label, 0..2
    top5: Array  # 1 where the label is among the five most probable classes


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """The scores of a batch.  Shapes: (B, K), (B,) -> (B,) each.

    In float64 and through log-softmax: the logarithm of a softmax underflows to minus infinity.
    """
    log_probabilities = logits.cpu().double().log_softmax(1)
    labels = labels.cpu()
    probabilities = log_probabilities.exp()
    confidence, prediction = probabilities.max(1)
    of_label = probabilities.gather(1, labels[:, None]).squeeze(1)
    top = log_probabilities.topk(min(5, log_probabilities.shape[1]), dim=1).indices
    columns = (
        labels,
        prediction,
        confidence,
        -log_probabilities.gather(1, labels[:, None]).squeeze(1),
        probabilities.square().sum(1) - 2 * of_label + 1,
        (top == labels[:, None]).any(1),
    )
    return Scores(*(column.double().numpy() for column in columns))


def summary(per_image: Scores, weights: Array, *, bins: int) -> dict[str, float]:
    """The paper's metrics: fractions, except NLL (nats) and Brier score (0..2).  A ratio with denominator 0 is NaN.

    ``weights``: how often each image counts.  Shapes: (n,).
    """
    confidence = per_image.confidence
    correct = (per_image.prediction == per_image.label).astype(np.float64)
    certain = (confidence > CERTAIN).astype(np.float64)
    total = weights.sum()
    proportions = {name: count / among if among else np.nan for name, (count, among) in counted(per_image, weights).items()}
    gaps, mass = calibration_gaps(confidence, correct, weights, np.linspace(0, 1, bins + 1))
    adaptive, adaptive_mass = calibration_gaps(confidence, correct, weights, equal_mass_edges(confidence, weights, bins))
    return {
        "accuracy": proportions["accuracy"],
        "top5": proportions["top5"],
        "nll": float(weights @ per_image.nll / total),
        "brier": float(weights @ per_image.brier / total),
        "ece": float(mass @ np.abs(gaps)),
        "signed_ece": float(mass @ gaps),
        "adaptive_ece": float(adaptive_mass @ np.abs(adaptive)),
        "acc_90": proportions["acc_90"],
        "freq_90": proportions["freq_90"],
        "unc_90": proportions["unc_90"],
        "iou": mean_iou(per_image.label, per_image.prediction, weights),
        "iou_90": mean_iou(per_image.label, per_image.prediction, weights * certain),
    }


def counted(per_image: Scores, weights: Array | None = None) -> dict[str, tuple[float, float]]:
    """The metrics that are proportions: how many images count, and of how many.  Shapes: weights (n,), by default 1."""
    correct = (per_image.prediction == per_image.label).astype(np.float64)
    certain = (per_image.confidence > CERTAIN).astype(np.float64)
    w = np.ones_like(correct) if weights is None else weights
    total = float(w.sum())
    return {
        "accuracy": (float(w @ correct), total),
        "top5": (float(w @ per_image.top5), total),
        "acc_90": (float(w @ (correct * certain)), float(w @ certain)),
        "freq_90": (float(w @ certain), total),
        "unc_90": (float(w @ ((1 - certain) * (1 - correct))), float(w @ (1 - correct))),
    }


def calibration_gaps(confidence: Array, correct: Array, weights: Array, edges: Array) -> tuple[Array, Array]:
    """Confidence minus accuracy in each bin, and the bin's share of the images.  Shapes: (n,) x 3, (M + 1,) -> (M,) x 2.

    An empty bin has gap 0.
    """
    mass, confident, right = _bin_sums(confidence, correct, weights, edges)
    gap = np.divide(confident - right, mass, out=np.zeros_like(mass), where=mass > 0)
    return gap, mass / mass.sum()


def ece_of_points(confidence: Array, correct: Array, bins: int, resamples: int, seed: int) -> Interval:
    """ECE at each of several points, with its basic interval, clipped to 0..1 and extended to the estimate.

    Estimate and interval equal those of `calibration` at one point.  All points are resampled together: one by one takes
    longer than the forward passes.  Shapes: (points, n) x 2 -> (points,) each.
    """
    points, images = confidence.shape
    size = max(1, ENTRIES_AT_ONCE // (images * bins))
    parts = [
        _ece_of_some_points(confidence[p : p + size], correct[p : p + size], bins, resamples, seed)
        for p in range(0, points, size)
    ]
    return Interval(*(np.concatenate(column) for column in zip(*parts, strict=True))) if parts else Interval(*np.zeros((3, 0)))


def _ece_of_some_points(confidence: Array, correct: Array, bins: int, resamples: int, seed: int) -> Interval:
    points, images = confidence.shape
    gaps = np.zeros((points, images, bins))
    which = _bin_of(confidence, np.linspace(0, 1, bins + 1))
    np.put_along_axis(gaps, which[..., None], (confidence - correct)[..., None], 2)
    flat = gaps.transpose(1, 0, 2).reshape(images, -1)

    def ece(weights: Array) -> Array:
        return np.abs((weights @ flat).reshape(*weights.shape[:-1], points, bins)).sum(-1) / images

    value = ece(np.ones(images))
    if images < 2:
        return Interval(value, np.full(points, np.nan), np.full(points, np.nan))
    low, high = basic_interval(value, np.concatenate([ece(w) for w in counts(images, resamples, seed)]))
    return Interval(value, np.minimum(value, np.maximum(low, 0)), np.maximum(value, np.minimum(high, 1)))


def debiased_ece(confidence: Array, correct: Array, bins: int, resamples: int, seed: int) -> Interval:
    """ECE less the excess that the noise of n images adds, which is normal in each bin; with its basic interval.

    ECE is a sum of absolute values, so noise can only add to it, as resampling does again.  The lower end is 0 if ECE is not
    larger than it is when each image is correct with the probability of its confidence (Vaicenavicius et al., "Evaluating model
    calibration in classification", AISTATS 2019): such a model may be calibrated.  NaN for one image.

    Shapes: (n,), (n,) -> ().
    """
    images = len(confidence)
    if images < 2:
        return Interval(*np.full(3, np.nan))
    inside = np.eye(bins)[_bin_of(confidence, np.linspace(0, 1, bins + 1))]  # (n, bins)

    def ece(gaps: Array) -> Array:
        return np.abs(gaps @ inside).sum(-1) / images

    plain = ece(confidence - correct)
    resampled = np.concatenate([ece(w * (confidence - correct)) for w in counts(images, resamples, seed)])
    generator = np.random.default_rng(seed)
    calibrated = [ece(confidence - (generator.random(images) < confidence)) for _ in range(resamples)]
    low, high = np.clip(basic_interval(plain, resampled), 0, 1)
    sums, squares = (confidence - correct) @ inside, np.square(confidence - correct) @ inside
    deviation = np.sqrt(np.maximum(squares - sums**2 / images, 1e-300))  # of a bin's sum, over resamples
    score = np.abs(sums) / deviation
    folded = deviation * np.sqrt(2 / np.pi) * np.exp(-(score**2) / 2) + np.abs(sums) * (1 - 2 * ndtr(-score))
    value = np.clip(2 * plain - folded.sum() / images, 0, 1)
    low = np.where(plain <= np.quantile(calibrated, 0.975), 0.0, np.minimum(low, value))
    return Interval(value, low, np.maximum(high, value))


def _bin_of(confidence: Array, edges: Array) -> NDArray[np.intp]:
    """The number of each confidence's bin (a, b].  A confidence of 1 is in the last bin, one of 0 in the first."""
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)


def _bin_sums(confidence: Array, correct: Array, weights: Array, edges: Array) -> tuple[Array, Array, Array]:
    """Of each bin: the number of images, the sum of their confidences, the number of correct ones.  Shapes: -> (M,) x 3."""
    which = _bin_of(confidence, edges)

    def summed(column: Array) -> Array:
        return np.bincount(which, weights * column, len(edges) - 1).astype(np.float64)

    return summed(np.ones_like(confidence)), summed(confidence), summed(correct)


def equal_mass_edges(confidence: Array, weights: Array, bins: int) -> Array:
    """Edges of bins with equally many images, for adaptive ECE.  Shapes: (n,), (n,) -> (M + 1,), M at most ``bins``.

    Nguyen & O'Connor, "Posterior calibration and exploratory analysis for natural language processing models" (EMNLP 2015).
    """
    order = np.argsort(confidence, kind="stable")
    cumulative = np.cumsum(weights[order])
    inner = np.searchsorted(cumulative, cumulative[-1] * np.arange(1, bins) / bins)
    return np.unique(np.concatenate([[0.0], confidence[order][inner], [1.0]]))


def mean_iou(label: Array, prediction: Array, weights: Array) -> float:
    """Intersection over union of labels and predictions, averaged over the classes that occur.  NaN if none occurs."""
    label, prediction = label.astype(np.int64), prediction.astype(np.int64)
    classes = int(max(label.max(), prediction.max())) + 1
    intersection = np.bincount(label, weights * (label == prediction), classes)
    union = np.bincount(label, weights, classes) + np.bincount(prediction, weights, classes) - intersection
    return float((intersection[union > 0] / union[union > 0]).mean()) if (union > 0).any() else float("nan")


class Reliability(NamedTuple):
    """A reliability diagram.  A bin without images has NaN confidence and accuracy.  Shapes: (M,) each."""

    confidence: Array
    accuracy: Array
    share: Array


def reliability(per_image: Scores, weights: Array, *, bins: int) -> Reliability:
    """Mean confidence and accuracy in each of ``bins`` bins of equal width, and the bin's share of the images."""
    correct = (per_image.prediction == per_image.label).astype(np.float64)
    mass, confident, right = _bin_sums(per_image.confidence, correct, weights, np.linspace(0, 1, bins + 1))
    with np.errstate(invalid="ignore"):
        return Reliability(confident / mass, right / mass, mass / mass.sum())


# --- temperature

#: Bounds of the search for a temperature.  At a bound the NLL has no minimum, as for a model that is always right.
COLDEST, HOTTEST = 1e-3, 1e3
#: Images whose slopes are computed at once, times classes: 32 MB in float64.
SLOPES_AT_ONCE = 1 << 22


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T from COLDEST to HOTTEST that minimises the mean NLL of softmax(logits / T).  Shapes: (n, K), (n,) -> a number.

    In b = 1 / T the NLL is log-sum-exp(b z) - b z_label.  This is convex, so its slope has at most one zero.  Newton's steps
    stay within a bracket of the zero.
    """
    low, high = 1 / HOTTEST, 1 / COLDEST
    at_bounds = slopes(logits, labels, [low, high])[0].sum(0)
    if at_bounds[0] >= 0:
        return HOTTEST
    if at_bounds[1] <= 0:
        return COLDEST
    b = 1.0
    for _ in range(200):
        slope, curvature = (float(x.sum()) for x in slopes(logits, labels, [b]))
        low, high = (b, high) if slope < 0 else (low, b)
        step = b - slope / curvature if curvature > 0 else low
        next_b = step if low < step < high else (low * high) ** 0.5
        if abs(next_b - b) <= 1e-13 * b:
            break
        b = next_b
    return 1 / b


def slopes(logits: Tensor, labels: Tensor, at: list[float] | Array) -> tuple[Array, Array]:
    """First and second derivative of each image's NLL in b = 1 / T: E z - z_label and Var z under softmax(b z).

    Shapes: (n, K), (n,), (k,) -> (n, k), (n, k).
    """
    parts = []
    for chunk, chunk_labels in zip(
        *(x.split(max(1, SLOPES_AT_ONCE // logits.shape[1])) for x in (logits, labels)), strict=True
    ):
        z = chunk.cpu().double()
        z = z - z.gather(1, chunk_labels.cpu()[:, None])  # the softmax is the same, and z_label is now 0
        columns = []
        for b in at:
            p = (float(b) * z).softmax(1)
            mean = (p * z).sum(1)
            columns.append(torch.stack([mean, (p * (z - mean[:, None]).square()).sum(1)]))
        parts.append(torch.stack(columns, 2))
    slope, curvature = torch.cat(parts, 1).numpy()
    return slope, curvature


def temperature_interval(
    logits: Tensor, labels: Tensor, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """The temperature with its percentile interval over images: (value, low, high).  Shapes: (n, K), (n,).

    Every resample has a temperature, the zero of a slope that is a weighted sum of the images' slopes.  These are computed
    at 24 temperatures around the estimate and interpolated by a polynomial, since the slope is analytic there.  So the
    logits are read once, not once per resample.
    """
    estimate = temperature(logits, labels)
    slope, curvature = slopes(logits, labels, [1 / estimate])
    if len(labels) < 2 or not COLDEST < estimate < HOTTEST:
        return estimate, float("nan"), float("nan")
    error = estimate * np.sqrt(np.square(slope).sum()) / curvature.sum()  # standard error of log b
    radius = min(8 * error, np.log(HOTTEST))
    nodes = chebyshev.chebpts1(24)
    per_image, _ = slopes(logits, labels, np.exp(radius * nodes) / estimate)
    resampled = np.concatenate([w @ per_image for w in counts(len(labels), resamples, seed)])
    zeros = _rising_zeros(chebyshev.chebfit(nodes, resampled.T, len(nodes) - 1))
    tail = (1 - level) / 2
    low, high = np.quantile(estimate / np.exp(radius * zeros), [tail, 1 - tail])
    return estimate, float(low), float(high)


def _rising_zeros(coefficients: Array) -> Array:
    """The zero of each increasing Chebyshev series in [-1, 1]; a bound if it has none.  Shapes: (k, R) -> (R,)."""
    low, high = -np.ones(coefficients.shape[1]), np.ones(coefficients.shape[1])
    for _ in range(50):
        middle = (low + high) / 2
        below = chebyshev.chebval(middle, coefficients, tensor=False) < 0
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2
