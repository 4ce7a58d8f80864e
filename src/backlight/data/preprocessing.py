"""How a model wants its images: read from its ``pretrained_cfg``, applied to images, and kept on the model.

``pretrained_cfg`` is the dict in which timm keeps input size, mean, standard deviation, interpolation and crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from backlight.data.image_set import own_colours, pixels
from backlight.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey (ITU-R 601), as in Pillow's "L"
SETTINGS = ("mean", "std", "interpolation", "crop_pct", "crop_mode")  # as timm's create_transform names them
#: What is assumed where ``pretrained_cfg`` does not say it: an image of the model's size keeps its pixels, in [0, 1].
ASSUMED: dict[str, Any] = {
    "mean": (0.0,), "std": (1.0,), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center",
}  # fmt: skip


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """How the model wants its images: input_size [C, H, W], interpolation, mean, std, crop_pct, crop_mode, colours.

    It is ``pretrained_cfg``, except where the model was built for another size or number of channels: `adjusted` lists
    what differs.  `assumed` lists what it does not say: an image of the model's size is then not cropped, and its pixels
    are in [0, 1].
    Errors: UserError for a model without ``pretrained_cfg`` or input size, or with other than 1 or 3 channels.
    """
    from timm.data import resolve_data_config

    kind, cfg = type(model).__name__, getattr(model, "pretrained_cfg", None)
    if not cfg:
        raise UserError(
            f"{kind} has no pretrained_cfg, so its preprocessing is unknown: set one (a dict of input_size, mean, std,"
            " interpolation, crop_pct), or write NAME?input_size=(3, 224, 224)&mean=...&std=..., or give a transform"
        )
    cfg = cfg if isinstance(cfg, dict) else cfg.to_dict()
    size = built_size(model)
    if size is None and not cfg.get("input_size"):
        raise UserError(
            f"the size of {kind}'s images is missing: add input_size=(3, 224, 224) to its pretrained_cfg, or to the MODEL"
            " after a question mark"
        )
    assumed = [key for key in SETTINGS if cfg.get(key) is None]
    config = resolve_data_config({}, pretrained_cfg=cfg | {key: ASSUMED[key] for key in assumed})
    size = size or list(config["input_size"][1:])
    channels = built_channels(model, cfg) or config["input_size"][0]
    if channels not in (1, 3):
        raise UserError(f"{kind} takes {channels} channels and images have 1 or 3: give a transform")
    mean, std = (of_channels(config[key], channels) for key in ("mean", "std"))
    adjusted = {"input_size": [channels, *size], "mean": mean, "std": std}
    return {
        **adjusted,
        **{key: config[key] for key in ("interpolation", "crop_pct", "crop_mode")},
        "colours": "RGB" if channels == 3 else "L",
        "adjusted": [key for key, value in adjusted.items() if key not in assumed and value != list(config[key])],
        "assumed": assumed,
    }


def preparation(
    model: nn.Module | None, transform: Callable[[Image.Image], Tensor] | None
) -> tuple[Callable[[Image.Image], Tensor], dict[str, Any]]:
    """The function from a PIL image to a tensor (C, H, W), and a record of it in plain values.

    It is the transform if there is one, else the model's preprocessing, else pixels in [0, 1].
    """
    from timm.data import create_transform

    if transform is not None:
        colours = preprocessing(model)["colours"] if model is not None and hasattr(model, "pretrained_cfg") else None
        name = getattr(transform, "__qualname__", repr(transform))
        return (
            partial(in_colours, colours=colours, then=transform),
            dict.fromkeys(SETTINGS) | {"transform": name, "colours": colours},
        )
    if model is None:
        return raw_pixels, dict.fromkeys(SETTINGS) | {"colours": None}
    record = preprocessing(model)
    then = create_transform(tuple(record["input_size"]), is_training=False, **{key: record[key] for key in SETTINGS})
    return partial(in_colours, colours=record["colours"], then=then), record


def in_colours(image: Image.Image, *, colours: str | None, then: Callable[[Image.Image], Tensor]) -> Tensor:
    """``then`` of the image converted to "RGB" or "L"; with None, to whichever the image is nearer to."""
    colours = colours or own_colours(image)
    return then(image if image.mode == colours else image.convert(colours))


def raw_pixels(image: Image.Image) -> Tensor:
    """The pixels of an image.  Shapes: (C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(pixels(image)).permute(2, 0, 1).float().div(255)


def pretrained_cfg_of(model: nn.Module) -> dict[str, Any]:
    """A copy of the model's ``pretrained_cfg``; empty if it has none."""
    return deepcopy(getattr(model, "pretrained_cfg", None) or {})


def with_pretrained_cfg(model: nn.Module, cfg: dict[str, Any]) -> nn.Module:
    """The model, with this dict under both of timm's names, ``pretrained_cfg`` and ``default_cfg``."""
    model.__dict__.update(pretrained_cfg=cfg, default_cfg=cfg)
    return model


def with_built_size(model: nn.Module, arguments: dict[str, Any]) -> nn.Module:
    """The model, its ``pretrained_cfg`` with the img_size and in_chans among the arguments that it was built with."""
    cfg = pretrained_cfg_of(model)
    channels, *size = cfg.get("input_size", (3, 224, 224))
    if side := arguments.get("img_size"):
        size = [side, side] if isinstance(side, int) else list(side)
        cfg.pop("test_input_size", None)
    return with_pretrained_cfg(model, cfg | {"input_size": (arguments.get("in_chans", channels), *size)})


def built_size(model: nn.Module) -> list[int] | None:
    """[H, W] that the model was built for, None if unknown.  A ViT built with img_size=32 keeps 224 in its pretrained_cfg."""
    for owner, name in ((getattr(model, "patch_embed", None), "img_size"), (model, "img_size"), (model, "image_size")):
        size = getattr(owner, name, None)
        if isinstance(size, int):
            return [size, size]
        if isinstance(size, Sequence) and len(size) == 2:
            return [int(side) for side in size]
    return None


def built_channels(model: nn.Module, cfg: dict[str, Any]) -> int | None:
    """Input channels of the layer that ``pretrained_cfg`` calls the first convolution; None if that does not say.

    A layer before it may fold blocks of pixels into channels, as in TResNet: then they are not the images'.
    """
    first = cfg.get("first_conv")
    name = first if isinstance(first, str) else first[0] if first else ""
    try:
        channels = getattr(model.get_submodule(name), "in_channels", None) if name else None
    except AttributeError:
        return None
    leaves = (path for path, module in model.named_modules() if not list(module.children()))
    return None if channels and channels > 3 and next(leaves, name) != name else channels


def of_channels(statistic: Sequence[float], channels: int) -> list[float]:
    """The mean or standard deviation of each channel, converted from 3 channels to 1 or from 1 to 3.

    The mean of grey is the LUMA-weighted sum of the three means.  For the standard deviation this sum is an upper bound,
    reached if the channels are fully correlated; in photographs they nearly are.
    """
    if len(statistic) == channels:
        return list(statistic)
    if len(statistic) == 1:
        return list(statistic) * channels
    return [math.fsum(weight * value for weight, value in zip(LUMA, statistic, strict=True))]
