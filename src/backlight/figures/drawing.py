"""A figure of stored results: which models are in it, their short names and colours, and the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from backlight.errors import UserError
from backlight.figures.catalog import PaperFigure, figure_of
from backlight.files import write_atomic
from backlight.results.charts import CHARTS, caption
from backlight.results.figures import caption_below, paper_style
from backlight.results.over import measured_on, series
from backlight.study.folder import Model, read_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
#: Okabe & Ito's palette, in an order in which neighbours differ most.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A")


def draw(number: str, models: Sequence[Model]) -> Figure:
    """The figure of these models, those that have the results which it shows.  Errors: UserError if none has."""
    about = figure_of(number)
    shown = [model for model in models if all(name in model.results for name in about.analyses)]
    if not shown:
        raise UserError(f"figure {number} needs {_and(about)} of one model, and no model here has that: run {_commands(about)}")
    names = short_names([model.name for model in shown])
    figure = about.function()([renamed(model, names[model.name]) for model in shown])
    with paper_style():
        caption_below(figure, caption_of(about, shown))
    return figure


def caption_of(about: PaperFigure, models: Sequence[Model]) -> str:
    """The words of its charts, over what each model is measured."""
    own = models[0].results[about.analyses[0]]
    names = (name.split("/") for name in about.charts)
    charts = [own.chart(panel) if analysis == own.analysis else CHARTS[f"{analysis}/{panel}"] for analysis, panel in names]
    sizes = {name: measured_on([model.results[name].measured for model in models]) for name in about.analyses}
    return caption(charts, series(sizes.values()) if len(set(sizes.values())) > 1 else next(iter(sizes.values())))


def _and(about: PaperFigure) -> str:
    return " and ".join(f"the result of {name}" for name in about.analyses)


def _commands(about: PaperFigure) -> str:
    return ", ".join(f"backlight {name} MODEL --out DIR" for name in about.analyses)


def models_in(folders: Iterable[Path], patterns: Sequence[str] = ()) -> list[Model]:
    """The models of several studies, in the order of the patterns; a model of two studies has the results of both.

    Errors: UserError if two studies have the same result of a model, or if no model fits a pattern.
    """
    models: dict[str, Model] = {}
    for folder in folders:
        for model in read_study(folder).models:
            models[model.name] = joined(models[model.name], model, folder) if model.name in models else model
    if not patterns:
        return list(models.values())
    chosen: dict[str, Model] = {}
    for pattern in patterns:
        fitting = {name: model for name, model in models.items() if fnmatchcase(name, pattern)}
        if not fitting:
            raise UserError(f"--models {pattern}: no model here is called so; there are {', '.join(models)}")
        chosen |= fitting
    return list(chosen.values())


def joined(one: Model, other: Model, folder: Path) -> Model:
    """A model with the results of both.  Errors: UserError if both have one of an analysis."""
    if both := sorted(one.results.keys() & other.results.keys()):
        raise UserError(f"{folder} has another {both[0]} of {one.name}: give one of the two folders")
    return replace(one, results={**one.results, **other.results})


def save(figure: Figure, path: Path) -> Path:
    """Write the figure.  Errors: UserError for another kind of file, or if it cannot be written."""
    import io

    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is no {', '.join(SUFFIXES)}: give --out FILE with one of these endings")
    buffer = io.BytesIO()
    with paper_style():
        figure.savefig(buffer, format=path.suffix[1:])
    try:
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    return path


# --- names and colours


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names without the folders that all share, in front and at the end; without arguments where these do not distinguish.

    >>> short_names(["runs/small/vit/seed-0", "runs/small/resnet/seed-0"])
    {'runs/small/vit/seed-0': 'vit', 'runs/small/resnet/seed-0': 'resnet'}
    """
    bare = [name.partition("?")[0] for name in names]
    parts = [name.split("/") for name in (bare if len(set(bare)) == len(names) else names)]
    if len(names) < 2:
        return {name: "/".join(part[-2:]) for name, part in zip(names, parts, strict=True)}
    for end in (0, -1):
        while all(len(part) > 1 for part in parts) and len({part[end] for part in parts}) == 1:
            parts = [part[1:] if end == 0 else part[:-1] for part in parts]
    return {name: "/".join(part) for name, part in zip(names, parts, strict=True)}


def renamed(model: Model, name: str) -> Model:
    """The model and its results under another name."""
    return replace(model, name=name, results={key: replace(result, model=name) for key, result in model.results.items()})


def colours(names: Sequence[str]) -> Mapping[str, str]:
    """A colour for each name; the seeds of one model share theirs.

    >>> colours(["vit/seed-0", "resnet/seed-0", "vit/seed-1"])["vit/seed-1"]
    '#0072B2'
    """
    groups = list(dict.fromkeys(name.partition("/seed-")[0] for name in names))
    return {name: COLOURS[groups.index(name.partition("/seed-")[0]) % len(COLOURS)] for name in names}
