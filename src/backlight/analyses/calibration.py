"""Calibration: how right is the model, and does it know?

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figure F.1 and the metrics of their ``ops/tests.py``, whose ECE
loses images of confidence exactly 1.0; here they are counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..anatomy import evaluating, tensors
from ..errors import UserError
from ..numerics.bootstrap import Interval, statistic_interval
from ..numerics.calibration import RANGE, Scores, reliability, scores, summary, temperature_interval
from ..result import Claim, Result, Row
from .single_pass import Anatomy, fit, refuse_other_classes, single_pass, split

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def calibration(
    model: nn.Module,
    data: Iterable[Any],
    *,
    bins: int = 10,
    temperature: bool = False,
    held_out: Iterable[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Calibration:
    """Accuracy, top-5, NLL, Brier, ECE and their kin, each with a 95% interval over images.

    With ``temperature`` also the T that makes the NLL of softmax(logits / T) least on one half of the images, drawn by the
    seed, and what it does to the metrics on the other half; with ``held_out``, batches of other images, T is fitted on those.

    Errors: UserError if the data carry no labels, or a label that the model has no output for.
    """
    settings: dict[str, Any] = {"bins": bins, "temperature": temperature}
    if held_out is not None:
        settings["temperature"] = fitted(*model_logits(model, held_out), resamples=resamples, seed=seed, on="held_out")
    (result,) = single_pass(model, data, {Confidence: settings}, name=name, resamples=resamples, seed=seed)
    return cast(Calibration, result)


@dataclass(frozen=True)
class Temperature:
    """A temperature with its 95% interval, and what it was fitted on."""

    value: float
    low: float
    high: float
    images: int
    on: str  # "half" of the images, or "held_out" data


def fitted(logits: Tensor, labels: Tensor, *, resamples: int, seed: int, on: str) -> Temperature:
    """The temperature of least NLL.  Shapes: (n, C), (n,)."""
    return Temperature(*temperature_interval(logits, labels, resamples=resamples, seed=seed), images=len(labels), on=on)


def model_logits(model: nn.Module, data: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """The model's logits for all of the data, and the labels.  Shapes: -> (n, C), (n,)."""
    kept = []
    with evaluating(model), torch.inference_mode():
        for images, labels in split(data):
            logits = next(tensors(model(fit(images, model))))
            refuse_other_classes(logits, data)
            kept.append(labelled(logits.cpu(), labels))
    if not kept:
        raise UserError("no images: the held-out data are empty")
    return torch.cat([logits for logits, _ in kept]), torch.cat([labels for _, labels in kept])


class Confidence:
    """Keeps six numbers an image; its logits too where a temperature is asked for."""

    analysis: ClassVar[str] = "calibration"
    reads_stream: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = True

    def __init__(self, anatomy: Anatomy, *, bins: int = 10, temperature: bool | Temperature = False) -> None:
        if bins < 1:
            raise UserError(f"calibration needs at least 1 bin, got {bins}")
        self.bins, self.temperature = bins, temperature
        self.kept: list[Scores] = []
        self.logits: list[tuple[Tensor, Tensor]] = []

    def read(self, place: int, maps: Tensor) -> None:
        """Calibration looks at the output alone."""

    def finish(self, logits: Tensor, labels: Tensor | None) -> None:
        logits, labels = labelled(logits, labels)
        self.kept.append(scores(logits, labels))
        if self.temperature:
            self.logits.append((logits.cpu(), labels.cpu()))

    def result(self, model: str, evidence: dict[str, Any], resamples: int, seed: int) -> Calibration:
        seen = Scores(*(np.concatenate(column) for column in zip(*self.kept, strict=True)))
        images = len(seen.label)

        def metrics(weights: np.ndarray) -> np.ndarray:
            return np.array(list(summary(seen, weights, bins=self.bins).values()))

        def diagram(weights: np.ndarray) -> np.ndarray:
            return np.stack(reliability(seen, weights, bins=self.bins))

        names = list(summary(seen, np.ones(images), bins=self.bins))
        least, most = np.transpose([RANGE.get(metric, (0, 1)) for metric in names])
        found = statistic_interval(metrics, images, resamples=resamples, seed=seed, within=(least, most))
        table = [
            {"metric": metric, "value": float(value), "low": float(low), "high": float(high)}
            for metric, value, low, high in zip(names, *found, strict=True)
        ]
        shown = statistic_interval(diagram, images, resamples=resamples, seed=seed, within=(0, 1))
        arrays = {"reliability": np.stack(shown)}  # (value, low, high) x (confidence, accuracy, share) x bins
        sure = names.index("signed_ece")
        claim = Claim.of_sign(
            "negative",
            [ends[sure] for ends in found],
            statement="The model is under-confident, as models trained with strong augmentation are.",
            source="Figure F.1",
            quantity="signed ECE, confidence minus accuracy",
        )
        if self.temperature:
            chosen, rows, arrays["reliability_scaled"] = self._scaled(resamples, seed)
            table += rows
            evidence = evidence | {"temperature": asdict(chosen)}
        return Calibration(model, table, [claim], evidence, arrays)

    def _scaled(self, resamples: int, seed: int) -> tuple[Temperature, list[Row], np.ndarray]:
        """The temperature, the metrics before and after it on images that it was not fitted on, and their diagram."""
        logits, labels = (torch.cat(column) for column in zip(*self.logits, strict=True))
        if isinstance(self.temperature, Temperature):
            chosen, tested = self.temperature, torch.arange(len(labels))
        else:
            if len(labels) < 4:
                raise UserError(f"a temperature is fitted on half of the images, and there are {len(labels)}: give 4 or more")
            half, tested = halves(len(labels), seed)
            chosen = fitted(logits[half], labels[half], resamples=resamples, seed=seed, on="half")
        before, after = (scores(logits[tested].double() / t, labels[tested]) for t in (1.0, chosen.value))

        def metrics(weights: np.ndarray) -> np.ndarray:
            both = [[summary(s, weights, bins=self.bins)[m] for m in SCALED] for s in (before, after)]
            return np.array([*both, np.subtract(both[1], both[0])])

        least, most = np.transpose([RANGE.get(metric, (0, 1)) for metric in SCALED])
        ends = np.stack([least, least, least - most]), np.stack([most, most, most - least])
        found = statistic_interval(metrics, len(tested), resamples=resamples, seed=seed, within=ends)
        rows = [{"metric": "temperature", "value": chosen.value, "low": chosen.low, "high": chosen.high}] + [
            {"metric": f"{metric}_{when}"} | _ends(found, (k, m))
            for m, metric in enumerate(SCALED)
            for k, when in enumerate(("unscaled", "scaled", "scaled_change"))
        ]

        def diagram(weights: np.ndarray) -> np.ndarray:
            return np.stack(reliability(after, weights, bins=self.bins))

        shown = statistic_interval(diagram, len(tested), resamples=resamples, seed=seed, within=(0, 1))
        return chosen, rows, np.stack(shown)


#: What a temperature can change: the order of the classes, and with it the accuracy, stays.
SCALED = ("nll", "brier", "ece", "signed_ece", "adaptive_ece")


def halves(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """The images in two random halves, each in order; the same on every machine, as `data.stratified` is."""
    order = torch.from_numpy(np.argsort(np.random.PCG64(seed).random_raw(images), kind="stable"))
    return order[: images // 2].sort().values, order[images // 2 :].sort().values


def _ends(found: Interval, at: tuple[int, int]) -> Row:
    return {end: float(x[at]) for end, x in zip(("value", "low", "high"), found, strict=True)}


def labelled(logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits (B, K) and labels (B,) that fit each other.  Errors: UserError naming what does not."""
    if labels is None:
        raise UserError("this analysis compares predictions with labels, and the data give no tensor of them")
    if logits.ndim != 2:
        raise UserError(
            f"this analysis needs class scores of shape (images, classes), and the model returns {tuple(logits.shape)}"
        )
    if (logits >= 0).all() and (logits.float().sum(1) - 1).abs().max() < 1e-2:
        raise UserError("the model returns probabilities, and this analysis needs logits; leave out its softmax")
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise UserError(
            f"this analysis needs a class number for each of {len(logits)} images, and the data have labels of shape "
            f"{tuple(labels.shape)} and type {str(labels.dtype).removeprefix('torch.')}"
        )
    if (wrong := labels[(labels < 0) | (labels >= logits.shape[1])]).numel():
        raise UserError(
            f"the data have a label {int(wrong[0])} and the model's classes are 0 to {logits.shape[1] - 1}; "
            "give a model of this data set's classes"
        )
    return logits, labels.long()


@dataclass(frozen=True)
class Calibration(Result):
    """A row a metric with its 95% interval.

    ``arrays["reliability"]``: (value, low, high) x (confidence, accuracy, share of images) x bins; with a temperature also
    ``arrays["reliability_scaled"]``, of the images that it was not fitted on.
    """

    analysis: ClassVar[str] = "calibration"
    panels: ClassVar[tuple[str, ...]] = ("reliability",)

    def _draw(self, ax: Axes, panel: str) -> None:
        """The reliability diagram: accuracy against confidence, with the share of images in each bin."""
        from .. import drawing

        drawing.reliability(ax, self.arrays["reliability"])
        if "reliability_scaled" in self.arrays:
            confidence, accuracy, _ = self.arrays["reliability_scaled"][0]
            known = np.isfinite(confidence)
            t = next(row["value"] for row in self.table if row["metric"] == "temperature")
            ax.plot(confidence[known], accuracy[known], "o-", color=drawing.KIND_COLOUR["mlp"], ms=2.5, label=f"T = {t:.2f}")
            ax.legend(**drawing.LEGEND | {"ncols": 2})
        ece = next(row for row in self.table if row["metric"] == "ece")
        ax.set_title(
            f"ECE {100 * ece['value']:.1f}% [{100 * ece['low']:.1f}, {100 * ece['high']:.1f}]",
            pad=26 if "reliability_scaled" in self.arrays else 15,
        )
