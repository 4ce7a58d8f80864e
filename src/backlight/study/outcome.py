"""What becomes of a cell.  torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from backlight.results.result import Result
from backlight.study.cells import load
from backlight.study.identity import Identity
from backlight.study.plan import Cell


@dataclass(frozen=True)
class Outcome:
    """A cell that is done, has failed, or is not applicable."""

    cell: Cell
    measured: Result | None = None  # in this process
    error: str = ""
    skipped: bool = False  # it was there already
    applicable: bool = True  # False: the analysis has no answer for this model, and ``error`` says why
    identity: Identity | None = None  # of what was measured, if it is to be stored
    place: Path | None = None  # the folder of the result, once it is stored
    word: str = ""  # of the model, if it was loaded
    missing: int = 0  # pieces that other shards have still to compute; the result is saved once this is 0
    seconds: float = 0.0  # its share of the time that its task took
    busy: bool = False  # another process measures it

    @property
    def model(self) -> str:
        """The model's name."""
        return self.cell.model

    @property
    def analysis(self) -> str:
        """The analysis's name."""
        return self.cell.analysis

    @property
    def result(self) -> Result | None:
        """The result, read from its folder if another process measured it; None if there is none, or not yet."""
        if self.measured is not None:
            return self.measured
        return load(self.place) if self.place else None

    @property
    def state(self) -> str:
        """What happened, in words."""
        if not self.applicable:
            return f"not applicable: {self.error}"
        return f"failed: {self.error}" if self.error else "there already" if self.skipped else "done"

    @property
    def failed(self) -> bool:
        """Whether it can be tried again."""
        return bool(self.error) and self.applicable

    def without_result(self) -> Outcome:
        """The outcome for another process, which reads the result from its folder."""
        return replace(self, measured=None)
