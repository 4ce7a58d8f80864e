"""Lesion study: how much worse a trained model is without one of its units."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from backlight.analyses.entry import analysis
from backlight.analyses.lesion.settings import LesionSettings

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.lesion.measure import Lesion
    from backlight.files import PartialResults


@analysis(
    question="How much worse is the model without one of its units?",
    paper="figure 10b",
    settings=LesionSettings,
    result="Lesion",
    needs=("images", "labels"),
    shards=True,
    by_default=True,
    passes=lambda s, units: 1 + 0.5 * (units + s.pairs),  # what finished before a unit is not computed again
    example="demo-alternet --data fashion --limit 500 --out runs",
)
def lesion(
    model: nn.Module,
    data: Iterable[Any],
    *,
    replace: str = "zero",
    by: str = "accuracy",
    heads: bool = False,
    branches: bool = False,
    pairs: int = 0,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
    partial_results: PartialResults | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Lesion:
    """Accuracy and NLL without each unit, and the change from the intact model with a paired 95% interval over images.

    ``by="similarity"`` needs no labels: 1 minus the cosine between the outputs without the unit and those of the intact model.
    Pairs are drawn at random if there are more.  The images are read once (with ``replace="mean"`` twice); each batch runs
    once intact and once for each lesion.  Units that cannot be removed are left out and named in the provenance.
    ``shard=(rank, world)`` computes a share of the lesions, beside the intact model, and stores it in ``partial_results``, of
    this model and these images alone; the result is complete, with its claims, once ``provenance["missing_rows"]`` is empty.
    Errors: UserError if the model has no residual units that can be removed, or the data no labels; NotApplicable if
    the outputs are no class scores.
    """
    from backlight.analyses.lesion.measure import measure

    settings = LesionSettings(replace=replace, by=by, heads=heads, branches=branches, pairs=pairs)
    return measure(
        model, data, settings, resamples=resamples, seed=seed, name=name, partial_results=partial_results, shard=shard
    )
