"""The command that fails if a model is worse than another: for a user's CI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from backlight.cli.compare import Analyses, change, comparisons
from backlight.cli.options import Given, Out, Overwrite, Quiet, takes
from backlight.cli.output import write
from backlight.errors import UserError
from backlight.study.settings import StudySettings

if TYPE_CHECKING:
    from backlight.comparing.compare import Comparison
    from backlight.comparing.gates import Check

Format = Literal["text", "github"]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "diff",
        help="Fail, with exit code 3, if B is worse than A by more than a threshold: for CI.\n\n"
        "A threshold is NAME>CHANGE or NAME<CHANGE; names are those of `backlight compare A B --csv`. Accuracies are in "
        "percentage points.\n\n"
        "Example: backlight diff runs/demo-cnn runs/demo-alternet --fail-on 'ece>+0.01' --fail-on 'accuracy<-0.5'",
    )(diff_command)


@takes(StudySettings)
def diff_command(
    given: Given,
    first: Annotated[str, typer.Argument(metavar="A", help="The base: a model by name, or a folder of results.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What is compared with it, of the same sort.")],
    *,
    fail_on: Annotated[
        list[str] | None,
        typer.Option("--fail-on", metavar="NAME>CHANGE", help="Fail if the change from A to B is beyond; repeatable."),
    ] = None,
    point: Annotated[
        bool, typer.Option("--point", help="Compare the estimate; default: the interval's near end, so chance fails rarely.")
    ] = False,
    form: Annotated[Format, typer.Option("--format", help="github: annotations of a workflow.")] = "text",
    analyses: Analyses = None,
    out: Out = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """A line a threshold; exit code 3 if one fails."""
    from backlight.comparing.gates import EXAMPLE, check, threshold

    limits = [threshold(text) for text in fail_on or ()]
    if not limits:
        raise UserError(f"a diff needs a threshold: {EXAMPLE}")
    made = comparisons([first, second], given, analyses, False, out, overwrite, quiet)
    checks = [(each, check(each, limit, point=point)) for each in made for limit in limits]
    line = annotation if form == "github" else sentence
    write("".join(f"{line(*each)}\n" for each in checks))
    if any(each.failed for _, each in checks):
        raise SystemExit(3)


def sentence(comparison: Comparison, check: Check) -> str:
    """A threshold and what was measured, in a line."""
    return f"{'FAILED' if check.failed else 'ok':6} {described(comparison, check)}"


def described(comparison: Comparison, check: Check) -> str:
    """A threshold, the models, and the difference with its interval."""
    each = check.difference
    models = f"{comparison.second} against {comparison.first}"
    return f"{check.threshold.text}: {each.id} of {models}: {change(each)}"


def annotation(comparison: Comparison, check: Check) -> str:
    """The line that GitHub shows beside a run: an error, or a notice."""
    kind = "error" if check.failed else "notice"
    return f"::{kind} title={escaped(check.threshold.text, ',:')}::{escaped(described(comparison, check))}"


def escaped(text: str, more: str = "") -> str:
    """A text as a workflow command takes it.

    >>> escaped("50% a:b", ":")
    '50%25 a%3Ab'
    """
    return "".join(f"%{ord(letter):02X}" if letter in f"%\r\n{more}" else letter for letter in text)
