"""Runs the cells of a plan and stores each result as soon as it is there.

A cell is stored completely or not at all, so that a stopped run resumes.  Analyses that only read a forward pass share one.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from backlight.analyses.entry import AugmentationSettings
from backlight.analyses.single_pass import described, single_pass
from backlight.curvature.batches import Batches, draw_batches
from backlight.data.loading import load_data, open_data
from backlight.devices import device_named, dtype_named
from backlight.errors import NotApplicable, UserError
from backlight.files import PartialResults
from backlight.inputs import to_model
from backlight.locks import Busy, locked
from backlight.models.cost import parameters
from backlight.models.sources.load import is_architecture, load_model
from backlight.progress import Counted, Show, quiet
from backlight.records import Damaged
from backlight.results.provenance import UNTRAINED, mark_untrained
from backlight.results.result import DOCUMENT, Result
from backlight.settings import options
from backlight.shortage import shortage
from backlight.study.cells import home_of, not_applicable, result_folder, store, stored
from backlight.study.failures import described_failures
from backlight.study.folder import ModelUnits, UnitRow, start_study, store_model, store_request
from backlight.study.identity import Identities, Identity
from backlight.study.plan import Cell, passes, plan
from backlight.study.settings import StudySettings
from backlight.tracing.corrections import attach
from backlight.tracing.find import units
from backlight.tracing.repeat import check_repeats
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
    identity: Identity | None = None  # of what was measured, if it is to be stored

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
    They are used again only if model, data and analysis are the same; a cell that another process measures is waited for.
    Errors: UserError for an unknown analysis or setting, or if a cell is there that was made with other settings.
    """
    cells, postponed = plan(models, analyses, settings), []
    how = _How(Path(out) if out is not None else None, keep_going, overwrite, shard, show)
    earlier: dict[tuple[str, str], _Earlier] = {}
    if how.folder:
        start_study(how.folder, cells)
        earlier = {(cell.model, cell.analysis): _earlier(cell, how) for cell in cells}
        if damage := store_request(how.folder, cells, settings):
            show(f"{damage}: it is made again")
    identities = Identities()
    for model in dict.fromkeys(cell.model for cell in cells):
        own = [cell for cell in cells if cell.model == model]
        loaded = _Loaded(own[0], identities)
        reused = {cell.analysis: _reused(loaded, cell, earlier, how) for cell in own}
        yield from (outcome for outcome in reused.values() if outcome)
        postponed += yield from _unlocked(loaded, [cell for cell in own if not reused[cell.analysis]], earlier, how)
    for cell in postponed:
        assert how.folder is not None
        show(f"{cell.model} {cell.analysis}: another process measures it, and its result is waited for")
        with locked(home_of(how.folder, cell), cell.analysis, wait=True):
            yield from _measured(_Loaded(cell, identities), [cell], earlier, how)


@dataclass(frozen=True)
class _How:
    """How a study runs; the arguments of `run_study`."""

    folder: Path | None
    keep_going: bool
    overwrite: bool
    shard: tuple[int, int]
    show: Show


@dataclass(frozen=True)
class _Earlier:
    """The result of a cell that was there, and which file it was."""

    result: Result | None
    file: tuple[int, int] | None


def _earlier(cell: Cell, how: _How) -> _Earlier:
    """What is stored of a cell.  Errors: UserError if it answers another request."""
    assert how.folder is not None
    folder, file = how.folder, _file(how.folder, cell)
    return _Earlier(_unless_damaged(lambda: stored(folder, cell, overwrite=how.overwrite), how.show), file)


def _file(folder: Path, cell: Cell) -> tuple[int, int] | None:
    """What changes when a result is stored."""
    try:
        about = (result_folder(folder, cell) / DOCUMENT).stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ino


def _unless_damaged(read: Callable[[], T | None], show: Show) -> T | None:
    """What ``read`` returns; None if a file is damaged, which is said: it is then made again."""
    try:
        return read()
    except Damaged as error:
        show(f"{error}: it is made again")
        return None


def _reused(loaded: _Loaded, cell: Cell, earlier: Mapping[tuple[str, str], _Earlier], how: _How) -> Outcome | None:
    """What an earlier run measured, if it is the same model, data and analysis; None if the cell is to be measured."""
    folder = how.folder
    if folder is None or how.overwrite:
        return None
    try:
        if (result := earlier[cell.model, cell.analysis].result) is not None:
            same = _is_same(loaded, cell, result.provenance.get("identity"), how)
            return Outcome(cell, result, skipped=True) if same else None
        reason = _unless_damaged(lambda: not_applicable(folder, cell), how.show)
        same = reason is not None and _is_same(loaded, cell, reason.identity, how)
        return Outcome(cell, None, reason.reason, True, False) if reason and same else None
    except Exception as error:
        if not how.keep_going:
            raise
        return _saved(Outcome(cell, None, _sentence(error)), how)


def _is_same(loaded: _Loaded, cell: Cell, identity: Any, how: _How) -> bool:
    """Whether this is the identity of the cell; if not, it is said."""
    change = loaded.identities.change(identity, cell, loaded.placed)
    if change:
        assert how.folder is not None
        how.show(f"{result_folder(how.folder, cell)} {change}: it is measured again")
    return not change


def _unlocked(
    loaded: _Loaded, cells: Sequence[Cell], earlier: Mapping[tuple[str, str], _Earlier], how: _How
) -> Generator[Outcome, None, list[Cell]]:
    """Measure the cells of one model that no other process measures; returns the others."""
    postponed: list[Cell] = []
    for group in passes(cells):
        with ExitStack() as locks:
            mine = [cell for cell in group if _take(locks, cell, how)]
            postponed += [cell for cell in group if cell not in mine]
            yield from _measured(loaded, mine, earlier, how)
    return postponed


def _take(locks: ExitStack, cell: Cell, how: _How) -> bool:
    """Whether nobody else measures the cell; it is then locked.  Shards measure one cell together."""
    if how.folder is not None and how.shard[1] == 1:
        try:
            locks.enter_context(locked(home_of(how.folder, cell), cell.analysis))
        except Busy:
            return False
    return True


def _measured(
    loaded: _Loaded, cells: Sequence[Cell], earlier: Mapping[tuple[str, str], _Earlier], how: _How
) -> Iterator[Outcome]:
    """The outcomes of cells that run together, stored; those that another process stored meanwhile are not measured."""
    left = []
    for cell in cells:
        if how.folder and _file(how.folder, cell) != earlier[cell.model, cell.analysis].file:
            try:
                now = {(cell.model, cell.analysis): _earlier(cell, how)}
            except UserError as error:  # of another request
                if not how.keep_going:
                    raise
                yield Outcome(cell, None, _sentence(error))
                continue
            if outcome := _reused(loaded, cell, now, how):
                yield outcome
                continue
        left.append(cell)
    for outcome in _outcomes(loaded, left, how) if left else ():
        yield _saved(outcome, how)


def _saved(outcome: Outcome, how: _How) -> Outcome:
    """The outcome, stored if nothing of it is missing."""
    if how.folder and not outcome.missing:
        store(
            how.folder, outcome.cell, outcome.result, outcome.error,
            applicable=outcome.applicable, identity=outcome.identity,
        )  # fmt: skip
        if outcome.result is not None:
            shutil.rmtree(_unfinished(how.folder, outcome.cell), ignore_errors=True)
    return outcome


def _outcomes(loaded: _Loaded, cells: Sequence[Cell], how: _How) -> Iterator[Outcome]:
    """The outcomes of cells that run together; all fail if the model cannot be loaded."""
    if failure := loaded.failure(how):
        yield from (Outcome(cell, None, failure) for cell in cells)
    else:
        yield from _of_group(loaded, cells, how)


def _of_group(loaded: _Loaded, group: Sequence[Cell], how: _How) -> Iterator[Outcome]:
    """Cells that run together; one by one if the model has no answer to one of them."""
    identities: dict[str, Identity] = {}
    try:
        if how.folder:
            identities = {cell.analysis: loaded.identities.of(cell, loaded.placed) for cell in group}
        with described_failures(loaded.model, lambda: loaded.first_images(group[0])):
            results = _measure(loaded, group, identities, how)
    except Exception as error:
        if not how.keep_going:
            raise
        if isinstance(error, NotApplicable) and len(group) > 1:
            for cell in group:
                yield from _of_group(loaded, [cell], how)
        else:
            reason, applicable = _sentence(error), not isinstance(error, NotApplicable)
            for cell in group:
                yield Outcome(cell, None, reason, applicable=applicable, identity=identities.get(cell.analysis))
    else:
        for cell, result in zip(group, results, strict=True):
            yield Outcome(cell, result, identity=identities.get(cell.analysis))


class _Loaded:
    """The model of a cell, and data for it, loaded when they are first needed."""

    def __init__(self, cell: Cell, identities: Identities) -> None:
        self.cell, self.identities = cell, identities
        self._data: dict[tuple[str, str], Any] = {}
        self._failure: str | None = None

    def failure(self, how: _How) -> str:
        """Why the model cannot be used; empty if it can, and then its units are written down."""
        if self._failure is None:
            try:
                with described_failures():
                    self._look(how)
                self._failure = ""
            except Exception as error:
                if not how.keep_going:
                    raise
                self._failure = _sentence(error)
        return self._failure

    def _look(self, how: _How) -> None:
        """Write down the units, and say what is unusual."""
        images = to_model(self.first_images(self.cell)[:2], self.model)
        if caution := check_repeats(self.model, images):
            how.show(f"{self.cell.model}: {caution}")
        if how.folder:
            store_model(how.folder, self._units(images))

    def first_images(self, cell: Cell) -> Tensor:
        """The first batch of the images that a cell is about."""
        return next(iter(self.data(cell)))[0]

    def placed(self, name: str, cell: Cell) -> Any:
        """This model, or another that a cell needs."""
        return self.model if name == self.cell.model else _placed(name, cell)

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
                batch_size=cell.batch_size, workers=shared.workers, root=shared.data_root, download=shared.download,
                classes=cell.classes,
            )  # fmt: skip
        return self._data[name, split]

    def _units(self, images: Tensor) -> ModelUnits:
        """The model's word, and a row a unit."""
        traced = units(self.model, images)
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


def _measure(loaded: _Loaded, cells: Sequence[Cell], identities: Mapping[str, Identity], how: _How) -> Sequence[Result]:
    """The results of cells that run together."""
    first, shared = cells[0], cells[0].shared
    common: dict[str, Any] = {"name": first.model, "resamples": shared.resamples, "seed": shared.seed}
    at: dict[str, Any] = {"at": list(shared.at) or None}
    title = f"{first.model}: {', '.join(cell.analysis for cell in cells)}"
    entry = first.entry
    if entry.shares_a_pass(first.settings):
        reducers = {cell.entry.reducer_type(): cell.entry.settings(**cell.settings) for cell in cells}
        return single_pass(loaded.model, Counted(loaded.data(first), title, how.show), reducers, **at, **common)
    own = _objects(first)
    if entry.training_loss is None:
        data = Counted(loaded.data(first), title, how.show)
        return [entry.function(loaded.model, data, **own, **common, **(at if entry.reads_stream else {}))]
    batches = _training_batches(loaded.model, first)
    if hasattr(entry.module, "plan"):
        title += f" ({entry.module.plan(loaded.model, batches, entry.settings(**_own_settings(first)))})"
    pieces: dict[str, Any] = {
        "partial_results": _partial_results(how.folder, first, identities),
        "track": partial(Counted, what=title, show=how.show, unit="steps"),
    }
    return [entry.function(loaded.model, batches, **own, **common, **pieces, **({"shard": how.shard} if entry.shards else {}))]


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


def _partial_results(folder: Path | None, cell: Cell, identities: Mapping[str, Identity]) -> PartialResults:
    """Where the finished pieces of a cell are stored: for this request of this model and these data."""
    if folder is None:
        return PartialResults(None, {})
    return PartialResults(_unfinished(folder, cell), {**cell.request(), "identity": asdict(identities[cell.analysis])})


def _unfinished(folder: Path, cell: Cell) -> Path:
    return home_of(folder, cell) / f".partial-{cell.analysis}"


def _sentence(error: Exception) -> str:
    """What went wrong in a line; for a fault of ours, with the place in the code."""
    if isinstance(error, UserError):
        return str(error)
    if sentence := shortage(error):
        return sentence
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"
