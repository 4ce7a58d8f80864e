"""The numbers of each analysis that are compared.  An analysis without a reader here gives the intervals in its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backlight.claims.comparisons import log_largest_eigenvalue, negative_share
from backlight.comparing.series import (
    ENDS,
    Number,
    Paired,
    Series,
    batch_means,
    changes,
    means,
    of_rows,
    of_unit,
    of_units,
    sampled,
    shares,
    skewed_means,
)
from backlight.numerics.bootstrap import Interval, statistic_interval
from backlight.numerics.calibration import Scores, summary
from backlight.results.result import Result, Row

Array = NDArray[np.float64]


class Quantity(NamedTuple):
    """What a number is called, and its unit."""

    title: str
    unit: str = ""
    scale: float = 1.0  # of the stored number


POINTS = "percentage points"
#: Numbers whose title, unit or scale their name does not tell.  Shares of images are in percentage points.
QUANTITIES = {
    "accuracy": Quantity("accuracy", POINTS, 100),
    "top5": Quantity("top-5 accuracy", POINTS, 100),
    "nll": Quantity("NLL", "nats"),
    "brier": Quantity("Brier score"),
    "ece": Quantity("ECE"),
    "ece_debiased": Quantity("debiased ECE"),
    "signed_ece": Quantity("signed ECE, confidence less accuracy"),
    "adaptive_ece": Quantity("adaptive ECE"),
    "acc_90": Quantity("accuracy where confidence is above 0.9", POINTS, 100),
    "freq_90": Quantity("share of images with confidence above 0.9", POINTS, 100),
    "unc_90": Quantity("share of the errors with confidence below 0.9", POINTS, 100),
    "iou": Quantity("mean IoU of the classes"),
    "iou_90": Quantity("mean IoU where confidence is above 0.9"),
    "delta": Quantity("Δ log amplitude at the highest frequency", "nepers"),
    "delta_change": Quantity("change of Δ log amplitude at the highest frequency from stem to last unit", "nepers"),
    "log_variance": Quantity("log variance of the feature map", "nepers"),
    "accuracy_change": Quantity("change of accuracy without the unit", POINTS, 100),
    "nll_change": Quantity("change of NLL without the unit", "nats"),
    "distance": Quantity("change of the output without the unit"),
    "mean_distance": Quantity("change of the output without a unit, mean over units"),
    "mean_accuracy_change": Quantity("change of accuracy without a unit, mean over units", POINTS, 100),
    "mean_nll_change": Quantity("change of NLL without a unit, mean over units", "nats"),
    "accuracy_under_noise": Quantity("accuracy under noise, mean over severities", POINTS, 100),
    "corrupted_accuracy": Quantity("accuracy, mean over corruptions and severities", POINTS, 100),
    "pgd_accuracy": Quantity("accuracy under PGD", POINTS, 100),
    "rise": Quantity("rise of NLL at half of the radius", "nats"),
    "log_largest_eigenvalue": Quantity("log magnitude of the largest Hessian eigenvalue", "nepers"),
    "nep": Quantity("NEP, negative ones of the largest Hessian eigenvalues", POINTS, 100),
    "neighbour_cka": Quantity("CKA with the next unit"),
}


def described(name: str) -> Quantity:
    """The quantity of this name.

    >>> described("top5").title, described("high_frequency").title
    ('top-5 accuracy', 'high frequency')
    """
    return QUANTITIES.get(name) or Quantity(name.replace("_", " "))


def read(result: Result) -> list[Series]:
    """All numbers of a result that can be compared."""
    return [*READERS.get(result.analysis, of_table)(result), *of_claims(result)]


def scalars(result: Result) -> dict[str, float]:
    """The finite numbers of the entire model, ANALYSIS/QUANTITY -> number as it is stored: accuracies are fractions.

    The keys stay the same from version to version, as the ids of claims do: ``calibration/ece``, ``fourier/high-pass``.
    """
    numbers = ((number, value) for series in read(result) for number, value in zip(series.numbers, series.ends[0], strict=True))
    return {f"{result.analysis}/{n.quantity}": float(value) for n, value in numbers if not n.place and np.isfinite(value)}


def _samples(quantity: str, places: Sequence[Number], array: Array, paired: Paired, **about: Any) -> Series:
    return sampled(places, array, paired, scale=described(quantity).scale, **about)


def _image(result: Result, name: str) -> Array | None:
    """An array of numbers per image in float64; None if the result has none."""
    array = result.arrays.get(f"per_image/{name}")
    return None if array is None else np.asarray(array, np.float64)


# --- what the analyses store for each image


def of_fourier(result: Result) -> Iterator[Series]:
    """Δ log amplitude at the highest frequency of each unit, and its change from the stem to the last unit."""
    deltas = _image(result, "delta")
    yield from _of_stream(highest(result.table), "delta", deltas, "delta")
    if deltas is not None:
        yield _samples("delta", [Number("delta_change")], deltas[-1:] - deltas[:1], means)


def of_variance(result: Result) -> Iterator[Series]:
    """The logarithm of the variance after each unit."""
    variances = _image(result, "variance")
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = None if variances is None else np.log(variances)
        columns = {f"variance{end}": np.log([row[f"variance{end}"] for row in result.table]) for end in ("", "_low", "_high")}
    rows = [row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(result.table)]
    yield from _of_stream(rows, "log_variance", logs, "variance")


def _of_stream(rows: Sequence[Row], quantity: str, samples: Array | None, column: str) -> Iterator[Series]:
    """A number of the stream after each unit."""
    if samples is None or len(samples) != len(rows):
        yield of_units(quantity, rows, column)
        return
    yield _samples(quantity, [of_unit(quantity, row) for row in rows], samples, means)


def of_lesion(result: Result) -> Iterator[Series]:
    """The change of accuracy and of NLL without each unit, or of the output, and the mean over all units."""
    at = [i for i, row in enumerate(result.table) if row["unit"] >= 0 and row["lesion"] == "unit"]
    rows = [result.table[i] for i in at]
    for quantity, array, paired in (
        ("accuracy_change", "correct", changes), ("nll_change", "nll", skewed_means), ("distance", "distance", skewed_means),
    ):  # fmt: skip
        if not rows or quantity not in rows[0]:
            continue
        samples = _image(result, array)
        if samples is None:
            yield of_units(quantity, rows, quantity, scale=described(quantity).scale)
            continue
        own = samples[at] - (0 if quantity == "distance" else samples[0])
        yield _samples(quantity, [of_unit(quantity, row) for row in rows], own, paired)
        yield _samples(quantity, [Number(f"mean_{quantity}")], own.mean(0, keepdims=True), paired)


def of_calibration(result: Result) -> Iterator[Series]:
    """Every metric over all classes of the model."""
    array = _image(result, "scores")
    rows = {row["metric"]: row for row in result.table}
    if array is None:
        yield from (_metric(rows, name) for name in METRICS if name in rows)
        return
    scores, bins = Scores(*array), int(result.provenance["settings"]["bins"])
    correct = scores.prediction == scores.label
    for name, values in (("accuracy", correct), ("top5", scores.top5), ("freq_90", scores.confidence > 0.9)):
        yield _samples(name, [Number(name)], np.asarray(values, np.float64)[None], shares)
    for name, values in (("nll", scores.nll), ("brier", scores.brier)):
        yield _samples(name, [Number(name)], values[None], skewed_means)
    for scale in (1.0, 100.0):
        names = [name for name in STATISTICS if described(name).scale == scale]
        ends = np.array([[rows[name][end] for name in names] for end in ("value", "low", "high")], np.float64)
        yield Series(tuple(map(Number, names)), ends, array.T, statistics(names, bins), scale=scale)
    yield _metric(rows, "ece_debiased")


STATISTICS = ("ece", "signed_ece", "adaptive_ece", "acc_90", "unc_90", "iou", "iou_90")
METRICS = ("accuracy", "top5", "freq_90", "nll", "brier", *STATISTICS, "ece_debiased")


def _metric(rows: dict[str, Row], name: str) -> Series:
    ends = np.array([[rows[name][end]] for end in ("value", "low", "high")], np.float64)
    return Series((Number(name),), ends, scale=described(name).scale)


def statistics(names: Sequence[str], bins: int) -> Paired:
    """The basic interval of the difference of metrics that are no means; both models have the same resamples."""

    def paired(first: Array, second: Array) -> Interval:
        one, other = Scores(*first.T), Scores(*second.T)

        def difference(weights: Array) -> Array:
            before, after = (summary(scores, weights, bins=bins) for scores in (one, other))
            return np.array([after[name] - before[name] for name in names])

        return statistic_interval(difference, len(first))

    return paired


def of_noise(result: Result) -> Iterator[Series]:
    """The accuracy under each band of noise."""
    correct, centres = _image(result, "correct"), result.provenance["settings"]["frequencies"]
    if correct is not None:
        places = [Number("accuracy_under_noise", f"{centre:g}π") for centre in centres]
        yield _samples("accuracy_under_noise", places, correct[1:], shares)


def of_corruption(result: Result) -> Iterator[Series]:
    """The accuracy, the mean over all corruptions; their own numbers are those of their rows over all severities."""
    correct = _image(result, "correct")
    if correct is not None:
        yield _samples("corrupted_accuracy", [Number("corrupted_accuracy")], correct[1:], shares)
    rows = [row for row in result.table if row["severity"] is None and row["corruption"] != "mean"]
    for name in ("accuracy", "ece"):
        yield of_rows([Number(name, row["corruption"]) for row in rows], rows, name, scale=described(name).scale)


def of_adversarial(result: Result) -> Iterator[Series]:
    """The accuracy under PGD at each epsilon."""
    correct = _image(result, "correct")
    if correct is not None:
        epsilons = sorted(result.provenance["settings"]["epsilons"])
        places = [Number("pgd_accuracy", f"epsilon {epsilon:g}") for epsilon in epsilons]
        yield _samples("pgd_accuracy", places, correct[1:], shares)


def of_landscape(result: Result) -> Iterator[Series]:
    """The NLL at the centre, and its rise around it."""
    for name in ("nll", "rise"):
        values = _image(result, name)
        if values is not None and (name == "nll" or result.provenance["settings"]["directions"] == "random"):
            yield _samples(name, [Number(name)], values[None], skewed_means)


def of_hessian(result: Result) -> Iterator[Series]:
    """Of all parameters: the largest eigenvalue of each mini-batch, and the share of negative ones."""
    if any(row["block"] == "all" for row in result.table):
        largest, negative = log_largest_eigenvalue(result)[None], negative_share(result)[None]
        yield _samples("log_largest_eigenvalue", [Number("log_largest_eigenvalue")], largest, batch_means, over="mini-batches")
        yield _samples("nep", [Number("nep")], negative, shares, over="mini-batches")


def of_similarity(result: Result) -> Iterator[Series]:
    """CKA of the stream after each unit with that after the next."""
    rows = [row for row in result.table if row["other_unit"] == row["unit"] + 1]
    if rows and not result.provenance["settings"].get("other"):
        batches = max((claim.count for claim in result.claims), default=1)
        yield of_units("neighbour_cka", rows, "cka", over="mini-batches", count=batches)


def of_attention(result: Result) -> Iterator[Series]:
    """Each number, the mean over the heads of a unit; the ends are averaged alike, which is too wide rather than too short."""
    units = list(dict.fromkeys(row["unit"] for row in result.table))
    for name in ("distance", "entropy", "nmi", "high_frequency"):
        rows = [_mean_of([row for row in result.table if row["unit"] == unit], name) for unit in units]
        yield of_units(f"attention_{name}", rows, name, some_units=True)
        yield of_rows([Number(f"mean_attention_{name}")], [_mean_of(rows, name)], name)


def _mean_of(rows: Sequence[Row], column: str) -> Row:
    ends = {f"{column}{end}": float(np.mean([row[f"{column}{end}"] for row in rows])) for end in ("", "_low", "_high")}
    return {key: rows[0][key] for key in ("unit", "kind", "stage")} | ends


def highest(rows: Sequence[Row]) -> list[Row]:
    """Of the rows of each unit, the last, which is that of the highest frequency."""
    return list({row["unit"]: row for row in rows}.values())


# --- any result

#: Claims whose number is a row of the table.
SAME_AS_A_ROW = {"calibration/under-confident"}
#: Columns that describe a row and do not distinguish it.
DESCRIBING = {"kind", "stage", "module", "images", "units"}


def of_table(result: Result) -> Iterator[Series]:
    """Every column with an interval, by the columns that distinguish its rows."""
    first = result.table[0] if result.table else {}
    measured = [name for name in first if f"{name}_low" in first and f"{name}_high" in first]
    ends = {f"{name}{end}" for name in measured for end in ENDS}
    keys = [name for name, value in first.items() if name not in ends | DESCRIBING and _distinguishes(name, value)]
    groups: dict[str, list[Row]] = {}
    for row in result.table:
        groups.setdefault(", ".join(_words(key, row[key]) for key in keys), []).append(row)
    for name in measured:
        for more, rows in groups.items():
            scale = described(name).scale
            if "unit" in first:
                yield of_units(f"{name} at {more}" if more else name, rows, name, scale=scale)
            else:
                yield of_rows([Number(name, more) for _ in rows], rows, name, scale=scale)


def _distinguishes(name: str, value: Any) -> bool:
    return isinstance(value, str) or name in ("share", "severity", "frequency", "epsilon", "head")


def _words(key: str, value: Any) -> str:
    return value if isinstance(value, str) else f"{key} {value}"


def of_claims(result: Result) -> Iterator[Series]:
    """The number of each claim, by the name of the claim."""
    for claim in result.claims:
        ends = np.array([[claim.value], [claim.low], [claim.high]])
        name = claim.id.partition("/")[2]
        if np.isfinite(ends).all() and claim.id not in SAME_AS_A_ROW:
            samples = _image(result, f"claims/{name}")
            about: dict[str, Any] = {"over": claim.over, "title": claim.quantity, "count": claim.count}
            yield Series((Number(name),), ends, None if samples is None else samples[:, None], means, **about)


READERS: dict[str, Callable[[Any], Iterator[Series]]] = {
    "fourier": of_fourier,
    "variance": of_variance,
    "lesion": of_lesion,
    "calibration": of_calibration,
    "noise": of_noise,
    "corruption": of_corruption,
    "adversarial": of_adversarial,
    "landscape": of_landscape,
    "hessian": of_hessian,
    "similarity": of_similarity,
    "attention": of_attention,
}
