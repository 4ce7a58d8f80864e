"""Which parameters of a model decay, and how much: for the optimizer, and for the analyses of the loss that it minimises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from backlight.recipes import Recipe


def everything(name: str, parameter: nn.Parameter) -> bool:
    """All parameters decay, biases and norms too, as in the authors' code."""
    return True


def decays(model: nn.Module, *, decay_all: bool = False) -> Callable[[str, nn.Parameter], bool]:
    """Whether a parameter of the model decays, by name and value.

    Without ``decay_all`` neither biases and norms decay nor what the model's ``no_weight_decay`` names, as in timm's
    ``param_groups_weight_decay``.
    """
    if decay_all:
        return everything
    skipped: set[str] = getattr(model, "no_weight_decay", set)()
    return lambda name, p: p.ndim > 1 and not name.endswith(".bias") and name not in skipped


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The groups of the optimizer: trainable parameters that do not decay, and those that do, as far as there are any."""
    decayed = decays(model, decay_all=recipe.decay_all)
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[decayed(name, parameter)].append(parameter)
    rates = {False: 0.0, True: recipe.weight_decay}
    return [{"params": parameters, "weight_decay": rates[decay]} for decay, parameters in groups.items() if parameters]
