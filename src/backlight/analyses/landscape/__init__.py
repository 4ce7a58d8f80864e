"""Loss landscape: the loss around the trained weights, along a line or over a plane."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from backlight.analyses.entry import BINS, Track, TrainingLoss, analysis
from backlight.analyses.landscape.settings import IGNORED, LandscapeSettings

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.landscape.measure import Landscape
    from backlight.curvature.directions import Snapshot
    from backlight.curvature.loss import Loss, Predicate
    from backlight.files import PartialResults


@analysis(
    question="How does the loss rise around the trained weights?",
    paper="figure 1a",
    settings=LandscapeSettings,
    result="Landscape",
    needs=("images", "labels"),
    data=("fashion", "train"),
    training_loss=TrainingLoss(batch_size=64, images=512),
    shards=True,
    passes=lambda s, units: s.grid**s.dimensions + 2 * s.dimensions + 1,
    example="demo-cnn demo-vit --data fashion --grid 11 --limit 128 --out runs",
)
def landscape(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    grid: int = 21,
    radius: float = 1.0,
    dimensions: int = 2,
    directions: str = "random",
    snapshots: Sequence[Snapshot] = (),
    normalise: str | None = None,
    ignore: Sequence[str] = IGNORED,
    loss: Loss | None = None,
    weight_decay: float | None = None,
    decay_all: bool | None = None,
    decayed: Predicate | None = None,
    precision: str = "float32",
    statistics: str = "running",
    paper: bool = False,
    bins: int = BINS,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
    partial_results: PartialResults | None = None,
    shard: tuple[int, int] = (0, 1),
    track: Track = iter,
) -> Landscape:
    """NLL, weight decay, their sum, accuracy and ECE at ``grid`` points along each direction, with 95% intervals over images.

    ``batches``: pairs (images, targets), with classes or probabilities as targets; all stay in memory and are used at every
    point.  ``radius`` is in units of the directions: the model's own filters for random directions, Euclidean length for
    eigenvectors of the Hessian, the farthest snapshot for the principal axes of a path.  Only parameters that require a
    gradient move.  ``loss`` (default: soft-label cross-entropy) returns
    one number per image.  ``weight_decay`` and ``decay_all`` default to those of the batches' recipe, as for `hessian`;
    ``decayed`` selects the parameters that decay in their place.  ``precision="bfloat16"`` compares up
    to nine points with float32.  ``partial_results`` stores each
    finished row of the grid, so that a killed run resumes; ``shard=(rank, world)`` computes a share of the rows; ``track``
    wraps the rows to show progress.
    Errors: UserError if there are no images, if targets do not fit the model, or if no weight can move or some are not finite.
    """
    from backlight.analyses.landscape.measure import measure

    settings = LandscapeSettings(
        grid=grid, radius=radius, dimensions=dimensions, directions=directions, normalise=normalise, ignore=tuple(ignore),
        weight_decay=weight_decay, decay_all=decay_all, precision=precision, statistics=statistics, paper=paper, bins=bins,
    )  # fmt: skip
    return measure(
        model, batches, settings, snapshots=snapshots, loss=loss, decayed=decayed, resamples=resamples, seed=seed, name=name,
        partial_results=partial_results, shard=shard, track=track,
    )  # fmt: skip
