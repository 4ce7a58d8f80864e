"""Which output of a model each class of a data set is: as a file says, or by WordNet id or name for a model of ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from backlight.data.given_classes import GivenClasses
from backlight.data.image_set import ImageSet, numbered
from backlight.data.preprocessing import pretrained_cfg_of
from backlight.errors import UserError, did_you_mean


def as_outputs_of(
    model: nn.Module | None, images: ImageSet, given: GivenClasses | None = None
) -> tuple[ImageSet, dict[str, Any]]:
    """The images with the model's output numbers as labels, and a record of it in plain values.

    As ``given`` says; else if the model has the classes of ImageNet and the data some of them, named by WordNet id (n01440764)
    or by name (tench).  Scores are then over all outputs of the model.  Other images are returned as they are, with an empty
    record.
    Errors: UserError if ``given`` leaves out a class, or names an output that the model does not have.
    """
    outputs = outputs_of(model)
    subset, ids, names = imagenet_names(outputs)
    if given is not None:
        if not images.labelled:
            raise UserError(f"{given.where}: the images in {images.name} have no labels that could be outputs of the model")
        known = [[wordnet_id, *spellings] for wordnet_id, spellings in zip(ids, names, strict=True)] or own_names(model)
        numbers = [number_given(given, name, known, outputs) for name in images.classes or numbered(images.labels)]
        classes = ids or tuple(str(i) for i in range(outputs or 0))
        return relabelled(images, classes, numbers), {"outputs": {"of": subset, "by": "file", "numbers": numbers}}
    if not 0 < len(images.classes) < len(ids):
        return images, {}
    for by, known in (("WordNet id", [[wordnet_id] for wordnet_id in ids]), ("name", names)):
        numbers_by_name = numbers_of(images.classes, known)
        if numbers_by_name is not None:
            record = {"of": subset, "by": by, "numbers": numbers_by_name}
            return relabelled(images, ids, numbers_by_name), {"outputs": record}
    return images, {}


def relabelled(images: ImageSet, classes: Sequence[str], numbers: Sequence[int]) -> ImageSet:
    """The images with other classes, and for each label the number of its class among them."""
    return replace(images, classes=tuple(classes), labels=np.array(numbers, np.int64)[images.labels])


def outputs_of(model: nn.Module | None) -> int | None:
    """How many outputs a model says that it has."""
    own = getattr(model, "num_classes", None)
    return own or (pretrained_cfg_of(model).get("num_classes") if model is not None else None)


def own_names(model: nn.Module | None) -> list[list[str]]:
    """The names of the outputs in the model's ``pretrained_cfg``; empty if it has none."""
    names = pretrained_cfg_of(model).get("label_names") if model is not None else None
    return [[str(name)] for name in names or ()]


def imagenet_names(outputs: int | None) -> tuple[str | None, tuple[str, ...], list[list[str]]]:
    """The set of ImageNet's classes with so many outputs, their WordNet ids and names; None and empty if there is none."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": outputs})
    if subset is None:
        return None, (), []
    info = ImageNetInfo(subset)
    ids = tuple(info.label_names())
    return subset, ids, [[name.strip() for name in info.index_to_description(i).split(",")] for i in range(len(ids))]


def number_given(given: GivenClasses, name: str, known: Sequence[Sequence[str]], outputs: int | None) -> int:
    """The number of the output that is given for a class.  Errors: UserError with what it is given in, and the class."""
    if name not in given.outputs:
        raise UserError(f"{given.where} has no row for the class {name!r}{did_you_mean(name, given.outputs)}")
    output = given.outputs[name]
    if output.isascii() and output.isdigit() and len(output) < 10:
        if outputs is not None and int(output) >= outputs:
            raise UserError(f"{given.where}: {name} is {output}, and the model's outputs are 0 to {outputs - 1}")
        return int(output)
    if not known:
        raise UserError(f"{given.where}: {name} is {output!r}, and the model's outputs have no names: give a number from 0")
    matches = owners(known).get(plain(output), set())
    if len(matches) != 1:
        problem = "no output of the model has this name" if not matches else f"outputs {sorted(matches)} have this name"
        raise UserError(f"{given.where}: {name} is {output!r}, and {problem}: give the output's number")
    return min(matches)


def numbers_of(classes: Sequence[str], spellings: Sequence[Sequence[str]]) -> list[int] | None:
    """The number of each class by one of its spellings; None if one is unknown, ambiguous, or two have the same number.

    >>> numbers_of(["Tench", "great_white"], [["tench"], ["goldfish"], ["great white"]])
    [0, 2]
    """
    known = owners(spellings)
    numbers = [known.get(plain(name), set()) for name in classes]
    if any(len(matches) != 1 for matches in numbers):
        return None
    unique = [number for matches in numbers for number in matches]
    return unique if len(set(unique)) == len(unique) else None


def owners(spellings: Sequence[Sequence[str]]) -> dict[str, set[int]]:
    """Name -> the numbers of the classes that have it as a spelling."""
    numbers: dict[str, set[int]] = {}
    for number, names in enumerate(spellings):
        for name in names:
            numbers.setdefault(plain(name), set()).add(number)
    return numbers


def subset_of(data: Any) -> tuple[int, ...]:
    """The outputs of the model that are the classes of the data, in ascending order; empty: the data do not say."""
    outputs = getattr(data, "provenance", {}).get("outputs") or {}
    return tuple(sorted(set(outputs.get("numbers", ()))))


def plain(name: str) -> str:
    """A name in small letters, with spaces for underscores and hyphens."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
