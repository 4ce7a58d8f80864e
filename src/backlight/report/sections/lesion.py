"""The section of ``lesion``: figure 10b, and its means by position in the stage."""

from __future__ import annotations

from backlight.report import flips
from backlight.report.sections.section import Chart, Fact, Metrics, Results, Section
from backlight.report.words import interval
from backlight.results.charts import CHARTS
from backlight.results.result import Result, Row

BARS = "One small chart per model, on one vertical axis; one bar per unit, with its 95% interval. "


def figures(results: Results) -> list[list[Chart]]:
    """Change in accuracy for each unit, in NLL in a second tab; or the distances of the label-free form."""
    if all("distance" in r.table[0] for r in results if r is not None):
        alt = f"{BARS}1 minus the cosine of the outputs with and without the unit."
        return [[Chart("bars", "lesion/units", CHARTS["lesion/distance"].y, alt, y="distance", name="lesion/distance")]]
    results = [r if r is not None and "accuracy_change" in r.table[0] else None for r in results]
    accuracy = Chart(
        "bars", "lesion/units", CHARTS["lesion/accuracy"].y, BARS + _lowest_changes(results),
        y="accuracy_change", scale=100, tab="Accuracy", name="lesion/accuracy",
        subtitles=[_intact(r, "accuracy", 100, "%") for r in results],
    )  # fmt: skip
    nll = Chart(
        "bars", "lesion/units", CHARTS["lesion/nll"].y, f"{BARS}Change in NLL without the unit.",
        y="nll_change", tab="NLL", name="lesion/nll", subtitles=[_intact(r, "nll", 1, " nats") for r in results],
    )  # fmt: skip
    return [[accuracy, nll]]


def metrics(results: Results) -> Metrics | None:
    """By position in the stage, one column per model; pairs if there are any."""
    summaries = [r.provenance.get("by_position", []) if r is not None else [] for r in results]
    rows = [
        (
            f"{position.capitalize()} of a stage, {kinds}",
            "points of accuracy, mean over units",
            [_position(summary, position, kinds) for summary in summaries],
        )
        for position in ("first", "middle", "last")
        for kinds in ("attention", "others")
        if any(row["position"] == position and row["of"] == kinds for summary in summaries for row in summary)
    ]
    if any(_pairs(r) for r in results):
        explanation = "points of accuracy; change without both units minus the changes without each"
        rows.append(("Pair with the largest interaction", explanation, [_strongest(r) for r in results]))
    return Metrics("Lesions by position in the stage, with 95% intervals over images", rows) if rows else None


def singles(result: Result) -> list[Row]:
    """The rows of single units, without heads and pairs."""
    return [row for row in result.table if row["lesion"] == "unit"]


def _position(summary: list[Row], position: str, kinds: str) -> str:
    for row in summary:
        if row["position"] == position and row["of"] == kinds:
            value, low, high = (row[f"accuracy_change{end}"] for end in ("", "_low", "_high"))
            return interval(value, low, high, 100)
    return "–"


def _pairs(result: Result | None) -> list[Row]:
    return [row for row in result.table if row["lesion"] == "pair"] if result is not None else []


def _strongest(result: Result | None) -> str:
    pairs = _pairs(result)
    if not pairs:
        return "–"
    row = max(pairs, key=lambda row: abs(row["accuracy_interaction"]))
    value, low, high = (row[f"accuracy_interaction{end}"] for end in ("", "_low", "_high"))
    return f"{interval(value, low, high, 100)} (units {row['unit']} and {row['other_unit']})"


def _intact(result: Result | None, metric: str, scale: float, unit: str) -> str:
    """The score of the intact model."""
    if result is None:
        return ""
    ends = result.provenance.get("whole", {}).get(metric)
    if not ends:  # not in the provenance: the first row is the intact model
        ends = [result.table[0].get(metric), None, None]
    value, low, high = ends
    return f"intact: {interval(value, low, high, scale)}{unit}"


def _lowest_changes(results: Results) -> str:
    sentences = []
    for result in results:
        lesions = singles(result) if result is not None else []
        if result is not None and lesions:
            worst = min(lesions, key=lambda row: row["accuracy_change"])
            value, low, high = (worst[f"accuracy_change{end}"] for end in ("", "_low", "_high"))
            change = interval(value, low, high, 100)
            sentences.append(
                f"{result.model}: the lowest change is without unit {worst['unit']}, {worst['module']}: {change} points."
            )
    return " ".join(sentences)


SECTION = Section(
    title="Lesion study",
    reading=(
        "Each bar is the change of the trained model if one unit leaves the stream unchanged: "
        "the further down, the more the model needs that unit. "
        "The letters under the bars are the units in order (a attention, c convolution, m MLP), dotted lines separate "
        "stages, and if an interval contains zero these images do not show whether the unit is needed."
    ),
    needs=("unit", "kind", "stage", "module", "lesion"),
    figures=figures,
    metrics=metrics,
    derived={"lesion/units": singles, "lesion/flips": flips.counts},
    of_unit=(
        Fact("lesion/units", "accuracy_change", "Accuracy without it (points)", 100),
        Fact("lesion/units", "nll_change", "NLL without it (nats)"),
        Fact("lesion/flips", "wronged", "Images it turns wrong"),
        Fact("lesion/flips", "righted", "Images it turns right"),
        Fact("lesion/units", "distance", "Outputs without it (1 - cosine)"),
    ),
)  # fmt: skip
