"""Models x analyses -> a folder.  Two loops and "skip what is there".

    FOLDER/study.json                    what was asked
    FOLDER/MODEL/model.json              its word and units
    FOLDER/MODEL/ANALYSIS/               a Result
    FOLDER/MODEL/failed.json             analysis -> why not, in a sentence

A cell appears whole or not at all, so that a run that was stopped goes on where it was.  Analyses that only watch a forward
pass share one.
"""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from . import analyses
from .errors import UserError
from .result import Result, load
from .setup import Setup
from .whole import write_whole

if TYPE_CHECKING:
    from .batches import Batches
    from .pieces import Pieces

#: Wraps the data of a cell so that somebody can watch its batches go by: (data, what it is for) -> data.
Watch = Callable[[Any, str], Any]


@dataclass(frozen=True)
class Cell:
    """One analysis of one model, done or failed."""

    model: str
    analysis: str
    result: Result | None
    error: str = ""
    skipped: bool = False  # it was there already

    @property
    def missing(self) -> int:
        """How many pieces other shards have still to do: until then the result is not filed."""
        return len(self.result.evidence.get("missing_rows", ())) if self.result else 0


def run_study(
    models: Sequence[str],
    asked: Mapping[str, Mapping[str, Any]],
    setup: Setup,
    out: str | Path | None = None,
    *,
    keep_going: bool = True,
    overwrite: bool = False,
    watch: Watch = lambda data, what: data,
) -> Iterator[Cell]:
    """Every analysis (name -> settings) of every model, a cell an iteration, saved under ``out`` if it is given.

    Cells that are there already are loaded, not run.  With ``keep_going`` a cell that fails is yielded with its error and
    the rest go on.  Errors: UserError for an unknown analysis, or if a cell is there that was made with other settings.
    """
    for analysis in asked:
        analyses.known(analysis)
    folder = Path(out) if out is not None else None
    done = {
        (model, analysis): cell
        for model in models
        for analysis in asked
        if folder and not overwrite and (cell := _already(folder, model, analysis, setup.request(analysis, asked[analysis])))
    }
    if folder:
        _remember(folder, models, asked, setup)
    for model in models:
        yield from (done[model, analysis] for analysis in asked if (model, analysis) in done)
        missing = {analysis: settings for analysis, settings in asked.items() if (model, analysis) not in done}
        for cell in _cells(model, missing, setup, folder, watch, keep_going):
            if folder and not cell.missing:
                _file(folder, cell, setup.request(cell.analysis, asked[cell.analysis]))
            yield cell


def folder_name(model: str) -> str:
    """A model's name as the name of a folder; ``urllib.parse.unquote`` gives it back.

    >>> folder_name("torchvision:resnet50")
    'torchvision%3Aresnet50'
    """
    return quote(model, safe="=(),")[-200:].lstrip(".")


def _cells(
    name: str, asked: Mapping[str, Mapping[str, Any]], setup: Setup, folder: Path | None, watch: Watch, keep_going: bool
) -> Iterator[Cell]:
    """The cells of one model; the model and its data are loaded once."""
    if not asked:
        return
    groups = _sharing(asked)
    try:
        model, data = ready(name, setup)
        if folder:
            _describe(folder, name, model, data, setup)
    except Exception as error:
        if not keep_going:
            raise
        yield from (Cell(name, analysis, None, _sentence(error)) for analysis in asked)
        return
    for group in groups:
        try:
            results = _measure(name, model, data, group, setup, folder, watch)
            yield from (Cell(name, result.analysis, result) for result in results)
        except Exception as error:
            if not keep_going:
                raise
            yield from (Cell(name, analysis, None, _sentence(error)) for analysis in group)


def ready(name: str, setup: Setup) -> tuple[Any, Any]:
    """A model on its device, and its data."""
    from .data import load_data

    model = _placed(name, setup)
    data = load_data(
        setup.data,
        model=model,
        split=setup.split or "test",
        limit=setup.limit,
        seed=setup.seed,
        batch_size=setup.batch_size or 32,
        workers=setup.workers,
        root=setup.data_root,
        download=setup.download,
    )
    return model, data


def _placed(name: str, setup: Setup) -> Any:
    """A model on its device, in its type."""
    return _model(name, setup).to(device=device_named(setup.device), dtype=_dtype(setup.dtype))


def _model(name: str, setup: Setup) -> Any:
    """A model; a random one tells as many classes apart as the data have."""
    from .data import open_data
    from .models.zoo import is_architecture, load_model

    classes = None
    if not setup.pretrained and is_architecture(name):
        split, root = setup.split or "test", setup.data_root
        found = open_data(setup.data, split, root=root, download=setup.download, limit=None, seed=setup.seed)
        classes = len(found.classes) or None
    return load_model(name, pretrained=setup.pretrained, num_classes=classes, seed=setup.seed)


def _sharing(asked: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Mapping[str, Any]]]:
    """The analyses in groups that run together: all that share a forward pass, then each other one."""
    together = {name: settings for name, settings in asked.items() if analyses.shares_a_pass(name, settings)}
    alone = [{name: settings} for name, settings in asked.items() if name not in together]
    return ([together] if together else []) + alone


def _measure(
    name: str,
    model: Any,
    data: Any,
    group: Mapping[str, Mapping[str, Any]],
    setup: Setup,
    folder: Path | None,
    watch: Watch,
) -> Sequence[Result]:
    shared: dict[str, Any] = {"name": name, "resamples": setup.resamples, "seed": setup.seed}
    title = f"{name}: {', '.join(group)}"
    if all(analyses.shares_a_pass(analysis, settings) for analysis, settings in group.items()):
        from .analyses.single_pass import single_pass

        reducers = {analyses.reducer_type(analysis): settings for analysis, settings in group.items()}
        return single_pass(model, watch(data, title), reducers, at=list(setup.at) or None, **shared)
    ((analysis, settings),) = group.items()
    module = import_module(f".analyses.{analysis}", __package__)
    function = getattr(module, analysis)
    if "other" in settings:
        settings = {**settings, "other": _placed(settings["other"], setup), "other_name": settings["other"]}
    if analysis not in analyses.TRAINING_LOSS:
        return [function(model, watch(data, title), **settings, **shared)]
    batches = _training_batches(model, analysis, settings, setup)
    rest = {key: value for key, value in settings.items() if key not in ("augment", "batches")}
    if "snapshots" in rest:
        rest["snapshots"] = [_snapshot(snapshot, setup) for snapshot in rest["snapshots"]]
    if hasattr(module, "plan"):
        title += f" ({module.plan(model, batches, **rest)})"
    pieces = _pieces(folder, name, model, analysis, setup.request(analysis, settings))
    return [function(model, batches, **rest, **shared, pieces=pieces, watch=lambda steps: watch(steps, title))]


def _training_batches(model: Any, analysis: str, settings: Mapping[str, Any], setup: Setup) -> Batches:
    """The batches that an analysis of the training loss wants: so many, or so many images."""
    from .batches import draw_batches

    batch_size, images = analyses.TRAINING_LOSS[analysis]
    batch_size = setup.batch_size or batch_size
    if batches := settings.get("batches"):
        images = batches * batch_size
    elif setup.limit:
        images = setup.limit
        batch_size = min(batch_size, setup.limit)
        if not setup.batch_size and analysis != "hessian":  # whose batch size is what it is about
            batch_size = dividing(images, batch_size)
    return draw_batches(
        setup.data,
        model=model,
        images=images,
        batch_size=batch_size,
        augment=settings.get("augment", "paper"),
        split=setup.split or "train",
        seed=setup.seed,
        root=setup.data_root,
        download=setup.download,
    )


def dividing(images: int, most: int) -> int:
    """The largest even batch size, from ``most`` down to half of it, that leaves no image over; ``most`` if none does.

    >>> dividing(500, 64), dividing(512, 64), dividing(498, 64)
    (50, 64, 64)
    """
    return next((size for size in range(most, most // 2, -1) if size % 2 == 0 and images % size == 0), most)


def _snapshot(name: str, setup: Setup) -> dict[str, Any]:
    """The weights of an earlier moment of training, which are a model of their own."""
    return _model(name, setup).state_dict()


def _pieces(folder: Path | None, name: str, model: Any, analysis: str, request: Mapping[str, Any]) -> Pieces:
    """Where the finished pieces of a cell are kept: for this request and these weights."""
    from .evidence import weights_sha256
    from .pieces import Pieces

    if folder is None:
        return Pieces(None, {})
    return Pieces(_unfinished(folder, name, analysis), {**request, "weights_sha256": weights_sha256(model)})


def _unfinished(folder: Path, name: str, analysis: str) -> Path:
    return folder / folder_name(name) / f".pieces-{analysis}"


def device_named(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not to be had here: {str(error).splitlines()[0]}") from error


def _dtype(name: str) -> Any:
    import torch

    known = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UserError(f"no dtype is called {name!r}; there are {', '.join(known)}")
    return known[name]


# --- the folder


def _already(folder: Path, model: str, analysis: str, request: Mapping[str, Any]) -> Cell | None:
    """The cell that is there, if it answers this request.  Errors: UserError if it answers another."""
    place = folder / folder_name(model) / analysis
    if not (place / "result.json").exists():
        return None
    result = load(place)
    there = dict(result.evidence.get("request", {}))
    if there != request:
        other = [f"{key} {there.get(key)!r}, not {value!r}" for key, value in request.items() if there.get(key) != value]
        raise UserError(f"{place} was made with {'; '.join(other[:3])}: choose another --out, or --overwrite")
    return Cell(model, analysis, result, skipped=True)


def _remember(folder: Path, models: Sequence[str], asked: Mapping[str, Any], setup: Setup) -> None:
    """Write down what was asked, after what earlier runs into the same folder asked."""
    earlier = _read(folder / "study.json")
    _write(
        folder / "study.json",
        {
            "models": list(dict.fromkeys([*earlier.get("models", []), *models])),
            "analyses": list(dict.fromkeys([*earlier.get("analyses", []), *asked])),
            **{key: value for key, value in asdict(setup).items() if key not in ("device", "workers", "data_root")},
        },
    )


def _describe(folder: Path, name: str, model: Any, data: Any, setup: Setup) -> None:
    """Write down what the model is: its word, and a line a unit."""
    from .analyses.single_pass import described, fit
    from .anatomy import spell, units
    from .models.cost import parameters

    images, _ = next(iter(data))
    found = units(model, fit(images[:2], model))
    _write(
        folder / folder_name(name) / "model.json",
        {
            "model": name,
            "word": spell(found),
            "parameters": parameters(model),
            "units": [
                {**described(u), "shape": list(u.shape), "identity": u.identity, "removable": bool(u.branch)} for u in found
            ],
        },
    )


def _file(folder: Path, cell: Cell, request: Mapping[str, Any]) -> None:
    """Put a cell in its place, or its error where the page finds it."""
    place = folder / folder_name(cell.model)
    failed = _read(place / "failed.json")
    if cell.result is not None:
        replace(cell.result, evidence={**cell.result.evidence, "request": dict(request)}).save(place / cell.analysis)
        shutil.rmtree(_unfinished(folder, cell.model, cell.analysis), ignore_errors=True)
    if cell.error or cell.analysis in failed:
        failed = {name: error for name, error in failed.items() if name != cell.analysis}
        _write(place / "failed.json", failed | ({cell.analysis: cell.error} if cell.error else {}))


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def _write(file: Path, document: Mapping[str, Any]) -> None:
    try:
        write_whole(file, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; choose another --out") from error


def _sentence(error: Exception) -> str:
    """What went wrong in a line; for a fault of ours, where."""
    if isinstance(error, UserError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
