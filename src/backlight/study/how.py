"""How a study runs.  torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backlight.progress import Show, quiet


@dataclass(frozen=True)
class How:
    """How a study runs, the same for each worker."""

    folder: Path | None = None
    keep_going: bool = True
    overwrite: bool = False
    show: Show = quiet
