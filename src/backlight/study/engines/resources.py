"""What each of several workers of a machine gets: cores, threads, a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

GPUS = Path("/proc/driver/nvidia/gpus")  # a folder for each, whether or not torch is installed
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Share:
    """The part of one worker."""

    cores: tuple[int, ...]
    visible: dict[str, str]  # the variable that says which GPU it sees


def share(number: int, count: int) -> Share:
    """The cores and the GPU of a worker; cores are shared out evenly, a core to several if there are fewer."""
    cores, gpus = usable_cores(), usable_gpus()
    own = cores[number * len(cores) // count : (number + 1) * len(cores) // count]
    if count > len(cores):
        own = (cores[number % len(cores)],)
    return Share(own, {VISIBLE: gpus[number % len(gpus)]} if gpus else {})


def threads_of(cores: int) -> dict[str, str]:
    """The variables that pin a process to so many threads, unless the user has set one."""
    return {name: os.environ.get(name, str(cores)) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def usable_cores() -> tuple[int, ...]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def usable_gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get(VISIBLE)) is not None:
        return [name for name in visible.split(",") if name]
    return [str(number) for number in range(len(list(GPUS.iterdir())) if GPUS.is_dir() else 0)]


def workers_by_default() -> int:
    """A worker for each of several GPUs; else for every four cores of eight or more; else one."""
    cores, gpus = len(usable_cores()), len(usable_gpus())
    if gpus:
        return gpus
    return cores // 4 if cores >= 8 else 1


def engine_by_default() -> str:
    """The engine of a study that does not name one."""
    workers = workers_by_default()
    return f"processes:{workers}" if workers > 1 else "here"
