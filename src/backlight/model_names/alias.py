"""NAME=MODEL: a short name for a model, used wherever the model is named."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from backlight.errors import UserError

ALIAS = re.compile(r"([A-Za-z0-9][\w. +-]*)=(.+)", re.DOTALL)


def split(text: str) -> tuple[str, str]:
    """The name and the MODEL; both are the text if no name is given.

    >>> split("vit=hf:facebook/dinov2-small"), split("resnet18?in_chans=1")
    (('vit', 'hf:facebook/dinov2-small'), ('resnet18?in_chans=1', 'resnet18?in_chans=1'))
    """
    match = ALIAS.fullmatch(text)
    return (match[1], match[2]) if match and not os.path.exists(text) else (text, text)


def aliases(texts: Iterable[str]) -> dict[str, str]:
    """Name -> MODEL, of those that have a name.  Errors: UserError if a name stands for two models."""
    known: dict[str, str] = {}
    for text in texts:
        name, model = split(text)
        if name != text and known.setdefault(name, model) != model:
            raise UserError(f"{name} is the name of {known[name]} and of {model}: give each model a name of its own")
    return known
