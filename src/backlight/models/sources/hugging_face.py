"""Image models of the transformers library, with the preprocessing of their image processor in timm's words."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants
from torch import nn

from backlight.data.preprocessing import with_pretrained_cfg
from backlight.errors import Unavailable, UserError, first_line
from backlight.model_names.spec import ModelSpec, reporting_bad_arguments
from backlight.models.sources.hub import fetching, hub_or_cache

# Pillow's codes, which image processors store -> timm's words
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def from_hugging_face(spec: ModelSpec, *, pretrained: bool, num_classes: int | None) -> nn.Module:
    """The model of a repository or folder in transformers' format; arguments override its configuration.

    It is a classifier if the repository holds one or ``num_classes`` is given, else the backbone without a head.
    """
    try:
        from transformers import AutoModel, AutoModelForImageClassification
    except ImportError as error:
        raise Unavailable(f"{spec} needs the transformers library: pip install 'backlight[hf]'") from error
    source = repository(spec)
    with nullcontext("") if os.path.isdir(source) else hub_or_cache(source) as unreachable:
        files = Files(spec, source, unreachable)
        config = configuration(files, num_classes)
        architectures = config.architectures or ["ForImageClassification"]
        classifies = num_classes is not None or any("ForImageClassification" in name for name in architectures)
        kind, new_head = AutoModelForImageClassification if classifies else AutoModel, num_classes is not None
        with files.reading("weights"), reporting_bad_arguments(spec):
            if pretrained:
                model, report = kind.from_pretrained(
                    source, config=config, ignore_mismatched_sizes=new_head, output_loading_info=True
                )
                warn_random(spec, [] if new_head else report["missing_keys"])
            else:
                model = kind.from_config(config)
        cfg = preprocessing(files, config, pretrained=pretrained) | {"num_classes": config.num_labels}
    return with_pretrained_cfg(model.float(), cfg)


@dataclass(frozen=True)
class Files:
    """The files of a model: the MODEL, its repository or folder, and why the Hub is unreachable ("" if it is not)."""

    spec: ModelSpec
    source: str
    unreachable: str

    @contextmanager
    def reading(self, needed: str) -> Iterator[None]:
        """Within the block, a file that cannot be read is reported in one sentence, as is a model of another kind."""
        folder = self.source if os.path.isdir(self.source) else constants.HF_HUB_CACHE
        with fetching(str(self.spec), folder, needed=needed, reason=self.unreachable), quiet():
            try:
                yield
            except UserError:
                raise
            except ValueError as error:
                message = f"{self.spec} is no image model that transformers can build: {first_line(error)}"
                raise UserError(message) from error


def repository(spec: ModelSpec) -> str:
    """The name of the repository, or the path of the folder.  Errors: Unavailable if the path does not exist."""
    name = os.path.expanduser(spec.name)
    if name.startswith((".", "/")) and not os.path.isdir(name):
        raise Unavailable(f"there is no folder {name}")
    return name


def configuration(files: Files, num_classes: int | None) -> Any:
    """The configuration from transformers, with the MODEL's arguments; ``img_size`` is its ``image_size``."""
    from transformers import AutoConfig

    spec = files.spec
    overrides = {("image_size" if name == "img_size" else name): value for name, value in spec.arguments.items()}
    if num_classes is not None:
        overrides["num_labels"] = num_classes
    with files.reading("configuration"):
        config, unused = AutoConfig.from_pretrained(files.source, return_unused_kwargs=True, **overrides)
    if config.model_type == "timm_wrapper":
        raise UserError(f"{spec} is a timm model: write hf-hub:{spec.name}")
    if unknown := [name for name in unused if name != "image_size"]:  # a model without it takes any size
        raise UserError(f"{spec} takes no argument {unknown[0]}")
    return config


def preprocessing(files: Files, config: Any, *, pretrained: bool) -> dict[str, Any]:
    """The preprocessing in timm's words (``pretrained_cfg``), from the image processor; without one, ImageNet's."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from transformers import AutoImageProcessor

    arguments = files.spec.arguments
    requested = arguments.get("img_size", arguments.get("image_size"))
    channels, side = getattr(config, "num_channels", 3), requested or getattr(config, "image_size", 224)
    try:
        with files.reading("image processor"):
            processor = AutoImageProcessor.from_pretrained(files.source).to_dict()
    except UserError:
        if pretrained:
            warnings.warn(f"{files.spec} has no image processor: ImageNet's mean and std are assumed", stacklevel=2)
        processor = {"do_normalize": True, "image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
        processor |= {"resample": 3, "size": side}
    if processor.get("do_flip_channel_order"):
        raise UserError(f"{files.spec} takes BGR images, which Backlight does not support; timm may have the model for RGB")
    size, crop_pct, crop_mode = geometry({"size": side} | processor)
    return {
        "input_size": (channels, *(pair(requested) if requested else size)),
        "mean": tuple(processor["image_mean"]) if processor.get("do_normalize") else (0.0,) * channels,
        "std": tuple(processor["image_std"]) if processor.get("do_normalize") else (1.0,) * channels,
        "interpolation": INTERPOLATIONS[int(processor.get("resample", 2))],
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
    }


def geometry(processor: Mapping[str, Any]) -> tuple[tuple[int, int], float, str]:
    """(height, width) of the input, and timm's crop_pct and crop_mode, from the settings of an image processor.

    >>> geometry({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}})
    ((224, 224), 0.875, 'center')
    >>> geometry({"size": {"height": 224, "width": 224}})
    ((224, 224), 1.0, 'squash')
    """
    size = processor["size"]
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    if edge is None:  # both sides are resized, whatever the aspect ratio
        resized, cropped = pair(size), pair(crop or size)
        return cropped, cropped[0] / resized[0], "squash"
    if "crop_pct" in processor:  # ConvNeXt: small inputs are cropped, large ones (from 384) are squashed
        return (pair(edge), processor["crop_pct"], "center") if edge < 384 else (pair(edge), 1.0, "squash")
    if processor.get("image_processor_type", "").startswith("Levit"):
        edge = int(edge * 256 / 224)  # a constant in LeViT's image processor
    cropped = pair(crop or edge)
    return cropped, cropped[0] / edge, "center"


def pair(size: Any) -> tuple[int, int]:
    """Height and width, from a number, a pair or {"height": ..., "width": ...}."""
    if isinstance(size, Mapping):
        return size["height"], size["width"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, transformers prints no progress bar and no table; `warn_random` reports what matters in them."""
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


def warn_random(spec: ModelSpec, missing: Collection[str]) -> None:
    """Warn about tensors that the checkpoint does not hold, because they are random, and so are outputs that use them."""
    if missing:
        first = ", ".join(sorted(missing)[:3])
        message = f"{spec}: {len(missing)} tensors are not in the checkpoint and have random values: {first}"
        warnings.warn(message, stacklevel=3)
