"""A saved model's folder, without its weights: ``model.json`` says how to build the architecture."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backlight.errors import UserError
from backlight.records import Record, read_record

DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
BUNDLED = Path(__file__).parents[1] / "assets" / "models"  # the models of the demo


@dataclass(frozen=True)
class SavedModel(Record):
    """What ``model.json`` holds."""

    record = "model"
    version = 1

    model: str  # the MODEL from which the architecture is built
    num_classes: int | None
    preprocessing: dict[str, Any]
    classes: list[str] | None = None
    surgery: list[Any] = field(default_factory=list)
    weights_sha256: str | None = None  # None: an architecture without weights
    test: dict[str, list[float]] = field(default_factory=dict)  # metric -> value, low, high
    seconds: float | None = None  # of its training
    facts: dict[str, Any] = field(default_factory=dict)  # what else is known of its training


def describe(folder: Path) -> SavedModel:
    """The contents of ``model.json``.  Errors: UserError if it cannot be read."""
    description = read_record(folder / DESCRIPTION, SavedModel)
    if description is None:
        raise UserError(f"{folder} holds no {DESCRIPTION}: it is not a model that `backlight train` wrote")
    return description


def saved_folder(name: str) -> Path | None:
    """The folder of a saved model: a demo model by its short name, or a path; None if ``name`` is neither."""
    for folder in (BUNDLED / name, Path(name).expanduser()):
        if os.path.isfile(folder / DESCRIPTION):  # unlike Path.is_file, no error for a name that cannot be a path
            return folder
    return None


def bundled_names() -> list[str]:
    """The short names of the models in the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{DESCRIPTION}"))
