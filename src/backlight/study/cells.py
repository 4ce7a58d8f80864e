"""A cell in the folder of a study: a result, or the reason why there is none.

FOLDER/MODEL/ANALYSIS/               the result
FOLDER/MODEL/ANALYSIS.reason.json    why there is none: the analysis failed, or the model has no answer to it
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

from backlight.analyses.catalog import entry
from backlight.errors import UserError
from backlight.files import refuse_foreign, write_atomic
from backlight.records import Record, encoded, read_record
from backlight.results.result import DOCUMENT, Result, read_result
from backlight.study.plan import Cell

#: Results of something that is no analysis: name -> module and class.
OTHER_RESULTS = {"buildup": ("backlight.buildup.result", "Buildup")}
REASON = ".reason.json"


@dataclass(frozen=True)
class Reason(Record):
    """Why a cell has no result."""

    record = "reason"
    version = 1

    model: str
    analysis: str
    reason: str
    applicable: bool  # False: the model has no answer
    request: dict[str, Any]


def load(folder: str | Path) -> Result:
    """The result that `Result.save` wrote.

    Errors: UserError if the folder holds no result, or one of a newer version; Damaged, a UserError, names the file.
    """
    document, table, arrays = read_result(Path(folder))
    kind = _result_type(document.analysis, Path(folder))
    return kind(document.model, table, document.claims, document.provenance, arrays)


def _result_type(analysis: str, folder: Path) -> type[Result]:
    if analysis in OTHER_RESULTS:
        module, name = OTHER_RESULTS[analysis]
        return getattr(import_module(module), name)
    try:
        return entry(analysis).result_type()
    except UserError as error:
        raise UserError(f"{folder / DOCUMENT}: {error}") from error


def folder_name(model: str) -> str:
    """A model's name as the name of a folder; ``urllib.parse.unquote`` gives it back.

    >>> folder_name("torchvision:resnet50")
    'torchvision%3Aresnet50'
    """
    return quote(model, safe="=(),")[-200:].lstrip(".")


def stored(folder: Path, cell: Cell, *, overwrite: bool = False) -> Result | None:
    """The result of a cell that is there already; None if there is none, or if it is to be overwritten.

    Errors: Damaged if it cannot be used; UserError if it answers another request, or if the folder holds something else.
    """
    path = folder / folder_name(cell.model) / cell.analysis
    refuse_foreign(path)
    if overwrite or not (path / DOCUMENT).exists():
        return None
    result = load(path)
    before, now = dict(result.provenance.get("request", {})), cell.request()
    if before != now:
        differences = [f"{key} {before.get(key)!r}, not {value!r}" for key, value in now.items() if before.get(key) != value]
        raise UserError(f"{path} was made with {'; '.join(differences[:3])}: choose another --out, or --overwrite")
    return result


def not_applicable(folder: Path, cell: Cell) -> str | None:
    """Why the model has no answer, if an earlier run of the same request noted that.  Errors: Damaged; UserError."""
    reason = read_record(_reason_file(folder, cell), Reason)
    return reason.reason if reason and not reason.applicable and reason.request == cell.request() else None


def store(folder: Path, cell: Cell, result: Result | None, error: str, *, applicable: bool = True) -> None:
    """Save a result, or the reason why there is none."""
    file = _reason_file(folder, cell)
    if result is None:
        write_record(file, Reason(cell.model, cell.analysis, error, applicable, cell.request()))
        return
    path = folder / folder_name(cell.model) / cell.analysis
    replace(result, provenance={**result.provenance, "request": cell.request()}).save(path)
    file.unlink(missing_ok=True)


def _reason_file(folder: Path, cell: Cell) -> Path:
    return folder / folder_name(cell.model) / f"{cell.analysis}{REASON}"


def write_record(file: Path, record: Record) -> None:
    """Write a record, or replace it.  Errors: UserError if it cannot be written."""
    try:
        write_atomic(file, encoded(record))
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; choose another --out") from error
