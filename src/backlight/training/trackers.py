"""TensorBoard and Weights & Biases as further places for the metrics, through accelerate.  Both are optional extras."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import tracking

from backlight.errors import UserError
from backlight.records import plain


def refuse_missing_tracker(name: str | None) -> None:
    """Errors: UserError if the tracker is not installed."""
    if name is not None and not getattr(tracking, f"is_{name}_available")():
        raise UserError(f"{name} is not installed: pip install 'backlight[{name}]', or leave out --log")


def start_tracker(name: str | None, folder: Path, config: Mapping[str, Any]) -> Any:
    """The tracker of this name, started; None without a name."""
    if name is None:
        return None
    if name == "tensorboard":
        tracker: Any = tracking.TensorBoardTracker("tensorboard", logging_dir=str(folder))
    else:
        tracker = tracking.WandBTracker("backlight", name=folder.name, dir=str(folder))
    tracker.start()
    tracker.store_init_configuration(plain({key: str(value) for key, value in config.items()}))
    return tracker
