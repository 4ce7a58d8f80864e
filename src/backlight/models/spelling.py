"""How a model is spelled: ``SOURCE:NAME?argument=value&...``, and what each part means."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError, did_you_mean

FAULTS = (TypeError, ValueError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError)
SOURCES = ("torchvision", "hf", "hf-hub", "local-dir", "official", "word")


@dataclass(frozen=True)
class Spelling:
    """A MODEL taken apart.  ``source`` is empty for a bare name: a registered model, a folder or a factory."""

    source: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.source}:{self.name}" if self.source else self.name


def parse(spec: str) -> Spelling:
    """Take a MODEL apart; UserError where it cannot be read.

    >>> parse("word:ccc cca?dim=16&heads=(1, 2)")
    Spelling(source='word', name='ccc cca', arguments={'dim': 16, 'heads': (1, 2)})
    """
    place, _, query = spec.partition("?")
    prefix, _, rest = place.partition(":")
    source = prefix.replace("hf_hub", "hf-hub")  # timm's older spelling
    source, name = (source, rest) if source in SOURCES else ("", place)
    if not name.strip():
        raise UserError(f"{spec!r} names no model")
    return Spelling(source, name, arguments(query))


def with_arguments(spec: str, more: Mapping[str, Any]) -> str:
    """The MODEL with these arguments too, but for those that it has already.

    >>> with_arguments("word:cc ca?dim=8", {"dim": 16, "in_chans": 1})
    'word:cc ca?dim=8&in_chans=1'
    """
    missing = [f"{name}={value}" for name, value in more.items() if name not in parse(spec).arguments]
    place, _, query = spec.partition("?")
    return f"{place}?{'&'.join([*filter(None, [query]), *missing])}" if query or missing else spec


def arguments(query: str) -> dict[str, Any]:
    """The arguments after the question mark, as Python values.

    >>> arguments("img_size=32&drop_rate=0.1&class_token=false&global_pool=avg")
    {'img_size': 32, 'drop_rate': 0.1, 'class_token': False, 'global_pool': 'avg'}
    """
    found: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(f"an argument is spelled name=value, not {part!r}")
        if name in found:
            raise UserError(f"the argument {name} is given twice: {query!r}")
        found[name] = literal(value)
    return found


def literal(text: str) -> Any:
    """A number, truth value, tuple or None as Python writes it (any case); any other text as it is.

    >>> literal("(1, 2)"), literal("True"), literal("none"), literal("1e-3"), literal("basic")
    ((1, 2), True, None, 0.001, 'basic')
    """
    text = text.strip()
    try:
        return ast.literal_eval(text.title() if text.lower() in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        return text


@contextmanager
def blaming_arguments(spelling: Spelling, known: Iterable[str] = ()) -> Iterator[None]:
    """Within the block, an exception that the user's arguments cause becomes a UserError that names them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown and unknown[1] in spelling.arguments:
            raise UserError(f"{spelling} takes no argument {unknown[1]}{did_you_mean(unknown[1], known)}") from error
        if not spelling.arguments or not isinstance(error, FAULTS):
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in spelling.arguments.items())
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{spelling} cannot be built with {given}: {reason}") from error
