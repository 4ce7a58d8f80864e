"""A claim: a statement of the paper, and the measured number that decides whether it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, SupportsFloat

from backlight.numerics.multiple import implied_p_value

Verdict = Literal["holds", "does not hold", "undecided", "not comparable"]
Sign = Literal["positive", "negative"]
#: What an interval is over.
Sample = Literal["images", "mini-batches", "seeds", "models"]

#: With fewer of these no claim is decided: intervals over so few do not keep their coverage (docs/statistics.md).
LEAST: dict[str, int] = {"images": 20, "mini-batches": 10, "seeds": 3, "models": 3}
#: An effect within this of zero is rounding of float32, and not decided.
ROUNDING = 1e-6
#: The same for the logarithm of an amplitude or a variance: the rest of sums that are up to 1,000 times larger, which has 1,000
#: times their rounding error, 2^-23.  Measured: up to 2e-5 where a unit only changes the order of the numbers in memory.
LOG_ROUNDING = 1000 * 2.0**-23


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and a number with its interval that decides whether it holds for this model.

    Below `LEAST` of what the interval is over the verdict is "undecided", and ``reason`` says so.
    """

    id: str  # ANALYSIS/NAME, the same in every version
    statement: str  # what should be so
    source: str  # where the paper says it
    quantity: str  # what is measured, with its unit
    value: float
    low: float
    high: float
    verdict: Verdict
    count: int  # of what the interval is over
    over: Sample
    reason: str = ""  # why it is undecided, if not because the interval holds the deciding value; why it is not comparable
    decided_at: float = 0.0  # the deciding value
    rounding: float = ROUNDING  # an effect within this of it is not decided

    def __post_init__(self) -> None:
        if self.count < LEAST[self.over] and self.verdict != "not comparable":
            object.__setattr__(self, "verdict", "undecided")
            object.__setattr__(self, "reason", f"too few {self.over}: {self.count}, fewer than {LEAST[self.over]}")

    @property
    def p_value(self) -> float:
        """The two-sided p-value that the interval implies: below 0.05 if and only if it excludes the deciding value.

        The interval is taken as Student's, with one degree of freedom less than its count.  NaN: not tested, because there is
        no interval, too few of what it is over, or nothing to compare.
        """
        if self.reason:
            return math.nan
        at = min(max(self.value, self.decided_at - self.rounding), self.decided_at + self.rounding)
        return implied_p_value(self.value, self.low, self.high, at, freedom=self.count - 1)

    @classmethod
    def of_sign(
        cls,
        sign: Sign,
        interval: Iterable[SupportsFloat],
        *,
        id: str,
        statement: str,
        source: str,
        quantity: str,
        count: int,
        over: Sample = "images",
        rounding: float = ROUNDING,
    ) -> Claim:
        """The claim that ``interval`` (value, low, high) is of one sign; undecided where the interval holds zero.

        >>> Claim.of_sign("negative", (-2, -3, -1), id="", statement="", source="", quantity="", count=50).verdict
        'holds'
        """
        value, low, high = (float(x) for x in interval)
        side = "positive" if low > rounding else "negative" if high < -rounding else None
        verdict: Verdict = "undecided" if side is None else "holds" if side == sign else "does not hold"
        return cls(id, statement, source, quantity, value, low, high, verdict, count, over, rounding=rounding)
