"""Atomic writes, and partial results built on them.

A file or folder is written under another name in the same folder and then renamed, so that a killed process leaves the old
one or the new one, never half of it.  A long computation saves its parts this way, and resumes with the parts that exist.
The name of a draft holds its process and machine, so that drafts of processes that no longer run can be removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from backlight.errors import UserError
from backlight.locks import LOCK
from backlight.records import is_ours


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file, or replace it; its folder is made.  Errors: OSError, and then no draft stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(draft_name(path))
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


#: A folder with one of these files was written by Backlight, and a newer one may replace it.
OURS = ("result.json", "model.json")

#: Seconds after which a draft of another machine belongs to a killed run; writing a draft takes seconds.
STALE = 3600
#: What `draft_name` gives: process and machine.
DRAFT = re.compile(r"\..*\.draft-(\d+)@([^@]*)@.*", re.DOTALL)


def draft_name(path: Path) -> str:
    """The name under which this process writes a file or folder."""
    return f".{path.name}.draft-{os.getpid()}@{socket.gethostname()}@"


def clear_drafts(paths: Iterable[Path]) -> None:
    """Remove those of these files and folders that are drafts, and whose process no longer runs."""
    for path in paths:
        if (draft := DRAFT.fullmatch(path.name)) and is_left_over(path, int(draft[1]), draft[2]):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def is_left_over(draft: Path, process: int, machine: str) -> bool:
    """Whether the process of a draft has ended; on another machine, whether the draft is old."""
    if machine == socket.gethostname():
        return not runs(process)
    try:
        return time.time() - draft.stat().st_mtime > STALE
    except OSError:
        return False


def runs(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


class atomic_folder:
    """A context manager that gives a draft folder; it replaces ``folder`` if the block succeeds and is deleted if it raises.

    Errors: UserError if the folder cannot be written, or holds something that Backlight did not write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def __enter__(self) -> Path:
        refuse_unwritable(self.folder)
        clear_drafts(path for path in self.folder.parent.iterdir() if path.name.startswith(f".{self.folder.name}.draft-"))
        self.draft = Path(tempfile.mkdtemp(prefix=draft_name(self.folder), dir=self.folder.parent))
        return self.draft

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self._replace_folder()
        except OSError as failure:
            error = failure
        finally:
            shutil.rmtree(self.draft, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {self.folder}: {error.strerror or error}; nothing was left behind") from error

    def _replace_folder(self) -> None:
        """Two renames, so that no reader sees half a folder."""
        self.draft.chmod(0o755)
        if self.folder.exists():
            old = self.draft.with_name(self.draft.name + "-old")
            os.replace(self.folder, old)
            os.replace(self.draft, self.folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(self.draft, self.folder)


def refuse_unwritable(folder: Path) -> None:
    """Check that a folder can be written.  Errors: UserError if not, or if it holds what Backlight did not write."""
    folder = folder.resolve()
    refuse_foreign(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    except OSError as error:
        raise unwritable(folder, error) from error


def refuse_foreign(folder: Path, marks: Sequence[str] = OURS) -> None:
    """Errors: UserError if the folder holds anything but a lock, and none of these files of Backlight."""
    try:
        holds_anything = folder.exists() and any(path.name != LOCK for path in folder.iterdir())
    except OSError as error:
        raise unwritable(folder, error) from error
    if holds_anything and not any(is_ours(folder / name) for name in marks):
        raise UserError(f"{folder} holds what Backlight did not write; choose another --out, or empty it")


def unwritable(folder: Path, error: OSError) -> UserError:
    """The error for a folder that cannot be written."""
    blocked = isinstance(error, (FileExistsError, NotADirectoryError))
    reason = "a file is in the way" if blocked else error.strerror or error
    return UserError(f"cannot write {folder}: {reason}; choose another --out")


class PartialResults:
    """Named parts of a computation, each a mapping of arrays, saved under ``folder`` so that the computation can resume.

    A part is a safetensors file after its own sha256.  The parts of another request in this folder are deleted.  Without a
    folder nothing is saved.
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
        """The part of this name; None if it was not finished, or is damaged."""
        try:
            content = self._path(name).read_bytes() if self.folder else b""
        except OSError:
            return None
        return load(content[32:]) if hashlib.sha256(content[32:]).digest() == content[:32] else None

    def put(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Save a part.  Errors: UserError if it cannot be written."""
        if self.folder is None:
            return
        try:
            content = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
            write_atomic(self._path(name), hashlib.sha256(content).digest() + content)
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror or error}; the parts already saved stay") from error

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.part"
