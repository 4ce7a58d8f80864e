"""Similarity: the units that represent the images alike, and whether the stages of a model stand out as blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from backlight.analyses.entry import analysis
from backlight.analyses.similarity.settings import SimilaritySettings

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.similarity.measure import Similarity


@analysis(
    question="Which units represent the images alike, and do the stages stand out as blocks?",
    paper="figure 10a",
    settings=SimilaritySettings,
    result="Similarity",
    reducer="Grams",
    reads_stream=True,
    by_default=True,
    example="demo-cnn demo-vit --data fashion --limit 500 --out runs",
)
def similarity(
    model: nn.Module,
    data: Iterable[Any],
    *,
    other: nn.Module | None = None,
    branch: bool = False,
    at: Sequence[str] | None = None,
    other_at: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
    other_name: str | None = None,
) -> Similarity:
    """Unbiased CKA between all units of a model, or those of a model and an ``other``, with 95% intervals over mini-batches.

    Both models see the same images, as ``data`` yields them.  ``at`` and ``other_at`` name modules to read instead of units.
    Errors: UserError if a model has no units and its
    modules are not named, if there are no images, or if all batches have fewer than 4.
    """
    from backlight.analyses.similarity.measure import measure

    return measure(
        model, data, other=other, branch=branch, at=at, other_at=other_at, resamples=resamples, seed=seed, name=name,
        other_name=other_name,
    )  # fmt: skip
