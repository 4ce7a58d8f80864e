"""Writes `docs/claims.md` from the stored results: every statement of the paper, with what was measured here beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from analyse import train_command
from commands import command_of
from defects import defects
from evidence import END, WARMUP, Decided, Stored, decided, stored_results
from gallery import write_gallery
from series import read

from backlight.results.claim import Claim
from backlight.study.folder import Model

DOCS = Path("docs")
STORED = Path("examples/paper/results")


def write(scale: str) -> None:
    """Write the page and the gallery: of the small models in the documentation, of others beside their rows."""
    results = STORED / scale
    folder = DOCS if scale == "small" else results
    (folder / "claims.md").write_text(page(scale, results), encoding="utf-8")
    gallery = write_gallery(folder / "gallery", results, decided(stored_results(results)))
    (folder / "gallery" / "README.md").write_text(gallery, encoding="utf-8")


def page(scale: str, results: Path) -> str:
    """The page about the results in a folder."""
    stored = stored_results(results)
    statements = decided(stored)
    parts = [
        _introduction(statements, read("trainings.toml")[scale]["about"]),
        _overview(statements),
        "## Item by item\n",
        *(_item(list(group), scale) for _, group in groupby(statements, key=lambda each: each.item["number"])),
        defects(stored),
        _trainings(stored, scale),
    ]
    return "\n".join(parts)


def _introduction(statements: Sequence[Decided], about: str) -> str:
    counts = Counter(each.verdict.split(" (")[0].split(",")[0] for each in statements)
    shown = ", ".join(f"{counts[word]} {word}" for word in sorted(counts, key=lambda word: -counts[word]))
    count = f"{len(statements)} statements in 23 items: {shown}."
    return "\n".join(
        ["# The paper, measured again\n", read("texts.toml")["introduction"].replace("{about}", about), f"{count}\n"]
    )


def _overview(statements: Sequence[Decided]) -> str:
    lines = ["## The statements\n", "| item | statement | verdict | effect | figure |", "|--:|---|---|---|---|"]
    for each in statements:
        item = each.item
        effect = in_words(each.effect) if each.effect else each.row.get("needs", "see the trainings below")
        lines.append(f"| {item['number']} | {each.row['says']} | {each.verdict} | {effect} | {item['figure']} |")
    return "\n".join([*lines, ""])


def _item(statements: Sequence[Decided], scale: str) -> str:
    item = statements[0].item
    lines = [f"### {item['number']}. {item['title']}\n", f"Figure: {item['figure']}. **The paper:** {item['paper']}\n"]
    lines += ["| statement | measured | within each seed | between seeds | verdict |", "|---|---|---|---|---|"]
    lines += [_row(each) for each in statements]
    lines += ["", f"**Why ours may differ:** {item['scale']}\n", "```sh"]
    return "\n".join([*lines, *dict.fromkeys(command_of(each, scale) for each in statements), "```", ""])


def _row(each: Decided) -> str:
    if not each.seeds:
        needs = each.row.get("needs") or f"needs {' and '.join(each.absent)}"
        return f"| {each.row['says']} | {needs} | | | {each.verdict} |"
    seeds = "<br>".join(f"{seed}: {in_words(claim)}" for seed, claim in each.seeds.items())
    one = next(iter(each.seeds.values()))
    between = in_words(each.between) if each.between else "one seed"
    return f"| {each.row['says']} | {each.quantity}, {one.count:,} {one.over} | {seeds} | {between} | {each.verdict} |"


def in_words(claim: Claim) -> str:
    """An effect with its interval; why there is none."""
    if math.isnan(claim.value):
        return claim.reason
    if not (math.isfinite(claim.low) and math.isfinite(claim.high)):
        return f"{number(claim.value)} (no interval: {claim.reason})"
    return f"{number(claim.value)} [{number(claim.low)}, {number(claim.high)}]"


def number(value: float) -> str:
    """A number with its sign and three digits.

    >>> number(12.345), number(-0.012345), number(0.0)
    ('+12.3', '-0.0123', '0')
    """
    return f"{value:+.3g}" if value else "0"


# --- the trainings


def _trainings(stored: Stored, scale: str) -> str:
    trainings = read("trainings.toml")[scale]
    lines = [
        "## The trainings\n",
        "| training | model | parameters | test accuracy, % | training NLL | trained |",
        "|---|---|--:|--:|--:|---|",
    ]
    for entry in trainings["order"]:
        name = entry.partition("/")[0]
        own = trainings["models"][name]
        architecture = own.get("model") or trainings["models"][own["like"]]["model"]
        share = f", {100 * own['fraction']:g}% of the images" if "fraction" in own else ""
        lines.append(f"| {entry} | `{architecture}`{share} | {' | '.join(_facts(stored, entry))} |")
    missing = [entry for entry in trainings["order"] if entry not in stored[END]]
    if missing:
        lines += ["", "Not trained yet:\n", "```sh", train_command(" ".join(missing), scale), "```"]
    return "\n".join([*lines, ""])


def _facts(stored: Stored, entry: str) -> Iterator[str]:
    """Parameters, accuracy, training NLL, and whether it is trained."""
    model = stored[END].get(entry)
    yield f"{model.parameters:,}" if model and model.parameters else ""
    yield _percent(model, "calibration") if model else ""
    yield _training_nll(model) if model else ""
    yield "yes" if model else "warm-up" if entry in stored[WARMUP] else "no"


def _percent(model: Model, analysis: str) -> str:
    row = _find(model, analysis, {"metric": "accuracy"})
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" if row else ""


def _training_nll(model: Model) -> str:
    row = _find(model, "landscape", {"x": 0.0, "y": 0.0})
    return f"{row['nll']:.2f} [{row['nll_low']:.2f}, {row['nll_high']:.2f}]" if row else ""


def _find(model: Model, analysis: str, values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row of a result that has these values."""
    table = model.results[analysis].table if analysis in model.results else []
    return next((row for row in table if values.items() <= row.items()), None)
