"""How good the estimates of a study were.  torch is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

from backlight.errors import UserError
from backlight.progress import clock
from backlight.records import Record, read_record

ESTIMATES = "estimates.json"


@dataclass(frozen=True)
class Estimates(Record):
    """What ``estimates.json`` holds: model -> analysis -> minutes."""

    record = "estimates"
    version = 1

    minutes: dict[str, dict[str, float]] = field(default_factory=dict)


def read_estimates(folder: Path) -> dict[str, dict[str, float]]:
    """Model -> analysis -> minutes; empty if there was no plan, or if the file is damaged."""
    try:
        stored = read_record(folder / ESTIMATES, Estimates)
    except UserError:
        return {}
    return stored.minutes if stored else {}


def accuracy(folder: Path, took: Mapping[tuple[str, str], float]) -> str:
    """A sentence that compares what cells took (seconds) with their estimates; empty if none has an estimate."""
    minutes = read_estimates(folder)
    pairs = [(s, 60 * minutes[m][a]) for (m, a), s in took.items() if a in minutes.get(m, {}) and minutes[m][a] > 0]
    if not pairs:
        return ""
    total, estimated = sum(seconds for seconds, _ in pairs), sum(expected for _, expected in pairs)
    spread = ""
    if len(pairs) > 3:
        low, _, high = quantiles([seconds / expected for seconds, expected in pairs], n=4)
        spread = f"; half of the cells took {low:.2g} to {high:.2g} times their estimate"
    return f"{len(pairs)} cells took {clock(total)}, estimated were {clock(estimated)}{spread}"
