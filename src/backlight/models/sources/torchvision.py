"""Classification models of torchvision, with the preprocessing with which their weights were evaluated."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torchvision
from torch import nn

from backlight.data.preprocessing import with_pretrained_cfg
from backlight.errors import UserError, did_you_mean
from backlight.model_names.spec import ModelSpec, reporting_bad_arguments
from backlight.models.sources.hub import from_address


def torchvision_names() -> list[str]:
    """The names of torchvision's classification models."""
    return torchvision.models.list_models(module=torchvision.models)


def from_torchvision(spec: ModelSpec, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """The torchvision model ``spec.name``; ``?weights=IMAGENET1K_V1`` selects weights other than its default ones."""
    name, arguments = spec.name, dict(spec.arguments)
    if name not in torchvision_names():
        raise UserError(f"torchvision has no model {name!r}{did_you_mean(name, torchvision_names())}")
    weights = weights_of(name, arguments.pop("weights", "DEFAULT"))
    size = arguments.pop("img_size", None)
    if size and name.startswith("vit_"):
        arguments["image_size"] = size  # torchvision's name; its other models take any size
    if pretrained:
        arguments["weights"] = weights
    elif num_classes is not None:
        arguments["num_classes"] = num_classes
    files = from_address(str(spec), weights.url, check_hash=True) if pretrained else nullcontext()
    with files, reporting_bad_arguments(spec):
        model = torchvision.models.get_model(name, **arguments)
    own_classes = len(weights.meta["categories"])
    classes = own_classes if num_classes is None else num_classes
    if pretrained and classes != own_classes:
        replace_head(model, own_classes, classes)
    return with_pretrained_cfg(model, preprocessing(weights, size) | {"num_classes": classes})


def weights_of(name: str, tag: str) -> Any:
    """The weights ``tag`` of a torchvision model, or its default ones for ``"DEFAULT"``."""

    known = torchvision.models.get_model_weights(name)
    if tag not in known.__members__ and tag != "DEFAULT":
        raise UserError(f"torchvision's {name} has no weights {tag!r}, only {', '.join(known.__members__)}")
    return getattr(known, tag)


def preprocessing(weights: Any, size: int | None) -> dict[str, Any]:
    """The preprocessing in timm's words (``pretrained_cfg``), from torchvision's evaluation transform."""
    transforms = weights.transforms()
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    return {
        "input_size": (3, size or crop, size or crop),
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "interpolation": transforms.interpolation.value,
        "crop_pct": crop / resize,
        "crop_mode": "center",
    }


def replace_head(model: nn.Module, old: int, new: int) -> None:
    """Replace the last layer with ``old`` outputs by a new one with ``new`` outputs."""
    name, head = next(
        (name, module)
        for name, module in reversed(list(model.named_modules()))
        if old in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    )
    if isinstance(head, nn.Linear):
        layer: nn.Module = nn.Linear(head.in_features, new, bias=head.bias is not None)
    else:
        layer = nn.Conv2d(head.in_channels, new, head.kernel_size)  # SqueezeNet ends in a 1x1 convolution
    model.set_submodule(name, layer)
