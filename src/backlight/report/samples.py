"""Over what a number is: how many images of which split.  One name, such as NLL, stands for numbers over different images."""

from __future__ import annotations

from collections.abc import Sequence

from backlight.report import words
from backlight.results.claim import Claim
from backlight.results.result import Result

SPLITS = {"train": "training", "test": "test", "val": "validation", "validation": "validation"}


def split_of(result: Result | None) -> str:
    """The split in a word that stands before "images"; empty if it is not known."""
    split = str((result.provenance.get("data") or {}).get("split") or "") if result is not None else ""
    return SPLITS.get(split, split)


def images_of(result: Result) -> str:
    """What a result is measured on: "2,000 test images", "320 training images"."""
    count, split = result.provenance.get("images"), split_of(result)
    kind = f"{split} image" if split else "image"
    return words.counted(int(count), kind) if count else f"{kind}s"


def over(results: Sequence[Result | None]) -> str:
    """What several results of one analysis are measured on; where it differs, how many models have each.

    >>> over([Result("a", [], [], {"images": 50, "data": {"split": "test"}})])
    '50 test images'
    """
    known = [images_of(result) for result in results if result is not None]
    different = dict.fromkeys(known)
    if len(different) < 2:
        return next(iter(different), "")
    return words.series(f"{each} ({words.counted(known.count(each), 'model')})" for each in different)


def of_claim(claim: Claim, result: Result | None) -> str:
    """What the interval of a claim is over, with the split of its images."""
    return words.rests_on(claim, split_of(result))
