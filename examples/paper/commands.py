"""The command that measures a statement, or trains what it lacks."""

from __future__ import annotations

from typing import Any

from analyse import STUDIES, train_command
from evidence import END, WARMUP, Decided
from series import HERE, read

from backlight.study.config import read_config


def command_of(statement: Decided, scale: str) -> str:
    """The command of a statement: what measures it, or what would."""
    if statement.untested:
        return str(statement.row["command"])
    if statement.absent:
        return train_command(" ".join(f"{name}/0" for name in statement.absent), scale)
    return measure_command(statement, scale)


def measure_command(statement: Decided, scale: str) -> str:
    """The analysis of the models of a statement, with the settings of its study."""
    study = study_of(statement)
    config = read_config(HERE / "studies" / f"{study}.toml")
    names = statement.models[0] if len(statement.models) == 1 else f"{{{','.join(statement.models)}}}"
    moment = read("studies.toml")["moment"].get(study)
    folders = "/".join(filter(None, ["runs/paper", scale, names, "seed-*", moment]))
    return f"backlight {statement.analysis} {folders} --data FOLDER {flags(statement.analysis, config)}".rstrip()


def study_of(statement: Decided) -> str:
    """The study that has the analysis of a statement at its moment of training."""
    if statement.row.get("moment", END) == WARMUP:
        return WARMUP
    return next(
        name for name in STUDIES
        if name != WARMUP and statement.analysis in read_config(HERE / "studies" / f"{name}.toml").analyses
    )  # fmt: skip


def flags(analysis: str, config: Any) -> str:
    """The settings of a study as options of the command of one of its analyses."""
    own = config.analyses[analysis]
    shared = {} if "batches" in own else config.shared
    return " ".join(f"--{name.replace('_', '-')} {_value(value)}" for name, value in {**own, **shared}.items())


def _value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
