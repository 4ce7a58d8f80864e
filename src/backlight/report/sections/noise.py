"""The section of ``noise``: figure 2b."""

from __future__ import annotations

from backlight.analyses.noise.settings import middle_severity
from backlight.report.sections.section import Chart, Metrics, Results, Section
from backlight.report.words import interval, number
from backlight.results.result import Result, Row

LINES = "A line per model and size of the noise, solid for the middle size, with its 95% interval as a band. "


def figures(results: Results) -> list[list[Chart]]:
    """Change in accuracy over the frequency of the noise, and in NLL in a second tab."""
    accuracy = Chart(
        "frequencies", "noise/lines", "Change in accuracy (points); solid: the middle size of noise",
        LINES + _most_costly(results), y="accuracy_change", scale=100, tab="Accuracy", name="noise/accuracy",
    )  # fmt: skip
    nll = Chart(
        "frequencies",
        "noise/lines",
        "Change in NLL (nats)",
        f"{LINES}Change in NLL.",
        y="nll_change",
        tab="NLL",
        name="noise/nll",
    )
    return [[accuracy, nll]]


def metrics(results: Results) -> Metrics:
    """High frequencies against low ones, a column for each model."""
    rows = [
        ("Clean accuracy", "%", [_fact(r, "clean", "accuracy", 100) for r in results]),
        (
            "High less low, accuracy",
            "points; change under noise above 0.5π less that below: above 0 if low frequencies hurt more",
            [_fact(r, "high_less_low", "accuracy", 100) for r in results],
        ),
        (
            "High less low, NLL",
            "nats; the same for NLL: below 0 if low frequencies hurt more",
            [_fact(r, "high_less_low", "nll") for r in results],
        ),
        ("Most costly band", "units of π; change of accuracy in points, at the middle size", [_worst(r) for r in results]),
    ]
    return Metrics("Noise of high and of low frequency, with 95% intervals over images", rows)


def lines(result: Result) -> list[Row]:
    """The rows in order of severity and frequency; ``at`` is the horizontal axis, ``middle`` marks the solid line."""
    solid = middle_severity(sorted({row["severity"] for row in result.table}))
    ordered = sorted(result.table, key=lambda row: (row["severity"], row["frequency"]))
    return [row | {"at": row["frequency"], "middle": int(row["severity"] == solid)} for row in ordered]


def _most_costly(results: Results) -> str:
    return " ".join(f"{r.model}: most at {_worst(r)} points." for r in results if r is not None)


def _worst(result: Result | None) -> str:
    if result is None:
        return "–"
    severity = middle_severity([row["severity"] for row in result.table])
    row = min((row for row in result.table if row["severity"] == severity), key=lambda row: row["accuracy_change"])
    value, low, high = (row[f"accuracy_change{end}"] for end in ("", "_low", "_high"))
    return f"{number(row['frequency'], 2)}π: {interval(value, low, high, 100)}"


def _fact(result: Result | None, fact: str, score: str, scale: float = 1) -> str:
    ends = result.provenance.get(fact, {}).get(score) if result is not None else None
    if not ends:
        return "–"
    value, low, high = ends
    return interval(value, low, high, scale)


SECTION = Section(
    title="Noise by frequency",
    reading=(
        "Each point is the change in accuracy when noise of one band of frequencies, equally large in each band, is added to "
        "the pixels: a line is low at the frequencies where noise hurts the model most. "
        "The paper finds low points at high frequencies for convolutions and at low ones for attention; compare the lines of "
        "one model to see whether this depends on the size of the noise."
    ),
    needs=(
        "severity", "frequency", "width", "accuracy_change", "accuracy_change_low", "accuracy_change_high",
        "nll_change", "nll_change_low", "nll_change_high",
    ),
    figures=figures,
    metrics=metrics,
    derived={"noise/lines": lines},
)  # fmt: skip
