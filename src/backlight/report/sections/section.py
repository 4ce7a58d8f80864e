"""What a section of the page is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from backlight.report.words import number
from backlight.results.result import Result, Row

Results = Sequence[Result | None]  # one a model, in the order of the page


@dataclass(frozen=True)
class Chart:
    """A chart to draw: its kind (a function in ``page.js``), the table and the columns it shows, and its words."""

    kind: str  # depth, bars, matrix, ...: a function in CHARTS
    table: str  # an analysis, or the name of a derived table
    label: str  # what its vertical axis shows, with the unit
    alt: str  # the chart for those who do not see it
    y: str = ""  # the column; its interval is in the columns y_low and y_high
    scale: float = 1
    log: bool | None = None  # a logarithmic axis to begin with; None: there is no choice
    tab: str = ""  # its name if several charts share one area
    subtitles: Sequence[str] = ()  # under each model's name
    name: str = ""  # its key in `results.charts.CHARTS`, which has the words that it shares with the figure in print
    caption: str = ""  # its terms and intervals, as in print


@dataclass(frozen=True)
class Metrics:
    """A table with a model a column: rows of (name, explanation, a text a model)."""

    caption: str
    rows: Sequence[tuple[str, str, Sequence[str]]]


@dataclass(frozen=True)
class Fact:
    """A number in the panel of a unit: a column of a table with rows about units, its name with the unit, and its factor."""

    table: str
    column: str
    name: str
    scale: float = 1


def _none(results: Results) -> list[Any]:
    return []


@dataclass(frozen=True)
class Section:
    """An analysis on the page."""

    title: str
    reading: str  # how to read the figure, in two sentences
    needs: Sequence[str] = ()  # the columns and arrays without which there is nothing to show
    figures: Callable[[Results], list[list[Chart]]] = _none  # charts; those listed together share a place behind tabs
    metrics: Callable[[Results], Metrics | None] = lambda results: None
    rows: bool = False  # show the rows themselves, too
    derived: Mapping[str, Callable[[Result], list[Row]]] = field(default_factory=dict)  # tables made for charts
    of_unit: Sequence[Fact] = ()  # its numbers in the panel of a unit


def last_of_unit(result: Result) -> list[Row]:
    """The last row of each unit: of a spectrum, the highest frequency."""
    return [list(rows)[-1] for _, rows in groupby(result.table, key=lambda row: row["unit"])]


def from_to(results: Results, column: str, scale: float = 1) -> str:
    """For each model, where a number starts and ends over depth."""
    tales = []
    for result in results:
        if result is not None:
            values = [scale * row[column] for row in last_of_unit(result)]
            tales.append(f"{result.model}: from {number(values[0])} to {number(values[-1])}.")
    return " ".join(tales)


def finite(values: Iterable[float | None]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if value is not None and math.isfinite(value)]
