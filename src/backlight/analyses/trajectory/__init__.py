"""Trajectory: the path that training took, and the loss along it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from backlight.analyses.entry import Track, TrainingLoss, analysis
from backlight.analyses.trajectory.settings import TrajectorySettings

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.trajectory.measure import Trajectory
    from backlight.curvature.directions import Snapshot
    from backlight.curvature.loss import Loss, Predicate
    from backlight.files import PartialResults


@analysis(
    question="Which path did training take, and how did the loss fall along it?",
    paper="figure 1b of the first version",
    settings=TrajectorySettings,
    result="Trajectory",
    needs=("images", "labels", "snapshots"),
    data=("fashion", "train"),
    training_loss=TrainingLoss(batch_size=64, images=512),
    passes=lambda s, units: 1 + len(s.snapshots) + s.grid**2,
    example="runs/mine --snapshots runs/mine-1 runs/mine-10 --data fashion --out runs",
)
def trajectory(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    snapshots: Sequence[Snapshot] = (),
    grid: int = 0,
    loss: Loss | None = None,
    weight_decay: float | None = None,
    decay_all: bool | None = None,
    decayed: Predicate | None = None,
    statistics: str = "running",
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
    partial_results: PartialResults | None = None,
    track: Track = iter,
) -> Trajectory:
    """The path of training through ``snapshots`` to the model: on its principal plane, in polar coordinates, and its loss.

    ``snapshots``: models or state dicts in the order of training; the model itself is added as the last.  The path consists of
    the trainable parameters; the loss at a snapshot also uses the buffers of the snapshot.  A loss
    surface over the plane is computed with the model's buffers.  ``loss``, ``weight_decay``, ``decay_all`` and
    ``decayed``: as for `landscape`.  ``track`` wraps the snapshots, then the rows of the surface, to show progress.
    Errors: UserError for fewer than three different points, or snapshots of another model.
    """
    from backlight.analyses.trajectory.measure import measure

    settings = TrajectorySettings(grid=grid, weight_decay=weight_decay, decay_all=decay_all, statistics=statistics)
    return measure(
        model, batches, settings, snapshots=snapshots, loss=loss, decayed=decayed, resamples=resamples, seed=seed, name=name,
        partial_results=partial_results, track=track,
    )  # fmt: skip
