"""A user's own model: ``package.module:factory`` or ``script.py:factory``, any callable that returns an nn.Module."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from backlight.data.preprocessing import pretrained_cfg_of, with_pretrained_cfg
from backlight.errors import Unavailable, UserError, did_you_mean
from backlight.model_names.spec import SOURCES, ModelSpec, reporting_bad_arguments

#: Arguments that describe the preprocessing, if the factory does not take them itself.
PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def from_factory(spec: ModelSpec, *, num_classes: int | None) -> nn.Module:
    """The model that the factory returns, with the factory's weights.  The working directory is importable meanwhile.

    ``FILE.py:make?input_size=(3, 32, 32)&mean=(0.5, 0.5, 0.5)&std=(0.5, 0.5, 0.5)`` describes the preprocessing of a model
    without ``pretrained_cfg``, or overrides it, as if the factory had written it there.
    """
    location, _, attribute = spec.name.rpartition(":")
    with importable(os.getcwd(), os.path.dirname(location) or os.getcwd()):
        made = attribute_of(imported(location), attribute, spec)
        taken = set() if isinstance(made, nn.Module) else {name for name in PREPROCESSING if takes(made, name)}
        described = {name: spec.arguments[name] for name in PREPROCESSING if name in spec.arguments and name not in taken}
        own = replace(spec, arguments={name: value for name, value in spec.arguments.items() if name not in described})
        model = made if isinstance(made, nn.Module) else called(made, own, num_classes)
    if not isinstance(model, nn.Module):
        raise UserError(f"{spec} returned {type(model).__name__}, not a torch.nn.Module")
    if not described:
        return model
    cfg = pretrained_cfg_of(model) | described
    if "input_size" not in cfg:
        raise UserError(f"the size of the images is missing: add input_size=(3, 224, 224) to {', '.join(described)}")
    return with_pretrained_cfg(model, cfg)


def called(factory: Callable[..., Any], spec: ModelSpec, num_classes: int | None) -> Any:
    """The factory's result for the MODEL's arguments.  Errors: UserError if it raises an exception."""
    arguments = dict(spec.arguments)
    if num_classes is not None:
        if not takes(factory, "num_classes"):
            raise UserError(f"{spec} takes no num_classes={num_classes}: give the factory such an argument")
        arguments["num_classes"] = num_classes
    try:
        with reporting_bad_arguments(spec):
            return factory(**arguments)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: a factory does not end the study
        raise UserError(f"{spec} failed: {type(error).__name__}: {error}") from error


def imported(location: str) -> ModuleType:
    """The module of a dotted name or of a Python file."""
    try:
        if not location.endswith(".py"):
            return importlib.import_module(location)
        spec = importlib.util.spec_from_file_location(Path(location).stem, location)
        if spec is None or spec.loader is None or not os.path.isfile(location):
            raise Unavailable(f"there is no file {location}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except (UserError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        if error.name and (location == error.name or location.startswith(f"{error.name}.")):
            raise Unavailable(f"there is no module {error.name} to import{did_you_mean(location, SOURCES)}") from error
        raise UserError(f"{location} cannot be imported: {error}") from error
    except BaseException as error:
        raise UserError(f"{location} cannot be imported: {type(error).__name__}: {error}") from error


def attribute_of(module: ModuleType, attribute: str, spec: ModelSpec) -> Any:
    """The model or callable named after the colon."""
    try:
        value = getattr(module, attribute)
    except AttributeError as error:
        raise UserError(f"{module.__name__} has no {attribute!r}{did_you_mean(attribute, vars(module))}") from error
    if not callable(value):
        raise UserError(f"{spec} has the type {type(value).__name__}; name a model, or a function that returns one")
    return value


def takes(function: Callable[..., Any], argument: str) -> bool:
    """Whether a function has an argument of that name, or accepts any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a built-in function has no signature
        return True
    return any(p.name == argument or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


@contextmanager
def importable(*folders: str) -> Iterator[None]:
    """Within the block, modules in these folders can be imported."""
    before = list(sys.path)
    sys.path[:0] = folders
    try:
        yield
    finally:
        sys.path[:] = before
