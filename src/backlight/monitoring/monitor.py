"""A monitor measures a model while somebody else's loop trains it.

Every N steps it asks what `backlight fourier`, `calibration` and others ask of a finished model, on the same few images each
time, and returns numbers for the log.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backlight.analyses.together import Requested, checked, measured_together
from backlight.comparing.readers import scalars
from backlight.errors import UserError
from backlight.monitoring.untouched import untouched

#: What the numbers of a step are given to: (name -> number, step).
Log = Callable[[Mapping[str, float], int], None]
#: Analyses that only read one forward pass, and share it.
BY_DEFAULT = ("fourier", "variance", "calibration")


class Monitor:
    """Measures a model every so many steps of a training.

    ``images_and_labels``: two tensors, or batches of them (a list or a loader that gives the same each time), prepared as for
    the model.  ``analyses``: names, or name -> settings.  ``log``: functions that get the numbers and the step, such as
    `to_tensorboard`.  ``resamples``: for the intervals, of which the numbers have none; 1 costs nothing.

    The training is as it would be without: random generators, modes, gradients, hooks and buffers stay bit for bit.
    """

    def __init__(
        self,
        model: nn.Module,
        images_and_labels: tuple[Tensor, Tensor] | Iterable[Any],
        *,
        every: int = 500,
        analyses: Requested = BY_DEFAULT,
        log: Log | Sequence[Log] = (),
        batch_size: int = 32,
        resamples: int = 1,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise UserError(f"every is {every}; it must be at least 1 step")
        self.model, self.every, self.analyses = model, every, checked(analyses)
        self.batches = batches_of(images_and_labels, batch_size)
        self.logs: list[Log] = [log] if callable(log) else list(log)
        self.resamples, self.seed = resamples, seed
        self.history: list[dict[str, float]] = []  # a row a measurement: step, seconds, the numbers

    @property
    def seconds(self) -> float:
        """The time that all measurements took so far."""
        return sum(row["seconds"] for row in self.history)

    def step(self, step: int) -> dict[str, float] | None:
        """The numbers after this step of the training if it is one of every ``every``; None otherwise."""
        return None if step % self.every else self.measure(step)

    def measure(self, step: int = 0) -> dict[str, float]:
        """The numbers now, ANALYSIS/NAME -> number; also given to ``log``.

        Analyses that the model has no answer to are left out, with a warning the first time.
        Errors: as the analyses; measure once before the training to have them then.
        """
        started = time.perf_counter()
        with untouched(self.model) as model:
            results, left_out = measured_together(model, self.batches, self.analyses, resamples=self.resamples, seed=self.seed)
        for name, reason in left_out.items():
            warnings.warn(f"the monitor leaves out {name}: {reason}", stacklevel=2)
            del self.analyses[name]
        numbers = {name: number for result in results for name, number in scalars(result).items()}
        self.history.append({"step": step, "seconds": time.perf_counter() - started, **numbers})
        for log in self.logs:
            log(numbers, step)
        return numbers

    def attach(self, optimizer: torch.optim.Optimizer, step: int = 0) -> torch.utils.hooks.RemovableHandle:
        """Measure after steps of this optimizer, counted from ``step``, without a line in the loop; the handle ends it.

        With gradient accumulation or a gradient scaler only real steps count.
        """
        count = step

        def after_step(*_: object) -> None:
            nonlocal count
            count += 1
            self.step(count)

        return optimizer.register_step_post_hook(after_step)


def batches_of(images_and_labels: tuple[Tensor, Tensor] | Iterable[Any], batch_size: int) -> Iterable[Any]:
    """Batches of (images, labels) that can be read again and again.  Errors: UserError for what can be read once only."""
    if isinstance(images_and_labels, tuple) and len(images_and_labels) == 2 and all(map(torch.is_tensor, images_and_labels)):
        images, labels = images_and_labels
        return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    if isinstance(images_and_labels, Iterator):
        raise UserError(
            "a monitor reads its images many times, and an iterator can be read once: give tensors, a list or a loader"
        )
    return images_and_labels
