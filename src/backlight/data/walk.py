"""Which images a folder holds: regular files, each once, and what is left out, by reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

UPWARDS, DANGLING, SPECIAL = "link to a folder above", "dangling link", "no regular file"


def subfolders(path: Path, left_out: Counter[str]) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones such as .ipynb_checkpoints."""
    if not path.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    return [name for name in names if not leads_upwards(path / name, left_out)]


def image_files(path: Path, left_out: Counter[str]) -> list[str]:
    """The names of the images in a folder, sorted, without hidden ones."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and is_image(entry, left_out))


def images_below(folder: Path, left_out: Counter[str]) -> Iterator[str]:
    """The paths of the images in a folder and those below it, in the order of torchvision's ImageFolder."""
    by_folder: list[tuple[str, list[str]]] = []
    pending = [folder]
    while pending:
        path = pending.pop()
        with os.scandir(path) as entries:
            each = sorted(entries, key=lambda entry: entry.name)
        by_folder.append((str(path), [entry.name for entry in each if not entry.is_dir() and is_image(entry, left_out)]))
        pending += [Path(entry.path) for entry in each if entry.is_dir() and not leads_upwards(Path(entry.path), left_out)]
    for path_name, names in sorted(by_folder):
        yield from (os.path.join(path_name, name) for name in names)


def is_image(entry: os.DirEntry[str], left_out: Counter[str]) -> bool:
    """Whether this is a regular file with the ending of an image; other things with such an ending are counted."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if entry.is_dir() or not entry.name.lower().endswith(IMG_EXTENSIONS):
        return False
    if not entry.is_file():
        left_out[DANGLING if entry.is_symlink() and not os.path.exists(entry.path) else SPECIAL] += 1
        return False
    return True


def leads_upwards(path: Path, left_out: Counter[str]) -> bool:
    """Whether a folder is a link to a folder that contains it, which is then counted and not followed."""
    if not path.is_symlink():
        return False
    parent = Path(os.path.realpath(path.parent))
    upwards = Path(os.path.realpath(path)) in (parent, *parent.parents)
    if upwards:
        left_out[UPWARDS] += 1
    return upwards
