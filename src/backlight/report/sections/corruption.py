"""The section of ``corruption``: accuracy, NLL and ECE over severity, and a table of corruptions with mCE."""

from __future__ import annotations

import math

from backlight.report.sections.section import Chart, Metrics, Results, Section
from backlight.report.words import interval, number
from backlight.results.result import Result, Row

SHOWN = {
    "accuracy": ("Accuracy", "Accuracy, mean over corruptions (%)", 100),
    "nll": ("NLL", "NLL, mean over corruptions (nats)", 1),
    "ece": ("ECE", "ECE, mean over corruptions (%)", 100),
}


def figures(results: Results) -> list[list[Chart]]:
    """Each measure over severity, 0 the clean images, in its own tab."""
    charts = []
    for column, (tab, label, scale) in SHOWN.items():
        alt = f"{label}, from clean images to the worst severity. {_from_to(results, column, scale)}"
        charts.append(
            Chart(
                "severities", "corruption/severities", label, alt, y=column, scale=scale, tab=tab, name=f"corruption/{column}"
            )
        )
    return [charts]


def _from_to(results: Results, column: str, scale: float) -> str:
    sentences = []
    for result in results:
        if result is not None:
            rows = over_severities(result)
            ends = (number(scale * rows[k][column]) for k in (0, -1))
            sentences.append(f"{result.model}: from {' to '.join(ends)}.")
    return " ".join(sentences)


def over_severities(result: Result) -> list[Row]:
    """The clean images, then the mean over the corruptions at each severity."""
    rows = [row for row in result.table if row["severity"] == 0 or (row["corruption"] == "mean" and row["severity"])]
    return [
        {"at": row["severity"]} | {f"{column}{end}": row[f"{column}{end}"] for column in SHOWN for end in ("", "_low", "_high")}
        for row in rows
    ]


def metrics(results: Results) -> Metrics:
    """Accuracy on clean images, under each corruption and over all, then mCE where AlexNet's errors are known."""
    names = dict.fromkeys(row["corruption"] for r in results if r is not None for row in r.table if row["severity"] is None)
    rows = [("Clean", "%; accuracy", [_of(r, "clean", 0, "accuracy", 100) for r in results])]
    for name in sorted(names, key=lambda name: name == "mean"):
        cells = [_of(r, name, None, "accuracy", 100) for r in results]
        rows.append((name.replace("_", " ").capitalize(), "%; accuracy, mean over severities", cells))
    for column, whose in (("ce_paper", "Park & Kim's"), ("ce_published", "Hendrycks'")):
        if any(math.isfinite(_row(r, "mean", None).get(column) or math.nan) for r in results):
            explanation = f"%; mean of the errors over those of {whose} AlexNet; smaller is better"
            rows.append((f"mCE, {whose} AlexNet", explanation, [_of(r, "mean", None, column, 100) for r in results]))
    return Metrics("Accuracy with 95% intervals over images", rows)


def _row(result: Result | None, name: str, severity: int | None) -> Row:
    table = result.table if result is not None else []
    return next((row for row in table if row["corruption"] == name and row["severity"] == severity), {})


def _of(result: Result | None, name: str, severity: int | None, column: str, scale: float) -> str:
    row = _row(result, name, severity)
    return interval(row.get(column), row.get(f"{column}_low"), row.get(f"{column}_high"), scale)


SECTION = Section(
    title="Common corruptions",
    reading=(
        "Each point is a mean over the corruptions (noise, blur, weather, compression and so on) at one severity, and 0 is the "
        "clean images; a model that stays well calibrated keeps its ECE low while its accuracy falls. "
        "The mean does not show which corruption does the harm, and models with the same mean may differ in it: see the table."
    ),
    needs=("corruption", "severity", "accuracy", "nll", "ece", "accuracy_low", "accuracy_high", "ce_paper", "ce_published"),
    figures=figures,
    metrics=metrics,
    derived={"corruption/severities": over_severities},
)
