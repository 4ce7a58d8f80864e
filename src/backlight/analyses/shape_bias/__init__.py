"""Shape bias: which of the two a model follows where outline and fill of a drawing disagree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from backlight.analyses.entry import NoSettings, analysis

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.shape_bias.measure import ShapeBias


@analysis(
    question="Where outline and fill disagree, which of the two does the model follow?",
    paper="its reading of figure 2b",
    settings=NoSettings,
    result="ShapeBias",
    needs=("images", "labels"),
    data=("shapes", "conflict"),
    example="runs/trained-on-shapes --out runs",
)
def shape_bias(
    model: nn.Module, data: Iterable[Any], *, resamples: int = 1000, seed: int = 0, name: str | None = None
) -> ShapeBias:
    """Of the answers that follow the outline or the fill, the share that follow the outline, with a 95% interval over images.

    ``data`` are ``load_data("shapes", split="conflict", model=model)``; the model must have been trained on ``shapes``.
    Errors: UserError for other data, or a model of other classes.
    """
    from backlight.analyses.shape_bias.measure import measure

    return measure(model, data, resamples=resamples, seed=seed, name=name)
