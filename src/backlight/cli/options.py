"""Options of the command line, made from the fields of settings.

The first argument of a command under `takes` is what the user gave: for each class of settings the values of its fields.  A
field that is not there keeps its default, or the value of a file.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from backlight.errors import UserError
from backlight.settings import Option, Settings, options

#: Settings class -> field -> value, of those that were given.
Given = dict[type[Settings], dict[str, Any]]

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model by name; see: backlight models --help.")]
Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models by name; see: backlight models --help.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of CSV.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="CSV on a terminal too.")]
EveryRow = Annotated[bool, typer.Option("--rows", help="All rows on a terminal too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results made with other settings.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Save rows, figure and provenance here; a second run resumes.")]
Pretrained = Annotated[bool, typer.Option(help="The trained weights, or random ones.")]
Modules = Annotated[list[str] | None, typer.Option(metavar="MODULE", help="Read this module instead of units; repeatable.")]


def takes(
    *kinds: type[Settings], replaces: type[Settings] | None = None, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of these settings.

    replaces: settings that the user chooses by a name, and whose fields options replace; so no default is known.
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values()][1:]
        every = [*kinds, *([replaces] if replaces else [])]
        known = {kind: [option for option in options(kind) if option.name not in without] for kind in every}
        derived = [_parameter(option, kind is replaces) for kind, each in known.items() for option in each]

        @functools.wraps(command)
        def with_options(**values: Any) -> None:
            given = {kind: _given(each, values) for kind, each in known.items()}
            command(given, **values)

        ordered = sorted([*derived, *own], key=lambda p: p.kind)
        with_options.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        with_options.__annotations__ = {p.name: p.annotation for p in ordered}
        return with_options

    return decorated


def _given(known: Sequence[Option], values: dict[str, Any]) -> dict[str, Any]:
    """The values that were given, checked, taken out of all values.  Errors: UserError with the option and what is allowed."""
    given = {}
    for option in known:
        value = values.pop(option.name)
        if value in (None, []):
            continue
        parsed = option.parsed(value) if option.item is not None and not option.about["repeat"] else value
        given[option.name] = option.checked(parsed, option.flag)
    return given


def _parameter(option: Option, replaces: bool) -> inspect.Parameter:
    """The parameter that typer makes an option of.  Its default is None: not given."""
    word = option.name.replace("_", "-")
    about = typer.Option(
        *([f"--{word}/--no-{word}"] if option.plain is bool else [option.flag]),
        help=_help(option, replaces),
        metavar=f"[{'|'.join(option.about['choices'])}]" if option.about["choices"] else option.metavar,
        show_default=False,
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[_kind(option) | None, about]
    )


def _kind(option: Option) -> Any:
    """The type that typer converts to."""
    if option.item is not None:
        return list[str] if option.about["repeat"] else str
    return option.plain if option.plain in (bool, int, float) else str


def _help(option: Option, replaces: bool) -> str:
    """The field's help, what is allowed, and the default."""
    bounds = "" if option.about["choices"] else option.allowed()
    shown = ",".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
    default = "" if replaces or option.plain is bool or shown in (None, MISSING, "") else f"default: {shown}"
    ends = "; ".join(filter(None, (bounds, default)))
    return f"{option.about['help']} [{ends}]" if ends else option.about["help"]


def repeated(argv: Sequence[str]) -> Iterator[str]:
    """``--models A B C`` as click wants it: the option before each value.

    >>> list(repeated(["study", "--models", "a", "b", "--out", "c"]))
    ['study', '--models', 'a', '--models', 'b', '--out', 'c']
    """
    option: str | None = None
    first = False
    for word in argv:
        if word.startswith("-"):
            option, first = (word, True) if word in ("--models", "--analyses", "--snapshots") else (None, False)
        elif option and not first:
            yield option
        else:
            first = False
        yield word


def whole_numbers(text: str, what: str = "unit numbers") -> list[int]:
    """The numbers of a list with commas.

    >>> whole_numbers("3, 7")
    [3, 7]
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{text!r} is no list of {what} such as 3,7") from error


def shard_numbered(text: str) -> tuple[int, int]:
    """One part of several, counted from 0.

    >>> shard_numbered("2/4")
    (1, 4)
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--shard is {text!r}; it must be one part of several, such as 1/4 to 4/4")
    return int(part) - 1, int(parts)
