"""A model as a folder: ``model.json`` says how to build it, ``model.safetensors`` holds its weights.

Both are written under a temporary name and then renamed, the weights first.  ``model.json`` holds the sha256 of the weights and
of its own values, so a file that was changed, and two that do not belong together, are refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from timm.models import is_model
from torch import nn

from backlight.data.preprocessing import pretrained_cfg_of
from backlight.errors import Unavailable, UserError
from backlight.files import write_atomic
from backlight.model_names.saved import DESCRIPTION, WEIGHTS, SavedModel, describe, saved_folder
from backlight.model_names.spec import ModelSpec, parse
from backlight.models.surgery.hybridize import surgery_of
from backlight.recipes import Recipe
from backlight.records import Damaged, encoded, read_verified, sha256_of

FOR_TIMM = "config.json"
PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    spec: str,
    num_classes: int | None,
    preprocessing: dict[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    test: dict[str, list[float]] | None = None,
    seconds: float | None = None,
    **facts: Any,
) -> Path:
    """Write the model to ``folder``, which `load_model` reads; return the folder.

    spec: the MODEL from which `load_model` builds the architecture.  preprocessing: input_size, mean, std, ... in timm's
    words; None: the model's ``pretrained_cfg``.  classes: the names of the labels.  test, seconds, facts: as in `SavedModel`.
    Surgery (`hybridize`, `smooth`, `drop_original`) is recorded too, and repeated when the folder is loaded.
    Errors: UserError if the folder cannot be written.
    """
    folder = Path(folder)
    if source := saved_folder(spec):  # fine-tuned from another folder: the new one must not depend on it
        spec = describe(source).model
    if preprocessing is None:
        preprocessing = pretrained_cfg_of(model)
    state = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in untied(model).items()}
    weights = safetensors.torch.save(state)
    description = SavedModel(
        spec,
        num_classes,
        {name: preprocessing[name] for name in PREPROCESSING if name in preprocessing},
        None if classes is None else list(classes),
        surgery_of(model),
        sha256_of(weights),
        test or {},
        seconds,
        facts,
    )
    try:
        write_atomic(folder / WEIGHTS, weights)
        if config := for_timm(parse(spec), description):
            write_atomic(folder / FOR_TIMM, json.dumps(config, indent=2).encode())
        write_atomic(folder / DESCRIPTION, encoded(description))
    except OSError as error:
        raise UserError(f"the model cannot be written to {folder}: {error.strerror or error}") from error
    return folder


def for_timm(spec: ModelSpec, description: SavedModel) -> dict[str, Any] | None:
    """The config.json with which timm loads the folder as ``local-dir:``; None for a model that timm cannot build.

    timm builds our own models after ``import backlight.models``.
    """
    architecture, arguments = spec.name, dict(spec.arguments)
    if spec.source == "word":
        architecture, arguments = "alternet_50", {"word": spec.name, **arguments}
        arguments.pop("img_size", None)  # for the preprocessing alone
    elif spec.source or not is_model(architecture):
        return None
    if description.surgery:
        return None
    classes = {"num_classes": description.num_classes} if description.num_classes else {}
    return {"architecture": architecture, **classes, "model_args": arguments, "pretrained_cfg": description.preprocessing}


def load_weights(model: nn.Module, folder: Path, *, new_head: bool = False) -> None:
    """Load the folder's weights into the model.  Errors: Unavailable if the file is missing, altered or does not fit.

    new_head: for another number of classes; tensors of another shape keep the model's values.
    """
    path = folder / WEIGHTS
    try:
        data = read_verified(path, describe(folder).weights_sha256 or "")
    except Damaged as error:
        raise Unavailable(f"{error}; train or save the model again") from error
    state, own = safetensors.torch.load(data), model.state_dict()
    if new_head:
        state = {name: tensor for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}
    report = model.load_state_dict(state, strict=False)
    tied = {name for name in report.missing_keys if name not in untied(model)}
    absent = [] if new_head else [name for name in report.missing_keys if name not in tied]
    if misfits := absent + report.unexpected_keys:
        raise Unavailable(f"{path} does not fit the model that {DESCRIPTION} describes: {', '.join(misfits[:3])}")


def with_recipe_of(model: nn.Module, description: SavedModel) -> nn.Module:
    """The model, with the fields of the recipe that it was trained with, as far as its folder has them."""
    recipe = description.facts.get("run", {}).get("recipe") or description.facts.get("recipe")
    model.__dict__["saved_recipe"] = recipe if isinstance(recipe, dict) else None
    return model


def saved_recipe(model: nn.Module) -> Recipe | None:
    """The recipe with which a model from a folder was trained; None if it is unknown.  Errors: UserError if it is no recipe."""
    recipe = model.__dict__.get("saved_recipe")
    return None if recipe is None else Recipe.of(recipe, "the recipe saved with the model")


def untied(model: nn.Module) -> dict[str, Any]:
    """The state dict with each tensor once: of names that share memory, the first."""
    addresses: set[tuple[int, int]] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        address = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() == 0 or address not in addresses:
            addresses.add(address)
            tensors[name] = tensor
    return tensors
