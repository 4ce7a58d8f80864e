"""A monitor in a Lightning training: ``Trainer(callbacks=[MonitorCallback(monitor)])``.

Both packages, ``lightning`` and ``pytorch_lightning``, have their own base class; the one that is loaded is taken.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from backlight.errors import Unavailable
from backlight.monitoring.monitor import Monitor
from backlight.monitoring.trackers import SECTION

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def callback_class() -> Any:
    """Lightning's Callback: of the package that is imported already, else of one that is installed.  Errors: Unavailable."""
    for name in sorted(PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return import_module(f"{name}.callbacks").Callback
        except ImportError:
            continue
    raise Unavailable("Lightning is not installed: pip install pytorch-lightning")


Callback: Any = callback_class()


class MonitorCallback(Callback):
    """Measures after batches, by the trainer's global step, and gives the numbers to the trainer's loggers.

    In a distributed training only the first process measures.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.measured = -1  # the last step: with gradient accumulation several batches have one

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Measure if the global step is new and one of the monitor's."""
        step = trainer.global_step
        if not trainer.is_global_zero or step == self.measured:
            return
        self.measured = step
        if numbers := self.monitor.step(step):
            for logger in trainer.loggers:
                logger.log_metrics({f"{SECTION}/{name}": number for name, number in numbers.items()}, step=step)
