"""Whether a cell is still a measurement of the same models, images and analysis.

A stored result is used again only if all of these are the same.  A model's ``source`` answers without loading it: the files of
a saved model, or a registered name with the versions of the packages.  Where that is not the same, or not known, the model is
loaded and compared.  torch is imported only then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from backlight.data.image_set import ImageSet
from backlight.data.opening import open_data, source_record
from backlight.errors import UserError
from backlight.model_names.place import source_sha256s
from backlight.model_names.spec import parse
from backlight.records import Misfit, conforming
from backlight.study.identity import DataIdentity, Identity, ModelIdentity, source_digest
from backlight.study.plan import Cell

if TYPE_CHECKING:
    from torch import nn

LARGE = 1 << 27  # bytes of images that are read to compare them, in less than a second
Load = Callable[[str, Cell], "nn.Module"]


class Identities:
    """The identities of cells; each model and data set is looked at once."""

    def __init__(self) -> None:
        self._models: dict[str, ModelIdentity] = {}
        self._data: dict[tuple[str, str, int | None], DataIdentity] = {}
        self._sources: dict[str, list[str]] = {}

    def of(self, cell: Cell, load: Load) -> Identity:
        """The identity of a cell.  ``load`` gives a model as it is measured."""
        return Identity(cell.entry.version, self.data(cell), {name: self.model(name, cell, load) for name in cell.models})

    def is_same(self, before: Any, cell: Cell) -> bool:
        """Whether nothing is other than when a result was measured; False also where only the loaded model would say it."""
        try:
            old = conforming(before, Identity, "it")
        except Misfit:
            return False
        unchanged = (name in old.models and self._unchanged(old.models[name], name, cell) for name in cell.models)
        return old.version == cell.entry.version and old.data == self.data(cell) and all(unchanged)

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
        if self._unchanged(old, name, cell):
            return ""
        new = self.model(name, cell, load)
        parts = {"weights": "other weights", "code": "other code", "configuration": "another configuration or preprocessing"}
        return next((words for part, words in parts.items() if getattr(old, part) != getattr(new, part)), "")

    def _unchanged(self, old: ModelIdentity, name: str, cell: Cell) -> bool:
        """Whether the name alone says that this is the same model."""
        if name not in self._sources:
            self._sources[name] = list(sources(name, cell))
        return old.source in self._sources[name]

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
        from backlight.study.model_identity import model_identity

        if name not in self._models:
            self._models[name] = model_identity(name, load(name, cell), cell)
        return self._models[name]


def sources(name: str, cell: Cell) -> Iterator[str]:
    """The ``source`` that this name can have, among those that were measured with the installed packages."""
    try:
        for content in source_sha256s(parse(cell.spec(name)), pretrained=cell.shared.pretrained):
            yield source_digest(name, cell, content)
    except UserError:  # loading says it
        return


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
