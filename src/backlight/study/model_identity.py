"""What a loaded model is: hashes of its numbers, its modules and its code, and of what its name alone stands for."""

from __future__ import annotations

import re

from timm.models import is_model, model_entrypoint
from torch import nn

from backlight.data.preprocessing import pretrained_cfg_of
from backlight.errors import UserError
from backlight.model_names.code import code_sha256
from backlight.model_names.place import saved_sha256, source_sha256s
from backlight.model_names.saved import saved_folder
from backlight.model_names.spec import ModelSpec, parse
from backlight.results.provenance import sha256
from backlight.study.identity import ModelIdentity, digest, source_digest
from backlight.study.plan import Cell

OWN = ("timm", "backlight")  # packages whose versions stand for what they register


def model_identity(name: str, model: nn.Module, cell: Cell) -> ModelIdentity:
    """What a model is.  ``model``: as it is measured."""
    code = code_sha256(factory_location(parse(cell.spec(name))))
    return ModelIdentity(source_sha256(name, cell), all_numbers(model), configuration(model), code)


def all_numbers(model: nn.Module) -> str:
    """A hash of all parameters and buffers, those included that are not saved."""
    return sha256(dict(model.named_parameters(remove_duplicate=False)), dict(model.named_buffers(remove_duplicate=False)))


def configuration(model: nn.Module) -> str:
    """A hash of the modules as they describe themselves, of the preprocessing, and of the recipe of the training."""
    modules = [f"{name} {type(each).__module__}.{type(each).__qualname__}" for name, each in model.named_modules()]
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))  # addresses
    return digest([modules, text, pretrained_cfg_of(model), model.__dict__.get("saved_recipe")])


def source_sha256(name: str, cell: Cell) -> str | None:
    """A hash of what a name stands for; None for what only the loaded model says."""
    try:
        content = source_of(parse(cell.spec(name)), pretrained=cell.shared.pretrained)
    except UserError:  # loading says it
        return None
    return None if content is None else source_digest(name, cell, content)


def source_of(parts: ModelSpec, *, pretrained: bool) -> str | None:
    """The sha256 of a model's files; empty for what the installed packages define; None for any other model."""
    if parts.source:
        return next(source_sha256s(parts, pretrained=pretrained), None)
    if is_model(parts.name):
        return "" if model_entrypoint(parts.name).__module__.partition(".")[0] in OWN else None
    return None if (folder := saved_folder(parts.name)) is None else saved_sha256(folder, pretrained=pretrained)


def factory_location(parts: ModelSpec) -> str:
    """The module of a factory; empty for any other model."""
    return "" if parts.source or is_model(parts.name) or saved_folder(parts.name) else parts.name.rpartition(":")[0]
