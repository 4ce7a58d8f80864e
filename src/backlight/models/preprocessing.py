"""What a model wants its images to be, kept on the model as timm keeps it: the dict ``pretrained_cfg``."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn


def preprocessing_of(model: nn.Module) -> dict[str, Any]:
    """A copy of the model's ``pretrained_cfg``, empty where it has none."""
    return deepcopy(getattr(model, "pretrained_cfg", None) or {})


def with_preprocessing(model: nn.Module, cfg: dict[str, Any]) -> nn.Module:
    """The model with this ``pretrained_cfg``, under both of timm's names."""
    model.__dict__.update(pretrained_cfg=cfg, default_cfg=cfg)
    return model


def resized(model: nn.Module, arguments: dict[str, Any]) -> nn.Module:
    """The model, its preprocessing brought in line with the img_size and in_chans that it was built with."""
    cfg = preprocessing_of(model)
    channels, *size = cfg.get("input_size", (3, 224, 224))
    if wanted := arguments.get("img_size"):
        size = [wanted, wanted] if isinstance(wanted, int) else list(wanted)
        cfg.pop("test_input_size", None)
    return with_preprocessing(model, cfg | {"input_size": (arguments.get("in_chans", channels), *size)})
