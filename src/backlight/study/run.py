"""Runs the cells of a plan and stores each result as soon as it is there.

A cell is stored completely or not at all, so that a stopped run resumes.  Analyses that only read a forward pass share one.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from backlight.analyses.entry import AugmentationSettings
from backlight.analyses.single_pass import described, single_pass
from backlight.curvature.batches import Batches, draw_batches
from backlight.data.loading import load_data, open_data
from backlight.devices import device_named, dtype_named
from backlight.errors import NotApplicable, UserError
from backlight.files import PartialResults
from backlight.inputs import to_model
from backlight.models.cost import parameters
from backlight.models.sources.load import is_architecture, load_model
from backlight.progress import Counted, Show, quiet
from backlight.records import Damaged
from backlight.results.provenance import UNTRAINED, mark_untrained, weights_sha256
from backlight.results.result import Result
from backlight.settings import options
from backlight.shortage import shortage
from backlight.study.cells import folder_name, not_applicable, store, stored
from backlight.study.folder import ModelUnits, UnitRow, read_request, store_model, store_request
from backlight.study.plan import Cell, passes, plan
from backlight.study.settings import StudySettings
from backlight.tracing.corrections import attach
from backlight.tracing.find import units
from backlight.tracing.tap import spell

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """A cell that is done, has failed, or is not applicable."""

    cell: Cell
    result: Result | None
    error: str = ""
    skipped: bool = False  # it was there already
    applicable: bool = True  # False: the analysis has no answer for this model, and ``error`` says why

    @property
    def model(self) -> str:
        """The model's name."""
        return self.cell.model

    @property
    def analysis(self) -> str:
        """The analysis's name."""
        return self.cell.analysis

    @property
    def state(self) -> str:
        """What happened, in words."""
        if not self.applicable:
            return f"not applicable: {self.error}"
        return f"failed: {self.error}" if self.error else "there already" if self.skipped else "done"

    @property
    def failed(self) -> bool:
        """Whether it can be tried again."""
        return bool(self.error) and self.applicable

    @property
    def missing(self) -> int:
        """How many pieces other shards have still to compute; the result is saved once this is 0."""
        return len(self.result.provenance.get("missing_rows", ())) if self.result else 0


def run_study(
    models: Sequence[str],
    analyses: Mapping[str, Mapping[str, Any]],
    settings: StudySettings = StudySettings(),
    out: str | Path | None = None,
    *,
    keep_going: bool = True,
    overwrite: bool = False,
    shard: tuple[int, int] = (0, 1),
    show: Show = quiet,
) -> Iterator[Outcome]:
    """Each analysis (name -> settings) of each model, an outcome an iteration, stored under ``out`` if it is given.

    The settings of an analysis may hold ``models``, its own list of them.  Cells that are there already are loaded, not run.
    With ``keep_going`` a cell that fails is yielded with its error and the rest are run.  ``shard``: (rank, world).
    Errors: UserError for an unknown analysis or setting, or if a cell is there that was made with other settings.
    """
    cells, folder = plan(models, analyses, settings), Path(out) if out is not None else None
    there = {
        (cell.model, cell.analysis): result
        for cell in cells
        if folder and (result := _unless_damaged(partial(stored, folder, cell, overwrite=overwrite), show)) is not None
    }
    if folder:
        store_request(folder, cells, settings, _unless_damaged(partial(read_request, folder), show))
    for model in dict.fromkeys(cell.model for cell in cells):
        own = [cell for cell in cells if cell.model == model]
        done = {cell.analysis: there[model, cell.analysis] for cell in own if (model, cell.analysis) in there}
        yield from (Outcome(cell, done[cell.analysis], skipped=True) for cell in own if cell.analysis in done)
        reasons = {
            cell.analysis: reason
            for cell in own
            if folder and not overwrite and (reason := _unless_damaged(partial(not_applicable, folder, cell), show)) is not None
        }
        yield from (Outcome(cell, None, reasons[cell.analysis], True, False) for cell in own if cell.analysis in reasons)
        todo = [cell for cell in own if cell.analysis not in (*done, *reasons)]
        for outcome in _outcomes(todo, folder, keep_going, shard, show) if todo else ():
            if folder and not outcome.missing:
                store(folder, outcome.cell, outcome.result, outcome.error, applicable=outcome.applicable)
                if outcome.result is not None:
                    shutil.rmtree(_unfinished(folder, outcome.cell), ignore_errors=True)
            yield outcome


def _unless_damaged(read: Callable[[], T | None], show: Show) -> T | None:
    """What ``read`` returns; None if a file is damaged, which is said: it is then made again."""
    try:
        return read()
    except Damaged as error:
        show(f"{error}: it is made again")
        return None


def _outcomes(
    cells: Sequence[Cell], folder: Path | None, keep_going: bool, shard: tuple[int, int], show: Show
) -> Iterator[Outcome]:
    """The cells of one model, which is loaded once."""
    loaded = _Loaded(cells[0])
    try:
        if folder:
            store_model(folder, loaded.units())
        loaded.model  # noqa: B018
    except Exception as error:
        if not keep_going:
            raise
        yield from (Outcome(cell, None, _sentence(error)) for cell in cells)
        return
    for group in passes(cells):
        yield from _of_group(loaded, group, folder, keep_going, shard, show)


def _of_group(
    loaded: _Loaded, group: Sequence[Cell], folder: Path | None, keep_going: bool, shard: tuple[int, int], show: Show
) -> Iterator[Outcome]:
    """Cells that run together; one by one if the model has no answer to one of them."""
    try:
        results = _measure(loaded, group, folder, shard, show)
    except Exception as error:
        if not keep_going:
            raise
        if isinstance(error, NotApplicable) and len(group) > 1:
            for cell in group:
                yield from _of_group(loaded, [cell], folder, keep_going, shard, show)
        else:
            applicable = not isinstance(error, NotApplicable)
            yield from (Outcome(cell, None, _sentence(error), applicable=applicable) for cell in group)
    else:
        yield from (Outcome(cell, result) for cell, result in zip(group, results, strict=True))


class _Loaded:
    """The model of a cell, and data for it, loaded when they are first needed."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self._data: dict[tuple[str, str], Any] = {}

    @cached_property
    def model(self) -> Any:
        """The model on its device, in its type."""
        return _placed(self.cell.model, self.cell)

    def data(self, cell: Cell) -> Any:
        """The images that a cell is about."""
        name, split = cell.data
        if (name, split) not in self._data:
            shared = cell.shared
            self._data[name, split] = load_data(
                name, model=self.model, split=split, limit=shared.limit, seed=shared.seed,
                batch_size=shared.batch_size or 32, workers=shared.workers, root=shared.data_root, download=shared.download,
                classes=cell.classes,
            )  # fmt: skip
        return self._data[name, split]

    def units(self) -> ModelUnits:
        """The model's word, and a row a unit."""
        images, _ = next(iter(self.data(self.cell)))
        traced = units(self.model, to_model(images[:2], self.model))
        rows = [UnitRow(**described(u), shape=list(u.shape), identity=u.identity, removable=bool(u.branch)) for u in traced]
        return ModelUnits(self.cell.model, spell(traced), parameters(self.model), rows)


def _placed(name: str, cell: Cell) -> Any:
    """A model on its device, in its type, with its corrections."""
    model = _model(name, cell)
    placed = model.to(device=device_named(cell.shared.device), dtype=dtype_named(cell.shared.dtype))
    if name in cell.corrections:
        attach(placed, cell.corrections[name])
    return mark_untrained(placed) if hasattr(model, UNTRAINED) else placed


def _model(name: str, cell: Cell) -> Any:
    """A model; a random one has as many outputs as the data have classes, unless these are given as outputs."""
    shared, classes = cell.shared, None
    if not shared.pretrained and is_architecture(name) and cell.classes is None:
        data, split = cell.data
        images = open_data(data, split, root=shared.data_root, download=shared.download, limit=None, seed=shared.seed)
        classes = len(images.classes) or None
    return load_model(name, pretrained=shared.pretrained, num_classes=classes, seed=shared.seed)


def _measure(
    loaded: _Loaded, cells: Sequence[Cell], folder: Path | None, shard: tuple[int, int], show: Show
) -> Sequence[Result]:
    """The results of cells that run together."""
    first, shared = cells[0], cells[0].shared
    common: dict[str, Any] = {"name": first.model, "resamples": shared.resamples, "seed": shared.seed}
    at: dict[str, Any] = {"at": list(shared.at) or None}
    title = f"{first.model}: {', '.join(cell.analysis for cell in cells)}"
    entry = first.entry
    if entry.shares_a_pass(first.settings):
        reducers = {cell.entry.reducer_type(): cell.entry.settings(**cell.settings) for cell in cells}
        return single_pass(loaded.model, Counted(loaded.data(first), title, show), reducers, **at, **common)
    own = _objects(first)
    if entry.training_loss is None:
        data = Counted(loaded.data(first), title, show)
        return [entry.function(loaded.model, data, **own, **common, **(at if entry.reads_stream else {}))]
    batches = _training_batches(loaded.model, first)
    if hasattr(entry.module, "plan"):
        title += f" ({entry.module.plan(loaded.model, batches, entry.settings(**_own_settings(first)))})"
    pieces: dict[str, Any] = {
        "partial_results": _partial_results(folder, first, loaded.model),
        "track": partial(Counted, what=title, show=show, unit="steps"),
    }
    return [entry.function(loaded.model, batches, **own, **common, **pieces, **({"shard": shard} if entry.shards else {}))]


def _own_settings(cell: Cell) -> dict[str, Any]:
    """The settings of the analysis itself, without those of its training batches."""
    return {option.name: cell.settings[option.name] for option in cell.entry.own_options()}


def _objects(cell: Cell) -> dict[str, Any]:
    """The settings of the analysis, models in the place of their names."""
    values = _own_settings(cell)
    for option in cell.entry.own_options():
        name = values[option.name]
        if option.about["loads"] == "model" and name:
            values |= {option.name: _placed(name, cell), f"{option.name}_name": name}
        elif option.about["loads"] == "weights":  # an earlier moment of training is a model of its own
            values[option.name] = [_model(each, cell).state_dict() for each in name]
    return values


def _training_batches(model: Any, cell: Cell) -> Batches:
    """As many batches as requested, or of as many images as the limit or the analysis says."""
    wanted, shared = cell.entry.training_loss, cell.shared
    assert wanted is not None
    batch_size, images = shared.batch_size or wanted.batch_size, wanted.images
    if batches := cell.settings["batches"]:
        images = batches * batch_size
    elif shared.limit:
        images, batch_size = shared.limit, min(batch_size, shared.limit)
        if not shared.batch_size and not wanted.size_matters:
            batch_size = dividing(images, batch_size)
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


def _partial_results(folder: Path | None, cell: Cell, model: Any) -> PartialResults:
    """Where the finished pieces of a cell are stored: for this request and these weights."""
    if folder is None:
        return PartialResults(None, {})
    return PartialResults(_unfinished(folder, cell), {**cell.request(), "weights_sha256": weights_sha256(model)})


def _unfinished(folder: Path, cell: Cell) -> Path:
    return folder / folder_name(cell.model) / f".partial-{cell.analysis}"


def _sentence(error: Exception) -> str:
    """What went wrong in a line; for a fault of ours, with the place in the code."""
    if isinstance(error, UserError):
        return str(error)
    if sentence := shortage(error):
        return sentence
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"
