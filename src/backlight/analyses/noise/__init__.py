"""Noise by frequency: what noise of each band of frequencies costs a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from backlight.analyses.entry import analysis
from backlight.analyses.noise.settings import FREQUENCIES, NoiseSettings

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.noise.measure import Noise


@analysis(
    question="Which frequencies of noise hurt the model?",
    paper="figure 2b",
    settings=NoiseSettings,
    result="Noise",
    needs=("images", "labels"),
    passes=lambda s, units: 1 + len(s.frequencies) * len(s.severities_or_default) + (s.basis**2 + 1) // 2,
    example="demo-cnn demo-vit --data fashion --limit 500 --out runs",
)
def noise(
    model: nn.Module,
    data: Iterable[Any],
    *,
    frequencies: Sequence[float] = FREQUENCIES,
    width: float = 0.1,
    severities: Sequence[float] | None = None,
    paper: bool = False,
    clip: bool = True,
    basis: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Noise:
    """Accuracy and NLL under noise of each band and severity, and their change with paired 95% intervals over images.

    A severity is the root mean square of every image's noise, the same in each band; with ``paper`` that of the white noise
    before the mask, so that a band of more frequencies has more energy.  The heat map is at the middle severity.
    ``mean`` and ``std`` say how the images were normalised, where the data do not.  The noise of an image depends only
    on ``seed`` and on its position in the data.
    Errors: UserError if a setting makes no sense for these images, or the data have no labels.
    """
    from backlight.analyses.noise.measure import measure

    settings = NoiseSettings(tuple(frequencies), width, severities, paper, clip, basis)  # type: ignore[arg-type]
    return measure(model, data, settings, mean=mean, std=std, resamples=resamples, seed=seed, name=name)
