"""Writes `docs/claims.md` from the stored results: every statement of the paper, with what was measured here beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from analyse import train_command
from commands import command_of
from defects import defects
from evidence import END, WARMUP, Decided, Stored, decided, in_words, stored_results
from gallery import write_gallery
from parts import parts
from series import read

from backlight.study.folder import Model

DOCS = Path("docs")
STORED = Path("examples/paper/results")
HOURS = "hours.json"


def write(scale: str) -> None:
    """Write the page and the gallery: of the small models in the documentation, of others beside their rows."""
    results = STORED / scale
    folder = DOCS if scale == "small" else results
    (folder / "gallery").mkdir(parents=True, exist_ok=True)
    (folder / "claims.md").write_text(page(scale, results), encoding="utf-8")
    gallery = write_gallery(folder / "gallery", results, decided(stored_results(results)))
    (folder / "gallery" / "README.md").write_text(gallery, encoding="utf-8")


def page(scale: str, results: Path) -> str:
    """The page about the results in a folder."""
    stored = stored_results(results)
    statements = decided(stored)
    sections = [
        _introduction(statements, read("trainings.toml")[scale]["about"]),
        _overview(statements),
        "## Item by item\n",
        *(_item(list(group), scale) for _, group in groupby(statements, key=lambda each: each.item["number"])),
        parts(stored),
        defects(stored),
        _trainings(stored, scale, results),
    ]
    return "\n".join(sections)


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


# --- the trainings


def _trainings(stored: Stored, scale: str, results: Path) -> str:
    trainings, hours = read("trainings.toml")[scale], hours_in(results)
    lines = [
        "## The trainings\n",
        "| training | model | parameters | test accuracy, % | training NLL | core hours |",
        "|---|---|--:|--:|--:|--:|",
        *(f"| {entry} | {' | '.join(_facts(stored, entry, trainings, hours))} |" for entry in trainings["order"]),
        f"\n{len(hours)} of {len(trainings['order'])} are trained, in {sum(hours.values()):.1f} hours; {measuring(stored)}.",
    ]
    missing = [entry for entry in trainings["order"] if entry not in stored[END]]
    if missing:
        lines += ["", "Not trained yet:\n", "```sh", train_command(" ".join(missing), scale), "```"]
    return "\n".join([*lines, ""])


def _facts(stored: Stored, entry: str, trainings: Mapping[str, Any], hours: Mapping[str, float]) -> Iterator[str]:
    """Architecture, parameters, accuracy, training NLL, and how long it took, of what is known."""
    own, model = trainings["models"][entry.partition("/")[0]], stored[END].get(entry)
    architecture = own.get("model") or trainings["models"][own["like"]]["model"]
    yield f"`{architecture}`" + (f", {100 * own['fraction']:g}% of the images" if "fraction" in own else "")
    yield f"{model.parameters:,}" if model and model.parameters else ""
    yield _accuracy(model) if model else ""
    yield _training_nll(model) if model else ""
    yield f"{hours[entry]:.2f}" if entry in hours else "warm-up" if entry in stored[WARMUP] else "not trained yet"


def hours_in(results: Path) -> dict[str, float]:
    """How long each training took, as it is stored."""
    file = results / HOURS
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def measuring(stored: Stored) -> str:
    """How long all measurements took.  Analyses that share a forward pass have the same seconds, which count once."""
    models = [model for trainings in stored.values() for model in trainings.values()]
    seconds = sum(sum({result.provenance.get("seconds", 0) for result in model.results.values()}) for model in models)
    return f"measuring took {seconds / 60:.0f} minutes of one core, shared with other work"


def _accuracy(model: Model) -> str:
    row = _find(model, "calibration", {"metric": "accuracy"})
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" if row else ""


def _training_nll(model: Model) -> str:
    row = _find(model, "landscape", {"x": 0.0, "y": 0.0})
    return f"{row['nll']:.2f} [{row['nll_low']:.2f}, {row['nll_high']:.2f}]" if row else ""


def _find(model: Model, analysis: str, values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row of a result that has these values."""
    table = model.results[analysis].table if analysis in model.results else []
    return next((row for row in table if values.items() <= row.items()), None)
