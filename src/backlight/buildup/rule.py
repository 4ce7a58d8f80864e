"""The paper's build-up rule as a search without training: it proposes candidates and is told their accuracies.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), section 4.1, and the README of their repository.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from backlight.numerics.student import student
from backlight.tracing.tap import Unit

#: The units that attention replaces, ascending.
Placement = tuple[int, ...]
#: A value and its 95% interval: value, low, high.
Estimate = tuple[float, float, float]


def replaceable_units(units: Sequence[Unit]) -> list[list[int]]:
    """The units that the rule replaces, stage by stage, in its order: every second one, from the end.

    Alternate replacement means that attention follows a convolution of its own stage, and no other attention.  So the first
    unit of a stage, which changes the stream's shape, stays; a stage of n convolutions gets n // 2 attentions, as in the paper.
    """
    stages = []
    for _, group in groupby(units, key=lambda unit: unit.stage):
        stage = list(group)
        kinds = [unit.kind for unit in stage]
        replaced = []
        for i in reversed(range(1, len(stage))):
            if kinds[i - 1 : i + 1] == ["conv", "conv"] and kinds[i + 1 : i + 2] != ["attention"]:
                kinds[i] = "attention"
                replaced.append(stage[i].index)
        stages.append(replaced)
    return stages


def candidates(stages: Sequence[Sequence[int]], patience: int = 0) -> Generator[Placement, bool, None]:
    """Placements in the rule's order; the caller sends whether each is better than the best before it.

    A stage ends after ``patience`` + 1 replacements in a row that are not better, and these are undone.  The README's rule has
    no patience; figure 12a shows every replacement of each stage, which a patience of 1 gives there.

    >>> placements = candidates([[2], [5, 3]])
    >>> next(placements), placements.send(True), placements.send(False)
    ((5,), (3, 5), (2, 5))
    """
    best: Placement = ()
    for stage in reversed(stages):
        tried, failed = best, 0
        for unit in stage:
            tried = tuple(sorted((*tried, unit)))
            if (yield tried):
                best, failed = tried, 0
            elif (failed := failed + 1) > patience:
                break


@dataclass(frozen=True)
class Trial:
    """A placement, its accuracy with each seed, and their difference from those of ``against``, seed by seed.

    verdict: baseline, keep, reject, or control.  detectable: the smallest difference that would have been kept, given how much
    these seeds differ; NaN for one seed.
    """

    units: Placement
    accuracies: tuple[float, ...]
    verdict: str
    against: Placement | None = None
    difference: Estimate = (math.nan, math.nan, math.nan)
    detectable: float = math.nan

    @classmethod
    def compared(
        cls, units: Placement, accuracies: Sequence[float], other: Trial, *, margin: float = 0.0, control: bool = False
    ) -> Trial:
        """The trial after its comparison: kept if the 95% interval of the mean difference lies above the margin.

        The interval is Student's, of the differences between equal seeds.  With one seed the plain difference decides.
        """
        value, low, high = student(np.subtract(accuracies, other.accuracies).tolist())
        single = len(accuracies) == 1
        better = (value if single else low) > margin
        verdict = "control" if control else "keep" if better else "reject"
        detectable = math.nan if single else value - low + margin
        return cls(units, tuple(accuracies), verdict, other.units, (value, low, high), detectable)


class Search:
    """The rule, step by step: ``candidate`` is the placement to train next, `tell` takes its accuracies.

    The first candidate is (), the baseline; None: the search is over.
    """

    def __init__(self, stages: Sequence[Sequence[int]], *, margin: float = 0.0, patience: int = 0) -> None:
        self.candidate: Placement | None = ()
        self.trials: list[Trial] = []
        self.best: Trial
        self.margin = margin
        self._order = candidates(stages, patience)
        self._units = [unit for stage in reversed(stages) for unit in stage]

    def tell(self, accuracies: Sequence[float]) -> Trial:
        """Compare the candidate, by its accuracy with each seed, and move on to the next."""
        if self.candidate is None:
            raise RuntimeError("the search is over")
        first = not self.trials
        if first:
            trial = Trial((), tuple(accuracies), "baseline")
        else:
            trial = Trial.compared(self.candidate, accuracies, self.best, margin=self.margin)
        self.trials.append(trial)
        if first or trial.verdict == "keep":
            self.best = trial
        try:
            self.candidate = next(self._order) if first else self._order.send(trial.verdict == "keep")
        except StopIteration:
            self.candidate = None
        return trial

    @property
    def kept(self) -> list[Trial]:
        """The trials that were kept, in order."""
        return [trial for trial in self.trials if trial.verdict == "keep"]

    @property
    def left(self) -> int:
        """How many candidates are left at most, with the present one."""
        if self.candidate is None:
            return 0
        return len(self._units) - max((self._units.index(unit) for unit in self.candidate), default=-1)
