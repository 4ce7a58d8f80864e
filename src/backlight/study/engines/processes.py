"""The engine of local worker processes.  Each has its own cores and, where there are GPUs, one of them.

A worker is ``python -m backlight.study.engines.child FD``; tasks and messages go through a socket that only the two of them
have.  What it prints on standard error is kept, and its end is part of the sentence if it dies.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import IO

from backlight.progress import quiet
from backlight.study.engines.messages import Died, Message
from backlight.study.engines.resources import share, threads_of
from backlight.study.how import How
from backlight.study.tasks import Task

KILLED = {signal.SIGKILL: "killed, probably because the memory was used up"}


class Child:
    """A worker process and the socket to it."""

    def __init__(self, cores: Sequence[int], environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (`end` closes it)
        command = [sys.executable, "-m", "backlight.study.engines.child", str(theirs.fileno())]
        self.process = subprocess.Popen(
            [*command, ",".join(map(str, cores))],
            pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.stderr,
            env={**os.environ, **environment},
        )  # fmt: skip
        theirs.close()
        self.connection = Connection(ours.detach())

    def last_words(self) -> str:
        """The last line that it printed on standard error, if any."""
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def end(self) -> None:
        """End the process and forget it."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.stderr.close()


class Processes:
    """Worker processes by number; see `Workers`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.children: dict[int, Child] = {}

    def start(self, number: int, how: How) -> None:
        """Start a process."""
        own = share(number, self.count)
        self.children[number] = child = Child(own.cores, {**threads_of(len(own.cores)), **own.visible})
        child.connection.send((replace(how, show=quiet), list(sys.path)))

    def give(self, number: int, task: Task) -> None:
        """Send a task."""
        with suppress(OSError):  # it is dead, and `messages` says so
            self.children[number].connection.send(task)

    def messages(self, seconds: float) -> list[tuple[int, Message]]:
        """What arrived; a closed socket is a process that died."""
        ready = wait([child.connection for child in self.children.values()], seconds)
        numbers = [number for number, child in self.children.items() if child.connection in ready]
        return [(number, self._message(number)) for number in numbers]

    def _message(self, number: int) -> Message:
        try:
            return self.children[number].connection.recv()
        except (EOFError, OSError):
            return self._death(number)

    def _death(self, number: int) -> Died:
        child = self.children.pop(number)
        code = child.process.wait()
        said = child.last_words()
        child.end()
        return Died(described(code, said), again=code == -signal.SIGKILL)

    def end(self, number: int) -> None:
        """Kill a process."""
        if child := self.children.pop(number, None):
            child.end()

    def close(self) -> None:
        """Kill all: what they have finished is stored, and what they are at is stored in whole pieces."""
        for number in list(self.children):
            self.end(number)


def described(code: int, said: str) -> str:
    """How a process ended, and its last words.

    >>> described(-11, "")
    'the process that measured it was ended by SIGSEGV'
    >>> described(1, "Fatal error")
    'the process that measured it ended with exit code 1: Fatal error'
    """
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        how = KILLED.get(-code, f"ended by {name}")  # type: ignore[call-overload]
        sentence = f"the process that measured it was {how}"
    else:
        sentence = f"the process that measured it ended with exit code {code}"
    return f"{sentence}: {said}" if said else sentence
