"""Common corruptions: how right the model is, and how well calibrated, on noisy, blurred, foggy or compressed images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backlight.analyses.corruption.settings import CorruptionSettings
from backlight.analyses.entry import BINS, analysis
from backlight.data.corruption_names import COMMON, SEVERITIES

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.corruption.measure import Corruption
    from backlight.files import PartialResults


@analysis(
    question="How much worse is the model on blurred, noisy, foggy, pixelated images?",
    paper="figures 12b, E.1",
    settings=CorruptionSettings,
    result="Corruption",
    needs=("images", "labels"),
    shards=True,
    passes=lambda s, units: 1 + len(s.corruptions) * len(s.severities),
    example="demo-cnn demo-vit --data fashion --limit 200 --out runs",
)
def corruption(
    model: nn.Module,
    data: Iterable[Any],
    *,
    corruptions: Sequence[str] = COMMON,
    severities: Sequence[int] = SEVERITIES,
    folder: str | Path | None = None,
    strengths: str = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bins: int = BINS,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
    partial_results: PartialResults | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Corruption:
    """Accuracy, NLL and ECE under each corruption and severity, and their changes, with paired 95% intervals over images.

    The images are corrupted on the fly, at the size that the model receives, in threads beside the forward pass; or they are
    read from the official ``folder`` (CIFAR-10-C, CIFAR-100-C, ImageNet-C), whose images must be those of ``data``, in order.
    ``mean`` and ``std`` say how the images
    were normalised where the data do not.  What is random in an image depends on the seed and its position in the data.

    ``shard=(rank, world)`` computes a share of the corruptions and severities, beside the clean images, and stores it in
    ``partial_results``, of this model and these images alone; the result is complete, with means over all and mCE, once
    ``provenance["missing_rows"]`` is empty.

    Errors: UserError for an unknown corruption or severity, for data without labels or of unknown normalisation, and
    for a folder whose images are not those of the data; Unavailable for a missing library or file.
    """
    from backlight.analyses.corruption.measure import measure

    official = str(folder) if folder is not None else None
    settings = CorruptionSettings(corruptions, tuple(severities), official, strengths, bins)  # type: ignore[arg-type]
    return measure(
        model, data, settings, mean=mean, std=std, resamples=resamples, seed=seed, name=name, partial_results=partial_results,
        shard=shard,
    )  # fmt: skip
