"""Batches of the training loss: augmented images and soft targets, drawn once with a seed and then fixed.

The curvature and the landscape of a loss need one fixed function of the weights.  New augmentation at every evaluation, as in
the authors' code, changes the function each time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from backlight.data.loading import dataset, source_record
from backlight.data.preprocessing import in_colours, preparation
from backlight.data.sampling import at_least_one
from backlight.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Augmentation:
    """How training changes a batch before the forward pass."""

    crop_pad: int | None = 4  # pixels of padding for a random crop of small images; large ones are cropped and resized
    flip: bool = True
    rand_augment: str = "rand-m9-n2-mstd1.0"  # as timm spells it
    mixup: float = 1.0
    cutmix: float = 0.8
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.crop_pad is None and (self.flip or self.rand_augment):
            raise UserError("crop_pad is None, so images are not augmented; turn flip and rand_augment off, or give crop_pad=0")


#: The authors' ``configs/cifar100_vit.yaml``, their ``cifar100_vit_noaug.yaml``, and no augmentation.
AUGMENTATIONS = {
    "paper": Augmentation(),
    "crop": Augmentation(rand_augment="", mixup=0, cutmix=0, label_smoothing=0),
    "none": Augmentation(crop_pad=None, flip=False, rand_augment="", mixup=0, cutmix=0, label_smoothing=0),
}


@dataclass(frozen=True, eq=False)
class Batches:
    """Fixed batches of (images, targets).  Shapes: images (B, C, H, W), targets (B,) classes or (B, K) probabilities."""

    batches: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)
    classes: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def images(self) -> int:
        """The number of images in all batches."""
        return sum(len(images) for images, _ in self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


def draw_batches(
    name: str,
    *,
    model: nn.Module,
    images: int,
    batch_size: int = 16,
    augment: str | Augmentation = "paper",
    split: str = "train",
    seed: int = 0,
    root: str | Path | None = None,
    download: bool = False,
) -> Batches:
    """Full batches of a stratified, shuffled subset of a data set, augmented as in training and prepared for ``model``.

    ``images`` is rounded down to full batches.  Mixing combines pairs of images in a batch, so it needs an even batch size.
    Errors: UserError for a wrong name or number; Unavailable if the data are not available.
    """
    at_least_one("images", images)
    at_least_one("batch_size", batch_size)
    augmentation = augmentation_named(augment)
    if batch_size % 2 and (augmentation.mixup or augmentation.cutmix):
        raise UserError(f"a batch of {batch_size} images cannot be mixed in pairs; give an even batch size, or augment='none'")
    source = dataset(name, split, limit=images, seed=seed, root=root, download=download)
    if len(source) < batch_size:
        raise UserError(f"{name} has {len(source)} images, fewer than a batch of {batch_size}; give a smaller batch size")
    order = np.argsort(np.random.PCG64(seed).random_raw(len(source)))[: len(source) // batch_size * batch_size]
    prepare, record = preparation(model, None)
    if augmentation.crop_pad is not None:
        prepare = augmented_preparation(augmentation, record, source[0][0])
    mix = mixing(len(source.classes), augmentation.mixup, augmentation.cutmix, augmentation.label_smoothing)
    with seeded(seed):
        batches = []
        for indices in order.reshape(-1, batch_size):
            items = [source[int(i)] for i in indices]
            stacked = torch.stack([prepare(image) for image, _ in items])
            batches.append(mix(stacked, torch.tensor([label for _, label in items])))
    facts = {"preprocessing": record, "augmentation": asdict(augmentation), "batch_size": batch_size, "batches": len(batches)}
    return Batches(tuple(batches), source.classes, source_record(source, images, seed) | facts)


def augmentation_named(augment: str | Augmentation) -> Augmentation:
    """The augmentation of this name; an `Augmentation` itself.  Errors: UserError if there is none of this name."""
    if isinstance(augment, Augmentation):
        return augment
    if augment not in AUGMENTATIONS:
        hint = did_you_mean(augment, AUGMENTATIONS)
        raise UserError(f"augment is {augment!r}{hint}; it must be {' or '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[augment]


def augmented_preparation(
    augmentation: Augmentation, record: dict[str, Any], example: Image.Image
) -> Callable[[Image.Image], Tensor]:
    """A function from a PIL image to the model's input.  Images of the input's size are cropped without resizing."""
    from timm.data.auto_augment import rand_augment_transform
    from torchvision.transforms import v2

    h, w = record["input_size"][1:]
    normalise = v2.Compose(
        [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(record["mean"], record["std"])]
    )
    same = (example.height, example.width) == (h, w)
    bicubic = v2.InterpolationMode.BICUBIC
    crop = v2.RandomCrop((h, w), padding=augmentation.crop_pad) if same else v2.RandomResizedCrop((h, w), interpolation=bicubic)
    grey = tuple(round(255 * mean) for mean in record["mean"])
    changes: list[Any] = [crop, *([v2.RandomHorizontalFlip()] if augmentation.flip else [])]
    if augmentation.rand_augment:
        fill = grey * 3 if len(grey) == 1 else grey
        options = {"translate_const": int(0.45 * min(h, w)), "img_mean": fill}
        changes.append(rand_augment_transform(augmentation.rand_augment, options))
    change = v2.Compose(changes)

    def prepare(image: Image.Image) -> Tensor:
        changed = change(image.convert("RGB"))  # RandAugment needs three colours
        return in_colours(changed, colours=record["colours"], then=normalise)

    return prepare


def mixing(
    classes: int, mixup: float, cutmix: float, label_smoothing: float
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function from images and labels (B,) to mixed images and targets; these are soft (B, K) if any setting softens them."""
    from timm.data.mixup import Mixup, mixup_target

    if mixup or cutmix:
        return Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=classes)
    if label_smoothing:
        return lambda images, labels: (images, mixup_target(labels, classes, 1.0, label_smoothing))
    return lambda images, labels: (images, labels)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block the global generators of timm and torchvision start at ``seed``; afterwards their state is restored."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
