"""The numbers of a page in few bytes: tables by column, compressed, and of a survey as many of their rows as a page can hold.

A table is compressed on its own, so that a browser unpacks what comes into sight.  Where the tables of many models are too
large, the largest are reduced, a level at a time, until the page is small enough; the page says which, and where the rows are.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np

from backlight.results.result import Row

#: The tables of each model: its rows, or None where the analysis has no result.
Tables = Mapping[str, Sequence[Sequence[Row] | None]]
#: Characters for the tables of a page.  With Plotly and the words of 100 models it stays below 10 MB, which a mail can carry.
BUDGET = 5_000_000
#: Figures of a number: more than any interval leaves, and as many as a chart of a survey shows.
FIGURES, FEW_FIGURES = 8, 4


@dataclass(frozen=True)
class Packed:
    """A table as the page holds it, and what was done to it."""

    text: str
    level: int  # of `LEVELS`


def packed(tables: Tables, drawn: Collection[str], budget: int = BUDGET) -> dict[str, Packed]:
    """Each table compressed, reduced until all fit: those that are not drawn go first, then the largest loses a level."""
    small = {name: _at_level(complete, 0) for name, complete in tables.items()}
    while sum(len(each.text) for each in small.values()) > budget:
        left = {name: len(each.text) for name, each in small.items() if each.level < LAST}
        if not left:
            break
        spare = {name: size for name, size in left.items() if name not in drawn}
        name = max(spare or left, key=lambda name: left[name])
        level = LAST if spare else small[name].level + 1
        small[name] = _at_level(tables[name], level)
    return small


def _at_level(complete: Sequence[Sequence[Row] | None], level: int) -> Packed:
    """The table at a level; at the last one if this one leaves no rows."""
    _, reduced, figures = LEVELS[level]
    left = [None if rows is None else reduced(rows) for rows in complete]
    level = level if any(left) or not any(complete) else LAST
    return Packed(table(left, figures), level)


def table(of_models: Sequence[Sequence[Row] | None], figures: int = FIGURES) -> str:
    """The rows of each model, by column, compressed."""
    return deflated(f"[{','.join('null' if rows is None else columns(rows, figures) for rows in of_models)}]")


def compressed(document: Any) -> str:
    """A document as compressed JSON."""
    return deflated(json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def deflated(text: str) -> str:
    """A text, deflated, in base64: no character of it can end a script element."""
    return base64.b64encode(zlib.compress(text.encode(errors="backslashreplace"), 9)).decode()


# --- levels


def _all(rows: Sequence[Row]) -> Sequence[Row]:
    return rows


def _without_intervals(rows: Sequence[Row]) -> Sequence[Row]:
    return [{key: row[key] for key in row if not key.endswith(("_low", "_high"))} for row in rows]


def last_of_units(rows: Sequence[Row]) -> Sequence[Row]:
    """The last row of each unit, of a spectrum the highest frequency; nothing of a table that is not about single units."""
    if not rows or "unit" not in rows[0] or "other_unit" in rows[0]:
        return []
    return [list(group)[-1] for _, group in groupby(rows, key=lambda row: row["unit"])]


#: What is left of a table: in words (empty: everything), its rows, the figures of a number.
LEVELS: tuple[tuple[str, Callable[[Sequence[Row]], Sequence[Row]], int], ...] = (
    ("", _all, FIGURES),
    ("all rows with numbers of four figures", _all, FEW_FIGURES),
    ("all rows, without intervals", _without_intervals, FEW_FIGURES),
    ("the last row of each unit", last_of_units, FEW_FIGURES),
    ("no rows", lambda rows: [], FEW_FIGURES),
)
LAST = len(LEVELS) - 1


def reductions(tables: Mapping[str, Packed]) -> list[tuple[str, list[str]]]:
    """What was done to which tables, in words, the smallest reduction first."""
    words = [words for words, *_ in LEVELS]
    return [
        (words[level], [name for name, each in tables.items() if each.level == level])
        for level in range(1, len(LEVELS))
        if any(each.level == level for each in tables.values())
    ]


# --- columns


def columns(rows: Sequence[Row], figures: int = FIGURES) -> str:
    """A table by column as JSON: a third of its size by row.

    >>> columns([{"unit": 0, "delta": 0.123456789}, {"unit": 1, "delta": math.nan}], 4)
    '{"unit":[0,1],"delta":[0.1235,null]}'
    """
    names = dict.fromkeys(name for row in rows for name in row)
    texts = (f"{json.dumps(name)}:[{','.join(_brief(row.get(name), figures) for row in rows)}]" for name in names)
    return f"{{{','.join(texts)}}}"


def _brief(value: Any, figures: int) -> str:
    """A value as JSON, a number with so many figures; JSON has no NaN."""
    if type(value) is int:
        return str(value)
    if isinstance(value, float | np.floating):
        return f"{value:.{figures}g}" if math.isfinite(value) else "null"
    return _quoted(value) if isinstance(value, str) else _plain(value)


@lru_cache(maxsize=10_000)
def _quoted(text: str) -> str:
    """A string as JSON; a table has few different ones, each many times."""
    return json.dumps(text, ensure_ascii=False)


def _plain(value: Any) -> str:
    return json.dumps(value if isinstance(value, int) or value is None else str(value), ensure_ascii=False)
