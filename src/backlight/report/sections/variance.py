"""The section of ``variance``: figure 9."""

from __future__ import annotations

from .section import Chart, Results, Section, finite, from_to, last_of_unit

#: Where the largest is this many times the smallest, a linear axis hides the small ones.
WIDE = 30


def figures(results: Results) -> list[list[Chart]]:
    """Variance over depth."""
    normalised = any(r.evidence.get("settings", {}).get("normalise") for r in results if r is not None)
    label = "Feature map variance over its mean square" if normalised else "Feature map variance (activation units squared)"
    alt = f"{label} over normalised depth. {from_to(results, 'variance')}"
    return [[Chart("depth", "variance", label, alt, y="variance", log=_wide(results))]]


def _wide(results: Results) -> bool | None:
    """Whether the numbers call for a logarithmic axis; None where they allow none."""
    rows = [row for result in results if result is not None for row in last_of_unit(result)]
    seen = finite(row[column] for row in rows for column in ("variance", "variance_low"))
    return max(seen) > WIDE * min(seen) if seen and min(seen) > 0 else None


SECTION = Section(
    title="Feature map variance",
    reading=(
        "Each mark is the variance of the stream after a unit: a step down means that the unit averages over places, "
        "a step up that it makes them differ. "
        "The stream itself grows with depth, so compare steps at neighbouring units rather than heights far apart, "
        "and expect a break where a line turns faint and the resolution changes."
    ),
    needs=("unit", "kind", "stage", "module", "variance", "variance_low", "variance_high"),
    figures=figures,
)
