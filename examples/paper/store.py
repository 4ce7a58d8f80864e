"""Copies the results of the studies to where the repository holds them: rows and arrays, no figures, no partial results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from analyse import training_of, with_results
from write import STORED

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
