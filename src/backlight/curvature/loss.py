"""The loss that training minimises: soft-label cross-entropy on augmented batches, plus weight decay.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), section 2, study the curvature of this loss and not of the loss on
clean images.  Cross-entropy and weight decay are reported apart: weight decay is (wd/2) ||theta||^2 over the parameters that
the optimizer decays, and its Hessian is wd times the identity on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from backlight.errors import UserError, did_you_mean
from backlight.inputs import first_tensor, refuse_no_classifier
from backlight.models.weight_decay import decays, everything
from backlight.recipes import Recipe
from backlight.tracing.trace import evaluating, in_evaluation_mode, plain_attention

#: Selects parameters by name and value.
Predicate = Callable[[str, nn.Parameter], bool]
#: (logits, targets) -> one number per image.
Loss = Callable[[Tensor, Tensor], Tensor]

#: Where batch norms take their mean and variance from.
STATISTICS = ("running", "batch", "re-estimated")


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each image in nats.  Shapes: (B, K) and targets (B,) classes or (B, K) probabilities -> (B,)."""
    return cross_entropy(logits, targets, reduction="none")


@dataclass(frozen=True)
class Objective:
    """What training minimises: the mean of ``loss`` over images, plus (weight_decay/2) ||theta||^2 over decayed parameters.

    ``loss`` maps (logits, targets) to one number per image.  ``statistics``: ``"running"``, ``"batch"`` or ``"re-estimated"``.
    Errors: UserError for unknown statistics, or a weight decay that is negative or not finite.
    """

    loss: Loss = soft_cross_entropy
    weight_decay: float = 0.0
    decayed: Predicate = everything
    statistics: str = "running"

    def __post_init__(self) -> None:
        if self.statistics not in STATISTICS:
            hint = did_you_mean(self.statistics, STATISTICS)
            raise UserError(f"statistics is {self.statistics!r}{hint}; it must be {' or '.join(STATISTICS)}")
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(f"weight_decay is {self.weight_decay!r}; it must be at least 0 and finite")

    @classmethod
    def of(cls, recipe: Recipe, model: nn.Module, *, loss: Loss = soft_cross_entropy, statistics: str = "running") -> Objective:
        """What a training of the model with this recipe minimises, on batches that are drawn with it."""
        return cls(loss, recipe.weight_decay, decays(model, decay_all=recipe.decay_all), statistics)

    def losses(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """The loss of each image, without weight decay.  Shapes: (B, C, H, W) and targets -> (B,).

        Errors: UserError if the targets do not fit the model's outputs, or if ``loss`` does not return one number per image.
        """
        logits = first_tensor(model(images))
        refuse_no_classifier(model, logits)
        refuse_other_targets(logits, targets)
        losses = self.loss(logits, targets)
        if not isinstance(losses, Tensor) or losses.shape != (len(images),):
            returned = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
            raise UserError(
                f"the loss returns {returned} for {len(images)} images; it must return one number per image (reduction='none')"
            )
        return losses

    def decay(self, parameters: Mapping[str, nn.Parameter]) -> float:
        """(weight_decay/2) ||theta||^2 of these parameters, summed in float64."""
        squares = (p.detach().double().square().sum().item() for name, p in parameters.items() if self.decayed(name, p))
        return self.weight_decay / 2 * sum(squares)


@contextmanager
def differentiable(model: nn.Module, statistics: str = "running") -> Iterator[nn.Module]:
    """Within the block the model is one fixed function of its weights, and has second derivatives.

    Dropout and drop path are off.  Batch norms use their running statistics, or with ``"batch"`` those of the batch; no
    buffer changes in either case.  Attention uses the math kernel, because the fused kernels have no second derivative.
    """
    norms = batch_norms(model)
    tracking = [norm.track_running_stats for norm in norms]
    with evaluating(model), plain_attention(), sdpa_kernel(SDPBackend.MATH):
        try:
            if statistics == "batch":
                use_batch_statistics(model)
            yield model
        finally:
            for norm, tracked in zip(norms, tracking, strict=True):
                norm.track_running_stats = tracked


@contextmanager
def reestimated(model: nn.Module, batches: Iterable[Any]) -> Iterator[nn.Module]:
    """Within the block running statistics are averages over these batches at the current weights; afterwards the old ones."""
    norms = [norm for norm in batch_norms(model) if norm.running_mean is not None]
    saved = [({name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)}, norm.momentum) for norm in norms]
    try:
        with in_evaluation_mode(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.training, norm.momentum = True, None  # None: the plain average over batches
            if norms:
                for images, _ in batches:
                    model(images)
        for norm, (_, momentum) in zip(norms, saved, strict=True):
            norm.momentum = momentum
        yield model
    finally:
        with torch.no_grad():
            for norm, (buffers, momentum) in zip(norms, saved, strict=True):
                norm.momentum = momentum
                for name, buffer in buffers.items():
                    getattr(norm, name).copy_(buffer)


def batch_norms(model: nn.Module) -> list[Any]:
    """The batch norms of a model, those of torch and of timm."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def use_batch_statistics(model: nn.Module) -> None:
    """Make batch norms use the mean and variance of the batch, and leave their buffers unchanged."""
    for norm in batch_norms(model):
        norm.training, norm.track_running_stats = True, False


def refuse_other_targets(logits: Tensor, targets: Tensor) -> None:
    """Errors: UserError if the targets have other classes than the model has outputs.  Shapes: logits (B, K)."""
    if targets.ndim == 2 and targets.shape[1] != logits.shape[1]:
        raise UserError(f"the model has {logits.shape[1]} outputs and the targets have {targets.shape[1]} classes")
    if targets.ndim == 1 and len(targets) and int(targets.max()) >= logits.shape[1]:
        raise UserError(f"the model has {logits.shape[1]} outputs and a label is {int(targets.max())}")
