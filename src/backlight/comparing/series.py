"""Numbers of one result that are compared alike: what each is of, and where it is known, its value for each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backlight.numerics.bootstrap import Interval, mean_interval, skewed_mean_interval
from backlight.numerics.proportions import paired_difference_interval, share_interval
from backlight.numerics.student import student
from backlight.results.claim import Sample
from backlight.results.result import Row

Array = NDArray[np.float64]
#: The samples of two models, images first, (n, ...) each -> the second's numbers less the first's, (K,).
Paired = Callable[[Array, Array], Interval]
ENDS = ("", "_low", "_high")


class Number(NamedTuple):
    """What a number is of."""

    quantity: str
    place: str = ""  # a unit, a part of the depth, a frequency; empty: the entire model
    unit: int | None = None
    kind: str = ""
    stage: int | None = None
    depth: float | None = None  # 0: the first, 1: the last unit; the middle of a part of the depth


@dataclass(frozen=True)
class Series:
    """Numbers of a result.  Shapes: ends (3, K), samples (n, ...), images first."""

    numbers: tuple[Number, ...]
    ends: Array  # value, low, high
    samples: Array | None = None  # None: only the intervals are known
    paired: Paired | None = None
    over: Sample = "images"
    scale: float = 1.0
    title: str = ""  # what the numbers are, if their quantity does not tell
    some_units: bool = False  # it leaves out units of other kinds, so it does not know the depth
    count: int = 0  # of what the intervals are over; 0: of images, all of them

    @property
    def by_unit(self) -> bool:
        """Whether each number is of a unit."""
        return all(number.unit is not None for number in self.numbers)

    def only(self, numbers: Sequence[Number]) -> Series:
        """These of the numbers, if each has samples of its own, or none has."""
        at = [self.numbers.index(number) for number in numbers]
        own = self.samples is not None and self.samples.shape[1:] == (len(self.numbers),)
        samples = self.samples[:, at] if own else self.samples  # type: ignore[index]
        return replace(self, numbers=tuple(numbers), ends=self.ends[:, at], samples=samples)


def with_intervals(series: Series) -> Array:
    """Value, low, high of each number, also where only its samples are known.  Shapes: (3, K)."""
    samples = series.samples
    if samples is None or np.isfinite(series.ends[1]).any() or samples.shape[1:] != (len(series.numbers),):
        return series.ends
    own = OWN.get(series.paired)
    return series.ends if own is None else np.stack(own(finite(samples)))


# --- intervals of a difference


def means(first: Array, second: Array) -> Interval:
    """Of means; images without a finite number in every place count in no place."""
    return mean_interval(finite(second - first))


def skewed_means(first: Array, second: Array) -> Interval:
    """Of means of skewed numbers, such as NLL."""
    return skewed_mean_interval(finite(second - first))


def shares(first: Array, second: Array) -> Interval:
    """Of means of numbers from 0 to 1."""
    return paired_difference_interval(second, first)


def changes(first: Array, second: Array) -> Interval:
    """Of means of differences of such numbers, from -1 to 1."""
    return Interval(*(2 * end for end in paired_difference_interval((second + 1) / 2, (first + 1) / 2)))


def batch_means(first: Array, second: Array) -> Interval:
    """Of means over a few mini-batches."""
    return Interval(*np.transpose([student(column.tolist()) for column in (second - first).T]))


#: How a number of one model has an interval, by how a difference of two has one.
OWN: dict[Paired | None, Callable[[Array], Interval]] = {
    means: mean_interval,
    skewed_means: skewed_mean_interval,
    shares: share_interval,
    batch_means: lambda samples: batch_means(np.zeros_like(samples), samples),
}


def finite(differences: Array) -> Array:
    """The rows that are finite.  Shapes: (n, K) -> (at most n, K)."""
    return differences[np.isfinite(differences).all(1)]


# --- series from the rows and arrays of a result


def sampled(numbers: Sequence[Number], samples: Array, paired: Paired, *, over: Sample = "images", scale: float = 1) -> Series:
    """Means of samples.  Shapes: (K, n)."""
    images_first = np.asarray(samples, np.float64).T
    value = finite(images_first).mean(0)
    return Series(tuple(numbers), np.stack([value, value * np.nan, value * np.nan]), images_first, paired, over, scale)


def of_rows(numbers: Sequence[Number], rows: Sequence[Row], column: str, **about: Any) -> Series:
    """A column of rows with its interval, without samples."""
    ends = np.array([[_number(row[f"{column}{end}"]) for row in rows] for end in ENDS], np.float64)
    return Series(tuple(numbers), ends, **about)


def of_units(quantity: str, rows: Sequence[Row], column: str, **about: Any) -> Series:
    """A column of rows, a unit each."""
    return of_rows([of_unit(quantity, row) for row in rows], rows, column, **about)


def of_unit(quantity: str, row: Mapping[str, Any]) -> Number:
    """The number of a unit, of its row.

    >>> of_unit("delta", {"unit": -1, "kind": "stem", "stage": 0}).place
    'stem'
    """
    place = "stem" if row["unit"] < 0 else f"unit {row['unit']} ({row['kind']})"
    return Number(quantity, place, row["unit"], row["kind"], row["stage"])


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
