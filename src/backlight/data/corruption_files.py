"""The published files of CIFAR-10-C, CIFAR-100-C and ImageNet-C (Hendrycks & Dietterich, ICLR 2019)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backlight.errors import Unavailable, UserError, first_line

IMAGE_FILE = re.compile(r"\.(jpe?g|png|bmp|webp)$", re.IGNORECASE)


@dataclass(frozen=True)
class OfficialImages:
    """The corrupted images of a folder.

    Shapes: `labels` (N,), in the order of the images, which is the same at every severity.
    """

    folder: Path
    labels: NDArray[np.int64]
    files: dict[tuple[str, int], Sequence[Path]]  # ImageNet-C: (corruption, severity) -> N files; empty for CIFAR-C
    arrays: dict[str, NDArray[np.uint8]]  # CIFAR-C: corruption -> (5 N, H, W, 3), memory-mapped; empty for ImageNet-C

    def read(self, name: str, severity: int, row: int) -> Image.Image:
        """One image.  Errors: UserError if its file is not readable."""
        if self.arrays:
            return Image.fromarray(self.arrays[name][(severity - 1) * len(self.labels) + row])
        file = self.files[name, severity][row]
        try:
            return Image.open(file).convert("RGB")
        except OSError as error:
            raise UserError(f"cannot read image {file}: {first_line(error)}") from error


def official_images(
    folder: str | Path, names: Sequence[str], severities: Sequence[int], classes: Sequence[str]
) -> OfficialImages:
    """The images of these corruptions and severities in an official folder.

    CIFAR-C: FOLDER/NAME.npy and labels.npy; ImageNet-C: FOLDER/NAME/SEVERITY/CLASS/IMAGE, or FOLDER/FAMILY/NAME/...
    Errors: Unavailable for a folder or file that is missing, UserError for one that does not fit the others or the classes.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise Unavailable(f"no folder at {folder}; give the folder of CIFAR-10-C, CIFAR-100-C or ImageNet-C")
    return _cifar_c(folder, names) if (folder / "labels.npy").exists() else _imagenet_c(folder, names, severities, classes)


def _cifar_c(folder: Path, names: Sequence[str]) -> OfficialImages:
    repeated = _array(folder / "labels.npy").astype(np.int64)
    labels = repeated[: len(repeated) // 5]
    if len(repeated) % 5 or not np.array_equal(np.tile(labels, 5), repeated):
        raise UserError(f"{folder / 'labels.npy'} must hold the same labels for each of five severities; complete the folder")
    arrays = {name: _array(folder / f"{name}.npy") for name in names}
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.ndim != 4 or len(array) != len(repeated) or array.shape[3] != 3:
            raise UserError(
                f"{folder / name}.npy holds {array.dtype} of shape {array.shape}, and labels.npy has labels of {len(repeated)} "
                "images (H, W, 3) of uint8; complete the folder"
            )
    return OfficialImages(folder, labels, {}, arrays)


def _array(file: Path) -> NDArray[Any]:
    try:
        return np.load(file, mmap_mode="r")
    except FileNotFoundError as error:
        raise Unavailable(f"{file} is missing; leave the corruption out, or complete the folder") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: it is incomplete, damaged or not an array") from error


def _imagenet_c(folder: Path, names: Sequence[str], severities: Sequence[int], classes: Sequence[str]) -> OfficialImages:
    files: dict[tuple[str, int], Sequence[Path]] = {}
    labels: list[int] = []
    for name in names:
        folders = [path for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.is_dir()]
        for severity in severities:
            path = (folders[0] if folders else folder / name) / str(severity)
            if not path.is_dir():
                raise Unavailable(f"{path} is missing; leave the corruption or the severity out, or complete the folder")
            class_names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
            if class_names != sorted(classes):
                raise UserError(
                    f"the {len(class_names)} class folders of {path} are not the {len(classes)} classes of the data; "
                    "give data of the same classes"
                )
            images = [
                (file, label)
                for label, class_name in enumerate(class_names)
                for file in sorted((path / class_name).iterdir())
                if IMAGE_FILE.search(file.name)
            ]
            if labels and [label for _, label in images] != labels:
                raise UserError(f"{path} holds other images than the corruptions before it; complete the folder")
            labels = [label for _, label in images]
            files[name, severity] = [file for file, _ in images]
    return OfficialImages(folder, np.array(labels, np.int64), files, {})
