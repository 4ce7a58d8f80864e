"""Which models of several folders of results are compared with which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from backlight.comparing.compare import models_in
from backlight.errors import UserError
from backlight.results.result import DOCUMENT
from backlight.study.folder import REQUEST, UNITS, Model

Pair = tuple[Model, Model]


def holds_results(place: str) -> bool:
    """Whether a name is that of a folder with results, and not a model by name or in a folder."""
    folder = Path(place)
    return folder.is_dir() and any(
        next(folder.glob(pattern), None) is not None
        for pattern in (DOCUMENT, f"*/{DOCUMENT}", f"*/*/{DOCUMENT}", REQUEST, UNITS)
    )


def pairs(places: Sequence[str]) -> list[Pair]:
    """The models to compare: the first with each other one.

    In one folder: its first model with its others.  In several with a model each: that of the first folder with the others'.
    In several with the same models: each with its namesakes.
    Errors: UserError if it is not clear which are meant.
    """
    sides = {place: models_in(Path(place)) for place in places}
    if len(sides) == 1:
        first, *others = next(iter(sides.values()))
        if not others:
            raise UserError(f"{places[0]} holds results of one model, {first.name}: give a second folder to compare it with")
        return [(first, other) for other in others]
    if all(len(models) == 1 for models in sides.values()):
        return _with_the_first(distinct({place: models[0] for place, models in sides.items()}))
    shared = [model.name for model in sides[places[0]] if all(_named(models, model.name) for models in sides.values())]
    if not shared:
        there = "; ".join(f"{place}: {', '.join(model.name for model in models)}" for place, models in sides.items())
        raise UserError(f"no model is in all folders ({there}): give the folders of the models, or --seeds to compare means")
    namesakes = ({place: _named(models, name) for place, models in sides.items()} for name in shared)
    return [pair for each in namesakes for pair in _with_the_first(distinct({p: m for p, m in each.items() if m}))]


def distinct(models: Mapping[str, Model]) -> list[Model]:
    """The models, and where two have one name, the folder after it."""
    names = [model.name for model in models.values()]
    return [
        replace(model, name=f"{model.name} ({place})") if names.count(model.name) > 1 else model
        for place, model in models.items()
    ]


def _with_the_first(models: Sequence[Model]) -> list[Pair]:
    return [(models[0], other) for other in models[1:]]


def _named(models: Sequence[Model], name: str) -> Model | None:
    return next((model for model in models if model.name == name), None)
