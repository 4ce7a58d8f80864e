"""The images of a training: small ones in memory, large ones read from their files ahead of the training.

Both kinds return the pixels of the micro-batches that the loop asks for, in order, whichever process they belong to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from backlight.data.augmentation import resized_crop
from backlight.data.image_set import ARRAY_BYTES, ImageSet, as_arrays, other_shape, pixels
from backlight.data.loading import batch_or_error, default_workers
from backlight.data.preprocessing import in_colours
from backlight.data.training_sampling import MicroBatch
from backlight.errors import UserError

#: Longest side of images that are kept in memory, if all of them fit there: CIFAR's 50,000 take 0.15 GB.
SMALL = 64


class TrainingImages(Protocol):
    """Labelled images of one size, with what the loop needs to know of them."""

    @property
    def labels(self) -> Tensor:
        """Shapes: (N,)."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, for pixels in [0, 1]."""

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel."""

    @property
    def cropped(self) -> bool:
        """Whether `fetch` returns random crops."""

    def __len__(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's input."""

    def fetch(self, batches: Iterable[MicroBatch], scale: float) -> Iterator[tuple[MicroBatch, Tensor]]:
        """Each micro-batch with its pixels; ``scale``: smallest share of a random crop.  Shapes: -> (m, C, H, W) uint8."""

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The preprocessing of a model that is trained on these images, with timm's keys."""


@dataclass(frozen=True, eq=False)
class ImagesInMemory:
    """Small images in memory, on the device that trains.  Shapes: (N, C, H, W) uint8, (N,)."""

    images: Tensor
    labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cropped = False

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray, classes: int) -> ImagesInMemory:
        """From the arrays of `as_arrays`, with their own mean and standard deviation in each channel."""
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        channels = [tensor[:, c].double() / 255 for c in range(tensor.shape[1])]
        mean = tuple(round(channel.mean().item(), 4) for channel in channels)
        std = tuple(round(channel.std().item(), 4) for channel in channels)
        return cls(tensor, torch.from_numpy(np.asarray(labels)).long(), classes, mean, std)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.shape[2], self.images.shape[3]

    @classmethod
    def prepared(cls, source: ImageSet, wanted: Mapping[str, Any]) -> ImagesInMemory:
        """In the colours and with the statistics of a model's `preprocessing`.  Errors: UserError for other sizes."""
        tensors = [in_colours(source[i][0], colours=wanted["colours"], then=pixel_tensor) for i in range(len(source))]
        for i, tensor in enumerate(tensors):
            if tensor.shape != tensors[0].shape:
                raise other_shape(source.where(i), tensor.shape, tensors[0].shape)
        mean, std = (tuple(wanted[name]) for name in ("mean", "std"))
        return cls(torch.stack(tensors), labels_of(source), len(source.classes), mean, std)

    def on(self, device: torch.device) -> ImagesInMemory:
        """The same images on a device."""
        return replace(self, images=self.images.to(device))

    def fetch(self, batches: Iterable[MicroBatch], scale: float) -> Iterator[tuple[MicroBatch, Tensor]]:
        """Each micro-batch with its pixels."""
        for batch in batches:
            yield batch, self.images[batch.images.to(self.images.device)]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Normalised, with no resizing or cropping."""
        return timm_preprocessing(self.images.shape[1:], self.mean, self.std, crop_pct=1.0)


@dataclass(frozen=True, eq=False)
class ImagesInFiles:
    """Large images, decoded and cropped to ``size`` by ``workers`` processes ahead of the training."""

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
        """Number of classes."""
        return len(self.source.classes)

    @cached_property
    def labels(self) -> Tensor:
        """Shapes: (N,)."""
        return labels_of(self.source)

    def fetch(self, batches: Iterable[MicroBatch], scale: float) -> Iterator[tuple[MicroBatch, Tensor]]:
        """Each micro-batch with its pixels.  Errors: UserError for a file that cannot be read."""
        ahead, batches = itertools.tee(batches)
        loader = DataLoader(
            CroppedImages(self.source, self.size, self.channels, scale),
            batch_sampler=([*zip(batch.images.tolist(), batch.uniform["crop"], strict=True)] for batch in ahead),
            num_workers=self.workers,
            collate_fn=batch_or_error,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(0),
        )
        for batch, images in zip(batches, loader, strict=True):
            if isinstance(images, UserError):
                raise images
            yield batch, images

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The centre 87.5%, timm's default for ImageNet."""
        return timm_preprocessing((self.channels, *self.size), self.mean, self.std, crop_pct=0.875)


@dataclass(frozen=True, eq=False)
class CroppedImages(Dataset[Any]):
    """Item (i, uniform numbers) is a random crop of image i, or the UserError of reading it."""

    source: ImageSet
    size: tuple[int, int]
    channels: int
    scale: float

    def __getitem__(self, item: tuple[int, Tensor]) -> Tensor | UserError:
        i, u = item
        try:
            return in_colours(self.source[i][0], colours="RGB" if self.channels == 3 else "L", then=self.crop(u))
        except UserError as error:
            return error

    def crop(self, u: Tensor) -> Any:
        """The function from an image to its crop.  Shapes: -> (C, H, W) uint8."""
        return lambda image: resized_crop(pixel_tensor(image)[None], u[None], self.size, scale=(self.scale, 1.0))[0]


def training_images(source: ImageSet, size: Sequence[int], channels: int, workers: int | None = None) -> TrainingImages:
    """The images in memory if they are small, else from their files, cropped to ``size``."""
    first = source[0][0]
    if max(first.size) <= SMALL and first.width * first.height * channels * len(source) <= ARRAY_BYTES:
        return ImagesInMemory.of(*as_arrays(source), len(source.classes))
    if workers is None:
        return ImagesInFiles(source, (size[0], size[1]), channels)
    return ImagesInFiles(source, (size[0], size[1]), channels, workers)


def images_for(source: ImageSet, wanted: Mapping[str, Any]) -> TrainingImages:
    """The images as a model with this `preprocessing` receives them in training: small ones of its size whole, others cropped.

    Errors: UserError for small images of several sizes.
    """
    channels, height, width = wanted["input_size"]
    first = source[0][0]
    if max(first.size) <= SMALL and first.size == (width, height):
        return ImagesInMemory.prepared(source, wanted)
    mean, std = (tuple(wanted[name]) for name in ("mean", "std"))
    return ImagesInFiles(source, (height, width), channels, workers=0, mean=mean, std=std)


def pixel_tensor(image: Image.Image) -> Tensor:
    """Shapes: -> (C, H, W) uint8."""
    return torch.from_numpy(pixels(image)).permute(2, 0, 1)


def labels_of(source: ImageSet) -> Tensor:
    """Shapes: (N,) int64."""
    return torch.from_numpy(np.asarray(source.labels)).long()


def timm_preprocessing(shape: Sequence[int], mean: Sequence[float], std: Sequence[float], *, crop_pct: float) -> dict[str, Any]:
    """Preprocessing with timm's keys."""
    return {
        "input_size": list(shape),
        "mean": list(mean),
        "std": list(std),
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
        "crop_mode": "center",
    }
