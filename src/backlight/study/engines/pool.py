"""Gives the tasks of a study to workers, and takes care of those that die or hang."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from backlight import signals
from backlight.errors import UserError
from backlight.study.cells import store
from backlight.study.engines.messages import Died, Finished, Raised, Ready, Workers
from backlight.study.how import How
from backlight.study.outcome import Outcome
from backlight.study.plan import Cell
from backlight.study.tasks import Schedule, Task, for_workers

PAUSE = 0.25  # seconds between two looks at the clock
ATTEMPTS = 2  # of a task whose worker was killed


@dataclass
class Work:
    """What a worker is at."""

    task: Task
    until: float
    left: list[Cell] = field(default_factory=list)  # cells without an outcome


class Pool:
    """Runs tasks on ``count`` workers."""

    def __init__(self, workers: Workers, count: int, timeout: float | None) -> None:
        self.workers, self.count, self.timeout = workers, count, timeout

    def __call__(self, tasks: Sequence[Task], how: How) -> Iterator[Outcome]:
        """The outcomes as they come.  Errors: that of a cell, if the study does not keep going."""
        parts = for_workers(tasks, self.count)
        self.how, self.schedule, self.shards = how, Schedule(parts), Shards()
        self.working: dict[int, Work] = {}
        self.models: dict[int, str | None] = {}  # of the workers that have started
        self.stillborn = 0
        try:
            for number in range(min(self.count, len(parts))):
                self.workers.start(number, how)
            while self._give() or self.working or self.schedule:
                signals.check()
                for number, message in self.workers.messages(PAUSE):
                    yield from self._received(number, message)
                yield from self._overdue()
        finally:
            self.workers.close()

    def _give(self) -> bool:
        """Give a task to each worker that has none; whether any got one."""
        given = False
        for number in [number for number in self.models if number not in self.working]:
            if (task := self.schedule.next(self.models[number])) is None:
                break
            seconds = self.timeout * len(task.cells) if self.timeout else float("inf")
            self.working[number] = Work(task, time.monotonic() + seconds, list(task.cells))
            self.models[number] = task.model
            self.workers.give(number, task)
            given = True
        return given

    def _received(self, number: int, message: object) -> Iterator[Outcome]:
        if isinstance(message, Ready):
            self.models[number] = None
        elif (work := self.working.get(number)) is None:
            self._not_started(number, message)
        elif isinstance(message, Outcome):
            yield from self._outcome(work, message)
        elif isinstance(message, Finished):
            del self.working[number]
        elif isinstance(message, Raised):
            raise message.error
        elif isinstance(message, Died):
            yield from self._died(number, message)
        else:
            self.how.show(message)  # type: ignore[arg-type]

    def _outcome(self, work: Work, outcome: Outcome) -> Iterator[Outcome]:
        work.left = [cell for cell in work.left if cell.analysis != outcome.analysis]
        if outcome.busy:
            self.schedule.postpone(replace(work.task, cells=(outcome.cell,), wait=True))
        elif work.task.shard[1] == 1:
            yield outcome
        elif (known := self.shards.joined(outcome, work.task)) is not None:
            yield known
        elif self.shards.all_reported(work.task):  # and none was the last
            self.schedule.add(replace(work.task, shard=(0, 1)))

    def _died(self, number: int, message: Died) -> Iterator[Outcome]:
        """Try the task again if the cause may lie elsewhere; else its cells have failed."""
        work = self.working.pop(number)
        del self.models[number]
        self.workers.start(number, self.how)
        task = replace(work.task, cells=tuple(work.left), attempts=work.task.attempts + 1)
        if not work.left:
            return
        if message.again and task.attempts < ATTEMPTS:
            self.how.show(f"{task.model}: {message.reason}; the work is tried once more")
            self.schedule.add(task)
            return
        for cell in task.cells:
            yield from self._outcome(work, self._failed(cell, message.reason))

    def _not_started(self, number: int, message: object) -> None:
        """Start a worker again that died without a task.  Errors: UserError if that happens again and again."""
        if isinstance(message, Died):
            self.models.pop(number, None)
            self.stillborn += 1
            if self.stillborn > ATTEMPTS * self.count:
                raise UserError(f"no worker can be started: {message.reason}")
            self.workers.start(number, self.how)

    def _failed(self, cell: Cell, reason: str) -> Outcome:
        if not self.how.keep_going:
            raise UserError(f"{cell.model} {cell.analysis}: {reason}")
        if self.how.folder:
            with suppress(UserError):  # a full disk, which may be why the worker died
                store(self.how.folder, cell, None, reason)
        return Outcome(cell, error=reason)

    def _overdue(self) -> Iterator[Outcome]:
        """End the workers whose time is over."""
        for number, work in list(self.working.items()):
            if time.monotonic() > work.until:
                self.workers.end(number)
                reason = f"it took longer than --timeout {self.timeout:g} s allows a cell"
                yield from self._died(number, Died(reason, again=False))


class Shards:
    """The outcomes of cells that several workers compute together."""

    def __init__(self) -> None:
        self._reported: dict[tuple[str, str], list[Outcome]] = {}
        self._known: set[tuple[str, str]] = set()

    def joined(self, outcome: Outcome, task: Task) -> Outcome | None:
        """The outcome of the whole cell once it is known: a result as soon as there is one, else the first error."""
        key = outcome.model, outcome.analysis
        reported = self._reported.setdefault(key, [])
        reported.append(outcome)
        if key in self._known:
            return None
        whole = not outcome.error and not outcome.missing
        errors = [each for each in reported if each.error]
        if not whole and not (errors and len(reported) == task.shard[1]):
            return None
        self._known.add(key)
        return outcome if whole else errors[0]

    def all_reported(self, task: Task) -> bool:
        """Whether each shard has an outcome, and the cell has none."""
        key = task.model, task.cells[0].analysis
        return key not in self._known and len(self._reported.get(key, ())) == task.shard[1]
