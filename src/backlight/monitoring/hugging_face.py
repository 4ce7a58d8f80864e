"""A monitor in a training of Hugging Face's Trainer: ``trainer.add_callback(MonitorCallback(monitor, trainer))``."""

from __future__ import annotations

from typing import Any

from backlight.errors import Unavailable
from backlight.monitoring.monitor import Monitor
from backlight.monitoring.trackers import SECTION

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise Unavailable("transformers is not installed: pip install 'backlight[hf]'") from error


class MonitorCallback(TrainerCallback):
    """Measures after optimizer steps, by the trainer's global step, and logs the numbers as the trainer logs its loss.

    In a distributed training only the first process measures.
    """

    def __init__(self, monitor: Monitor, trainer: Any) -> None:
        self.monitor, self.trainer = monitor, trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure if the global step is one of the monitor's."""
        if state.is_world_process_zero and (numbers := self.monitor.step(state.global_step)):
            loss_is_due = control.should_log  # which any call of `log` takes back
            self.trainer.log({f"{SECTION}/{name}": number for name, number in numbers.items()})
            control.should_log = loss_is_due
