"""Batches of the training loss: augmented images and soft targets, drawn once with a seed and then fixed.

Curvature and landscapes belong to one function of the weights.  Fresh augmentation at every evaluation, as in the authors'
code, makes it another function each time.
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

from .data import at_least_one, dataset, in_colours, preparation, provenance
from .errors import UserError, did_you_mean


@dataclass(frozen=True)
class Augmentation:
    """What training does to a batch before the model sees it."""

    crop_pad: int | None = 4  # pixels of padding for a random crop of small images; large ones are cropped and resized
    flip: bool = True
    rand_augment: str = "rand-m9-n2-mstd1.0"  # as timm spells it
    mixup: float = 1.0
    cutmix: float = 0.8
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.crop_pad is None and (self.flip or self.rand_augment):
            raise UserError("crop_pad=None leaves images as in a test, so flip and rand_augment must be off; 0 crops nothing")


#: The authors' ``configs/cifar100_vit.yaml``, their ``cifar100_vit_noaug.yaml``, and images as in a test.
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
    evidence: dict[str, Any]

    @property
    def images(self) -> int:
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
    """Whole batches of a stratified, shuffled subset of a data set, augmented as training does and prepared for ``model``.

    ``images`` is rounded down to whole batches.  Mixing pairs images within a batch, so it wants an even number of them.
    Errors: UserError for a wrong name or number; Unavailable for data that is not here.
    """
    at_least_one("images", images)
    at_least_one("batch_size", batch_size)
    how = augmentation_named(augment)
    if batch_size % 2 and (how.mixup or how.cutmix):
        raise UserError(f"a batch of {batch_size} images cannot be mixed in pairs: take an even batch size, or augment none")
    found = dataset(name, split, limit=images, seed=seed, root=root, download=download)
    if len(found) < batch_size:
        raise UserError(f"{name} has {len(found)} images to draw from, fewer than a batch of {batch_size}")
    order = np.argsort(np.random.PCG64(seed).random_raw(len(found)))[: len(found) // batch_size * batch_size]
    prepare, record = preparation(model, None)
    if how.crop_pad is not None:
        prepare = augmenting(how, record, found[0][0])
    mix = mixing(len(found.classes), how.mixup, how.cutmix, how.label_smoothing)
    with seeded(seed):
        drawn = []
        for chosen in order.reshape(-1, batch_size):
            items = [found[int(i)] for i in chosen]
            stacked = torch.stack([prepare(image) for image, _ in items])
            drawn.append(mix(stacked, torch.tensor([label for _, label in items])))
    told = {"preprocessing": record, "augmentation": asdict(how), "batch_size": batch_size, "batches": len(drawn)}
    return Batches(tuple(drawn), found.classes, provenance(found, images, seed) | told)


def augmentation_named(augment: str | Augmentation) -> Augmentation:
    """Errors: UserError if no augmentation is called so."""
    if isinstance(augment, Augmentation):
        return augment
    if augment not in AUGMENTATIONS:
        known = ", ".join(AUGMENTATIONS)
        raise UserError(f"no augmentation is called {augment!r}{did_you_mean(augment, AUGMENTATIONS)}; there are {known}")
    return AUGMENTATIONS[augment]


def augmenting(how: Augmentation, record: dict[str, Any], example: Image.Image) -> Callable[[Image.Image], Tensor]:
    """From a PIL image to what the model sees.  Small images are those that need no resizing."""
    from timm.data.auto_augment import rand_augment_transform
    from torchvision.transforms import v2

    h, w = record["input_size"][1:]
    normalise = v2.Compose(
        [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(record["mean"], record["std"])]
    )
    same = (example.height, example.width) == (h, w)
    bicubic = v2.InterpolationMode.BICUBIC
    crop = v2.RandomCrop((h, w), padding=how.crop_pad) if same else v2.RandomResizedCrop((h, w), interpolation=bicubic)
    grey = tuple(round(255 * mean) for mean in record["mean"])
    changes: list[Any] = [crop, *([v2.RandomHorizontalFlip()] if how.flip else [])]
    if how.rand_augment:
        fill = grey * 3 if len(grey) == 1 else grey
        changes.append(rand_augment_transform(how.rand_augment, {"translate_const": int(0.45 * min(h, w)), "img_mean": fill}))
    change = v2.Compose(changes)

    def prepare_changed(image: Image.Image) -> Tensor:
        changed = change(image.convert("RGB"))  # RandAugment knows colours only
        return in_colours(changed, colours=record["colours"], then=normalise)

    return prepare_changed


def mixing(
    classes: int, mixup: float, cutmix: float, label_smoothing: float
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function of images and labels (B,) that returns them mixed; targets are soft (B, K) where anything softens them."""
    from timm.data.mixup import Mixup, mixup_target

    if mixup or cutmix:
        return Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=classes)
    if label_smoothing:
        return lambda images, labels: (images, mixup_target(labels, classes, 1.0, label_smoothing))
    return lambda images, labels: (images, labels)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block the global generators that timm and torchvision draw from start at ``seed``; after it as before."""
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
