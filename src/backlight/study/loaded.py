"""The model of a cell, and images for it, loaded when they are first needed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from backlight.analyses.single_pass import described
from backlight.data.image_set import ImageSet
from backlight.data.loading import load_data
from backlight.data.opening import open_data
from backlight.devices import device_named, dtype_named
from backlight.errors import UserError
from backlight.inputs import to_model
from backlight.models.cost import parameters
from backlight.models.sources.load import is_architecture, load_model
from backlight.progress import Show
from backlight.results.provenance import UNTRAINED, mark_untrained
from backlight.study.failures import described_failures
from backlight.study.folder import ModelUnits, UnitRow, store_model
from backlight.study.identities import Identities
from backlight.study.plan import Cell
from backlight.tracing.corrections import attach
from backlight.tracing.find import units
from backlight.tracing.repeat import check_repeats
from backlight.tracing.tap import spell


class Loaded:
    """The model of a cell, and data for it, loaded when they are first needed."""

    def __init__(self, cell: Cell, identities: Identities) -> None:
        self.cell, self.identities = cell, identities
        self._data: dict[Any, Any] = {}
        self._failure: Exception | None = None
        self._looked, self.word = False, ""

    def look(self, folder: Path | None, show: Show) -> None:
        """Load the model, write down its units, and say what is unusual; once.  Errors: those of a model that fails."""
        if not self._looked:
            self._looked = True
            try:
                with described_failures():
                    self._look(folder, show)
            except Exception as error:
                self._failure = error
        if self._failure is not None:
            raise self._failure

    def _look(self, folder: Path | None, show: Show) -> None:
        images = to_model(self.first_images(self.cell)[:2], self.model)
        if caution := check_repeats(self.model, images):
            show(f"{self.cell.model}: {caution}")
        about = self._units(images)
        self.word = about.word
        if folder:
            store_model(folder, self.cell, about)

    def first_images(self, cell: Cell) -> Tensor:
        """The first batch of the images that a cell is about."""
        return next(iter(self.data(cell)))[0]

    def placed(self, name: str, cell: Cell) -> Any:
        """This model, or another that a cell needs."""
        return self.model if name == self.cell.model else placed(name, cell)

    @cached_property
    def model(self) -> Any:
        """The model on its device, in its type."""
        return placed(self.cell.model, self.cell)

    def data(self, cell: Cell) -> Any:
        """The images that a cell is about."""
        name, split = cell.data
        key = name, split, cell.batch_size
        if key not in self._data:
            shared = cell.shared
            source = in_random_order(cell) if shared.budget else name
            self._data[key] = load_data(
                source, model=self.model, split=split, limit=shared.limit, seed=shared.seed,
                batch_size=cell.batch_size, workers=shared.workers, root=shared.data_root, download=shared.download,
                classes=cell.classes,
            )  # fmt: skip
        return self._data[key]

    def _units(self, images: Tensor) -> ModelUnits:
        """The model's word, and a row a unit."""
        traced = units(self.model, images)
        rows = [UnitRow(**described(u), shape=list(u.shape), identity=u.identity, removable=bool(u.branch)) for u in traced]
        return ModelUnits(self.cell.model, spell(traced), parameters(self.model), rows)


def in_random_order(cell: Cell) -> Any:
    """The images of a cell in an order that the seed decides: the first so many are a random sample.  Errors: UserError."""
    shared, (name, split) = cell.shared, cell.data
    images = open_data(name, split, root=shared.data_root, download=shared.download, limit=shared.limit, seed=shared.seed)
    if not isinstance(images, ImageSet):
        raise UserError(f"{name} can only be read in order, so a budget would not give a random sample: use --limit")
    return images.take(np.random.default_rng(shared.seed).permutation(len(images)))


def placed(name: str, cell: Cell) -> Any:
    """A model on its device, in its type, with its corrections."""
    model = model_of(name, cell)
    moved = model.to(device=device_named(cell.shared.device), dtype=dtype_named(cell.shared.dtype))
    if name in cell.corrections:
        attach(moved, cell.corrections[name])
    return mark_untrained(moved) if hasattr(model, UNTRAINED) else moved


def model_of(name: str, cell: Cell) -> Any:
    """A model; a random one has as many outputs as the data have classes, unless these are given as outputs."""
    shared, spec, classes = cell.shared, cell.spec(name), None
    if not shared.pretrained and is_architecture(spec) and cell.classes is None:
        data, split = cell.data
        images = open_data(data, split, root=shared.data_root, download=shared.download, limit=None, seed=shared.seed)
        classes = len(images.classes) or None
    return load_model(spec, pretrained=shared.pretrained, num_classes=classes, seed=shared.seed)
