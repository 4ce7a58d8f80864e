"""A study as a TOML file: the words of the command line at the top, and a table for the settings of each analysis.

models = ["demo-cnn", "demo-vit"]
analyses = ["fourier", "hessian"]    # default: those of every study, and those with a table
limit = 500

[hessian]
batches = 20
models = ["demo-vit"]                # default: all
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backlight.analyses.catalog import CATALOG, entry
from backlight.errors import UserError, first_line
from backlight.settings import options, refuse_unknown
from backlight.study.settings import StudySettings

#: What a study runs unless told otherwise.
BY_DEFAULT = tuple(name for name, each in CATALOG.items() if each.by_default)


@dataclass(frozen=True)
class Config:
    """What a file says, and only that: settings that it leaves out are not there."""

    models: Sequence[str] = ()
    analyses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> settings
    shared: Mapping[str, Any] = field(default_factory=dict)  # of `StudySettings`
    out: str | None = None


def read_config(file: Path) -> Config:
    """The study in a file.  Errors: UserError with the file, the key and what is allowed."""
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not TOML: {first_line(error)}") from error
    shared = {option.name: option for option in options(StudySettings)}
    own = ("models", "analyses", "out")
    tables = {name: document.pop(name) for name in CATALOG if name in document}
    refuse_unknown(document, [*own, *shared, *(f"[{name}]" for name in CATALOG)], str(file))
    models, names = (_names(document[key], f"{file}: {key}") if key in document else [] for key in own[:2])
    if not isinstance(out := document.get("out"), str | None):
        raise UserError(f"{file}: out is {out!r}; it must be the name of a folder")
    return Config(
        models,
        _analyses(names, tables, file),
        {key: shared[key].checked(value, f"{file}: {key}") for key, value in document.items() if key in shared},
        out,
    )


def _analyses(names: Sequence[str], tables: Mapping[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    """The settings of each analysis, checked."""
    for name in names:
        try:
            entry(name)
        except UserError as error:
            raise UserError(f"{file}: analyses: {error}") from error
    requested = names or [name for name in CATALOG if name in tables or name in BY_DEFAULT]
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"{file}: {name} is {table!r}; the settings of an analysis are a table: [{name}]")
        if name not in requested:
            raise UserError(f"{file}: [{name}] has settings, and analyses does not list {name}: add it, or remove the table")
        own = {key: value for key, value in table.items() if key != "models"}
        entry(name).checked(own, f"{file}: [{name}]")
        if "models" in table:
            _names(table["models"], f"{file}: [{name}] models")
    return {name: dict(tables.get(name, {})) for name in requested}


def _names(value: Any, where: str) -> list[str]:
    """Errors: UserError unless these are names."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{where} is {value!r}; it must be a list of names")
    return value
