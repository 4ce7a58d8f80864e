"""Engines by name: here, processes:N, ray, ray:N."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from backlight.errors import UserError, did_you_mean
from backlight.study.engines.here import here
from backlight.study.engines.pool import Pool
from backlight.study.engines.processes import Processes
from backlight.study.engines.resources import workers_by_default
from backlight.study.how import How
from backlight.study.outcome import Outcome
from backlight.study.tasks import Task

NAMES = ("here", "processes", "ray")
Engine = Callable[[Sequence[Task], "How"], Iterator[Outcome]]


def engine_named(name: str, folder: Path | None, *, address: str | None = None, timeout: float | None = None) -> Engine:
    """The engine of this name.  Errors: UserError for another name, and for what does not fit the engine."""
    kind, _, count = name.partition(":")
    if kind not in NAMES:
        raise UserError(f"there is no engine {name!r}{did_you_mean(kind, NAMES)}; there are here, processes:N, ray and ray:N")
    if count and not (count.isdecimal() and 0 < int(count) < 10_000):
        raise UserError(f"engine is {name!r}; after the colon stands the number of workers, as in {kind}:4")
    if address and kind != "ray":
        raise UserError("an address is that of a Ray cluster: give --engine ray with it")
    if kind == "here":
        if count:
            raise UserError("the engine here is this process alone: use processes:N for more")
        if timeout:
            raise UserError("this process cannot end itself: a time limit needs --engine processes:N or ray")
        return here
    if folder is None:
        raise UserError(f"the workers of {kind} store what they measure: give the folder with --out DIR")
    if kind == "processes":
        workers = int(count) if count else workers_by_default()
        return Pool(Processes(workers), workers, timeout)
    from backlight.study.engines.ray import ray_engine

    return ray_engine(int(count) if count else None, address, timeout)
