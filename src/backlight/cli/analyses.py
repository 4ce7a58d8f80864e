"""The commands that measure: one for each analysis of the catalogue, studies, the demo and the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from backlight.analyses.catalog import CATALOG, entry
from backlight.analyses.entry import Analysis
from backlight.cli.options import AsCsv, AsJson, EveryRow, Given, Models, Out, Overwrite, Quiet, shard_numbered, takes
from backlight.cli.output import display, is_terminal, print_csv, print_json, say, write
from backlight.errors import UserError
from backlight.progress import clock
from backlight.study.config import BY_DEFAULT, Config, read_config
from backlight.study.engines.resources import engine_by_default
from backlight.study.model_list import expanded, models_in
from backlight.study.plan import Cell, plan
from backlight.study.settings import StudySettings

DEMO = Path(__file__).parents[1] / "assets" / "demo.toml"
Shard = Annotated[str, typer.Option(metavar="I/N", help="With --out: compute the I-th of N parts, as many processes at once.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for each in CATALOG.values():
        app.command(each.name, help=f"{each.question}\n\nExample: backlight {each.name} {each.example}")(analysis_command(each))
    app.command(
        "study",
        help="Run analyses of models into one folder.\n\nExample: backlight study --models demo-cnn demo-vit --out runs",
    )(study_command)
    app.command("report", help="Write one HTML page about a folder of results.\n\nExample: backlight report runs")(
        report_command
    )
    app.command(
        "collect",
        help="Write all rows of a folder of results as one table, parquet and CSV.\n\nExample: backlight collect runs",
    )(collect_command)
    app.command(
        "demo",
        help="Analyse three small trained models on real images and write a page.\n\nExample: backlight demo --out demo",
    )(demo_command)


def analysis_command(about: Analysis) -> Any:
    """The command of an analysis."""
    without = () if about.reads_stream else ("at",)

    def measure(given: Given, models: list[str], shard: str = "1/1", **shown: Any) -> None:
        own = {name: value for kind in about.kinds() for name, value in given[kind].items()}
        part = shard_numbered(shard)
        if part != (0, 1) and shown["out"] is None:
            raise UserError("--shard stores its part beside those of others: give the folder with --out DIR")
        measure_and_print(about.name, own, models, StudySettings(**given[StudySettings]), shard=part, **shown)

    def alone(
        given: Given, models: Models, *, out: Out = None, overwrite: Overwrite = False, as_json: AsJson = False,
        as_csv: AsCsv = False, every_row: EveryRow = False, quiet: Quiet = False,
    ) -> None:  # fmt: skip
        measure(given, models, out=out, overwrite=overwrite, as_json=as_json, as_csv=as_csv, every_row=every_row, quiet=quiet)

    def sharded(
        given: Given, models: Models, *, shard: Shard = "1/1", out: Out = None, overwrite: Overwrite = False,
        as_json: AsJson = False, as_csv: AsCsv = False, every_row: EveryRow = False, quiet: Quiet = False,
    ) -> None:  # fmt: skip
        shown = {"as_json": as_json, "as_csv": as_csv, "every_row": every_row, "quiet": quiet}
        measure(given, models, shard, out=out, overwrite=overwrite, **shown)

    return takes(*about.kinds(), StudySettings, without=without)(sharded if about.shards else alone)


def measure_and_print(
    name: str,
    settings: Mapping[str, Any],
    models: Sequence[str],
    shared: StudySettings,
    *,
    out: Path | None,
    overwrite: bool,
    shard: tuple[int, int],
    as_json: bool,
    as_csv: bool,
    every_row: bool,
    quiet: bool,
) -> None:
    """Run one analysis of each model; print what it found on a terminal, and its rows elsewhere."""
    from backlight.study.run import run_study

    done: list[tuple[Any, str, float, Path | None]] = []
    with display(quiet) as show:
        running = run_study(
            models, {name: settings}, shared, out, keep_going=False, overwrite=overwrite, shard=shard, show=show
        )
        for each in running:
            if each.missing:
                say(f"{each.model}: this part is stored in {out}; rows missing: {each.missing}; the result is saved at 0")
            elif (result := each.result) is not None:
                done.append((result, each.word, each.seconds, each.place))
    if as_json:
        keys = ("model", "analysis", "claims", "provenance")
        print_json([{key: getattr(r, key) for key in keys} | {"rows": r.rows()} for r, *_ in done])
    elif as_csv or not is_terminal():
        print_csv([row for result, *_ in done for row in result.rows()])
    else:
        from backlight.cli.screen import show as show_results

        show_results(done, rows=every_row)


@takes(StudySettings)
def study_command(
    given: Given,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A TOML file; see docs/study.md.")] = None,
    *,
    models: Annotated[
        list[str] | None, typer.Option(metavar="MODEL...", help="Models by name; 'timm:convnext*' is every name that fits.")
    ] = None,
    models_file: Annotated[Path | None, typer.Option(metavar="FILE", help="More models, one a line.")] = None,
    analyses: Annotated[
        list[str] | None, typer.Option(metavar="ANALYSIS...", help=f"Default: {', '.join(BY_DEFAULT)}.")
    ] = None,
    out: Out = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print the cells with what each will take, from a timed batch a model; run nothing.")
    ] = False,
    engine: Annotated[
        str | None, typer.Option(metavar="ENGINE", help="here, processes:N or ray:N; default: by cores and GPUs.")
    ] = None,
    address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="With --engine ray: join this cluster.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="End a worker whose cell takes longer; the cell has failed.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Flags win over the file."""
    config = read_config(file) if file is not None else Config(analyses={name: {} for name in BY_DEFAULT})
    shared = StudySettings(**{**config.shared, **given[StudySettings]})
    requested = {entry(name).name: config.analyses.get(name, {}) for name in analyses} if analyses else config.analyses
    models = [*(models or ()), *(models_in(models_file) if models_file else ())]
    if models:
        requested = {name: {key: own[key] for key in own if key != "models"} for name, own in requested.items()}
    models = expanded(models or list(config.models))
    if not models:
        raise UserError("a study needs models: --models NAME NAME ...")
    folder = out or (Path(config.out) if config.out else None)
    if folder is None:
        raise UserError("a study needs a folder for its results: --out DIR")
    cells = plan(models, requested, shared)
    if plan_only:
        print_plan(cells, folder)
        return
    how = {"engine": engine or engine_by_default(), "address": address, "timeout": timeout, "overwrite": overwrite}
    took: dict[tuple[str, str], float] = {}
    states = run_and_tell(models, requested, shared, folder, quiet=quiet, took=took, **how)
    print_accuracy(folder, took)
    following = f"next: backlight claims {folder}, backlight report {folder}"
    if states["there already"] == len(cells):
        say(f"{folder} has all {len(cells)} cells already; {following}")
        return
    say(f"{folder} is written; {outcome(folder)}; {following}")
    if failed := states["failed"]:
        say(f"{failed} of {len(cells)} cells failed; the same command tries them again")
        raise SystemExit(5)


def print_plan(cells: Sequence[Cell], folder: Path) -> None:
    """A row a cell with what it will take, and the sum; nothing is measured."""
    from backlight.study.estimate import estimates, store_estimates

    rows, known = [], []
    for each in estimates(cells):
        say(f"{each.model} {each.analysis}: {f'cannot be tried: {each.why}' if each.why else f'about {minutes(each.minutes)}'}")
        known += [] if each.why else [each]
        shown = {name: "" if math.isnan(value) else f"{value:.4g}" for name, value in each.numbers().items()}
        rows.append({"model": each.model, "analysis": each.analysis, "out": str(folder), **shown})
    print_csv(rows)
    if known:
        total, disk = sum(each.minutes for each in known), sum(each.disk for each in known)
        highest = max(each.megabytes for each in known)
        say(f"about {minutes(total)} one after another, {highest:.0f} MB of memory, {disk:.0f} MB of disk; nothing was run")
        store_estimates(folder, known)


def minutes(value: float) -> str:
    """Minutes as people read them."""
    return clock(value * 60)


def print_accuracy(folder: Path, took: Mapping[tuple[str, str], float]) -> None:
    """How good the estimates of an earlier ``--plan`` were, for what was measured now: cell -> seconds."""
    from backlight.study.accuracy import accuracy

    if took and (sentence := accuracy(folder, took)):
        say(sentence)


def outcome(folder: Path) -> str:
    """How many statements about a folder of results were tested, and with which outcome."""
    from backlight.claims.findings import findings, summary
    from backlight.study.folder import read_study

    try:
        return summary(findings(read_study(folder)))
    except UserError:  # no cell has a result
        return summary([])


def run_and_tell(
    models: Sequence[str], analyses: Mapping[str, Mapping[str, Any]], shared: StudySettings, out: Path, *,
    quiet: bool = False, took: dict[tuple[str, str], float] | None = None, **how: Any,
) -> Counter[str]:  # fmt: skip
    """Run a study with a line a cell; how many cells were there already, and how many failed.

    ``took`` gets the seconds of each cell that was measured.  ``how``: as `run_study`.
    """
    from backlight.study.run import run_study

    states: Counter[str] = Counter()
    with display(quiet) as show:
        running = run_study(models, analyses, shared, out, show=show, **how)
        with closing(running):  # type: ignore[type-var]
            for done in running:
                states["failed"] += done.failed
                states["there already"] += done.skipped
                if took is not None and done.seconds and not done.error:
                    took[done.model, done.analysis] = done.seconds
                if not quiet or done.failed:
                    (say if quiet else show)(f"{done.model} {done.analysis}: {done.state}")
    return states


def report_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that --out of an analysis or a study names.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: FOLDER/report.html.")] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page on this machine; it loads itself again while a study runs.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Of --serve; default: any that is free.")] = 0,
    images: Annotated[
        bool, typer.Option("--images", help="With small pictures of the images that a lesion flips, from the data set.")
    ] = False,
    node_data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the numbers of units as node data of Model Explorer instead.")
    ] = None,
) -> None:
    """Write the page and print where, or serve it, or write node data."""
    from backlight.report import write_report

    if serve:
        serve_page(folder, port)
    elif node_data:
        from backlight.report.node_data import write_node_data
        from backlight.study.folder import read_study

        write("".join(f"{path}\n" for path in write_node_data(read_study(folder), node_data)))
    else:
        write(f"{write_report(folder, out, images=images)}\n")


def serve_page(folder: Path, port: int) -> None:
    """Serve until a signal."""
    from backlight.report.serving import serving

    with serving(folder, port) as server:
        say(f"the page of {folder} is at http://127.0.0.1:{server.server_port}/ ; Ctrl-C ends it")
        server.serve_forever(poll_interval=0.2)


def collect_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that --out of an analysis or a study names.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .csv or .parquet file; default: FOLDER/collected.* of both kinds.")
    ] = None,
) -> None:
    """Print the files."""
    from backlight.study.collect import collect

    collected = collect(folder, out)
    for sentence in collected.left_out:
        say(f"left out: {sentence}")
    say(f"{collected.rows} rows of {collected.cells} results")
    write("".join(f"{file}\n" for file in collected.files))


def demo_command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for results and page.")] = Path("demo"),
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Use fewer images, to be done sooner.")] = None,
    quiet: Quiet = False,
) -> None:
    """The study of ``assets/demo.toml``, and its page."""
    from backlight.cli.lists import summary_of
    from backlight.report import write_report

    config = read_config(DEMO)
    for model in config.models:
        write(f"{model}: {summary_of(model)}\n")
    shared = StudySettings(**{**config.shared, **({"limit": limit} if limit else {})})
    run_and_tell(config.models, config.analyses, shared, out, quiet=quiet, keep_going=False)
    write(f"{write_report(out)}\n")
