"""What a study will take: minutes, memory and disk of each cell, from one timed batch of each model."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from backlight.errors import UserError, first_line
from backlight.inputs import to_model
from backlight.study.accuracy import ESTIMATES, Estimates, read_estimates
from backlight.study.cells import write_record
from backlight.study.identities import Identities
from backlight.study.loaded import Loaded
from backlight.study.measure import training_images
from backlight.study.plan import Cell, passes
from backlight.tracing.find import units
from backlight.tracing.trace import evaluating

SAVING = 1.0  # seconds that a result takes to be drawn and saved
DISK = 0.3  # MB of a result, most of it figures: between 0.06 and 0.3 for the models of the demo
MB = 1e6


@dataclass(frozen=True)
class Probe:
    """What one batch of a model took."""

    seconds: float  # for an image, in a forward pass
    megabytes: float  # the highest memory of the process, or of the GPU
    units: int


@dataclass(frozen=True)
class Estimate:
    """What a cell will take; NaN where the model could not be tried."""

    model: str
    analysis: str
    images: int
    passes: float  # forward passes over these images; a backward pass counts as two
    minutes: float
    megabytes: float
    disk: float  # MB
    why: str = ""  # the model could not be tried

    def numbers(self) -> dict[str, float]:
        """The estimates by name."""
        return {
            "images": self.images, "passes": self.passes, "minutes": self.minutes, "memory_mb": self.megabytes,
            "disk_mb": self.disk,
        }  # fmt: skip


def estimates(cells: Sequence[Cell]) -> Iterator[Estimate]:
    """An estimate a cell.  Analyses that share a forward pass share its time."""
    identities = Identities()
    for model in dict.fromkeys(cell.model for cell in cells):
        own = [cell for cell in cells if cell.model == model]
        loaded = Loaded(own[0], identities)
        try:
            probe = tried(loaded, own[0])
        except Exception as error:
            nan = float("nan")
            yield from (Estimate(model, cell.analysis, 0, nan, nan, nan, nan, first_line(error)) for cell in own)
            continue
        for group in passes(own):
            yield from (estimate(cell, probe, len(group)) for cell in group)


def estimate(cell: Cell, probe: Probe, sharing: int = 1) -> Estimate:
    """The estimate of a cell that shares its pass with ``sharing`` - 1 others."""
    count, images = cell.entry.passes_of(cell.settings, probe.units), images_of(cell)
    minutes = (count * images * probe.seconds / sharing + SAVING) / 60
    return Estimate(cell.model, cell.analysis, images, count, minutes, probe.megabytes, DISK)


def images_of(cell: Cell) -> int:
    """How many images the cell goes through."""
    if cell.entry.training_loss is not None:
        return training_images(cell)[0]
    return Identities().data(cell).images


def tried(loaded: Loaded, cell: Cell) -> Probe:
    """The probe of a model: the second of two forward passes of one batch is timed.  Errors: those of a model that fails."""
    reset_peak()
    model = loaded.model
    images = to_model(loaded.first_images(cell), model)
    try:
        count = len(units(model, images[:2]))
    except UserError:  # no residual sums: some analyses have an answer all the same
        count = 0
    with evaluating(model), torch.inference_mode():
        for _ in range(2):
            synchronize(images)
            started = time.perf_counter()
            model(images)
            synchronize(images)
            seconds = time.perf_counter() - started
    return Probe(seconds / len(images), peak(images), count)


def synchronize(images: torch.Tensor) -> None:
    """Wait until the device has nothing left to do."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def reset_peak() -> None:
    """Forget the highest memory so far, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak(images: torch.Tensor) -> float:
    """The highest memory, in MB: of the GPU if the images are on one, else of the process."""
    if images.is_cuda:
        return torch.cuda.max_memory_allocated(images.device) / MB
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MB


def store_estimates(folder: Path, known: Sequence[Estimate]) -> None:
    """Keep the minutes of cells beside the results, so that the study can say how good they were."""
    earlier = read_estimates(folder)
    minutes = {model: dict(own) for model, own in earlier.items()}
    for each in known:
        minutes.setdefault(each.model, {})[each.analysis] = each.minutes
    write_record(folder / ESTIMATES, Estimates(minutes))
