"""The section of ``adversarial``: accuracy over epsilon under PGD and FGSM, beside random noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backlight.report.sections.section import Chart, Metrics, Results, Section
from backlight.report.words import interval, number
from backlight.results.result import Result, Row

ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")
NAMES = {"pgd": "PGD", "fgsm": "FGSM", "random": "Random noise"}


def figures(results: Results) -> list[list[Chart]]:
    """A tab for each attack."""
    return [[
        Chart(
            "epsilons", f"adversarial/{attack}", f"Accuracy under {label} (%)",
            f"Accuracy under {label} over epsilon, a line per model, with its 95% interval. {_at_largest(results, attack)}",
            y="accuracy", scale=100, tab=name, name="adversarial/accuracy",
        )
        for attack, name in NAMES.items()
        for label in [name if name.isupper() else name.lower()]
    ]]  # fmt: skip


def metrics(results: Results) -> Metrics:
    """Accuracy and success under PGD, and signs of masked gradients, a column for each model."""
    rows = [
        ("Clean accuracy", "%", [_clean(r) for r in results]),
        ("Accuracy under PGD", "%; at the largest epsilon", [_largest(r, "accuracy") for r in results]),
        ("Success of PGD", "%; of the attackable images, at the largest epsilon", [_largest(r, "success") for r in results]),
        ("No gradient", "% of the images; attacks have no direction there", [_masking(r, "zero_gradients") for r in results]),
        ("FGSM beats PGD", "% of the images; many mean masked gradients", [_masking(r, "fgsm_beats_pgd") for r in results]),
        ("Random beats PGD", "% of the images; many mean masked gradients", [_masking(r, "random_beats_pgd") for r in results]),
    ]  # fmt: skip
    return Metrics("Attacks and signs of masked gradients, with 95% intervals over images", rows)


def under(attack: str) -> Callable[[Result], list[Row]]:
    """A derived table: accuracy over epsilon under one attack, the clean images at epsilon 0."""

    def rows(result: Result) -> list[Row]:
        clean = result.provenance.get("clean", {}).get("accuracy")
        start = [{"at": 0.0} | dict(zip(ACCURACY, clean, strict=True))] if clean else []
        attacked = [row for row in result.table if row["attack"] == attack]
        return start + [{"at": row["epsilon"]} | {column: row[column] for column in ACCURACY} for row in attacked]

    return rows


def _at_largest(results: Results, attack: str) -> str:
    return " ".join(f"{r.model}: {_largest(r, 'accuracy', attack)}% at {_epsilon(r)}/255." for r in results if r is not None)


def _epsilon(result: Result) -> str:
    return number(max(row["epsilon"] for row in result.table), 0)


def _largest(result: Result | None, column: str, attack: str = "pgd") -> str:
    if result is None:
        return "–"
    row = max((row for row in result.table if row["attack"] == attack), key=lambda row: row["epsilon"])
    return _share([row[f"{column}{end}"] for end in ("", "_low", "_high")])


def _clean(result: Result | None) -> str:
    ends = result.provenance.get("clean", {}).get("accuracy") if result is not None else None
    return _share(ends)


def _masking(result: Result | None, share: str) -> str:
    ends = result.provenance.get("gradient_masking", {}).get(share) if result is not None else None
    return _share(ends)


def _share(ends: Sequence[float | None] | None) -> str:
    """A share with its interval, in percent."""
    if not ends:
        return "–"
    value, low, high = ends
    return interval(value, low, high, 100)


SECTION = Section(
    title="Adversarial attacks",
    reading=(
        "Each line starts at the clean accuracy and falls as every image is changed by up to epsilon (in 1/255 of a pixel's "
        "range) in the direction of the model's gradient: the faster it falls, the smaller is the change that fools the model. "
        "Random noise of the same size shows how much this direction matters; if random noise or FGSM does as much harm as "
        "PGD, gradients are masked, and a high line shows a weak attack, not a robust model."
    ),
    needs=("attack", "epsilon", "accuracy", "accuracy_low", "accuracy_high", "nll", "success"),
    figures=figures,
    metrics=metrics,
    derived={f"adversarial/{attack}": under(attack) for attack in NAMES},
)
