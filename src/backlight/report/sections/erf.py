"""The section of ``erf``: the side of the square that holds half of the receptive field, and almost all of it, over depth."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from backlight.report.sections.section import Chart, Fact, Results, Section
from backlight.report.words import number
from backlight.results.result import Result, Row

#: Of the shares of a unit, the one to show.
Pick = Callable[[list[Row]], Row]


def half(rows: list[Row]) -> Row:
    """The row of the share closest to one half."""
    return min(rows, key=lambda row: abs(row["share"] - 0.5))


def most(rows: list[Row]) -> Row:
    """The row of the largest share."""
    return max(rows, key=lambda row: row["share"])


def of_units(result: Result, pick: Pick) -> list[Row]:
    """One row for each unit."""
    return [pick(list(rows)) for _, rows in groupby(result.table, key=lambda row: row["unit"])]


def figures(results: Results) -> list[list[Chart]]:
    """Over depth: half of the field and, behind a tab, the largest share."""
    charts = [_chart("erf/half", half, results), _chart("erf/most", most, results)]
    return [charts if charts[0].tab != charts[1].tab else charts[:1]]


def _chart(table: str, pick: Pick, results: Results) -> Chart:
    known = [(result.model, of_units(result, pick)) for result in results if result is not None]
    share = ", ".join(dict.fromkeys(f"{100 * rows[0]['share']:.3g}%" for _, rows in known))
    label = f"Side of the square that holds {share} of the receptive field (pixels)"
    ends = " ".join(f"{name}: from {number(rows[0]['side'])} to {number(rows[-1]['side'])}." for name, rows in known)
    return Chart("depth", table, label, f"{label} over normalised depth. {ends}", y="side", tab=share, name="erf/radius")


SECTION = Section(
    title="Effective receptive field",
    reading=(
        "Each mark is the side of the smallest square of pixels that holds this share of the gradient of the middle of the "
        "feature map after a unit: a step up means that the unit brings in pixels from further away. "
        "Compare the sides with the size of the image, where they end, and half of the field rather than all of it: a single "
        "global attention reaches every pixel."
    ),
    needs=("unit", "kind", "stage", "module", "share", "side", "side_low", "side_high"),
    figures=figures,
    derived={"erf/half": lambda result: of_units(result, half), "erf/most": lambda result: of_units(result, most)},
    of_unit=(Fact("erf/half", "side", "Side of half the receptive field (pixels)"),),
)
