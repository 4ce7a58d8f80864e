"""A cell in the folder of a study: a result, or the reason why there is none.

FOLDER/MODEL/ANALYSIS/               the result
FOLDER/MODEL/ANALYSIS.reason.json    why there is none: the analysis failed, or the model has no answer to it

MODEL is the model's name, and where that does not say which model it is, a hash of the file or folder that it names.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from backlight.analyses.catalog import entry
from backlight.errors import UserError
from backlight.files import refuse_foreign, write_atomic
from backlight.model_names.place import place_of
from backlight.records import Record, encoded, plain, read_record, sha256_of
from backlight.results.result import DOCUMENT, Result, ResultFile, read_document, read_result
from backlight.study.plan import Cell

if TYPE_CHECKING:
    from backlight.study.identity import Identity

#: Results of something that is no analysis: name -> module and class.
OTHER_RESULTS = {"buildup": ("backlight.buildup.result", "Buildup")}
REASON = ".reason.json"
LONGEST = 150  # characters of a folder's name without its hash; file systems allow 255


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
    identity: dict[str, Any] = field(default_factory=dict)  # as `Identity`; empty if it is not known


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


def folder_name(model: str, *, chosen: bool = False) -> str:
    """A model's name as the name of a folder, and the same for no other model.  ``chosen``: the user gave it this name.

    Its end is a hash where the name is that of a file or folder, is long, begins with a dot, ends as a file of a study does,
    or has capitals, which some file systems do not distinguish.

    >>> folder_name("torchvision:resnet50")
    'torchvision%3Aresnet50'
    """
    name, place = quote(model, safe="=(),", errors="surrogateescape"), None if chosen else place_of(model)
    fits = 0 < len(name) <= LONGEST and not name.startswith(".") and not name.endswith((".json", ".html"))
    if fits and place is None and model == model.lower():
        return name
    distinct = sha256_of(f"{model}\n{place}".encode(errors="surrogateescape"))[:8]
    return f"{name[:LONGEST].lstrip('.')}-{distinct}"


def home_of(folder: Path, cell: Cell) -> Path:
    """The folder of a cell's model."""
    return folder / folder_name(cell.model, chosen=cell.model in cell.aliases)


def result_folder(folder: Path, cell: Cell) -> Path:
    """The folder of a cell's result."""
    return home_of(folder, cell) / cell.analysis


def stored(folder: Path, cell: Cell, *, overwrite: bool = False) -> ResultFile | None:
    """The document of a cell that is there already; None if there is none, or if it is to be overwritten.

    Errors: Damaged if it cannot be used; UserError if it answers another request, or if the folder holds something else.
    """
    path = result_folder(folder, cell)
    refuse_foreign(path)
    if overwrite or not (path / DOCUMENT).exists():
        return None
    document, _ = read_document(path)
    before, now = dict(document.provenance.get("request", {})), request_of(cell)
    keys = [key for key in {**now, **before} if before.get(key) != now.get(key)]
    if keys:
        differences = [f"{key} {before.get(key)!r}, not {now.get(key)!r}" for key in keys[:3]]
        raise UserError(f"{path} was made with {'; '.join(differences)}: choose another --out, or --overwrite")
    return document


def not_applicable(folder: Path, cell: Cell) -> Reason | None:
    """Why the model has no answer, if an earlier run of the same request noted that.  Errors: Damaged; UserError."""
    reason = read_record(_reason_file(folder, cell), Reason)
    return reason if reason and not reason.applicable and reason.request == request_of(cell) else None


def store(
    folder: Path, cell: Cell, result: Result | None, error: str, *, applicable: bool = True, identity: Identity | None = None
) -> None:
    """Save a result, or the reason why there is none, with what was measured."""
    file, known = _reason_file(folder, cell), plain(asdict(identity)) if identity else {}
    if result is None:
        write_record(file, Reason(cell.model, cell.analysis, error, applicable, request_of(cell), known))
        return
    about = {**result.provenance, "request": request_of(cell), "identity": known}
    replace(result, provenance=about).save(result_folder(folder, cell))
    file.unlink(missing_ok=True)


def request_of(cell: Cell) -> dict[str, Any]:
    """The request of a cell as its file holds it."""
    return plain(cell.request())


def _reason_file(folder: Path, cell: Cell) -> Path:
    return home_of(folder, cell) / f"{cell.analysis}{REASON}"


def write_record(file: Path, record: Record) -> None:
    """Write a record, or replace it.  Errors: UserError if it cannot be written."""
    try:
        write_atomic(file, encoded(record))
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; choose another --out") from error
