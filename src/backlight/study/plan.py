"""The plan of a study: which analysis of which model, with which settings.  Plain data; torch is not imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from backlight.analyses.catalog import entry
from backlight.analyses.entry import Analysis
from backlight.data.given_classes import GivenClasses, read_classes
from backlight.errors import UserError, did_you_mean
from backlight.model_names.alias import aliases, split
from backlight.settings import options
from backlight.study.settings import StudySettings
from backlight.tracing.corrections import Corrections, corrections_in

BATCH_SIZE = 32


@dataclass(frozen=True)
class Cell:
    """One analysis of one model."""

    model: str  # its name
    analysis: str
    settings: Mapping[str, Any]  # all settings of the analysis
    shared: StudySettings
    corrections: Mapping[str, Corrections] = field(default_factory=dict)  # by model
    classes: GivenClasses | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)  # name -> MODEL, where a model has a name of its own

    def spec(self, name: str) -> str:
        """The MODEL of this name."""
        return self.aliases.get(name, name)

    @property
    def entry(self) -> Analysis:
        """The analysis in the catalogue."""
        return entry(self.analysis)

    @property
    def data(self) -> tuple[str, str]:
        """The data set and the split."""
        name, split = self.entry.data
        labels = f"?labels={self.shared.labels}" if self.shared.labels else ""
        return (self.shared.data or name) + labels, self.shared.split or split

    @property
    def batch_size(self) -> int:
        """Images in a batch of a pass over the data; the training loss has its own."""
        return self.shared.batch_size or BATCH_SIZE

    @property
    def models(self) -> list[str]:
        """Its model, and those that its settings name."""
        named = [self.settings[option.name] for option in self.entry.own_options() if option.about["loads"]]
        return [self.model, *(name for value in named for name in ((value,) if isinstance(value, str) else value or ()))]

    def request(self) -> dict[str, Any]:
        """What decides the numbers, as JSON holds it: two cells of one request need one run."""
        execution = {option.name for option in options(StudySettings) if option.about["execution"]}
        shared = {name: value for name, value in asdict(self.shared).items() if name not in execution}
        data, split = self.data
        if self.entry.training_loss is None:
            shared["batch_size"] = self.batch_size
        units = {model: self.corrections[model].record() for model in self.models if model in self.corrections}
        files = {"units": units, "classes": dict(self.classes.outputs) if self.classes else None}  # what they say, not where
        request = {"analysis": self.analysis, **shared, "data": data, "split": split, **files, **self.settings}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in request.items()}


def plan(models: Sequence[str], analyses: Mapping[str, Mapping[str, Any]], settings: StudySettings) -> list[Cell]:
    """A cell for each model and analysis (name -> settings).  A model may be given as NAME=MODEL, and is then called NAME.

    The settings of an analysis may hold ``models``, its own list of them.
    Errors: UserError for an unknown analysis, settings that it does not have, or a wrong file of corrections or classes.
    """
    if settings.labels and not settings.data:
        raise UserError("labels are those of a folder of images: give it with --data FOLDER")
    cells, corrections = [], corrections_in(settings.units)
    known_as = aliases([*models, *(model for values in analyses.values() for model in values.get("models", ()))])
    classes = read_classes(Path(settings.classes)) if settings.classes else None
    for name, values in analyses.items():
        if settings.budget and entry(name).training_loss:
            raise UserError(f"a budget ends analyses of single images early, and {name} goes over mini-batches: give it fewer")
        own = {key: value for key, value in values.items() if key != "models"}
        checked = entry(name).checked(own, f"[{name}]")
        for model in dict.fromkeys(split(each)[0] for each in values.get("models", models)):
            cells.append(Cell(model, name, checked, settings, corrections, classes, known_as))
    known = {model for cell in cells for model in cell.models}
    for model, of_model in corrections.items():
        if model not in known:
            raise UserError(f"{of_model.where}: model is {model!r}, which is not measured here{did_you_mean(model, known)}")
    order = list(dict.fromkeys([*(split(each)[0] for each in models), *(cell.model for cell in cells)]))
    return sorted(cells, key=lambda cell: order.index(cell.model))


def passes(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells of one model in groups that run together: those that can share a forward pass over the same data; others alone."""
    sharing = [cell for cell in cells if cell.entry.shares_a_pass(cell.settings)]
    by_data = groupby(sorted(sharing, key=lambda cell: cell.data), key=lambda cell: cell.data)
    return [list(group) for _, group in by_data] + [[cell] for cell in cells if cell not in sharing]
