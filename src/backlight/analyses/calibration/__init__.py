"""Calibration: the accuracy of a model, and whether its confidence agrees with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from backlight.analyses.calibration.settings import CalibrationSettings
from backlight.analyses.entry import BINS, analysis

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.calibration.measure import Calibration


@analysis(
    question="How accurate is the model, and does its confidence say so?",
    paper="figure F.1",
    settings=CalibrationSettings,
    result="Calibration",
    reducer="Confidence",
    needs=("images", "labels"),
    by_default=True,
    example="demo-cnn demo-vit --data fashion",
)
def calibration(
    model: nn.Module,
    data: Iterable[Any],
    *,
    bins: int = BINS,
    temperature: bool = False,
    held_out: Iterable[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Calibration:
    """Accuracy, top-5, NLL, Brier, ECE and related metrics, each with a 95% interval over images.

    With ``temperature`` also the T that minimises the NLL of softmax(logits / T) on one half of the images, drawn by the
    seed, and what it does to the metrics on the other half; with ``held_out``, batches of other images, T is fitted on those.

    Errors: UserError if the data carry no labels, or a label that the model has no output for.
    """
    from backlight.analyses.calibration.measure import measure

    settings = CalibrationSettings(bins=bins, temperature=temperature)
    return measure(model, data, settings, held_out=held_out, resamples=resamples, seed=seed, name=name)
