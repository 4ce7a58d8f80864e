"""The finished pieces of a long computation, each a file, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from .errors import UserError
from .whole import write_whole


class Pieces:
    """Named pieces, mappings of arrays, under ``folder``; those that another request left there are thrown away.

    Without a folder nothing is kept.  A piece is written beside its place and renamed: it is there whole or not at all.
    """

    def __init__(self, folder: Path | None, request: Mapping[str, Any]) -> None:
        self.folder = None
        if folder is None:
            return
        text = json.dumps(request, sort_keys=True, default=str)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        for other in folder.glob("*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)

    def get(self, name: str) -> dict[str, np.ndarray] | None:
        """The piece of this name, or None where it was not finished."""
        try:
            return load_file(self.folder / f"{name}.safetensors") if self.folder else None
        except (OSError, SafetensorError):
            return None

    def put(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a piece.  Errors: UserError where it cannot be written."""
        if self.folder is None:
            return
        try:
            content = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
            write_whole(self.folder / f"{name}.safetensors", content)
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror or error}; what is there is kept") from error
