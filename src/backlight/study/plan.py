"""The plan of a study: which analysis of which model, with which settings.  Plain data; torch is not imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from backlight.analyses.catalog import entry
from backlight.analyses.entry import Analysis
from backlight.settings import options
from backlight.study.settings import StudySettings


@dataclass(frozen=True)
class Cell:
    """One analysis of one model."""

    model: str
    analysis: str
    settings: Mapping[str, Any]  # all settings of the analysis
    shared: StudySettings

    @property
    def entry(self) -> Analysis:
        """The analysis in the catalogue."""
        return entry(self.analysis)

    @property
    def data(self) -> tuple[str, str]:
        """The data set and the split."""
        name, split = self.entry.data
        return self.shared.data or name, self.shared.split or split

    def request(self) -> dict[str, Any]:
        """What decides the numbers, as JSON holds it: two cells of one request need one run."""
        execution = {option.name for option in options(StudySettings) if option.about["execution"]}
        shared = {name: value for name, value in asdict(self.shared).items() if name not in execution}
        data, split = self.data
        request = {"analysis": self.analysis, **shared, "data": data, "split": split, **self.settings}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in request.items()}


def plan(models: Sequence[str], analyses: Mapping[str, Mapping[str, Any]], settings: StudySettings) -> list[Cell]:
    """A cell for each model and analysis (name -> settings).

    The settings of an analysis may hold ``models``, its own list of them.
    Errors: UserError for an unknown analysis, or settings that it does not have.
    """
    cells = []
    for name, values in analyses.items():
        own = {key: value for key, value in values.items() if key != "models"}
        checked = entry(name).checked(own, f"[{name}]")
        cells += [Cell(model, name, checked, settings) for model in values.get("models", models)]
    order = list(dict.fromkeys([*models, *(cell.model for cell in cells)]))
    return sorted(cells, key=lambda cell: order.index(cell.model))


def passes(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells of one model in groups that run together: those that can share a forward pass over the same data; others alone."""
    sharing = [cell for cell in cells if cell.entry.shares_a_pass(cell.settings)]
    by_data = groupby(sorted(sharing, key=lambda cell: cell.data), key=lambda cell: cell.data)
    return [list(group) for _, group in by_data] + [[cell] for cell in cells if cell not in sharing]
