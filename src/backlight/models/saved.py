"""A model as a folder: ``model.json`` says how to build it, ``model.safetensors`` holds its weights.

Both are written to a temporary name and then renamed, weights first; ``model.json`` keeps their sha256, so that a pair
that does not belong together is refused.
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

from ..errors import Unavailable, UserError
from ..whole import write_whole
from .preprocessing import preprocessing_of
from .spelling import Spelling, parse
from .surgery import surgery_of

DESCRIPTION, WEIGHTS, FOR_TIMM = "model.json", "model.safetensors", "config.json"
PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
BUNDLED = Path(__file__).parents[1] / "assets" / "models"  # the models of the demo


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
    """Write the model to ``folder``, from where `load_model` takes it again; the folder is returned.

    spec: how `load_model` builds the model.  preprocessing: input_size, mean, std, ... as timm calls them; those of
    the model's ``pretrained_cfg`` where None.  classes: the names of the labels.  more: whatever else JSON can hold.
    What `hybridize` and its like did to the model is written down too, and done again when it is loaded.
    """
    folder = Path(folder)
    if source := saved_folder(spec):  # fine-tuned from a folder: the new one must stand without it
        spec = describe(source)["model"]
    if preprocessing is None:
        preprocessing = preprocessing_of(model)
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
        write_whole(folder / WEIGHTS, weights)
        if config := for_timm(parse(spec), description):
            write_whole(folder / FOR_TIMM, json.dumps(config, indent=2).encode())
        write_whole(folder / DESCRIPTION, text.encode())
    except OSError as error:
        raise UserError(f"the model cannot be written to {folder}: {error.strerror or error}") from error
    return folder


def for_timm(spelling: Spelling, description: dict[str, Any]) -> dict[str, Any] | None:
    """What timm wants to read in a folder it calls ``local-dir:``; None for a model that timm cannot build.

    Our own models are timm's after ``import backlight.models``.
    """
    architecture, arguments = spelling.name, dict(spelling.arguments)
    if spelling.source == "word":
        architecture, arguments = "alternet_50", {"word": spelling.name, **arguments}
        arguments.pop("img_size", None)  # for the preprocessing alone
    elif spelling.source or not is_model(architecture):
        return None
    if "surgery" in description:
        return None
    counted = {"num_classes": description["num_classes"]} if description["num_classes"] else {}
    return {"architecture": architecture, **counted, "model_args": arguments, "pretrained_cfg": description["preprocessing"]}


def describe(folder: Path) -> dict[str, Any]:
    """What ``model.json`` says; UserError where it cannot be read."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_bytes())
        return description | {"model": str(description["model"]), "num_classes": description["num_classes"]}
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no {DESCRIPTION}, so no model that train wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as the description of a model: {error!r}") from error


def load_weights(model: nn.Module, folder: Path, *, new_head: bool = False) -> None:
    """Put the folder's weights into the model; Unavailable where the file is missing, altered or does not fit.

    new_head: leave tensors of another shape as the model made them, for another number of classes.
    """
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != describe(folder).get("sha256"):
        raise Unavailable(f"{path} is not what was saved: its sha256 differs from the one in {DESCRIPTION}")
    try:
        state, own = safetensors.torch.load(data), model.state_dict()
    except SafetensorError as error:
        raise Unavailable(f"{path} cannot be read: {error}") from error
    if new_head:
        state = {name: tensor for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}
    report = model.load_state_dict(state, strict=False)
    tied = {name for name in report.missing_keys if name not in untied(model)}
    absent = [] if new_head else [name for name in report.missing_keys if name not in tied]
    if strange := absent + report.unexpected_keys:
        raise Unavailable(f"{path} does not fit the model that {DESCRIPTION} describes: {', '.join(strange[:3])}")


def saved_folder(name: str) -> Path | None:
    """The folder that ``name`` means: a model of the demo by its short name, or a path; None where it is neither."""
    for folder in (BUNDLED / name, Path(name).expanduser()):
        if os.path.isfile(folder / DESCRIPTION):  # unlike Path.is_file, no error where the name is no path at all
            return folder
    return None


def bundled_names() -> list[str]:
    """The short names of the models in the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{DESCRIPTION}"))


def untied(model: nn.Module) -> dict[str, Any]:
    """The state dict with each tensor once: of names that share memory, the first."""
    seen: set[tuple[int, int]] = set()
    kept = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() == 0 or place not in seen:
            seen.add(place)
            kept[name] = tensor
    return kept
