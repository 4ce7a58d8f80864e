"""torchvision's classification models, with the preprocessing that their weights were evaluated with."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn

from ..errors import UserError, did_you_mean
from .hub import checkpoints, fetching, refuse_unreachable
from .preprocessing import with_preprocessing
from .spelling import Spelling, blaming_arguments


def torchvision_names() -> list[str]:
    """The names of torchvision's classification models."""
    return torchvision.models.list_models(module=torchvision.models)


def from_torchvision(spelling: Spelling, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """The model that torchvision calls ``spelling.name``; ``?weights=IMAGENET1K_V1`` picks others than its best."""
    name, arguments = spelling.name, dict(spelling.arguments)
    if name not in torchvision_names():
        raise UserError(f"torchvision has no model {name!r}{did_you_mean(name, torchvision_names())}")
    weights = weights_of(name, arguments.pop("weights", "DEFAULT"))
    size = arguments.pop("img_size", None)
    if size and name.startswith("vit_"):
        arguments["image_size"] = size  # as torchvision calls it; its other models take any size
    if pretrained:
        refuse_unreachable(str(spelling), url=weights.url)
        arguments["weights"] = weights
    elif num_classes is not None:
        arguments["num_classes"] = num_classes
    with fetching(str(spelling), checkpoints()), blaming_arguments(spelling):
        model = torchvision.models.get_model(name, **arguments)
    if pretrained and num_classes not in (None, len(weights.meta["categories"])):
        replace_head(model, len(weights.meta["categories"]), num_classes)
    classes = len(weights.meta["categories"]) if num_classes is None else num_classes
    return with_preprocessing(model, preprocessing(weights, size) | {"num_classes": classes})


def weights_of(name: str, tag: str) -> Any:
    """The torchvision weights of a model called ``tag``."""
    known = torchvision.models.get_model_weights(name)
    if tag not in known.__members__ and tag != "DEFAULT":
        raise UserError(f"torchvision's {name} has no weights {tag!r}, only {', '.join(known.__members__)}")
    return getattr(known, tag)


def preprocessing(weights: Any, size: int | None) -> dict[str, Any]:
    """What timm calls pretrained_cfg, from torchvision's own evaluation transform."""
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
    """Put a fresh layer with ``new`` outputs in the place of the last one with ``old``."""
    name, head = next(
        (name, module)
        for name, module in reversed(list(model.named_modules()))
        if old in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    )
    if isinstance(head, nn.Linear):
        fresh: nn.Module = nn.Linear(head.in_features, new, bias=head.bias is not None)
    else:
        fresh = nn.Conv2d(head.in_channels, new, head.kernel_size)  # SqueezeNet ends in a 1x1 convolution
    model.set_submodule(name, fresh)
