"""What the paper says about models of different kinds: each statement, and the numbers of one model that it compares.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022).  A function here reads one number per image or mini-batch from one
result; two models are compared on the same images or mini-batches, and several models of each kind by their means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backlight.claims.kinds import Kind
from backlight.numerics.bootstrap import mean_interval, skewed_mean_interval
from backlight.numerics.proportions import paired_difference_interval
from backlight.numerics.student import student
from backlight.results.claim import Sample, Sign
from backlight.results.result import Result

Array = NDArray[np.float64]
Ends = Sequence[float]

#: Accuracies, as fractions, between which the shape of the loss of two models is compared.
ACCURACY_APART = 0.10


class NoNumbers(ValueError):
    """A result does not have the numbers that a statement is about; the message says why."""


# --- numbers of one model, one for each image or mini-batch.  Shapes: -> (n,)


def per_image(result: Result, name: str) -> Array:
    """An array of numbers per image.  Errors: NoNumbers if it is absent."""
    array = result.arrays.get(f"per_image/{name}")
    if array is None:
        raise NoNumbers(f"the {result.analysis} of {result.model} has no numbers per image")
    return np.asarray(array, np.float64)


def rise(result: Result) -> Array:
    """The rise of NLL from the trained weights to half of the radius.  Errors: NoNumbers if it is not finite somewhere."""
    rises = per_image(result, "rise")
    if result.provenance.get("settings", {}).get("directions") != "random":
        raise NoNumbers("only random directions, each filter as long as the model's own, are comparable")
    if not np.isfinite(rises).all():
        raise NoNumbers(f"the loss of {result.model} is not finite at half of the radius; give a smaller --radius")
    return rises


def directness(result: Result) -> Array:
    """The distance from the first snapshot to the model over the length of the path: one number.  Shapes: -> (1,)."""
    distances = np.asarray(result.arrays["distances"], np.float64)
    return np.array([distances[0, -1] / np.diag(distances, 1).sum()])


def eigenvalues(result: Result) -> Array:
    """The eigenvalues of largest magnitude of each mini-batch.  Shapes: -> (batches, top)."""
    rows = [row for row in result.table if row["block"] == "all"]
    batches = {row["batch"] for row in rows}
    return np.array([row["eigenvalue"] for row in rows], np.float64).reshape(len(batches), -1)


def log_largest_eigenvalue(result: Result) -> Array:
    """The logarithm of the magnitude of the largest eigenvalue of each mini-batch."""
    return np.log(abs(eigenvalues(result)).max(1))


def negative_share(result: Result) -> Array:
    """The share of negative ones among the largest eigenvalues of each mini-batch: its NEP."""
    return (eigenvalues(result) < 0).mean(1)


def change_of_high_frequencies(result: Result) -> Array:
    """Δ log amplitude after the last unit less that of the stem."""
    deltas = per_image(result, "delta")
    return deltas[-1] - deltas[0]


def under_noise(result: Result) -> tuple[Array, Array, Array]:
    """The accuracy of each image: clean, and under noise below and above 0.5π.  Errors: NoNumbers without both sides."""
    clean, *bands = per_image(result, "correct")
    centres = np.array(result.provenance["settings"]["frequencies"])
    low, high = (np.array(bands)[side * (centres - 0.5) > 1e-9] for side in (-1, 1))
    if not (len(low) and len(high)):
        raise NoNumbers(f"the noise of {result.model} has no bands on both sides of 0.5π")
    return clean, low.mean(0), high.mean(0)


def high_less_low(result: Result) -> Array:
    """Half of the accuracy under high noise less that under low, plus 1/2: from 0 to 1."""
    _, low, high = under_noise(result)
    return (high - low + 1) / 2


def change_under_low(result: Result) -> Array:
    """Half of the change of accuracy under low noise, plus 1/2: from 0 to 1."""
    clean, low, _ = under_noise(result)
    return (low - clean + 1) / 2


def change_under_high(result: Result) -> Array:
    """Half of the change of accuracy under high noise, plus 1/2: from 0 to 1."""
    clean, _, high = under_noise(result)
    return (high - clean + 1) / 2


def clean_accuracy(result: Result) -> Array:
    """1 for a right answer."""
    return per_image(result, "correct")


def changed_accuracy(result: Result) -> Array:
    """The accuracy of each image, the mean over all its changes: corruptions, bands of noise, or epsilons of an attack."""
    return per_image(result, "correct")[1:].mean(0)


# --- intervals of the mean difference of two models.  Shapes: (n,), (n,) -> value, low, high


def mean_difference(first: Array, second: Array) -> Ends:
    """Of a number without limits."""
    return [float(x) for x in mean_interval(first - second)]


def skewed_difference(first: Array, second: Array) -> Ends:
    """Of a skewed number, such as a rise of NLL."""
    return [float(x) for x in skewed_mean_interval(first - second)]


def student_difference(first: Array, second: Array) -> Ends:
    """Of a number over few mini-batches."""
    return student([float(x) for x in first - second])


def share_difference(first: Array, second: Array) -> Ends:
    """Of a number from 0 to 1."""
    return [float(x) for x in paired_difference_interval(first, second)]


def difference_of_means(first: Sequence[float], second: Sequence[float]) -> Ends:
    """Welch's interval of the difference of means over two groups of models.

    Degrees of freedom: those of the smaller group, at most as many as Welch's.
    """
    from scipy.stats import t

    value = float(np.mean(first) - np.mean(second))
    smaller = min(len(first), len(second))
    if smaller < 2:
        return value, np.nan, np.nan
    error = np.sqrt(np.var(first, ddof=1) / len(first) + np.var(second, ddof=1) / len(second))
    half = float(t.ppf(0.975, smaller - 1) * error)
    return value, value - half, value + half


# --- the statements


@dataclass(frozen=True)
class Comparison:
    """A statement about a model of the first kind and one of the second.

    It holds if the first model's numbers less the second's, on average, have this sign.
    """

    name: str  # the id is compare/NAME
    analysis: str
    kinds: tuple[Kind, Kind]
    statement: str
    source: str
    quantity: str
    sign: Sign
    numbers: Callable[[Any], Array]
    interval: Callable[[Array, Array], Ends]
    over: Sample = "images"
    scale: float = 1
    of_the_loss: bool = False  # the shape of the loss depends on how far a model is trained


def _hybrid(name: str, analysis: str, numbers: Callable[[Any], Array], what: str, quantity: str) -> list[Comparison]:
    """The statement of figure 12b against a CNN and against a ViT."""
    others: tuple[Kind, ...] = ("cnn", "vit")
    return [
        Comparison(
            f"{name}-over-{other}", analysis, ("hybrid", other), f"The hybrid is {what} than the {title}.", "Figure 12b",
            f"{quantity}, hybrid less {title} (percentage points)", "positive", numbers, share_difference, scale=100,
        )
        for other, title in zip(others, ("CNN", "ViT"), strict=True)
    ]  # fmt: skip


@dataclass(frozen=True)
class OfKind:
    """A statement about each model of a kind: the mean of its numbers has this sign."""

    name: str  # the id is kind/NAME
    analysis: str
    kind: Kind
    statement: str
    source: str
    quantity: str
    sign: Sign
    numbers: Callable[[Any], Array]


DELTA = "change of Δ log amplitude at the highest frequency from stem to last unit (nepers)"
OF_KINDS = (
    OfKind(
        "cnn-raises-high-frequencies", "fourier", "cnn",
        "From stem to last unit, the CNN raises the share of high frequencies.", "Figure 2a", DELTA, "positive",
        change_of_high_frequencies,
    ),
    OfKind(
        "vit-lowers-high-frequencies", "fourier", "vit",
        "From stem to last unit, the ViT lowers the share of high frequencies.", "Figure 2a", DELTA, "negative",
        change_of_high_frequencies,
    ),
)  # fmt: skip

LARGEST = "log of the largest magnitude of an eigenvalue of a mini-batch"
NEP = "NEP, share of negative ones among the eigenvalues of largest magnitude of a mini-batch"

COMPARISONS: tuple[Comparison, ...] = (
    Comparison(
        "flatter", "landscape", ("vit", "cnn"), "The loss surface of the ViT is flatter than that of the CNN.", "Figure 1a",
        "rise of NLL from the trained weights to half of the radius in one random plane of each, ViT less CNN (nats)",
        "negative", rise, skewed_difference, of_the_loss=True,
    ),
    Comparison(
        "direct", "trajectory", ("vit", "cnn"), "The path of training of the ViT is more direct than that of the CNN.",
        "Version 1, figure 1b", "distance from start to end over length of the path, ViT less CNN",
        "positive", directness, mean_difference, over="models", of_the_loss=True,
    ),
    Comparison(
        "smaller-eigenvalues", "hessian", ("vit", "cnn"),
        "The Hessian eigenvalues of the ViT are smaller in magnitude than those of the CNN.", "Figures 1b and 4",
        f"{LARGEST}, ViT less CNN (nepers)", "negative", log_largest_eigenvalue, student_difference, over="mini-batches",
        of_the_loss=True,
    ),
    Comparison(
        "more-negative", "hessian", ("vit", "cnn"),
        "More of the Hessian eigenvalues of the ViT are negative than of those of the CNN.", "Figures 1b and 4",
        f"{NEP}, ViT less CNN (percentage points)", "positive", negative_share, share_difference, over="mini-batches",
        scale=100, of_the_loss=True,
    ),
    Comparison(
        "high-frequencies", "fourier", ("vit", "cnn"),
        "From stem to last unit, the share of high frequencies rises less, or falls more, in the ViT than in the CNN.",
        "Figure 2a", "change of Δ log amplitude at the highest frequency, ViT less CNN (nepers)",
        "negative", change_of_high_frequencies, mean_difference,
    ),
    Comparison(
        "noise-of-high-frequency", "noise", ("vit", "cnn"), "Noise of high frequency costs the CNN more than the ViT.",
        "Figure 2b", "change of accuracy under noise above 0.5π, ViT less CNN (percentage points)",
        "positive", change_under_high, share_difference, scale=200,
    ),
    Comparison(
        "noise-of-low-frequency", "noise", ("vit", "cnn"), "Noise of low frequency costs the ViT more than the CNN.",
        "Figure 2b", "change of accuracy under noise below 0.5π, ViT less CNN (percentage points)",
        "negative", change_under_low, share_difference, scale=200,
    ),
    Comparison(
        "noise-by-frequency", "noise", ("vit", "cnn"),
        "Compared with noise of low frequency, noise of high frequency costs the CNN more than the ViT.", "Figure 2b",
        "accuracy under noise above 0.5π less that below, ViT less CNN (percentage points)",
        "positive", high_less_low, share_difference, scale=200,
    ),
    Comparison(
        "hybrid-smaller-eigenvalues", "hessian", ("hybrid", "cnn"),
        "The Hessian eigenvalues of the hybrid are smaller in magnitude than those of the CNN.", "Figure 12c",
        f"{LARGEST}, hybrid less CNN (nepers)", "negative", log_largest_eigenvalue, student_difference, over="mini-batches",
        of_the_loss=True,
    ),
    Comparison(
        "hybrid-fewer-negative", "hessian", ("hybrid", "vit"),
        "Fewer of the Hessian eigenvalues of the hybrid are negative than of those of the ViT.", "Figure 12c",
        f"{NEP}, hybrid less ViT (percentage points)", "negative", negative_share, share_difference, over="mini-batches",
        scale=100, of_the_loss=True,
    ),
    *_hybrid("hybrid-accuracy", "calibration", clean_accuracy, "more accurate", "accuracy"),
    *_hybrid(
        "hybrid-corruption", "corruption", changed_accuracy, "more robust to corruptions",
        "accuracy, mean over corruptions and severities",
    ),
    *_hybrid("hybrid-noise", "noise", changed_accuracy, "more robust to noise", "accuracy, mean over all bands of noise"),
    *_hybrid(
        "hybrid-adversarial", "adversarial", changed_accuracy, "more robust to attacks",
        "accuracy under PGD, mean over epsilons",
    ),
)  # fmt: skip
