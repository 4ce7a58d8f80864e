"""Where a MODEL is, if it is in a file or folder, and what its name alone says about its content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from backlight.errors import UserError
from backlight.model_names.code import local_module
from backlight.model_names.saved import BUNDLED, DESCRIPTION, WEIGHTS, describe, saved_folder
from backlight.model_names.spec import ModelSpec, parse
from backlight.records import contents, read_verified, sha256_of


def place_of(name: str) -> Path | None:
    """The file or folder that a MODEL is in; None for a name that does not depend on where it is used."""
    try:
        parts = parse(name)
    except UserError:
        return None
    if parts.source in ("official", "local-dir"):
        return Path(parts.name).expanduser().resolve()
    if parts.source:
        return None
    place = local_place(parts.name)
    return None if place is None or is_registered(parts.name) else place


def local_place(name: str) -> Path | None:
    """The file or folder of this name, if timm has no model of this name."""
    if folder := saved_folder(name):
        return None if folder.parent == BUNDLED else folder.resolve()
    location = name.rpartition(":")[0] or name
    if file := local_module(location):
        return file
    is_path = os.sep in location or location.startswith(".") or location.endswith(".py")
    return Path(location).resolve() if is_path else None


def is_registered(name: str) -> bool:
    """Whether timm has a model of this name; only a name that could be one imports timm."""
    if not name.replace(".", "_").isidentifier():
        return False
    from timm.models import is_model

    return is_model(name)


def source_sha256s(parts: ModelSpec, *, pretrained: bool) -> Iterator[str]:
    """What the source of a MODEL can be: the sha256 of its files, or empty for what the installed packages define.

    Both, where only timm knows whether it has a model of this name; nothing for what only the loaded model says.
    """
    if parts.source == "official":
        if (content := contents(Path(parts.name))) is not None:
            yield sha256_of(content)
    elif parts.source in ("torchvision", "word"):
        yield ""
    elif not parts.source:
        yield ""
        if (folder := saved_folder(parts.name)) is not None:
            yield saved_sha256(folder, pretrained=pretrained)


def saved_sha256(folder: Path, *, pretrained: bool) -> str:
    """The sha256 of a saved model's description, which holds that of its weights.  Errors: Damaged if they do not fit."""
    if pretrained and (weights := describe(folder).weights_sha256):
        read_verified(folder / WEIGHTS, weights)
    return sha256_of((folder / DESCRIPTION).read_bytes())
