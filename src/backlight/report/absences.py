"""Why an analysis of a model has no result: three states that a page must not confuse, and undecided is none of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from backlight.study.folder import Study

State = Literal["not applicable", "failed", "not run"]
#: Signs of the states; a verdict has other ones.
SIGNS: dict[str, str] = {"done": "●", "not applicable": "∅", "failed": "✕", "not run": "○"}


@dataclass(frozen=True)
class Absence:
    """An analysis that a model has no result of."""

    model: int  # its number
    state: State
    reason: str  # empty if it was not requested


def absence(study: Study, model: int, analysis: str) -> Absence:
    """The state of an analysis without a result: the sentence of `Study.absent` about it, else it was not requested."""
    begin = f"{study.models[model].name}, {analysis}: "
    for sentence in study.absent:
        if sentence.startswith(begin):
            told = sentence.removeprefix(begin)
            state: State = next((state for state in get_args(State) if told.startswith(state)), "failed")
            return Absence(model, state, told.removeprefix(state).lstrip(": "))
    broken = next((sentence for sentence in study.absent if f"/{analysis} is not a complete result" in sentence), "")
    own = broken.startswith(f"{study.models[model].name}/")
    return Absence(model, "failed", broken) if own else Absence(model, "not run", "")


def absences(study: Study, analysis: str) -> list[Absence]:
    """Those of an analysis, in the order of the models."""
    return [absence(study, i, analysis) for i, result in enumerate(study.results(analysis)) if result is None]


def states(study: Study) -> list[list[tuple[str, str]]]:
    """Of each model and analysis of the page: the state, "done" if there is a result, and why."""
    found = {(each.model, name): each for name in study.analyses for each in absences(study, name)}
    return [
        [(each.state, each.reason) if (each := found.get((i, name))) is not None else ("done", "") for name in study.analyses]
        for i in range(len(study.models))
    ]
