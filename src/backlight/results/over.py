"""Over what a number is: how many images of which split.  One name, such as NLL, stands for numbers over different images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SPLITS = {"train": "training", "test": "test", "val": "validation", "validation": "validation"}


def counted(n: int, singular: str, plural: str | None = None) -> str:
    """A number and its noun.

    >>> counted(1, "stage"), counted(2000, "image")
    ('1 stage', '2,000 images')
    """
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def series(words: Iterable[str]) -> str:
    """Words with commas between them and an "and" before the last.

    >>> series(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def split_of(provenance: Mapping[str, Any]) -> str:
    """The split in a word that stands before "images"; empty if it is not known."""
    split = str((provenance.get("data") or {}).get("split") or "")
    return SPLITS.get(split, split)


def images_of(provenance: Mapping[str, Any]) -> str:
    """What a result is measured on: "2,000 test images", "320 training images"."""
    count, split = provenance.get("images"), split_of(provenance)
    kind = f"{split} image" if split else "image"
    return counted(int(count), kind) if count else f"{kind}s"


def measured_on(each_over: Sequence[str]) -> str:
    """What several results of one analysis are measured on; where it differs, how many models have each.

    >>> measured_on(["50 test images", "50 test images"]), measured_on(["50 images", "9 images"])
    ('50 test images', '50 images (1 model) and 9 images (1 model)')
    """
    different = dict.fromkeys(each_over)
    if len(different) < 2:
        return next(iter(different), "")
    return series(f"{each} ({counted(each_over.count(each), 'model')})" for each in different)
