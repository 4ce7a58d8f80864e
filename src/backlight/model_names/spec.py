"""The parts of a MODEL, written ``SOURCE:NAME?argument=value&...``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from backlight.errors import UserError, did_you_mean

SOURCES = ("torchvision", "hf", "hf-hub", "local-dir", "official", "word")
#: Exceptions with which a model's own code rejects an argument.
REJECTIONS = (TypeError, ValueError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError)


@dataclass(frozen=True)
class ModelSpec:
    """The parts of a MODEL.  ``source`` is empty for a name without a prefix: a registered model, a folder or a factory."""

    source: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The MODEL without its arguments, as messages name it."""
        return f"{self.source}:{self.name}" if self.source else self.name


def parse(text: str) -> ModelSpec:
    """The parts of a MODEL.  Errors: UserError if it has no name or an argument is not name=value.

    >>> parse("word:ccc cca?dim=16&heads=(1, 2)")
    ModelSpec(source='word', name='ccc cca', arguments={'dim': 16, 'heads': (1, 2)})
    """
    address, _, query = text.partition("?")
    prefix, _, rest = address.partition(":")
    source = prefix.replace("hf_hub", "hf-hub")  # timm's older prefix
    source, name = (source, rest) if source in SOURCES else ("", address)
    if not name.strip():
        raise UserError(f"{text!r} names no model")
    return ModelSpec(source, name, arguments(query))


def with_arguments(text: str, more: Mapping[str, Any]) -> str:
    """The MODEL with more arguments; an argument that it already has keeps its value.

    >>> with_arguments("word:cc ca?dim=8", {"dim": 16, "in_chans": 1})
    'word:cc ca?dim=8&in_chans=1'
    """
    missing = [f"{name}={value}" for name, value in more.items() if name not in parse(text).arguments]
    address, _, query = text.partition("?")
    return f"{address}?{'&'.join([*filter(None, [query]), *missing])}" if query or missing else text


def arguments(query: str) -> dict[str, Any]:
    """The arguments after the question mark, as Python values.

    >>> arguments("img_size=32&drop_rate=0.1&class_token=false&global_pool=avg")
    {'img_size': 32, 'drop_rate': 0.1, 'class_token': False, 'global_pool': 'avg'}
    """
    values: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(f"an argument is written name=value, not {part!r}")
        if name in values:
            raise UserError(f"the argument {name} is given twice: {query!r}")
        values[name] = literal(value)
    return values


def literal(text: str) -> Any:
    """A number, truth value, tuple or None as Python writes it (in any case); any other text unchanged.

    >>> literal("(1, 2)"), literal("True"), literal("none"), literal("1e-3"), literal("basic")
    ((1, 2), True, None, 0.001, 'basic')
    """
    text = text.strip()
    try:
        return ast.literal_eval(text.title() if text.lower() in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        return text


@contextmanager
def reporting_bad_arguments(spec: ModelSpec, known: Iterable[str] = ()) -> Iterator[None]:
    """Within the block, an exception that the MODEL's arguments cause becomes a UserError that names them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown and unknown[1] in spec.arguments:
            raise UserError(f"{spec} takes no argument {unknown[1]}{did_you_mean(unknown[1], known)}") from error
        if not spec.arguments or not isinstance(error, REJECTIONS):
            raise
        values = ", ".join(f"{name}={value!r}" for name, value in spec.arguments.items())
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{spec} cannot be built with {values}: {reason}") from error
