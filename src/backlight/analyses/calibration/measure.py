"""Calibration: the accuracy of a model, and whether its confidence agrees with it.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figure F.1 and the metrics of their ``ops/tests.py``.  Their ECE
omits images of confidence exactly 1.0; here they count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from backlight.analyses.calibration.settings import CalibrationSettings
from backlight.analyses.chance import Answers
from backlight.analyses.single_pass import Reads, Streams, alone
from backlight.errors import UserError
from backlight.inputs import checked_labels, first_tensor, image_batches, refuse_no_classifier, to_model
from backlight.numerics.bootstrap import skewed_mean_interval, statistic_interval
from backlight.numerics.calibration import (
    RANGE,
    Scores,
    counted,
    debiased_ece,
    reliability,
    scores,
    summary,
    temperature_interval,
)
from backlight.numerics.proportions import proportion_interval
from backlight.results.claim import Claim
from backlight.results.result import Result, Row
from backlight.settings import Settings
from backlight.tracing.trace import evaluating

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray
ENDS = ("value", "low", "high")

#: What a temperature can change.  The order of the classes stays, and so does the accuracy.
SCALED_METRICS = ("nll", "brier", "ece", "signed_ece", "adaptive_ece")


def measure(
    model: nn.Module,
    data: Iterable[Any],
    settings: CalibrationSettings,
    *,
    held_out: Iterable[Any] | None,
    resamples: int,
    seed: int,
    name: str | None,
) -> Calibration:
    """The result of `backlight.calibration` with these settings."""
    used: CalibrationSettings | FixedTemperature = settings
    if held_out is not None:
        temperature = fit_temperature(*model_logits(model, held_out), resamples=resamples, seed=seed, on="held_out")
        used = FixedTemperature(settings.bins, temperature)
    return alone(Confidence, used, model, data, name=name, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class Temperature:
    """A temperature with its 95% interval, and the images that it was fitted on."""

    value: float
    low: float
    high: float
    images: int
    on: str  # "half" of the images, or "held_out" data


@dataclass(frozen=True)
class FixedTemperature(Settings):
    """The settings of a calibration whose temperature was fitted on held-out data."""

    bins: int
    temperature: Temperature


def fit_temperature(logits: Tensor, labels: Tensor, *, resamples: int, seed: int, on: str) -> Temperature:
    """The temperature that minimises the NLL.  Shapes: (n, K), (n,)."""
    return Temperature(*temperature_interval(logits, labels, resamples=resamples, seed=seed), images=len(labels), on=on)


def model_logits(model: nn.Module, data: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """The model's logits for all images of the data, and the labels.  Shapes: -> (n, K), (n,).

    Errors: UserError if there are no images, or if the labels do not fit the logits.
    """
    batches = []
    with evaluating(model), torch.inference_mode():
        for images, labels in image_batches(data):
            logits = first_tensor(model(to_model(images, model)))
            refuse_no_classifier(model, logits, data)
            batches.append(checked_labels(logits.cpu(), labels))
    if not batches:
        raise UserError("no images: the held-out data are empty")
    return torch.cat([logits for logits, _ in batches]), torch.cat([labels for _, labels in batches])


def halves(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """The numbers of the images in two random halves, each in ascending order; the same on every machine.

    Shapes: -> (n // 2,), (n - n // 2,).
    """
    order = torch.from_numpy(np.argsort(np.random.PCG64(seed).random_raw(images), kind="stable"))
    return order[: images // 2].sort().values, order[images // 2 :].sort().values


class Confidence:
    """Stores six numbers of each image; for a temperature also its logits."""

    analysis: ClassVar[str] = "calibration"
    reads: ClassVar[Reads] = "labels"

    def __init__(self, streams: Streams, settings: CalibrationSettings | FixedTemperature) -> None:
        self.bins, self.temperature = settings.bins, settings.temperature
        self.subset = torch.tensor(streams.subset)
        self.scores: list[Scores] = []
        self.restricted: list[Scores] = []  # among the classes of the data, where these are some of the model's
        self.answers = Answers()
        self.logits: list[tuple[Tensor, Tensor]] = []

    def read(self, tap: int, maps: Tensor) -> None:
        """Calibration reads the output alone."""

    def finish(self, logits: Tensor, labels: Tensor | None) -> None:
        """Store the scores of a batch.  Shapes: (B, K), (B,)."""
        logits, labels = checked_labels(logits, labels)
        self.scores.append(scores(logits, labels))
        if 1 < len(self.subset) < logits.shape[1]:
            among = self.subset.to(logits.device)
            self.restricted.append(scores(logits[:, among], torch.searchsorted(among, labels)))
        self.answers.add(logits, labels)
        if self.temperature:
            self.logits.append((logits.cpu(), labels.cpu()))

    def result(self, model: str, provenance: dict[str, Any], resamples: int, seed: int) -> Calibration:
        """All metrics with their intervals, and the reliability diagram."""
        per_image = joined(self.scores)
        table = self._rows(per_image, resamples, seed)
        correct = (per_image.prediction == per_image.label).astype(np.float64)
        arrays = {
            "reliability": self._diagram(per_image, resamples, seed),
            "per_image/correct": correct.astype(np.float32),
            "per_image/scores": np.stack(per_image),
        }
        signed = next(row for row in table if row["metric"] == "signed_ece")
        claim = Claim.of_sign(
            "negative",
            [signed[end] for end in ENDS],
            id="calibration/under-confident",
            count=len(correct),
            statement="The model is under-confident, as models trained with strong augmentation are.",
            source="Figure F.1",
            quantity="signed ECE, confidence minus accuracy",
        )
        if self.restricted:
            rows = self._rows(joined(self.restricted), resamples, seed)
            table += [row | {"metric": f"{row['metric']}_restricted"} for row in rows]
        provenance = provenance | self.answers.caution(provenance)
        if self.temperature:
            temperature, rows, arrays["reliability_scaled"] = self._scaled(resamples, seed)
            table += rows
            provenance = provenance | {"temperature": asdict(temperature)}
        return Calibration(model, table, [claim], provenance, arrays)

    def _rows(self, per_image: Scores, resamples: int, seed: int) -> list[Row]:
        """Every metric of these images with its interval."""
        images = len(per_image.label)

        def metrics(weights: Array) -> Array:
            return np.array(list(summary(per_image, weights, bins=self.bins).values()))

        names = list(summary(per_image, np.ones(images), bins=self.bins))
        intervals = statistic_interval(metrics, images, resamples=resamples, seed=seed, within=_ranges(names))
        for metric, (count, among) in counted(per_image).items() if images > 1 else ():
            _, intervals.low[names.index(metric)], intervals.high[names.index(metric)] = proportion_interval(count, among)
        for metric, samples in (("nll", per_image.nll), ("brier", per_image.brier)):
            _, low, high = skewed_mean_interval(samples, resamples=resamples, seed=seed)
            least, most = RANGE[metric]
            intervals.low[names.index(metric)], intervals.high[names.index(metric)] = np.clip([low, high], least, most)
        table: list[Row] = [
            {"metric": metric, "value": float(value), "low": float(low), "high": float(high)}
            for metric, value, low, high in zip(names, *intervals, strict=True)
        ]
        correct = (per_image.prediction == per_image.label).astype(np.float64)
        debiased = debiased_ece(per_image.confidence, correct, self.bins, resamples, seed)
        return [*table, {"metric": "ece_debiased"} | dict(zip(ENDS, map(float, debiased), strict=True))]

    def _scaled(self, resamples: int, seed: int) -> tuple[Temperature, list[Row], Array]:
        """The temperature, the metrics without and with it on images that it was not fitted on, and their diagram."""
        logits, labels = (torch.cat(column) for column in zip(*self.logits, strict=True))
        temperature, tested = self._temperature(logits, labels, resamples, seed)
        before, after = (scores(logits[tested].double() / t, labels[tested]) for t in (1.0, temperature.value))

        def metrics(weights: Array) -> Array:
            values = [[summary(s, weights, bins=self.bins)[metric] for metric in SCALED_METRICS] for s in (before, after)]
            return np.array([*values, np.subtract(values[1], values[0])])

        least, most = _ranges(SCALED_METRICS)
        within = np.stack([least, least, least - most]), np.stack([most, most, most - least])
        intervals = statistic_interval(metrics, len(tested), resamples=resamples, seed=seed, within=within)
        rows = [{"metric": "temperature", "value": temperature.value, "low": temperature.low, "high": temperature.high}] + [
            {"metric": f"{metric}_{when}"}
            | {end: float(values[k, m]) for end, values in zip(("value", "low", "high"), intervals, strict=True)}
            for m, metric in enumerate(SCALED_METRICS)
            for k, when in enumerate(("unscaled", "scaled", "scaled_change"))
        ]
        return temperature, rows, self._diagram(after, resamples, seed)

    def _temperature(self, logits: Tensor, labels: Tensor, resamples: int, seed: int) -> tuple[Temperature, Tensor]:
        """The temperature, and the numbers of the images that it was not fitted on."""
        if isinstance(self.temperature, Temperature):
            return self.temperature, torch.arange(len(labels))
        if len(labels) < 4:
            raise UserError(f"a temperature is fitted on half of the images, and there are {len(labels)}: give 4 or more")
        fitted, tested = halves(len(labels), seed)
        return fit_temperature(logits[fitted], labels[fitted], resamples=resamples, seed=seed, on="half"), tested

    def _diagram(self, per_image: Scores, resamples: int, seed: int) -> Array:
        """The reliability diagram: (value, low, high) x (confidence, accuracy, share) x bins."""

        def diagram(weights: Array) -> Array:
            return np.stack(reliability(per_image, weights, bins=self.bins))

        images = len(per_image.label)
        intervals = np.stack(statistic_interval(diagram, images, resamples=resamples, seed=seed, within=(0, 1)))
        if images > 1:
            _, accuracy, share = intervals[0]  # from which the numbers of images follow
            inside = np.round(share * images)
            right = np.round(np.where(inside > 0, accuracy, 0) * inside)
            intervals[1:, 1], intervals[1:, 2] = (
                proportion_interval(k, n)[1:] for k, n in ((right, inside), (inside, np.full_like(inside, images)))
            )
        return intervals


def joined(batches: Iterable[Scores]) -> Scores:
    """The scores of all batches."""
    return Scores(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def _ranges(metrics: Iterable[str]) -> tuple[Array, Array]:
    """The smallest and the largest possible value of each metric."""
    least, most = np.transpose([RANGE.get(metric, (0, 1)) for metric in metrics])
    return least, most


@dataclass(frozen=True, repr=False)
class Calibration(Result):
    """One row per metric, with its 95% interval.

    ``arrays["reliability"]``: (value, low, high) x (confidence, accuracy, share of images) x bins.  With a temperature also
    ``arrays["reliability_scaled"]``, for the images that the temperature was not fitted on.  ``arrays["per_image/correct"]``:
    1 for each image with a right answer, 0 for each other.  ``arrays["per_image/scores"]``: the numbers of `Scores` x images.
    """

    analysis: ClassVar[str] = "calibration"
    panels: ClassVar[tuple[str, ...]] = ("reliability",)

    def _draw(self, ax: Axes, panel: str) -> None:
        """The reliability diagram: accuracy against confidence, with the share of images in each bin."""
        from backlight.results import figures

        figures.reliability(ax, self.arrays["reliability"])
        figures.label(ax, self.chart(panel))
        rows = {row["metric"]: row for row in self.table}
        scaled = "reliability_scaled" in self.arrays
        if scaled:
            confidence, accuracy, _ = self.arrays["reliability_scaled"][0]
            filled = np.isfinite(confidence)
            label = f"T = {rows['temperature']['value']:.2f}"
            ax.plot(confidence[filled], accuracy[filled], "o-", color=figures.KIND_COLOUR["mlp"], ms=2.5, label=label)
            ax.legend(**figures.LEGEND | {"ncols": 2})
        value, low, high = (100 * rows["ece_debiased"][end] for end in ("value", "low", "high"))
        plain = 100 * rows["ece"]["value"]
        ax.set_title(f"ECE {plain:.1f}%, debiased {value:.1f}% [{low:.1f}, {high:.1f}]", pad=26 if scaled else 15)
