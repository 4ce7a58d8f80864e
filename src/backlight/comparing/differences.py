"""Every number of a result less that of another result of the same analysis, over the same images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from backlight.claims.comparable import caution_of, why_not
from backlight.comparing.pairing import aligned
from backlight.comparing.readers import described, read
from backlight.comparing.series import Number, Series
from backlight.errors import UserError
from backlight.numerics.bootstrap import Interval
from backlight.numerics.independent import difference_interval
from backlight.numerics.multiple import ALPHA, holm, implied_p_value
from backlight.results.claim import LEAST, ROUNDING, Sample
from backlight.results.result import Result


class NotComparable(UserError):
    """Two results that were not measured alike; the message says what differs and how to make it the same."""


@dataclass(frozen=True)
class Difference:
    """A number of two models: both values, and the second less the first with its 95% interval."""

    analysis: str
    number: Number
    title: str
    unit: str
    first: float
    second: float
    value: float
    low: float
    high: float
    count: int  # of what the interval is over
    over: Sample
    paired: bool  # False: from the two intervals alone, as if the images were not the same; too wide
    adjusted: float = math.nan  # the p-value after Holm's correction over all differences of a comparison

    @property
    def id(self) -> str:
        """ANALYSIS/QUANTITY, and the place: ``calibration/ece``, ``lesion/accuracy_change/unit-3``, ``noise/.../0.1π``."""
        number = self.number
        place = number.place if number.unit is None else "stem" if number.unit < 0 else f"unit {number.unit}"
        return "/".join(filter(None, (self.analysis, number.quantity, place.replace(" ", "-"))))

    @property
    def p_value(self) -> float:
        """The two-sided p-value that the interval implies; NaN without an interval, or over too few images."""
        if self.count < LEAST[self.over]:
            return math.nan
        at = min(max(self.value, -ROUNDING), ROUNDING)
        return implied_p_value(self.value, self.low, self.high, at, freedom=self.count - 1)

    @property
    def decided(self) -> bool:
        """Whether the second model's number is higher, or lower, after Holm's correction."""
        return self.adjusted < ALPHA

    @property
    def verdict(self) -> str:
        """What the second model's number is, compared with the first's; with a * if not after Holm's correction."""
        if not self.p_value < ALPHA:
            return "undecided"
        return ("higher" if self.value > 0 else "lower") + ("" if self.decided else "*")

    def row(self) -> dict[str, Any]:
        """The difference as a row of a table; NaN is None."""
        numbers = {"first": self.first, "second": self.second, "difference": self.value, "low": self.low, "high": self.high}
        numbers |= {"depth": math.nan if self.number.depth is None else self.number.depth, "p_holm": self.adjusted}
        finite = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        depth, p_holm = finite.pop("depth"), finite.pop("p_holm")
        place = {"place": self.number.place, "depth": depth}
        about = {"count": self.count, "over": self.over, "interval": "paired" if self.paired else "not paired"}
        return {
            "id": self.id, "verdict": self.verdict, **finite, "unit": self.unit, **place, **about, "p_holm": p_holm,
            "what": self.title,
        }  # fmt: skip


def differences(first: Result, second: Result, *, same_images: bool = False) -> list[Difference]:
    """Every number of ``second`` less that of ``first``, two results of one analysis.

    Units are compared one by one if both models have the same word, otherwise the means over fifths of the normalised depth.
    Where the results hold a number for each image the interval is that of the paired differences.  ``same_images``: both
    were measured on the same images in the same order, although the results do not record which.
    Errors: NotComparable if the images or the settings differ, or are not known.
    """
    if reason := why_not_alike(first, second, same_images=same_images):
        raise NotComparable(reason)
    others = {series.numbers[0].quantity: series for series in read(second) if series.numbers}
    pairs = [
        pair
        for series in read(first)
        if series.numbers and series.numbers[0].quantity in others
        if (pair := aligned(series, others[series.numbers[0].quantity])) is not None
    ]
    images = int(first.provenance.get("images") or 0)
    return [each for one, other in pairs for each in _differences(first.analysis, one, other, images)]


def corrected(uncorrected: Sequence[Difference]) -> list[Difference]:
    """The differences with Holm's correction over all of them."""
    adjusted = holm([each.p_value for each in uncorrected])
    return [replace(each, adjusted=float(p)) for each, p in zip(uncorrected, adjusted, strict=True)]


def _differences(analysis: str, first: Series, second: Series, images: int) -> Iterator[Difference]:
    paired = first.samples is not None and second.samples is not None
    over = min(series.count or images for series in (first, second))
    interval, count = _paired(first, second) if paired else (difference_interval(first.ends, second.ends), over)
    values = [first.scale * np.stack([first.ends[0], second.ends[0], *interval]).T][0]
    for number, (one, other, value, low, high) in zip(first.numbers, values.tolist(), strict=True):
        if not math.isfinite(value):  # such as the accuracy of the confident answers where there is none
            continue
        known = described(number.quantity)
        yield Difference(
            analysis, number, first.title or known.title, known.unit, one, other, value, low, high, count, first.over, paired
        )


def _paired(first: Series, second: Series) -> tuple[Interval, int]:
    """The interval over the images that both have, and how many these are."""
    one, other = first.samples, second.samples
    assert one is not None
    assert other is not None
    assert first.paired is not None
    finite = np.isfinite(one).all(1) & np.isfinite(other).all(1)
    return first.paired(one[finite], other[finite]), int(finite.sum())


# --- whether two results were measured alike


def why_not_alike(first: Result, second: Result, *, same_images: bool = False) -> str:
    """Why two results of one analysis cannot be compared, and what to do; empty if they can."""
    reason = why_not(first, second)
    if not reason:
        return ""
    both = f"{first.model} and {second.model}, {first.analysis}: not comparable"
    recorded = [(result.provenance.get("data") or {}).get("ids_sha256") for result in (first, second)]
    if not all(recorded):
        if same_images and not any(recorded):
            return "" if _alike(first, second) else f"{both}: the numbers of images, or the settings, differ"
        return f"{both}: {reason}; load both with backlight.load_data, or say same_images=True"
    if "images" in reason:
        shown = " and ".join(dict.fromkeys(images_of(result) for result in (first, second)))
        return f"{both}: {reason}: {shown}; make them the same with the same --data, --split, --limit and --seed"
    return f"{both}: {reason}; measure both with the same settings"


def _alike(first: Result, second: Result) -> bool:
    """Whether two results that record no images have as many images, and the same settings."""
    marked = [
        replace(r, provenance={**r.provenance, "data": {**(r.provenance.get("data") or {}), "ids_sha256": "the same"}})
        for r in (first, second)
    ]
    return not why_not(*marked)


def images_of(result: Result) -> str:
    """Which images a result was measured on, in words."""
    data = result.provenance.get("data") or {}
    chosen = f"limit {data['limit']}, seed {data.get('seed')}" if data.get("limit") else "all"
    return f"{result.provenance.get('images')} images of {data.get('data')} {data.get('split')} ({chosen})"


def cautions(first: Result, second: Result) -> list[str]:
    """Why no difference between these models says much, such as random weights."""
    return [f"{result.model}: {caution}" for result in (first, second) if (caution := caution_of(result))]
