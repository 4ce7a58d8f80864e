"""The parts of the reference that follow from the code: the public names, and the commands with their options."""

from __future__ import annotations

from pathlib import Path


def write_reference(folder: Path) -> None:
    """Write api.md and cli.md into this folder, if they change."""
    folder.mkdir(exist_ok=True)
    for name, text in {"api.md": api(), "cli.md": cli()}.items():
        file = folder / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def api() -> str:
    """A directive for each public name: analyses first."""
    import backlight
    from backlight.analyses.catalog import CATALOG

    names = [name for name in backlight.__all__ if not name.startswith("__")]
    rest = sorted(set(names) - set(CATALOG), key=str.lower)
    return "\n".join(["## Analyses\n", *map(directive, CATALOG), "## Everything else\n", *map(directive, rest)])


def directive(name: str) -> str:
    """The documentation of a public name, from its docstring."""
    import backlight

    kind = "autoclass" if isinstance(getattr(backlight, name), type) else "autofunction"
    members = "\n   :members:" if kind == "autoclass" else ""
    return f"```{{eval-rst}}\n.. {kind}:: backlight.{name}{members}\n```\n"


def cli() -> str:
    """What ``backlight COMMAND --help`` says, of each command."""
    import typer.main

    from backlight.cli.app import app

    group = typer.main.get_command(app)
    parts = []
    for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined]
        about, _, example = (command.help or "").partition("Example: ")
        options = [option_row(option) for option in command.params]
        table = "\n".join(["| option | what |", "|---|---|", *options])
        shown = f"\n```text\n{example.strip()}\n```\n" if example else ""
        parts.append(f"## backlight {name}\n\n{escaped(about.strip())}\n{shown}\n{table}\n")
    return "\n".join(parts)


def option_row(option: object) -> str:
    """An option or argument as a row of a table."""
    names = ", ".join(f"`{name}`" for name in getattr(option, "opts", ()))
    if type(option).__name__.endswith("Argument"):
        names = f"`{getattr(option, 'metavar', None) or getattr(option, 'name', '')}`"
    return f"| {names} | {escaped(getattr(option, 'help', None) or '')} |"


def escaped(text: str) -> str:
    """Text in which Markdown finds no markup."""
    for character in "\\`*_{}[]<>|$":
        text = text.replace(character, f"\\{character}")
    return text
