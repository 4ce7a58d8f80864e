"""Effective receptive fields: which pixels does the middle of each unit's feature map depend on?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from backlight.analyses.entry import analysis
from backlight.analyses.erf.settings import ErfSettings

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.erf.measure import Erf


@analysis(
    question="How large a part of the image does each unit depend on?",
    paper="Luo et al. 2016; Ding et al. 2022",
    settings=ErfSettings,
    result="Erf",
    reads_stream=True,
    passes=lambda s, units: 2 + units,  # a backward pass goes back half of the model on average
    example="resnet50 vit_tiny_patch16_224 --data imagenet --data-root ~/imagenet --limit 50 --out runs",
)
def erf(
    model: nn.Module,
    data: Iterable[Any],
    *,
    at: Sequence[str] | None = None,
    shares: tuple[float, ...] = (0.2, 0.3, 0.5, 0.99),
    paper: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Erf:
    """The side and the area of the square that holds each share of the effective receptive field, after each unit.

    The field is the positive gradient of the middle of a feature map with respect to the images, summed over colours and
    images; sides are in pixels, areas are shares of the image, both with 95% intervals over images.
    ``at`` names modules to read instead of units; ``paper`` gives the numbers of RepLKNet's script, without intervals.
    Each batch takes one forward pass, and one backward pass for each unit and the stem.
    Errors: UserError if the model has no units and ``at`` is not given, if there are no images, or if no gradient reaches them.
    """
    from backlight.analyses.erf.measure import measure

    settings = ErfSettings(shares=shares, paper=paper)
    return measure(model, data, settings, at=at, resamples=resamples, seed=seed, name=name)
