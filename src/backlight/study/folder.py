"""A folder of results.

    FOLDER/study.json                    the request: cells and shared settings
    FOLDER/MODEL/model.json              the model's word and units
    FOLDER/MODEL/ANALYSIS/               a result
    FOLDER/MODEL/failed.json             analysis -> why it failed, in a sentence
    FOLDER/MODEL/not_applicable.json     analysis -> why the model has no answer to it, and the request

A study writes it.  A page reads it, and also folders with nothing but results.  Reading trusts no file: a broken one is left
out, and `Study.absent` says so.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError

from backlight.analyses.catalog import CATALOG, entry
from backlight.errors import UserError, first_line
from backlight.files import write_atomic
from backlight.results.claim import Claim
from backlight.results.result import Result, Row
from backlight.settings import options
from backlight.study.plan import Cell
from backlight.study.settings import StudySettings

#: Results of something that is no analysis: name -> module and class.
OTHER_RESULTS = {"buildup": ("backlight.buildup.result", "Buildup")}
#: What reading a file that anybody may have changed can raise.
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)


def load(folder: str | Path) -> Result:
    """The result that `Result.save` wrote.  Errors: UserError if the folder holds no complete result."""
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    folder = Path(folder)
    try:
        document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        table = pq.read_table(folder / "rows.parquet").to_pylist()
        arrays = load_file(folder / "arrays.safetensors") if (folder / "arrays.safetensors").exists() else {}
        kind = _result_type(document["analysis"])
        claims = [_claim(**claim) for claim in document["claims"]]
        provenance = document["provenance"]
    except BROKEN as error:
        raise UserError(f"{folder} holds no complete result of Backlight: {' '.join(str(error).split())}") from error
    for row in table:
        row.pop("model")
    return kind(document["model"], table, claims, provenance, arrays)


def _result_type(analysis: str) -> type[Result]:
    from importlib import import_module

    if analysis in OTHER_RESULTS:
        module, name = OTHER_RESULTS[analysis]
        return getattr(import_module(module), name)
    return entry(analysis).result_type()


def _claim(**saved: Any) -> Claim:
    """A claim; numbers that JSON could not hold are NaN."""
    return Claim(**(saved | {name: math.nan for name, value in saved.items() if value is None}))


# --- writing


def folder_name(model: str) -> str:
    """A model's name as the name of a folder; ``urllib.parse.unquote`` gives it back.

    >>> folder_name("torchvision:resnet50")
    'torchvision%3Aresnet50'
    """
    return quote(model, safe="=(),")[-200:].lstrip(".")


def stored(folder: Path, cell: Cell) -> Result | None:
    """The result of a cell that is there already.  Errors: UserError if it answers another request."""
    path = folder / folder_name(cell.model) / cell.analysis
    if not (path / "result.json").exists():
        return None
    result = load(path)
    before, now = dict(result.provenance.get("request", {})), cell.request()
    if before != now:
        differences = [f"{key} {before.get(key)!r}, not {value!r}" for key, value in now.items() if before.get(key) != value]
        raise UserError(f"{path} was made with {'; '.join(differences[:3])}: choose another --out, or --overwrite")
    return result


def not_applicable(folder: Path, cells: Sequence[Cell]) -> dict[str, str]:
    """Analysis -> reason, of the cells of one model that an earlier run of the same request found to have no answer."""
    entries = _read(folder / folder_name(cells[0].model) / "not_applicable.json")
    known = {name: entry for name, entry in entries.items() if isinstance(entry, dict)}
    return {
        cell.analysis: str(known[cell.analysis].get("reason"))
        for cell in cells
        if cell.analysis in known and known[cell.analysis].get("request") == cell.request()
    }


def store(folder: Path, cell: Cell, result: Result | None, error: str, *, applicable: bool = True) -> None:
    """Save a result, or the reason why there is none where the page reads it."""
    home = folder / folder_name(cell.model)
    if result is not None:
        replace(result, provenance={**result.provenance, "request": cell.request()}).save(home / cell.analysis)
    _store_entry(home / "failed.json", cell.analysis, error if applicable else "")
    reason = {"reason": error, "request": cell.request()}
    _store_entry(home / "not_applicable.json", cell.analysis, None if applicable else reason)


def _store_entry(file: Path, analysis: str, value: Any) -> None:
    """Set the entry of an analysis in a JSON file, or remove it if there is no value."""
    entries = _read(file)
    if value or analysis in entries:
        entries.pop(analysis, None)
        _write(file, entries | ({analysis: value} if value else {}))


def store_request(folder: Path, cells: Sequence[Cell], settings: StudySettings) -> None:
    """Write down what is requested, after what earlier runs into the same folder requested."""
    requested = {model: list(names) for model, names in _requested(_read(folder / "study.json")).items()}
    for cell in cells:
        if cell.analysis not in requested.setdefault(cell.model, []):
            requested[cell.model].append(cell.analysis)
    execution = {option.name for option in options(StudySettings) if option.about["execution"]}
    shared = {name: value for name, value in asdict(settings).items() if name not in execution}
    _write(folder / "study.json", {"cells": requested, **shared})


def store_model(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    """Write down what a model is."""
    _write(folder / folder_name(name) / "model.json", {"model": name, **facts})


def _requested(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Model -> analyses, of ``study.json``; before version 0.2 all of a list for each of another."""
    cells = settings.get("cells")
    return cells if cells is not None else {model: settings.get("analyses", []) for model in settings.get("models", [])}


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write(file: Path, document: Mapping[str, Any]) -> None:
    try:
        write_atomic(file, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; choose another --out") from error


# --- reading


@dataclass(frozen=True)
class Model:
    """A model and its results."""

    name: str
    units: list[Row]  # unit, kind, stage, module and, where known, shape
    parameters: int | None
    results: Mapping[str, Result]


@dataclass(frozen=True)
class Study:
    """Everything that a page is made of."""

    models: list[Model]
    settings: Mapping[str, Any]  # study.json, empty if there is none
    absent: list[str]  # a sentence for each thing that is not on the page

    def results(self, analysis: str) -> list[Result | None]:
        """An analysis's result for each model, in order."""
        return [model.results.get(analysis) for model in self.models]

    @property
    def analyses(self) -> list[str]:
        """The analyses that have a result, in the order of the page."""
        names = {name for model in self.models for name in model.results}
        return [name for name in CATALOG if name in names]


def read_study(folder: Path) -> Study:
    """The study in a folder.  Errors: UserError if there is no such folder, or no result in it."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give one that `backlight study` or an analysis wrote with --out")
    absent: list[str] = []
    settings = _document(folder / "study.json", absent)
    homes = [folder, *_folders(folder)]  # results may also lie in the folder itself
    models = [model for home in homes if (model := _model(home, absent)) is not None]
    if not any(model.results for model in models):
        broken = f" ({absent[0]})" if absent else ""
        raise UserError(f"{folder} holds no results of Backlight{broken}; give a folder that an analysis wrote with --out")
    models = _numbered(_ordered(models, settings))
    return Study(models, settings, absent + _missing(models, settings, absent))


def _folders(folder: Path) -> list[Path]:
    """Not the hidden ones: those are drafts of a run that is not finished."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _model(home: Path, absent: list[str]) -> Model | None:
    """The model of a folder; None if the folder is not one."""
    paths = [path for path in _folders(home) if path.name in CATALOG or (path / "result.json").exists()]
    facts = _document(home / "model.json", absent)
    failed, unanswered = (_document(home / f"{name}.json", absent) for name in ("failed", "not_applicable"))
    if not paths and not facts and not failed and not unanswered:
        return None
    results = {result.analysis: result for path in paths for result in _loaded(path, absent)}
    name = str(facts.get("model") or next((result.model for result in results.values()), home.name))
    absent += [f"{name}, {analysis}: failed: {reason}" for analysis, reason in failed.items() if analysis not in results]
    absent += [
        f"{name}, {analysis}: not applicable: {entry.get('reason') if isinstance(entry, dict) else entry}"
        for analysis, entry in unanswered.items()
        if analysis not in results
    ]
    return Model(name, _units(facts, results), _parameters(facts, results), results)


def _loaded(path: Path, absent: list[str]) -> Iterator[Result]:
    """The result in a folder; none, and a sentence why, if it is broken."""
    try:
        result = load(path)
        if not isinstance(result.provenance, Mapping) or not result.table:
            raise ValueError("it has no rows" if not result.table else "its provenance is no mapping")
    except BROKEN as error:
        absent.append(incomplete(path.parent.name, path.name, error))
    else:
        yield result


def incomplete(model: str, analysis: str, error: Exception) -> str:
    """Why a result is not on the page."""
    return f"{model}/{analysis} is not a complete result and was left out: {first_line(error)}"


def _document(path: Path, absent: list[str]) -> dict[str, Any]:
    """A JSON object; empty if there is no such file, or none that can be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {**document}
    except BROKEN as error:
        absent.append(f"{path.parent.name}/{path.name} could not be read: {first_line(error)}")
        return {}


def _units(facts: Mapping[str, Any], results: Mapping[str, Result]) -> list[Row]:
    """The units as ``model.json`` lists them, or as far as the results know them: each may leave some out."""
    columns = {"unit", "kind", "stage", "module"}
    rows = facts.get("units") or [row for result in results.values() for row in result.table]
    units = [row for row in rows if isinstance(row, dict) and columns <= set(row)]
    numbered = {row["unit"]: row for row in units if isinstance(row["unit"], int) and row["unit"] >= 0}
    return [{key: row[key] for key in (*sorted(columns), "shape") if key in row} for _, row in sorted(numbered.items())]


def _parameters(facts: Mapping[str, Any], results: Mapping[str, Result]) -> int | None:
    known = (result.provenance.get("model", {}).get("parameters") for result in results.values())
    return facts.get("parameters") or next((count for count in known if count), None)


def _ordered(models: list[Model], settings: Mapping[str, Any]) -> list[Model]:
    """In the order in which the study requested them."""
    names = [str(name) for name in _requested(settings)]
    return sorted(models, key=lambda model: names.index(model.name) if model.name in names else len(names))


def _numbered(models: list[Model]) -> list[Model]:
    """Models of one name, in several folders, get a number."""
    total, so_far = Counter(model.name for model in models), Counter[str]()
    numbered = []
    for model in models:
        so_far[model.name] += 1
        name = f"{model.name} ({so_far[model.name]})" if total[model.name] > 1 else model.name
        numbered.append(replace(model, name=name))
    return numbered


def _missing(models: list[Model], settings: Mapping[str, Any], absent: list[str]) -> list[str]:
    """What the study requested and has neither done nor failed at."""
    explained, requested = "\n".join(absent), _requested(settings)
    return [
        f"{model.name}, {analysis}: not run yet; run the study again to resume it"
        for model in models
        for analysis in requested.get(model.name, [])
        if analysis not in model.results and f"{model.name}, {analysis}:" not in explained
    ]
