"""The family of a model, from its name and its kind: what small charts of a survey have in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from backlight.claims.kinds import NAMES, kind_of
from backlight.study.folder import Model

#: A family has at least so many models, and a page so many families; the others go by their kind.
LEAST, MOST = 3, 11


def families(models: Sequence[Model]) -> list[str]:
    """The family of each model: the first word of its name, or its kind where few models share that word."""
    first = [first_word(model.name) for model in models]
    large = [name for name, count in Counter(first).most_common(MOST) if name and count >= LEAST]
    return [name if name in large else f"other {NAMES[kind_of(m.units)]}s" for name, m in zip(first, models, strict=True)]


def first_word(name: str) -> str:
    """The letters that a model's name begins with, without where it comes from.

    >>> [first_word(name) for name in ("vit_tiny_patch16_224", "torchvision:resnet50", "hf:facebook/dinov2-small")]
    ['vit', 'resnet', 'dinov']
    """
    match = re.search(r"[a-z]+", re.split(r"[:/]", name)[-1].lower())
    return match[0] if match else ""
