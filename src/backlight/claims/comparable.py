"""Whether two models were measured alike: the same images, the same settings, and for the shape of the loss like accuracies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from backlight.claims.comparisons import ACCURACY_APART
from backlight.results.result import Result
from backlight.study.folder import Model

#: What may differ: how many resamples an interval has, how many batches run together, how each model's images are normalised.
MAY_DIFFER = {"resamples", "together", "mean", "std"}
#: What a set of images, or of mini-batches, is recognised by.
IDENTITY = ("ids_sha256", "augmentation", "batch_size", "batches")


def why_not(first: Result, second: Result) -> str:
    """Why the numbers of two results of one analysis cannot be compared image by image; empty if they can."""
    data = [result.provenance.get("data") or {} for result in (first, second)]
    if not all(each.get("ids_sha256") for each in data):
        return "it is not recorded which images were used"
    images = [
        {key: each.get(key) for key in IDENTITY} | {"images": r.provenance.get("images")}
        for each, r in zip(data, (first, second), strict=True)
    ]
    if unlike := different(*images):
        return f"measured on different images: they differ in {', '.join(unlike)}"
    if unlike := different(first.provenance.get("settings", {}), second.provenance.get("settings", {})):
        return f"measured with different settings: {', '.join(unlike)}"
    return ""


def different(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The keys of unequal values, except those that `MAY_DIFFER`; a tuple is equal to a list, as in JSON."""
    plain = [{key: json.dumps(value, sort_keys=True, default=str) for key, value in each.items()} for each in (first, second)]
    return [key for key in dict.fromkeys([*first, *second]) if plain[0].get(key) != plain[1].get(key) and key not in MAY_DIFFER]


def why_no_shape(first: Model, second: Model, analysis: str) -> str:
    """Why the shape of the losses of two models cannot be compared: untrained, at chance, or of unlike accuracy; else empty."""
    for model in (first, second):
        if caution := caution_of(model.results[analysis]):
            return f"{model.name}: {caution}"
    known = [accuracy_of(model) for model in (first, second)]
    if None not in known and abs(known[0] - known[1]) > ACCURACY_APART:  # type: ignore[operator]
        shown = " and ".join(f"{100 * accuracy:.1f}%" for accuracy in known)  # type: ignore[operator]
        return f"accuracies of {shown} are more than {100 * ACCURACY_APART:g} points apart"
    return ""


def accuracy_of(model: Model) -> float | None:
    """The accuracy of a model on clean images, as a fraction, as far as its results know it."""
    if (calibration := model.results.get("calibration")) is not None:
        return next((row["value"] for row in calibration.table if row["metric"] == "accuracy"), None)
    for name, fact in (("noise", "clean"), ("adversarial", "clean"), ("lesion", "whole")):
        if name in model.results and (known := model.results[name].provenance.get(fact, {}).get("accuracy")):
            return known[0]
    if (corruption := model.results.get("corruption")) is not None:
        return next((row["accuracy"] for row in corruption.table if row["corruption"] == "clean"), None)
    return None


def caution_of(result: Result) -> str:
    """Why no verdict about this model says much, such as random weights; mostly empty."""
    return str(result.provenance.get("caution") or "")
