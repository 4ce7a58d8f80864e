"""Measures cells of one model: in a forward pass that they share, alone, or in pieces that are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from backlight.analyses.entry import AugmentationSettings
from backlight.analyses.single_pass import single_pass
from backlight.curvature.batches import Batches, draw_batches
from backlight.errors import NotApplicable
from backlight.files import PartialResults
from backlight.progress import Counted, Show
from backlight.results.result import Result
from backlight.settings import options
from backlight.study.budget import Budgeted
from backlight.study.cells import home_of
from backlight.study.identity import Identity
from backlight.study.loaded import Loaded, model_of, placed
from backlight.study.plan import Cell


def measure(
    loaded: Loaded,
    cells: Sequence[Cell],
    identities: Mapping[str, Identity],
    folder: Path | None,
    shard: tuple[int, int],
    show: Show,
) -> Sequence[Result | NotApplicable]:
    """The results of cells that run together, or why the model has none.  Errors: NotApplicable of a cell that runs alone."""
    first, shared = cells[0], cells[0].shared
    common: dict[str, Any] = {"name": first.model, "resamples": shared.resamples, "seed": shared.seed}
    at: dict[str, Any] = {"at": list(shared.at) or None}
    title = f"{first.model}: {', '.join(cell.analysis for cell in cells)}"
    entry = first.entry
    own = _objects(first)
    part: dict[str, Any] = {"shard": shard} if entry.shards else {}
    if entry.shards or entry.training_loss:
        part["partial_results"] = _partial_results(folder, first, identities)
    if entry.training_loss is None:
        seconds = shared.budget_seconds
        limited = Budgeted(loaded.data(first), seconds) if seconds else None
        data = Counted(limited or loaded.data(first), title, show)
        if entry.shares_a_pass(first.settings):
            reducers = {cell.entry.reducer_type(): cell.entry.settings(**cell.settings) for cell in cells}
            results: Sequence[Result | NotApplicable] = single_pass(loaded.model, data, reducers, **at, **common)
        else:
            results = [entry.function(loaded.model, data, **own, **common, **part, **(at if entry.reads_stream else {}))]
        return [with_budget(result, limited) if isinstance(result, Result) else result for result in results]
    batches = _training_batches(loaded.model, first)
    if hasattr(entry.module, "plan"):
        title += f" ({entry.module.plan(loaded.model, batches, entry.settings(**_own_settings(first)))})"
    track = partial(Counted, what=title, show=show, unit="steps")
    return [entry.function(loaded.model, batches, **own, **common, **part, track=track)]


def with_budget(result: Result, limited: Budgeted | None) -> Result:
    """The result, which says whether its time was over before it had seen all images."""
    return result if limited is None else replace(result, provenance={**result.provenance, "budget": limited.said})


def _own_settings(cell: Cell) -> dict[str, Any]:
    """The settings of the analysis itself, without those of its training batches."""
    return {option.name: cell.settings[option.name] for option in cell.entry.own_options()}


def _objects(cell: Cell) -> dict[str, Any]:
    """The settings of the analysis, models in the place of their names."""
    values = _own_settings(cell)
    for option in cell.entry.own_options():
        name = values[option.name]
        if option.about["loads"] == "model" and name:
            values |= {option.name: placed(name, cell), f"{option.name}_name": name}
        elif option.about["loads"] == "weights":  # an earlier moment of training is a model of its own
            values[option.name] = [model_of(each, cell).state_dict() for each in name]
    return values


def training_images(cell: Cell) -> tuple[int, int]:
    """As many images as the batches requested hold, or as the limit or the analysis says; and the batch size."""
    wanted, shared = cell.entry.training_loss, cell.shared
    assert wanted is not None
    batch_size, images = shared.batch_size or wanted.batch_size, wanted.images
    if batches := cell.settings["batches"]:
        images = batches * batch_size
    elif shared.limit:
        images, batch_size = shared.limit, min(batch_size, shared.limit)
        if not shared.batch_size and not wanted.size_matters:
            batch_size = dividing(images, batch_size)
    return images, batch_size


def _training_batches(model: Any, cell: Cell) -> Batches:
    """The batches of the training loss."""
    (images, batch_size), shared = training_images(cell), cell.shared
    name, split = cell.data
    changes = {option.name: cell.settings[option.name] for option in options(AugmentationSettings)}
    return draw_batches(
        name, model=model, images=images, batch_size=batch_size, recipe=cell.settings["recipe"], split=split,
        seed=shared.seed, root=shared.data_root, download=shared.download, classes=cell.classes, **changes,
    )  # fmt: skip


def dividing(images: int, most: int) -> int:
    """The largest even batch size, from ``most`` down to half of it, that leaves no image over; ``most`` if there is none.

    >>> dividing(500, 64), dividing(512, 64), dividing(498, 64)
    (50, 64, 64)
    """
    return next((size for size in range(most, most // 2, -1) if size % 2 == 0 and images % size == 0), most)


def _partial_results(folder: Path | None, cell: Cell, identities: Mapping[str, Identity]) -> PartialResults:
    """Where the finished pieces of a cell are stored: for this request of this model and these data.

    Nowhere with a budget: the next run sees another number of images.
    """
    if folder is None or cell.shared.budget:
        return PartialResults(None, {})
    return PartialResults(unfinished(folder, cell), {**cell.request(), "identity": asdict(identities[cell.analysis])})


def unfinished(folder: Path, cell: Cell) -> Path:
    """Where the finished pieces of a cell are, until its result is stored."""
    return home_of(folder, cell) / f".partial-{cell.analysis}"
