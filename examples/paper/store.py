"""Copies the results of the studies to where the repository holds them: rows and arrays, no figures, no partial results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from analyse import training_of, with_results
from write import HOURS, STORED

from backlight.files import write_atomic
from backlight.model_names.saved import DESCRIPTION, describe
from backlight.study.folder import REQUEST, UNITS

OMITTED = shutil.ignore_patterns(".*", "*.png", "*.pdf")


def store(results: Path, scale: str) -> Path:
    """Replace the stored results of a scale by these, a folder STUDY/MODEL-SEED a training.  Returns their folder."""
    for name, study in with_results(results).items():
        target = STORED / scale / name
        shutil.rmtree(target, ignore_errors=True)
        for units in study.glob(f"*/{UNITS}"):
            training = training_of(json.loads(units.read_text(encoding="utf-8"))["model"])
            shutil.copytree(units.parent, target / training.replace("/", "-"), ignore=OMITTED)
        shutil.copyfile(study / REQUEST, target / REQUEST)
    return STORED / scale


def store_hours(folders: Iterable[Path], scale: str) -> None:
    """Write down how long each training took that is there; others stay as they are."""
    file = STORED / scale / HOURS
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for folder in folders:
        if (folder / DESCRIPTION).exists() and (seconds := describe(folder).seconds):
            known[training_of(str(folder))] = round(seconds / 3600, 3)
    write_atomic(file, f"{json.dumps(dict(sorted(known.items())), indent=1)}\n".encode())
