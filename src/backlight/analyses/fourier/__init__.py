"""Fourier analysis of feature maps: the frequencies that each unit removes, and those that it amplifies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from backlight.analyses.entry import analysis
from backlight.analyses.fourier.settings import FourierSettings

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.fourier.measure import Fourier


@analysis(
    question="Which frequencies does each unit remove, and which does it amplify?",
    paper="figures 2a, 8",
    settings=FourierSettings,
    result="Fourier",
    reducer="Spectra",
    reads_stream=True,
    by_default=True,
    example="resnet50 vit_tiny_patch16_224 --data imagenet --data-root ~/imagenet --limit 500 --out runs",
)
def fourier(
    model: nn.Module,
    data: Iterable[Any],
    *,
    at: Sequence[str] | None = None,
    radial: bool = False,
    paper: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Fourier:
    """Δ log amplitude of the stream after each unit, and each unit's transfer function, with 95% intervals over images.

    ``at`` names modules to read instead of units.  The authors' frequency axis labels the last bin 1.0π although it is lower.
    Errors: UserError if the model has no units and ``at`` is not given, or if there are no images.
    """
    from backlight.analyses.fourier.measure import Spectra
    from backlight.analyses.single_pass import alone

    settings = FourierSettings(radial=radial, paper=paper)
    return alone(Spectra, settings, model, data, at=at, name=name, resamples=resamples, seed=seed)
