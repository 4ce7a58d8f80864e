"""Calibration: how right is the model, and does it know?

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figure F.1 and the metrics of their ``ops/tests.py``, whose ECE
loses images of confidence exactly 1.0; here they are counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from torch import Tensor, nn

from ..errors import UserError
from ..numerics.bootstrap import statistic_interval
from ..numerics.calibration import RANGE, Scores, reliability, scores, summary
from ..result import Claim, Result
from .single_pass import Anatomy, single_pass

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def calibration(
    model: nn.Module,
    data: Iterable[Any],
    *,
    bins: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Calibration:
    """Accuracy, top-5, NLL, Brier, ECE and their kin, each with a 95% interval over images.

    Errors: UserError if the data carry no labels, or a label that the model has no output for.
    """
    (result,) = single_pass(model, data, {Confidence: {"bins": bins}}, name=name, resamples=resamples, seed=seed)
    return cast(Calibration, result)


class Confidence:
    """Keeps six numbers an image."""

    analysis: ClassVar[str] = "calibration"
    reads_stream: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = True

    def __init__(self, anatomy: Anatomy, *, bins: int = 10) -> None:
        if bins < 1:
            raise UserError(f"calibration needs at least 1 bin, got {bins}")
        self.bins = bins
        self.kept: list[Scores] = []

    def read(self, place: int, maps: Tensor) -> None:
        """Calibration looks at the output alone."""

    def finish(self, logits: Tensor, labels: Tensor | None) -> None:
        self.kept.append(scores(*labelled(logits, labels)))

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
        return Calibration(model, table, [claim], evidence, arrays)


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

    ``arrays["reliability"]``: (value, low, high) x (confidence, accuracy, share of images) x bins.
    """

    analysis: ClassVar[str] = "calibration"
    panels: ClassVar[tuple[str, ...]] = ("reliability",)

    def _draw(self, ax: Axes, panel: str) -> None:
        """The reliability diagram: accuracy against confidence, with the share of images in each bin."""
        from .. import drawing

        drawing.reliability(ax, self.arrays["reliability"])
        ece = next(row for row in self.table if row["metric"] == "ece")
        ax.set_title(f"ECE {100 * ece['value']:.1f}% [{100 * ece['low']:.1f}, {100 * ece['high']:.1f}]", pad=15)
