"""The section of ``similarity``: figure 10a."""

from __future__ import annotations

from backlight.report.sections.section import Chart, Metrics, Results, Section
from backlight.report.words import interval
from backlight.results.charts import CHARTS
from backlight.results.result import Result, Row

MATRIX = "One matrix per model, with one row and one column per unit, from dark (CKA 0) to bright (1); lines separate stages. "


def figures(results: Results) -> list[list[Chart]]:
    """The matrix, one panel per model."""
    return [
        [
            Chart(
                "matrix",
                "similarity/matrix",
                CHARTS["similarity/matrix"].y,
                MATRIX + _least_alike(results),
                y="cka",
                name="similarity/matrix",
            )
        ]
    ]


def metrics(results: Results) -> Metrics:
    """Block structure, one column per model."""
    rows = [
        (
            "Within a stage minus across stages",
            "CKA, mean over pairs of units; above 0 if stages are blocks",
            [_claim(r, "Units are more alike") for r in results],
        ),
        (
            "The same at equal distance in depth",
            "CKA; above 0 if stages are blocks beyond the effect of distance",
            [_claim(r, "At equal distance") for r in results],
        ),
        ("Mini-batches", "number; the intervals are over them", [_batches(r) for r in results]),
    ]
    return Metrics("Block structure with 95% intervals over mini-batches", rows)


def matrix(result: Result) -> list[Row]:
    """One row per entry of the matrix, in the order of the units."""
    value, low, high = result.arrays["cka"]
    columns = [{f"other_{key}": entry for key, entry in unit.items()} for unit in result.provenance["columns"]]
    return [
        {**unit, **other, "cka": float(value[i, j]), "cka_low": float(low[i, j]), "cka_high": float(high[i, j])}
        for i, unit in enumerate(result.provenance["rows"])
        for j, other in enumerate(columns)
    ]


def _least_alike(results: Results) -> str:
    sentences = []
    for result in results:
        if result is not None:
            least = min(result.table, key=lambda row: row["cka"] if row["cka"] == row["cka"] else 2.0)
            value, low, high = (least[f"cka{end}"] for end in ("", "_low", "_high"))
            pair = f"units {least['unit']} and {least['other_unit']}"
            sentences.append(f"{result.model}: the least similar are {pair}, {interval(value, low, high)}.")
    return " ".join(sentences)


def _claim(result: Result | None, beginning: str) -> str:
    claims = [claim for claim in result.claims if claim.statement.startswith(beginning)] if result is not None else []
    return interval(claims[0].value, claims[0].low, claims[0].high) if claims else "–"


def _batches(result: Result | None) -> str:
    return f"{result.provenance.get('batches', '–')}" if result is not None else "–"


SECTION = Section(
    title="Similarity of units",
    reading=(
        "Each square is the similarity of the streams after two units: bright if they are equal up to rotation and scale, "
        "dark if their features are uncorrelated. "
        "Bright blocks on the diagonal that end with a stage mean that the model is a series of small models; a band that "
        "only fades with distance in depth does not."
    ),
    needs=("unit", "kind", "stage", "module", "other_unit", "other_stage", "cka", "cka_low", "cka_high"),
    figures=figures,
    metrics=metrics,
    derived={"similarity/matrix": matrix},
)
