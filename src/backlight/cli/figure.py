"""The command that draws a figure of the paper from stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backlight.cli.output import write
from backlight.figures.catalog import FIGURES, figure_of

NUMBERS = "\n".join(f"  {number:4} {figure.shows} Needs {', '.join(figure.analyses)}." for number, figure in FIGURES.items())


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "figure",
        help="A figure of the paper, from folders of results, with all their models on one scale.\n\n"
        f"Example: backlight figure 2a runs --models '*cnn' '*vit'\n\n\b\n{NUMBERS}",
    )(figure_command)


def figure_command(
    number: Annotated[str, typer.Argument(metavar="NUMBER", help=f"{', '.join(FIGURES)}.")],
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that an analysis or a study wrote.")],
    *,
    models: Annotated[
        list[str] | None, typer.Option(metavar="MODEL...", help="Only these models, by name or pattern, in this order.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .png, .pdf or .svg; default: figure-NUMBER.png in the first DIR.")
    ] = None,
) -> None:
    """Print where the figure is."""
    figure_of(number)  # before torch is imported
    from backlight.figures.drawing import draw, models_in, save

    figure = draw(number, models_in(folders, models or ()))
    write(f"{save(figure, out or folders[0] / f'figure-{number}.png')}\n")
