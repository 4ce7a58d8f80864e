"""A folder of results.

    FOLDER/study.json                    the request: cells and shared settings
    FOLDER/MODEL/units.json              the model's word and units
    FOLDER/MODEL/ANALYSIS/               a result
    FOLDER/MODEL/ANALYSIS.reason.json    why there is none

A study writes it.  A page reads it, and also folders with nothing but results.  Reading trusts no file: a damaged one is left
out, and `Study.absent` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from backlight.analyses.catalog import CATALOG
from backlight.errors import UserError, first_line
from backlight.files import clear_drafts, unwritable
from backlight.locks import locked
from backlight.records import Damaged, R, Record, read_record
from backlight.results.result import DOCUMENT, Result, Row
from backlight.settings import options
from backlight.study.cells import REASON, Reason, home_of, load, write_record
from backlight.study.plan import Cell
from backlight.study.settings import StudySettings

REQUEST, UNITS = "study.json", "units.json"
#: Files of folders that are something else than a study.
ELSEWHERE = {"model.json": "a model", "run.json": "a training", DOCUMENT: "a result"}


@dataclass(frozen=True)
class StudyRequest(Record):
    """What ``study.json`` holds."""

    record = "study"
    version = 1

    cells: dict[str, list[str]] = field(default_factory=dict)  # model -> analyses
    settings: dict[str, Any] = field(default_factory=dict)  # of `StudySettings`


@dataclass(frozen=True)
class UnitRow:
    """A unit of a model."""

    unit: int
    kind: str
    stage: int
    module: str
    shape: list[int]
    identity: bool  # the skip connection is the identity
    removable: bool


@dataclass(frozen=True)
class ModelUnits(Record):
    """What ``units.json`` holds."""

    record = "units"
    version = 1

    model: str
    word: str
    parameters: int
    units: list[UnitRow]


def start_study(folder: Path, cells: Sequence[Cell]) -> None:
    """Remove what killed runs left half-written.

    Errors: UserError, before anything is written, if a folder holds something else.
    """
    homes = dict.fromkeys(home_of(folder, cell) for cell in cells)
    refuse_occupied(folder, ELSEWHERE)
    for home in homes:
        refuse_occupied(home, {**ELSEWHERE, REQUEST: "a study"})
        refuse_strange(home)
    for place in (folder, *homes):
        clear_drafts(place.iterdir() if place.is_dir() else ())
        clear_drafts(place.glob(".partial-*/*/.*"))


def refuse_occupied(folder: Path, marks: Mapping[str, str]) -> None:
    """Errors: UserError if the folder holds one of these files, name -> what it belongs to, or cannot be read."""
    try:
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise unwritable(folder, error) from error
    if name := next((name for name in marks if name in there), None):
        raise UserError(f"{folder} holds {marks[name]} ({name}), and a study writes into no such folder: choose another --out")


def refuse_strange(home: Path) -> None:
    """Errors: UserError if the folder of a model holds anything, and nothing that a study writes."""
    names = {path.name for path in home.iterdir() if not path.name.startswith(".")} if home.exists() else set()
    if names and not any(name in CATALOG or name == UNITS or name.endswith(REASON) for name in names):
        raise UserError(f"{home} holds what Backlight did not write; choose another --out, or empty it")


def store_request(folder: Path, cells: Sequence[Cell], settings: StudySettings) -> str:
    """Write down what is requested, after what earlier runs into the same folder requested.

    Returns what was wrong with the file, in words; it is then written anew.
    """
    with locked(folder, REQUEST, wait=True):
        try:
            earlier, damage = read_request(folder), ""
        except Damaged as error:
            earlier, damage = None, str(error)
        requested = {model: list(names) for model, names in earlier.cells.items()} if earlier else {}
        for cell in cells:
            if cell.analysis not in requested.setdefault(cell.model, []):
                requested[cell.model].append(cell.analysis)
        execution = {option.name for option in options(StudySettings) if option.about["execution"]}
        shared = {name: value for name, value in asdict(settings).items() if name not in execution}
        write_record(folder / REQUEST, StudyRequest(requested, shared))
    return damage


def read_request(folder: Path) -> StudyRequest | None:
    """What earlier runs requested; None if there were none.  Errors: Damaged; UserError."""
    return read_record(folder / REQUEST, StudyRequest)


def store_model(folder: Path, cell: Cell, units: ModelUnits) -> None:
    """Write down what the model of a cell is."""
    write_record(home_of(folder, cell) / UNITS, units)


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
    settings: Mapping[str, Any]  # of study.json, empty if there is none
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
    request = _record(folder / REQUEST, StudyRequest, absent) or StudyRequest()
    homes = [folder, *_folders(folder)]  # results may also lie in the folder itself
    models = [model for home in homes if (model := _model(home, absent)) is not None]
    if not any(model.results for model in models):
        broken = f" ({absent[0]})" if absent else ""
        raise UserError(f"{folder} holds no results of Backlight{broken}; give a folder that an analysis wrote with --out")
    models = _numbered(_ordered(models, request))
    return Study(models, request.settings, absent + _missing(models, request, absent))


def _folders(folder: Path) -> list[Path]:
    """Not the hidden ones: those are drafts of a run that is not finished."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _model(home: Path, absent: list[str]) -> Model | None:
    """The model of a folder; None if the folder is not one."""
    paths = [path for path in _folders(home) if path.name in CATALOG or (path / DOCUMENT).exists()]
    units = _record(home / UNITS, ModelUnits, absent)
    reasons = [reason for path in sorted(home.glob(f"*{REASON}")) if (reason := _record(path, Reason, absent)) is not None]
    if not paths and not units and not reasons:
        return None
    results = {result.analysis: result for path in paths for result in _loaded(path, absent)}
    names = [each.model for each in (*([units] if units else ()), *results.values(), *reasons)]
    name = names[0] if names else home.name
    absent += [
        f"{name}, {each.analysis}: {'failed' if each.applicable else 'not applicable'}: {each.reason}"
        for each in reasons
        if each.analysis not in results
    ]
    known = units.parameters if units else _parameters(results)
    return Model(name, [asdict(row) for row in units.units] if units else units_in(results), known, results)


def _loaded(path: Path, absent: list[str]) -> Iterator[Result]:
    """The result in a folder; none, and a sentence why, if it cannot be used."""
    try:
        result = load(path)
        if not result.table:
            raise UserError("it has no rows")
    except UserError as error:
        absent.append(incomplete(path.parent.name, path.name, error))
    else:
        yield result


def incomplete(model: str, analysis: str, error: Exception) -> str:
    """Why a result is not on the page."""
    return f"{model}/{analysis} is not a complete result and was left out: {first_line(error)}"


def _record(path: Path, kind: type[R], absent: list[str]) -> R | None:
    """The record in a file; None, and a sentence why, if there is one that cannot be used."""
    try:
        return read_record(path, kind)
    except UserError as error:
        absent.append(f"{path.parent.name}/{path.name} could not be read: {first_line(error)}")
        return None


def units_in(results: Mapping[str, Result]) -> list[Row]:
    """The units as far as the results know them: each may leave some out."""
    columns = ("unit", "kind", "stage", "module")
    rows = [row for result in results.values() for row in result.table if set(columns) <= set(row)]
    numbered = {row["unit"]: row for row in rows if isinstance(row["unit"], int) and row["unit"] >= 0}
    return [{key: row[key] for key in columns} for _, row in sorted(numbered.items())]


def _parameters(results: Mapping[str, Result]) -> int | None:
    """The number of parameters that a result knows."""
    known = (result.provenance.get("model", {}).get("parameters") for result in results.values())
    return next((count for count in known if count), None)


def _ordered(models: list[Model], request: StudyRequest) -> list[Model]:
    """In the order in which the study requested them."""
    names = list(request.cells)
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


def _missing(models: list[Model], request: StudyRequest, absent: list[str]) -> list[str]:
    """What the study requested and has neither done nor failed at."""
    explained = "\n".join(absent)
    return [
        f"{model.name}, {analysis}: not run yet; run the study again to resume it"
        for model in models
        for analysis in request.cells.get(model.name, [])
        if analysis not in model.results and f"{model.name}, {analysis}:" not in explained
    ]
