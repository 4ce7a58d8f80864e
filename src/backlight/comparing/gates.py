"""Thresholds on differences, for a user's CI: ``ece>+0.01`` fails if the second model's ECE is more than 0.01 higher."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from backlight.comparing.compare import Comparison
from backlight.comparing.differences import Difference
from backlight.errors import UserError

FORM = re.compile(r"\s*(?P<name>[^<>=]+?)\s*(?P<side>[<>])\s*(?P<limit>[+-]?[0-9.]+(?:e[+-]?[0-9]+)?)\s*", re.IGNORECASE)
EXAMPLE = "--fail-on 'ece>+0.01', --fail-on 'accuracy<-0.5'"


@dataclass(frozen=True)
class Threshold:
    """A name, a side and a limit, in the unit of the difference."""

    text: str
    name: str
    above: bool  # it fails above the limit; otherwise below
    limit: float


@dataclass(frozen=True)
class Check:
    """A threshold and the difference that it is about."""

    threshold: Threshold
    difference: Difference
    reached: float  # the end of the interval nearest to no failure, or the estimate

    @property
    def failed(self) -> bool:
        """Whether the difference is beyond the limit."""
        return self.reached > self.threshold.limit if self.threshold.above else self.reached < self.threshold.limit


def threshold(text: str) -> Threshold:
    """The threshold in a text.  Errors: UserError with an example.

    >>> threshold("accuracy<-0.5")
    Threshold(text='accuracy<-0.5', name='accuracy', above=False, limit=-0.5)
    """
    match = FORM.fullmatch(text)
    try:
        limit = float(match["limit"]) if match else math.nan
    except ValueError:
        limit = math.nan
    if match is None or not math.isfinite(limit):
        raise UserError(f"--fail-on {text!r} is no threshold: give NAME>CHANGE or NAME<CHANGE, such as {EXAMPLE}")
    return Threshold(text, match["name"], match["side"] == ">", limit)


def check(comparison: Comparison, limit: Threshold, *, point: bool = False) -> Check:
    """The threshold against the interval's near end, so that it fails only if the whole interval is beyond the limit.

    ``point``: against the estimate.
    Errors: as `Comparison.__getitem__`; UserError if the interval is not known.
    """
    difference = comparison[limit.name]
    reached = difference.value if point else difference.low if limit.above else difference.high
    if not math.isfinite(reached):
        raise UserError(f"{difference.id} has no interval over {difference.count} {difference.over}: use more, or --point")
    return Check(limit, difference, reached)
