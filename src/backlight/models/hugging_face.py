"""Image models of the transformers library, with the preprocessing of their image processor in timm's words."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import Unavailable, UserError
from .hub import fetching, first_line, hub_or_cache
from .preprocessing import with_preprocessing
from .spelling import Spelling, blaming_arguments

# Pillow's codes, which image processors store -> timm's words
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def from_hugging_face(spelling: Spelling, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """The model of a repository or folder in transformers' format; arguments override its configuration.

    A classifier where the repository holds one or ``num_classes`` asks for one, else the bare backbone.
    """
    try:
        from transformers import AutoModel, AutoModelForImageClassification
    except ImportError as error:
        raise Unavailable(f"{spelling} needs the transformers library: pip install 'backlight[hf]'") from error
    config = configuration(spelling, num_classes)
    architectures = config.architectures or ["ForImageClassification"]
    classifies = num_classes is not None or any("ForImageClassification" in name for name in architectures)
    kind, new_head = AutoModelForImageClassification if classifies else AutoModel, num_classes is not None
    with reading(spelling), blaming_arguments(spelling):
        if pretrained:
            model, report = kind.from_pretrained(
                repository(spelling), config=config, ignore_mismatched_sizes=new_head, output_loading_info=True
            )
            warn_random(spelling, [] if new_head else report["missing_keys"])
        else:
            model = kind.from_config(config)
    cfg = preprocessing(spelling, config, pretrained=pretrained) | {"num_classes": config.num_labels}
    return with_preprocessing(model.float(), cfg)


def configuration(spelling: Spelling, num_classes: int | None) -> Any:
    """transformers' configuration of the model, the user's arguments put in; ``img_size`` is its ``image_size``."""
    from transformers import AutoConfig

    overrides = {("image_size" if name == "img_size" else name): value for name, value in spelling.arguments.items()}
    if num_classes is not None:
        overrides["num_labels"] = num_classes
    with reading(spelling, needed="configuration"):
        config, unknown = AutoConfig.from_pretrained(repository(spelling), return_unused_kwargs=True, **overrides)
    if config.model_type == "timm_wrapper":
        raise UserError(f"{spelling} is a timm model: say hf-hub:{spelling.name}")
    if strange := [name for name in unknown if name != "image_size"]:  # a model without it takes any size
        raise UserError(f"{spelling} takes no argument {strange[0]}")
    return config


def repository(spelling: Spelling) -> str:
    """The repository's name, or the folder's path; Unavailable where a path leads nowhere."""
    name = os.path.expanduser(spelling.name)
    if name.startswith((".", "/")) and not os.path.isdir(name):
        raise Unavailable(f"there is no folder {name}")
    return name


@contextmanager
def reading(spelling: Spelling, *, needed: str = "weights") -> Iterator[None]:
    """Within the block, files come from the folder alone, or from the hub and its cache; failures are one sentence."""
    place = repository(spelling)
    local = fetching(str(spelling), place, needed=needed) if os.path.isdir(place) else None
    with local or hub_or_cache(str(spelling), needed=needed), quiet():
        try:
            yield
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{spelling} is no image model that transformers can build: {first_line(error)}") from error


def preprocessing(spelling: Spelling, config: Any, *, pretrained: bool) -> dict[str, Any]:
    """What timm calls pretrained_cfg, from the image processor; ImageNet's, with a warning, where there is none."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from transformers import AutoImageProcessor

    asked = spelling.arguments.get("img_size", spelling.arguments.get("image_size"))
    channels, side = getattr(config, "num_channels", 3), asked or getattr(config, "image_size", 224)
    try:
        with reading(spelling, needed="image processor"):
            told = AutoImageProcessor.from_pretrained(repository(spelling)).to_dict()
    except UserError:
        if pretrained:
            warnings.warn(f"{spelling} has no image processor: ImageNet's mean and std are assumed", stacklevel=2)
        told = {"do_normalize": True, "image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
        told |= {"resample": 3, "size": side}
    if told.get("do_flip_channel_order"):
        raise UserError(f"{spelling} wants its colours as BGR, which Backlight does not read; timm may have it as RGB")
    size, crop_pct, crop_mode = geometry({"size": side} | told)
    return {
        "input_size": (channels, *(pair(asked) if asked else size)),
        "mean": tuple(told["image_mean"]) if told.get("do_normalize") else (0.0,) * channels,
        "std": tuple(told["image_std"]) if told.get("do_normalize") else (1.0,) * channels,
        "interpolation": INTERPOLATIONS[int(told.get("resample", 2))],
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
    }


def geometry(told: Mapping[str, Any]) -> tuple[tuple[int, int], float, str]:
    """(height, width) of the input, and timm's crop_pct and crop_mode, from what an image processor says of itself.

    >>> geometry({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}})
    ((224, 224), 0.875, 'center')
    >>> geometry({"size": {"height": 224, "width": 224}})
    ((224, 224), 1.0, 'squash')
    """
    size, crop = told["size"], told.get("crop_size") if told.get("do_center_crop") else None
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    if edge is None:  # both sides are resized, whatever the aspect ratio
        whole = pair(size)
        shown = pair(crop or size)
        return shown, shown[0] / whole[0], "squash"
    if "crop_pct" in told:  # ConvNeXt: small inputs are cropped, large ones (384 up) are squashed
        return (pair(edge), told["crop_pct"], "center") if edge < 384 else (pair(edge), 1.0, "squash")
    if told.get("image_processor_type", "").startswith("Levit"):
        edge = int(edge * 256 / 224)  # its own constant
    shown = pair(crop or edge)
    return shown, shown[0] / edge, "center"


def pair(size: Any) -> tuple[int, int]:
    """Height and width, from a number, a pair or {"height": ..., "width": ...}."""
    if isinstance(size, Mapping):
        return size["height"], size["width"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, transformers draws no progress bar and no table: `warn_random` says what matters in them."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def warn_random(spelling: Spelling, missing: Collection[str]) -> None:
    """Say which tensors the checkpoint does not hold: they are random, and so is what the model says through them."""
    if missing:
        shown = ", ".join(sorted(missing)[:3])
        warnings.warn(f"{spelling}: {len(missing)} tensors are not in the checkpoint: {shown}; random", stacklevel=3)
