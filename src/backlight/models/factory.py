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
from .spelling import SOURCES, Spelling, blaming_arguments


def from_factory(spelling: Spelling, *, num_classes: int | None) -> nn.Module:
    """What the factory returns, weights as it made them.  The working directory is importable meanwhile."""
    place, _, attribute = spelling.name.rpartition(":")
    with importable(os.getcwd(), os.path.dirname(place) or os.getcwd()):
        made = attribute_of(imported(place), attribute, spelling)
        model = made if isinstance(made, nn.Module) else called(made, spelling, num_classes)
    if not isinstance(model, nn.Module):
        raise UserError(f"{spelling} returned {type(model).__name__}, not a torch.nn.Module")
    return model


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
