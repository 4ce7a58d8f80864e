"""The section of ``attention``: the metrics of attention over depth."""

from __future__ import annotations

from collections.abc import Callable

from backlight.report.sections.section import Chart, Fact, Metrics, Results, Section, from_to
from backlight.report.words import interval
from backlight.results.result import Result, Row, columns

#: Metric -> its tab and its axis; in the order of ``arrays["mean"]``.
NAMES = {
    "distance": ("Distance", "Attention distance, mean over heads (pixels)"),
    "entropy": ("Entropy", "Entropy of attention, mean over heads (nats)"),
    "nmi": ("NMI", "Normalised mutual information of queries and keys, mean over heads"),
    "high_frequency": ("Above frequency zero", "Share of the attention matrix above frequency zero, mean over heads"),
}


def figures(results: Results) -> list[list[Chart]]:
    """The four metrics over depth, one tab each."""
    means = [None if r is None else Result(r.model, mean(r), [], {}) for r in results]
    return [
        [
            Chart(
                "depth",
                "attention/mean",
                label,
                f"{label} over depth. {from_to(means, metric)}",
                y=metric,
                tab=tab,
                name=f"attention/{metric}",
            )
            for metric, (tab, label) in NAMES.items()
        ]
    ]


def metrics(results: Results) -> Metrics:
    """The heads with extreme metrics, one column per model."""
    rows = [
        ("Smallest distance", "pixels; unit and head", [_extreme(r, "distance", min) for r in results]),
        ("Largest distance", "pixels", [_extreme(r, "distance", max) for r in results]),
        ("Smallest entropy", "nats", [_extreme(r, "entropy", min) for r in results]),
        ("Smallest NMI", "0 if the weights are the same for all queries", [_extreme(r, "nmi", min) for r in results]),
    ]
    return Metrics("Heads with extreme metrics, with 95% intervals over images", rows)


def mean(result: Result) -> list[Row]:
    """One row per attention: the means over its heads, with their intervals."""
    heads: dict[tuple[int, str], Row] = {}
    for row in result.table:
        heads.setdefault((row["unit"], row["module"]), {key: row[key] for key in ("unit", "kind", "stage", "module")})
    means = result.arrays["mean"]  # (value, low, high) x attentions x metrics
    for i, row in enumerate(heads.values()):
        for k, metric in enumerate(NAMES):
            row |= columns(metric, means[:, i, k])
    return list(heads.values())


def _extreme(result: Result | None, metric: str, pick: Callable[..., Row]) -> str:
    if result is None:
        return "–"
    row = pick(result.table, key=lambda row: row[metric])
    value, low, high = (row[f"{metric}{end}"] for end in ("", "_low", "_high"))
    return f"{interval(value, low, high)} (unit {row['unit']}, head {row['head']})"


SECTION = Section(
    title="Attention",
    reading=(
        "Each mark is one attention: the distance between its queries and keys, the entropy of its weights, how much they "
        "depend on the query, and their share above frequency zero. "
        "If the mutual information is low, attention has collapsed: all queries have the same weights."
    ),
    needs=("unit", "kind", "stage", "module", "head", *NAMES, "mean"),
    figures=figures,
    metrics=metrics,
    derived={"attention/mean": mean},
    of_unit=tuple(Fact("attention/mean", metric, f"Attention: {tab}") for metric, (tab, _) in NAMES.items()),
)
