"""The section of ``adversarial``: accuracy over epsilon under PGD and FGSM, beside random noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...result import Result, Row
from ..words import interval, number
from .section import Chart, Metrics, Results, Section

ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")
NAMES = {"pgd": "PGD", "fgsm": "FGSM", "random": "Random noise"}


def figures(results: Results) -> list[list[Chart]]:
    """An attack a tab."""
    return [[
        Chart(
            "epsilons", f"adversarial/{attack}", f"Accuracy under {what} (%)",
            f"Accuracy under {what} over epsilon, a line a model, with its 95% interval. {_tales(results, attack)}",
            y="accuracy", scale=100, tab=name,
        )
        for attack, name in NAMES.items()
        for what in [name if name.isupper() else name.lower()]
    ]]  # fmt: skip


def metrics(results: Results) -> Metrics:
    """How small a change is enough, and what tells of masked gradients, a model a column."""
    rows = [
        ("Clean accuracy", "%", [_clean(r) for r in results]),
        ("Accuracy under PGD", "%; at the largest epsilon", [_largest(r, "accuracy") for r in results]),
        ("Success of PGD", "%; of those that can be fooled, at the largest epsilon", [_largest(r, "success") for r in results]),
        ("No gradient", "% of the images: the attacks were blind there", [_masking(r, "zero_gradients") for r in results]),
        ("FGSM beats PGD", "% of the images: many mean masked gradients", [_masking(r, "fgsm_beats_pgd") for r in results]),
        ("Random beats PGD", "% of the images: likewise", [_masking(r, "random_beats_pgd") for r in results]),
    ]  # fmt: skip
    return Metrics("Attacks and whether to believe them, with 95% intervals over images", rows)


def under(attack: str) -> Callable[[Result], list[Row]]:
    """A table of one attack, the clean images at epsilon 0."""

    def rows(result: Result) -> list[Row]:
        clean = result.evidence.get("clean", {}).get("accuracy")
        start = [{"at": 0.0} | dict(zip(ACCURACY, clean, strict=True))] if clean else []
        found = [row for row in result.table if row["attack"] == attack]
        return start + [{"at": row["epsilon"]} | {column: row[column] for column in ACCURACY} for row in found]

    return rows


def _tales(results: Results, attack: str) -> str:
    return " ".join(f"{r.model}: {_largest(r, 'accuracy', attack)}% at {_epsilon(r)}/255." for r in results if r is not None)


def _epsilon(result: Result) -> str:
    return number(max(row["epsilon"] for row in result.table), 0)


def _largest(result: Result | None, column: str, attack: str = "pgd") -> str:
    if result is None:
        return "–"
    row = max((row for row in result.table if row["attack"] == attack), key=lambda row: row["epsilon"])
    return _share([row[f"{column}{end}"] for end in ("", "_low", "_high")])


def _clean(result: Result | None) -> str:
    ends = result.evidence.get("clean", {}).get("accuracy") if result is not None else None
    return _share(ends)


def _masking(result: Result | None, share: str) -> str:
    ends = result.evidence.get("gradient_masking", {}).get(share) if result is not None else None
    return _share(ends)


def _share(ends: Sequence[float | None] | None) -> str:
    """In percent."""
    if not ends:
        return "–"
    value, low, high = ends
    return interval(value, low, high, 100)


SECTION = Section(
    title="Adversarial attacks",
    reading=(
        "Each line falls from the clean accuracy to what is left when every image is changed by up to epsilon (in 1/255 of a "
        "pixel's range) in the direction that the model's gradient points out: the faster the fall, the smaller the change "
        "that fools it. "
        "Random noise of the same size shows what that aim is worth; where it, or FGSM, does as much as PGD, gradients are "
        "masked and a high line means a weak attack."
    ),
    needs=("attack", "epsilon", "accuracy", "accuracy_low", "accuracy_high", "nll", "success"),
    figures=figures,
    metrics=metrics,
    derived={f"adversarial/{attack}": under(attack) for attack in NAMES},
)
