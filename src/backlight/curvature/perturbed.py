"""A copy of a model with perturbed weights, and the scores of fixed images under it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backlight.curvature.loss import Loss, Objective, reestimated, refuse_other_targets, use_batch_statistics
from backlight.devices import device_of, dtype_of
from backlight.errors import UserError
from backlight.inputs import first_tensor, image_batches, refuse_no_classifier
from backlight.numerics.weight_space import Weights
from backlight.results.provenance import sha256
from backlight.tracing.trace import copy_inputs, plain_attention

#: (images, targets).
Batch = tuple[Tensor, Tensor]

#: Images in a forward pass: more no longer fit the caches of a CPU (measured: 1,000 at once take 1.4 times as long).
FORWARD_SIZE = 128


# --- the images


def fixed_batches(model: nn.Module, data: Iterable[Any], objective: Objective) -> list[Batch]:
    """All batches of the data on the model's device; joined and cut to a fast size, unless their statistics are used.

    Errors: UserError if there are no images, or if their targets do not fit the model.
    """
    batches: list[Batch] = []
    for images, targets in image_batches(data):
        if targets is None:
            raise UserError("the data have no labels, and the loss needs them; give batches of (images, labels)")
        batches.append((images.to(device_of(model), dtype_of(model)), targets.to(device_of(model))))
    if not batches:
        raise UserError("no images: the data are empty")
    if objective.statistics == "running" and len({(x.shape[1:], y.shape[1:], y.dtype) for x, y in batches}) == 1:
        joined = [torch.cat(parts) for parts in zip(*batches, strict=True)]
        batches = list(zip(*(part.split(FORWARD_SIZE) for part in joined), strict=True))
    _refuse_unfit_targets(model, batches, objective, data)
    return batches


def _refuse_unfit_targets(model: nn.Module, batches: Sequence[Batch], objective: Objective, data: Any) -> None:
    """Errors: UserError if the model has no loss on these batches; the model runs on two images."""
    images, targets = batches[0]
    model = evaluation_copy(model)
    with torch.inference_mode(), plain_attention():
        logits = first_tensor(model(images[:2]))
        refuse_no_classifier(model, logits, data)
        for _, each in batches:
            refuse_other_targets(logits, each)
        objective.losses(model, images[:2], targets[:2])


def image_count(batches: Iterable[Batch]) -> int:
    """The number of images in all batches."""
    return sum(len(images) for images, _ in batches)


def channels_last(batches: Iterable[Batch]) -> list[Batch]:
    """The same batches in the memory format that is fast in bfloat16."""
    return [(images.to(memory_format=torch.channels_last), targets) for images, targets in batches]


def batches_sha256(batches: Iterable[Batch]) -> str:
    """A hash of all images and targets."""
    return sha256(*({f"images {i}": x, f"targets {i}": y} for i, (x, y) in enumerate(batches)))


def image_scores(model: nn.Module, batches: Sequence[Batch], objective: Objective) -> np.ndarray:
    """Loss, correctness (0 or 1) and confidence of each image; NaN stays NaN.  Shapes: -> (3, n) float64.

    The label of a soft target is its most probable class.
    """
    with reestimated(model, batches) if objective.statistics == "re-estimated" else nullcontext():
        return torch.cat([_batch_scores(model, *batch, objective.loss) for batch in batches], 1).cpu().numpy()


def _batch_scores(model: nn.Module, images: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Shapes: (B, C, H, W) and targets -> (3, B)."""
    logits = first_tensor(model(images))
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    labels = targets.argmax(1) if targets.ndim == 2 else targets
    confidence, prediction = logits.softmax(1).max(1)
    correct = torch.where(confidence.isnan(), confidence, (prediction == labels).to(confidence))
    return torch.stack([loss(logits, targets).to(confidence), correct, confidence]).double()


# --- the weights


def trainable_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def refuse_unfit_weights(model: nn.Module) -> None:
    """Errors: UserError if no weight is trainable, if one is not finite, or if their type is too coarse to perturb."""
    if not trainable_weights(model):
        raise UserError(f"{type(model).__name__} is frozen: no parameter requires a gradient, so there is nothing to move")
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"{name} holds values that are not finite, so the model has no loss")
    if (dtype := dtype_of(model)) not in (torch.float32, torch.float64):
        coarse = str(dtype).removeprefix("torch.")
        raise UserError(f"the model is in {coarse}, too coarse for small steps; give it in float32, with precision='bfloat16'")


def evaluation_copy(model: nn.Module, statistics: str = "running") -> nn.Module:
    """A copy in evaluation mode without gradients; with ``"batch"``, its batch norms use the statistics of each batch.

    Errors: UserError if the model cannot be copied.
    """
    try:
        copied = copy.deepcopy(model).eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{type(model).__name__} cannot be copied, and this analysis changes a copy: {error}") from error
    if statistics == "batch":
        use_batch_statistics(copied)
    copied.register_forward_pre_hook(copy_inputs, prepend=True)
    return copied


class PerturbedModel:
    """A copy of a model whose trainable weights are set to points of a plane, in place and all at once.

    A point costs about three passes over the weights: less than a hundredth of a forward pass over a few hundred images.
    """

    def __init__(self, model: nn.Module, directions: Sequence[Weights], statistics: str = "running") -> None:
        self.model = evaluation_copy(model, statistics)
        centre, parameters = trainable_weights(model), dict(self.model.named_parameters())
        self.centre = list(centre.values())
        self.directions = [[d[name] for name in centre] for d in directions]
        self.weights: list[Tensor] = [parameters[name] for name in centre]

    @torch.no_grad()
    def at(self, *coordinates: float) -> nn.Module:
        """The copy with its weights at the centre plus coordinates times directions; coordinates left out are 0."""
        torch._foreach_copy_(self.weights, self.centre)
        for coordinate, direction in zip(coordinates, self.directions, strict=False):
            torch._foreach_add_(self.weights, direction, alpha=float(coordinate))
        return self.model


class BFloat16PerturbedModel:
    """A `PerturbedModel` that computes in bfloat16: weights are perturbed in full precision, and then rounded once.

    Batch norms stay in float32, because bfloat16 has three digits, too few for a ratio of variances.  The first and the last
    layer stay too: they have few weights, so their rounding errors do not average out; on a ResNet-18 they made most of the
    error.
    """

    def __init__(self, perturbed: PerturbedModel, batches: Sequence[Batch]) -> None:
        self.perturbed = perturbed
        self.model = copy.deepcopy(perturbed.model).to(torch.bfloat16)
        self.model = self.model.to(memory_format=torch.channels_last)
        exact, rounded = dict(perturbed.model.named_modules()), dict(self.model.named_modules())
        ends = _first_and_last_layer(perturbed.model, batches[0][0][:2])
        for name in {*ends, *(name for name, module in exact.items() if isinstance(module, _BatchNorm))}:
            rounded[name].float().load_state_dict(exact[name].state_dict())
        for name, module in rounded.items():
            if name and [*module.parameters(recurse=False)] and not isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(_to_dtype_of_weights)
        if len(ends) > 1:
            rounded[ends[0]].register_forward_hook(lambda module, args, output: output.to(torch.bfloat16))
        names = {id(p): name for name, p in perturbed.model.named_parameters()}
        parameters = dict(self.model.named_parameters())
        self.weights: list[Tensor] = [parameters[names[id(p)]] for p in perturbed.weights]

    @torch.no_grad()
    def at(self, *coordinates: float) -> nn.Module:
        """The copy at this point of the plane, its weights rounded."""
        self.perturbed.at(*coordinates)
        torch._foreach_copy_(self.weights, self.perturbed.weights)
        return self.model


def _first_and_last_layer(model: nn.Module, images: Tensor) -> list[str]:
    """The names of the first and the last layer with a matrix or kernel in a forward pass; fewer if there are not two."""
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


def _to_dtype_of_weights(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a module in the type of its weights."""
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
