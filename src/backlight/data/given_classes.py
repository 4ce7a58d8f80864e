"""The file of `--classes`: which output of the model each class of the data is.  torch is not imported."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backlight.errors import UserError


@dataclass(frozen=True)
class GivenClasses:
    """Class folder -> the number or the name of the model's output, as text.  ``where``: what sentences begin with."""

    outputs: Mapping[str, str]
    where: str = "classes"


def read_classes(file: Path) -> GivenClasses:
    """The rows of a file: a class folder, then an output's number or class name.

    In a CSV file (FILE.csv) a comma is between the two, in any other text white space, and the rest of the line is the name.
    Errors: UserError with the file and the row.
    """
    outputs: dict[str, str] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            lines = csv.reader(opened) if file.suffix.lower() == ".csv" else (line.split(None, 1) for line in opened)
            rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(lines, start=1) if row]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file} is no text in UTF-8: {error}") from error
    for number, row in rows:
        if len(row) != 2 or not all(row):
            raise UserError(f"{file} row {number}: write a class folder and the number or the name of the model's output")
        if row[0] in outputs:
            raise UserError(f"{file} row {number} lists {row[0]!r} a second time")
        outputs[row[0]] = row[1]
    if not outputs:
        raise UserError(f"{file} is empty: write a row for each class folder, and the number or the name of its output")
    return GivenClasses(outputs, str(file))
