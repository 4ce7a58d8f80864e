"""What a user knows better than the search for units: kinds, stages and branches.  torch is not imported.

Corrections belong to a model object: `correct` gives them to it, and every later search for its residual units applies them.
A copy of the model has none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from backlight.errors import UserError, did_you_mean, first_line
from backlight.tracing.kinds import LETTER

if TYPE_CHECKING:
    from torch import nn

    from backlight.tracing.tap import Tap, Unit

Key = int | str  # the index of a unit, or its module, which stands for every unit that has it
TABLES = ("kinds", "stages", "branches")


@dataclass(frozen=True)
class Corrections:
    """Unit -> kind, stage, or the modules whose outputs add up to its branch.

    Errors: UserError, after ``where``, for a value that is no kind, stage, or list of modules.
    """

    kinds: Mapping[Key, str] = field(default_factory=dict)
    stages: Mapping[Key, int] = field(default_factory=dict)
    branches: Mapping[Key, Sequence[str]] = field(default_factory=dict)
    where: str = ""  # the file, as sentences name it

    def __post_init__(self) -> None:
        for key, kind in self.kinds.items():
            if not isinstance(kind, str) or kind not in LETTER:
                hint = did_you_mean(str(kind), LETTER)
                raise self.error("kinds", f"{key} is {kind!r}; a kind is one of {', '.join(LETTER)}{hint}")
        for key, stage in self.stages.items():
            if type(stage) is not int or stage < 0:
                raise self.error("stages", f"{key} is {stage!r}; a stage is a whole number, counted from 0")
        for key, modules in self.branches.items():
            if not is_names(modules):
                raise self.error("branches", f"{key} is {modules!r}; a branch is a list of one or more names of modules")

    def error(self, table: str, sentence: str) -> UserError:
        """The error for a table: file, table, sentence."""
        return UserError(f"{self.begin(table)}{sentence}")

    def begin(self, table: str) -> str:
        """What a sentence about a table begins with."""
        return f"{self.where and f'{self.where}: '}{table}: "

    def record(self) -> dict[str, dict[str, Any]]:
        """As JSON holds it; only the tables with entries."""
        tables = {name: {str(key): value for key, value in getattr(self, name).items()} for name in TABLES}
        tables["branches"] = {key: list(modules) for key, modules in tables["branches"].items()}
        return {name: table for name, table in tables.items() if table}


def is_names(value: Any) -> bool:
    """Whether this is a list of one or more names."""
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return listed and all(isinstance(name, str) for name in value)


# --- the corrections of a model

_GIVEN: WeakKeyDictionary[nn.Module, Corrections] = WeakKeyDictionary()


def correct(
    model: nn.Module,
    *,
    kinds: Mapping[Key, str] | None = None,
    stages: Mapping[Key, int] | None = None,
    branches: Mapping[Key, Sequence[str]] | None = None,
) -> None:
    """Correct the units of this model in every analysis; the results record it.  Nothing given: the search alone counts.

    A key is the index of a unit, or its module, which stands for every unit that has it.  kinds: attention, conv and so on;
    stages: numbers from 0; branches: the modules whose outputs add up to the branch.
    Errors: UserError for a value that is none of these; where units are searched, for a unit or module that is not there.
    """
    attach(model, Corrections(kinds or {}, stages or {}, branches or {}))


def attach(model: nn.Module, corrections: Corrections) -> None:
    """Give corrections to a model, in the place of those that it has."""
    from backlight.tracing.trace import inside

    _GIVEN[inside(model)] = corrections


def corrections_of(model: nn.Module) -> Corrections:
    """The corrections that a model has."""
    from backlight.tracing.trace import inside

    return _GIVEN.get(inside(model), Corrections())


def corrected(
    model_units: Sequence[Unit], corrections: Corrections, output: Callable[[str, str], tuple[Tap, str]]
) -> list[Unit]:
    """The units with these corrections.  ``output``: a module and what an error begins with -> its output, and its kind.

    Errors: UserError for a key that is no unit, or what ``output`` raises.
    """
    kinds, stages, branches = (_by_index(name, model_units, corrections) for name in TABLES)
    result = []
    for unit in model_units:
        if unit.index in branches:
            modules = branches[unit.index]
            unit = _with_branch(unit, [output(module, corrections.begin("branches")) for module in modules])
        if kinds.get(unit.index, unit.kind) != unit.kind:
            kind = kinds[unit.index]
            unit = replace(unit, kind=kind, kinds=(kind,) * len(unit.branch))
        result.append(replace(unit, stage=stages.get(unit.index, unit.stage)))
    return result


def _with_branch(unit: Unit, outputs: Iterable[tuple[Tap, str]]) -> Unit:
    """The unit with these outputs and their kinds."""
    taps, kinds = zip(*outputs, strict=True)
    return replace(unit, branch=taps, kinds=kinds, kind=kinds[0] if len(set(kinds)) == 1 else "parallel")


def _by_index(table: str, model_units: Sequence[Unit], corrections: Corrections) -> dict[int, Any]:
    """A table by the index of the units.  An index is more specific than a module, so it counts."""
    modules = {unit.module: [u.index for u in model_units if u.module == unit.module] for unit in model_units}
    by_module: dict[int, Any] = {}
    by_number: dict[int, Any] = {}
    for key, value in getattr(corrections, table).items():
        if key in modules:
            by_module |= dict.fromkeys(modules[str(key)], value)
        elif type(key) is int and 0 <= key < len(model_units):
            by_number[key] = value
        elif isinstance(key, str):
            raise corrections.error(table, f"the model has no unit of the module {key!r}{did_you_mean(key, modules)}")
        else:
            raise corrections.error(table, f"the model has {len(model_units)} units, counted from 0, and no unit {key!r}")
    return by_module | by_number


# --- files


def read_corrections(file: Path) -> tuple[str | None, Corrections]:
    """The model that a TOML file names, None if it names none, and the file's tables [kinds], [stages] and [branches].

    Errors: UserError, with the file and the key, if it cannot be read, is no TOML, or has anything else.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
        tables = {name: dict(dotted(table)) if isinstance(table, dict) else table for name, table in document.items()}
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not TOML, or is nested too deeply: {first_line(error)}") from error
    model = tables.pop("model", None)
    if model is not None and not isinstance(model, str):
        raise UserError(f"{file}: model is {model!r}; it must be the name of a model")
    for name, table in tables.items():
        if name not in TABLES or not isinstance(table, dict):
            raise UserError(f"{file} has {name!r}; it may have model, and the tables [kinds], [stages] and [branches]")
    by_key = {name: {unit_key(key): value for key, value in table.items()} for name, table in tables.items()}
    return model, Corrections(**by_key, where=str(file))


def dotted(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of a table; those of a table in it, which TOML makes of a name with dots, by their whole name."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", each) for inner, each in dotted(value))
        else:
            yield key, value


def unit_key(key: str) -> Key:
    """The index of a unit, or its module, as a file writes it.

    >>> unit_key("3"), unit_key("blocks.3")
    (3, 'blocks.3')
    """
    return int(key) if key.isdecimal() and len(key) < 10 else key


def corrections_in(files: Sequence[str]) -> dict[str, Corrections]:
    """The corrections in files by the model that each names.  Errors: UserError for a file without a model, or for two."""
    by_model: dict[str, Corrections] = {}
    for file in files:
        model, corrections = read_corrections(Path(file))
        if model is None:
            raise UserError(f'{file} names no model: write model = "NAME" above its tables')
        if model in by_model:
            raise UserError(f"{file}: model is {model!r}, which {by_model[model].where} corrects already: use one file")
        by_model[model] = corrections
    return by_model
