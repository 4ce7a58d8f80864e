"""The images of a data set under every corruption and severity: corrupted here, or read from an official folder."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from backlight.analyses.corruption.settings import CorruptionSettings
from backlight.data.corruption_files import OfficialImages, official_images
from backlight.data.corruptions import SMALL, corrupted, refuse_missing, strengths_for
from backlight.data.image_set import pixels as pixels_of
from backlight.data.normalisation import Normalisation
from backlight.data.sampling import stratified
from backlight.devices import cores
from backlight.errors import UserError
from backlight.inputs import image_batches

#: A corruption and its severity.
Condition = tuple[str, int]
CLEAN: Condition = ("clean", 0)


class CleanBatch(NamedTuple):
    """Clean images.  Shapes: (B,), (B, C, H, W), (B, C, H, W), (B,)."""

    positions: range  # in the data
    images: Tensor  # as the model receives them
    pixels: NDArray[np.uint8]
    labels: Tensor | None


def corrupted_batches(
    data: Iterable[Any], conditions: Sequence[Condition], source: Source, normalisation: Normalisation
) -> Iterator[tuple[Condition, CleanBatch, Tensor]]:
    """Every batch under every condition: the condition, the clean batch, and the corrupted images, normalised for the model.

    Threads prepare the next ones while the caller uses one.
    """

    def images_under(condition: Condition, batch: CleanBatch) -> Tensor:
        if condition == CLEAN:
            return batch.images
        return normalisation.to_images(torch.from_numpy(source.images(condition, batch)).to(batch.images.dtype) / 255)

    jobs = ((condition, batch) for batch in clean_batches(data, normalisation) for condition in conditions)
    for (condition, batch), images in computed_ahead(images_under, jobs):
        yield condition, batch, images


def computed_ahead(function: Callable[..., Any], jobs: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, Any]]:
    """Each job (the arguments of the function) with its result, in order; threads compute the next few."""
    threads = cores()
    pool = ThreadPoolExecutor(threads)
    waiting: deque[tuple[Any, Future[Any]]] = deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(function, *job)))
            if len(waiting) > threads + 1:
                first, result = waiting.popleft()
                yield first, result.result()
        for first, result in waiting:
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)


def clean_batches(data: Iterable[Any], normalisation: Normalisation) -> Iterator[CleanBatch]:
    """The data's images with their pixels in 8 bits.  Errors: UserError for images that cannot be corrupted."""
    start = 0
    for images, labels in image_batches(data):
        if images.shape[1] not in (1, 3):
            raise UserError(f"corruptions change grey or colour images, and these have {images.shape[1]} channels")
        pixels = normalisation.checked_pixels(images.detach().cpu().float(), tolerance=0.6 / 255)
        levels = (255 * pixels).round().clamp(0, 255).byte().numpy()
        yield CleanBatch(range(start, start + len(images)), images, levels, labels)
        start += len(images)


@dataclass(frozen=True)
class GeneratedCorruptions:
    """Corruptions that are computed here."""

    requested_strengths: str
    seed: int

    @classmethod
    def of(cls, settings: CorruptionSettings, seed: int) -> GeneratedCorruptions:
        """Errors: Unavailable if a corruption needs a library that is not installed.  A warning says which is left out."""
        refuse_missing(settings.corruptions)
        if settings.left_out:
            warnings.warn(f"left out: {settings.left_out}", stacklevel=3)
        return cls(settings.strengths, seed)

    @property
    def strengths(self) -> str:
        """Whose strengths are used, in words."""
        return f"imagenet above {SMALL} px, else cifar" if self.requested_strengths == "auto" else self.requested_strengths

    def images(self, condition: Condition, batch: CleanBatch) -> NDArray[np.uint8]:
        """The corrupted pixels.  Shapes: -> (B, C, H, W)."""
        strengths = strengths_for(batch.pixels.shape[2:], self.requested_strengths)
        return np.stack([
            corrupted(image, *condition, seed=(self.seed, position), strengths=strengths)
            for position, image in zip(batch.positions, batch.pixels, strict=True)
        ])  # fmt: skip


@dataclass(frozen=True)
class OfficialCorruptions:
    """Official images, in the order of the data's clean ones."""

    official: OfficialImages
    rows: NDArray[np.int64]  # the row of each image of the data in the official set
    resampling: Image.Resampling

    strengths: ClassVar[str] = "as in the official files"

    @classmethod
    def of(cls, settings: CorruptionSettings, data: Any) -> OfficialCorruptions:
        """Errors: UserError if the data have another number of images."""
        classes, record = getattr(data, "classes", ()), getattr(data, "provenance", {})
        official = official_images(settings.folder or "", settings.corruptions, settings.severities, classes)
        limit = record.get("limit")
        rows = stratified(official.labels, limit, record["seed"]) if limit else np.arange(len(official.labels))
        images = getattr(data, "images", len(rows))
        if images != len(rows):
            raise UserError(
                f"{settings.folder} has {len(rows)} images at each severity and the data have {images}; give the test split"
            )
        interpolation = str((record.get("preprocessing") or {}).get("interpolation") or "bicubic").upper()
        return cls(official, rows, Image.Resampling.__members__.get(interpolation, Image.Resampling.BICUBIC))

    def images(self, condition: Condition, batch: CleanBatch) -> NDArray[np.uint8]:
        """The corrupted pixels.  Shapes: -> (B, C, H, W).  Errors: UserError if a label is not that of the clean image."""
        if batch.positions.stop > len(self.rows):
            raise UserError(
                f"{self.official.folder} has {len(self.rows)} images at each severity and the data have more; "
                "give its test images as data"
            )
        rows = self.rows[batch.positions.start : batch.positions.stop]
        if batch.labels is not None and not np.array_equal(self.official.labels[rows], batch.labels.cpu().numpy()):
            raise UserError(
                f"{self.official.folder} holds other images than the data, or in another order; give its test images as data"
            )
        channels, height, width = batch.pixels.shape[1:]
        images = []
        for row in rows:
            image = self.official.read(*condition, int(row)).convert("L" if channels == 1 else "RGB")
            if image.size != (width, height):
                image = image.resize((width, height), self.resampling)
            images.append(pixels_of(image).transpose(2, 0, 1))
        return np.stack(images)


Source = GeneratedCorruptions | OfficialCorruptions
