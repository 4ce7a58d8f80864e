"""Data sets by name, as batches that one model can take.

A model sees an image only through its preprocessing, and preprocessing that is not the model's own moves accuracy by
points without a word.  So it is taken from the model, and recorded with the ids of the images in `Data.evidence`.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from backlight import image_sets
from backlight.errors import UserError, did_you_mean
from backlight.image_sets import ImageSet, Stream, as_arrays, other_shape, own_colours, pixels, sha256_of_lines
from backlight.shapes import shapes

__all__ = ["NAMES", "Data", "ImageSet", "as_arrays", "dataset", "load_data", "preprocessing", "stratified"]

NAMES = {
    "fashion": "6,000 training and 2,000 test images of Fashion-MNIST, 28 px, in the package",
    "shapes": "4,000 training and 800 test drawings, 64 px; split conflict: 1,120 whose outline and fill disagree",
    "cifar10": "CIFAR-10, 32 px, in torchvision's folder under --data-root",
    "cifar100": "CIFAR-100, 32 px, in torchvision's folder under --data-root",
    "imagenet": "ImageNet-1k, as train/WNID and val/WNID under --data-root",
    "FOLDER": "class folders, or train, val or test folders of them, or parquet files in the Hub's layout",
    "hfds/ORG/NAME": "a set on the Hugging Face Hub, as timm spells it; hfids/ORG/NAME streams it",
    "wds/FOLDER": "webdataset's tar files, as timm reads them",
}
FASHION = Path(__file__).parent / "assets" / "fashion"


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
    transform: Callable[[Image.Image], Tensor] | None = None,
) -> Data:
    """Batches of a data set, by name or one that `dataset` gave, prepared as the model wants them.

    Without a model the images keep their size, as pixels in [0, 1].  A transform replaces the model's preparation: it
    takes a PIL image in the model's colours and returns a tensor (C, H, W).

    Errors: UserError for a wrong name, split or limit and for bad data; Unavailable for data that is not here.
    """
    at_least_one("batch_size", batch_size)
    found = open_data(name, split, root=root, download=download, limit=limit, seed=seed) if isinstance(name, str) else name
    prepare, record = preparation(model, transform)
    example = found[0][0] if isinstance(found, ImageSet) else next(iter(found))[0]
    shape = tuple(prepare(example).shape)
    prepared = Prepared(found, prepare, shape) if isinstance(found, ImageSet) else PreparedStream(found, prepare)
    if workers is None:
        workers = default_workers(max(example.width * example.height, math.prod(shape[1:])))
    # No more workers than batches; a second one would mix up the order of a stream.
    workers = min(workers, 1 if isinstance(found, Stream) else math.ceil(len(found) / batch_size))
    preparing = {"preprocessing": {"input_size": list(shape)} | record, "batch_size": int(batch_size)}
    return Data(
        images=len(found),
        classes=found.classes,
        batch_size=batch_size,
        evidence=provenance(found, limit, seed) | preparing,
        loader=partial(loader, prepared, batch_size, workers),
    )


@dataclass(frozen=True, eq=False)
class Data:
    """Batches of (images, labels), the same ones in the same order on every pass.

    Shapes: images (B, C, H, W) float32, labels (B,) int64.  `images` counts images, `len` counts batches.
    """

    images: int
    classes: tuple[str, ...]
    batch_size: int
    evidence: dict[str, Any]  # plain values: what was read, which images of it, how they were prepared
    loader: Callable[[], DataLoader] = field(repr=False)
    _kept: list[DataLoader] = field(default_factory=list, init=False, repr=False)
    _free: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def __len__(self) -> int:
        return math.ceil(self.images / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        alone = self._free.acquire(blocking=False)  # kept workers serve one pass at a time, as in zip(data, data)
        try:
            if alone and not self._kept:
                self._kept.append(self.loader())
            for batch in self._kept[0] if alone else self.loader():
                if isinstance(batch, UserError):
                    self._kept.clear()  # the workers end now: held by a traceback they would block its collection
                    raise batch
                images, labels = batch
                yield images, labels
        finally:
            if alone:
                self._free.release()


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
    """
    found = open_data(name, split, root=root, download=download, limit=limit, seed=seed)
    if isinstance(found, Stream):
        raise UserError(f"{name} can only be read in order and training shuffles: use hfds/ or a folder")
    return readable(found) if skip_unreadable else found


# From a name to images


def open_data(
    name: str, split: str, *, root: str | Path | None, download: bool, limit: int | None, seed: int
) -> ImageSet | Stream:
    """The split of that name, cut down to a stratified subset where there is a limit."""
    if limit is not None:
        at_least_one("limit", limit)
    found = by_name(name, split, root=None if root is None else Path(root).expanduser(), download=download)
    if limit is None:
        return found
    if isinstance(found, Stream):
        raise UserError(f"{name} can only be read in order, so a stratified subset cannot be drawn: leave the limit out")
    return found.take(stratified(found.labels, limit, seed))


def by_name(name: str, split: str, *, root: Path | None, download: bool) -> ImageSet | Stream:
    """A whole split, from wherever the name points."""
    place = root or Path(os.environ.get("BACKLIGHT_CACHE", "~/.cache/backlight")).expanduser() / "data"
    if name == "fashion":
        return image_sets.parquet(FASHION, split, name=name)
    if name == "shapes":
        return shapes(split)
    if name in {"cifar10", "cifar100"}:
        return image_sets.cifar(name, split, place, download=download)
    if name == "imagenet":
        return image_sets.imagenet(place, split)
    if "/" in name and name.partition("/")[0].lower() in image_sets.READERS:
        return image_sets.through_timm(name, split, root=root, download=download)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return (image_sets.parquet if image_sets.parquet_splits(path) else image_sets.folder)(path, split, name=name)
    if path.is_file():
        raise UserError(f"{name} is a file: give the folder that holds the images or parquet files")
    if os.sep in name or name.startswith((".", "~")):
        raise UserError(f"no folder at {name}")
    known = [word for word in NAMES if word.islower()]  # the others stand for names of the user's own
    raise UserError(f"no data called {name!r}{did_you_mean(name, known) or '; known are ' + ', '.join(known)}")


def stratified(labels: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """Positions of a random subset with the classes in proportion, ascending; all of them where the limit allows.

    The same on every machine: of NumPy's random streams only a bit generator's raw one is promised never to change.
    Shapes: (N,) -> (min(limit, N),).
    """
    at_least_one("limit", limit)
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"seed must be a whole number and not negative, got {seed}")
    if limit >= len(labels):
        return np.arange(len(labels))
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    keys, ties = np.split(np.random.PCG64(seed).random_raw(len(labels) + len(counts)), [len(labels)])
    by_class = np.lexsort((keys, member))
    place_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[place_in_class < shares(counts, limit, ties)[member[by_class]]])


def shares(counts: np.ndarray, limit: int, ties: np.ndarray) -> np.ndarray:
    """How many of each class make up the limit: largest remainders, and no class without one while there is room.

    Shapes: (K,), (K,) -> (K,), summing to the limit, which is below the sum of the counts.
    """
    total = counts.sum()
    take = counts * limit // total
    if limit >= len(counts):
        take = np.maximum(take, 1)
    while missing := limit - take.sum():
        order = np.lexsort((ties, counts * limit - take * total))  # by what is owed to a class, in exact integers
        if missing > 0:
            take[order[-1]] += 1
        else:
            take[order[take[order] > 1][0]] -= 1
    return take


def at_least_one(name: str, value: object) -> None:
    """Errors: the value is not a whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise UserError(f"{name} must be at least 1, got {value}")


def provenance(found: ImageSet | Stream, limit: int | None, seed: int) -> dict[str, Any]:
    """Which images of which set, in plain values; a stream's are not known before it is read."""
    ids = sha256_of_lines(found.ids()) if isinstance(found, ImageSet) else None
    content, of = found.content() if isinstance(found, ImageSet) else (None, "not hashed: a stream")
    return {
        "data": found.name,
        "split": found.split,
        "limit": None if limit is None else int(limit),
        "seed": int(seed),
        "images": len(found),
        "ids_sha256": ids,
        "content_sha256": content,
        "content_of": of,
    }


# From images to what a model takes


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """How the model wants its images: input_size [C, H, W], interpolation, mean, std, crop_pct, crop_mode, colours.

    timm's `pretrained_cfg` says it; where the model was built for another size or other channels, that holds, and
    `adjusted` says so.  Errors: a model without `pretrained_cfg`, or with other than 1 or 3 channels.
    """
    from timm.data import resolve_data_config

    kind, cfg = type(model).__name__, getattr(model, "pretrained_cfg", None)
    if not cfg:
        raise UserError(
            f"{kind} has no pretrained_cfg to tell its preprocessing: set one (a dict of input_size, mean, std,"
            " interpolation, crop_pct), or write NAME?input_size=(3, 224, 224)&mean=...&std=..., or give a transform"
        )
    cfg = cfg if isinstance(cfg, dict) else cfg.to_dict()
    config = resolve_data_config({}, pretrained_cfg=cfg)
    size = built_size(model) or list(config["input_size"][1:])
    channels = built_channels(model, cfg) or config["input_size"][0]
    if channels not in (1, 3):
        raise UserError(f"{kind} takes {channels} channels and images have 1 or 3: give a transform")
    mean, std = (of_channels(config[key], channels) for key in ("mean", "std"))
    adjusted = {"input_size": [channels, *size], "mean": mean, "std": std}
    return {
        **adjusted,
        **{key: config[key] for key in ("interpolation", "crop_pct", "crop_mode")},
        "colours": "RGB" if channels == 3 else "L",
        "adjusted": [key for key, value in adjusted.items() if value != list(config[key])],
    }


def built_size(model: nn.Module) -> list[int] | None:
    """[H, W] that the model was built for, where it says so: a ViT made with img_size=32 keeps timm's 224 elsewhere."""
    for owner, name in ((getattr(model, "patch_embed", None), "img_size"), (model, "img_size"), (model, "image_size")):
        size = getattr(owner, name, None)
        if isinstance(size, int):
            return [size, size]
        if isinstance(size, Sequence) and len(size) == 2:
            return [int(side) for side in size]
    return None


def built_channels(model: nn.Module, cfg: dict[str, Any]) -> int | None:
    """Input channels of the convolution that timm's configuration calls the first, if it is there."""
    first = cfg.get("first_conv")
    name = first if isinstance(first, str) else first[0] if first else ""
    try:
        return getattr(model.get_submodule(name), "in_channels", None) if name else None
    except AttributeError:
        return None


def of_channels(statistic: Sequence[float], channels: int) -> list[float]:
    """A mean or standard deviation a channel, from 3 to 1 or from 1 to 3.

    Grey is 0.299 R + 0.587 G + 0.114 B (ITU-R 601, Pillow's "L"): its mean is the same sum of the means.  For the
    standard deviation that is an upper limit, reached where the channels go together, as they nearly do in photographs.
    """
    if len(statistic) == channels:
        return list(statistic)
    if len(statistic) == 1:
        return list(statistic) * channels
    return [math.fsum(weight * value for weight, value in zip((0.299, 0.587, 0.114), statistic, strict=True))]


def preparation(
    model: nn.Module | None, transform: Callable[[Image.Image], Tensor] | None
) -> tuple[Callable[[Image.Image], Tensor], dict[str, Any]]:
    """The function from a PIL image to a tensor (C, H, W), and a record of it in plain values."""
    from timm.data import create_transform

    settings = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    if transform is not None:
        colours = preprocessing(model)["colours"] if model is not None and hasattr(model, "pretrained_cfg") else None
        told = {"transform": getattr(transform, "__qualname__", repr(transform)), "colours": colours}
        return partial(in_colours, colours=colours, then=transform), dict.fromkeys(settings) | told
    if model is None:
        return raw_pixels, dict.fromkeys(settings) | {"colours": None}
    record = preprocessing(model)
    then = create_transform(tuple(record["input_size"]), is_training=False, **{key: record[key] for key in settings})
    return partial(in_colours, colours=record["colours"], then=then), record


def in_colours(image: Image.Image, *, colours: str | None, then: Callable[[Image.Image], Tensor]) -> Tensor:
    """The tensor of an image turned to "RGB" or "L" first (None: to the nearer of the two)."""
    colours = colours or own_colours(image)
    return then(image if image.mode == colours else image.convert(colours))


def raw_pixels(image: Image.Image) -> Tensor:
    """Shapes: -> (C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(pixels(image)).permute(2, 0, 1).float().div(255)


# From one image to batches


@dataclass(frozen=True, eq=False)
class Prepared(Dataset[Any]):
    """Item i is (tensor, label), or the UserError met: raised in a worker it would come back as a traceback."""

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
    """The same of a stream; nothing follows a UserError."""

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
    """Batches in order.  A generator of its own leaves the global random state alone."""
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
    """Loader processes for images of that many pixels, as stored or as prepared.

    Up to 64 px an image is ready in about 0.2 ms, less than starting processes and handing tensors over costs.
    """
    return 0 if image_pixels <= 64 * 64 else min(8, cores())


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def readable(images: ImageSet) -> ImageSet:
    """The set without the images that cannot be decoded, which `skipped` names.  Errors: none can."""
    decoding = loader(Prepared(images, no_pixels, (0,)), 64, default_workers(224 * 224), collate=list)
    good = np.array([not isinstance(item, UserError) for batch in decoding for item in batch])
    del decoding
    if not good.any():
        raise UserError(f"none of the {len(images)} images of {images.name} can be read, beginning with {images.where(0)}")
    skipped = tuple(images.take(np.flatnonzero(~good)).ids())
    return replace(images.take(np.flatnonzero(good)), skipped=skipped)


def no_pixels(image: Image.Image) -> Tensor:
    return torch.empty(0)
