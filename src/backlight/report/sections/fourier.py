"""The section of ``fourier``: figure 8, figure 2a, the transfer functions, and each step of figure 8 in two parts."""

from __future__ import annotations

import numpy as np

from backlight.report.sections.section import Chart, Fact, Results, Section, from_to, last_of_unit
from backlight.report.words import number
from backlight.results.charts import CHARTS
from backlight.results.result import Result, Row

SPECTRA = "One small chart per model, on one vertical axis; one curve per unit, darker (on a dark page brighter) with depth. "


def figures(results: Results) -> list[list[Chart]]:
    """Δ log amplitude over depth; then over frequency, with the transfer functions in a second tab; then the steps."""
    label = CHARTS["fourier/depth"].y
    depth = Chart(
        "depth",
        "fourier",
        label,
        f"{label} over normalised depth. {from_to(results, 'delta')}",
        y="delta",
        name="fourier/depth",
    )
    label = CHARTS["fourier/spectrum"].y
    spectrum = Chart(
        "curves", "fourier", label, f"{SPECTRA}{label}.", y="delta", tab="Δ log amplitude", name="fourier/spectrum"
    )
    label = CHARTS["fourier/transfer"].y
    transfer = Chart(
        "curves", "fourier", label, f"{SPECTRA}{label}.", y="transfer", tab="Transfer function", name="fourier/transfer"
    )
    return [[depth], [spectrum, transfer], *_step_charts(results)]


def steps(result: Result) -> list[Row]:
    """The rows of the units that keep the resolution: each step of Δ in two parts."""
    return [row for row in last_of_unit(result) if np.isfinite(row.get("high_step", np.nan))]


def _step_charts(results: Results) -> list[list[Chart]]:
    """Both parts of the steps, one tab each; nothing for results of an older version, which have no parts."""
    if not any(steps(result) for result in results if result is not None):
        return []
    parts = {"high_step": "the highest frequency", "mean_step": "the mean of the map"}
    labels = {column: CHARTS[f"fourier/{column}"].y for column in parts}
    return [
        [
            Chart(
                "bars",
                "fourier/steps",
                label,
                f"{label}. {_means(results, column)}",
                y=column,
                tab=f"Step of {parts[column]}",
                name=f"fourier/{column}",
            )
            for column, label in labels.items()
        ]
    ]


def _means(results: Results, column: str) -> str:
    """For each model, the mean of a number over its units."""
    by_model = {r.model: [row[column] for row in steps(r)] for r in results if r is not None}
    return " ".join(f"{model}: {number(float(np.mean(values)))} on average." for model, values in by_model.items() if values)


SECTION = Section(
    title="Fourier analysis",
    reading=(
        "Δ log amplitude is the log amplitude of the feature map's highest frequency minus that of its mean: lower "
        "means smoother maps, and a step down at a unit means that the unit lowers the share of high frequencies. "
        "Where a line is faint the resolution changes, and the highest frequency with it, so compare steps within a "
        "stage only; the transfer function compares equal cycles per image, so it is comparable across stages too. "
        "A step of Δ is the step of the highest frequency minus the step of the mean, so Δ also falls if a unit only raises "
        "the mean: the last bars show both steps, for units that keep the resolution."
    ),
    needs=("unit", "kind", "stage", "module", "frequency", "delta", "delta_low", "delta_high", "transfer"),
    figures=figures,
    derived={"fourier/steps": steps},
    of_unit=(
        Fact("fourier", "delta", "Δ log amplitude (nepers)"),
        Fact("fourier", "high_step", "Its step at the highest frequency"),
        Fact("fourier", "mean_step", "Its step at the mean"),
        Fact("fourier", "transfer", "Transfer, highest frequency"),
    ),
)
