"""The section of ``trajectory``: the path of training on its plane, its loss, and the polar coordinates that were withdrawn."""

from __future__ import annotations

import math
from collections.abc import Callable

from ...result import Result, Row
from ..words import interval, number
from .section import Chart, Metrics, Results, Section


def figures(results: Results) -> list[list[Chart]]:
    """The loss along the path; where the path goes, in two ways behind tabs."""
    falls = " ".join(
        f"{r.model}: from {number(r.table[0]['nll'])} to {number(r.table[-1]['nll'])}." for r in results if r is not None
    )
    loss = Chart(
        "steps", "trajectory/loss", "NLL at each snapshot (nats)", f"NLL at each snapshot of training. {falls}", y="nll"
    )
    shares = [_explained(result) for result in results]
    label = "Along the second principal axis of the path"
    plane = Chart(
        "path", "trajectory/plane", label, f"The path of training on its principal plane. {' '.join(filter(None, shares))}",
        y="y", tab="Principal plane", subtitles=shares,
    )  # fmt: skip
    polar = Chart(
        "path", "trajectory/polar", "r sin θ (withdrawn by its author)", "The path of training in polar coordinates.",
        y="y", tab="Polar (withdrawn)", subtitles=["withdrawn by its author"] * len(results),
    )  # fmt: skip
    return [[loss], [plane, polar]]


def _explained(result: Result | None) -> str:
    shares = result.evidence.get("explained", []) if result is not None else []
    return f"{' + '.join(f'{100 * share:.0f}%' for share in shares)} of the variance" if shares else ""


def metrics(results: Results) -> Metrics:
    """Where training began and ended."""
    rows = [
        ("NLL, first snapshot", "nats", [_of(r, 0, "nll") for r in results]),
        ("NLL, model", "nats", [_of(r, -1, "nll") for r in results]),
        ("Accuracy, model", "%", [_of(r, -1, "accuracy", 100) for r in results]),
        ("Way", "length from the first snapshot to the model in the space of parameters", [_way(r) for r in results]),
        ("Explained", "of the path's variance by the two axes shown", [_explained(r) or "–" for r in results]),
    ]
    return Metrics("The path from end to end, with 95% intervals over images", rows)


def _of(result: Result | None, t: int, column: str, scale: float = 1) -> str:
    if result is None:
        return "–"
    value, low, high = (result.table[t][f"{column}{end}"] for end in ("", "_low", "_high"))
    return interval(value, low, high, scale)


def _way(result: Result | None) -> str:
    return "–" if result is None else number(result.table[0]["distance"])


def over_time(result: Result) -> list[Row]:
    """Loss against the number of the snapshot."""
    return [{"at": row["snapshot"]} | {f"nll{end}": row[f"nll{end}"] for end in ("", "_low", "_high")} for row in result.table]


def on_plane(result: Result) -> list[Row]:
    return [{key: row[key] for key in ("snapshot", "x", "y", "nll")} for row in result.table]


def in_polar(result: Result) -> list[Row]:
    """Polar coordinates as places; at its end the path has no angle and no radius either."""
    return [
        {"snapshot": row["snapshot"], "nll": row["nll"]}
        | {"x": _times(row["radius"], math.cos, row["angle"]), "y": _times(row["radius"], math.sin, row["angle"])}
        for row in result.table
    ]


def _times(radius: float, of: Callable[[float], float], angle: float) -> float:
    return radius * of(angle) if math.isfinite(angle) else 0.0


SECTION = Section(
    title="Path of training",
    reading=(
        "Each mark is a snapshot of training, the cross is the trained model, and the plane is the one that holds most of the "
        "path; the share of its variance says how much. "
        "A random walk in many dimensions looks just as orderly, and polar coordinates depend on scales that change nothing a "
        "normalised model computes, for which their author withdrew them: so trust the loss along the path most."
    ),
    needs=("snapshot", "x", "y", "radius", "angle", "distance", "nll", "nll_low", "nll_high"),
    figures=figures,
    metrics=metrics,
    derived={"trajectory/loss": over_time, "trajectory/plane": on_plane, "trajectory/polar": in_polar},
)
