"""The engine that measures in this process, one task after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from backlight.study.how import How
from backlight.study.outcome import Outcome
from backlight.study.tasks import Task


def here(tasks: Sequence[Task], how: How) -> Iterator[Outcome]:
    """The outcomes in the order of the tasks; cells that another process measures are waited for at the end."""
    from backlight.study.worker import Worker

    worker, postponed = Worker(how), []
    for task in tasks:
        for outcome in worker.run(task):
            if outcome.busy:
                postponed.append(replace(task, cells=(outcome.cell,), wait=True))
            else:
                yield outcome
    for task in postponed:
        yield from worker.run(task)
