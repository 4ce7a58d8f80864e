"""Stopping: Ctrl-C and SIGTERM, at once or at the end of a step.

Python drops an exception that a handler raises inside a destructor or another callback.  So a signal is also noted, and
`check` raises it again.  A process that was started with Ctrl-C ignored (nohup, a shell's &) goes on ignoring it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)

#: The signals that `stopping` received, whether or not their exception arrived.
_received: list[int] = []


class Stopped(KeyboardInterrupt):
    """A signal of this number ends the work."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stopping() -> Iterator[None]:
    """Within the block each signal is noted and raised as `Stopped`."""

    def stop(number: int, _: Any) -> None:
        _received.append(number)
        raise Stopped(number)

    try:
        with handled(stop):
            yield
    finally:
        _received.clear()


def received() -> list[int]:
    """The numbers of the signals that `stopping` noted."""
    return list(_received)


def check() -> None:
    """Errors: Stopped if a signal was received and its exception was dropped."""
    if _received:
        raise Stopped(_received[0])


@contextmanager
def delayed() -> Iterator[list[int]]:
    """Within the block the first signal is only noted in the list; a second one acts as before the block."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in NUMBERS}

    def note(number: int, _: Any) -> None:
        received.append(number)
        for each in NUMBERS:
            signal.signal(each, before[each])

    with handled(note):
        yield received


def ignore() -> None:
    """From here on no signal interrupts: the process is about to end."""
    if threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def handled(handler: Callable[[int, Any], None] | signal.Handlers) -> Iterator[None]:
    """Within the block these signals call ``handler``, except those that are ignored.  Only the main thread has handlers."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    if threading.current_thread() is not threading.main_thread():
        before.clear()
    active = [number for number, old in before.items() if old is not signal.SIG_IGN]
    try:
        for number in active:
            signal.signal(number, handler)
        yield
    finally:
        for number in active:
            signal.signal(number, before[number])
