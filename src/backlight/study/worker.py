"""Measures the tasks of a study, and stores each result where it was measured.

A cell is stored completely or not at all, so that a stopped study resumes.  A cell that another process measures is busy.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from backlight.errors import NotApplicable, UserError
from backlight.locks import Busy, locked
from backlight.results.result import Result
from backlight.study.cache import from_cache, to_cache
from backlight.study.cells import home_of, result_folder, store
from backlight.study.failures import described_failures, sentence
from backlight.study.how import How
from backlight.study.identities import Identities
from backlight.study.identity import Identity
from backlight.study.loaded import Loaded
from backlight.study.measure import measure, unfinished
from backlight.study.outcome import Outcome
from backlight.study.reuse import reused
from backlight.study.tasks import Task

if TYPE_CHECKING:
    from backlight.study.plan import Cell


PAUSE = 1.0  # seconds before a result that could not be stored is stored again


class Worker:
    """Measures one task after another.  It keeps the last model, for the next task about it."""

    def __init__(self, how: How) -> None:
        self.how, self.identities = how, Identities()
        self._loaded: Loaded | None = None

    def run(self, task: Task) -> Iterator[Outcome]:
        """The outcomes of a task, stored.  Errors: those of a cell, if the study does not keep going."""
        with ExitStack() as locks:
            free = []
            for cell in task.cells:
                if self._take(locks, cell, task):
                    free.append(cell)
                else:
                    yield Outcome(cell, busy=True)
            left = []
            for cell in free:
                if outcome := self._reused(cell):
                    yield outcome
                else:
                    left.append(cell)
            started = time.perf_counter()
            for outcome in self._measured(left, task.shard) if left else ():
                saved = self._saved(outcome)
                seconds = (time.perf_counter() - started) / len(left)
                yield replace(saved, word=self._loaded.word if self._loaded else "", seconds=seconds)

    def _take(self, locks: ExitStack, cell: Cell, task: Task) -> bool:
        """Whether nobody else measures the cell; it is then locked.  Shards measure one cell together."""
        if self.how.folder is None or task.shard[1] > 1:
            return True
        if task.wait:
            self.how.show(f"{cell.model} {cell.analysis}: another process measures it, and its result is waited for")
        try:
            locks.enter_context(locked(home_of(self.how.folder, cell), cell.analysis, wait=task.wait))
        except Busy:
            return False
        return True

    def _loaded_for(self, cell: Cell) -> Loaded:
        """The model of a cell; another one before it is let go."""
        if self._loaded is None or self._loaded.cell.model != cell.model:
            self._loaded = None
            self._loaded = Loaded(cell, self.identities)
        return self._loaded

    def _reused(self, cell: Cell) -> Outcome | None:
        """What an earlier run measured, if it is the same model, data and analysis; None if the cell is to be measured."""
        folder = self.how.folder
        if folder is None or self.how.overwrite:
            return None
        place = result_folder(folder, cell)

        def is_same(identity: object) -> bool:
            change = self.identities.change(identity, cell, self._loaded_for(cell).placed)
            if change:
                self.how.show(f"{place} {change}: it is measured again")
            return not change

        try:
            return reused(folder, cell, is_same) or from_cache(folder, cell, self._identity)
        except Exception as error:
            if not self.how.keep_going:
                raise
            return Outcome(cell, error=sentence(error))

    def _identity(self, cell: Cell) -> Identity:
        return self.identities.of(cell, self._loaded_for(cell).placed)

    def _measured(self, group: Sequence[Cell], shard: tuple[int, int]) -> Iterator[Outcome]:
        """The outcomes of cells that run together."""
        loaded, how = self._loaded_for(group[0]), self.how
        identities: dict[str, Identity] = {}
        outcomes: Sequence[Result | Exception]
        try:
            loaded.look(how.folder, how.show)
            if how.folder:
                identities = {cell.analysis: self._identity(cell) for cell in group}
            with described_failures(loaded.model, lambda: loaded.first_images(group[0])):
                outcomes = measure(loaded, group, identities, how.folder, shard, how.show)
        except Exception as error:
            outcomes = [error] * len(group)
        for cell, outcome in zip(group, outcomes, strict=True):
            identity = identities.get(cell.analysis)
            if isinstance(outcome, Result):
                yield Outcome(cell, outcome, identity=identity, missing=missing(outcome))
            elif how.keep_going:
                applicable = not isinstance(outcome, NotApplicable)
                yield Outcome(cell, error=sentence(outcome), applicable=applicable, identity=identity)
            else:
                raise outcome

    def _saved(self, outcome: Outcome) -> Outcome:
        """The outcome, stored if nothing of it is missing."""
        folder, cell = self.how.folder, outcome.cell
        if folder is None or outcome.missing:
            return outcome
        save = partial(
            store, folder, cell, outcome.measured, outcome.error, applicable=outcome.applicable, identity=outcome.identity
        )  # fmt: skip
        try:
            save()
        except UserError:  # a network drive may fail for a moment
            time.sleep(PAUSE)
            save()
        if outcome.measured is None:
            return outcome
        shutil.rmtree(unfinished(folder, cell), ignore_errors=True)
        to_cache(folder, cell, outcome.identity)
        return replace(outcome, place=result_folder(folder, cell))


def missing(result: Result) -> int:
    """How many pieces other shards have still to compute."""
    return len(result.provenance.get("missing_rows", ()))
