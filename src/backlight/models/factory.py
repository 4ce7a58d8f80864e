"""A user's own model: ``package.module:factory`` or ``script.py:factory``, any callable that returns an nn.Module."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import Unavailable, UserError, did_you_mean
from .preprocessing import preprocessing_of, with_preprocessing
from .spelling import SOURCES, Spelling, blaming_arguments

#: Arguments that tell how images are prepared, where the factory does not take them itself.
PREPARING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def from_factory(spelling: Spelling, *, num_classes: int | None) -> nn.Module:
    """What the factory returns, weights as it made them.  The working directory is importable meanwhile.

    ``FILE.py:make?input_size=(3, 32, 32)&mean=(0.5, 0.5, 0.5)&std=(0.5, 0.5, 0.5)`` tells how its images are prepared, where
    the model has no ``pretrained_cfg``; without mean and std they are pixels in [0, 1].
    """
    place, _, attribute = spelling.name.rpartition(":")
    with importable(os.getcwd(), os.path.dirname(place) or os.getcwd()):
        made = attribute_of(imported(place), attribute, spelling)
        prepared = {} if isinstance(made, nn.Module) else {name for name in PREPARING if takes(made, name)}
        told = {n: spelling.arguments.pop(n) for n in PREPARING if n in spelling.arguments and n not in prepared}
        model = made if isinstance(made, nn.Module) else called(made, spelling, num_classes)
    if not isinstance(model, nn.Module):
        raise UserError(f"{spelling} returned {type(model).__name__}, not a torch.nn.Module")
    return with_preprocessing(model, preprocessing_for(model, told)) if told else model


def preprocessing_for(model: nn.Module, told: dict[str, Any]) -> dict[str, Any]:
    """The model's own preprocessing, overruled by what the user told."""
    known = preprocessing_of(model) | told
    if "input_size" not in known:
        raise UserError(f"tell the size of the images too: input_size=(3, 224, 224), besides {', '.join(told)}")
    channels = known["input_size"][0]
    return {"mean": (0.0,) * channels, "std": (1.0,) * channels, "crop_pct": 1.0} | known


def called(factory: Callable[..., Any], spelling: Spelling, num_classes: int | None) -> Any:
    """The factory's result for the user's arguments; UserError where it fails."""
    arguments = dict(spelling.arguments)
    if num_classes is not None:
        if not takes(factory, "num_classes"):
            raise UserError(f"{spelling} takes no num_classes={num_classes}: give the factory such an argument")
        arguments["num_classes"] = num_classes
    try:
        with blaming_arguments(spelling):
            return factory(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{spelling} failed: {type(error).__name__}: {error}") from error


def imported(place: str) -> ModuleType:
    """The module of a dotted name or of a Python file."""
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not os.path.isfile(place):
            raise Unavailable(f"there is no file {place}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise Unavailable(f"there is no module {error.name} to import{did_you_mean(place, SOURCES)}") from error
        raise UserError(f"{place} cannot be imported: {error}") from error
    except Exception as error:
        raise UserError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error


def attribute_of(module: ModuleType, attribute: str, spelling: Spelling) -> Any:
    """The module, or callable, that stands after the colon."""
    try:
        found = getattr(module, attribute)
    except AttributeError as error:
        raise UserError(f"{module.__name__} has no {attribute!r}{did_you_mean(attribute, vars(module))}") from error
    if not callable(found):
        raise UserError(f"{spelling} is a {type(found).__name__}, neither a model nor a function that makes one")
    return found


def takes(function: Callable[..., Any], argument: str) -> bool:
    """Whether a function has an argument of that name, or takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in: it does not say
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
