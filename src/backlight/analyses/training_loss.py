"""The loss that training minimises, as the settings of an analysis and the recipe of its batches describe it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from backlight.analyses.entry import ObjectiveSettings
from backlight.curvature.batches import recipe_of
from backlight.curvature.loss import Loss, Objective, Predicate, soft_cross_entropy
from backlight.recipes import DECAY

S = TypeVar("S", bound=ObjectiveSettings)


def training_objective(
    settings: S, model: nn.Module, batches: Iterable[Any], *, loss: Loss | None = None, decayed: Predicate | None = None
) -> tuple[S, Objective, dict[str, Any]]:
    """The settings with the recipe's weight decay where they leave it open, their objective, and a record of the recipe.

    ``decayed``, if it is given, selects the parameters that decay instead of the recipe.
    """
    chosen = recipe_of(batches, model).replacing(DECAY, {name: getattr(settings, name) for name in DECAY})
    recipe = chosen.recipe
    objective = Objective.of(recipe, model, loss=loss or soft_cross_entropy, statistics=settings.statistics)
    if decayed is not None:
        objective = replace(objective, decayed=decayed)
    decay_all = None if decayed is not None else recipe.decay_all
    return replace(settings, weight_decay=recipe.weight_decay, decay_all=decay_all), objective, chosen.record()
