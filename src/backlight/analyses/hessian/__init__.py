"""Hessian max-eigenvalue spectrum: the convexity and the sharpness of the loss that training minimises."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from backlight.analyses.entry import Track, TrainingLoss, analysis
from backlight.analyses.hessian.settings import HessianSettings

if TYPE_CHECKING:
    from torch import nn

    from backlight.analyses.hessian.measure import HessianSpectrum
    from backlight.files import PartialResults


#: Hessian-vector products for the largest 5 eigenvalues of a mini-batch, and what one costs in forward passes.
PRODUCTS, PRODUCT = 30, 5


@analysis(
    question="Are some of the largest Hessian eigenvalues of the training loss negative, and how sharp is the loss?",
    paper="figures 1b, 4, 6",
    settings=HessianSettings,
    result="HessianSpectrum",
    needs=("images", "labels"),
    data=("fashion", "train"),
    training_loss=TrainingLoss(batch_size=16, images=320, size_matters=True),
    passes=lambda s, units: 1 + PRODUCT * (PRODUCTS if not s.paper else 100 * s.top),
    example="demo-cnn demo-vit --data fashion --batches 8 --out runs",
)
def hessian(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    top: int = 5,
    tol: float = 1e-3,
    by: str | None = None,
    weight_decay: float | None = None,
    decay_all: bool | None = None,
    statistics: str = "running",
    paper: bool = False,
    together: int = 1,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
    partial_results: PartialResults | None = None,
    track: Track = iter,
) -> HessianSpectrum:
    """The ``top`` Hessian eigenvalues by magnitude of each mini-batch, and their summary, with intervals over batches.

    ``batches``: pairs (images, targets) as training sees them; see ``draw_batches``.  ``weight_decay`` and ``decay_all``
    default to those of the batches' recipe; for batches of another source, of the recipe saved with the model, else of
    ``cifar``.  ``together`` takes as many times the memory of one batch.
    ``partial_results`` stores each finished batch, so that a killed run resumes; ``track`` wraps the batches to show progress.
    Errors: UserError as for `curvature.hessian.Hessian`, and for a setting out of bounds.
    """
    from backlight.analyses.hessian.measure import measure

    settings = HessianSettings(
        top=top, tol=tol, by=by, weight_decay=weight_decay, decay_all=decay_all, statistics=statistics, paper=paper,
        together=together,
    )  # fmt: skip
    return measure(
        model, batches, settings, resamples=resamples, seed=seed, name=name, partial_results=partial_results, track=track
    )
