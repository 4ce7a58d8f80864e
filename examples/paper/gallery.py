"""Draws the gallery from the stored results: each figure of the paper, ours, beside what the paper shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from analyse import training_of, with_results
from evidence import END, PUBLISHED, WARMUP, Decided
from series import read

from backlight.errors import UserError
from backlight.figures.drawing import draw, models_in, save
from backlight.study.folder import Model

AS_PUBLISHED = "As the official code measures it (`--paper`):"


def write_gallery(folder: Path, results: Path, decided: Sequence[Decided]) -> str:
    """Draw every figure of which a model is there, and return the page."""
    sections = [section for entry in read("gallery.toml")["figure"] for section in _sections(entry, folder, results, decided)]
    return "\n".join(["# Gallery\n", read("texts.toml")["gallery"], *sections])


def _sections(entry: Mapping[str, Any], folder: Path, results: Path, decided: Sequence[Decided]) -> Iterator[str]:
    """The section of a figure, with its second drawing if the official code's differs."""
    name = entry.get("file", entry["number"])
    yield f"## Figure {name}. {entry['title']}\n\n**The paper:** {entry['paper']}\n"
    yield _drawn(entry, results, folder / f"{name}.png", entry["studies"])
    if entry.get("published"):
        study = PUBLISHED[WARMUP if WARMUP in entry["studies"] else END]
        yield _drawn(entry, results, folder / f"{name}-published.png", [study], AS_PUBLISHED)
    yield f"**Decided:** {_verdicts(entry['items'], decided)}.\n"


def _drawn(entry: Mapping[str, Any], results: Path, picture: Path, studies: Sequence[str], lead: str = "") -> str:
    """The picture of the models that are there, what is missing, and the command."""
    folders = [folder for study, folder in with_results(results).items() if study in studies]
    models = models_in(folders)
    chosen = [model for pattern in entry["models"] for model in models if fnmatchcase(training_of(model.name), pattern)]
    try:
        save(draw(entry["number"], chosen), picture)
    except UserError:
        picture.unlink(missing_ok=True)
        return f"Not drawn: {_missing(entry['models'], [])}.\n"
    missing = _missing(entry["models"], chosen)
    about = [lead, f"![Figure {picture.stem}: {entry['title']}]({picture.name})", f"Not in it: {missing}." if missing else ""]
    return "\n".join([*(f"{part}\n" for part in about if part), "```sh", command(entry, folders, chosen), "```", ""])


def command(entry: Mapping[str, Any], folders: Sequence[Path], models: Sequence[Model]) -> str:
    """The command that draws a figure of these models."""
    patterns = " ".join(f"'{model.name}'" for model in models)
    return f"backlight figure {entry['number']} {' '.join(map(str, folders))} --models {patterns} --out figure.png"


def _missing(patterns: Sequence[str], models: Sequence[Model]) -> str:
    """The trainings of an entry that are not there, in words."""
    there = [training_of(model.name) for model in models]
    absent = [pattern for pattern in patterns if not any(fnmatchcase(training, pattern) for training in there)]
    return f"{', '.join(absent)} not trained yet" if absent else ""


def _verdicts(items: Sequence[int], decided: Sequence[Decided]) -> str:
    """How the statements of some items came out, with links to them."""
    parts = []
    for number in items:
        own = [each for each in decided if each.item["number"] == number]
        counts = Counter(each.verdict for each in own)
        shown = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        parts.append(f"[item {number}](../claims.md#{anchor(own[0])}): {shown}")
    return "; ".join(parts)


def anchor(decided: Decided) -> str:
    """The anchor of an item's heading, as Markdown makes it.

    >>> from types import SimpleNamespace
    >>> anchor(SimpleNamespace(item={"number": 7, "title": "A smoother loss (GAP): better"}))
    '7-a-smoother-loss-gap-better'
    """
    text = f"{decided.item['number']}. {decided.item['title']}".lower()
    return "".join(letter for letter in text if letter.isalnum() or letter in " -").replace(" ", "-")
