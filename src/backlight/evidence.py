"""What a result stands on: versions, hardware, hashes of weights and data, and every setting."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn


def evidence(model: nn.Module, data: Iterable[Any], *, images: int, **settings: Any) -> dict[str, Any]:
    """Plain data that lets somebody else repeat a measurement: a mapping that JSON can hold."""
    device = device_of(model)
    return {
        "images": images,
        "settings": settings,
        "data": dict(getattr(data, "evidence", {})),
        "model": {"parameters": sum(p.numel() for p in model.parameters()), "weights_sha256": weights_sha256(model)},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})",
        "dtype": str(dtype_of(model)).removeprefix("torch."),
        "versions": versions(),
    }


def versions() -> Mapping[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("backlight", "torch", "torchvision", "timm", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def weights_sha256(model: nn.Module) -> str:
    """A hash of every parameter and buffer with its name, type and shape."""
    return sha256({name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)})


def sha256(*several: Mapping[str, torch.Tensor]) -> str:
    """A hash of every number in these tensors, with its tensor's name, type and shape."""
    digest = hashlib.sha256()
    for tensors in several:
        for name, tensor in tensors.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def device_of(model: nn.Module) -> torch.device:
    """Where the model lives; the CPU if it has no parameters."""
    first = next(model.parameters(), None)
    return first.device if first is not None else torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of the model's first floating parameter, in which it wants its images."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
