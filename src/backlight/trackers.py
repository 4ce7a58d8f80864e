"""Where else metrics go: TensorBoard or Weights & Biases, through accelerate.  Both are extras."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import tracking

from .errors import UserError, did_you_mean
from .result import plain

TRACKERS = ("tensorboard", "wandb")


def refuse_unknown_tracker(name: str | None) -> None:
    """Errors: UserError if there is no tracker of this name, or it is not installed."""
    if name is None:
        return
    if name not in TRACKERS:
        raise UserError(f"metrics can go to {' or '.join(TRACKERS)}, not to {name!r}{did_you_mean(name, TRACKERS)}")
    if not getattr(tracking, f"is_{name}_available")():
        raise UserError(f"{name} is not installed: pip install 'backlight[{name}]', or leave out --log")


def tracker(name: str | None, folder: Path, config: Mapping[str, Any]) -> Any:
    """accelerate's tracker of this name, begun; None where none is wanted."""
    if name is None:
        return None
    if name == "tensorboard":
        found: Any = tracking.TensorBoardTracker("tensorboard", logging_dir=str(folder))
    else:
        found = tracking.WandBTracker("backlight", name=folder.name, dir=str(folder))
    found.start()
    found.store_init_configuration(plain({key: str(value) for key, value in config.items()}))
    return found
