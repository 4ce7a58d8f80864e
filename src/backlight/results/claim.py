"""A claim: a statement of the paper, and the measured number that decides whether it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, SupportsFloat

Verdict = Literal["holds", "does not hold", "undecided"]
Sign = Literal["positive", "negative"]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and a number with its interval that decides whether it holds for this model."""

    statement: str  # what should be so
    source: str  # where the paper says it
    quantity: str  # what is measured, with its unit
    value: float
    low: float
    high: float
    verdict: Verdict

    @classmethod
    def of_sign(
        cls,
        sign: Sign,
        interval: Iterable[SupportsFloat],
        *,
        statement: str,
        source: str,
        quantity: str,
    ) -> Claim:
        """The claim that ``interval`` (value, low, high) is of one sign; undecided where the interval holds zero.

        >>> Claim.of_sign("negative", (-2, -3, -1), statement="", source="", quantity="").verdict
        'holds'
        """
        value, low, high = (float(x) for x in interval)
        side = "positive" if low > 0 else "negative" if high < 0 else None
        verdict: Verdict = "undecided" if side is None else "holds" if side == sign else "does not hold"
        return cls(statement, source, quantity, value, low, high, verdict)
