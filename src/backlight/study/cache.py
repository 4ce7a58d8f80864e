"""Results shared between studies: with BACKLIGHT_CACHE=DIR a cell that any study measured is copied, not measured again.

DIR/cells/HASH/ is a result.  The hash is of the model's name, the request and the identity of what was measured.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from backlight.errors import UserError
from backlight.files import atomic_folder
from backlight.results.result import DOCUMENT, read_document
from backlight.study.cells import request_of, result_folder
from backlight.study.identity import Identity, digest
from backlight.study.outcome import Outcome
from backlight.study.plan import Cell

CACHE = "BACKLIGHT_CACHE"


def from_cache(folder: Path, cell: Cell, identity: Callable[[Cell], Identity]) -> Outcome | None:
    """The cell of another study, copied into this one; None if there is none."""
    if (shared := cache()) is None:
        return None
    source, place = shared / key(cell, identity(cell)), result_folder(folder, cell)
    if not (source / DOCUMENT).exists():
        return None
    try:
        read_document(source)
    except UserError:  # it is damaged, and is measured again
        return None
    with atomic_folder(place) as draft:
        shutil.copytree(source, draft, dirs_exist_ok=True)
    return Outcome(cell, skipped=True, place=place)


def to_cache(folder: Path, cell: Cell, identity: Identity | None) -> None:
    """Copy a result into the cache, if there is one."""
    if (shared := cache()) is not None and identity is not None:
        with atomic_folder(shared / key(cell, identity)) as draft:
            shutil.copytree(result_folder(folder, cell), draft, dirs_exist_ok=True)


def cache() -> Path | None:
    """The folder of shared cells; None unless the environment names one."""
    named = os.environ.get(CACHE)
    return Path(named).expanduser() / "cells" if named else None


def key(cell: Cell, identity: Identity) -> str:
    """The name of a cell's folder in the cache."""
    return digest([cell.model, request_of(cell), identity])
