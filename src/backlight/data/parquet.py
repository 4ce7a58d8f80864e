"""Image sets in parquet files, as the Hugging Face Hub stores them, read one row group at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backlight.data.image_set import ImageSet, image_set, numbered, resolved_split, sha256_of_files
from backlight.errors import UserError, first_line
from backlight.records import Misfit, conforming, parsed


@dataclass
class ParquetRows:
    """The rows of parquet files in order; the row group that was read last stays in memory, its images encoded.

    `groups` are the row groups as (file, number within the file), `starts` their first rows.
    """

    files: Sequence[Path]
    column: str
    groups: Sequence[tuple[int, int]]
    starts: np.ndarray
    _last_read: tuple[int, Any] = field(default=(-1, None), repr=False)  # a row group and its number

    def read(self, row: int) -> bytes:
        """The bytes of a row's image file.  Errors: UserError if the cell is empty."""
        group = self._group(row)
        last = self._last_read
        if last[0] != group:
            self._last_read = last = group, self._encoded(group)
        image = last[1][row - int(self.starts[group])].as_py()
        if not image or image["bytes"] is None:
            raise UserError(f"cannot read image {self.where(row)}: it holds no image bytes")
        return image["bytes"]

    def id(self, row: int) -> str:
        """The row number in the split."""
        return str(row)

    def where(self, row: int) -> str:
        """The file, and the row number in it."""
        file = self.groups[self._group(row)][0]
        first = self.starts[[number for number, _ in self.groups].index(file)]
        return f"{self.files[file]} row {row - first}"

    def content(self, rows: Iterable[int]) -> tuple[str, str]:
        """The hash of the files, whichever rows are used."""
        return sha256_of_files(self.files)

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def _encoded(self, group: int) -> Any:
        file, number = self.groups[group]
        with parquet_file(self.files[file]) as opened:  # every time, so that loader processes share no handle
            return opened.read_row_group(number, columns=[f"{self.column}.bytes"], use_threads=False).column(0)


def parquet(path: Path, split: str, *, name: str) -> ImageSet:
    """A split of a folder with SPLIT.parquet or SPLIT-*.parquet, in the folder itself or in its `data/`.

    The image column is the first struct with `bytes`.  The label column is `label`, `fine_label` or the first ClassLabel
    of the `huggingface` metadata, which also give the class names.
    Errors: UserError for a split that does not exist, and for files without these columns, damaged or with other columns.
    """
    files = parquet_splits(path)
    part = resolved_split(split, files, path)
    with parquet_file(files[part][0]) as first:
        image, label, classes = hub_columns(first.schema_arrow, files[part][0])

    groups, lengths, labels = [], [], []
    for number, file in enumerate(files[part]):
        with parquet_file(file) as opened:
            if hub_columns(opened.schema_arrow, file) != (image, label, classes):
                raise UserError(f"{file} has other columns or classes than {files[part][0]}")
            groups += [(number, group) for group in range(opened.num_row_groups)]
            lengths += [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            labels.append(integers(opened.read(columns=[label], use_threads=False).column(0), label, file))
    starts = np.cumsum([0, *lengths])[:-1]
    all_labels = np.concatenate(labels)
    rows = ParquetRows(files[part], image, groups, starts)
    return image_set(name, rows, split=part, classes=classes or numbered(all_labels), labels=all_labels)


def parquet_splits(path: Path) -> dict[str, list[Path]]:
    """The parquet files of a folder, or of its `data` folder, by split."""
    splits: dict[str, list[Path]] = {}
    for file in sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")):
        splits.setdefault(re.split(r"[-.]", file.name, maxsplit=1)[0], []).append(file)
    return splits


@contextmanager
def parquet_file(file: Path) -> Iterator[Any]:
    """An open parquet file.  Errors: UserError if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            yield opened
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {file}: it is cut short, damaged or no parquet file") from error


def hub_columns(schema: Any, file: Path) -> tuple[str, str, tuple[str, ...]]:
    """The image column, the label column and the class names (empty if the file has none)."""
    import pyarrow as pa

    images = [c.name for c in schema if pa.types.is_struct(c.type) and c.type.get_field_index("bytes") >= 0]
    names = hub_class_names((schema.metadata or {}).get(b"huggingface", b"{}"), file)
    labels = [name for name in ("label", "fine_label", *names) if name in schema.names]
    if not images or not labels:
        missing = "image column (a struct of bytes and path)" if not images else "label column"
        raise UserError(f"{file} has no {missing}: its columns are {', '.join(schema.names)}")
    return images[0], labels[0], tuple(names.get(labels[0], ()))


def hub_class_names(content: bytes, file: Path) -> dict[str, list[str]]:
    """The class names of each ClassLabel in the ``huggingface`` metadata.  Errors: UserError if they cannot be read."""
    try:
        info = conforming(parsed(content), dict[str, Any], "the metadata").get("info", {})
        features = conforming(conforming(info, dict[str, Any], "info").get("features", {}), dict[str, Any], "features")
        labels = {name: each for name, each in features.items() if isinstance(each, dict) and each.get("_type") == "ClassLabel"}
        return {name: conforming(each.get("names", []), list[str], f"names of {name}") for name, each in labels.items()}
    except (Misfit, RecursionError) as error:
        raise UserError(f"{file}: its huggingface metadata cannot be read: {first_line(error)}") from error


def integers(column: Any, name: str, file: Path) -> np.ndarray:
    """A label column as int64.  Errors: UserError if it does not hold integers, or has empty cells."""
    import pyarrow as pa

    if not pa.types.is_integer(column.type) or column.null_count:
        raise UserError(f"{file}: column {name} is {column.type} with {column.null_count} empty cells, labels are integers")
    try:
        return np.array(column.to_pylist(), np.int64)  # to_numpy imports pandas, which takes seconds
    except OverflowError as error:
        raise UserError(f"{file}: column {name} has a label above {np.iinfo(np.int64).max}; number classes from 0") from error
