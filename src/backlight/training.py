"""Training, as a loop that yields its steps: what to print, save or stop is a few lines around it.

for step in train(model, data, recipe):
    print(step.epoch, step.loss)
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from .augmentation import crop, erase, flip, mixing
from .errors import UserError
from .evidence import device_of, versions
from .progress import clock
from .recipes import Recipe
from .result import refuse_unwritable, writing


@dataclass(frozen=True)
class Step:
    """One update of the weights."""

    step: int  # from 1
    steps: int  # in all
    epoch: int  # from 0
    loss: float  # soft-label cross-entropy of the augmented batch, nats
    lr: float


@dataclass(frozen=True)
class TrainingSet:
    """Images of one size, kept in memory as they are, and how they are normalised.  Shapes: (N, C, H, W) uint8, (N,)."""

    images: Tensor
    labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray, classes: int) -> TrainingSet:
        """From arrays as ``data.as_arrays`` gives them, normalised by their own mean and deviation, channel by channel."""
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        scaled = [pixels[:, c].double() / 255 for c in range(pixels.shape[1])]
        mean = tuple(round(channel.mean().item(), 4) for channel in scaled)
        std = tuple(round(channel.std().item(), 4) for channel in scaled)
        return cls(pixels, torch.from_numpy(np.asarray(labels)).long(), classes, mean, std)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What a model trained on this set expects of its images, in timm's words."""
        return {
            "input_size": list(self.images.shape[1:]),
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
        }


def train(model: nn.Module, data: TrainingSet, recipe: Recipe, *, seed: int = 0) -> Iterator[Step]:
    """Train ``model`` in place, on the device where it is, a step an iteration.

    Every random choice comes from ``seed``.  Errors: UserError when the loss is no longer a number.
    """
    if recipe.batch_size > len(data.images):
        raise UserError(f"a batch of {recipe.batch_size} is more than the {len(data.images)} training images")
    device = device_of(model)
    generator = torch.Generator().manual_seed(seed)
    skip: set[str] = getattr(model, "no_weight_decay", set)()
    groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=skip)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    mix = mixing(data.classes, recipe.mixup, recipe.cutmix, recipe.label_smoothing)
    per_epoch = len(data.images) // recipe.batch_size
    steps = recipe.epochs * per_epoch
    mean, std = (torch.tensor(x, device=device).view(-1, 1, 1) for x in (data.mean, data.std))
    model.train()
    random = _RandomState(seed, device)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(data.images), generator=generator)
        chosen = order[(step % per_epoch) * recipe.batch_size :][: recipe.batch_size]
        images = (data.images[chosen].to(device).float() / 255 - mean) / std
        images = augmented(images, recipe, generator)
        with random:
            images, targets = mix(images, data.labels[chosen].to(device))
            loss = nn.functional.cross_entropy(model(images), targets)
        if not math.isfinite(loss.item()):
            raise UserError(f"the loss is {loss.item()} at step {step + 1}: lower the learning rate ({recipe.lr})")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, per_epoch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        yield Step(step + 1, steps, step // per_epoch, loss.item(), optimizer.param_groups[0]["lr"])
    model.eval()


def train_to_folder(
    spec: str,
    out: Path,
    recipe: Recipe,
    *,
    data: str = "fashion",
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    data_root: str | None = None,
    download: bool = False,
) -> Iterator[str]:
    """Train a model by name on data by name and save it; yields a line an epoch, and the test accuracy last."""
    from .analyses.calibration import calibration
    from .data import as_arrays, dataset, load_data
    from .models.preprocessing import with_preprocessing
    from .models.zoo import load_model, save_model
    from .study import device_named

    if threads:
        torch.set_num_threads(threads)
    refuse_unwritable(out)  # now, not after the training
    chosen = dataset(data, "train", limit=limit, seed=seed, root=data_root, download=download)
    if chosen.split == "all":
        raise UserError(f"{data} has no train and test folders, and a model must not be tested on what it was trained on")
    dataset(data, "test", root=data_root)  # refuse now what would be missed after the training
    training_set = TrainingSet.of(*as_arrays(chosen), len(chosen.classes))
    model = load_model(spec, pretrained=False, num_classes=len(chosen.classes), seed=seed).to(device_named(device))
    losses: list[float] = []
    started = time.monotonic()
    for step in train(model, training_set, recipe, seed=seed):
        losses.append(step.loss)
        if step.step * recipe.epochs % step.steps < recipe.epochs:
            left = (time.monotonic() - started) / step.step * (step.steps - step.step)
            yield f"epoch {step.epoch + 1} of {recipe.epochs}: loss {np.mean(losses):.3f}, {clock(left)} left"
            losses.clear()
    model = with_preprocessing(model.cpu(), training_set.preprocessing | {"num_classes": len(chosen.classes)})
    test = calibration(model, load_data(data, model=model, split="test", root=data_root), seed=seed)
    tested = {row["metric"]: [round(row[end], 4) for end in ("value", "low", "high")] for row in test.table}
    with writing(out) as draft:
        save_model(
            model,
            draft,
            spec=spec,
            num_classes=len(chosen.classes),
            preprocessing=training_set.preprocessing,
            classes=chosen.classes,
            **{"recipe": asdict(recipe), "data": data, "limit": limit, "seed": seed, "threads": torch.get_num_threads()},
            **{"test_images": test.evidence["images"], "test": tested, "versions": dict(versions())},
        )
    accuracy, low, high = (100 * x for x in tested["accuracy"])
    yield f"accuracy on {test.evidence['images']} test images: {accuracy:.1f}% [{low:.1f}, {high:.1f}]"


def augmented(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """The batch as the model is to see it.  Shapes: (B, C, H, W) -> the same."""
    images = crop(images, recipe.crop_pad, generator)
    if recipe.flip:
        images = flip(images, generator)
    return erase(images, recipe.erase, generator)


def learning_rate(recipe: Recipe, step: int, per_epoch: int) -> float:
    """A line up to ``lr`` over the warm-up, then half a cosine down to zero at the end.

    >>> [round(learning_rate(Recipe(epochs=4, lr=1.0, batch_size=1, warmup_epochs=2), s, 1), 3) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup, total = recipe.warmup_epochs * per_epoch, recipe.epochs * per_epoch
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    return recipe.lr / 2 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class _RandomState:
    """Within the block the global generators, which dropout and timm's mixup draw from, are the training's own."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(self.devices):
            torch.manual_seed(seed)
            self.own = self._read()
        self.own = (np.random.RandomState(seed).get_state(), *self.own[1:])

    def __enter__(self) -> None:
        self.outside = self._read()
        self._write(self.own)

    def __exit__(self, *_: object) -> None:
        self.own = self._read()
        self._write(self.outside)

    def _read(self) -> tuple[Any, Tensor, list[Tensor]]:
        return np.random.get_state(), torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in self.devices]

    def _write(self, state: tuple[Any, Tensor, list[Tensor]]) -> None:
        np.random.set_state(state[0])
        torch.set_rng_state(state[1])
        for device, there in zip(self.devices, state[2], strict=True):
            torch.cuda.set_rng_state(there, device)
