"""Locks of folders: one process at a time trains into a folder, measures a cell, or changes ``study.json``.

The operating system releases a lock when its process ends, however it ends, so a lock of a dead process holds nobody up.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from backlight.errors import UserError

LOCK = ".lock"  # the end of a lock's name; the file holds the number of the process and the name of its machine


class Busy(UserError):
    """Another process holds the lock."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is in use by {holder}: wait for it, or choose another --out")
        self.holder = holder


@contextmanager
def locked(path: Path, name: str = "", *, wait: bool = False) -> Iterator[None]:
    """Within the block this process alone holds the lock of a folder, or of what ``name`` is in it.

    The folder is made, and removed again if it is still empty.  Errors: Busy, if not to ``wait``; UserError if the lock
    cannot be written.
    """
    file = path / (f".{name}{LOCK}" if name else LOCK)
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise Busy(path / name, holder(file)) from error
    except OSError as error:
        blocked = isinstance(error, (FileExistsError, NotADirectoryError))
        reason = "a file is in the way" if blocked else error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; choose another --out") from error
    try:
        sign(lock, file)
        yield
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)  # before the release: who waits for a file without a name takes a new one
        lock.release()
        with suppress(OSError):
            for folder in absent:
                folder.rmdir()


def sign(lock: FileLock, file: Path) -> None:
    """Write into the lock's file who holds it; where the system has no locks, filelock has done so."""
    if not isinstance(lock, SoftFileLock):
        with suppress(OSError):
            file.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")


def holder(file: Path) -> str:
    """Who holds a lock, in words."""
    try:
        number, machine, *_ = file.read_text(errors="replace").split()
    except (OSError, ValueError):
        return "another process"
    return f"process {number}" + ("" if machine == socket.gethostname() else f" on {machine}")
