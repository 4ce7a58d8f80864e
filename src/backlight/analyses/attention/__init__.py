"""Attention: how far each head attends, how evenly, and how much that depends on the query."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from backlight.analyses.entry import NoSettings, analysis

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.attention.measure import Attention


@analysis(
    question="How far does each head attend, how evenly, and does it depend on the query?",
    paper="Park et al. 2023",
    settings=NoSettings,
    result="Attention",
    reducer="Heads",
    needs=("images", "attention"),
    example="demo-vit demo-alternet --data fashion --limit 500 --out runs",
)
def attention(
    model: nn.Module, data: Iterable[Any], *, resamples: int = 1000, seed: int = 0, name: str | None = None
) -> Attention:
    """Distance, entropy, normalised mutual information and the share above frequency zero of each head, with 95% intervals.

    ``data`` yields batches of images, alone or with labels.  In windows the numbers are means over windows.
    Errors: UserError if the model has no attention, if the positions of its tokens are not known, or if there are no images.
    """
    from backlight.analyses.attention.measure import Heads
    from backlight.analyses.single_pass import alone

    return alone(Heads, NoSettings(), model, data, resamples=resamples, seed=seed, name=name)
