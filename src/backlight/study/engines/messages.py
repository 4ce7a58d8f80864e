"""What a worker that is not this process sends: outcomes, progress, and its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from backlight.progress import Progress
from backlight.study.how import How
from backlight.study.outcome import Outcome
from backlight.study.tasks import Task


@dataclass(frozen=True)
class Ready:
    """The worker has started, and waits for its first task."""


@dataclass(frozen=True)
class Finished:
    """The task is done; the worker waits for the next one."""


@dataclass(frozen=True)
class Raised:
    """The study is to end with this exception."""

    error: BaseException


@dataclass(frozen=True)
class Died:
    """The worker is gone."""

    reason: str
    again: bool  # whether the cause may be another program, so that the task is tried once more


Message = Outcome | Progress | str | Ready | Finished | Raised | Died


class Workers(Protocol):
    """Workers by number."""

    def start(self, number: int, how: How) -> None:
        """Start a worker, which sends `Ready` when it can."""

    def give(self, number: int, task: Task) -> None:
        """Give a task to a worker that has none."""

    def messages(self, seconds: float) -> list[tuple[int, Message]]:
        """What workers sent, after at most so many seconds."""

    def end(self, number: int) -> None:
        """End a worker at once; no message of it follows."""

    def close(self) -> None:
        """End all workers."""
