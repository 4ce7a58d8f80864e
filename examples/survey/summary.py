"""Write the table of docs/survey.md from benchmarks/results/survey.parquet: a line a model.

    backlight collect runs/survey --out benchmarks/results/survey.parquet
    python examples/survey/summary.py

torch is not imported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
TABLE, PAGE = ROOT / "benchmarks/results/survey.parquet", ROOT / "docs/survey.md"
MARKS = ("<!-- survey -->", "<!-- /survey -->")
LEAST = 0.01  # of a logarithm, about 1% of an amplitude: smaller changes count as none
HEAD = ("model", "units that keep the resolution", "lower it", "raise it", "leave it", "undecided", "median change",
        "median change, relative", "CKA of stem and last unit")  # fmt: skip
Row = Mapping[str, Any]


def effect(row: Row) -> str:
    """What a unit does to the amplitude at the highest frequency, with 95% confidence.

    >>> effect({"high_step": -0.5, "high_step_low": -0.6, "high_step_high": -0.4})
    'lower'
    >>> effect({"high_step": -1e-9, "high_step_low": -2e-9, "high_step_high": -1e-10})
    'leave'
    >>> effect({"high_step": 0.1, "high_step_low": -0.1, "high_step_high": 0.3})
    'undecided'
    """
    if abs(row["high_step"]) < LEAST:
        return "leave"
    if row["high_step_high"] < 0:
        return "lower"
    return "raise" if row["high_step_low"] > 0 else "undecided"


def finite(value: float | None) -> bool:
    """Whether a cell of the table has a number: other analyses leave it empty, and fourier writes NaN."""
    return value is not None and math.isfinite(value)


def steps(rows: Iterable[Row]) -> list[Row]:
    """The rows of the highest frequency, of units that keep the resolution."""
    return [row for row in rows if row["analysis"] == "fourier" and finite(row["high_step"])]


def ends(rows: Sequence[Row]) -> float:
    """CKA between the first and the last place where the stream is read; NaN if it is not among the rows."""
    pairs = [row for row in rows if row["analysis"] == "similarity" and row["other_unit"] is not None]
    if not pairs:
        return float("nan")
    first, last = min(row["unit"] for row in pairs), max(row["other_unit"] for row in pairs)
    return next((row["cka"] for row in pairs if (row["unit"], row["other_unit"]) == (first, last)), float("nan"))


def line(model: str, rows: Sequence[Row]) -> str:
    """A model as a line of the table."""
    units = steps(rows)
    if not units:
        return f"| {model} | 0 | | | | | | | {ends(rows):.2f} |"
    counts = Counter(map(effect, units))
    numbers = [len(units), *(counts[name] for name in ("lower", "raise", "leave", "undecided"))]
    changes = median(r["high_step"] for r in units), median(r["high_step"] - r["mean_step"] for r in units)
    signed = [f"{change + 0.0:+.2f}".replace("-0.00", "0.00").replace("+0.00", "0.00") for change in changes]
    return f"| {' | '.join([model, *map(str, numbers), *signed, f'{ends(rows):.2f}'])} |"


def table(rows: Iterable[Row]) -> str:
    """The table of all models."""
    models: dict[str, list[Row]] = {}
    for row in rows:
        models.setdefault(row["model"], []).append(row)
    head = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return "\n".join([*head, *(line(model, models[model]) for model in sorted(models))])


def main() -> None:
    """Write the table between the marks of the page."""
    import pyarrow.parquet as pq

    before, rest = PAGE.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    rows = pq.read_table(TABLE).to_pylist()
    PAGE.write_text(f"{before}{MARKS[0]}\n{table(rows)}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
