"""A private copy of a model whose weights are moved about, and the images it is evaluated on: the same at every point."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from ..evidence import device_of, dtype_of, sha256
from ..numerics.plane import Weights
from ..objective import Objective, reestimated, refuse_other_targets, use_batch_statistics
from ..trace import plain_attention, tensors
from .single_pass import refuse_other_classes, split

Loss = Callable[[Tensor, Tensor], Tensor]

#: Images in a forward pass: more no longer fit the caches of a CPU (measured: 1,000 at once take 1.4 times as long).
AT_ONCE = 128


# --- the images


@dataclass(frozen=True)
class Images:
    """The batches that are evaluated at every point, where the model lives."""

    batches: list[tuple[Tensor, Tensor]]

    @classmethod
    def held(cls, model: nn.Module, data: Iterable[Any], objective: Objective) -> Images:
        """All of the data.  Batches are joined and cut to a size that is fast, but where their statistics are used.

        Errors: UserError if there are no images, or their targets do not fit the model.
        """
        given = []
        for images, targets in split(data):
            if targets is None:
                raise UserError("a landscape is one of a loss, and the data give no labels to compute it from")
            given.append((images.to(device_of(model), dtype_of(model)), targets.to(device_of(model))))
        if not given:
            raise UserError("no images: the data are empty")
        if objective.statistics == "running" and len({(x.shape[1:], y.shape[1:], y.dtype) for x, y in given}) == 1:
            joined = [torch.cat(parts) for parts in zip(*given, strict=True)]
            given = list(zip(*(part.split(AT_ONCE) for part in joined), strict=True))
        _refuse_unfit_targets(model, given, objective, data)
        return cls(given)

    @property
    def count(self) -> int:
        return sum(len(images) for images, _ in self.batches)

    def channels_last(self) -> Images:
        """The same in the order in which bfloat16 is fast."""
        return Images([(x.to(memory_format=torch.channels_last), y) for x, y in self.batches])

    def sha256(self) -> str:
        return sha256(*({f"images {i}": x, f"targets {i}": y} for i, (x, y) in enumerate(self.batches)))

    def scores(self, model: nn.Module, objective: Objective) -> np.ndarray:
        """Loss, correct (0 or 1) and confidence of each image; what is not a number stays so.  Shapes: -> (3, n) float64.

        A soft target counts as the class it gives most.
        """
        with reestimated(model, self.batches) if objective.statistics == "re-estimated" else nullcontext():
            return torch.cat([_scores(model, *batch, objective.loss) for batch in self.batches], 1).cpu().numpy()


def _scores(model: nn.Module, images: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Shapes: (B, C, H, W) and targets -> (3, B)."""
    logits = next(tensors(model(images)))
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    label = targets.argmax(1) if targets.ndim == 2 else targets
    confidence, prediction = logits.softmax(1).max(1)
    correct = torch.where(confidence.isnan(), confidence, (prediction == label).to(confidence))
    return torch.stack([loss(logits, targets).to(confidence), correct, confidence]).double()


def _refuse_unfit_targets(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], objective: Objective, data: Any) -> None:
    """Errors: UserError if the model has no loss on these batches; told by two images."""
    images, targets = batches[0]
    moved = copied(model)
    with torch.inference_mode(), plain_attention():
        logits = next(tensors(moved(images[:2])))
        refuse_other_classes(logits, data)
        for _, each in batches:
            refuse_other_targets(logits, each)
        objective.losses(moved, images[:2], targets[:2])


# --- the weights


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def refuse_unfit(model: nn.Module) -> None:
    """Errors: UserError if the model has no weights to move, or some that are not finite or too coarse."""
    if not trained(model):
        raise UserError(f"{type(model).__name__} has no parameter that is trained (requires_grad), so there is nothing to move")
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"{name} holds values that are not finite, so the model has no loss to look around from")
    if (kind := dtype_of(model)) not in (torch.float32, torch.float64):
        coarse = str(kind).removeprefix("torch.")
        raise UserError(f"the model is in {coarse}, too coarse to move it: give it in float32, and precision='bfloat16'")


def copied(model: nn.Module, statistics: str = "running") -> nn.Module:
    """A private copy in evaluation mode that needs no gradients; with ``"batch"``, its batch norms use those of each batch."""
    try:
        found = copy.deepcopy(model).eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{type(model).__name__} cannot be copied, and a landscape moves a copy: {error}") from error
    if statistics == "batch":
        use_batch_statistics(found)
    return found


class Mover:
    """A private copy of a model whose trained weights are put at points of a plane, in place and all at once.

    A point costs about three passes over the weights: under a hundredth of a forward pass over some hundred images.
    """

    def __init__(self, model: nn.Module, directions: Sequence[Weights], statistics: str = "running") -> None:
        self.model = copied(model, statistics)
        centre, own = trained(model), dict(self.model.named_parameters())
        self.centre = list(centre.values())
        self.directions = [[d[name] for name in centre] for d in directions]
        self.moved: list[Tensor] = [own[name] for name in centre]

    @torch.no_grad()
    def at(self, *coordinates: float) -> nn.Module:
        """The copy with its weights at the centre plus coordinates times directions; what is beyond the directions is 0."""
        torch._foreach_copy_(self.moved, self.centre)
        for coordinate, direction in zip(coordinates, self.directions, strict=False):
            torch._foreach_add_(self.moved, direction, alpha=float(coordinate))
        return self.model


class Rounded:
    """The same, computing in bfloat16: the weights are moved in full and then rounded, once.

    Batch norms stay in float32: a variance of three digits would be all that is left of their ratios.  So do the first and the
    last layer, whose few weights do not average their rounding out: on a ResNet-18 it made most of the error.
    """

    def __init__(self, mover: Mover, images: Images) -> None:
        self.mover = mover
        self.model = copy.deepcopy(mover.model).to(torch.bfloat16)
        self.model = self.model.to(memory_format=torch.channels_last)
        own, rounded = dict(mover.model.named_modules()), dict(self.model.named_modules())
        ends = _ends(mover.model, images.batches[0][0][:2])
        for name in {*ends, *(name for name, module in own.items() if isinstance(module, _BatchNorm))}:
            rounded[name].float().load_state_dict(own[name].state_dict())
        for name, module in rounded.items():
            if name and [*module.parameters(recurse=False)] and not isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(_in_own_type)
        if len(ends) > 1:
            rounded[ends[0]].register_forward_hook(lambda module, args, output: output.to(torch.bfloat16))
        places = {id(p): name for name, p in mover.model.named_parameters()}
        exact = dict(self.model.named_parameters())
        self.moved: list[Tensor] = [exact[places[id(p)]] for p in mover.moved]

    @torch.no_grad()
    def at(self, *coordinates: float) -> nn.Module:
        self.mover.at(*coordinates)
        torch._foreach_copy_(self.moved, self.mover.moved)
        return self.model


def _ends(model: nn.Module, images: Tensor) -> list[str]:
    """The first and the last layer that a forward pass multiplies by weights; fewer if there are not two."""
    called: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in model.named_modules()
        if next(module.children(), None) is None and any(p.ndim > 1 for p in module.parameters())
    ]
    try:
        with torch.inference_mode(), plain_attention():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys([called[0], called[-1]])) if called else []


def _in_own_type(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a module receives, in the type of its own weights."""
    kind = next(module.parameters(recurse=False)).dtype
    return tuple(a.to(kind) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
