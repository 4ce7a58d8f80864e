"""The section of ``landscape``: figure 1a as a surface, as contours and as cross-sections, and measures of flatness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from backlight.report.sections.section import Chart, Metrics, Results, Section, finite
from backlight.report.words import interval, number
from backlight.results.result import Result, Row

ONE_SCALE = "One chart per model, all on one scale, each above its own lowest point. "


def figures(results: Results) -> list[list[Chart]]:
    """The surface, contours and cross-sections in tabs; for lines only cross-sections."""
    y = "loss" if any(_paper(result) for result in results if result is not None) else "nll"
    quantity = "Loss with weight decay" if y == "loss" else "NLL"
    label, ranges = f"{quantity} above its lowest point (nats)", _ranges(results, y)
    alt = f"{label} along lines through the trained weights. {ranges}"
    sections = Chart("sections", "landscape/sections", label, alt, y=y, tab="Cross-sections", name="landscape/line")
    if not any(over_plane(result) for result in results if result is not None):
        return [[sections]]
    surface = Chart("surface", "landscape/plane", label, f"{ONE_SCALE}{label} over a plane. {ranges}", y=y, tab="Surface")
    contour = Chart(
        "contour",
        "landscape/plane",
        label,
        f"{ONE_SCALE}{label} as contours. {ranges}",
        y=y,
        tab="Contours",
        name="landscape/contour",
    )
    return [[surface, contour, sections]]


def metrics(results: Results) -> Metrics:
    """Measures of flatness, one column per model."""
    rows = [
        ("Curvature, direction 1", "nats per squared coordinate, of NLL at the trained weights", _curvatures(results, 0)),
        ("Curvature, direction 2", "the same along the other direction", _curvatures(results, 1)),
        ("Radius of a rise by 1 nat", "coordinates; NLL, median over rays", _shapes(results, "radius_of_rise")),
        ("Nearest rise by 1 nat", "coordinates; NLL on the steepest ray", _shapes(results, "nearest_rise")),
        (
            "Rays that never fall",
            "%; rays on which NLL only rises on the way out",
            _shapes(results, "share_of_rays_never_falling", 100),
        ),
        ("NLL at the trained weights", "nats", [_centre(r, "nll") for r in results]),
        (
            "Weight decay term",
            "half the weight decay times the squared length of the weights",
            [_centre(r, "decay") for r in results],
        ),
        ("Points that are not finite", "of all points", [_not_finite(r) for r in results]),
    ]
    return Metrics("Flatness with 95% intervals over images", rows)


def _paper(result: Result) -> bool:
    return bool(result.provenance.get("settings", {}).get("paper"))


def _row_at_centre(result: Result) -> Row | None:
    return next((row for row in result.table if row["x"] == 0 and row["y"] == 0), None)


def _ranges(results: Results, column: str) -> str:
    """The lowest and the highest value of each model."""
    ranges = []
    for result in results:
        values = finite(row[column] for row in result.table) if result is not None else []
        if result is not None and values:
            ranges.append(f"{result.model}: from {number(min(values))} to {number(max(values))}.")
    return " ".join(ranges)


def _distance(ends: Sequence[float | None] | None, scale: float = 1) -> str:
    """A number with its interval; an infinite one, null in JSON, is beyond the plane."""
    if not ends:
        return "–"
    if ends[0] is None or not math.isfinite(ends[0]):
        return "beyond the plane"
    value, low, high = ends
    return interval(value, low, high, scale)


def _flatness(result: Result | None) -> Mapping[str, Any]:
    return (result.provenance.get("flatness") or {}) if result is not None else {}


def _curvatures(results: Results, direction: int) -> list[str]:
    curvatures = [_flatness(result).get("curvature", []) for result in results]
    return [_distance(ends[direction]) if len(ends) > direction else "–" for ends in curvatures]


def _shapes(results: Results, name: str, scale: float = 1) -> list[str]:
    return [_distance(_flatness(result).get("nll", {}).get(name), scale) for result in results]


def _centre(result: Result | None, column: str) -> str:
    row = _row_at_centre(result) if result is not None else None
    if row is None:
        return "–"
    if f"{column}_low" not in row:
        return number(row[column])
    return interval(*(row[f"{column}{end}"] for end in ("", "_low", "_high")))


def _not_finite(result: Result | None) -> str:
    return "–" if result is None else f"{result.provenance.get('not_finite', 0)} of {len(result.table)}"


def over_plane(result: Result) -> list[Row]:
    """The rows of a plane; of a line none."""
    return result.table if len({row["y"] for row in result.table}) > 1 else []


def cross_sections(result: Result) -> list[Row]:
    """The rows on the two axes: direction 1 or 2, the coordinate along it, and heights above the lowest point."""
    points = []
    for direction, (axis, other) in enumerate((("x", "y"), ("y", "x")), 1):
        rows = sorted((row for row in result.table if row[other] == 0), key=lambda row: row[axis])
        points += [{"direction": direction, "at": row[axis]} | _heights(row, result) for row in rows if len(rows) > 1]
    return points


def _heights(row: Row, result: Result) -> Row:
    heights: Row = {}
    for column in ("nll", "loss"):
        lowest = min(finite(r[column] for r in result.table), default=0.0)
        heights |= {f"{column}{end}": row[f"{column}{end}"] - lowest for end in ("", "_low", "_high")}
    return heights


SECTION = Section(
    title="Loss landscape",
    reading=(
        "The trained weights are in the middle; each point is the loss on the same images after the weights move along two "
        "random directions, each filter in proportion to its own length. A wide bowl is a flat loss; a narrow or uneven one is "
        "not. These are two directions of millions, so compare the shape and scale of models and not single dents. "
        "The weight decay term is a bowl for any model, so look at NLL first."
    ),
    needs=("x", "y", "nll", "nll_low", "nll_high", "decay", "loss", "loss_low", "loss_high"),
    figures=figures,
    metrics=metrics,
    derived={"landscape/plane": over_plane, "landscape/sections": cross_sections},
)
