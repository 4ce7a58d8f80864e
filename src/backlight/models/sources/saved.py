"""A model as a folder: ``model.json`` says how to build it, ``model.safetensors`` holds its weights.

Both are written under a temporary name and then renamed, the weights first.  ``model.json`` holds the sha256 of the weights,
so two files that do not belong together are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from timm.models import is_model
from torch import nn

from backlight.data.preprocessing import pretrained_cfg_of
from backlight.errors import Unavailable, UserError
from backlight.files import write_atomic
from backlight.models.sources.spec import ModelSpec, parse
from backlight.models.surgery.hybridize import surgery_of

DESCRIPTION, WEIGHTS, FOR_TIMM = "model.json", "model.safetensors", "config.json"
PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
BUNDLED = Path(__file__).parents[2] / "assets" / "models"  # the models of the demo


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    spec: str,
    num_classes: int | None,
    preprocessing: dict[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    **more: Any,
) -> Path:
    """Write the model to ``folder``, which `load_model` reads; return the folder.

    spec: the MODEL from which `load_model` builds the architecture.  preprocessing: input_size, mean, std, ... in timm's
    words; None: the model's ``pretrained_cfg``.  classes: the names of the labels.  more: further entries of model.json.
    Surgery (`hybridize`, `smooth`, `drop_original`) is recorded too, and repeated when the folder is loaded.
    Errors: UserError if the folder cannot be written.
    """
    folder = Path(folder)
    if source := saved_folder(spec):  # fine-tuned from another folder: the new one must not depend on it
        spec = describe(source)["model"]
    if preprocessing is None:
        preprocessing = pretrained_cfg_of(model)
    state = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in untied(model).items()}
    weights = safetensors.torch.save(state)
    description = {
        "model": spec,
        "num_classes": num_classes,
        "preprocessing": {name: preprocessing[name] for name in PREPROCESSING if name in preprocessing},
        "classes": None if classes is None else list(classes),
        **({"surgery": surgery} if (surgery := surgery_of(model)) else {}),
        "sha256": hashlib.sha256(weights).hexdigest(),
        **more,
    }
    text = json.dumps(description, indent=2)
    try:
        write_atomic(folder / WEIGHTS, weights)
        if config := for_timm(parse(spec), description):
            write_atomic(folder / FOR_TIMM, json.dumps(config, indent=2).encode())
        write_atomic(folder / DESCRIPTION, text.encode())
    except OSError as error:
        raise UserError(f"the model cannot be written to {folder}: {error.strerror or error}") from error
    return folder


def for_timm(spec: ModelSpec, description: dict[str, Any]) -> dict[str, Any] | None:
    """The config.json with which timm loads the folder as ``local-dir:``; None for a model that timm cannot build.

    timm builds our own models after ``import backlight.models``.
    """
    architecture, arguments = spec.name, dict(spec.arguments)
    if spec.source == "word":
        architecture, arguments = "alternet_50", {"word": spec.name, **arguments}
        arguments.pop("img_size", None)  # for the preprocessing alone
    elif spec.source or not is_model(architecture):
        return None
    if "surgery" in description:
        return None
    classes = {"num_classes": description["num_classes"]} if description["num_classes"] else {}
    return {"architecture": architecture, **classes, "model_args": arguments, "pretrained_cfg": description["preprocessing"]}


def describe(folder: Path) -> dict[str, Any]:
    """The contents of ``model.json``.  Errors: UserError if it cannot be read."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_bytes())
        return description | {"model": str(description["model"]), "num_classes": description["num_classes"]}
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no {DESCRIPTION}: it is not a model that `backlight train` wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as the description of a model: {error!r}") from error


def load_weights(model: nn.Module, folder: Path, *, new_head: bool = False) -> None:
    """Load the folder's weights into the model.  Errors: Unavailable if the file is missing, altered or does not fit.

    new_head: for another number of classes; tensors of another shape keep the model's values.
    """
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != describe(folder).get("sha256"):
        raise Unavailable(f"{path} was changed after it was saved: its sha256 differs from the one in {DESCRIPTION}")
    try:
        state, own = safetensors.torch.load(data), model.state_dict()
    except SafetensorError as error:
        raise Unavailable(f"{path} cannot be read: {error}") from error
    if new_head:
        state = {name: tensor for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}
    report = model.load_state_dict(state, strict=False)
    tied = {name for name in report.missing_keys if name not in untied(model)}
    absent = [] if new_head else [name for name in report.missing_keys if name not in tied]
    if misfits := absent + report.unexpected_keys:
        raise Unavailable(f"{path} does not fit the model that {DESCRIPTION} describes: {', '.join(misfits[:3])}")


def saved_folder(name: str) -> Path | None:
    """The folder of a saved model: a demo model by its short name, or a path; None if ``name`` is neither."""
    for folder in (BUNDLED / name, Path(name).expanduser()):
        if os.path.isfile(folder / DESCRIPTION):  # unlike Path.is_file, no error for a name that cannot be a path
            return folder
    return None


def bundled_names() -> list[str]:
    """The short names of the models in the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{DESCRIPTION}"))


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
