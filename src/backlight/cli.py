"""The command line: every command is a library function whose model and data are given by name.

Results go to standard output, progress and complaints to standard error.  Nothing here imports torch before a command
runs, so that help and a wrong argument answer at once.
"""

from __future__ import annotations

import csv
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from . import __version__
from .analyses import ANALYSES, BY_DEFAULT
from .errors import UserError, did_you_mean
from .setup import Setup

app = typer.Typer(
    name="backlight",
    help="See how a vision model works: Park & Kim's analyses for any model, one command a figure.",
    epilog="Example: backlight fourier resnet50 --data fashion --limit 200 --out runs",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

#: What is wrong with the arguments.  Taken from a public descendant: typer brings click under one name or another.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model by name; see: backlight models --help.")]
Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models by name; see: backlight models --help.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of CSV.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results made with other settings.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Save rows, figure and evidence here; a re-run goes on.")]
Pretrained = Annotated[bool, typer.Option(help="The trained weights, or random ones.")]
Places = Annotated[list[str] | None, typer.Option(metavar="MODULE", help="Read this module instead of units; repeatable.")]

WeightDecay = Annotated[float, typer.Option(min=0, help="Of the training loss.")]
Statistics = Annotated[str, typer.Option(help="Of batch norms: running, batch or re-estimated.")]
Augment = Annotated[str, typer.Option(help="Of the training images: paper, crop or none.")]
Snapshots = Annotated[list[str] | None, typer.Option(metavar="MODEL...", help="Earlier moments of training, in order.")]

#: The options that all analyses share; their defaults are the library's.
SHARED = {
    "data": Annotated[str, typer.Option(help="A data set by name, or a folder; see: backlight data --help.")],
    "data_root": Annotated[str | None, typer.Option(metavar="DIR", help="Where named data sets lie.")],
    "download": Annotated[bool, typer.Option("--download", help="Allow downloading the data.")],
    "split": Annotated[str | None, typer.Option(help="train or test; default: what the analysis is about.")],
    "limit": Annotated[int | None, typer.Option(min=1, metavar="N", help="A stratified subset of N images.")],
    "seed": Annotated[int, typer.Option(min=0, help="For subset, bootstrap and random weights.")],
    "batch_size": Annotated[int | None, typer.Option(min=1)],
    "device": Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")],
    "dtype": Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")],
    "workers": Annotated[int | None, typer.Option(min=0, help="Processes that decode images.")],
    "resamples": Annotated[int, typer.Option(min=1, help="Bootstrap resamples behind each interval.")],
    "pretrained": Pretrained,
}


#: The options that every training shares, with their defaults: what is trained on, and how the run goes about it.
TRAINED_ON: dict[str, tuple[Any, Any]] = {
    "data": (SHARED["data"], "fashion"),
    "recipe": (Annotated[str, typer.Option(help="See: backlight recipes.")], "fashion"),
    "limit": (Annotated[int | None, typer.Option(min=1, metavar="N", help="Train on a stratified subset of N images.")], None),
    "fraction": (Annotated[float, typer.Option(help="Train on this share of the images, stratified.")], 1.0),
    "hold": (Annotated[str, typer.Option(help="With fewer images: hold epochs or steps.")], "epochs"),
}
RUNNING: dict[str, tuple[Any, Any]] = {
    "resume": (
        Annotated[bool, typer.Option("--resume", help="Go on with what is there; begin where nothing is.")],
        False,
    ),
    "overwrite": (Annotated[bool, typer.Option("--overwrite", help="Remove what is there first.")], False),
    "compile": (Annotated[bool, typer.Option("--compile", help="Compile the model first.")], False),
    "device": (SHARED["device"], "auto"),
    "threads": (Annotated[int | None, typer.Option(min=1, help="CPU threads: the last digits depend on them.")], None),
    "workers": (Annotated[int | None, typer.Option(min=0, help="Processes that decode large images.")], None),
    "data_root": (SHARED["data_root"], None),
    "download": (SHARED["download"], False),
    "checkpoint_seconds": (Annotated[float, typer.Option(min=0, help="Between checkpoints; 0 makes one a step.")], 60.0),
}


@app.callback()
def backlight_command(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=lambda asked: asked and show_version())] = False,
) -> None:
    pass


def show_version() -> None:
    print(f"backlight {__version__}")
    raise typer.Exit


def shares_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; it receives them together as its first argument, a Setup."""
    defaults = {field.name: field.default for field in fields(Setup)}

    def setup(options: dict[str, Any]) -> Setup:
        return Setup(**{name: options.pop(name) for name in SHARED}, at=tuple(options.pop("at", None) or ()))

    return with_options(command, {name: (hint, defaults[name]) for name, hint in SHARED.items()}, setup)


class Training(NamedTuple):
    """What the options of a training say: the recipe, what is trained on, and how the run goes about it."""

    recipe: Any
    on: dict[str, Any]
    settings: dict[str, Any]


def trains(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a training and of a recipe's fields; it receives them as its first argument, a Training."""
    from .recipes import Recipe

    kinds = get_type_hints(Recipe)
    told = {
        field.name: (recipe_option(field.name, kinds[field.name], field.metadata["help"]), None) for field in fields(Recipe)
    }

    def training(options: dict[str, Any]) -> Training:
        from .recipes import recipe

        given = {name: value for name in told if (value := options.pop(name)) is not None}
        if "milestones" in given:
            given["milestones"] = tuple(whole_numbers(given["milestones"], "epochs")) if given["milestones"] else ()
        return Training(
            recipe(options.pop("recipe"), **given),
            {name: options.pop(name) for name in TRAINED_ON if name != "recipe"},
            {name: options.pop(name) for name in RUNNING},
        )

    return with_options(command, {**TRAINED_ON, **RUNNING, **told}, training)


def with_options(
    command: Callable[..., None], added: Mapping[str, tuple[Any, Any]], gathered: Callable[[dict[str, Any]], Any]
) -> Callable[..., None]:
    """The command with more options, name -> (hint, default); its first argument is what ``gathered`` takes out of them all."""
    hints = get_type_hints(command, include_extras=True)
    own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values()][1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, keyword, default=default, annotation=hint) for name, (hint, default) in added.items()]

    @functools.wraps(command)
    def with_more(*args: Any, **options: Any) -> None:
        first = gathered(options)
        command(first, *args, **options)

    with_more.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    with_more.__annotations__ = {p.name: p.annotation for p in (*own, *more)}
    return with_more


def recipe_option(name: str, kind: Any, about: str) -> Any:
    """The option that overrules a field of the recipe."""
    if kind is bool:
        word = name.replace("_", "-")
        return Annotated[bool | None, typer.Option(f"--{word}/--no-{word}", help=about)]
    shown = kind if kind in (int, float, str) else str
    metavar = None if kind in (int, float, str) else "N,N,..."
    return Annotated[shown | None, typer.Option(help=about, metavar=metavar)]


# --- the analyses


def analysis(name: str, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register an analysis's command, its help the analysis's question."""
    return app.command(name, help=f"{ANALYSES[name]}\n\nExample: backlight {name} {example}")


@analysis("fourier", "resnet50 vit_tiny_patch16_224 --data imagenet --data-root ~/imagenet --limit 500 --out runs")
@shares_options
def fourier_command(
    setup: Setup,
    models: Models,
    *,
    at: Places = None,
    radial: Annotated[bool, typer.Option("--radial", help="Average over directions instead of the diagonal.")] = False,
    paper: Annotated[bool, typer.Option("--paper", help="The authors' bins, which stop short of π.")] = False,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    measure("fourier", {"radial": radial, "paper": paper}, models, setup, out, overwrite, as_json, quiet)


@analysis("variance", "demo-vit --data fashion --limit 500")
@shares_options
def variance_command(
    setup: Setup,
    models: Models,
    *,
    at: Places = None,
    over: Annotated[str, typer.Option(help="space (the paper) or samples.")] = "space",
    normalise: Annotated[bool, typer.Option("--normalise", help="Divide by the stream's mean square.")] = False,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    measure("variance", {"over": over, "normalise": normalise}, models, setup, out, overwrite, as_json, quiet)


@analysis("similarity", "demo-cnn demo-vit --data fashion --limit 500 --out runs")
@shares_options
def similarity_command(
    setup: Setup,
    models: Models,
    *,
    other: Annotated[str | None, typer.Option(metavar="MODEL", help="Compare with the units of this model.")] = None,
    branch: Annotated[bool, typer.Option("--branch", help="What units add, instead of the stream after them.")] = False,
    at: Places = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    settings: dict[str, Any] = ({"other": other} if other else {}) | ({"branch": True} if branch else {})
    measure("similarity", settings, models, setup, out, overwrite, as_json, quiet)


@analysis("attention", "demo-vit demo-alternet --data fashion --limit 500 --out runs")
@shares_options
def attention_command(
    setup: Setup,
    models: Models,
    *,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    measure("attention", {}, models, setup, out, overwrite, as_json, quiet)


@analysis("noise", "demo-cnn demo-vit --data fashion --limit 500 --out runs")
@shares_options
def noise_command(
    setup: Setup,
    models: Models,
    *,
    frequencies: Annotated[str | None, typer.Option(metavar="F,F,...", help="Middles of the bands, in units of π.")] = None,
    width: Annotated[float, typer.Option(help="Of a band, in units of π.")] = 0.1,
    severities: Annotated[str | None, typer.Option(metavar="S,S,...", help="Root mean square, pixels 0 to 1.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The same amplitude at every frequency, not the same energy.")] = False,
    clip: Annotated[bool, typer.Option(help="Keep noisy pixels in [0, 1].")] = True,
    basis: Annotated[int, typer.Option(min=0, help="Waves a side of the Fourier heat map, odd; 0: none.")] = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    settings: dict[str, Any] = {"width": width, "paper": paper, "clip": clip, "basis": basis}
    settings |= given_numbers(frequencies=frequencies, severities=severities)
    measure("noise", settings, models, setup, out, overwrite, as_json, quiet)


@analysis("corruption", "demo-cnn demo-vit --data fashion --limit 200 --out runs")
@shares_options
def corruption_command(
    setup: Setup,
    models: Models,
    *,
    corruptions: Annotated[str | None, typer.Option(metavar="A,B,...", help="Default: the 15 of ImageNet-C.")] = None,
    severities: Annotated[str, typer.Option(metavar="N,N,...")] = "1,2,3,4,5",
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An official CIFAR-10-C, CIFAR-100-C or ImageNet-C.")
    ] = None,
    strengths: Annotated[str, typer.Option(help="imagenet, cifar, or auto: the latter up to 64 px.")] = "auto",
    bins: Annotated[int, typer.Option(min=1, help="Bins of ECE.")] = 10,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    settings: dict[str, Any] = {"severities": whole_numbers(severities, "severities"), "strengths": strengths, "bins": bins}
    if corruptions:
        settings["corruptions"] = corruptions.split(",")
    if folder:
        settings["folder"] = str(folder)
    measure("corruption", settings, models, setup, out, overwrite, as_json, quiet)


@analysis("adversarial", "demo-cnn demo-vit --data fashion --limit 200 --out runs")
@shares_options
def adversarial_command(
    setup: Setup,
    models: Models,
    *,
    epsilons: Annotated[str | None, typer.Option(metavar="E,E,...", help="In 1/255 of a pixel's range.")] = None,
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    steps: Annotated[int, typer.Option(min=1, help="Of PGD.")] = 10,
    step_size: Annotated[float | None, typer.Option(help="In 1/255; default: 2.5 epsilon / steps.")] = None,
    random_start: Annotated[bool, typer.Option(help="Begin PGD at a random place within the bound.")] = True,
    targeted: Annotated[bool, typer.Option("--targeted", help="Towards another class, not away from the label.")] = False,
    band: Annotated[str | None, typer.Option(metavar="FROM,TO", help="Only these frequencies, in units of π.")] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    settings: dict[str, Any] = {"norm": norm, "steps": steps, "step_size": step_size, "random_start": random_start}
    settings |= {"targeted": targeted, **given_numbers(epsilons=epsilons, band=band)}
    measure("adversarial", settings, models, setup, out, overwrite, as_json, quiet)


@analysis("shape_bias", "runs/trained-on-shapes --out runs")
@shares_options
def shape_bias_command(
    setup: Setup,
    models: Models,
    *,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    from dataclasses import replace

    data = "shapes" if setup.data == Setup().data else setup.data
    setup = replace(setup, data=data, split=setup.split or "conflict")
    measure("shape_bias", {}, models, setup, out, overwrite, as_json, quiet)


@analysis("lesion", "demo-alternet --data fashion --limit 500 --out runs")
@shares_options
def lesion_command(
    setup: Setup,
    models: Models,
    *,
    instead: Annotated[str, typer.Option("--replace", help="A branch becomes zero, its mean, or resampled.")] = "zero",
    heads: Annotated[bool, typer.Option("--heads", help="Silence single heads too.")] = False,
    pairs: Annotated[int, typer.Option(min=0, help="Silence so many pairs of units too.")] = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    measure("lesion", {"replace": instead, "heads": heads, "pairs": pairs}, models, setup, out, overwrite, as_json, quiet)


@analysis("calibration", "demo-cnn demo-vit --data fashion")
@shares_options
def calibration_command(
    setup: Setup,
    models: Models,
    *,
    bins: Annotated[int, typer.Option(min=1, help="Bins of the reliability diagram and of ECE.")] = 10,
    temperature: Annotated[
        bool, typer.Option("--temperature", help="Fit a temperature on half of the images; metrics on the other half.")
    ] = False,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    measure("calibration", {"bins": bins, "temperature": temperature}, models, setup, out, overwrite, as_json, quiet)


@analysis("hessian", "demo-cnn demo-vit --data fashion --batches 8 --out runs")
@shares_options
def hessian_command(
    setup: Setup,
    models: Models,
    *,
    batches: Annotated[int | None, typer.Option(min=1, help="Mini-batches, of 16 unless --batch-size; default 20.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Eigenvalues of each batch, by magnitude.")] = 5,
    tol: Annotated[float, typer.Option(min=0, help="Error of an eigenvalue, as a share of it.")] = 1e-3,
    by: Annotated[str | None, typer.Option(help="kind: blocks of all attentions, all convolutions, ... too.")] = None,
    weight_decay: WeightDecay = 0.05,
    statistics: Statistics = "running",
    augment: Augment = "paper",
    paper: Annotated[bool, typer.Option("--paper", help="Power iteration as in PyHessian, right or wrong.")] = False,
    together: Annotated[int, typer.Option(min=1, help="Mini-batches at once, for a GPU that one leaves idle.")] = 1,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    settings: dict[str, Any] = {"batches": batches, "top": top, "tol": tol, "by": by, "weight_decay": weight_decay}
    settings |= {"statistics": statistics, "augment": augment, "paper": paper, "together": together}
    measure("hessian", settings, models, setup, out, overwrite, as_json, quiet)


@analysis("landscape", "demo-cnn demo-vit --data fashion --grid 11 --limit 128 --out runs")
@shares_options
def landscape_command(
    setup: Setup,
    models: Models,
    *,
    grid: Annotated[int, typer.Option(min=3, help="Points along each direction; odd.")] = 21,
    radius: Annotated[float, typer.Option(help="How far to go, in units of the directions.")] = 1.0,
    dimensions: Annotated[int, typer.Option(min=1, max=2, help="A line or a plane.")] = 2,
    directions: Annotated[str, typer.Option(help="random, eigenvectors or path.")] = "random",
    snapshots: Snapshots = None,
    normalise: Annotated[str | None, typer.Option(help="filter or none; default: filter for random directions.")] = None,
    weight_decay: WeightDecay = 0.05,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    statistics: Statistics = "running",
    augment: Augment = "paper",
    paper: Annotated[bool, typer.Option("--paper", help="The authors' normalisation and weight decay.")] = False,
    vtp: Annotated[bool, typer.Option("--vtp", help="With --out: the surface for ParaView, too.")] = False,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="With --out: the I-th of N parts, as many processes at once.")
    ] = "1/1",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    if vtp and out is None:
        raise UserError("--vtp writes the surface beside the results: say where with --out DIR")
    part = shard_numbered(shard)
    if part != (0, 1) and out is None:
        raise UserError("--shard keeps its part beside those of others: say where with --out DIR")
    settings = {"grid": grid, "radius": radius, "dimensions": dimensions, "directions": directions, "normalise": normalise}
    settings |= {"weight_decay": weight_decay, "precision": precision, "statistics": statistics, "augment": augment}
    settings |= {"paper": paper, "snapshots": snapshots or [], "shard": part}
    results = measure("landscape", settings, models, setup, out, overwrite, as_json, quiet)
    if vtp and out is not None:
        from .study import folder_name
        from .vtp import write_vtp

        for result in results:
            write_vtp(result, out / folder_name(result.model) / "landscape" / "landscape.vtp")


@analysis("trajectory", "runs/mine --snapshots runs/mine-1 runs/mine-10 --data fashion --out runs")
@shares_options
def trajectory_command(
    setup: Setup,
    models: Models,
    *,
    snapshots: Snapshots = None,
    grid: Annotated[int, typer.Option(min=0, help="Points along each axis of the loss surface in the plane; 0: none.")] = 0,
    weight_decay: WeightDecay = 0.05,
    statistics: Statistics = "running",
    augment: Augment = "paper",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    settings: dict[str, Any] = {"snapshots": snapshots or [], "grid": grid, "weight_decay": weight_decay}
    settings |= {"statistics": statistics, "augment": augment}
    measure("trajectory", settings, models, setup, out, overwrite, as_json, quiet)


def measure(
    name: str,
    settings: Mapping[str, Any],
    models: Sequence[str],
    setup: Setup,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> list[Any]:
    """Run one analysis of each model and print its rows; the results."""
    from .study import run_study

    cells = run_study(models, {name: settings}, setup, out, keep_going=False, overwrite=overwrite, watch=watching(quiet))
    results = []
    for cell in cells:
        if cell.missing:
            say(f"{cell.model}: {out} keeps this part; {cell.missing} rows are missing, and who finds all writes the result")
        elif cell.result:
            results.append(cell.result)
    if as_json:
        keys = ("model", "analysis", "claims", "evidence")
        print_json([{key: getattr(r, key) for key in keys} | {"rows": r.rows()} for r in results])
    else:
        print_csv([row for result in results for row in result.rows()])
    return results


# --- models x analyses


@app.command(
    "study",
    help="Run analyses of models into one folder.\n\nExample: backlight study --models demo-cnn demo-vit --out runs",
)
@shares_options
def study_command(
    setup: Setup,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A TOML file with the same words as the flags.")] = None,
    *,
    models: Annotated[list[str] | None, typer.Option(metavar="MODEL...")] = None,
    analyses: Annotated[
        list[str] | None, typer.Option(metavar="ANALYSIS...", help="Default: all that look at test images.")
    ] = None,
    at: Places = None,
    out: Out = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, and stop.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    from .study import run_study

    if file is not None:
        models, analyses, out, setup = read_plan(file, models, analyses, out, setup)
    if not models:
        raise UserError("a study needs models: --models NAME NAME ...")
    if out is None:
        raise UserError("a study needs a folder for its results: --out DIR")
    asked: dict[str, dict[str, Any]] = {name: {} for name in analyses or BY_DEFAULT}
    for name in asked:
        if name not in ANALYSES:
            raise UserError(f"no analysis is called {name!r}{did_you_mean(name, ANALYSES)}")
    if plan:
        print_csv([{"model": model, "analysis": name, "out": str(out)} for model in models for name in asked])
        return
    failed = 0
    for cell in run_study(models, asked, setup, out, overwrite=overwrite, watch=watching(quiet)):
        failed += bool(cell.error)
        if not quiet or cell.error:
            state = f"failed: {cell.error}" if cell.error else "there already" if cell.skipped else "done"
            say(f"{cell.model} {cell.analysis}: {state}")
    say(f"{out} is written; next: backlight report {out}")
    if failed:
        say(f"{failed} of {len(models) * len(asked)} cells failed; the same command tries them again")
        raise SystemExit(5)


@app.command("report", help="Write one HTML page about a folder of results.\n\nExample: backlight report runs")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: FOLDER/report.html.")] = None,
) -> None:
    from .report import write_report

    print(write_report(folder, out))


@app.command(
    "demo",
    help="Analyse three small trained models on real images and write a page.\n\nExample: backlight demo --out demo",
)
def demo_command(
    out: Annotated[Path, typer.Option(metavar="DIR")] = Path("demo"),
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Fewer images, sooner done.")] = None,
    quiet: Quiet = False,
) -> None:
    from .models.zoo import list_names
    from .report import write_report
    from .study import run_study

    models = list_names()["demo"]
    for model in models:
        print(f"{model}: {summary_of(model)}", flush=True)
    asked: dict[str, dict[str, Any]] = {name: {} for name in BY_DEFAULT}
    asked |= {"hessian": {"batches": 4}, "landscape": {"grid": 11, "batches": 1}}
    attending = [model for model in models if model != "demo-cnn"]
    both: list[tuple[list[str], dict[str, dict[str, Any]]]] = [(models, asked), (attending, {"attention": {}})]
    studies = (run_study(who, what, Setup(limit=limit), out, keep_going=False, watch=watching(quiet)) for who, what in both)
    for cell in chain.from_iterable(studies):
        if not quiet:
            say(f"{cell.model} {cell.analysis}: {'there already' if cell.skipped else 'done'}")
    print(write_report(out))


# --- one model


@app.command(
    "units",
    help="The residual units of a model.\n\nExample: backlight units vit_tiny_patch16_224 --no-pretrained --check",
)
def units_command(
    model: Model,
    prove: Annotated[bool, typer.Option("--check", help="Silence each unit and compare the stream.")] = False,
    at: Places = None,
    pretrained: Pretrained = True,
    as_json: AsJson = False,
) -> None:
    from .anatomy import check, spell

    network, images, found = anatomy_of(model, pretrained, at)
    if not found:
        raise UserError(f"{model} has no residual units: name modules to read with --at MODULE")
    proof = {unit.index: said for unit, said in check(network, images, found)} if prove else {}
    spoken = {True: "equal", False: "CHANGED", None: "-"}
    rows = [
        {"unit": u.index, "kind": u.kind, "stage": u.stage, "module": u.module, "shape": " ".join(map(str, u.shape))}
        | {"skip": "identity" if u.identity else "other", "removable": "yes" if u.branch else "no"}
        | ({"check": spoken[proof[u.index]]} if prove else {})
        for u in found
    ]
    if as_json:
        print_json({"model": model, "word": spell(found), "units": rows})
    else:
        print(f"{model}: {spell(found)}")
        print_table(rows)
    if prove:
        proven, wrong = list(proof.values()).count(True), list(proof.values()).count(False)
        rest = len(found) - proven - wrong
        say(f"{proven} units proven: silent, they leave the stream as it was; {wrong} refuted; {rest} not put to the test")
        say("the model's output is bit-identical afterwards")
        if wrong:
            raise SystemExit(3)


def anatomy_of(model: str, pretrained: bool, at: Sequence[str] | None = None) -> tuple[Any, Any, list[Any]]:
    """A model, noise of the size of its images, and its units."""
    import torch

    from .anatomy import units
    from .data import preprocessing
    from .models.zoo import load_model

    network = load_model(model, pretrained=pretrained)
    images = torch.randn(2, *preprocessing(network)["input_size"], generator=torch.Generator().manual_seed(0))
    return network, images, units(network, images, at=at)


def summary_of(model: str) -> str:
    """A model in a line: its word and size."""
    from .anatomy import spell
    from .models.cost import parameters

    network, _, found = anatomy_of(model, pretrained=True)
    return f"{spell(found)} ({len(found)} units, {parameters(network):,} parameters)"


@app.command(
    "train",
    help="Train a model and save it where the zoo finds it again.\n\n"
    "Example: backlight train 'word:ccc cca?block=basic&dim=16' --data fashion --out runs/mine\n\n"
    "Options from --epochs on overrule the recipe's fields.  What was stopped goes on with --resume; --seeds 0,1,2 trains "
    "three into folders of --out.  Several GPUs: torchrun --nproc-per-node N -m backlight train ...",
)
@trains
def train_command(
    training: Training,
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder that will hold the model.")],
    *,
    held_out: Annotated[float, typer.Option(help="Share of the training images to evaluate on, not the test images.")] = 0.0,
    snapshots: Annotated[str, typer.Option(metavar="A,B,...", help="init, warmup or epochs: models of these moments.")] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    seeds: Annotated[str | None, typer.Option(metavar="N,N,...", help="Train once a seed, into DIR/seed-N.")] = None,
    log: Annotated[str | None, typer.Option(help="Metrics also to tensorboard or wandb.")] = None,
    quiet: Quiet = False,
) -> None:
    from .progress import followed
    from .runs import Run, first_process, over_seeds, train_to_folder

    names = tuple(filter(None, snapshots.replace(" ", "").split(",")))
    asked = Run(model, recipe=training.recipe, **training.on, seed=seed, held_out=held_out, snapshots=names)
    if seeds is None:
        moments = train_to_folder(asked, out, **training.settings, log=log)
    else:
        moments = over_seeds(asked, out, whole_numbers(seeds, "seeds"), **training.settings, log=log)
    followed(moments, model, quiet=quiet)
    if first_process():
        print(out)


@app.command(
    "buildup",
    help="The paper's build-up rule: attention from the end of a CNN, kept where it helps by more than the seeds' noise.\n\n"
    "Example: backlight buildup 'word:ccc ccc?block=basic&dim=16' --data fashion --minutes 120 --out runs/search\n\n"
    "Options from --epochs on overrule the recipe's fields.  What was stopped goes on with --resume.",
)
@trains
def buildup_command(
    training: Training,
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder that will hold the search.")],
    *,
    held_out: Annotated[float, typer.Option(help="Share of the training images that decides.")] = 0.1,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Trainings of each candidate.")] = "0,1,2",
    heads: Annotated[int | None, typer.Option(min=1, help="Of each attention; default: as wide as the unit allows.")] = None,
    dim_head: Annotated[int, typer.Option(min=1, help="Channels a head.")] = 64,
    window: Annotated[int, typer.Option(min=1, help="Side of the attention windows.")] = 7,
    margin: Annotated[float, typer.Option(help="Gain of accuracy, as a fraction, that the interval must lie above.")] = 0.0,
    patience: Annotated[int, typer.Option(min=0, help="Candidates more in a stage after one was rejected.")] = 0,
    controls: Annotated[bool, typer.Option(help="Kept candidates also with as many parameters as before.")] = True,
    minutes: Annotated[float | None, typer.Option(help="Budget, over all starts.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    from .buildup import BuildupRun, buildup_to_folder
    from .progress import followed
    from .result import load

    attention: dict[str, Any] = {"heads": heads, "dim_head": dim_head, "window": window}
    tried = tuple(whole_numbers(seeds, "seeds"))
    asked = BuildupRun(model, recipe=training.recipe, **training.on, held_out=held_out, seeds=tried, **attention)
    search: dict[str, Any] = {"margin": margin, "patience": patience, "controls": controls, "minutes": minutes}
    followed(buildup_to_folder(asked, out, **search, **training.settings), model, quiet=quiet)
    rows = load(out / "buildup").rows()
    print_json(rows) if as_json else print_csv(rows)


@app.command(
    "hybridize",
    help="Put attention in the place of convolutions and save the model where the zoo finds it again.\n\n"
    "Example: backlight hybridize resnet50 --units 6,15 --out runs/hybrid",
)
def hybridize_command(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder that will hold the model.")],
    units: Annotated[str | None, typer.Option(metavar="N,N,...", help="Numbers of units; see: backlight units MODEL.")] = None,
    to: Annotated[str, typer.Option(help="attention, convolution or blur.")] = "attention",
    window: Annotated[int, typer.Option(min=1, help="Side of the attention windows.")] = 7,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads; default: by the width.")] = None,
    match_parameters: Annotated[
        bool, typer.Option("--match-parameters", help="Attention with as many parameters as the branch it can replace.")
    ] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Take the old branches out, instead of a gate at 0.")] = False,
    smooth: Annotated[bool, typer.Option("--smooth", help="Blur the stream at the end of each stage.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the new weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is there.")] = False,
    pretrained: Pretrained = True,
) -> None:
    from .anatomy import spell
    from .anatomy import units as units_of
    from .models import surgery
    from .models.cost import parameters
    from .models.saved import describe, saved_folder
    from .models.zoo import save_model
    from .result import refuse_unwritable, writing

    chosen = whole_numbers(units) if units is not None else []
    if not chosen and not smooth:
        raise UserError("nothing to do: say which units with --units N,N,..., or --smooth")
    if drop and not chosen:
        raise UserError("--drop takes out the old branches of --units, and none are given")
    refuse_model_there(out, overwrite)
    refuse_unwritable(out)
    network, images, found = anatomy_of(model, pretrained)
    hybrid = network
    if chosen:
        settings: dict[str, Any] = {"to": to, "heads": heads, "window": window, "match_parameters": match_parameters}
        hybrid = surgery.hybridize(hybrid, images, chosen, **settings, seed=seed)
    if drop:
        hybrid = surgery.drop_original(hybrid, images)
    if smooth:
        hybrid = surgery.smooth(hybrid, images)
    classes = describe(source).get("classes") if (source := saved_folder(model)) else None
    with writing(out) as draft:
        save_model(hybrid, draft, spec=model, num_classes=getattr(hybrid, "num_classes", None), classes=classes)
    rows = [
        {"model": name, "word": spell(its), "parameters": parameters(one)}
        for name, one, its in ((model, network, found), (str(out), hybrid, units_of(hybrid, images)))
    ]
    print_table(rows)


# --- what there is


@app.command(
    "models",
    help="The models that can be named; of ours, what they cost: parameters, and multiply-accumulates of one image.\n\n"
    "MODEL is a timm name (ours included), NAME?img_size=32&patch_size=4, torchvision:NAME, hf:ORG/NAME, "
    "official:PATH.pth.tar, a folder that train wrote, package.module:factory or file.py:factory, or word:ccc cca.\n\n"
    "Example: backlight models 'resnet*'",
)
def models_command(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern.")] = "", as_json: AsJson = False
) -> None:
    from .models.zoo import costs, list_names

    found = list_names(pattern)
    unknown = {"input": "", "parameters": "", "macs": ""}
    rows = [
        {"source": source, "model": name} | (costs(name) if source == "ours" else unknown)
        for source, names in found.items()
        for name in names
    ]
    print_json(rows) if as_json else print_csv(rows)


@app.command("data", help="The data sets that can be named.\n\nExample: backlight data")
def data_command(as_json: AsJson = False) -> None:
    from .data import NAMES

    print_described(NAMES, "data", as_json)


@app.command("analyses", help="The analyses and what each asks.\n\nExample: backlight analyses")
def analyses_command(as_json: AsJson = False) -> None:
    print_described(ANALYSES, "analysis", as_json)


@app.command("recipes", help="The training recipes and their settings.\n\nExample: backlight recipes --json")
def recipes_command(as_json: AsJson = False) -> None:
    from dataclasses import asdict

    from .recipes import RECIPES

    rows = [{"recipe": name} | asdict(recipe) for name, recipe in RECIPES.items()]
    print_json(rows) if as_json else print_table(rows)


@app.command("doctor", help="What Backlight finds on this machine.\n\nExample: backlight doctor")
def doctor_command(as_json: AsJson = False) -> None:
    from .doctor import findings

    found = findings()
    print_json(found) if as_json else print_table([{"what": what, "found": value} for what, value in found.items()])


# --- printing


def watching(quiet: bool) -> Callable[[Any, str], Any]:
    from .progress import Watched

    return (lambda data, what: data) if quiet else Watched


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def print_json(value: Any) -> None:
    from .result import plain

    print(json.dumps(plain(value), indent=1, ensure_ascii=False))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows in aligned columns."""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_described(known: Mapping[str, str], what: str, as_json: bool) -> None:
    rows = [{what: name, "about": text} for name, text in known.items()]
    print_json(rows) if as_json else print_table(rows)


# --- the way in and out


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    0 done, 2 a user's mistake, 3 a gate failed, 4 not to be had, 5 some cells failed, 130 stopped.
    """
    try:
        command = typer.main.get_command(app)
        code = command.main(
            list(repeated(sys.argv[1:] if argv is None else argv)), prog_name="backlight", standalone_mode=False
        )
    except UserError as error:
        fail(str(error), error.exit_code)
    except UsageError as error:
        fail(*refusal(error))
    except (KeyboardInterrupt, typer.Abort):
        fail(
            "stopped; what was finished is kept; the same command, for trainings with --resume, goes on from there",
            130,
        )
    except BrokenPipeError:  # backlight ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def refusal(error: Any) -> tuple[str, int]:
    """What is wrong with the arguments, and where help is; bare ``backlight`` shows the help itself."""
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        return context.get_help(), 2
    option = getattr(error, "param", None)
    name = f"{option.opts[0]}: " if option is not None and option.opts[0].startswith("-") else ""
    text = error.format_message().rstrip(".").replace("\n", " ")
    return f"{'' if name and name[:-2] in text else name}{text}; see: {context.command_path} --help", 2


def fail(sentence: str, code: int) -> None:
    say(f"backlight: {sentence}")
    sys.exit(code)


def repeated(argv: Sequence[str]) -> Iterator[str]:
    """``--models A B C`` as click wants it: the option before each value.

    >>> list(repeated(["study", "--models", "a", "b", "--out", "c"]))
    ['study', '--models', 'a', '--models', 'b', '--out', 'c']
    """
    option: str | None = None
    fresh = False
    for word in argv:
        if word.startswith("-"):
            option, fresh = (word, True) if word in ("--models", "--analyses", "--snapshots") else (None, False)
        elif option and not fresh:
            yield option
        else:
            fresh = False
        yield word


def refuse_model_there(out: Path, overwrite: bool) -> None:
    if (out / "model.json").exists() and not overwrite:
        raise UserError(f"{out} holds a model already: choose another --out, or --overwrite")


def whole_numbers(text: str, what: str = "unit numbers") -> list[int]:
    """The numbers in a list with commas, and what they are.

    >>> whole_numbers("3, 7")
    [3, 7]
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{text!r} is no list of {what} such as 3,7") from error


def shard_numbered(text: str) -> tuple[int, int]:
    """A part of so many, counted from 0.

    >>> shard_numbered("2/4")
    (1, 4)
    """
    place, _, parts = text.partition("/")
    if not (place.isdecimal() and parts.isdecimal() and 1 <= int(place) <= int(parts)):
        raise UserError(f"{text!r} is no part of so many, such as 1/4 to 4/4")
    return int(place) - 1, int(parts)


def given_numbers(**texts: str | None) -> dict[str, list[float]]:
    """The settings that were given, as lists of numbers.

    >>> given_numbers(band="0.5,1", epsilons=None)
    {'band': [0.5, 1.0]}
    """
    found = {}
    for name, text in texts.items():
        try:
            if text is not None:
                found[name] = [float(part) for part in text.split(",")]
        except ValueError as error:
            raise UserError(f"--{name} is a list of numbers with commas, and not {text!r}") from error
    return found


def read_plan(
    file: Path, models: Any, analyses: Any, out: Path | None, setup: Setup
) -> tuple[list[str], list[str] | None, Path | None, Setup]:
    """A study's flags from a TOML file; flags given on the command line come first."""
    import tomllib
    from dataclasses import replace

    try:
        told = tomllib.loads(file.read_text())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} is not TOML: {error}") from error
    known = {field.name for field in fields(Setup)} | {"models", "analyses", "out"}
    for key in told:
        if key not in known:
            raise UserError(f"{file}: there is no setting {key!r}{did_you_mean(key, known)}")
    default = Setup()
    from_file = {k: tuple(v) if k == "at" else v for k, v in told.items() if k not in ("models", "analyses", "out")}
    kept: dict[str, Any] = {k: v for k, v in from_file.items() if getattr(setup, k) == getattr(default, k)}
    place = out or (Path(told["out"]) if "out" in told else None)
    return models or told.get("models", []), analyses or told.get("analyses"), place, replace(setup, **kept)
