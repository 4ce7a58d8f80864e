"""Variance of feature maps: the units that average the map, and those that make its positions differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from backlight.analyses.entry import analysis
from backlight.analyses.variance.settings import Over, VarianceSettings

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.variance.measure import Variance


@analysis(
    question="Which units average the feature map, and which make its positions differ?",
    paper="figure 9",
    settings=VarianceSettings,
    result="Variance",
    reducer="Variances",
    reads_stream=True,
    by_default=True,
    example="demo-vit --data fashion --limit 500",
)
def variance(
    model: nn.Module,
    data: Iterable[Any],
    *,
    at: Sequence[str] | None = None,
    over: Over = "space",
    normalise: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Variance:
    """Variance of the stream after each unit, with 95% intervals.

    Over space: over positions, for each image and channel.  Over samples: over the images of a batch, for each position and
    channel; the interval is then over batches.  Normalise because the stream grows with depth.  Unit: that of the activation,
    squared.
    """
    from backlight.analyses.single_pass import alone
    from backlight.analyses.variance.measure import Variances

    settings = VarianceSettings(over=over, normalise=normalise)
    return alone(Variances, settings, model, data, at=at, name=name, resamples=resamples, seed=seed)
