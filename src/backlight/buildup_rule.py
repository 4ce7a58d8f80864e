"""The paper's build-up rule as a search that knows nothing of training: it asks for layouts and is told their accuracies.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), section 4.1, and the README of their repository.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from .anatomy import Unit
from .numerics.student import student

#: The units that are replaced by attention, ascending.
Layout = tuple[int, ...]
#: A value and the ends of its 95% interval.
Ends = tuple[float, float, float]


def places(found: Sequence[Unit]) -> list[list[int]]:
    """Stage by stage the units that the rule replaces, in its order: from the end, every second one.

    Alternately means that attention follows a convolution of its stage, and no other attention.  So the first unit of a stage,
    which changes the stream's shape, stays; a stage of n convolutions takes n // 2 attentions, as in the paper.
    """
    stages = []
    for _, group in groupby(found, key=lambda unit: unit.stage):
        stage = list(group)
        kinds = [unit.kind for unit in stage]
        chosen = []
        for i in reversed(range(1, len(stage))):
            if kinds[i - 1 : i + 1] == ["conv", "conv"] and kinds[i + 1 : i + 2] != ["attention"]:
                kinds[i] = "attention"
                chosen.append(stage[i].index)
        stages.append(chosen)
    return stages


def candidates(stages: Sequence[Sequence[int]], patience: int = 0) -> Generator[Layout, bool, None]:
    """Layouts in the rule's order; is sent whether each is better than the best before it.

    A stage is left once ``patience`` + 1 replacements in a row were no better; what did not help is put back.  The README's
    rule has no patience; figure 12a shows every replacement of each stage, as a patience of 1 does there.

    >>> asked = candidates([[2], [5, 3]])
    >>> next(asked), asked.send(True), asked.send(False)
    ((5,), (3, 5), (2, 5))
    """
    best: Layout = ()
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
    """A layout, its accuracies, one a seed, and how they compare with those of the layout ``against``, seed by seed.

    verdict: baseline, keep, reject, or control.  detectable: the least difference that these seeds, differing as they do, would
    have told from noise; NaN for one seed.
    """

    units: Layout
    accuracies: tuple[float, ...]
    verdict: str
    against: Layout | None = None
    difference: Ends = (math.nan, math.nan, math.nan)
    detectable: float = math.nan

    @classmethod
    def compared(
        cls, units: Layout, accuracies: Sequence[float], other: Trial, *, margin: float = 0.0, control: bool = False
    ) -> Trial:
        """The trial after its comparison: kept where the 95% interval of the mean difference lies above the margin.

        The interval is Student's, of the differences between the same seeds.  One seed has none: its plain difference decides.
        """
        value, low, high = student(np.subtract(accuracies, other.accuracies).tolist())
        alone = len(accuracies) == 1
        better = (value if alone else low) > margin
        verdict = "control" if control else "keep" if better else "reject"
        detectable = math.nan if alone else value - low + margin
        return cls(units, tuple(accuracies), verdict, other.units, (value, low, high), detectable)


class Search:
    """The rule as a dialogue: ``wanted`` is the layout to score next (None: the search is over), `tell` takes its accuracies.

    The first is (), the baseline.
    """

    def __init__(self, stages: Sequence[Sequence[int]], *, margin: float = 0.0, patience: int = 0) -> None:
        self.wanted: Layout | None = ()
        self.trials: list[Trial] = []
        self.best: Trial
        self.margin = margin
        self._order = candidates(stages, patience)
        self._places = [unit for stage in reversed(stages) for unit in stage]

    def tell(self, accuracies: Sequence[float]) -> Trial:
        """Judge the wanted layout by its accuracies, one a seed."""
        if self.wanted is None:
            raise RuntimeError("the search is over")
        first = not self.trials
        if first:
            trial = Trial((), tuple(accuracies), "baseline")
        else:
            trial = Trial.compared(self.wanted, accuracies, self.best, margin=self.margin)
        self.trials.append(trial)
        if first or trial.verdict == "keep":
            self.best = trial
        try:
            self.wanted = next(self._order) if first else self._order.send(trial.verdict == "keep")
        except StopIteration:
            self.wanted = None
        return trial

    @property
    def kept(self) -> list[Trial]:
        """The replacements that stayed, in order."""
        return [trial for trial in self.trials if trial.verdict == "keep"]

    @property
    def left(self) -> int:
        """How many candidates there are at most from the wanted one on."""
        if self.wanted is None:
            return 0
        return len(self._places) - max((self._places.index(unit) for unit in self.wanted), default=-1)
