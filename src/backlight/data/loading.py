"""Data sets by name, as batches for one model.

A wrong preprocessing changes accuracy by points and raises no error.  So the preprocessing is taken from the model, and
recorded together with the ids of the images in `Data.provenance`.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from backlight.data.class_names import as_outputs_of
from backlight.data.given_classes import GivenClasses
from backlight.data.image_set import ImageSet, Stream, numbered, other_shape
from backlight.data.opening import open_data, source_record
from backlight.data.preprocessing import preparation
from backlight.data.sampling import at_least_one
from backlight.devices import cores
from backlight.errors import UserError


def load_data(
    name: str | ImageSet,
    *,
    model: nn.Module | None = None,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int | None = None,
    root: str | Path | None = None,
    download: bool = False,
    classes: GivenClasses | Mapping[str, int | str] | None = None,
    transform: Callable[[Image.Image], Tensor] | None = None,
) -> Data:
    """Batches of a data set, by its name or from `dataset`, with the model's preprocessing.

    A model with the classes of ImageNet gets its output numbers as labels, if the data name some of them by WordNet id or by
    name; see `as_outputs_of`.  ``classes`` says it for other data: class folder -> number or name of the model's output, or
    what `read_classes` read.  A folder of images without class folders has no labels.
    Without a model the images keep their size, as pixels in [0, 1].  A transform replaces the model's preprocessing: it
    takes a PIL image in the model's colours and returns a tensor (C, H, W).

    Errors: UserError for a wrong name, split or limit and for bad data; Unavailable for data that are not here.
    """
    at_least_one("batch_size", batch_size)
    source = open_data(name, split, root=root, download=download, limit=limit, seed=seed) if isinstance(name, str) else name
    if classes is not None and not isinstance(classes, GivenClasses):
        classes = GivenClasses({name: str(output) for name, output in classes.items()})
    if classes is not None and isinstance(source, Stream):
        raise UserError(f"{classes.where}: {source.name} is a stream, whose labels are not mapped: use hfds/ or a folder")
    source, outputs = as_outputs_of(model, source, classes) if isinstance(source, ImageSet) else (source, {})
    warn_of_left_out(source)
    prepare, record = preparation(model, transform)
    if assumed := record.get("assumed"):
        values = ", ".join(f"{name} {record[name]}" for name in assumed)
        warnings.warn(f"the pretrained_cfg of {type(model).__name__} does not say everything; assumed: {values}", stacklevel=2)
    example = source[0][0] if isinstance(source, ImageSet) else next(iter(source))[0]
    shape = tuple(prepare(example).shape)
    prepared = Prepared(source, prepare, shape) if isinstance(source, ImageSet) else PreparedStream(source, prepare)
    if workers is None:
        workers = default_workers(max(example.width * example.height, math.prod(shape[1:])))
    # No more workers than batches; a second worker would change the order of a stream.
    workers = min(workers, 1 if isinstance(source, Stream) else math.ceil(len(source) / batch_size))
    preprocessed = {"preprocessing": {"input_size": list(shape)} | record, "batch_size": int(batch_size)}
    return Data(
        images=len(source),
        classes=source.classes,
        batch_size=batch_size,
        provenance=source_record(source, limit, seed) | preprocessed | outputs,
        loader=partial(loader, prepared, batch_size, workers),
        labelled=not isinstance(source, ImageSet) or source.labelled,
    )


@dataclass(frozen=True, eq=False)
class Data:
    """Batches of (images, labels), the same batches in the same order on every pass.

    Shapes: images (B, C, H, W) float32, labels (B,) int64, or None for data without labels.  `images` is the number of
    images, `len` the number of batches.
    """

    images: int
    classes: tuple[str, ...]
    batch_size: int
    provenance: dict[str, Any]  # plain values: the data set, the images used, their preprocessing
    loader: Callable[[], DataLoader] = field(repr=False)
    labelled: bool = True
    _loaders: list[DataLoader] = field(default_factory=list, init=False, repr=False)  # one, once there was a pass
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def __len__(self) -> int:
        return math.ceil(self.images / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        first = self._lock.acquire(blocking=False)  # a loader serves one pass at a time; zip(data, data) makes another
        try:
            if first and not self._loaders:
                self._loaders.append(self.loader())
            for batch in self._loaders[0] if first else self.loader():
                if isinstance(batch, UserError):
                    self._loaders.clear()  # the traceback would hold the workers, and they would never end
                    raise batch
                images, labels = batch
                yield images, labels if self.labelled else None
        finally:
            if first:
                self._lock.release()


def dataset(
    name: str,
    split: str = "train",
    *,
    limit: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    download: bool = False,
    skip_unreadable: bool = False,
) -> ImageSet:
    """A data set to train on: item i is (PIL image, label); `labels` and `classes` are known without decoding.

    `skip_unreadable` decodes every image once and leaves out those that cannot be read; `skipped` names them.
    Errors: UserError for a wrong name, split or limit and for a stream; Unavailable for data that are not here.
    """
    source = open_data(name, split, root=root, download=download, limit=limit, seed=seed)
    if isinstance(source, Stream):
        raise UserError(f"{name} can only be read in order and training shuffles: use hfds/ or a folder")
    if not source.labelled:
        raise UserError(
            f"the images in {name} have no labels, and the loss needs them: put them into one folder for each class"
        )
    if not source.classes:
        source = replace(source, classes=numbered(source.labels))
    return readable(source) if skip_unreadable else source


def warn_of_left_out(source: ImageSet | Stream) -> None:
    """Warn of what has the name of an image, or of a folder of images, and is left out."""
    if left_out := getattr(source, "left_out", {}):
        reasons = ", ".join(f"{reason} ({count})" for reason, count in left_out.items())
        warnings.warn(f"{source.name}: not read as images: {reasons}", stacklevel=3)


@dataclass(frozen=True, eq=False)
class Prepared(Dataset[Any]):
    """Item i is (tensor, label), or a UserError: raised in a worker process it would arrive as a traceback."""

    images: ImageSet
    prepare: Callable[[Image.Image], Tensor]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int] | UserError:
        try:
            image, label = self.images[i]
            tensor = self.prepare(image)
        except UserError as error:
            return error
        if tensor.shape != self.shape:
            return other_shape(self.images.where(i), tensor.shape, self.shape)
        return tensor, label


@dataclass(frozen=True, eq=False)
class PreparedStream(IterableDataset[Any]):
    """The same for a stream; a UserError is the last item."""

    images: Stream
    prepare: Callable[[Image.Image], Tensor]

    def __iter__(self) -> Iterator[tuple[Tensor, int] | UserError]:
        try:
            for image, label in self.images:
                yield self.prepare(image), label
        except UserError as error:
            yield error


def batch_or_error(items: list[Any]) -> list[Tensor] | UserError:
    """Stacked images and labels, or the first error among them."""
    return next((item for item in items if isinstance(item, UserError)), None) or default_collate(items)


def loader(prepared: Dataset, batch_size: int, workers: int, collate: Callable = batch_or_error) -> DataLoader:
    """Batches in order.  Its own generator, so that the global random state does not change."""
    return DataLoader(
        prepared,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
    )


def default_workers(image_pixels: int) -> int:
    """How many loader processes to use for images with this many pixels, before or after preprocessing.

    An image of up to 64 px takes about 0.2 ms, less than the cost of starting processes and moving tensors between them.
    """
    return 0 if image_pixels <= 64 * 64 else min(8, cores())


def readable(images: ImageSet) -> ImageSet:
    """The set without the images that cannot be decoded; `skipped` names those.  Errors: UserError if none can be decoded."""
    decoding = loader(Prepared(images, no_pixels, (0,)), 64, default_workers(224 * 224), collate=list)
    good = np.array([not isinstance(item, UserError) for batch in decoding for item in batch])
    del decoding  # and so its worker processes
    if not good.any():
        raise UserError(f"none of the {len(images)} images of {images.name} can be read, beginning with {images.where(0)}")
    skipped = tuple(images.take(np.flatnonzero(~good)).ids())
    return replace(images.take(np.flatnonzero(good)), skipped=skipped)


def no_pixels(image: Image.Image) -> Tensor:
    """An empty tensor: here an image only has to decode."""
    return torch.empty(0)
