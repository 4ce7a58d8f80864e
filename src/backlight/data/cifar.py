"""CIFAR-10 and CIFAR-100 in the folders that torchvision makes and checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backlight.data.image_set import ImageSet, image_set, resolved_split, sha256_of_files
from backlight.errors import Unavailable, UserError, first_line
from backlight.offline import offline


@dataclass(frozen=True)
class ArrayRows:
    """Pixels in memory, and the files they come from.  Shapes: pixels (N, H, W, 3) uint8."""

    name: str
    pixels: np.ndarray
    files: Sequence[Path]

    def read(self, row: int) -> np.ndarray:
        """The pixels of a row.  Shapes: (H, W, 3) uint8."""
        return self.pixels[row]

    def id(self, row: int) -> str:
        """The row number."""
        return str(row)

    def where(self, row: int) -> str:
        """The name of the set and the row number."""
        return f"{self.name} row {row}"

    def content(self, rows: Iterable[int]) -> tuple[str, str]:
        """The hash of the files, whichever rows are used."""
        return sha256_of_files(self.files)


def cifar(name: str, split: str, root: Path, *, download: bool) -> ImageSet:
    """CIFAR-10 or CIFAR-100 in torchvision's folder under root; torchvision checks its files before it unpickles them.

    Errors: UserError for a damaged file or a split that does not exist, Unavailable if the set is not there.
    """
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    part = resolved_split(split, ("train", "test"), name)
    folder = root / kind.base_folder
    try:
        split_set = kind(root, train=part == "train", download=download and not offline())
    except (OSError, RuntimeError) as error:
        raise cifar_error(kind, name, folder, download, error) from error
    files = [folder / file for file, _ in (kind.train_list if part == "train" else kind.test_list)]
    labels = np.array(split_set.targets, np.int64)
    return image_set(name, ArrayRows(name, split_set.data, files), split=part, classes=split_set.classes, labels=labels)


def cifar_error(kind: Any, name: str, folder: Path, download: bool, error: Exception) -> UserError:
    """The error for a set that torchvision could not open."""
    from torchvision.datasets.utils import check_integrity

    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    if download and not offline():
        return Unavailable(f"{name} could not be downloaded to {folder.parent}: {first_line(error)}")
    if not folder.is_dir():
        but = f", which {offline()} forbids now" if offline() else ""
        return Unavailable(f"{name} is not in {folder}: name another --data-root DIR, or let --download fetch it{but}")
    damaged = next((file for file, md5 in files if not check_integrity(str(folder / file), md5)), "")
    return UserError(f"cannot read {folder / damaged}: it is missing or damaged; remove {folder} and use --download")
