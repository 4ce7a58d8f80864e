"""The cells of a study as tasks for workers: cells of one model that run together, or one shard of a cell.  Plain data."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from backlight.study.plan import Cell, passes


@dataclass(frozen=True)
class Task:
    """What a worker does without returning to the study: cells of one model."""

    cells: tuple[Cell, ...]
    shard: tuple[int, int] = (0, 1)  # rank, world
    wait: bool = False  # for another process that measures the cell
    attempts: int = 0  # how often a worker died of it

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.cells[0].model


def tasks(cells: Sequence[Cell], shard: tuple[int, int] = (0, 1)) -> list[Task]:
    """The tasks of a study, those of one model in a row."""
    by_model = groupby(cells, key=lambda cell: cell.model)
    return [Task(tuple(group), shard) for _, own in by_model for group in passes(list(own))]


def for_workers(all_tasks: Sequence[Task], workers: int) -> list[Task]:
    """The same work, cells that can be sharded as so many shards, if there are fewer tasks than workers."""
    if len(all_tasks) >= workers:
        return list(all_tasks)
    return [part for task in all_tasks for part in (shards(task, workers) if is_shardable(task) else [task])]


def is_shardable(task: Task) -> bool:
    """Whether several workers can each compute a part of it."""
    cell = task.cells[0]
    return task.shard[1] == 1 and len(task.cells) == 1 and cell.entry.shards and not cell.shared.budget


def shards(task: Task, world: int) -> list[Task]:
    """The parts of a task.  The worker that finishes the last of them stores the result."""
    return [replace(task, shard=(rank, world)) for rank in range(world)]


class Schedule:
    """Gives out tasks, all of one model to one worker as long as there is work for the others."""

    def __init__(self, all_tasks: Iterable[Task]) -> None:
        self._left: dict[str, deque[Task]] = {}
        self._last: list[Task] = []
        self._begun: set[str] = set()
        for task in all_tasks:
            self.add(task)

    def add(self, task: Task) -> None:
        """Add a task, also one that was given out before."""
        self._left.setdefault(task.model, deque()).append(task)

    def postpone(self, task: Task) -> None:
        """Add a task that is given out once there is nothing else."""
        self._last.append(task)

    def __bool__(self) -> bool:
        """Whether a task is left."""
        return bool(self._last) or any(self._left.values())

    def next(self, model: str | None = None) -> Task | None:
        """A task for a worker that holds this model; None if there is none.

        It is of this model, of one that nobody has begun, or of the one with most tasks left.
        """
        left = [name for name, own in self._left.items() if own]
        fresh = (name for name in left if name not in self._begun)
        name = model if model in left else next(fresh, max(left, key=lambda each: len(self._left[each]), default=None))
        if name is None:
            return self._last.pop(0) if self._last else None
        self._begun.add(name)
        return self._left[name].popleft()
