"""Progress: one kind of event, shown on standard error as a bar on a terminal and as a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from backlight import signals

#: Seconds between two lines where there is no terminal: a log of an hour stays a page long.
PAUSE = 10.0


@dataclass(frozen=True)
class Progress:
    """How far some long work is."""

    step: int
    steps: int
    text: str = ""  # what else is known, for people
    what: str = ""  # what is done
    unit: str = "steps"


#: What takes events; a string is a line for people.
Show = Callable[["Progress | str"], None]


class Counted:
    """Data that report how many of their batches have gone by.  Everything else is the data's own."""

    def __init__(self, data: Any, what: str, show: Show, unit: str = "batches") -> None:
        self.data, self.what, self.show, self.unit = data, what, show, unit

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        steps = len(self.data) if isinstance(self.data, Sized) else 0
        self.show(Progress(0, steps, what=self.what, unit=self.unit))
        for step, batch in enumerate(self.data, 1):
            signals.check()
            yield batch
            self.show(Progress(step, steps, what=self.what, unit=self.unit))


def print_error(line: str) -> None:
    """A line on standard error; if that is closed or full the work goes on without it."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def quiet(event: Progress | str) -> None:
    """Show nothing."""


@dataclass
class Shown:
    """One work that a display shows."""

    started: float
    shown: float
    task: Any = None  # its bar


class Display:
    """Shows events on standard error, several works at once.  A context manager: the bars end when the work does."""

    def __init__(self) -> None:
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self.works: dict[str, Shown] = {}
        self.bar: Any = None

    def __enter__(self) -> Show:
        return self.show

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, event: Progress | str) -> None:
        """Show an event, or print a line."""
        if isinstance(event, str):
            self.bar.console.print(event, markup=False, highlight=False) if self.bar else print_error(event)
            return
        now = time.monotonic()
        if event.what not in self.works:
            self.works[event.what] = Shown(now, now)
        self._show_bar(event) if self.terminal else self._show_line(event, self.works[event.what])

    def _show_bar(self, event: Progress) -> None:
        if self.bar is None:
            self.bar = _bar()
            self.bar.start()
        work = self.works[event.what]
        text = ": ".join(filter(None, (event.what, event.text)))
        if work.task is None:
            work.task = self.bar.add_task(text, total=event.steps)
        self.bar.update(work.task, completed=event.step, total=event.steps, description=text)

    def _show_line(self, event: Progress, work: Shown) -> None:
        now = time.monotonic()
        name = f"{event.what}: " if event.what else ""
        if event.step == 0 and event.unit == "steps" and event.what:  # long ones
            print_error(f"{name}{event.steps} steps")
        elif event.step == event.steps:
            elapsed = f" in {clock(now - work.started)}" if not event.text else f", {event.text}"
            print_error(f"{name}{event.steps} {event.unit}{elapsed}")
        elif now - work.shown > PAUSE:
            work.shown = now
            left = (now - work.started) / max(1, event.step) * (event.steps - event.step)
            print_error(f"{name}{event.step} of {event.steps} {event.unit}, {event.text or f'{clock(left)} left'}")


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    return Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True))


def clock(seconds: float) -> str:
    """Seconds as people read them.

    >>> clock(4), clock(75), clock(3725)
    ('4 s', '1:15 min', '1:02 h')
    """
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    return f"{total // 60}:{total % 60:02} min" if total < 3600 else f"{total // 3600}:{total % 3600 // 60:02} h"
