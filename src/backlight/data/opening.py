"""Data sets by name, before any preprocessing: which images there are, and what is hashed of them.  torch is not imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from backlight.data.cifar import cifar
from backlight.data.cue_conflict import shapes
from backlight.data.folders import folder, imagenet, labelled_folder
from backlight.data.image_set import ImageSet, Stream, sha256_of_lines
from backlight.data.parquet import parquet, parquet_splits
from backlight.data.sampling import at_least_one, stratified
from backlight.data.timm_readers import READERS, through_timm
from backlight.errors import UserError, did_you_mean

NAMES = {
    "fashion": "6,000 training and 2,000 test images of Fashion-MNIST, 28 px, in the package",
    "shapes": "4,000 training and 800 test drawings, 64 px; split conflict: 1,120 whose outline and fill disagree",
    "cifar10": "CIFAR-10, 32 px, in torchvision's folder under --data-root",
    "cifar100": "CIFAR-100, 32 px, in torchvision's folder under --data-root",
    "imagenet": "ImageNet-1k, as train/WNID and val/WNID under --data-root",
    "FOLDER": "class folders, train, val or test folders of them, images without labels, or parquet files in the Hub's layout",
    "FOLDER?labels=FILE": "images without class folders; FILE is a CSV table of file name and label",
    "hfds/ORG/NAME": "a set on the Hugging Face Hub, as timm spells it; hfids/ORG/NAME streams it",
    "wds/FOLDER": "webdataset's tar files, as timm reads them",
}
FASHION = Path(__file__).parents[1] / "assets" / "fashion"


def open_data(
    name: str, split: str, *, root: str | Path | None, download: bool, limit: int | None, seed: int
) -> ImageSet | Stream:
    """A split of the data set of this name; with a limit, a stratified subset of it.  Errors: as `dataset`."""
    if limit is not None:
        at_least_one("limit", limit)
    source = by_name(name, split, root=None if root is None else Path(root).expanduser(), download=download)
    if limit is None:
        return source
    if isinstance(source, Stream):
        raise UserError(f"{name} can only be read in order, so a stratified subset cannot be drawn: leave the limit out")
    return source.take(stratified(source.labels, limit, seed))


def by_name(name: str, split: str, *, root: Path | None, download: bool) -> ImageSet | Stream:
    """All images of a split, from the source that the name means."""
    data_root = root or Path(os.environ.get("BACKLIGHT_CACHE", "~/.cache/backlight")).expanduser() / "data"
    if name == "fashion":
        return parquet(FASHION, split, name=name)
    if name == "shapes":
        return shapes(split)
    if name in {"cifar10", "cifar100"}:
        return cifar(name, split, data_root, download=download)
    if name == "imagenet":
        return imagenet(data_root, split)
    if "/" in name and name.partition("/")[0].lower() in READERS:
        return through_timm(name, split, root=root, download=download)
    folder_name, _, labels = name.partition("?labels=")
    path = Path(folder_name).expanduser()
    if folder_name and path.is_dir():
        return by_path(path, labels, split, name)
    if path.is_file():
        raise UserError(f"{name} is a file: give the folder that holds the images or parquet files")
    if os.sep in name or name.startswith((".", "~")):
        raise UserError(f"no folder at {name}")
    known = [word for word in NAMES if word.islower()]  # the others stand for a path or name of the user's
    raise UserError(f"no data called {name!r}{did_you_mean(name, known) or '; known are ' + ', '.join(known)}")


def by_path(path: Path, labels: str, split: str, name: str) -> ImageSet:
    """The images of a folder: those of a table of labels, or parquet files, or class folders."""
    if labels:
        return labelled_folder(path, Path(labels).expanduser(), name=name)
    return (parquet if parquet_splits(path) else folder)(path, split, name=name)


def source_record(source: ImageSet | Stream, limit: int | None, seed: int) -> dict[str, Any]:
    """Which images of which set, in plain values; the ids of a stream are unknown before it is read."""
    ids = sha256_of_lines(source.ids()) if isinstance(source, ImageSet) else None
    content, of = source.content() if isinstance(source, ImageSet) else (None, "not hashed: a stream")
    return {
        "data": source.name,
        "split": source.split,
        "limit": None if limit is None else int(limit),
        "seed": int(seed),
        "images": len(source),
        "ids_sha256": ids,
        "content_sha256": content,
        "content_of": of,
        **({"left_out": dict(source.left_out)} if isinstance(source, ImageSet) and source.left_out else {}),
    }
