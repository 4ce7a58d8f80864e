"""Where training reads its images: small ones all from memory, large ones from their files as they are wanted.

Either hands out pixels for the parts that training asks for, in order, whichever images and processes they fall to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .augmentation import resized_crop
from .chance import Part
from .data import batch_or_error, default_workers, in_colours
from .errors import UserError
from .image_sets import ARRAY_BYTES, ImageSet, as_arrays, pixels

#: Sides up to which images are kept in memory as they are, if all of them fit there: CIFAR's 50,000 take 0.15 GB.
SMALL = 64


class TrainingImages(Protocol):
    """Labelled images, handed out in one size."""

    @property
    def labels(self) -> Tensor:
        """Shapes: (N,)."""

    @property
    def classes(self) -> int:
        """How many there are."""

    @property
    def mean(self) -> tuple[float, ...]:
        """A number a channel, of pixels in [0, 1]."""

    @property
    def std(self) -> tuple[float, ...]:
        """A number a channel."""

    @property
    def cropped(self) -> bool:
        """Whether `fetch` has cut the images at random already."""

    def __len__(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that the model sees."""

    def fetch(self, parts: Iterable[Part], scale: float) -> Iterator[tuple[Part, Tensor]]:
        """Each part with its pixels.  Shapes: -> (m, C, H, W) uint8."""

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What a model trained on this set expects of its images, in timm's words."""


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Small images, kept in memory as they are, on the device that trains.  Shapes: (N, C, H, W) uint8, (N,)."""

    images: Tensor
    labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cropped = False

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray, classes: int) -> TrainingSet:
        """From arrays as ``data.as_arrays`` gives them, normalised by their own mean and deviation, channel by channel."""
        found = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        scaled = [found[:, c].double() / 255 for c in range(found.shape[1])]
        mean = tuple(round(channel.mean().item(), 4) for channel in scaled)
        std = tuple(round(channel.std().item(), 4) for channel in scaled)
        return cls(found, torch.from_numpy(np.asarray(labels)).long(), classes, mean, std)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.shape[2], self.images.shape[3]

    def on(self, device: torch.device) -> TrainingSet:
        """The set with its images on a device."""
        return replace(self, images=self.images.to(device))

    def fetch(self, parts: Iterable[Part], scale: float) -> Iterator[tuple[Part, Tensor]]:
        """Each part with its pixels."""
        for part in parts:
            yield part, self.images[part.images.to(self.images.device)]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The images as they are, normalised."""
        return told(self.images.shape[1:], self.mean, self.std, crop_pct=1.0)


@dataclass(frozen=True, eq=False)
class TrainingFiles:
    """Large images, decoded and cut to ``size`` in ``workers`` processes ahead of the training."""

    source: ImageSet
    size: tuple[int, int]
    channels: int = 3
    workers: int = field(default_factory=lambda: default_workers(224 * 224))
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    cropped = True

    def __len__(self) -> int:
        return len(self.source)

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.source.classes)

    @cached_property
    def labels(self) -> Tensor:
        """Shapes: (N,)."""
        return torch.from_numpy(np.asarray(self.source.labels)).long()

    def fetch(self, parts: Iterable[Part], scale: float) -> Iterator[tuple[Part, Tensor]]:
        """Each part with its pixels.  Errors: UserError for a file that cannot be read."""
        asked, kept = itertools.tee(parts)
        loader = DataLoader(
            Crops(self.source, self.size, self.channels, scale),
            batch_sampler=([*zip(part.images.tolist(), part.numbers["crop"], strict=True)] for part in asked),
            num_workers=self.workers,
            collate_fn=batch_or_error,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(0),
        )
        for part, read in zip(kept, loader, strict=True):
            if isinstance(read, UserError):
                raise read
            yield part, read

    @property
    def preprocessing(self) -> dict[str, Any]:
        """timm's usual for ImageNet: the middle 87.5%."""
        return told((self.channels, *self.size), self.mean, self.std, crop_pct=0.875)


@dataclass(frozen=True, eq=False)
class Crops(Dataset[Any]):
    """Item (i, uniform numbers) is image i cut at random, or the UserError met."""

    source: ImageSet
    size: tuple[int, int]
    channels: int
    scale: float

    def __getitem__(self, asked: tuple[int, Tensor]) -> Tensor | UserError:
        i, u = asked
        try:
            return in_colours(self.source[i][0], colours="RGB" if self.channels == 3 else "L", then=self.cut(u))
        except UserError as error:
            return error

    def cut(self, u: Tensor) -> Any:
        """The function from an image to its crop.  Shapes: -> (C, H, W) uint8."""
        return lambda image: resized_crop(
            torch.from_numpy(pixels(image)).permute(2, 0, 1)[None], u[None], self.size, scale=(self.scale, 1.0)
        )[0]


def training_images(source: ImageSet, size: Sequence[int], channels: int, workers: int | None = None) -> TrainingImages:
    """The set in memory where its images are small and of the size that the model takes, else from its files."""
    first = source[0][0]
    if max(first.size) <= SMALL and first.width * first.height * channels * len(source) <= ARRAY_BYTES:
        return TrainingSet.of(*as_arrays(source), len(source.classes))
    if workers is None:
        return TrainingFiles(source, (size[0], size[1]), channels)
    return TrainingFiles(source, (size[0], size[1]), channels, workers)


def told(shape: Sequence[int], mean: Sequence[float], std: Sequence[float], *, crop_pct: float) -> dict[str, Any]:
    return {
        "input_size": list(shape),
        "mean": list(mean),
        "std": list(std),
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
        "crop_mode": "center",
    }
