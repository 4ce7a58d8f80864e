"""The section of ``hessian``: figures 1b and 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...result import Result, Row
from ..words import interval, number
from .section import Chart, Metrics, Results, Section


def figures(results: Results) -> list[list[Chart]]:
    """The density of each sign on axes of its own, as in figure 4."""
    return [[
        Chart("densities", f"hessian/{side}", "Density", f"{alt} {_tales(results, key, scale, unit)}", y="density", tab=tab)
        for side, tab, key, scale, unit, alt in (
            ("negative", "Negative", "nep", 100, "% are negative", "Density of the negative ones, a line a model."),
            ("positive", "Positive", "ape", 1, " is the mean of the positive", "Density of the positive ones, a line a model."),
        )
    ]]  # fmt: skip


def metrics(results: Results) -> Metrics:
    """NEP, APE and the loss, a model a column, for all parameters and for each block that was asked for."""
    blocks = dict.fromkeys(block for r in results if r is not None for block in r.evidence.get("summary", {}))
    rows = []
    for block in blocks:
        of = "" if block == "all" else f", {block} parameters"
        nep = "%; share of negative ones among the largest eigenvalues: 0 where the loss is convex"
        ape = "mean of the positive ones: the larger, the sharper the loss"
        rows.append((f"NEP{of}", nep, [_summary(r, block, "nep", 100) for r in results]))
        rows.append((f"APE{of}", ape, [_summary(r, block, "ape") for r in results]))
    rows.append(("Training loss", "nats; mean over these augmented images", [_fact(r, "loss") for r in results]))
    rows.append(("Weight decay", "its part of the objective", [_fact(r, "weight_decay_loss") for r in results]))
    rows.append(
        ("Not converged", "eigenvalues whose residual is larger than asked", [_fact(r, "not_converged", 0) for r in results])
    )
    return Metrics("Summaries with 95% intervals over batches", rows)


def half(side: str) -> Any:
    """A table of one half of the density: a row a point."""

    def points(result: Result) -> list[Row]:
        if side not in result.arrays:
            return []
        names = ("at", "density", "density_low", "density_high")
        return [dict(zip(names, map(float, point), strict=True)) for point in result.arrays[side].T]

    return points


def _tales(results: Results, key: str, scale: float, unit: str) -> str:
    return " ".join(f"{r.model}: {_summary(r, 'all', key, scale)}{unit}." for r in results if r is not None)


def _summary(result: Result | None, block: str, key: str, scale: float = 1) -> str:
    told: Mapping[str, Any] = result.evidence.get("summary", {}).get(block, {}) if result is not None else {}
    value, low, high = told.get(key, (None, None, None))
    return interval(value, low, high, scale)


def _fact(result: Result | None, key: str, decimals: int | None = None) -> str:
    return number(result.evidence.get(key), decimals) if result is not None else "–"


SECTION = Section(
    title="Hessian spectrum",
    reading=(
        "For each mini-batch of the training loss, the eigenvalues of the Hessian that are largest in magnitude; the curve is "
        "their density over all batches. "
        "Mass on the negative side means that the loss is not convex there, mass far out on the positive side that it is "
        "sharp; the two sides have scales of their own, and only models measured on batches of the same size compare."
    ),
    needs=("batch", "block", "rank", "eigenvalue", "residual", "converged"),
    figures=figures,
    metrics=metrics,
    derived={f"hessian/{side}": half(side) for side in ("negative", "positive")},
)
