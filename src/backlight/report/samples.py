"""Over what a number on the page is: how many images of which split."""

from __future__ import annotations

from collections.abc import Sequence

from backlight.report import words
from backlight.results.claim import Claim
from backlight.results.over import measured_on, split_of
from backlight.results.result import Result


def over(results: Sequence[Result | None]) -> str:
    """What several results of one analysis are measured on; where it differs, how many models have each."""
    return measured_on([result.over for result in results if result is not None])


def of_claim(claim: Claim, result: Result | None) -> str:
    """What the interval of a claim is over, with the split of its images."""
    return words.rests_on(claim, split_of(result.provenance) if result is not None else "")
