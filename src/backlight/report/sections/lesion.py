"""The section of ``lesion``: figure 10b, and its means by position in the stage."""

from __future__ import annotations

from ...result import Result, Row
from ..words import interval
from .section import Chart, Metrics, Results, Section

BARS = "Small charts, one a model, on one vertical axis; a bar a unit with its 95% interval. "


def figures(results: Results) -> list[list[Chart]]:
    """Change in accuracy a unit, and in NLL behind a tab."""
    accuracy = Chart(
        "bars", "lesion/units", "Change in accuracy without the unit (percentage points)", BARS + _worst(results),
        y="accuracy_change", scale=100, tab="Accuracy", subtitles=[_whole(r, "accuracy", 100, "%") for r in results],
    )  # fmt: skip
    nll = Chart(
        "bars", "lesion/units", "Change in NLL without the unit (nats)", f"{BARS}Change in NLL without the unit.",
        y="nll_change", tab="NLL", subtitles=[_whole(r, "nll", 1, " nats") for r in results],
    )  # fmt: skip
    return [[accuracy, nll]]


def metrics(results: Results) -> Metrics | None:
    """By position in the stage, a model a column; pairs if there are any."""
    known = [r.evidence.get("by_position", []) if r is not None else [] for r in results]
    rows = [
        (
            f"{position.capitalize()} of a stage, {kinds}",
            "points of accuracy, mean over units",
            [_position(k, position, kinds) for k in known],
        )
        for position in ("first", "middle", "last")
        for kinds in ("attention", "others")
        if any(row["position"] == position and row["of"] == kinds for k in known for row in k)
    ]
    if any(_pairs(r) for r in results):
        what = "points of accuracy beyond what both units cost alone"
        rows.append(("Pair with the largest interaction", what, [_strongest(r) for r in results]))
    return Metrics("Lesions by position in the stage, with 95% intervals over images", rows) if rows else None


def singles(result: Result) -> list[Row]:
    """The rows of single units, without heads and pairs."""
    return [row for row in result.table if row["unit"] >= 0 and row.get("lesion", "unit") == "unit"]


def _position(summary: list[Row], position: str, kinds: str) -> str:
    for row in summary:
        if row["position"] == position and row["of"] == kinds:
            value, low, high = (row[f"accuracy_change{end}"] for end in ("", "_low", "_high"))
            return interval(value, low, high, 100)
    return "–"


def _pairs(result: Result | None) -> list[Row]:
    return [row for row in result.table if row.get("lesion") == "pair"] if result is not None else []


def _strongest(result: Result | None) -> str:
    pairs = _pairs(result)
    if not pairs:
        return "–"
    row = max(pairs, key=lambda row: abs(row["accuracy_interaction"]))
    value, low, high = (row[f"accuracy_interaction{end}"] for end in ("", "_low", "_high"))
    return f"{interval(value, low, high, 100)} (units {row['unit']} and {row['other_unit']})"


def _whole(result: Result | None, metric: str, scale: float, unit: str) -> str:
    """How good the whole model is."""
    if result is None:
        return ""
    ends = result.evidence.get("whole", {}).get(metric)
    if not ends:  # a result made by hand: its first row is the whole model
        ends = [result.table[0].get(metric), None, None]
    value, low, high = ends
    return f"whole: {interval(value, low, high, scale)}{unit}"


def _worst(results: Results) -> str:
    tales = []
    for result in results:
        lesions = singles(result) if result is not None else []
        if result is not None and lesions:
            worst = min(lesions, key=lambda row: row["accuracy_change"])
            value, low, high = (worst[f"accuracy_change{end}"] for end in ("", "_low", "_high"))
            change = interval(value, low, high, 100)
            tales.append(f"{result.model}: most without unit {worst['unit']}, {worst['module']}: {change} points.")
    return " ".join(tales)


SECTION = Section(
    title="Lesion study",
    reading=(
        "Each bar is what happens to the trained model when one unit passes the stream on unchanged: "
        "the further down, the more the model relies on that unit. "
        "The letters under the bars are the units in order (a attention, c convolution, m MLP), dotted lines end a "
        "stage, and where an interval reaches zero these images cannot tell whether the unit is needed."
    ),
    needs=(
        "unit", "kind", "stage", "module", "accuracy_change", "accuracy_change_low", "accuracy_change_high",
        "nll_change", "nll_change_low", "nll_change_high",
    ),
    figures=figures,
    metrics=metrics,
    derived={"lesion/units": singles},
)  # fmt: skip
