"""Image sets in folders: one folder for each class, one file for each image."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from backlight.data.image_set import TEST, TRAIN, ImageSet, image_set, resolved_split, sha256_of_lines
from backlight.data.walk import image_files, images_below, subfolders
from backlight.errors import Unavailable, UserError


@dataclass(frozen=True)
class FileRows:
    """One file for each image.  `paths` are relative to `root`."""

    root: Path
    paths: Sequence[str]

    def read(self, row: int) -> bytes:
        """The bytes of the file.  Errors: UserError if it cannot be read."""
        try:
            return (self.root / self.paths[row]).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read image {self.where(row)}: {error.strerror}") from error

    def id(self, row: int) -> str:
        """The path of the file below `root`."""
        return self.paths[row]

    def where(self, row: int) -> str:
        """The path of the file."""
        return str(self.root / self.paths[row])

    def content(self, rows: Iterable[int]) -> tuple[str, str]:
        """The hash of the paths and sizes of these rows."""
        sizes = (f"{self.paths[row]}\t{os.stat(self.root / self.paths[row]).st_size}" for row in rows)
        return sha256_of_lines(sizes), "paths and sizes of the images"


def folder(path: Path, split: str, *, name: str) -> ImageSet:
    """A split of a folder that holds class folders, or split folders with class folders in them; or of images without labels.

    Without split folders every split is the whole folder.  Labels number the class folders in alphabetical order, as in
    torchvision's ImageFolder.
    Errors: UserError if there are no class folders or images, a class is empty, or splits have different classes.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    left_out: Counter[str] = Counter()
    splits = {part: subfolders(path / part, Counter()) for part in subfolders(path, Counter()) if part in TRAIN + TEST}
    splits = {part: classes for part, classes in splits.items() if classes}  # otherwise `train` is a class
    if not splits and split not in (*TRAIN, *TEST, "all"):
        raise UserError(f"no split {split} in {path}: its class folders are not divided into splits")
    part = resolved_split(split, splits, path) if splits else "all"
    split_folder = path / part if splits else path
    classes = subfolders(split_folder, left_out)
    if not classes and (files := image_files(split_folder, left_out)):
        rows, count = FileRows(split_folder, files), len(files)
        return ImageSet(name, part, (), np.zeros(count, np.int64), rows, np.arange(count), labelled=False, left_out=left_out)
    if not classes:
        raise UserError(f"no class folders in {split_folder}: expected images as {split_folder / 'CLASS' / 'IMAGE.jpg'}")
    refuse_unequal_classes(path, splits)

    below = [(file, i) for i, name in enumerate(classes) for file in images_below(split_folder / name, left_out)]
    labels = np.array([label for _, label in below], np.int64)
    if not below:
        raise UserError(f"no images in {split_folder}: none of its files ends in {', '.join(IMG_EXTENSIONS)}")
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        raise UserError(f"class folder {split_folder / classes[empty[0]]} has no images: fill it or remove it")
    prefix = f"{path}{os.sep}"
    paths = [file.removeprefix(prefix).replace(os.sep, "/") for file, _ in below]
    images = image_set(name, FileRows(path, paths), split=part, classes=classes, labels=labels)
    return replace(images, left_out=left_out)


@dataclass(frozen=True)
class LabelledFileRows(FileRows):
    """The same with labels from a table, which belong to the content."""

    labels: Sequence[str]

    def content(self, rows: Iterable[int]) -> tuple[str, str]:
        """The hash of the paths, sizes and labels of these rows."""
        sizes = (f"{self.paths[row]}\t{os.stat(self.root / self.paths[row]).st_size}\t{self.labels[row]}" for row in rows)
        return sha256_of_lines(sizes), "paths, sizes and labels of the images"


def labelled_folder(path: Path, table: Path, *, name: str) -> ImageSet:
    """The images of a folder that a CSV table lists, in its order: file name below the folder, label.

    Labels are the model's output numbers, or names of classes, which are numbered in alphabetical order.  A first row without
    an image's name is the header.  Every split is the whole table.
    Errors: UserError that names the table and its row.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    try:
        with table.open(newline="", encoding="utf-8-sig") as opened:
            rows = [(number, row) for number, row in enumerate(csv.reader(opened), start=1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the labels in {table}: {error}") from error
    if rows and not rows[0][1][0].strip().lower().endswith(IMG_EXTENSIONS):
        del rows[0]
    if not rows:
        raise UserError(f"{table} lists no images: write a row for each, file name and label")
    labels: dict[str, str] = {}
    for number, row in rows:
        file, label = (*(cell.strip() for cell in row), "", "")[:2]
        if not label or file in labels:
            problem = "lists an image twice" if file in labels else "has no label"
            raise UserError(f"{table} row {number} {problem}: write file name and label, once for each image")
        if not (path / file).is_file():
            raise UserError(f"{table} row {number}: there is no image {path / file}")
        labels[file] = label
    names = list(labels.values())
    are_numbers = all(label.isascii() and label.isdigit() for label in names)
    classes = () if are_numbers else tuple(sorted(set(names)))  # of numbers it is not known how many there are
    numbers = np.array([int(label) if are_numbers else classes.index(label) for label in names], np.int64)
    return ImageSet(name, "all", classes, numbers, LabelledFileRows(path, list(labels), names), np.arange(len(numbers)))


def imagenet(root: Path, split: str) -> ImageSet:
    """ImageNet-1k as root/train/WNID and root/val/WNID.

    Errors: Unavailable if it is not there, UserError if it has not 1,000 classes.
    """
    if not any((root / part).is_dir() for part in TRAIN + TEST):
        raise Unavailable(f"imagenet is not in {root}: name the folder that holds its train and val with --data-root DIR")
    images = folder(root, split, name="imagenet")
    if len(images.classes) != 1000:  # labels would number other classes than the model's outputs
        raise UserError(
            f"imagenet has 1000 classes, {root / images.split} has {len(images.classes)}: to use it as a set of its own,"
            " give the folder's path as the data"
        )
    return images


def refuse_unequal_classes(path: Path, splits: Mapping[str, Sequence[str]]) -> None:
    """Errors: UserError if a class is missing from one split, because its labels would mean other classes there."""
    all_classes = sorted(set().union(*splits.values()))
    for part, classes in splits.items():
        missing = [name for name in all_classes if name not in set(classes)]
        if missing:
            raise UserError(f"{path / part} has no class folder {missing[0]}, which another split of {path} has")
