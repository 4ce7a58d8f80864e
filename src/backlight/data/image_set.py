"""One split of labelled images: an `ImageSet`, read by row, or a `Stream`, read in its own order.

Pixels are not held in memory: a row is decoded when it is read.  An error names the file or row that causes it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from backlight.errors import UserError, first_line

TRAIN = ("train", "training")
TEST = ("val", "validation", "valid", "eval", "test")  # in this order where the requested one does not exist

ARRAY_BYTES = 2 << 30  # CIFAR's training set takes 0.15 GB
MOST_CLASSES = 1 << 20  # the largest sets name some 20,000
HASHED_BYTES = 1 << 29  # about a second of hashing; ImageNet's parquet files would take minutes


class Rows(Protocol):
    """Where the images of one split are stored."""

    def read(self, row: int) -> bytes | np.ndarray:
        """The bytes of an image file, or pixels (H, W, 3)."""

    def id(self, row: int) -> str:
        """The row's name, the same on every machine."""

    def where(self, row: int) -> str:
        """The row's name in an error message."""

    def content(self, rows: Iterable[int]) -> tuple[str | None, str]:
        """A sha256 that changes when the images change, and what was hashed."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split, or a subset of it: item i is (PIL image, label).

    Shapes: labels and rows (N,); `rows` are the row numbers of the images within the split.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    labels: np.ndarray
    source: Rows
    rows: np.ndarray
    skipped: tuple[str, ...] = ()  # what `readable` left out
    labelled: bool = True  # False: the labels are all 0 and mean nothing
    left_out: Mapping[str, int] = field(default_factory=dict)  # what is no image though it has the name of one: reason -> count

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        row = int(self.rows[i])
        return decoded(self.source.read(row), self.source.where(row)), int(self.labels[i])

    def ids(self) -> Iterator[str]:
        """The name of each image, the same on every machine."""
        return (self.source.id(int(row)) for row in self.rows)

    def where(self, i: int) -> str:
        """The name of item i in an error message."""
        return self.source.where(int(self.rows[i]))

    def content(self) -> tuple[str | None, str]:
        """A sha256 of the images, None where it is not taken, and what was hashed."""
        return self.source.content(self.rows.tolist())

    def take(self, items: np.ndarray) -> ImageSet:
        """The subset of these items, in this order.  Shapes: items (M,) -> M items."""
        return replace(self, labels=self.labels[items], rows=self.rows[items])


@dataclass(frozen=True, eq=False)
class Stream:
    """One split that can only be read in its own order.

    A pass that gives another number of images than the set promises raises a UserError, because timm's readers leave out
    images that they cannot read.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    images: int
    source: Iterable[tuple[Image.Image, int]]

    def __len__(self) -> int:
        return self.images

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        count = 0
        try:
            for count, (image, label) in enumerate(self.source, start=1):
                if label < 0 or (self.classes and label >= len(self.classes)):
                    raise UserError(f"{self.name} image {count}: label {label} is out of range")
                yield ImageOps.exif_transpose(image), label
        except UserError:
            raise
        except Exception as error:  # from the network to the decoder
            raise UserError(f"{self.name} stopped after {count} images: {first_line(error)}") from error
        if count != self.images:
            raise UserError(f"{self.name} promises {self.images} images and gave {count}: some are missing or unreadable")


def image_set(name: str, rows: Rows, *, split: str, classes: Sequence[str], labels: np.ndarray) -> ImageSet:
    """All rows of a split.  Errors: UserError if there are no rows, or a label is not in 0..len(classes)-1."""
    if not len(labels):
        raise UserError(f"no images in split {split} of {name}")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{rows.where(first)}: label {labels[first]} is out of range, the set names {len(classes)} classes"
            f" (0 to {len(classes) - 1})"
        )
    return ImageSet(name, split, tuple(classes), labels.astype(np.int64), rows, np.arange(len(labels)))


def decoded(image: bytes | np.ndarray, where: str) -> Image.Image:
    """The image with its pixels loaded, upright as its EXIF orientation says.

    Errors: UserError if it is damaged, no image, or has over 8 bits a channel.
    """
    try:
        opened = Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(io.BytesIO(image))
        opened.load()
        upright = ImageOps.exif_transpose(opened)
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions on bad bytes
        reason = "not an image" if "cannot identify" in str(error) else str(error)
        raise UserError(f"cannot read image {where}: {reason}") from error
    if opened.mode.startswith(("I", "F")):  # converting these to RGB clips at 255
        raise UserError(f"cannot read image {where}: its pixels are {opened.mode}; save it with 8 bits a channel")
    return upright


def as_arrays(images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """All images of a small set and their labels.  Shapes: (N, H, W, C) uint8 with C 1 or 3, and (N,) int64.

    Errors: UserError for images of different sizes or colours, and for more than ARRAY_BYTES of pixels.
    """
    first = pixels(images[0][0])
    if len(images) * first.nbytes > ARRAY_BYTES:
        raise UserError(f"{images.name} takes {len(images) * first.nbytes / 2**30:.1f} GiB as arrays: read it in batches")
    arrays = np.empty((len(images), *first.shape), np.uint8)
    for i in range(len(images)):
        array = pixels(images[i][0])
        if array.shape != first.shape:
            raise other_shape(images.where(i), array.shape, first.shape)
        arrays[i] = array
    return arrays, images.labels


def pixels(image: Image.Image) -> np.ndarray:
    """The pixels of an image.  Shapes: (H, W, C) uint8, with C 1 for grey and 3 for colour."""
    array = np.array(image.convert(own_colours(image)))
    return array[:, :, None] if array.ndim == 2 else array


def own_colours(image: Image.Image) -> str:
    """Pillow's mode for the image without palette and transparency: "L" for grey, "RGB" for colour."""
    return "L" if image.mode in ("1", "L", "LA") else "RGB"


def other_shape(where: str, shape: Sequence[int], first: Sequence[int]) -> UserError:
    """The error for an image of another shape than the first one."""
    return UserError(
        f"{where} has the shape {tuple(shape)}, the first image {tuple(first)}: give a model or a transform that"
        " resizes them to one size"
    )


def resolved_split(split: str, present: Collection[str], where: str | Path) -> str:
    """The requested split, or its name in this set: `test` may be `val`, `val` may be `validation`.  Errors: UserError."""
    for spelling in spellings(split):
        if spelling in present:
            return spelling
    raise UserError(f"no split {split} in {where}: it has {', '.join(sorted(present))}")


def spellings(split: str) -> tuple[str, ...]:
    """The split, then its synonyms."""
    return split, *(TRAIN if split in TRAIN else TEST if split in TEST else ())


def sha256_of_files(files: Sequence[Path]) -> tuple[str, str]:
    """One hash of all bytes in order, or of names and sizes if the files are large; and what was hashed."""
    sizes = [file.stat().st_size for file in files]
    if sum(sizes) > HASHED_BYTES:
        return sha256_of_lines(f"{file.name}\t{size}" for file, size in zip(files, sizes, strict=True)), "file names and sizes"
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            for block in iter(partial(opened.read, 1 << 20), b""):
                digest.update(block)
    return digest.hexdigest(), "bytes of the files"


def sha256_of_lines(lines: Iterable[str]) -> str:
    """The hash of the lines, each with a newline after it."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode(errors="surrogateescape"))  # file names need not be UTF-8
    return digest.hexdigest()


def numbered(labels: np.ndarray) -> tuple[str, ...]:
    """Names for classes without names: their numbers.  Errors: UserError if a number is larger than any number of classes."""
    if labels.max(initial=-1) >= MOST_CLASSES:
        raise UserError(f"a label is {labels.max()}; labels are numbers of classes, below {MOST_CLASSES:,}: number them from 0")
    return tuple(str(number) for number in range(int(labels.max(initial=-1)) + 1))
