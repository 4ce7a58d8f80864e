"""The section of ``hessian``: figures 1b and 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backlight.report.sections.section import Chart, Metrics, Results, Section
from backlight.report.words import interval, number
from backlight.results.result import Result, Row


def figures(results: Results) -> list[list[Chart]]:
    """The density of each sign, in a tab with its own axes, as in figure 4."""
    nep = f"Density of the negative eigenvalues, one line per model. {_summaries(results, 'nep', 100, '% are negative')}"
    ape = f"Density of the positive eigenvalues, one line per model. {_summaries(results, 'ape', 1, ' is their mean')}"
    negative = Chart("densities", "hessian/negative", "Density", nep, y="density", tab="Negative", name="hessian/negative")
    positive = Chart("densities", "hessian/positive", "Density", ape, y="density", tab="Positive", name="hessian/positive")
    return [[negative, positive]]


def metrics(results: Results) -> Metrics:
    """NEP, APE and the loss, one column per model, for all parameters and for each requested block."""
    blocks = dict.fromkeys(block for r in results if r is not None for block in r.provenance.get("summary", {}))
    rows = []
    for block in blocks:
        which = "" if block == "all" else f", {block} parameters"
        nep = "%; share of negative ones among the largest eigenvalues; 0 is no proof of a convex loss"
        ape = "mean of the positive eigenvalues; larger is sharper"
        rows.append((f"NEP{which}", nep, [_summary(r, block, "nep", 100) for r in results]))
        rows.append((f"APE{which}", ape, [_summary(r, block, "ape") for r in results]))
    rows.append(("Training loss", "nats; mean over the augmented images", [_fact(r, "loss") for r in results]))
    rows.append(
        ("Weight decay", "nats; the weight decay term of the training loss", [_fact(r, "weight_decay_loss") for r in results])
    )
    rows.append(
        ("Not converged", "eigenvalues that did not reach the tolerance", [_fact(r, "not_converged", 0) for r in results])
    )
    return Metrics("Summaries with 95% intervals over batches", rows)


def half(side: str) -> Any:
    """The function that makes the table of one half of the density: one row per point."""

    def points(result: Result) -> list[Row]:
        if side not in result.arrays:
            return []
        names = ("at", "density", "density_low", "density_high")
        return [dict(zip(names, map(float, point), strict=True)) for point in result.arrays[side].T]

    return points


def _summaries(results: Results, key: str, scale: float, unit: str) -> str:
    return " ".join(f"{r.model}: {_summary(r, 'all', key, scale)}{unit}." for r in results if r is not None)


def _summary(result: Result | None, block: str, key: str, scale: float = 1) -> str:
    summary: Mapping[str, Any] = result.provenance.get("summary", {}).get(block, {}) if result is not None else {}
    value, low, high = summary.get(key, (None, None, None))
    return interval(value, low, high, scale)


def _fact(result: Result | None, key: str, decimals: int | None = None) -> str:
    return number(result.provenance.get(key), decimals) if result is not None else "–"


SECTION = Section(
    title="Hessian spectrum",
    reading=(
        "The eigenvalues of largest magnitude of the Hessian of the training loss, for each mini-batch; the curve is their "
        "density over all batches. "
        "Negative eigenvalues mean that the loss is not convex there; none among these says nothing about convexity, because "
        "smaller ones are not measured. Large positive eigenvalues mean that the loss is sharp. The two tabs have "
        "different scales, and only models measured on batches of the same size can be compared."
    ),
    needs=("batch", "block", "rank", "eigenvalue", "residual", "converged"),
    figures=figures,
    metrics=metrics,
    derived={f"hessian/{side}": half(side) for side in ("negative", "positive")},
)
