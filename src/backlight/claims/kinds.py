"""The kind of a model: CNN, ViT, or hybrid, which follows from the kinds of its units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from backlight.errors import UserError, did_you_mean

Kind = Literal["cnn", "vit", "hybrid", "other"]
NAMES: dict[Kind, str] = {"cnn": "CNN", "vit": "ViT", "hybrid": "hybrid", "other": "other model"}
#: Of the units with attention or convolution, the share with attention from which a model is a ViT: 18 of 22 in Twins-S, whose
#: other four encode positions.  Half of them, as in CoAtNet, is a hybrid.
VIT_FROM = 0.75


def kind_of(units: Iterable[Mapping[str, Any]]) -> Kind:
    """The kind of a model with these units; "other" without attention and convolution, as MLP-Mixer.

    A parallel unit is counted as its attention and its MLP.

    >>> [kind_of([{"kind": kind} for kind in word]) for word in (["conv"] * 3, ["conv", "attention"], ["parallel"], ["mlp"])]
    ['cnn', 'hybrid', 'vit', 'other']
    """
    kinds = [unit["kind"] for unit in units]
    attentions, convolutions = kinds.count("attention") + kinds.count("parallel"), kinds.count("conv")
    if not attentions:
        return "cnn" if convolutions else "other"
    return "vit" if attentions / (attentions + convolutions) >= VIT_FROM else "hybrid"


def given_kinds(assignments: Iterable[str], models: Iterable[str]) -> dict[str, Kind]:
    """Model -> kind, of texts NAME=KIND.  Errors: UserError for another model or kind."""
    models, given = list(models), {}
    for text in assignments:
        model, _, kind = text.rpartition("=")
        if model not in models:
            raise UserError(f"--kind {text}: no model is called {model!r}{did_you_mean(model, models)}; give NAME=KIND")
        if kind not in get_args(Kind):
            raise UserError(
                f"--kind {text}: {kind!r} is no kind{did_you_mean(kind, get_args(Kind))}; they are {', '.join(NAMES)}"
            )
        given[model] = kind
    return given  # type: ignore[return-value]
