"""The section of ``noise``: figure 2b."""

from __future__ import annotations

from ...analyses.noise import middle
from ...result import Result, Row
from ..words import interval, number
from .section import Chart, Metrics, Results, Section

LINES = "A line a model and size of the noise, solid for the middle size, with its 95% interval as a band. "


def figures(results: Results) -> list[list[Chart]]:
    """Change in accuracy over the frequency of the noise, and in NLL behind a tab."""
    accuracy = Chart(
        "frequencies", "noise/lines", "Change in accuracy (points); solid: the middle size of noise", LINES + _tales(results),
        y="accuracy_change", scale=100, tab="Accuracy",
    )  # fmt: skip
    nll = Chart("frequencies", "noise/lines", "Change in NLL (nats)", f"{LINES}Change in NLL.", y="nll_change", tab="NLL")
    return [[accuracy, nll]]


def metrics(results: Results) -> Metrics:
    """High frequencies against low ones, a model a column."""
    rows = [
        ("Clean accuracy", "%", [_fact(r, "clean", "accuracy", 100) for r in results]),
        (
            "High less low, accuracy",
            "points; change under noise above 0.5π less that below: above 0 where low frequencies hurt more",
            [_fact(r, "high_less_low", "accuracy", 100) for r in results],
        ),
        (
            "High less low, NLL",
            "nats; the same of NLL: below 0 where low frequencies hurt more",
            [_fact(r, "high_less_low", "nll") for r in results],
        ),
        ("Most costly band", "units of π; change of accuracy in points, at the middle size", [_worst(r) for r in results]),
    ]
    return Metrics("Noise of high and of low frequency, with 95% intervals over images", rows)


def lines(result: Result) -> list[Row]:
    """The rows in order of frequency, severity by severity, as the page's bands want them: ``at``, and which line is solid."""
    severities = sorted({row["severity"] for row in result.table})
    ordered = sorted(result.table, key=lambda row: (row["severity"], row["frequency"]))
    shown = middle(severities)
    return [row | {"at": row["frequency"], "middle": int(row["severity"] == shown)} for row in ordered]


def _tales(results: Results) -> str:
    return " ".join(f"{r.model}: most at {_worst(r)} points." for r in results if r is not None)


def _worst(result: Result | None) -> str:
    if result is None:
        return "–"
    shown = middle([row["severity"] for row in result.table])
    row = min((row for row in result.table if row["severity"] == shown), key=lambda row: row["accuracy_change"])
    value, low, high = (row[f"accuracy_change{end}"] for end in ("", "_low", "_high"))
    return f"{number(row['frequency'], 2)}π: {interval(value, low, high, 100)}"


def _fact(result: Result | None, fact: str, score: str, scale: float = 1) -> str:
    ends = result.evidence.get(fact, {}).get(score) if result is not None else None
    if not ends:
        return "–"
    value, low, high = ends
    return interval(value, low, high, scale)


SECTION = Section(
    title="Noise by frequency",
    reading=(
        "Each point is the accuracy that the model loses when noise of one band of frequencies, as large in each band, is "
        "added to the pixels: where the line dips lie the frequencies that the model needs undisturbed. "
        "The paper finds dips at high frequencies for convolutions and at low ones for attention; lines of one model at "
        "different sizes of noise tell whether it is a matter of size."
    ),
    needs=(
        "severity", "frequency", "width", "accuracy_change", "accuracy_change_low", "accuracy_change_high",
        "nll_change", "nll_change_low", "nll_change_high",
    ),
    figures=figures,
    metrics=metrics,
    derived={"noise/lines": lines},
)  # fmt: skip
