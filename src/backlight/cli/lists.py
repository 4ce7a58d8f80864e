"""The commands that say what there is: units of a model, models, data, analyses, recipes, and this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from backlight.analyses.catalog import CATALOG
from backlight.analyses.entry import Analysis
from backlight.cli.options import AsJson, Model, Modules, Pretrained
from backlight.cli.output import print_json, print_rows, print_table, say, write
from backlight.errors import UserError
from backlight.model_names.alias import split
from backlight.tracing.corrections import Corrections, attach, read_corrections


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(
        "init",
        help="Write a file with a model of your own to start from.\n\nExample: backlight init mymodels.py",
    )(init_command)
    app.command(
        "units",
        help="The residual units of a model.\n\nExample: backlight units vit_tiny_patch16_224 --no-pretrained --check",
    )(units_command)
    app.command(
        "models",
        help="The models that can be named; of ours, what they cost: parameters, and multiply-accumulates of one image.\n\n"
        "MODEL is a timm name (ours included), NAME?img_size=32&patch_size=4, torchvision:NAME, hf:ORG/NAME, "
        "official:PATH.pth.tar, a folder that train wrote, package.module:factory or file.py:factory, or word:ccc cca.\n\n"
        "Example: backlight models 'resnet*'",
    )(models_command)
    app.command("data", help="The data sets that can be named.\n\nExample: backlight data")(data_command)
    app.command("analyses", help="The analyses, their questions and settings.\n\nExample: backlight analyses --json")(
        analyses_command
    )
    app.command("recipes", help="The training recipes and their settings.\n\nExample: backlight recipes --json")(
        recipes_command
    )
    app.command("doctor", help="What Backlight finds on this machine.\n\nExample: backlight doctor")(doctor_command)


# --- one model


def units_command(
    model: Model,
    prove: Annotated[bool, typer.Option("--check", help="Silence each unit and compare the stream.")] = False,
    at: Modules = None,
    corrections: Annotated[
        Path | None,
        typer.Option("--as", metavar="FILE", help="Correct units: TOML, [kinds], [stages], [branches] by index or module."),
    ] = None,
    pretrained: Pretrained = True,
    as_json: AsJson = False,
) -> None:
    """The word of a model, a row a unit, and with ``--check`` whether a silent unit leaves the stream as it is."""
    from backlight.tracing.hooks import check
    from backlight.tracing.tap import spell

    network, images, units = units_of(model, pretrained, at, given_corrections(corrections, model))
    model = split(model)[0]
    if not units:
        raise UserError(f"{model} has no residual units: name modules to read with --at MODULE")
    proof = {unit.index: equal for unit, equal in check(network, images, units)} if prove else {}
    words = {True: "equal", False: "CHANGED", None: "-"}
    rows = [
        {"unit": u.index, "kind": u.kind, "stage": u.stage, "module": u.module, "shape": " ".join(map(str, u.shape))}
        | {"skip": "identity" if u.identity else "other", "removable": "yes" if u.branch else "no"}
        | ({"check": words[proof[u.index]]} if prove else {})
        for u in units
    ]
    if as_json:
        print_json({"model": model, "word": spell(units), "units": rows})
    else:
        write(f"{model}: {spell(units)}\n")
        print_table(rows)
    if prove:
        proven, refuted = list(proof.values()).count(True), list(proof.values()).count(False)
        untested = len(units) - proven - refuted
        say(f"{proven} units proven: silenced, they leave the stream as it is; {refuted} refuted; {untested} not testable")
        say("the model's output is bit-identical afterwards")
        if refuted:
            raise SystemExit(3)


def given_corrections(file: Path | None, model: str) -> Corrections:
    """The corrections in a file, which may name this model; none without a file.  Errors: UserError."""
    if file is None:
        return Corrections()
    named, corrections = read_corrections(file)
    if named not in (None, model):
        raise UserError(f"{file}: model is {named!r}, and this is {model!r}: leave it out, or give the file of this model")
    return corrections


def units_of(
    model: str, pretrained: bool, at: Sequence[str] | None = None, corrections: Corrections = Corrections()
) -> tuple[Any, Any, list[Any]]:
    """A model, noise of the size of its images, and its units."""
    import torch

    from backlight.data.preprocessing import preprocessing
    from backlight.models.sources.load import load_model
    from backlight.tracing.find import units

    network = load_model(split(model)[1], pretrained=pretrained)
    images = torch.randn(2, *preprocessing(network)["input_size"], generator=torch.Generator().manual_seed(0))
    attach(network, corrections)
    return network, images, units(network, images, at=at)


def summary_of(model: str) -> str:
    """A model in a line: its word and size."""
    from backlight.models.cost import parameters
    from backlight.tracing.tap import spell

    network, _, units = units_of(model, pretrained=True)
    return f"{spell(units)} ({len(units)} units, {parameters(network):,} parameters)"


# --- names


def models_command(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern.")] = "", as_json: AsJson = False
) -> None:
    """A row a model."""
    from backlight.models.sources.load import costs, list_names

    unknown = {"input": "", "parameters": "", "macs": ""}
    rows = [
        {"source": source, "model": name} | (costs(name) if source == "ours" else unknown)
        for source, names in list_names(pattern).items()
        for name in names
    ]
    print_rows(rows, as_json)


def data_command(as_json: AsJson = False) -> None:
    """A row a data set."""
    from backlight.data.opening import NAMES

    print_described(NAMES, "data", as_json)


def analyses_command(as_json: AsJson = False) -> None:
    """A row an analysis; as JSON with everything that the catalogue knows."""
    if as_json:
        print_json([described(each) for each in CATALOG.values()])
    else:
        print_described({name: each.question for name, each in CATALOG.items()}, "analysis", as_json)


def described(about: Analysis) -> dict[str, Any]:
    """An entry of the catalogue as plain data."""
    return {
        "analysis": about.name,
        "about": about.question,
        "paper": about.paper,
        "needs": list(about.needs),
        "runs": about.runs,
        "data": list(about.data),
        "by_default": about.by_default,
        "settings": [
            {"name": o.name, "type": type_name(o.type), "default": None if o.default is MISSING else o.default}
            | {"allowed": o.allowed(), "help": o.about["help"]}
            for o in about.options()
        ],
    }


def type_name(kind: Any) -> str:
    """A type as the documentation writes it.

    >>> type_name(int), type_name(tuple[float, ...] | None)
    ('int', 'tuple[float, ...] | None')
    """
    return kind.__name__ if isinstance(kind, type) and not getattr(kind, "__args__", ()) else str(kind).replace("typing.", "")


def recipes_command(as_json: AsJson = False) -> None:
    """A row a recipe."""
    from backlight.recipes import RECIPES

    rows = [{"recipe": name} | asdict(recipe) for name, recipe in RECIPES.items()]
    print_json(rows) if as_json else print_table(rows)


def doctor_command(as_json: AsJson = False) -> None:
    """A row a thing that was looked for."""
    from backlight.cli.doctor import findings

    rows = findings()
    print_json(rows) if as_json else print_table([{"what": what, "value": value} for what, value in rows.items()])


def print_described(known: Mapping[str, str], what: str, as_json: bool) -> None:
    """Names with what they are."""
    rows = [{what: name, "about": text} for name, text in known.items()]
    print_json(rows) if as_json else print_table(rows)


def init_command(file: Annotated[Path, typer.Argument(metavar="FILE.py", help="The file to write.")]) -> None:
    """Print the file's name."""
    if file.suffix != ".py":
        raise UserError(f"{file} does not end in .py, and a model is loaded from a Python file: backlight init mymodels.py")
    text = (Path(__file__).parents[1] / "assets" / "mymodels.py").read_text()
    try:
        with file.open("x") as opened:
            opened.write(text.replace("mymodels.py", str(file)))
    except FileExistsError as error:
        raise UserError(f"{file} exists already, and is not overwritten: give another name") from error
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error
    write(f"{file}\n")
