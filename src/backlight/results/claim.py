"""A claim: a statement of the paper, and the measured number that decides whether it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, SupportsFloat

Verdict = Literal["holds", "does not hold", "undecided"]
Sign = Literal["positive", "negative"]
#: What an interval is over.
Sample = Literal["images", "mini-batches", "seeds", "models"]

#: With fewer of these no claim is decided: intervals over so few do not keep their coverage (docs/statistics.md).
LEAST: dict[str, int] = {"images": 20, "mini-batches": 10, "seeds": 3, "models": 3}
#: An effect within this of zero is rounding of float32, and not decided.
ROUNDING = 1e-6


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
    reason: str = ""  # why it is undecided, if not because the interval holds the deciding value

    def __post_init__(self) -> None:
        if self.count < LEAST[self.over]:
            object.__setattr__(self, "verdict", "undecided")
            object.__setattr__(self, "reason", f"too few {self.over}: {self.count}, fewer than {LEAST[self.over]}")

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
    ) -> Claim:
        """The claim that ``interval`` (value, low, high) is of one sign; undecided where the interval holds zero.

        >>> Claim.of_sign("negative", (-2, -3, -1), id="", statement="", source="", quantity="", count=50).verdict
        'holds'
        """
        value, low, high = (float(x) for x in interval)
        side = "positive" if low > ROUNDING else "negative" if high < -ROUNDING else None
        verdict: Verdict = "undecided" if side is None else "holds" if side == sign else "does not hold"
        return cls(id, statement, source, quantity, value, low, high, verdict, count, over)
