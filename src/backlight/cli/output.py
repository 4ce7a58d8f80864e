"""Results go to standard output, everything else to standard error."""

from __future__ import annotations

import csv
import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from backlight.progress import Display, Show, quiet


def display(silent: bool) -> AbstractContextManager[Show]:
    """Shows progress within the block, or nothing."""
    return nullcontext(quiet) if silent else Display()


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Within the block Ctrl-C is noted in the list, besides being raised: Python drops what is raised inside a callback."""
    noted: list[int] = []

    def note(number: int, _: Any) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread:
        signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before)


def say(line: str) -> None:
    """A line for people."""
    print(line, file=sys.stderr, flush=True)


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Rows as CSV, or as JSON."""
    print_json(rows) if as_json else print_csv(rows)


def print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV with a header; nothing if there are none."""
    if rows:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def print_json(value: Any) -> None:
    """Any result as JSON."""
    from backlight.results.result import plain

    print(json.dumps(plain(value), indent=1, ensure_ascii=False))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows in aligned columns."""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
