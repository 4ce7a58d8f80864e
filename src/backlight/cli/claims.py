"""The command that prints the claims of a study: verdict first, a line each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backlight.cli.options import AsJson
from backlight.cli.output import print_json, print_rows, say, write

if TYPE_CHECKING:
    from backlight.claims.findings import Finding


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "claims",
        help="The paper's claims about a folder of results, about each model and between models of different kinds.\n\n"
        "Example: backlight claims runs",
    )(claims_command)


def claims_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that --out of an analysis or a study names.")],
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KIND", help="A model is a cnn, vit, hybrid or other; default: from its units. Repeatable."),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on a terminal too.")] = False,
    as_json: AsJson = False,
) -> None:
    """A line a claim on a terminal; rows elsewhere."""
    from backlight.claims.findings import findings, summary
    from backlight.claims.kinds import given_kinds
    from backlight.study.folder import read_study

    study = read_study(folder)
    of_study = findings(study, given_kinds(kind or (), [model.name for model in study.models]))
    if as_csv or as_json or sys.stdout is None or not sys.stdout.isatty():
        rows = [finding.row() for finding in of_study]
        print_json(rows) if as_json else print_rows(rows, as_json=False)
    else:
        write("".join(f"{sentence(finding)}\n" for finding in of_study))
    say(summary(of_study))


def sentence(finding: Finding) -> str:
    """A finding in a line."""
    from backlight.report.words import measured, rests_on

    claim = finding.claim
    effect = f"{measured(claim)}, {claim.quantity}" if measured(claim) else ""
    parts = [claim.reason, effect, rests_on(claim), claim.source, finding.docs, finding.note]
    caution = f" (caution: {finding.caution})" if finding.caution else ""
    return f"{finding.verdict}{caution}: {', '.join(finding.models)}: {claim.statement} {'; '.join(filter(None, parts))}"
