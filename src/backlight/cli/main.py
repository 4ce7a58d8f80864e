"""The application: its commands, and how it ends.  torch is imported by no command before it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from backlight import __version__
from backlight.cli import analyses, lists, training
from backlight.cli.options import repeated
from backlight.cli.output import say
from backlight.errors import UserError

app = typer.Typer(
    name="backlight",
    help="See how a vision model works: Park & Kim's analyses for any model, one command a figure.",
    epilog="Example: backlight fourier resnet50 --data fashion --limit 200 --out runs",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for commands in (analyses, lists, training):
    commands.add_to(app)

#: What is wrong with the arguments.  Taken from a public descendant: typer brings click under one name or another.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def show_version(requested: bool) -> None:
    """Print the version and exit."""
    if requested:
        print(f"backlight {__version__}")
        raise typer.Exit


@app.callback()
def backlight_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Print the version.")
    ] = False,
) -> None:
    """What comes before a command."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    0 done, 2 a user's mistake, 3 a check failed, 4 not available, 5 some cells failed, 130 interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        command = typer.main.get_command(app)
        code = command.main(list(repeated(words)), prog_name="backlight", standalone_mode=False)
    except UserError as error:
        fail(str(error), error.exit_code)
    except UsageError as error:
        fail(*refusal(error))
    except (KeyboardInterrupt, typer.Abort):
        fail("stopped; what is finished is stored, and the same command resumes (a training with --resume)", 130)
    except BrokenPipeError:  # backlight ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def refusal(error: Any) -> tuple[str, int]:
    """What is wrong with the arguments, and where help is; ``backlight`` alone shows the help itself."""
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        return context.get_help(), 2
    option = getattr(error, "param", None)
    name = f"{option.opts[0]}: " if option is not None and option.opts[0].startswith("-") else ""
    text = error.format_message().rstrip(".").replace("\n", " ")
    return f"{'' if name and name[:-2] in text else name}{text}; see: {context.command_path} --help", 2


def fail(sentence: str, code: int) -> None:
    """Print one sentence and exit."""
    say(f"backlight: {sentence}")
    sys.exit(code)
