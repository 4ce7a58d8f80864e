"""What a folder of results holds: models, what was found in each, and what is missing or broken.

``FOLDER/MODEL/ANALYSIS/`` are saved results; ``study.json``, ``MODEL/model.json`` and ``MODEL/failed.json`` say more
when a study wrote the folder.  Nothing here trusts a file: a broken one is left out, and the page says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..analyses import ANALYSES
from ..errors import UserError
from ..result import Result, Row, load
from .sections import check

#: What reading a file that anybody may have changed can raise.
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class Model:
    """A model and what was found in it."""

    name: str
    units: list[Row]  # unit, kind, stage, module and, where known, shape
    parameters: int | None
    results: Mapping[str, Result]


@dataclass(frozen=True)
class Study:
    """Everything a page is made of."""

    models: list[Model]
    settings: Mapping[str, Any]  # study.json, empty where there is none
    absent: list[str]  # a sentence for each thing that is not on the page

    def results(self, analysis: str) -> list[Result | None]:
        """An analysis's result in each model, in order."""
        return [model.results.get(analysis) for model in self.models]

    @property
    def analyses(self) -> list[str]:
        """The analyses with a result, in the order of the page."""
        found = {name for model in self.models for name in model.results}
        return [name for name in ANALYSES if name in found]


def read(folder: Path) -> Study:
    """The study in a folder.  Errors: UserError if there is no such folder or no result in it."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give one that `backlight study` or an analysis wrote with --out")
    absent: list[str] = []
    settings = _document(folder / "study.json", absent)
    models = [model for home in _homes(folder) if (model := _model(home, absent)) is not None]
    if not any(model.results for model in models):
        broken = f" ({absent[0]})" if absent else ""
        raise UserError(f"{folder} holds no results of Backlight{broken}; give a folder that an analysis wrote with --out")
    models = _named_apart(_ordered(models, settings))
    return Study(models, settings, absent + _planned(models, settings, absent))


def _homes(folder: Path) -> list[Path]:
    """The folders that may hold a model's results: those inside, and the folder itself."""
    return [folder, *_folders(folder)]


def _folders(folder: Path) -> list[Path]:
    """Not the hidden ones: those are drafts of a run that goes on or was killed."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _model(home: Path, absent: list[str]) -> Model | None:
    """The model of a folder; None if the folder is not one."""
    places = [path for path in _folders(home) if path.name in ANALYSES or (path / "result.json").exists()]
    facts = _document(home / "model.json", absent)
    failed = _document(home / "failed.json", absent)
    if not places and not facts and not failed:
        return None
    results = {result.analysis: result for path in places for result in _whole(path, absent)}
    name = str(facts.get("model") or next((result.model for result in results.values()), home.name))
    absent += [f"{name}, {analysis}: {reason}" for analysis, reason in failed.items() if analysis not in results]
    return Model(name, _units(facts, results), _parameters(facts, results), results)


def _whole(path: Path, absent: list[str]) -> Iterator[Result]:
    """The result in a folder, or none and a sentence why."""
    try:
        result = load(path)
        check(result)
    except BROKEN as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        absent.append(f"{path.parent.name}/{path.name} is not a whole result and was left out: {reason}")
    else:
        yield result


def _document(path: Path, absent: list[str]) -> dict[str, Any]:
    """A JSON object; empty if there is no such file, or none that can be read."""
    try:
        document = json.loads(path.read_text()) if path.exists() else {}
        return {**document}
    except BROKEN as error:
        absent.append(f"{path.parent.name}/{path.name} could not be read: {str(error).splitlines()[0]}")
        return {}


def _units(facts: Mapping[str, Any], results: Mapping[str, Result]) -> list[Row]:
    """The units as ``model.json`` lists them, or as far as the results tell: each may leave some out."""
    columns = {"unit", "kind", "stage", "module"}
    rows = facts.get("units") or [row for result in results.values() for row in result.table]
    units = [row for row in rows if isinstance(row, dict) and columns <= set(row)]
    found = {row["unit"]: row for row in units if isinstance(row["unit"], int) and row["unit"] >= 0}
    return [{key: row[key] for key in (*sorted(columns), "shape") if key in row} for _, row in sorted(found.items())]


def _parameters(facts: Mapping[str, Any], results: Mapping[str, Result]) -> int | None:
    known = (result.evidence.get("model", {}).get("parameters") for result in results.values())
    return facts.get("parameters") or next((count for count in known if count), None)


def _ordered(models: list[Model], settings: Mapping[str, Any]) -> list[Model]:
    """In the order in which the study was asked for them."""
    asked = [str(name) for name in settings.get("models") or []]
    return sorted(models, key=lambda model: asked.index(model.name) if model.name in asked else len(asked))


def _named_apart(models: list[Model]) -> list[Model]:
    """Two folders may hold models of one name: number them."""
    often, seen = Counter(model.name for model in models), Counter[str]()
    named = []
    for model in models:
        seen[model.name] += 1
        name = f"{model.name} ({seen[model.name]})" if often[model.name] > 1 else model.name
        named.append(replace(model, name=name))
    return named


def _planned(models: list[Model], settings: Mapping[str, Any], absent: list[str]) -> list[str]:
    """What the study was asked for and neither did nor failed at."""
    told = "\n".join(absent)
    return [
        f"{model.name}, {analysis}: not there yet; the study goes on where it stopped when it is run again"
        for model in models
        for analysis in settings.get("analyses") or []
        if analysis not in model.results and f"{model.name}, {analysis}:" not in told
    ]
