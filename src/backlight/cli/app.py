"""The application and its commands.  torch is imported by no command before it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from backlight import __version__
from backlight.cli import analyses, claims, compare, diff, figure, lists, training
from backlight.cli.options import repeated
from backlight.cli.output import write

app = typer.Typer(
    name="backlight",
    help="See how a vision model works: Park & Kim's analyses for any model, one command a figure.",
    epilog="Example: backlight fourier resnet50 --data fashion --limit 200 --out runs",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for commands in (analyses, claims, compare, diff, figure, lists, training):
    commands.add_to(app)

#: What is wrong with the arguments.  Taken from a public descendant: typer brings click under one name or another.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def show_version(requested: bool) -> None:
    """Print the version and exit."""
    if requested:
        write(f"backlight {__version__}\n")
        raise typer.Exit


@app.callback()
def backlight_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Print the version.")
    ] = False,
) -> None:
    """What comes before a command."""


def run(argv: Sequence[str]) -> None:
    """Run a command.  Errors: UsageError for wrong arguments, SystemExit if it ends with a code of its own."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("backlight", list(repeated(argv))) as context:
            command.invoke(context)
    except typer.Exit as end:
        if end.exit_code:
            sys.exit(end.exit_code)


def refusal(error: Any) -> str:
    """What is wrong with the arguments, and where help is; ``backlight`` alone shows the help itself."""
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        return context.get_help()
    option = getattr(error, "param", None)
    name = f"{option.opts[0]}: " if option is not None and option.opts[0].startswith("-") else ""
    text = error.format_message().rstrip(".").replace("\n", " ")
    return f"{'' if name and name[:-2] in text else name}{text}; see: {context.command_path} --help"
