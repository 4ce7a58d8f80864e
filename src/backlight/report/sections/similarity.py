"""The section of ``similarity``: figure 10a."""

from __future__ import annotations

from ...result import Result, Row
from ..words import interval
from .section import Chart, Metrics, Results, Section

SQUARES = "A square a model, a row and a column a unit, from dark for CKA 0 to bright for 1; lines end a stage. "


def figures(results: Results) -> list[list[Chart]]:
    """The matrix, a panel a model."""
    return [[Chart("matrix", "similarity/matrix", "CKA, from 0 (dark) to 1 (bright)", SQUARES + _tales(results), y="cka")]]


def metrics(results: Results) -> Metrics:
    """Block structure, a model a column."""
    rows = [
        (
            "Within a stage less across stages",
            "CKA, mean over pairs of units; above 0 where stages are blocks",
            [_claim(r, "Units are more alike") for r in results],
        ),
        (
            "The same at equal distance in depth",
            "CKA; above 0 where stages are more than neighbourhoods",
            [_claim(r, "At equal distance") for r in results],
        ),
        ("Mini-batches", "those that the intervals resample", [_batches(r) for r in results]),
    ]
    return Metrics("Block structure with 95% intervals over mini-batches", rows)


def matrix(result: Result) -> list[Row]:
    """A row a square of the matrix, from the first unit's."""
    value, low, high = result.arrays["cka"]
    columns = [{f"other_{key}": entry for key, entry in unit.items()} for unit in result.evidence["columns"]]
    return [
        {**unit, **other, "cka": float(value[i, j]), "cka_low": float(low[i, j]), "cka_high": float(high[i, j])}
        for i, unit in enumerate(result.evidence["rows"])
        for j, other in enumerate(columns)
    ]


def _tales(results: Results) -> str:
    tales = []
    for result in results:
        if result is not None:
            least = min(result.table, key=lambda row: row["cka"] if row["cka"] == row["cka"] else 2.0)
            value, low, high = (least[f"cka{end}"] for end in ("", "_low", "_high"))
            pair = f"units {least['unit']} and {least['other_unit']}"
            tales.append(f"{result.model}: least alike are {pair}, {interval(value, low, high)}.")
    return " ".join(tales)


def _claim(result: Result | None, beginning: str) -> str:
    found = [claim for claim in result.claims if claim.statement.startswith(beginning)] if result is not None else []
    return interval(found[0].value, found[0].low, found[0].high) if found else "–"


def _batches(result: Result | None) -> str:
    return f"{result.evidence.get('batches', '–')}" if result is not None else "–"


SECTION = Section(
    title="Similarity of units",
    reading=(
        "Each square says how alike two units see the images: bright where a turn and a change of scale would make one of "
        "the other, dark where they have nothing in common. "
        "Bright blocks along the diagonal that end where a stage does make the model a series of small models; a band that "
        "only fades with distance does not."
    ),
    needs=("unit", "kind", "stage", "module", "other_unit", "other_stage", "cka", "cka_low", "cka_high"),
    figures=figures,
    metrics=metrics,
    derived={"similarity/matrix": matrix},
)
