"""Labelled images as they lie on a disk or on the Hub, read one row at a time.

A folder of class folders, parquet files in the Hub's layout, torchvision's CIFAR and timm's readers all become an
`ImageSet`; what can only be read in order becomes a `Stream`.  Pixels are never held: a row is decoded when asked for.
What is wrong with the data is one sentence that names the file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from backlight.errors import Unavailable, UserError

TRAIN = ("train", "training")
TEST = ("val", "validation", "valid", "eval", "test")  # in this order where the one asked for is not there


class Rows(Protocol):
    """Where the images of one split lie."""

    def read(self, row: int) -> bytes | np.ndarray:
        """An encoded image, or its (H, W, 3) pixels."""

    def id(self, row: int) -> str:
        """The row's name, the same on every machine."""

    def where(self, row: int) -> str:
        """The row's name in a sentence to the user."""

    def content(self, rows: Iterable[int]) -> tuple[str | None, str]:
        """A sha256 that changes when the images do, and what was hashed."""


@dataclass(frozen=True, eq=False)
class ImageSet(Dataset[tuple[Image.Image, int]]):
    """One split, or a subset of it: item i is (PIL image, label).

    Shapes: labels and rows (N,); `rows` numbers the images used among all of the split.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    labels: np.ndarray
    source: Rows
    rows: np.ndarray
    skipped: tuple[str, ...] = ()  # what `readable` left out

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        row = int(self.rows[i])
        return decoded(self.source.read(row), self.source.where(row)), int(self.labels[i])

    def ids(self) -> Iterator[str]:
        return (self.source.id(int(row)) for row in self.rows)

    def where(self, i: int) -> str:
        return self.source.where(int(self.rows[i]))

    def content(self) -> tuple[str | None, str]:
        return self.source.content(self.rows.tolist())

    def take(self, chosen: np.ndarray) -> ImageSet:
        """The subset of the chosen items, in the order given.  Shapes: chosen (M,) -> M items."""
        return replace(self, labels=self.labels[chosen], rows=self.rows[chosen])


@dataclass(frozen=True, eq=False)
class Stream(IterableDataset[tuple[Image.Image, int]]):
    """One split that is read in its own order only.

    A pass that does not give as many images as the set promises ends in a UserError: timm's readers leave out what
    they cannot read.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    images: int
    source: Iterable[tuple[Image.Image, int]]

    def __len__(self) -> int:
        return self.images

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        seen = 0
        try:
            for seen, (image, label) in enumerate(self.source, start=1):
                if label < 0 or (self.classes and label >= len(self.classes)):
                    raise UserError(f"{self.name} image {seen}: label {label} is out of range")
                yield image, label
        except UserError:
            raise
        except Exception as error:  # from the network to the decoder
            raise UserError(f"{self.name} broke off after {seen} images: {first_line(error)}") from error
        if seen != self.images:
            raise UserError(f"{self.name} promises {self.images} images and gave {seen}: some are missing or unreadable")


def image_set(name: str, rows: Rows, *, split: str, classes: Sequence[str], labels: np.ndarray) -> ImageSet:
    """All rows of a split.  Errors: no rows; a label outside 0..len(classes)-1."""
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
    """The image with its pixels read.  Errors: not an image, cut short, or more than 8 bits a channel."""
    try:
        opened = Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(io.BytesIO(image))
        opened.load()
    except Exception as error:  # on bad bytes Pillow's decoders raise whatever they run into
        reason = "not an image" if "cannot identify" in str(error) else str(error)
        raise UserError(f"cannot read image {where}: {reason}") from error
    if opened.mode.startswith(("I", "F")):  # converting these to RGB clips at 255
        raise UserError(f"cannot read image {where}: its pixels are {opened.mode}; save it with 8 bits a channel")
    return opened


def as_arrays(images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """A small set, decoded as a whole.  Shapes: (N, H, W, C) uint8 with C 1 or 3, and (N,) int64.

    Errors: images of different sizes or colours; more than ARRAY_BYTES of them.
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


ARRAY_BYTES = 2 << 30  # CIFAR's training set takes 0.15 GB


def pixels(image: Image.Image) -> np.ndarray:
    """Shapes: -> (H, W, C) uint8, with C 1 for grey and 3 for colour."""
    array = np.array(image.convert(own_colours(image)))
    return array[:, :, None] if array.ndim == 2 else array


def own_colours(image: Image.Image) -> str:
    return "L" if image.mode in ("1", "L", "LA") else "RGB"


def other_shape(where: str, shape: Sequence[int], first: Sequence[int]) -> UserError:
    return UserError(
        f"{where} has the shape {tuple(shape)}, the first image {tuple(first)}: give a model or a transform that makes"
        " them one size"
    )


def resolved_split(split: str, present: Collection[str], where: str | Path) -> str:
    """The split asked for, or what it is called here: `test` may be `val`, `val` may be `validation`."""
    for spelling in spellings(split):
        if spelling in present:
            return spelling
    raise UserError(f"no split {split} in {where}: it has {', '.join(sorted(present))}")


def spellings(split: str) -> tuple[str, ...]:
    """The split and its synonyms, the likeliest first."""
    return split, *(TRAIN if split in TRAIN else TEST if split in TEST else ())


# A folder of class folders


@dataclass(frozen=True)
class FileRows:
    """One file an image.  `paths` are relative to `root`."""

    root: Path
    paths: Sequence[str]

    def read(self, row: int) -> bytes:
        try:
            return (self.root / self.paths[row]).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read image {self.where(row)}: {error.strerror}") from error

    def id(self, row: int) -> str:
        return self.paths[row]

    def where(self, row: int) -> str:
        return str(self.root / self.paths[row])

    def content(self, rows: Iterable[int]) -> tuple[str, str]:
        sizes = (f"{self.paths[row]}\t{os.stat(self.root / self.paths[row]).st_size}" for row in rows)
        return sha256_of_lines(sizes), "paths and sizes of the images"


def folder(path: Path, split: str, *, name: str) -> ImageSet:
    """A folder of class folders, or of splits that hold them; without splits every split is all of it.

    Labels number the class folders in alphabetical order, as torchvision's ImageFolder does.  Errors: no class folders,
    no images, an empty class, classes that differ between splits.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    splits = {part: subfolders(path / part) for part in subfolders(path) if part in TRAIN + TEST}
    splits = {part: classes for part, classes in splits.items() if classes}  # else it is a class called `train`
    if not splits and split not in (*TRAIN, *TEST, "all"):
        raise UserError(f"no split {split} in {path}: its class folders are not divided into splits")
    part = resolved_split(split, splits, path) if splits else "all"
    place = path / part if splits else path
    classes = subfolders(place)
    if not classes:
        raise UserError(f"no class folders in {place}: expected images as {place / 'CLASS' / 'IMAGE.jpg'}")
    refuse_unequal_classes(path, splits)

    files = make_dataset(str(place), {c: i for i, c in enumerate(classes)}, IMG_EXTENSIONS, allow_empty=True)
    labels = np.array([label for _, label in files], np.int64)
    if not files:
        raise UserError(f"no images in {place}: none of its files ends in {', '.join(IMG_EXTENSIONS)}")
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        raise UserError(f"class folder {place / classes[empty[0]]} has no images: fill it or remove it")
    prefix = f"{path}{os.sep}"
    paths = [file.removeprefix(prefix).replace(os.sep, "/") for file, _ in files]
    return image_set(name, FileRows(path, paths), split=part, classes=classes, labels=labels)


def imagenet(root: Path, split: str) -> ImageSet:
    """ImageNet-1k as root/train/WNID and root/val/WNID.  Errors: not there; fewer than its 1,000 classes."""
    if not any((root / part).is_dir() for part in TRAIN + TEST):
        raise Unavailable(f"imagenet is not in {root}: name the folder that holds its train and val with --data-root DIR")
    found = folder(root, split, name="imagenet")
    if len(found.classes) != 1000:  # labels would number other classes than a model's outputs do
        raise UserError(
            f"imagenet has 1000 classes, {root / found.split} has {len(found.classes)}: to use it as a set of its own,"
            " give the folder's path as the data"
        )
    return found


def subfolders(path: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without the hidden ones (.ipynb_checkpoints is no class)."""
    if not path.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def refuse_unequal_classes(path: Path, splits: Mapping[str, Sequence[str]]) -> None:
    """Labels are numbered within a split, so a class missing from one split would shift all after it."""
    everything = sorted(set().union(*splits.values()))
    for part, classes in splits.items():
        missing = [name for name in everything if name not in set(classes)]
        if missing:
            raise UserError(f"{path / part} has no class folder {missing[0]}, which another split of {path} has")


# Parquet files in the Hub's layout


@dataclass
class ParquetRows:
    """Rows of parquet files in order, read a row group at a time; one row group of encoded images is held.

    `starts` are the first rows of the row groups and `groups` their (file, number).
    """

    files: Sequence[Path]
    column: str
    groups: Sequence[tuple[int, int]]
    starts: np.ndarray
    _held: tuple[int, Any] = field(default=(-1, None), repr=False)

    def read(self, row: int) -> bytes:
        group = self._group(row)
        held = self._held
        if held[0] != group:
            self._held = held = group, self._encoded(group)
        image = held[1][row - int(self.starts[group])].as_py()
        if not image or image["bytes"] is None:
            raise UserError(f"cannot read image {self.where(row)}: it holds no image bytes")
        return image["bytes"]

    def id(self, row: int) -> str:
        return str(row)

    def where(self, row: int) -> str:
        file = self.groups[self._group(row)][0]
        first = self.starts[[number for number, _ in self.groups].index(file)]
        return f"{self.files[file]} row {row - first}"

    def content(self, rows: Iterable[int]) -> tuple[str, str]:
        return sha256_of_files(self.files)

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def _encoded(self, group: int) -> Any:
        file, number = self.groups[group]
        with parquet_file(self.files[file]) as opened:  # opened anew: no handle is shared between loader workers
            return opened.read_row_group(number, columns=[f"{self.column}.bytes"], use_threads=False).column(0)


def parquet(path: Path, split: str, *, name: str) -> ImageSet:
    """A folder of SPLIT.parquet or SPLIT-*.parquet, as the Hub stores sets (there in `data/`).

    The image column is the first struct with `bytes`; labels are `label`, `fine_label` or the first ClassLabel that
    the `huggingface` metadata describe, which name the classes too.
    """
    files = parquet_splits(path)
    part = resolved_split(split, files, path)
    with parquet_file(files[part][0]) as first:
        image, label, classes = hub_columns(first.schema_arrow, files[part][0])

    groups, lengths, labels = [], [], []
    for number, file in enumerate(files[part]):
        with parquet_file(file) as opened:
            if hub_columns(opened.schema_arrow, file) != (image, label, classes):
                raise UserError(f"{file} has other columns or classes than {files[part][0]}")
            groups += [(number, group) for group in range(opened.num_row_groups)]
            lengths += [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            labels.append(integers(opened.read(columns=[label], use_threads=False).column(0), label, file))
    starts = np.cumsum([0, *lengths])[:-1]
    every = np.concatenate(labels)
    classes = classes or numbered(every)
    rows = ParquetRows(files[part], image, groups, starts)
    return image_set(name, rows, split=part, classes=classes, labels=every)


def parquet_splits(path: Path) -> dict[str, list[Path]]:
    """The parquet files of a folder, or of its `data` folder, by split."""
    splits: dict[str, list[Path]] = {}
    for file in sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")):
        splits.setdefault(re.split(r"[-.]", file.name, maxsplit=1)[0], []).append(file)
    return splits


@contextmanager
def parquet_file(file: Path) -> Iterator[Any]:
    """An open parquet file; what Arrow says of a bad one becomes one sentence."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            yield opened
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {file}: it is cut short, damaged or no parquet file") from error


def hub_columns(schema: Any, file: Path) -> tuple[str, str, tuple[str, ...]]:
    """The image column, the label column and the class names (none where the file does not say)."""
    import pyarrow as pa

    images = [c.name for c in schema if pa.types.is_struct(c.type) and c.type.get_field_index("bytes") >= 0]
    described = json.loads((schema.metadata or {}).get(b"huggingface", "{}")).get("info", {}).get("features", {})
    named = [name for name, feature in described.items() if feature.get("_type") == "ClassLabel"]
    labels = [name for name in ("label", "fine_label", *named) if name in schema.names]
    if not images or not labels:
        missing = "image column (a struct of bytes and path)" if not images else "label column"
        raise UserError(f"{file} has no {missing}: its columns are {', '.join(schema.names)}")
    return images[0], labels[0], tuple(described.get(labels[0], {}).get("names", ()))


def integers(column: Any, name: str, file: Path) -> np.ndarray:
    """A label column as int64.  Errors: it is not integer, or has empty cells."""
    import pyarrow as pa

    if not pa.types.is_integer(column.type) or column.null_count:
        raise UserError(f"{file}: column {name} is {column.type} with {column.null_count} empty cells, labels are integers")
    return column.to_numpy().astype(np.int64)


def numbered(labels: np.ndarray) -> tuple[str, ...]:
    """Names for classes that have none."""
    return tuple(str(number) for number in range(int(labels.max(initial=-1)) + 1))


# torchvision's CIFAR


@dataclass(frozen=True)
class ArrayRows:
    """Pixels that torchvision holds.  Shapes: pixels (N, H, W, 3) uint8."""

    name: str
    pixels: np.ndarray
    files: Sequence[Path]

    def read(self, row: int) -> np.ndarray:
        return self.pixels[row]

    def id(self, row: int) -> str:
        return str(row)

    def where(self, row: int) -> str:
        return f"{self.name} row {row}"

    def content(self, rows: Iterable[int]) -> tuple[str, str]:
        return sha256_of_files(self.files)


def cifar(name: str, split: str, root: Path, *, download: bool) -> ImageSet:
    """CIFAR-10 or CIFAR-100 in torchvision's folder under root; torchvision checks sums before it unpickles."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    part = resolved_split(split, ("train", "test"), name)
    place = root / kind.base_folder
    try:
        found = kind(root, train=part == "train", download=download and not offline())
    except (OSError, RuntimeError) as error:
        raise why_no_cifar(kind, name, place, download, error) from error
    files = [place / file for file, _ in (kind.train_list if part == "train" else kind.test_list)]
    labels = np.array(found.targets, np.int64)
    return image_set(name, ArrayRows(name, found.data, files), split=part, classes=found.classes, labels=labels)


def why_no_cifar(kind: Any, name: str, place: Path, download: bool, error: Exception) -> UserError:
    """What stands in the way, in a sentence."""
    from torchvision.datasets.utils import check_integrity

    listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    if download and not offline():
        return Unavailable(f"{name} could not be downloaded to {place.parent}: {first_line(error)}")
    if not place.is_dir():
        but = " (BACKLIGHT_OFFLINE or HF_HUB_OFFLINE forbids it now)" if offline() else ""
        return Unavailable(f"{name} is not in {place}: name another --data-root DIR, or let --download fetch it{but}")
    bad = next((file for file, md5 in listed if not check_integrity(str(place / file), md5)), "")
    return UserError(f"cannot read {place / bad}: it is missing or damaged; remove {place} and use --download")


# timm's readers: the Hub and webdataset

READERS = {"hfds": ("datasets", "hf"), "hfids": ("datasets", "hf"), "wds": ("webdataset", "wds")}


@dataclass(frozen=True)
class HubRows:
    """Rows of a Hub set that timm's reader has opened."""

    name: str
    reader: Any

    def read(self, row: int) -> bytes:
        try:
            with self.reader[row][0] as file:
                return file.read()
        except (TypeError, AssertionError, OSError) as error:
            column = self.reader.image_key
            raise UserError(
                f"cannot read image {self.where(row)}: column {column} holds none; ?input_key=NAME names another"
            ) from error

    def id(self, row: int) -> str:
        return str(row)

    def where(self, row: int) -> str:
        return f"{self.name} row {row}"

    def content(self, rows: Iterable[int]) -> tuple[None, str]:
        return None, "not hashed: the Hub's cache"


def through_timm(name: str, split: str, *, root: Path | None, download: bool) -> ImageSet | Stream:
    """`hfds/ORG/NAME`, `hfids/ORG/NAME` (streamed) or `wds/FOLDER`, as timm spells them.

    Reader settings follow a question mark: `hfds/uoft-cs/cifar100?input_key=img&target_key=fine_label`.
    Errors: the library is not installed, the set cannot be had, the split is not there.
    """
    prefix, rest = name.split("/", 1)
    prefix = prefix.lower()
    library, extra = READERS[prefix]
    if importlib.util.find_spec(library) is None:
        raise Unavailable(f"{name} needs the library {library}: pip install 'backlight[{extra}]'")
    rest, _, query = rest.partition("?")
    settings: dict[str, Any] = {"root": root and str(root), **reader_settings(name, query)}
    if prefix == "wds":
        settings["root"] = os.path.join(root or "", rest)  # where timm's reader looks; it has no use for a name
        if offline() and re.search("://|pipe:", settings["root"] + split):
            raise Unavailable(f"{name} is on the network, which BACKLIGHT_OFFLINE or HF_HUB_OFFLINE forbids")
    if prefix == "hfids":
        settings["download"] = download
    part, found = timm_dataset(f"{prefix}/{rest}", split, **settings)

    reader = found.reader
    classes = tuple(reader.class_to_idx)
    if prefix != "hfds":
        if not len(found):
            raise UserError(f"{name} does not say how many images it has: add ?num_samples=N to the name")
        return Stream(name, part, classes, len(found), found)
    # Not timm's own items: where an image is bad, timm gives the next one instead, with a warning.
    if reader.label_key not in reader.dataset.column_names:
        raise UserError(f"{name} has no column {reader.label_key}: ?target_key=NAME names another")
    labels = np.asarray(reader.dataset.with_format("numpy")[reader.label_key][:])
    return image_set(name, HubRows(name, reader), split=part, classes=classes or numbered(labels), labels=labels)


def reader_settings(name: str, query: str) -> dict[str, Any]:
    """Settings of timm's readers, out of `input_key=img&num_samples=100`.  Errors: a setting that is none of theirs."""
    settings: dict[str, Any] = dict(parse_qsl(query))
    unknown = set(settings) - {"input_key", "target_key", "num_samples"}
    if unknown or not settings.get("num_samples", "1").isdecimal():
        raise UserError(f"{name}: after the ? stand input_key=NAME, target_key=NAME or num_samples=NUMBER, joined by &")
    return settings | ({"num_samples": int(settings["num_samples"])} if "num_samples" in settings else {})


def timm_dataset(name: str, split: str, **settings: Any) -> tuple[str, Any]:
    """The split's name here, and timm's data set.  Errors: not to be had; no such split."""
    from timm.data import create_dataset

    reasons = []
    for spelling in spellings(split):
        try:
            with hub_offline_if_told():
                found = create_dataset(name, split=spelling, input_img_mode="", **settings)
                if isinstance(found, IterableDataset):
                    next(iter(found), None)  # a stream looks for its split only now
                return spelling, found
        except Exception as error:  # these libraries raise anything from KeyError to their own kinds
            reason = first_line(error)
            reasons.append(reason)
            if "num_samples" in reason:
                raise UserError(f"{name} does not say how many images it has: add ?num_samples=N to the name") from error
            if "split" not in reason.lower():
                raise Unavailable(f"{name} cannot be had: {reason}{gated_hint(name, reason)}") from error
    raise UserError(f"no split {split} in {name}: {reasons[0]}")


def gated_hint(name: str, reason: str) -> str:
    if "gated" not in reason:
        return ""
    return f"; accept its terms on https://huggingface.co/datasets/{name.split('/', 1)[1]}, then run: hf auth login"


def offline() -> bool:
    """Whether the user forbids the network."""
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in ("BACKLIGHT_OFFLINE", "HF_HUB_OFFLINE")
    )


@contextmanager
def hub_offline_if_told() -> Iterator[None]:
    """The Hub's libraries read their variable once, when first imported; this holds them to ours."""
    if not offline() or importlib.util.find_spec("datasets") is None:
        yield
        return
    import datasets.config
    import huggingface_hub.constants

    modules: tuple[Any, ...] = (huggingface_hub.constants, datasets.config)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


# Hashes and sentences

HASHED_BYTES = 1 << 29  # about a second of hashing; ImageNet's parquet files would take minutes


def sha256_of_files(files: Sequence[Path]) -> tuple[str, str]:
    """One hash of all bytes in order, or of names and sizes where the files are large."""
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
    """Each line is hashed with a newline after it."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode(errors="surrogateescape"))  # file names need not be UTF-8
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
