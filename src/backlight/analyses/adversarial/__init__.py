"""Adversarial attacks: how small a change of the pixels, aimed along the gradient, makes right answers wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from backlight.analyses.adversarial.settings import AdversarialSettings, Norm
from backlight.analyses.entry import analysis

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.adversarial.measure import Adversarial


@analysis(
    question="How small a change of the pixels, aimed along the gradient, turns right answers into wrong ones?",
    paper="its code",
    settings=AdversarialSettings,
    result="Adversarial",
    needs=("images", "labels"),
    passes=lambda s, units: 4 + len(s.epsilons_or_default) * (4 + 3 * s.steps),
    example="demo-cnn demo-vit --data fashion --limit 200 --out runs",
)
def adversarial(
    model: nn.Module,
    data: Iterable[Any],
    *,
    epsilons: Sequence[float] | None = None,
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    targeted: bool = False,
    band: Sequence[float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Adversarial:
    """Accuracy, NLL and success rate under random noise, FGSM and PGD of each epsilon, with 95% intervals over images.

    Targeted attacks aim at another class, drawn for each image; others away from the label.
    ``mean`` and ``std`` say how the images were normalised, where the data do not.  Random starts depend only on ``seed``
    and the position of an image in the data.
    Errors: UserError if a setting makes no sense, the data have no labels, or no gradient reaches the images.
    """
    from backlight.analyses.adversarial.measure import measure

    bounds, within = (tuple(x) if x is not None else None for x in (epsilons, band))
    settings = AdversarialSettings(bounds, norm, steps, step_size, random_start, targeted, within)
    return measure(model, data, settings, mean=mean, std=std, resamples=resamples, seed=seed, name=name)
