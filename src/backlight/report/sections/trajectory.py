"""The section of ``trajectory``: the path of training on its plane, its loss, and its withdrawn polar coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable

from backlight.report.sections.section import Chart, Metrics, Results, Section
from backlight.report.words import interval, number
from backlight.results.charts import CHARTS
from backlight.results.result import Result, Row


def figures(results: Results) -> list[list[Chart]]:
    """The loss along the path; the path on its plane and in polar coordinates, in tabs."""
    ranges = " ".join(
        f"{r.model}: from {number(r.table[0]['nll'])} to {number(r.table[-1]['nll'])}." for r in results if r is not None
    )
    alt = f"NLL at each snapshot of training. {ranges}"
    loss = Chart("steps", "trajectory/loss", CHARTS["trajectory/loss"].y, alt, y="nll", name="trajectory/loss")
    shares = [_explained(result) for result in results]
    label = "Along the second principal axis of the path"
    plane = Chart(
        "path", "trajectory/plane", label, f"The path of training on its principal plane. {' '.join(filter(None, shares))}",
        y="y", tab="Principal plane", name="trajectory/plane", subtitles=shares,
    )  # fmt: skip
    polar = Chart(
        "path", "trajectory/polar", "r sin θ (withdrawn by its author)", "The path of training in polar coordinates.",
        y="y", tab="Polar (withdrawn)", name="trajectory/polar", subtitles=["withdrawn by its author"] * len(results),
    )  # fmt: skip
    return [[loss], [plane, polar]]


def _explained(result: Result | None) -> str:
    shares = result.provenance.get("explained", []) if result is not None else []
    return f"{' + '.join(f'{100 * share:.0f}%' for share in shares)} of the variance" if shares else ""


def metrics(results: Results) -> Metrics:
    """The first snapshot and the model, one column per model."""
    rows = [
        ("NLL, first snapshot", "nats", [_at(r, 0, "nll") for r in results]),
        ("NLL, model", "nats", [_at(r, -1, "nll") for r in results]),
        ("Accuracy, model", "%", [_at(r, -1, "accuracy", 100) for r in results]),
        ("Distance", "from the first snapshot to the model, Euclidean, over all parameters", [_distance(r) for r in results]),
        ("Explained", "share of the path's variance along the two axes shown", [_explained(r) or "–" for r in results]),
    ]
    return Metrics("Start and end of the path, with 95% intervals over images", rows)


def _at(result: Result | None, t: int, column: str, scale: float = 1) -> str:
    if result is None:
        return "–"
    value, low, high = (result.table[t][f"{column}{end}"] for end in ("", "_low", "_high"))
    return interval(value, low, high, scale)


def _distance(result: Result | None) -> str:
    return "–" if result is None else number(result.table[0]["distance"])


def over_time(result: Result) -> list[Row]:
    """Loss over the number of the snapshot."""
    return [{"at": row["snapshot"]} | {f"nll{end}": row[f"nll{end}"] for end in ("", "_low", "_high")} for row in result.table]


def on_plane(result: Result) -> list[Row]:
    """Coordinates on the principal plane, with NLL."""
    return [{key: row[key] for key in ("snapshot", "x", "y", "nll")} for row in result.table]


def in_polar(result: Result) -> list[Row]:
    """Polar coordinates as x and y; the end of the path has radius 0 and no angle."""
    return [
        {"snapshot": row["snapshot"], "nll": row["nll"]}
        | {"x": _projected(row["radius"], math.cos, row["angle"]), "y": _projected(row["radius"], math.sin, row["angle"])}
        for row in result.table
    ]


def _projected(radius: float, function: Callable[[float], float], angle: float) -> float:
    return radius * function(angle) if math.isfinite(angle) else 0.0


SECTION = Section(
    title="Path of training",
    reading=(
        "Each mark is a snapshot of training, and the cross is the trained model. The plane holds the largest share of the "
        "path's variance that a plane can hold; the subtitle says how large it is. "
        "A random walk in many dimensions looks as orderly. Polar coordinates depend on scales of weights that do not change "
        "what a normalised model computes, so their author withdrew them. The loss along the path is the most reliable part."
    ),
    needs=("snapshot", "x", "y", "radius", "angle", "distance", "nll", "nll_low", "nll_high"),
    figures=figures,
    metrics=metrics,
    derived={"trajectory/loss": over_time, "trajectory/plane": on_plane, "trajectory/polar": in_polar},
)
