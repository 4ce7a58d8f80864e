"""Every model by its name: timm's, ours, torchvision's, Hugging Face's, a checkpoint, a folder, a function.

The spellings are those of the command line's MODEL; docs/models.md shows one of each.
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

from ..errors import Unavailable, UserError, did_you_mean
from .alternet import CIFAR_100, IMAGENET, AlterNet
from .cost import macs, parameters
from .factory import from_factory
from .hub import fetching, hub_or_cache, refuse_unreachable
from .hugging_face import from_hugging_face
from .official import official_model
from .preprocessing import preprocessing_of, resized, with_preprocessing
from .saved import bundled_names, describe, load_weights, save_model, saved_folder
from .spelling import Spelling, blaming_arguments, parse
from .surgery import operated
from .torchvision_models import from_torchvision, torchvision_names

__all__ = ["costs", "list_names", "load_model", "save_model"]

RANDOM = "use --no-pretrained for random weights"


def load_model(spec: str, *, pretrained: bool = True, num_classes: int | None = None, seed: int = 0) -> nn.Module:
    """The model that ``spec`` spells, in eval mode, with its preprocessing as ``pretrained_cfg`` where it is known.

    pretrained=False: weights from the generator ``seed``, the same every time; the caller's generator is untouched.
    num_classes: another number of outputs, with a fresh last layer.
    Errors: UserError for a spelling, name or argument that is wrong, Unavailable for weights that are not to be had.

    >>> load_model("word:cc ca?dim=8&stem=cifar", pretrained=False, num_classes=10).num_classes
    10
    """
    spelling = parse(spec)
    arguments = dict(spelling.arguments)
    asked = arguments.pop("num_classes", num_classes)
    if num_classes not in (None, asked):
        raise UserError(f"{spec} and num_classes={num_classes} disagree")
    if "pretrained" in arguments:
        raise UserError(f"pretrained is no argument of {spelling}; {RANDOM}")
    spelling = replace(spelling, arguments=arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return built(spelling, pretrained=pretrained, num_classes=asked).eval()


def is_architecture(spec: str) -> bool:
    """Whether this names an architecture with any number of outputs, and not somebody's weights, code or wish.

    >>> is_architecture("resnet18"), is_architecture("resnet18?num_classes=1000"), is_architecture("mine.py:make")
    (True, False, False)
    """
    spelling = parse(spec)
    known = spelling.source in ("torchvision", "word") or (not spelling.source and is_model(spelling.name))
    return known and "num_classes" not in spelling.arguments


def list_names(pattern: str = "") -> dict[str, list[str]]:
    """The names that `load_model` knows, a list a source: those that match ``pattern`` or have it in them."""
    wanted = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    ours = [name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("backlight.")]
    names = {
        "ours": ours,
        "demo": bundled_names(),
        "timm": [name for name in timm.list_models() if name not in ours],
        "torchvision": [f"torchvision:{name}" for name in torchvision_names()],
    }
    return {source: [name for name in known if fnmatch.fnmatch(name, wanted)] for source, known in names.items()}


def costs(name: str) -> dict[str, Any]:
    """What one of our registered models costs, by its default configuration and without making its weights."""
    with torch.device("meta"):
        model = timm.create_model(name)
    size = preprocessing_of(model)["input_size"]
    return {"input": " ".join(map(str, size)), "parameters": parameters(model), "macs": macs(model, size)}


def built(spelling: Spelling, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """The model of any source.  A registered name comes before a folder of that name: write ./NAME for the folder."""
    name = spelling.name
    if spelling.source:
        return BUILDERS[spelling.source](spelling, pretrained=pretrained, num_classes=num_classes)
    if is_model(name):
        return from_timm(spelling, pretrained=pretrained, num_classes=num_classes)
    if folder := saved_folder(name):
        return from_folder(spelling, folder, pretrained=pretrained, num_classes=num_classes)
    if ":" in name:
        return from_factory(spelling, num_classes=num_classes)
    if os.path.isdir(name):
        raise UserError(f"{name} is a folder without model.json; if timm wrote it, say local-dir:{name}")
    if os.sep in name:
        raise Unavailable(f"there is no folder {name}")
    known = [known for names in list_names().values() for known in names]
    raise UserError(f"there is no model {name!r}{did_you_mean(name, known) or '; `backlight models` lists the names'}")


def from_timm(spelling: Spelling, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """A registered model, ours included, or one that timm saved to a folder or to the hub."""
    arguments = {**spelling.arguments, **({} if num_classes is None else {"num_classes": num_classes})}
    if not spelling.source:
        refuse_unknown_tag(spelling.name)
        if pretrained:
            refuse_without_weights(spelling.name)
    with timm_files(spelling, pretrained), blaming_arguments(spelling):
        try:
            model = timm.create_model(str(spelling), pretrained=pretrained, **arguments)
        except TypeError as error:
            if "'img_size'" not in str(error) or "img_size" not in arguments:
                raise
            del arguments["img_size"]  # the model takes any size: only the preprocessing needs to know
            model = timm.create_model(str(spelling), pretrained=pretrained, **arguments)
    return resized(model, spelling.arguments)


def timm_files(spelling: Spelling, pretrained: bool) -> AbstractContextManager[None]:
    """Where timm reads from: a folder, the hub, or nowhere."""
    needed = "weights" if pretrained else "configuration"
    if spelling.source == "local-dir":
        if not os.path.isdir(spelling.name):
            raise Unavailable(f"there is no folder {spelling.name}")
        return fetching(str(spelling), spelling.name, needed=needed)
    return hub_or_cache(str(spelling), needed=needed) if pretrained or spelling.source else nullcontext()


def from_folder(spelling: Spelling, folder: Path, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """A model that `save_model` wrote, or the same architecture with random weights."""
    if spelling.arguments:
        raise UserError(f"a saved model takes no arguments: {spelling} is as {folder / 'model.json'} says")
    description = describe(folder)
    origin = parse(description["model"])
    if not origin.source and not is_model(origin.name) and saved_folder(origin.name):
        raise UserError(f"{folder / 'model.json'} names another folder, {origin}, and no model")
    classes = description["num_classes"] if num_classes is None else num_classes
    model = built(origin, pretrained=False, num_classes=classes)
    try:
        model = operated(model, description.get("surgery", []))
    except UserError as error:
        raise UserError(f"{folder / 'model.json'}: {error}") from error
    if pretrained:
        load_weights(model, folder, new_head=classes != description["num_classes"])
    told = {name: tuple(x) if isinstance(x, list) else x for name, x in description.get("preprocessing", {}).items()}
    counted = {} if classes is None else {"num_classes": classes}
    return with_preprocessing(model, preprocessing_of(model) | told | counted) if told else model


def from_word(spelling: Spelling, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """An AlterNet, its arguments after the question mark; ``img_size`` is for the preprocessing alone."""
    if pretrained:
        raise Unavailable(f"{spelling} is only a design and has no weights; {RANDOM}, or train it")
    arguments = {name: value for name, value in spelling.arguments.items() if name != "img_size"}
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    with blaming_arguments(spelling, inspect.signature(AlterNet).parameters):
        model = AlterNet(spelling.name, **arguments)
    base = CIFAR_100 if arguments.get("stem") == "cifar" else IMAGENET
    return resized(with_preprocessing(model, base | {"num_classes": model.num_classes}), spelling.arguments)


def from_official(spelling: Spelling, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """The model in a checkpoint of the authors' repository; its file may hold tensors and nothing else."""
    if spelling.arguments:
        raise UserError(f"a checkpoint takes no arguments: {spelling} says itself what it is")
    try:
        checkpoint = torch.load(spelling.name, map_location="cpu", weights_only=True)
    except OSError as error:
        raise Unavailable(f"{spelling.name} cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{spelling.name} is no checkpoint that holds tensors alone, and so is not loaded") from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    tensors = {str(n).removeprefix("module."): value for n, value in state.items() if isinstance(value, torch.Tensor)}
    try:
        model = official_model(tensors, weights=pretrained)
    except UserError as error:
        raise UserError(f"{spelling.name} is {error}") from error
    if num_classes not in (None, model.num_classes):
        model.reset_classifier(num_classes)  # type: ignore[operator]
        with_preprocessing(model, preprocessing_of(model) | {"num_classes": num_classes})
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
    """Raise UserError for weights that timm does not know, such as resnet50.imagenet."""
    architecture, _, tag = name.partition(".")
    known = [full.partition(".")[2] for full in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in known:
        raise UserError(f"{architecture} has no weights {tag!r}, only {', '.join(known)}{did_you_mean(tag, known)}")


def refuse_without_weights(name: str) -> None:
    """Raise Unavailable where there are no pretrained weights, or none within reach."""
    if not is_model_pretrained(name):
        raise Unavailable(f"there are no pretrained weights for {name}; {RANDOM}, or train it")
    cfg = get_pretrained_cfg(name)
    if cfg and cfg.hf_hub_id:
        refuse_unreachable(name, repository=cfg.hf_hub_id)
    elif cfg and isinstance(cfg.url, str):
        refuse_unreachable(name, url=cfg.url)
