"""The paper's build-up rule as a search without training: it proposes candidates and takes their answers.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), section 4.1, and the README of their repository.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backlight.numerics.proportions import paired_difference_interval
from backlight.numerics.student import student
from backlight.results.claim import LEAST
from backlight.tracing.tap import Unit

Array = NDArray[np.float64]

#: The units that attention replaces, ascending.
Placement = tuple[int, ...]
#: A value and its 95% interval: value, low, high.
Estimate = tuple[float, float, float]
#: The verdict with fewer seeds than an interval over seeds needs.
UNDECIDED = "undecided: too few seeds"


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


@dataclass(frozen=True, eq=False)
class Trial:
    """A placement, its answers with each seed, and the difference of its accuracies from those of ``against``, seed by seed.

    correct: whether each held-out image is classified correctly, 0 or 1.  Shapes: (seeds, images).
    verdict: baseline, keep, reject, `UNDECIDED`, or control.  detectable: the smallest difference that would have been kept,
    given how much these seeds and images differ; infinite with fewer than 3 seeds.
    """

    units: Placement
    correct: Array
    verdict: str
    against: Placement | None = None
    difference: Estimate = (math.nan, math.nan, math.nan)
    detectable: float = math.nan

    @property
    def accuracies(self) -> tuple[float, ...]:
        """The accuracy with each seed."""
        return tuple(self.correct.mean(1).tolist())

    @classmethod
    def compared(
        cls, units: Placement, correct: ArrayLike, other: Trial, *, margin: float = 0.0, control: bool = False
    ) -> Trial:
        """The trial after its comparison: kept if its gain is above the margin by more than the noise, and above one image.

        Errors: ValueError if the answers are not those of as many seeds and images as the other's.
        """
        answers = np.asarray(correct, np.float64)
        if answers.shape != other.correct.shape:
            raise ValueError(f"the answers have shape {answers.shape}, those they are compared with {other.correct.shape}")
        seeds, images = answers.shape
        value, low, high = over_seeds_or_images(answers, other.correct)
        decided = seeds >= LEAST["seeds"]
        detectable = max(value - low + margin, 1 / images) if decided else math.inf
        verdict = "control" if control else UNDECIDED if not decided else "keep" if value > detectable else "reject"
        return cls(units, answers, verdict, other.units, (value, low, high), detectable)


def over_seeds_or_images(correct: Array, other: Array) -> Estimate:
    """The mean difference of accuracy; each end of its interval is the wider one of two.

    Over seeds: Student's, of the differences between equal seeds.  Each seed has its own held-out images, so these differences
    vary by the images too.  Over images: Tango's, of all pairs of answers; it is the wider one where seeds agree by chance.
    Shapes: (seeds, images) twice.
    """
    value, *of_seeds = student((correct - other).mean(1).tolist())
    _, *of_images = map(float, paired_difference_interval(correct.ravel(), other.ravel()))
    return value, min(of_seeds[0], of_images[0]), max(of_seeds[1], of_images[1])


class Search:
    """The rule, step by step: ``candidate`` is the placement to train next, `tell` takes its answers.

    The first candidate is (), the baseline; None: the search is over.
    """

    def __init__(self, stages: Sequence[Sequence[int]], *, margin: float = 0.0, patience: int = 0) -> None:
        self.candidate: Placement | None = ()
        self.trials: list[Trial] = []
        self.best: Trial
        self.margin = margin
        self._order = candidates(stages, patience)
        self._units = [unit for stage in reversed(stages) for unit in stage]

    def tell(self, correct: ArrayLike) -> Trial:
        """Compare the candidate by its answers with each seed, and move on to the next.

        Shapes: (seeds, images): 1 where a held-out image is classified correctly, otherwise 0.
        """
        if self.candidate is None:
            raise RuntimeError("the search is over")
        first = not self.trials
        if first:
            trial = Trial((), np.asarray(correct, np.float64), "baseline")
        else:
            trial = Trial.compared(self.candidate, correct, self.best, margin=self.margin)
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
