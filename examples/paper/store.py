"""Copies the results of the studies to where the repository holds them: rows and arrays, no figures, no partial results."""

from __future__ import annotations

import shutil
from pathlib import Path

from analyse import with_results
from write import STORED


def store(results: Path, scale: str) -> Path:
    """Replace the stored results of a scale by these.  Returns their folder."""
    folder = STORED / scale
    for name, study in with_results(results).items():
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(study, folder / name, ignore=shutil.ignore_patterns(".*", "*.png", "*.pdf", "*.html"))
    return folder
