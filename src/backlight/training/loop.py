"""The training loop: an iterator over its steps, so that the caller prints, saves or stops in a few lines around it.

for step in train(model, images, recipe):
    print(step.epoch, step.loss)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backlight.data.training_batches import training_batch
from backlight.data.training_images import ImagesInMemory, TrainingImages
from backlight.data.training_sampling import MicroBatch, micro_batches
from backlight.devices import device_of
from backlight.errors import UserError
from backlight.models.weight_decay import parameter_groups
from backlight.recipes import Recipe


def train(model: nn.Module, images: TrainingImages, recipe: Recipe, *, seed: int = 0, compile: bool = False) -> Training:
    """Train ``model`` in place, on its device; each iteration is a step.

    Under torchrun or ``accelerate launch`` each process computes its share of every batch.
    Errors: UserError for a recipe that does not fit the images, and for a loss that is not finite.
    """
    return Training(model, images, recipe, seed=seed, compile=compile)


@dataclass(frozen=True)
class Step:
    """One update of the weights."""

    step: int  # from 1
    steps: int  # of the training
    epoch: int  # from 0
    lr: float
    mean_loss: Tensor  # () soft-label cross-entropy of this process's augmented images, nats

    @property
    def loss(self) -> float:
        """The loss as a number; waits for the GPU."""
        return self.mean_loss.item()


class Training:
    """A training and its state.  Iteration resumes after ``step``; `state_dict` holds all that this needs.

    averaged: the model with the average weights of `Recipe.ema`; without ema the model itself.
    """

    def __init__(self, model: nn.Module, images: TrainingImages, recipe: Recipe, *, seed: int, compile: bool) -> None:
        self.device = device_of(model)
        self.accelerator = accelerator(self.device, recipe.precision)
        processes = self.accelerator.num_processes
        refuse_batch_size(recipe, len(images), processes)
        self.model, self.recipe, self.seed = model, recipe, seed
        # Not on the CPU: torch 2.15 frees memory twice in the backward of a channels-last convolution of one channel.
        self.memory_format = torch.channels_last if self.device.type == "cuda" else torch.preserve_format
        model.to(memory_format=self.memory_format)
        self.images: TrainingImages = images.on(self.device) if isinstance(images, ImagesInMemory) else images
        self.step, self.per_epoch = 0, len(images) // recipe.batch_size
        self.steps = recipe.epochs * self.per_epoch
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.averaged = deepcopy(model).eval() if recipe.ema else model
        self.optimizer = self.accelerator.prepare_optimizer(optimizer(model, recipe))
        self.network: Any = torch.compile(model) if compile else model
        if processes > 1:
            self.network = DistributedDataParallel(self.network, [self.device] if self.device.type == "cuda" else None)
        self._unchecked: tuple[Tensor, int, float] | None = None

    def __iter__(self) -> Iterator[Step]:
        fetched = self.images.fetch(self._micro_batches(), self.recipe.crop_scale)
        self.model.train()
        try:
            while self.step < self.steps:
                batches = [self._batch(*next(fetched)) for _ in range(self.recipe.accumulate)]
                rate = learning_rate(self.recipe, self.step, self.per_epoch)
                loss = self._update(batches, rate)
                self.step += 1
                yield Step(self.step, self.steps, (self.step - 1) // self.per_epoch, rate, loss)
            self._check()
        finally:
            self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        """Step, weights, average weights, and the state of the optimizer and of the loss scaler.

        Errors: UserError if the last loss is not finite.
        """
        self._check()
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.averaged.state_dict() if self.recipe.ema else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from the state that `state_dict` returned."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.recipe.ema:
            self.averaged.load_state_dict(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _micro_batches(self) -> Iterator[MicroBatch]:
        """This process's share of every batch that is left."""
        share = {"process": self.accelerator.process_index, "processes": self.accelerator.num_processes}
        settings = {"cropped": self.images.cropped, "seed": self.seed, **share}
        for step in range(self.step, self.steps):
            yield from micro_batches(self.recipe, len(self.images), self.images.size, step=step, **settings)

    def _batch(self, part: MicroBatch, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The model's inputs on its device, and their targets."""
        images, targets = training_batch(part, pixels.to(self.device, non_blocking=True), self.images, self.recipe)
        return images.to(memory_format=self.memory_format), targets

    def _update(self, batches: Sequence[tuple[Tensor, Tensor]], rate: float) -> Tensor:
        """Update the weights, and return the loss before.  Errors: UserError if it is not finite; the weights stay."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with explained_out_of_memory(self.recipe):
            loss = self._gradient(batches)
            self._check()
            self._unchecked = loss, self.step + 1, rate
            if self.device.type == "cpu":
                self._check()
            if self.recipe.sam:
                with sam_ascent(self.parameters, self.recipe.sam), frozen_statistics(self.model):
                    self._gradient(batches)
            if self.recipe.clip:
                self.accelerator.clip_grad_norm_(self.parameters, self.recipe.clip)
            self.optimizer.step()
        if self.recipe.ema:
            update_average(self.averaged, self.model, self.recipe.ema, self.step)
        return loss

    def _check(self) -> None:
        """Errors: UserError if the loss is not finite.  On a GPU it is checked one step later, without waiting."""
        loss, step, rate = self._unchecked or (torch.zeros(()), 0, 0.0)
        self._unchecked = None
        if not math.isfinite(loss.item()):
            at = f"at step {step}, learning rate {rate:.3g}"
            raise UserError(f"the loss is {loss.item()} {at}: lower the highest learning rate, {self.recipe.lr:g}")

    def _gradient(self, batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean loss; leaves its gradient, averaged over processes, in ``grad``.  Dropout depends on (seed, step)."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        with seeded_generators(self.device, (self.seed, self.step, self.accelerator.process_index)):
            for i, (images, targets) in enumerate(batches):
                with nullcontext() if i + 1 == len(batches) else self._unsynchronised():
                    with self.accelerator.autocast():
                        loss = nn.functional.cross_entropy(self.network(images), targets) / len(batches)
                    self.accelerator.backward(loss)
                losses.append(loss.detach().float())
        return torch.stack(losses).sum()

    def _unsynchronised(self) -> AbstractContextManager[Any]:
        """Within the block gradients stay in this process; they are averaged with the last micro-batch."""
        return self.network.no_sync() if isinstance(self.network, DistributedDataParallel) else nullcontext()


def learning_rate(recipe: Recipe, step: int, per_epoch: int) -> float:
    """Linear up to ``lr`` during the warm-up; then steps at the milestones, or half a cosine down to zero at the end.

    >>> [round(learning_rate(Recipe(epochs=4, lr=1.0, batch_size=1, warmup_epochs=2), s, 1), 3) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup, total = recipe.warmup_epochs * per_epoch, recipe.epochs * per_epoch
    if step + 1 < warmup:
        return recipe.lr * (step + 1) / warmup
    if recipe.milestones:
        return recipe.lr * recipe.decay ** sum(step >= epoch * per_epoch for epoch in recipe.milestones)
    return recipe.lr / 2 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, total - warmup)))


def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum, of the parameters that are not frozen; on a GPU the fused version."""
    groups, fused = parameter_groups(model, recipe), device_of(model).type == "cuda"
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, fused=fused)
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)


def accelerator(device: torch.device, precision: str) -> Accelerator:
    """Processes and precision.  accelerate has one state for all trainings of a program; it is reset for each."""
    single = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    AcceleratorState._reset_state(reset_partial_state=single)
    return Accelerator(cpu=device.type == "cpu", mixed_precision=precision)


def refuse_batch_size(recipe: Recipe, images: int, processes: int) -> None:
    """Errors: UserError if the batch is larger than the training set, or cannot be divided evenly."""
    if recipe.batch_size > images:
        raise UserError(f"batch_size is {recipe.batch_size}; it must be at most the {images} training images")
    if recipe.batch_size % (processes * recipe.accumulate):
        shares = f"{processes} processes" + (f" with {recipe.accumulate} micro-batches each" if recipe.accumulate > 1 else "")
        raise UserError(f"a batch of {recipe.batch_size} cannot be divided evenly among {shares}: change --batch-size")


def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average weights towards the model's.  The decay rises to ``decay``, so that the first weights count little."""
    decay = min(decay, (1 + step) / (10 + step))
    averages, values = chain(average.parameters(), average.buffers()), chain(model.parameters(), model.buffers())
    with torch.no_grad():
        for mean, value in zip(averages, values, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


@contextmanager
def sam_ascent(parameters: Sequence[Tensor], radius: float) -> Iterator[None]:
    """Within the block the weights are moved by ``radius`` along their gradient (Foret et al. 2021, equation 2)."""
    moved = [p for p in parameters if p.grad is not None]
    before = [p.detach().clone() for p in moved]
    norm = torch.stack([p.grad.norm() for p in moved]).norm()  # type: ignore[union-attr]
    with torch.no_grad():
        for p in moved:
            p.add_(p.grad * (radius / norm.clamp_min(1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(moved, before, strict=True):
                p.copy_(value)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block batch norms do not update their running statistics: SAM's second pass is at other weights."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in buffers.items():
                getattr(norm, name).copy_(buffer)


@contextmanager
def seeded_generators(device: torch.device, seed: Sequence[int]) -> Iterator[None]:
    """Within the block torch's global generators, which dropout uses, start at ``seed``; afterwards they are restored."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([2, *seed]).generate_state(1)[0]))
        yield


@contextmanager
def explained_out_of_memory(recipe: Recipe) -> Iterator[None]:
    """Within the block, running out of memory raises a UserError that says which batch to try."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "not enough memory" not in str(error):
            raise
        share = recipe.batch_size // recipe.accumulate
        raise UserError(
            f"{share} images at once do not fit into memory: try --accumulate {2 * recipe.accumulate}, which takes "
            f"{share // 2} at once with the same result except for batch norms, or --batch-size {recipe.batch_size // 2}"
        ) from error
