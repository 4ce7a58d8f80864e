"""The section of ``lesion``: figure 10b."""

from __future__ import annotations

from ...result import Result
from ..words import interval
from .section import Chart, Results, Section

BARS = "Small charts, one a model, on one vertical axis; a bar a unit with its 95% interval. "


def figures(results: Results) -> list[list[Chart]]:
    """Change in accuracy a unit, and in NLL behind a tab."""
    accuracy = Chart(
        "bars", "lesion", "Change in accuracy without the unit (percentage points)", BARS + _worst(results),
        y="accuracy_change", scale=100, tab="Accuracy", subtitles=[_whole(r, "accuracy", 100, "%") for r in results],
    )  # fmt: skip
    nll = Chart(
        "bars", "lesion", "Change in NLL without the unit (nats)", f"{BARS}Change in NLL without the unit.",
        y="nll_change", tab="NLL", subtitles=[_whole(r, "nll", 1, " nats") for r in results],
    )  # fmt: skip
    return [[accuracy, nll]]


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
        lesions = [row for row in result.table if row["unit"] >= 0] if result is not None else []
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
)  # fmt: skip
