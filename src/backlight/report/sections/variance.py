"""The section of ``variance``: figure 9."""

from __future__ import annotations

from backlight.report.sections.section import Chart, Fact, Results, Section, finite, from_to, last_of_unit
from backlight.results.charts import CHARTS

#: Ratio of the largest to the smallest variance above which a linear axis hides small ones.
WIDE = 30


def figures(results: Results) -> list[list[Chart]]:
    """Variance over depth."""
    normalised = any(r.provenance.get("settings", {}).get("normalise") for r in results if r is not None)
    name = "variance/normalised" if normalised else "variance/depth"
    label = CHARTS[name].y
    alt = f"{label} over normalised depth. {from_to(results, 'variance')}"
    return [[Chart("depth", "variance", label, alt, y="variance", log=_wide(results), name=name)]]


def _wide(results: Results) -> bool | None:
    """Whether the axis starts logarithmic; None if a variance is not positive, so that it cannot be."""
    rows = [row for result in results if result is not None for row in last_of_unit(result)]
    variances = finite(row[column] for row in rows for column in ("variance", "variance_low"))
    return max(variances) > WIDE * min(variances) if variances and min(variances) > 0 else None


SECTION = Section(
    title="Feature map variance",
    reading=(
        "Each mark is the variance of the stream after a unit: a step down means that the unit averages over positions, "
        "a step up that it makes them differ. "
        "The stream itself grows with depth, so compare steps at neighbouring units, not heights far apart; "
        "steps across a faint line are not comparable, because the resolution changes there."
    ),
    needs=("unit", "kind", "stage", "module", "variance", "variance_low", "variance_high"),
    figures=figures,
    of_unit=(Fact("variance", "variance", "Variance after it"),),
)
