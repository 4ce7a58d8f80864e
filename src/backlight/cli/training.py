"""The commands that make models: training, the build-up search, and surgery."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from backlight.buildup.settings import SearchSettings
from backlight.cli.options import AsJson, Given, Model, Pretrained, Quiet, takes, whole_numbers
from backlight.cli.output import display, print_rows, print_table, write
from backlight.errors import UserError
from backlight.model_names.alias import split
from backlight.recipes import Recipe, recipe
from backlight.training.settings import Execution, TrainingData, TrainingRun

ModelFolder = Annotated[Path, typer.Option(metavar="DIR", help="The folder that will hold the model.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(
        "train",
        help="Train a model and save it where `backlight` commands can load it by the folder's name.\n\n"
        "Example: backlight train 'word:ccc cca?block=basic&dim=16' --data fashion --out runs/mine\n\n"
        "Options from --epochs on replace fields of the recipe.  --resume continues a stopped run; --seeds 0,1,2 trains "
        "three models into folders of --out.  Several GPUs: torchrun --nproc-per-node N -m backlight train ...",
    )(train_command)
    app.command(
        "buildup",
        help="The paper's build-up rule: replace convolutions by attention from the end of a CNN, and keep what helps by more "
        "than the noise between seeds.\n\n"
        "Example: backlight buildup 'word:ccc ccc?block=basic&dim=16' --data fashion --minutes 120 --out runs/search\n\n"
        "Options from --epochs on replace fields of the recipe.  --resume continues a stopped search.",
    )(buildup_command)
    app.command(
        "hybridize",
        help="Replace convolutions of a model by attention, and save it where `backlight` commands can load it.\n\n"
        "Example: backlight hybridize resnet50 --units 6,15 --out runs/hybrid",
    )(hybridize_command)


@takes(TrainingData, TrainingRun, Execution, replaces=Recipe)
def train_command(
    given: Given,
    model: Model,
    out: ModelFolder,
    *,
    seeds: Annotated[str | None, typer.Option(metavar="N,N,...", help="Train once a seed, into DIR/seed-N.")] = None,
    quiet: Quiet = False,
) -> None:
    """Print the folder when the training is complete."""
    from backlight.devices import first_process
    from backlight.training.run import Run
    from backlight.training.run_folder import over_seeds, train_to_folder

    run = Run(split(model)[1], **requested(given, TrainingRun))
    if seeds is None:
        events = train_to_folder(run, out, **given[Execution])
    else:
        events = over_seeds(run, out, whole_numbers(seeds, "seeds"), **given[Execution])
    follow(events, quiet)
    if first_process():
        write(f"{out}\n")


@takes(TrainingData, SearchSettings, Execution, replaces=Recipe, without=("log",))
def buildup_command(given: Given, model: Model, out: ModelFolder, *, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Print a row a design."""
    from backlight.buildup.search import BuildupRun, buildup_to_folder
    from backlight.study.cells import load

    run = BuildupRun(split(model)[1], **requested(given, SearchSettings))
    follow(buildup_to_folder(run, out, **given[Execution]), quiet)
    print_rows(load(out / "buildup").rows(), as_json)


def requested(given: Given, kind: Any) -> dict[str, Any]:
    """What is trained: data, recipe with its replaced fields, and the settings of a run."""
    data = {**given[TrainingData]}
    name = data.pop("recipe", TrainingData().recipe)
    chosen = recipe(name, **given[Recipe])
    return {"data": TrainingData().data, **data, "recipe": chosen, **given[kind]}


def follow(events: Iterable[Any], quiet: bool) -> None:
    """Show the events of a long run."""
    with display(quiet) as show:
        for event in events:
            show(event)


def hybridize_command(
    model: Model,
    out: ModelFolder,
    units: Annotated[str | None, typer.Option(metavar="N,N,...", help="Numbers of units; see: backlight units MODEL.")] = None,
    to: Annotated[str, typer.Option(help="attention, convolution or blur.")] = "attention",
    window: Annotated[int, typer.Option(min=1, help="Side of the attention windows.")] = 7,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads; default: by the width.")] = None,
    match_parameters: Annotated[
        bool, typer.Option("--match-parameters", help="Attention with as many parameters as the branch it replaces.")
    ] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Remove the old branches, instead of a gate at 0.")] = False,
    smooth: Annotated[bool, typer.Option("--smooth", help="Blur the stream at the end of each stage.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the new weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is there.")] = False,
    pretrained: Pretrained = True,
) -> None:
    """Print the model before and after."""
    from backlight.cli.lists import units_of
    from backlight.files import atomic_folder, refuse_unwritable
    from backlight.model_names.saved import describe, saved_folder
    from backlight.models.cost import parameters
    from backlight.models.sources.saved import save_model
    from backlight.models.surgery import hybridize as surgery
    from backlight.tracing.find import units as find_units
    from backlight.tracing.tap import spell

    replaced = whole_numbers(units) if units is not None else []
    if not replaced and not smooth:
        raise UserError("nothing to do: say which units with --units N,N,..., or --smooth")
    if drop and not replaced:
        raise UserError("--drop removes the old branches of --units, and none are given")
    if (out / "model.json").exists() and not overwrite:
        raise UserError(f"{out} holds a model already: choose another --out, or --overwrite")
    refuse_unwritable(out)
    named, source_model = split(model)
    network, images, before = units_of(model, pretrained)
    hybrid = network
    if replaced:
        settings: dict[str, Any] = {"to": to, "heads": heads, "window": window, "match_parameters": match_parameters}
        hybrid = surgery.hybridize(hybrid, images, replaced, **settings, seed=seed)
    if drop:
        hybrid = surgery.drop_original(hybrid, images)
    if smooth:
        hybrid = surgery.smooth(hybrid, images)
    classes = describe(source).classes if (source := saved_folder(source_model)) else None
    with atomic_folder(out) as draft:
        save_model(hybrid, draft, spec=source_model, num_classes=getattr(hybrid, "num_classes", None), classes=classes)
    rows = [
        {"model": name, "word": spell(units), "parameters": parameters(one)}
        for name, one, units in ((named, network, before), (str(out), hybrid, find_units(hybrid, images)))
    ]
    print_table(rows)
