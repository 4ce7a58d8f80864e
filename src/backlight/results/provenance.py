"""Where a result comes from: versions, hardware, hashes of weights and data, and every setting."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from backlight.devices import device_of, dtype_of
from backlight.results.versions import versions
from backlight.tracing.corrections import corrections_of
from backlight.tracing.repeat import caution_of

#: The attribute with the hash of a model's random weights.  Training changes the weights, and the mark no longer fits.
UNTRAINED = "untrained_sha256"


def mark_untrained(model: nn.Module) -> nn.Module:
    """The model, marked as one of random weights."""
    setattr(model, UNTRAINED, weights_sha256(model))
    return model


def provenance(model: nn.Module, data: Iterable[Any], *, images: int, **settings: Any) -> dict[str, Any]:
    """Everything that is needed to repeat a measurement, as a mapping that JSON can hold."""
    device = device_of(model)
    sha256 = weights_sha256(model)
    cautions = "untrained: random weights" if getattr(model, UNTRAINED, None) == sha256 else "", caution_of(model)
    corrections = {} if settings.get("at") else corrections_of(model).record()  # of units, and not of modules by name
    return {
        **({"caution": caution} if (caution := "; ".join(filter(None, cautions))) else {}),
        "images": images,
        "settings": settings,
        "data": dict(getattr(data, "provenance", {})),
        **({"corrections": corrections} if corrections else {}),
        "model": {"parameters": sum(p.numel() for p in model.parameters()), "weights_sha256": sha256},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})",
        "dtype": str(dtype_of(model)).removeprefix("torch."),
        "versions": versions(),
    }


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
