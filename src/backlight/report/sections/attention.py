"""The section of ``attention``: what attention looks at over depth."""

from __future__ import annotations

from collections.abc import Callable

from ...analyses.attention import NUMBERS
from ...result import Result, Row, columns
from ..words import interval
from .section import Chart, Metrics, Results, Section, from_to

#: What each number is called: its tab, its axis.
NAMES = {
    "distance": ("Distance", "Attention distance, mean over heads (pixels)"),
    "entropy": ("Entropy", "Entropy of attention, mean over heads (nats)"),
    "nmi": ("NMI", "Normalised mutual information of queries and keys, mean over heads"),
    "high_frequency": ("Above frequency zero", "Share of the attention matrix above frequency zero, mean over heads"),
}


def figures(results: Results) -> list[list[Chart]]:
    """The four numbers over depth, behind tabs."""
    means = [None if r is None else Result(r.model, mean(r), [], {}) for r in results]
    return [
        [
            Chart("depth", "attention/mean", label, f"{label} over depth. {from_to(means, number)}", y=number, tab=tab)
            for number, (tab, label) in NAMES.items()
        ]
    ]


def metrics(results: Results) -> Metrics:
    """The heads that look nearest and furthest, a model a column."""
    rows = [
        ("Nearest head", "pixels; unit and head", [_extreme(r, "distance", min) for r in results]),
        ("Furthest head", "pixels", [_extreme(r, "distance", max) for r in results]),
        ("Sharpest head", "nats of entropy", [_extreme(r, "entropy", min) for r in results]),
        ("Head that knows its query least", "NMI; 0 is the same for every query", [_extreme(r, "nmi", min) for r in results]),
    ]
    return Metrics("Heads that stand out, with 95% intervals over images", rows)


def mean(result: Result) -> list[Row]:
    """A row an attention: the means over its heads with their intervals."""
    heads: dict[tuple[int, str], Row] = {}
    for row in result.table:
        heads.setdefault((row["unit"], row["module"]), {key: row[key] for key in ("unit", "kind", "stage", "module")})
    found = result.arrays["mean"]  # (value, low, high) x attentions x numbers
    for i, row in enumerate(heads.values()):
        for k, number in enumerate(NUMBERS):
            row |= columns(number, found[:, i, k])
    return list(heads.values())


def _extreme(result: Result | None, number: str, which: Callable[..., Row]) -> str:
    if result is None:
        return "–"
    row = which(result.table, key=lambda row: row[number])
    value, low, high = (row[f"{number}{end}"] for end in ("", "_low", "_high"))
    return f"{interval(value, low, high)} (unit {row['unit']}, head {row['head']})"


SECTION = Section(
    title="Attention",
    reading=(
        "Each mark is an attention: how far its heads look, how evenly, how much that depends on who asks, and how much of "
        "it is more than an average of the whole image. "
        "Low mutual information is attention that has collapsed: every place asks and gets the same."
    ),
    needs=("unit", "kind", "stage", "module", "head", *NUMBERS, "mean"),
    figures=figures,
    metrics=metrics,
    derived={"attention/mean": mean},
)
