"""Progress on standard error: a bar with the time left on a terminal, a plain line now and then off one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

#: Seconds between lines where there is no terminal: a log of an hour stays a page.
PAUSE = 10.0


class Watched:
    """Data whose batches are counted on standard error as they go by; everything else is the data's own."""

    def __init__(self, data: Any, what: str) -> None:
        self.data, self.what = data, what
        self.unit = "steps" if isinstance(data, list) else "batches"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        return _bar(self.data, self.what) if sys.stderr.isatty() else _lines(self.data, self.what, self.unit)


def _bar(data: Any, what: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=len(data))
        for batch in data:
            yield batch
            progress.advance(task)


def followed(moments: Iterable[Any], what: str, *, quiet: bool) -> None:
    """Show a long run on standard error: its lines as they come, its progress (step, steps, text) as a bar or now and then."""
    if quiet:
        for _ in moments:
            pass
    elif sys.stderr.isatty():
        _followed_bar(moments, what)
    else:
        said = 0.0
        for moment in moments:
            if isinstance(moment, str):
                print(moment, file=sys.stderr, flush=True)
            elif time.monotonic() - said > PAUSE or moment.step == moment.steps:
                said = time.monotonic()
                print(f"step {moment.step} of {moment.steps}, {moment.text}", file=sys.stderr, flush=True)


def _followed_bar(moments: Iterable[Any], what: str) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what)
        for moment in moments:
            if isinstance(moment, str):
                progress.console.print(moment, markup=False, highlight=False)
            else:
                progress.update(task, completed=moment.step, total=moment.steps, description=moment.text)


def _lines(data: Any, what: str, unit: str) -> Iterator[Any]:
    started = said = time.monotonic()
    total = len(data)
    if unit == "steps" and total:  # long ones
        print(f"{what}: {total} steps", file=sys.stderr, flush=True)
    for done, batch in enumerate(data, 1):
        yield batch
        now = time.monotonic()
        if now - said > PAUSE and done < total:
            said = now
            left = (now - started) / done * (total - done)
            print(f"{what}: {done} of {total} {unit}, {clock(left)} left", file=sys.stderr, flush=True)
    print(f"{what}: {total} {unit} in {clock(time.monotonic() - started)}", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as people read them.

    >>> clock(4), clock(75), clock(3725)
    ('4 s', '1:15 min', '1:02 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02} h"
