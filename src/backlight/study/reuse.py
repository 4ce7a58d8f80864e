"""Whether a cell is there already, of the same request, model, images and analysis.  torch is not imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from backlight.errors import UserError
from backlight.progress import Show, quiet
from backlight.records import Damaged
from backlight.study.cells import not_applicable, result_folder, stored
from backlight.study.identities import Identities
from backlight.study.outcome import Outcome
from backlight.study.plan import Cell

T = TypeVar("T")


def reused(folder: Path, cell: Cell, is_same: Callable[[Any], bool], show: Show = quiet) -> Outcome | None:
    """What an earlier run measured; None if there is nothing, or if it cannot be used.

    ``is_same``: whether the stored identity is that of the cell.  Damaged files are shown.
    Errors: UserError if the folder holds the answer to another request.
    """
    if (document := unless_damaged(lambda: stored(folder, cell), show)) is not None:
        same = is_same(document.provenance.get("identity"))
        return Outcome(cell, skipped=True, place=result_folder(folder, cell)) if same else None
    reason = unless_damaged(lambda: not_applicable(folder, cell), show)
    if reason is None or not is_same(reason.identity):
        return None
    return Outcome(cell, error=reason.reason, skipped=True, applicable=False)


def reused_without_loading(folder: Path, cell: Cell, identities: Identities, show: Show) -> Outcome | None:
    """The same, None also where only the loaded model or its images can say it.  Errors: as `reused`."""

    def is_same(identity: Any) -> bool:
        try:
            return identities.is_same(identity, cell)
        except (UserError, OSError):  # measuring it says it
            return False

    return reused(folder, cell, is_same, show)


def unless_damaged(read: Callable[[], T | None], show: Show) -> T | None:
    """What ``read`` returns; None if a file is damaged, which is said: it is then made again."""
    try:
        return read()
    except Damaged as error:
        show(f"{error}: it is made again")
        return None
