"""Item 14 taken apart: whether attention lowers the highest frequency, or raises the mean that it is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from evidence import END, Stored, in_words
from series import read

from backlight.results.result import Result, Row

KINDS = ("attention", "mlp", "conv")


def parts(stored: Stored) -> str:
    """The section of the page."""
    lines = [
        "## Does attention remove high frequencies, or raise the mean?\n",
        read("texts.toml")["parts"],
        "| training | units | step of the mean | step of the highest frequency | step of Δ |",
        "|---|---|--:|--:|--:|",
    ]
    for training, model in stored[END].items():
        if "fourier" in model.results:
            lines += [f"| {training} | {' | '.join(row)} |" for row in _rows(model.results["fourier"])]
    return "\n".join([*lines, ""])


def _rows(fourier: Result) -> Iterator[list[str]]:
    """A row a kind of unit, with the intervals of the two claims about it."""
    claims = {claim.id: claim for claim in fourier.claims}
    for kind in KINDS:
        absolute, relative = (claims.get(f"fourier/{kind}-{reading}") for reading in ("absolute", "relative"))
        if absolute and relative:
            mean = mean_step(fourier.table, kind)
            yield [kind, f"{mean:+.3f}", in_words(absolute), in_words(relative)]


def mean_step(table: list[Row], kind: str) -> float:
    """The change of the log amplitude of the mean, over the units of a kind that leave the resolution as it is."""
    steps: Mapping[int, float] = {
        row["unit"]: row["mean_step"] for row in table if row["kind"] == kind and not _nan(row["mean_step"])
    }
    return float(np.mean(list(steps.values())))


def _nan(value: float | None) -> bool:
    return value is None or bool(np.isnan(value))
