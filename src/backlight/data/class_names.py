"""Which output of an ImageNet model each class of a data set is, by WordNet id or by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from backlight.data.image_set import ImageSet
from backlight.data.preprocessing import pretrained_cfg_of


def as_outputs_of(model: nn.Module | None, images: ImageSet) -> tuple[ImageSet, dict[str, Any]]:
    """The images with the model's output numbers as labels, and a record of it in plain values.

    The model has the classes of ImageNet and the data some of them, named by WordNet id (n01440764) or by name (tench).
    Scores are then over all outputs of the model.  Other images are returned as they are, with an empty record.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    outputs = getattr(model, "num_classes", None) or (pretrained_cfg_of(model) if model is not None else {}).get("num_classes")
    subset = infer_imagenet_subset({"num_classes": outputs})
    if subset is None:
        return images, {}
    info = ImageNetInfo(subset)
    if not 0 < len(images.classes) < info.num_classes():
        return images, {}
    ids = info.label_names()
    names = [[name.strip() for name in info.index_to_description(i).split(",")] for i in range(len(ids))]
    for by, spellings in (("WordNet id", [[name] for name in ids]), ("name", names)):
        numbers = numbers_of(images.classes, spellings)
        if numbers is not None:
            mapped = replace(images, classes=tuple(ids), labels=np.array(numbers, np.int64)[images.labels])
            return mapped, {"outputs": {"of": subset, "by": by, "numbers": numbers}}
    return images, {}


def numbers_of(classes: Sequence[str], spellings: Sequence[Sequence[str]]) -> list[int] | None:
    """The number of each class by one of its spellings; None if one is unknown, ambiguous, or two have the same number.

    >>> numbers_of(["Tench", "great_white"], [["tench"], ["goldfish"], ["great white"]])
    [0, 2]
    """
    owners: dict[str, set[int]] = {}
    for number, names in enumerate(spellings):
        for name in names:
            owners.setdefault(plain(name), set()).add(number)
    numbers = [owners.get(plain(name), set()) for name in classes]
    if any(len(matches) != 1 for matches in numbers):
        return None
    unique = [number for matches in numbers for number in matches]
    return unique if len(set(unique)) == len(unique) else None


def plain(name: str) -> str:
    """A name in small letters, with spaces for underscores and hyphens."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
