"""A worker process: ``python -m backlight.study.engines.child FD CORES``.  It ends when the process that started it ends."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import warnings
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from backlight.progress import Progress, Show
from backlight.study.engines.messages import Finished, Raised, Ready

if TYPE_CHECKING:
    from backlight.study.tasks import Task

PAUSE = 0.2  # seconds between two events of progress, so that they cost nothing


def main(descriptor: str, cores: str) -> None:
    """Measure the tasks that arrive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends this process
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    connection = Connection(int(descriptor))
    how, sys.path[:] = connection.recv()
    from backlight.study.worker import Worker

    send = Sender(connection)
    warnings_to(send.event)
    worker = Worker(replace(how, show=send.event))
    send.message(Ready())
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        run(worker, task, send)


def run(worker: Any, task: Task, send: Sender) -> None:
    """Send the outcomes of a task, and its end."""
    try:
        for outcome in worker.run(task):
            send.message(outcome.without_result())
        send.message(Finished())
    except Exception as error:
        send.message(Raised(portable(error)))


class Sender:
    """Sends messages; of progress, a few a second."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.sent = connection, 0.0

    def message(self, message: Any) -> None:
        """Send a message."""
        self.connection.send(message)

    def event(self, event: Progress | str) -> None:
        """Send a line, or progress if enough time has passed or it is the first or the last."""
        inner = isinstance(event, Progress) and 0 < event.step < event.steps
        if not inner or time.monotonic() - self.sent > PAUSE:
            self.sent = time.monotonic()
            self.message(event)


def warnings_to(show: Show) -> None:
    """Show warnings as lines, each once."""

    def shown(message: Warning | str, *_: Any, **__: Any) -> None:
        show(f"{message}")

    warnings.showwarning = shown


def portable(error: Exception) -> Exception:
    """The exception, or one of its kind that can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def end_with_parent(parent: int) -> None:
    """End this process as soon as its parent is another one: the one that started it was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
