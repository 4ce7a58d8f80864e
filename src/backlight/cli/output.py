"""Results go to standard output, everything else to standard error."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from backlight.errors import UserError
from backlight.progress import Display, Show, print_error, quiet


def display(silent: bool) -> AbstractContextManager[Show]:
    """Shows progress within the block, or nothing."""
    return nullcontext(quiet) if silent else Display()


def prepare() -> None:
    """Before anything is opened: no file gets the number of a closed stream, and no character fits no stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write(text: str) -> None:
    """Write to standard output.  Errors: UserError if it is closed or full; BrokenPipeError if the reader left."""
    if sys.stdout is None:
        raise UserError("standard output is closed, so nothing can be printed: open it, or send it to a file")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        discard()
        raise
    except OSError as error:
        discard()
        raise UserError(f"cannot write to standard output: {error.strerror}: send it to another place") from error


def discard() -> None:
    """Send what standard output still holds nowhere, so that the end of the process does not try it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def say(line: str) -> None:
    """A line for people."""
    print_error(line)


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Rows as CSV, or as JSON."""
    print_json(rows) if as_json else print_csv(rows)


def print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV with a header; nothing if there are none."""
    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write(text.getvalue())


def print_json(value: Any) -> None:
    """Any result as JSON."""
    from backlight.records import plain

    write(json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows in aligned columns."""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    write("".join(f"{line}\n" for line in aligned))
