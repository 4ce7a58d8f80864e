"""What a cell is a measurement of: weights, configuration and code of its models, its images, the version of the analysis.

A stored result is used again only if all of these are the same; the settings and the seed are in `Cell.request`.  A model's
``source`` answers without loading it: the files of a saved model, or a registered name with the versions of the packages.
Where that is not the same, or not known, the model is loaded and compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import is_model, model_entrypoint
from torch import nn

from backlight.data.image_set import ImageSet
from backlight.data.loading import open_data, source_record
from backlight.data.preprocessing import pretrained_cfg_of
from backlight.errors import UserError
from backlight.models.sources.saved import BUNDLED, DESCRIPTION, WEIGHTS, describe, saved_folder
from backlight.models.sources.spec import ModelSpec, parse
from backlight.records import Misfit, conforming, contents, plain, read_verified, sha256_of
from backlight.results.provenance import sha256, versions
from backlight.study.code import code_sha256, local_module
from backlight.study.plan import Cell

OWN = ("timm", "backlight")  # packages whose versions stand for what they register
LARGE = 1 << 27  # bytes of images that are read to compare them, in less than a second
Load = Callable[[str, Cell], nn.Module]


@dataclass(frozen=True)
class ModelIdentity:
    """Hashes of a model."""

    source: str | None  # None: only the loaded model says what it is
    weights: str
    configuration: str  # of the modules and the preprocessing
    code: str  # of a factory and the local files that it imports


@dataclass(frozen=True)
class DataIdentity:
    """Which images; None for what a stream does not say."""

    images: int
    ids: str | None
    content: str | None
    files: str | None  # of the files of the images themselves, unless they are large


@dataclass(frozen=True)
class Identity:
    """What a cell is a measurement of."""

    version: int  # of the analysis
    data: DataIdentity
    models: dict[str, ModelIdentity]


class Identities:
    """The identities of cells; each model and data set is looked at once."""

    def __init__(self) -> None:
        self._models: dict[str, ModelIdentity] = {}
        self._data: dict[tuple[str, str, int | None], DataIdentity] = {}

    def of(self, cell: Cell, load: Load) -> Identity:
        """The identity of a cell.  ``load`` gives a model as it is measured."""
        return Identity(cell.entry.version, self.data(cell), {name: self.model(name, cell, load) for name in cell.models})

    def change(self, before: Any, cell: Cell, load: Load) -> str:
        """What is not as it was when a result was measured, in words; empty if nothing is.  ``before``: as it was stored."""
        try:
            old = conforming(before, Identity, "it")
        except Misfit:
            return "does not say which weights and images it was measured with"
        if old.version != cell.entry.version:
            return f"was measured with version {old.version} of {cell.analysis}, not {cell.entry.version}"
        if old.data != self.data(cell):
            return f"was measured on other images of {cell.data[0]}"
        changes = {name: self._change(old.models.get(name), name, cell, load) for name in cell.models}
        return next((f"was measured with {change} of {name}" for name, change in changes.items() if change), "")

    def _change(self, old: ModelIdentity | None, name: str, cell: Cell, load: Load) -> str:
        if old is None:
            return "no weights"
        if old.source is not None and old.source == source_sha256(name, cell):
            return ""
        new = self.model(name, cell, load)
        parts = {"weights": "other weights", "code": "other code", "configuration": "another configuration or preprocessing"}
        return next((words for part, words in parts.items() if getattr(old, part) != getattr(new, part)), "")

    def data(self, cell: Cell) -> DataIdentity:
        """Which images a cell is about: of the training loss, all that it draws from."""
        shared, (name, split) = cell.shared, cell.data
        limit = None if cell.entry.training_loss else shared.limit
        if (name, split, limit) not in self._data:
            images = open_data(name, split, root=shared.data_root, download=shared.download, limit=limit, seed=shared.seed)
            record = source_record(images, limit, shared.seed)
            content = (record["content_sha256"], bytes_sha256(images) if isinstance(images, ImageSet) else None)
            self._data[name, split, limit] = DataIdentity(record["images"], record["ids_sha256"], *content)
        return self._data[name, split, limit]

    def model(self, name: str, cell: Cell, load: Load) -> ModelIdentity:
        """What a model is."""
        if name not in self._models:
            model = load(name, cell)
            code = code_sha256(factory_location(parse(name)))
            self._models[name] = ModelIdentity(source_sha256(name, cell), all_numbers(model), configuration(model), code)
        return self._models[name]


def bytes_sha256(images: ImageSet) -> str | None:
    """A hash of the images as they are stored; None above `LARGE` bytes."""
    hashed, size = hashlib.sha256(), 0
    for row in images.rows.tolist():
        content = images.source.read(row)
        size += len(content) if isinstance(content, bytes) else content.nbytes
        if size > LARGE:
            return None
        hashed.update(content if isinstance(content, bytes) else content.tobytes())
    return hashed.hexdigest()


def all_numbers(model: nn.Module) -> str:
    """A hash of all parameters and buffers, those included that are not saved."""
    return sha256(dict(model.named_parameters(remove_duplicate=False)), dict(model.named_buffers(remove_duplicate=False)))


def configuration(model: nn.Module) -> str:
    """A hash of the modules as they describe themselves, of the preprocessing, and of the recipe of the training."""
    modules = [f"{name} {type(each).__module__}.{type(each).__qualname__}" for name, each in model.named_modules()]
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))  # addresses
    return digest([modules, text, pretrained_cfg_of(model), model.__dict__.get("saved_recipe")])


def source_sha256(name: str, cell: Cell) -> str | None:
    """A hash of what a name stands for, without loading it; None for what only the loaded model says."""
    try:
        parts = parse(name)
        content = source_of(parts, pretrained=cell.shared.pretrained)
    except UserError:  # loading says it
        return None
    return None if content is None else digest([name, cell.shared.pretrained, cell.shared.seed, dict(versions()), content])


def source_of(parts: ModelSpec, *, pretrained: bool) -> str | None:
    """The sha256 of a model's files; empty for what the installed packages define; None for any other model."""
    if parts.source in ("torchvision", "word"):
        return ""
    if parts.source == "official":
        content = contents(Path(parts.name))
        return None if content is None else sha256_of(content)
    if parts.source:
        return None
    if is_model(parts.name):
        package = model_entrypoint(parts.name).__module__.partition(".")[0]
        return "" if package in OWN else None
    if (folder := saved_folder(parts.name)) is None:
        return None
    if pretrained and (weights := describe(folder).weights_sha256):
        read_verified(folder / WEIGHTS, weights)
    return sha256_of((folder / DESCRIPTION).read_bytes())


def factory_location(parts: ModelSpec) -> str:
    """The module of a factory; empty for any other model."""
    return "" if parts.source or is_model(parts.name) or saved_folder(parts.name) else parts.name.rpartition(":")[0]


def place_of(name: str) -> Path | None:
    """The file or folder that a MODEL is in; None for a name that does not depend on where it is used."""
    try:
        parts = parse(name)
    except UserError:
        return None
    if parts.source in ("official", "local-dir"):
        return Path(parts.name).expanduser().resolve()
    if parts.source or is_model(parts.name):
        return None
    if folder := saved_folder(parts.name):
        return None if folder.parent == BUNDLED else folder.resolve()
    location = parts.name.rpartition(":")[0] or parts.name
    if file := local_module(location):
        return file
    is_path = os.sep in location or location.startswith(".") or location.endswith(".py")
    return Path(location).resolve() if is_path else None


def digest(values: Any) -> str:
    """A hash of plain values."""
    return sha256_of(json.dumps(plain(values), sort_keys=True, default=str).encode(errors="backslashreplace"))
