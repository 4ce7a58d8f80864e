"""Settings: frozen dataclasses whose fields say what they are for, their unit, and which values are allowed.

From a field follow the option of the command line, the key of a study file, and the row of the table in the documentation.  A
public Python function repeats names and defaults, so that editors show them; a test compares.
"""

from __future__ import annotations

import numbers
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from backlight.errors import UserError, did_you_mean

S = TypeVar("S", bound="Settings")
LARGEST = 2**63  # torch and NumPy hold no larger integers


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    choices: Sequence[str] = (),
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    odd: bool = False,
    metavar: str = "",
    repeat: bool = False,
    loads: Literal["", "model", "weights"] = "",
    own_pass: bool = False,
    execution: bool = False,
) -> Any:
    """A field of `Settings`.

    least, most: bounds that are allowed; above, below: bounds that are not.  A tuple's bounds are those of its entries.
    repeat: the command line takes the entries one by one, not in a list with commas.
    loads: the value names a model (or, as a tuple, several), and the analysis receives the model, or its weights.
    own_pass: with a value other than the default the analysis cannot share a forward pass with others.
    execution: it says how the work is done, and changes no number.
    """
    about = {
        "help": help, "choices": tuple(choices), "least": least, "most": most, "above": above, "below": below, "odd": odd,
        "metavar": metavar, "repeat": repeat, "loads": loads, "own_pass": own_pass, "execution": execution,
    }  # fmt: skip
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Settings:
    """Base of all settings.  Errors: UserError for a value of another type, or one that is not allowed."""

    def __post_init__(self) -> None:
        for option in options(type(self)):
            object.__setattr__(self, option.name, option.checked(getattr(self, option.name)))

    @classmethod
    def of(cls: type[S], values: Mapping[str, Any], where: str = "") -> S:
        """Settings from the keys of a file.  Errors: UserError that begins with ``where``, also for an unknown key."""
        refuse_unknown(values, [option.name for option in options(cls)], where)
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{where}: {error}" if where else str(error)) from error


class Option(NamedTuple):
    """One setting: its name, type, default, and what its field says about it."""

    name: str
    type: Any
    default: Any  # MISSING: there is none
    about: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """As the command line writes it."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def optional(self) -> bool:
        """Whether None is allowed."""
        return type(None) in get_args(self.type)

    @property
    def plain(self) -> Any:
        """The type without None."""
        rest = [kind for kind in get_args(self.type) if kind is not type(None)]
        return rest[0] if get_origin(self.type) in (Union, types.UnionType) else self.type

    @property
    def item(self) -> Any:
        """The type of a tuple's entries; None for anything else."""
        return get_args(self.plain)[0] if get_origin(self.plain) is tuple else None

    @property
    def metavar(self) -> str | None:
        """What help shows in the place of the value."""
        if self.about["metavar"] or self.item is None:
            return self.about["metavar"] or None
        return {int: "N,N,...", float: "X,X,...", str: "A,B,..."}[self.item]

    def allowed(self) -> str:
        """The values that are allowed, in words; empty where the type says it all.

        >>> Option("p", int, 1, setting(least=1, odd=True).metadata).allowed()
        'odd, at least 1'
        """
        words = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
        bounds = [f"{word} {self.about[key]:g}" for key, word in words.items() if self.about[key] is not None]
        return " or ".join(self.about["choices"]) or ", ".join([*(["odd"] if self.about["odd"] else []), *bounds])

    def checked(self, value: Any, name: str = "") -> Any:
        """The value in its type, a list as a tuple.  Errors: UserError with what is allowed, under this ``name``."""
        name = name or self.name
        if value is None and self.optional:
            return None
        if self.item is None:
            return self._checked(value, self.plain, name)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{name} is {value!r}; it must be a list of {TYPE_WORDS[self.item][1]}")
        return tuple(self._checked(entry, self.item, name) for entry in value)

    def _checked(self, value: Any, kind: Any, name: str) -> Any:
        kind = str if get_origin(kind) is Literal else kind
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise UserError(f"{name} is too large a number; it must be below 2^63")
        for number, base in ((int, numbers.Integral), (float, numbers.Real)):  # NumPy's too
            if kind is number and isinstance(value, base) and not isinstance(value, bool):
                value = number(value)
        if kind not in (Any, object) and not (isinstance(value, kind) and isinstance(value, bool) <= (kind is bool)):
            allowed = f", {self.allowed()}" if self.allowed() else ""
            raise UserError(f"{name} is {value!r}; it must be {TYPE_WORDS[kind][0]}{allowed}")
        if not all(self._within(value)):
            hint = did_you_mean(str(value), self.about["choices"]) if self.about["choices"] else ""
            raise UserError(f"{name} is {value!r}{hint}; it must be {self.allowed()}")
        return value

    def _within(self, value: Any) -> Iterator[bool]:
        about = self.about
        yield not about["choices"] or value in about["choices"]
        yield about["least"] is None or value >= about["least"]
        yield about["most"] is None or value <= about["most"]
        yield about["above"] is None or about["above"] < value < float("inf")
        yield about["below"] is None or value < about["below"]
        yield not about["odd"] or value % 2 == 1

    def parsed(self, text: str) -> Any:
        """The value of a list that the command line gives with commas.  Errors: UserError.

        >>> Option("severities", tuple[int, ...], (), setting().metadata).parsed("1,3")
        (1, 3)
        """
        try:
            return tuple(self.item(part.strip()) for part in text.split(",") if part.strip())
        except ValueError as error:
            raise UserError(
                f"{self.flag} is {text!r}; it must be {TYPE_WORDS[self.item][1]} with commas between them"
            ) from error


def refuse_unknown(keys: Iterable[str], known: Sequence[str], where: str) -> None:
    """Errors: UserError, beginning with ``where``, for the first key that is not known."""
    for key in keys:
        if key not in known:
            hint = did_you_mean(key, known) or f"; there are {', '.join(known)}"
            raise UserError(f"{where}: there is no setting {key!r}{hint if known else ''}")


TYPE_WORDS = {
    bool: ("true or false", ""),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
}


def options(settings: type[Settings]) -> tuple[Option, ...]:
    """The fields of a class of settings."""
    kind: Any = settings  # mypy: the class of a frozen dataclass is not hashable
    return _options(kind)


@cache
def _options(settings: Any) -> tuple[Option, ...]:
    hints = get_type_hints(settings)
    return tuple(Option(f.name, hints[f.name], f.default, f.metadata) for f in fields(settings) if f.metadata)
