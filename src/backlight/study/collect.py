"""All rows of a study as one table: a row of a result, after what the result is of.  torch is not imported.

Columns: model, analysis, data, split, images, seed, ``settings`` (JSON: those of the request that differ between the results of
the analysis), then the columns of all analyses; a row has no value (null) in the columns of other analyses.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backlight.errors import UserError, first_line
from backlight.files import draft_name
from backlight.results.result import DOCUMENT, ROWS, ResultFile, read_document

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = ("collected.parquet", "collected.csv")
ABOUT = ("model", "analysis", "data", "split", "images", "seed", "settings")
NUMBERS = ("images", "seed")
TOGETHER = 200  # results whose rows are in memory at once
SHARED = ("data", "split", "seed")  # of a request; these have columns of their own


@dataclass(frozen=True)
class Cell:
    """A result in a folder, without its rows."""

    place: Path
    document: ResultFile
    schema: pa.Schema  # of its rows

    @property
    def request(self) -> dict[str, Any]:
        """What was requested; empty for a result that no study wrote."""
        return dict(self.document.provenance.get("request", {}))


@dataclass(frozen=True)
class Collected:
    """What was written."""

    files: list[Path]
    rows: int
    cells: int
    left_out: list[str]  # a sentence for each result that cannot be used


def collect(folder: Path, out: Path | None = None) -> Collected:
    """Write the table of all rows as parquet and as CSV, or only to ``out``, whose ending says which.

    The rows of a few results at a time are in memory.  Errors: UserError if there is no result, or if a file cannot be written.
    """
    files = [out] if out else [folder / name for name in NAMES]
    if out and out.suffix not in (".csv", ".parquet"):
        raise UserError(f"{out} ends neither in .csv nor in .parquet, which says how the rows are written")
    left_out: list[str] = []
    cells = list(cells_in(folder, left_out))
    if not cells:
        why = f" ({left_out[0]})" if left_out else ""
        raise UserError(f"{folder} holds no results of Backlight{why}; give a folder that an analysis wrote with --out")
    schema, rows = common_schema(cells), 0
    with ExitStack() as stack:
        writers = [stack.enter_context(written(file, schema)) for file in files]
        for table in tables(cells, schema):
            rows += table.num_rows
            for write in writers:
                write(table)
    return Collected(files, rows, len(cells), left_out)


def cells_in(folder: Path, left_out: list[str]) -> Iterator[Cell]:
    """The results in a study's folder, or in that of one model, in the order of their names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give one that `backlight study` or an analysis wrote with --out")
    for place in sorted({path.parent for pattern in ("*/*/", "*/", "") for path in folder.glob(f"{pattern}{DOCUMENT}")}):
        if any(part.startswith(".") for part in place.relative_to(folder).parts):
            continue  # the draft of a run that is not finished
        try:
            document, contents = read_document(place)
        except UserError as error:
            left_out.append(first_line(error))
        else:
            yield Cell(place, document, pq.read_schema(pa.BufferReader(contents[ROWS])).remove_metadata())


def differing_settings(cells: list[Cell]) -> dict[str, list[str]]:
    """Analysis -> the settings that are not the same in all its results."""
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for cell in cells:
        for name, value in cell.request.items():
            values[cell.document.analysis][name].add(json.dumps(value, sort_keys=True))
    return {
        analysis: sorted(name for name, several in own.items() if len(several) > 1 and name not in (*SHARED, "analysis"))
        for analysis, own in {cell.document.analysis: values[cell.document.analysis] for cell in cells}.items()
    }


def common_schema(cells: list[Cell]) -> pa.Schema:
    """The columns of all analyses; of a column whose type differs, the type that holds all values."""
    import pyarrow as pa

    about = pa.schema([pa.field(name, pa.int64() if name in NUMBERS else pa.string()) for name in ABOUT])
    distinct = {cell.schema: None for cell in cells}
    others = [pa.schema([field for field in schema if field.name not in ABOUT]) for schema in distinct]
    return pa.unify_schemas([about, *others], promote_options="permissive")


def tables(cells: list[Cell], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of all cells, of `TOGETHER` at a time, with these columns."""
    import pyarrow as pa

    differing = differing_settings(cells)
    for several in batched(cells, TOGETHER):
        own = [with_about(cell, differing[cell.document.analysis]) for cell in several]
        yield pa.concat_tables([schema.empty_table(), *own], promote_options="permissive").select(schema.names).cast(schema)


def with_about(cell: Cell, differing: list[str]) -> pa.Table:
    """The rows of a result, and what the result is of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(cell.place / ROWS).read()
    request = cell.request
    settings = {name: request[name] for name in differing if name in request}
    about = {
        "model": cell.document.model, "analysis": cell.document.analysis,
        **{name: request.get(name) for name in SHARED}, "images": cell.document.provenance.get("images"),
        "settings": json.dumps(settings) if settings else None,
    }  # fmt: skip
    repeated = [pa.repeat(pa.scalar(about[name], pa.int64() if name in NUMBERS else pa.string()), len(table)) for name in ABOUT]
    rest = [name for name in table.column_names if name not in ABOUT]
    return pa.table([*repeated, *(table.column(name) for name in rest)], names=[*ABOUT, *rest])


def batched(cells: list[Cell], size: int) -> Iterator[list[Cell]]:
    """The cells, so many at a time."""
    return (cells[start : start + size] for start in range(0, len(cells), size))


@contextmanager
def written(file: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends tables to a file, which replaces an older one at the end of the block.  Errors: UserError."""
    import pyarrow.parquet as pq
    from pyarrow import csv

    draft = file.with_name(draft_name(file))
    try:
        writer: Any = (
            csv.CSVWriter(str(draft), schema)
            if file.suffix == ".csv"
            else pq.ParquetWriter(str(draft), schema, compression="zstd")
        )
        with writer:
            yield writer.write_table
        os.replace(draft, file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or first_line(error)}; choose another --out") from error
    finally:
        draft.unlink(missing_ok=True)
