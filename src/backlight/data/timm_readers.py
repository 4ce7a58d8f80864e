"""Image sets of the Hugging Face Hub, and webdataset's tar files, through timm's readers."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from backlight.data.image_set import ImageSet, Stream, image_set, numbered, spellings
from backlight.errors import Unavailable, UserError, first_line
from backlight.offline import hub_offline_if_set, offline

#: timm's name of a reader -> the library that it needs, and the extra of backlight that installs it.
READERS = {"hfds": ("datasets", "hf"), "hfids": ("datasets", "hf"), "wds": ("webdataset", "wds")}


@dataclass(frozen=True)
class HubRows:
    """The rows of a Hub set that timm's reader has opened."""

    name: str
    reader: Any

    def read(self, row: int) -> bytes:
        """The bytes of a row's image file.  Errors: UserError if the image column holds none."""
        try:
            with self.reader[row][0] as file:
                return file.read()
        except (TypeError, AssertionError, OSError) as error:
            column = self.reader.image_key
            raise UserError(
                f"cannot read image {self.where(row)}: column {column} holds none; ?input_key=NAME names another"
            ) from error

    def id(self, row: int) -> str:
        """The row number."""
        return str(row)

    def where(self, row: int) -> str:
        """The name of the set and the row number."""
        return f"{self.name} row {row}"

    def content(self, rows: Iterable[int]) -> tuple[None, str]:
        """No hash: the images are in the Hub's cache."""
        return None, "not hashed: the Hub's cache"


def through_timm(name: str, split: str, *, root: Path | None, download: bool) -> ImageSet | Stream:
    """`hfds/ORG/NAME`, `hfids/ORG/NAME` (streamed) or `wds/FOLDER`, as timm spells them.

    Settings of the reader follow a question mark: `hfds/uoft-cs/cifar100?input_key=img&target_key=fine_label`.
    Errors: Unavailable if the library is not installed or the set is not available, UserError for a wrong split or column.
    """
    prefix, rest = name.split("/", 1)
    prefix = prefix.lower()
    library, extra = READERS[prefix]
    if importlib.util.find_spec(library) is None:
        raise Unavailable(f"{name} needs the library {library}: pip install 'backlight[{extra}]'")
    rest, _, query = rest.partition("?")
    settings: dict[str, Any] = {"root": root and str(root), **reader_settings(name, query)}
    if prefix == "wds":
        settings["root"] = os.path.join(root or "", rest)  # timm's reader takes the folder from here
        if offline() and re.search("://|pipe:", settings["root"] + split):
            raise Unavailable(f"{name} is on the network, which {offline()} forbids")
    if prefix == "hfids":
        settings["download"] = download
    part, timm_set = timm_dataset(f"{prefix}/{rest}", split, **settings)

    reader = timm_set.reader
    classes = tuple(reader.class_to_idx)
    if prefix != "hfds":
        if not len(timm_set):
            raise UserError(f"{name} does not say how many images it has: add ?num_samples=N to the name")
        return Stream(name, part, classes, len(timm_set), timm_set)
    # The reader's rows, not timm's items: for a bad image timm gives the next one, with a warning.
    if reader.label_key not in reader.dataset.column_names:
        raise UserError(f"{name} has no column {reader.label_key}: ?target_key=NAME names another")
    labels = np.asarray(reader.dataset.with_format("numpy")[reader.label_key][:])
    return image_set(name, HubRows(name, reader), split=part, classes=classes or numbered(labels), labels=labels)


def reader_settings(name: str, query: str) -> dict[str, Any]:
    """Settings of timm's readers, from `input_key=img&num_samples=100`.  Errors: UserError for a setting they do not have."""
    settings: dict[str, Any] = dict(parse_qsl(query))
    unknown = set(settings) - {"input_key", "target_key", "num_samples"}
    if unknown or not settings.get("num_samples", "1").isdecimal():
        raise UserError(f"{name}: write input_key=NAME, target_key=NAME or num_samples=NUMBER after the ?, with & between them")
    return settings | ({"num_samples": int(settings["num_samples"])} if "num_samples" in settings else {})


def timm_dataset(name: str, split: str, **settings: Any) -> tuple[str, Any]:
    """The name of the split in this set, and timm's data set.

    Errors: Unavailable if the set is not available, UserError if the split does not exist.
    """
    from timm.data import create_dataset
    from torch.utils.data import IterableDataset

    reasons = []
    for spelling in spellings(split):
        try:
            with hub_offline_if_set():
                timm_set = create_dataset(name, split=spelling, input_img_mode="", **settings)
                if isinstance(timm_set, IterableDataset):
                    next(iter(timm_set), None)  # a stream looks for its split only when it is read
                return spelling, timm_set
        except Exception as error:  # these libraries raise many kinds of exceptions
            reason = first_line(error)
            reasons.append(reason)
            if "num_samples" in reason:
                raise UserError(f"{name} does not say how many images it has: add ?num_samples=N to the name") from error
            if "split" not in reason.lower():
                raise Unavailable(f"{name} is not available: {reason}{gated_hint(name, reason)}") from error
    raise UserError(f"no split {split} in {name}: {reasons[0]}")


def gated_hint(name: str, reason: str) -> str:
    """What to do for a set whose terms must be accepted first; empty for other reasons."""
    if "gated" not in reason:
        return ""
    return f"; accept its terms on https://huggingface.co/datasets/{name.split('/', 1)[1]}, then run: hf auth login"
