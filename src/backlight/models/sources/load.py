"""Loading a model by name: timm's, ours, torchvision's, Hugging Face's, a checkpoint, a folder, a function.

The names are those that the command line takes as MODEL; docs/models.md has an example of each.
"""

from __future__ import annotations

import fnmatch
import inspect
import os
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, is_model, is_model_pretrained, model_entrypoint
from timm.models._registry import get_arch_pretrained_cfgs
from torch import nn

from backlight.data.preprocessing import pretrained_cfg_of, with_built_size, with_pretrained_cfg
from backlight.errors import Unavailable, UserError, did_you_mean
from backlight.model_names.saved import bundled_names, describe, saved_folder
from backlight.model_names.spec import ModelSpec, parse, reporting_bad_arguments
from backlight.models.architectures.alternet import CIFAR_100, IMAGENET, AlterNet
from backlight.models.cost import macs, parameters
from backlight.models.sources.factory import from_factory
from backlight.models.sources.hub import fetching, from_address, from_hub
from backlight.models.sources.hugging_face import from_hugging_face
from backlight.models.sources.paper_checkpoints import official_model
from backlight.models.sources.saved import load_weights, save_model, with_recipe_of
from backlight.models.sources.torchvision import from_torchvision, torchvision_names
from backlight.models.surgery.hybridize import with_surgery
from backlight.results.provenance import mark_untrained

__all__ = ["costs", "list_names", "load_model", "save_model"]

RANDOM = "use --no-pretrained for random weights"


def load_model(spec: str, *, pretrained: bool = True, num_classes: int | None = None, seed: int = 0) -> nn.Module:
    """The model that ``spec`` names, in eval mode, with its preprocessing as ``pretrained_cfg`` if that is known.

    pretrained=False: random weights, the same for the same ``seed``; the caller's random generator is not used.
    num_classes: another number of outputs, with a new last layer.
    Errors: UserError for a wrong name or argument, Unavailable for weights that are not available.

    >>> load_model("word:cc ca?dim=8&stem=cifar", pretrained=False, num_classes=10).num_classes
    10
    """
    parts = parse(spec)
    arguments = dict(parts.arguments)
    outputs = arguments.pop("num_classes", num_classes)
    if num_classes not in (None, outputs):
        raise UserError(f"{spec} and num_classes={num_classes} disagree")
    if "pretrained" in arguments:
        raise UserError(f"pretrained is not an argument of {parts}; {RANDOM}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = built(replace(parts, arguments=arguments), pretrained=pretrained, num_classes=outputs).eval()
    factory = not parts.source and not is_model(parts.name) and ":" in parts.name  # which decides on its own weights
    return model if pretrained or factory else mark_untrained(model)


def is_architecture(spec: str) -> bool:
    """Whether ``spec`` names an architecture that can be built with any number of outputs.

    >>> is_architecture("resnet18"), is_architecture("resnet18?num_classes=1000"), is_architecture("mine.py:make")
    (True, False, False)
    """
    parts = parse(spec)
    known = parts.source in ("torchvision", "word") or (not parts.source and is_model(parts.name))
    return known and "num_classes" not in parts.arguments


def list_names(pattern: str = "") -> dict[str, list[str]]:
    """The names that `load_model` accepts, by source: those that match ``pattern`` or contain it."""
    glob = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    ours = [name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("backlight.")]
    names = {
        "ours": ours,
        "demo": bundled_names(),
        "timm": [name for name in timm.list_models() if name not in ours],
        "torchvision": [f"torchvision:{name}" for name in torchvision_names()],
    }
    return {source: [name for name in known if fnmatch.fnmatch(name, glob)] for source, known in names.items()}


def costs(name: str) -> dict[str, Any]:
    """Input size, parameters and multiply-accumulates of a registered model, computed without its weights."""
    with torch.device("meta"):
        model = timm.create_model(name)
    size = pretrained_cfg_of(model)["input_size"]
    return {"input": " ".join(map(str, size)), "parameters": parameters(model), "macs": macs(model, size)}


def built(spec: ModelSpec, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """The model from its source.  A registered name comes before a folder of the same name: write ./NAME for the folder."""
    name = spec.name
    if spec.source:
        return BUILDERS[spec.source](spec, pretrained=pretrained, num_classes=num_classes)
    if is_model(name):
        return from_timm(spec, pretrained=pretrained, num_classes=num_classes)
    if folder := saved_folder(name):
        return from_folder(spec, folder, pretrained=pretrained, num_classes=num_classes)
    if ":" in name:
        return from_factory(spec, num_classes=num_classes)
    if os.path.isdir(name):
        raise UserError(f"{name} is a folder without model.json; if timm wrote it, write local-dir:{name}")
    if os.sep in name:
        raise Unavailable(f"there is no folder {name}")
    known = [known for names in list_names().values() for known in names]
    raise UserError(f"there is no model {name!r}{did_you_mean(name, known) or '; `backlight models` lists the names'}")


def from_timm(spec: ModelSpec, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """A registered model, ours included, or one that timm saved to a folder or to the Hub."""
    arguments = {**spec.arguments, **({} if num_classes is None else {"num_classes": num_classes})}
    if not spec.source:
        refuse_unknown_tag(spec.name)
        if pretrained and not is_model_pretrained(spec.name):
            raise Unavailable(f"there are no pretrained weights for {spec}; {RANDOM}, or train it")
    with timm_files(spec, pretrained), reporting_bad_arguments(spec):
        try:
            model = timm.create_model(str(spec), pretrained=pretrained, **arguments)
        except TypeError as error:
            if "'img_size'" not in str(error) or "img_size" not in arguments:
                raise
            del arguments["img_size"]  # the model takes any size; the argument is for the preprocessing
            model = timm.create_model(str(spec), pretrained=pretrained, **arguments)
    return with_built_size(model, spec.arguments)


def timm_files(spec: ModelSpec, pretrained: bool) -> AbstractContextManager[None]:
    """A context in which timm can read the model's files: from a folder, the Hub, a plain address, or none."""
    needed = "weights" if pretrained else "configuration"
    if spec.source == "local-dir":
        if not os.path.isdir(spec.name):
            raise Unavailable(f"there is no folder {spec.name}")
        return fetching(str(spec), spec.name, needed=needed)
    if spec.source:
        return from_hub(str(spec), spec.name, needed=needed)
    cfg = get_pretrained_cfg(spec.name) if pretrained else None
    if cfg and cfg.hf_hub_id:
        return from_hub(str(spec), cfg.hf_hub_id)
    return from_address(str(spec), cfg.url) if cfg and isinstance(cfg.url, str) else nullcontext()


def from_folder(spec: ModelSpec, folder: Path, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """A model that `save_model` wrote, or the same architecture with random weights."""
    if spec.arguments:
        raise UserError(f"a saved model takes no arguments: {folder / 'model.json'} describes {spec}")
    description = describe(folder)
    origin = parse(description.model)
    if not origin.source and not is_model(origin.name) and saved_folder(origin.name):
        raise UserError(f"{folder / 'model.json'} names another folder, {origin}, instead of a model")
    classes = description.num_classes if num_classes is None else num_classes
    model = built(origin, pretrained=False, num_classes=classes)
    try:
        model = with_recipe_of(with_surgery(model, description.surgery), description)
    except UserError as error:
        raise UserError(f"{folder / 'model.json'}: {error}") from error
    if pretrained:
        load_weights(model, folder, new_head=classes != description.num_classes)
    if not description.preprocessing:
        return model
    cfg = {name: tuple(value) if isinstance(value, list) else value for name, value in description.preprocessing.items()}
    outputs = {} if classes is None else {"num_classes": classes}
    return with_pretrained_cfg(model, pretrained_cfg_of(model) | cfg | outputs)


def from_word(spec: ModelSpec, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """The AlterNet of a word, with the arguments of `AlterNet`; ``img_size`` is for the preprocessing alone."""
    if pretrained:
        raise Unavailable(f"{spec} is an architecture without weights; {RANDOM}, or train it")
    arguments = {name: value for name, value in spec.arguments.items() if name != "img_size"}
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    with reporting_bad_arguments(spec, inspect.signature(AlterNet).parameters):
        model = AlterNet(spec.name, **arguments)
    base = CIFAR_100 if arguments.get("stem") == "cifar" else IMAGENET
    return with_built_size(with_pretrained_cfg(model, base | {"num_classes": model.num_classes}), spec.arguments)


def from_official(spec: ModelSpec, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """The model in a checkpoint of the authors' repository; only a file that holds nothing but tensors is read."""
    if spec.arguments:
        raise UserError(f"a checkpoint takes no arguments: {spec} gives the architecture itself")
    try:
        checkpoint = torch.load(spec.name, map_location="cpu", weights_only=True)
    except OSError as error:
        raise Unavailable(f"{spec.name} cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{spec.name} is not loaded, because it is not a checkpoint that holds only tensors") from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    tensors = {str(n).removeprefix("module."): value for n, value in state.items() if isinstance(value, torch.Tensor)}
    try:
        model = official_model(tensors, weights=pretrained)
    except UserError as error:
        raise UserError(f"{spec.name} is {error}") from error
    if num_classes not in (None, model.num_classes):
        model.reset_classifier(num_classes)  # type: ignore[operator]
        with_pretrained_cfg(model, pretrained_cfg_of(model) | {"num_classes": num_classes})
    return model


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "torchvision": from_torchvision,
    "hf": from_hugging_face,
    "hf-hub": from_timm,
    "local-dir": from_timm,
    "official": from_official,
    "word": from_word,
}


def refuse_unknown_tag(name: str) -> None:
    """Errors: UserError for weights that timm does not have, such as resnet50.imagenet."""
    architecture, _, tag = name.partition(".")
    known = [full.partition(".")[2] for full in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in known:
        raise UserError(f"{architecture} has no weights {tag!r}, only {', '.join(known)}{did_you_mean(tag, known)}")
