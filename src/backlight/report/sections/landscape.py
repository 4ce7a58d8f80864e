"""The section of ``landscape``: figure 1a, turned with the mouse; from above; cut through the centre; and how flat it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...result import Result, Row
from ..words import interval, number
from .section import Chart, Metrics, Results, Section

ONE_SCALE = "Small charts, one a model, on one scale, each from its own lowest point. "


def figures(results: Results) -> list[list[Chart]]:
    """The surface, contours and cross-sections behind tabs; of lines, cross-sections alone."""
    y = "loss" if any(_paper(result) for result in results if result is not None) else "nll"
    what = "Loss, weight decay included," if y == "loss" else "NLL"
    label, unit = f"{what} above its lowest point (nats)", _tales(results, y)
    cut = Chart(
        "sections", "landscape/sections", label, f"{label} through the trained weights. {unit}", y=y, tab="Cross-sections"
    )
    if not any(len({row["y"] for row in result.table}) > 1 for result in results if result is not None):
        return [[cut]]
    surface = Chart("surface", "landscape/plane", label, f"{ONE_SCALE}{label} over a plane. {unit}", y=y, tab="Surface")
    contour = Chart("contour", "landscape/plane", label, f"{ONE_SCALE}{label} as contours. {unit}", y=y, tab="Contours")
    return [[surface, contour, cut]]


def metrics(results: Results) -> Metrics:
    """How flat, a model a column."""
    rows = [
        ("Curvature, direction 1", "nats per squared coordinate, of NLL at the trained weights", _curvatures(results, 0)),
        ("Curvature, direction 2", "the same along the other direction", _curvatures(results, 1)),
        ("Radius of a rise by 1 nat", "coordinates; median over rays, NLL", _shapes(results, "radius_of_rise")),
        ("Nearest rise by 1 nat", "coordinates; on the steepest ray", _shapes(results, "nearest_rise")),
        (
            "Rays that never fall",
            "%; on which NLL only rises on the way out",
            _shapes(results, "share_of_rays_never_falling", 100),
        ),
        ("NLL at the trained weights", "nats", [_centre(r, "nll") for r in results]),
        (
            "Weight decay there",
            "half of it times the squared length of the weights",
            [_centre(r, "decay") for r in results],
        ),
        ("Points that are not finite", "of all points", [_lost(r) for r in results]),
    ]
    return Metrics("Flatness with 95% intervals over images", rows)


def _paper(result: Result) -> bool:
    return bool(result.evidence.get("settings", {}).get("paper"))


def _middle(result: Result) -> Row | None:
    return next((row for row in result.table if row["x"] == 0 and row["y"] == 0), None)


def _tales(results: Results, column: str) -> str:
    """For each model, how high it goes."""
    tales = []
    for result in results:
        finite = [row[column] for row in result.table if math.isfinite(row[column])] if result is not None else []
        if result is not None and finite:
            tales.append(f"{result.model}: from {number(min(finite))} to {number(max(finite))}.")
    return " ".join(tales)


def _ends(ends: Sequence[float | None] | None, scale: float = 1) -> str:
    """A number with its interval; what JSON has no number for lies beyond the plane."""
    if not ends:
        return "–"
    if ends[0] is None or not math.isfinite(ends[0]):
        return "beyond the plane"
    value, low, high = ends
    return interval(value, low, high, scale)


def _curvatures(results: Results, direction: int) -> list[str]:
    found = [(result.evidence.get("flatness") or {}).get("curvature", []) if result is not None else [] for result in results]
    return [_ends(ends[direction]) if len(ends) > direction else "–" for ends in found]


def _shapes(results: Results, what: str, scale: float = 1) -> list[str]:
    found = [(result.evidence.get("flatness") or {}).get("nll", {}) if result is not None else {} for result in results]
    return [_ends(shape.get(what), scale) for shape in found]


def _centre(result: Result | None, column: str) -> str:
    row = _middle(result) if result is not None else None
    if row is None:
        return "–"
    return (
        interval(*(row[f"{column}{end}"] for end in ("", "_low", "_high"))) if f"{column}_low" in row else number(row[column])
    )


def _lost(result: Result | None) -> str:
    return "–" if result is None else f"{result.evidence.get('not_finite', 0)} of {len(result.table)}"


def over_plane(result: Result) -> list[Row]:
    """The rows of a plane; none of a line."""
    return result.table if len({row["y"] for row in result.table}) > 1 else []


def cuts(result: Result) -> list[Row]:
    """The rows on the two axes: direction 1 or 2 and the coordinate along it, heights above the lowest point."""
    found = []
    for direction, (axis, other) in enumerate((("x", "y"), ("y", "x")), 1):
        rows = sorted((row for row in result.table if row[other] == 0), key=lambda row: row[axis])
        found += [{"direction": direction, "at": row[axis]} | _risen(row, result) for row in rows if len(rows) > 1]
    return found


def _risen(row: Row, result: Result) -> Row:
    heights: Row = {}
    for column in ("nll", "loss"):
        least = min((r[column] for r in result.table if math.isfinite(r[column])), default=0.0)
        heights |= {f"{column}{end}": row[f"{column}{end}"] - least for end in ("", "_low", "_high")}
    return heights


SECTION = Section(
    title="Loss landscape",
    reading=(
        "Each point is the loss on the same images with the trained weights, which lie in the middle, moved along two random "
        "directions, every filter by its own length; a wide and even bowl is a flat loss, a narrow or dented one is not. "
        "Two directions of millions are shown, so compare models by shape and scale rather than by single dents, and look at "
        "weight decay by itself: it is a bowl whatever the model."
    ),
    needs=("x", "y", "nll", "nll_low", "nll_high", "decay", "loss", "loss_low", "loss_high"),
    figures=figures,
    metrics=metrics,
    derived={"landscape/plane": over_plane, "landscape/sections": cuts},
)
