"""What the units of a model are described by: taps, the points where an activation is read, and the word that they spell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from backlight.tracing.kinds import LETTER
from backlight.tracing.layout import Layout


@dataclass(frozen=True)
class Tap:
    """A point where an activation is read: what a module receives or returns, its calls in a pass counted from 0.

    With side "function", it is what the torch function of the name ``module`` returns, its calls counted likewise.
    """

    module: str
    side: Literal["input", "output", "function"]
    call: int = 0
    layout: Layout | None = None  # None: not a map

    def __str__(self) -> str:
        suffix = {"input": " (input)", "output": "", "function": "()"}[self.side]
        return f"{self.module}{suffix}{f' #{self.call}' if self.call else ''}"


@dataclass(frozen=True)
class Unit:
    """A residual unit: ``after = before + branch``."""

    index: int
    kind: str  # attention | conv | mlp | blur | parallel (a sum of branches of different kinds) | other
    stage: int  # units of one resolution, counted from 0
    module: str  # the module that holds the branch's weights
    shape: tuple[int, ...]  # of the stream after it, without the axis of images
    before: Tap | None  # the stream it reads
    after: Tap | None  # the stream after it
    branch: tuple[Tap, ...]  # the outputs that add up to its branch; empty: no module or function returns it
    identity: bool  # the skip connection is the identity
    kinds: tuple[str, ...] = ()  # of each output in ``branch``
    source: str = ""  # the module that computes the stream it reads; empty: none, or a unit of ``units(at=...)``

    def __str__(self) -> str:
        """As sentences and provenance name it."""
        return f"unit {self.index} ({self.module})"

    def only(self, kind: str) -> Unit:
        """The unit with its branches of one kind: ``without(model, unit.only("mlp"))`` removes the MLP of a parallel unit.

        After it the stream is not as before the unit, so ``identity`` is False unless these are all of its branches.
        """
        pairs = zip(self.branch, self.kinds, strict=True)
        branch = tuple(tap for tap, each in pairs if each == kind)
        complete = branch == self.branch
        return replace(self, kind=kind, branch=branch, kinds=(kind,) * len(branch), identity=self.identity and complete)


def spell(units: Sequence[Unit]) -> str:
    """A model as a word, one letter per unit, one group per stage: ``"ccc ccca cacaca caca"``."""
    groups = itertools.groupby(units, key=lambda unit: unit.stage)
    return " ".join("".join(LETTER[unit.kind] for unit in group) for _, group in groups)


def stream_taps(units: Sequence[Unit]) -> list[Tap]:
    """The distinct taps where the stream is a map, in order: before and after each unit."""
    both = (tap for unit in units for tap in (unit.before, unit.after))
    return list(dict.fromkeys(tap for tap in both if tap is not None and tap.layout is not None))
