"""Where computation runs: the device and type of a model, devices and types by name, processes and cores."""

from __future__ import annotations

import os

import torch
from torch import nn

from backlight.errors import UserError, first_line

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter; the CPU if it has none."""
    first = next(model.parameters(), None)
    return first.device if first is not None else torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of the model's first floating-point parameter, which its images must have; float32 if it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def device_named(name: str) -> torch.device:
    """The device of this name; ``auto`` is the GPU if there is one.  Errors: UserError if it is not available."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not available: {first_line(error)}") from error


def dtype_named(name: str) -> torch.dtype:
    """The floating-point type of this name.  Errors: UserError for a name that is not in DTYPES."""
    if name not in DTYPES:
        raise UserError(f"there is no dtype {name!r}; there are {', '.join(DTYPES)}")
    return DTYPES[name]


def local_device(device: str) -> str:
    """The name of this process's device: under torchrun each process has a GPU of its own."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


def first_process() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
