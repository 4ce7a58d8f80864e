"""The command that compares two models or more: the finding first, then what differs."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlight.analyses.catalog import entry
from backlight.cli.options import AsCsv, AsJson, EveryRow, Given, Out, Overwrite, Quiet, takes
from backlight.cli.output import display, is_terminal, print_csv, print_json, print_table, say, write
from backlight.errors import UserError
from backlight.model_names.alias import split
from backlight.study.config import BY_DEFAULT
from backlight.study.settings import StudySettings

if TYPE_CHECKING:
    from backlight.comparing.compare import Comparison
    from backlight.comparing.differences import Difference
    from backlight.study.folder import Model

Sides = Annotated[
    list[str], typer.Argument(metavar="A B...", help="Models by name, or folders of results; the first is the base.")
]
Analyses = Annotated[
    list[str] | None, typer.Option(metavar="ANALYSIS...", help=f"Of models by name. Default: {', '.join(BY_DEFAULT)}.")
]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "compare",
        help="How models differ from the first: each number less that of the first, over the same images.\n\n"
        "Example: backlight compare demo-cnn demo-alternet --data fashion --limit 500",
    )(compare_command)


@takes(StudySettings)
def compare_command(
    given: Given,
    sides: Sides,
    *,
    analyses: Analyses = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="The models of a folder are seeds of one training: compare their means.")
    ] = False,
    out: Out = None,
    overwrite: Overwrite = False,
    every_row: EveryRow = False,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Sentences on a terminal; rows elsewhere, with the finding on standard error."""
    made = comparisons(sides, given, analyses, seeds, out, overwrite, quiet)
    terminal = is_terminal()
    rows = [row for comparison in made for row in comparison.rows()]
    if as_json:
        print_json(rows)
    elif as_csv or not terminal:
        print_csv(rows)
    for comparison in made:
        if as_json or as_csv or not terminal:
            say(finding(comparison))
        else:
            write("".join(f"{line}\n" for line in wrapped(map(for_terminal, lines(comparison)))))
            if every_row:
                print_table([short(each) for each in comparison.differences])


def comparisons(
    sides: Sequence[str],
    given: Given,
    analyses: Sequence[str] | None,
    seeds: bool,
    out: Path | None,
    overwrite: bool,
    quiet: bool,
) -> list[Comparison]:
    """Each model compared with the first, from folders of results, or measured first."""
    from backlight.comparing.compare import compare, models_in
    from backlight.comparing.sides import holds_results, pairs

    stored = [side for side in sides if holds_results(side)]
    if stored and len(stored) < len(sides):
        other = next(side for side in sides if side not in stored)
        raise UserError(f"{stored[0]} is a folder of results and {other} is not: give folders of results, or models by name")
    if seeds:
        if not stored:
            raise UserError("--seeds compares folders of results, with the models of a training's seeds in each")
        groups = [models_in(Path(side)) for side in sides]
        return [compare(groups[0], group) for group in groups[1:]]
    if not stored:
        first, *others = measured(sides, given, analyses, out, overwrite, quiet)
        return [compare(first, other) for other in others]
    if given[StudySettings] or analyses or out:
        raise UserError("the results in these folders are compared as they are: leave out the options of an analysis and --out")
    return [compare(*pair) for pair in pairs(sides)]


def measured(
    names: Sequence[str], given: Given, analyses: Sequence[str] | None, out: Path | None, overwrite: bool, quiet: bool
) -> list[Model]:
    """The models with their results.  Errors: UserError unless these are different models; SystemExit if a cell fails."""
    from backlight.comparing.compare import model_with
    from backlight.study.run import run_study

    if len(set(names)) < max(2, len(names)):
        raise UserError("comparing takes two different models, or folders of results: backlight compare A B")
    requested: dict[str, dict[str, Any]] = {entry(name).name: {} for name in analyses or BY_DEFAULT}
    results: dict[str, list[Any]] = {split(name)[0]: [] for name in names}
    with display(quiet) as show:
        for done in run_study(names, requested, StudySettings(**given[StudySettings]), out, overwrite=overwrite, show=show):
            if done.result is not None:
                results[done.model].append(done.result)
            elif done.failed:
                raise UserError(f"{done.model} {done.analysis}: {done.error}")
    if empty := next((name for name, own in results.items() if not own), None):
        raise UserError(f"{empty} has no answer to {', '.join(requested)}: choose others with --analyses")
    return [model_with(own) for own in results.values()]


# --- in words


def finding(comparison: Comparison) -> str:
    """What was found, in a sentence."""
    from backlight.report.words import number
    from backlight.results.over import counted

    decided, total = comparison.decided(), counted(len(comparison.differences), "number")
    parts = [f"{comparison.second} against {comparison.first}: {len(decided)} of {total} differ"]
    parts += [
        f"accuracy is {each.verdict}, {number(each.first)} to {number(each.second)}: {change(each)}"
        for each in comparison.differences
        if each.id == "calibration/accuracy"
    ]
    plain = [each for each in decided if each.unit and each.id != "calibration/accuracy"]  # numbers of claims take a paragraph
    if plain:
        clearest = max(plain, key=lambda each: abs(each.value) / max(each.high - each.low, 1e-300))
        place = f" at {clearest.number.place}" if clearest.number.place else ""
        parts.append(f"most clearly {clearest.title}{place}: {change(clearest)}")
    return "; ".join(parts)


def lines(comparison: Comparison) -> Iterator[str]:
    """The finding, what it rests on, then what differs in each analysis, and last what is not comparable."""
    yield finding(comparison)
    yield from (f"caution: {caution}" for caution in comparison.cautions)
    yield f"95% intervals {over(comparison.differences)}; a verdict with * does not hold after Holm's correction"
    for analysis, group in groupby(comparison.differences, key=lambda each: each.analysis):
        yield from ("", *of_analysis(analysis, list(group)))
    yield from ("", *comparison.refused.values()) if comparison.refused else ()


def over(differences: Sequence[Difference]) -> str:
    """What the intervals are over, in words; each once."""
    same = {each.over: each.count for each in differences}
    words = {"images": "over the same {} images", "models": "over {} models of each side"}
    return " and ".join(words.get(what, f"over {{}} {what}").format(f"{count:,}") for what, count in same.items())


def of_analysis(analysis: str, differences: Sequence[Difference]) -> Iterator[str]:
    """What differs in one analysis: of the entire models, then over their units; last the names of what is undecided."""
    yield analysis
    entire = [each for each in differences if not each.number.place]
    yield from (f"  {each.verdict:7} {in_words(each)}" for each in entire if each.verdict != "undecided")
    undecided = [each.number.quantity for each in entire if each.verdict == "undecided"]
    placed = [each for each in differences if each.number.place]
    for quantity, group in groupby(placed, key=lambda each: each.number.quantity):
        same = list(group)
        if any(each.decided for each in same):
            yield f"  {where_different(same)}"
        else:
            undecided.append(quantity)
    if undecided:
        yield f"  undecided: {', '.join(undecided)}"


def in_words(each: Difference) -> str:
    """What a number is, both values, and the difference with its interval."""
    from backlight.report.words import number

    return f"{each.title}, {number(each.first)} to {number(each.second)}: {change(each)}"


def change(each: Difference) -> str:
    """A difference with its sign, interval and unit."""
    from backlight.report.words import interval

    text = interval(each.value, each.low, each.high)
    return f"{'+' if each.value > 0 else ''}{text}{f' {each.unit}' if each.unit else ''}"


def where_different(same: Sequence[Difference]) -> str:
    """In how many places a number differs, and where most."""
    from backlight.report.words import series

    decided = [each for each in same if each.decided]
    most = max(decided, key=lambda each: abs(each.value))
    sides = [f"{sum(each.verdict == side for each in decided)} {side}" for side in ("higher", "lower")]
    counts = series(side for side in sides if not side.startswith("0 "))
    of = "units" if same[0].number.unit is not None else "places"
    return f"differs {most.title}: {counts} of {len(same)} {of}, most at {most.number.place}: {change(most)}"


def short(each: Difference) -> dict[str, str]:
    """A difference as a row for people."""
    from backlight.report.words import number

    values = {"first": number(each.first), "second": number(each.second), "difference": change(each)}
    return {"verdict": each.verdict, "id": each.id, **{name: for_terminal(text) for name, text in values.items()}}


def for_terminal(text: str) -> str:
    """The text with characters that standard output has."""
    from backlight.cli.screen import terminal, written

    return written(text, terminal())


def wrapped(every: Iterable[str]) -> Iterator[str]:
    """Lines that fit into the terminal, those that follow indented."""
    width = max(40, shutil.get_terminal_size().columns)
    for line in every:
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        yield from textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False) or [""]
