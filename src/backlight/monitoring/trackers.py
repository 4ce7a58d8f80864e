"""Where the numbers of a monitor go: TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backlight.errors import Unavailable
from backlight.monitoring.monitor import Log

#: Before the name of every number, so that it has a section of its own.
SECTION = "backlight"


def to_tensorboard(writer: Any) -> Log:
    """A log for TensorBoard: a ``SummaryWriter``, or a folder for a new one.  Errors: Unavailable without tensorboard."""
    if isinstance(writer, (str, Path)):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise Unavailable("tensorboard is not installed: pip install 'backlight[tensorboard]'") from error
        writer = SummaryWriter(str(writer))

    def log(numbers: Mapping[str, float], step: int) -> None:
        for name, number in numbers.items():
            writer.add_scalar(f"{SECTION}/{name}", number, step)
        writer.flush()

    return log


def to_wandb(run: Any) -> Log:
    """A log for a run of Weights & Biases, as ``wandb.init`` returns it.

    The numbers have an axis of their own, ``backlight/step``: a ``step=`` beside those that the loop logs would make W&B drop
    whichever comes later with a smaller one.
    """
    run.define_metric(f"{SECTION}/step", hidden=True)
    run.define_metric(f"{SECTION}/*", step_metric=f"{SECTION}/step")

    def log(numbers: Mapping[str, float], step: int) -> None:
        run.log({f"{SECTION}/{name}": number for name, number in numbers.items()} | {f"{SECTION}/step": step})

    return log
