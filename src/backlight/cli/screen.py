"""A result on a terminal: the model, a line a claim, its few numbers, and where it is saved."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backlight.progress import clock
from backlight.tracing.kinds import LETTER

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from backlight.results.claim import Claim
    from backlight.results.result import Result

COLOURS = {"holds": "green", "does not hold": "red", "undecided": "yellow"}
#: The letters of a word.
KINDS = {"attention": "bold magenta", "conv": "bold blue", "mlp": "cyan", "blur": "green"}
#: What is written where the terminal has no such character.
SYMBOLS = {"−": "-", "–": "-", "×": "x", "·": ";", "≤": "<=", "≥": ">=", "Δ": "change of ", "π": "pi", "ε": "epsilon"}
PLAIN = str.maketrans({**SYMBOLS, **dict(zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True))})
WIDTH = 13  # of the longest verdict


def show(results: Sequence[tuple[Result, str, float, Path | None]], *, rows: bool = False) -> None:
    """Print results: result, word of the model, seconds (0: it was there already), folder."""
    from rich.table import Table
    from rich.text import Text

    console = terminal()
    for result, word, seconds, place in results:
        console.print(Text.assemble((result.model, "bold"), "  ", coloured(word)))
        claims = Table.grid(padding=(0, 2), expand=False)
        claims.add_column(width=WIDTH, no_wrap=True)
        claims.add_column(overflow="fold")
        for claim in result.claims:
            claims.add_row(Text(claim.verdict, COLOURS.get(claim.verdict, "")), Text(written(sentence(claim), console)))
        if result.claims:
            console.print(claims)
        numbers = Table.grid(padding=(0, 2))
        for title, value in few_numbers(result):
            numbers.add_row(Text(written(title, console)), Text(written(value, console), no_wrap=True))
        if numbers.row_count:
            console.print(numbers)
        if rows:
            console.print(whole_table(result, console))
        console.print(Text(written(foot(result, seconds, place), console), "dim"))
        console.print()


def terminal() -> Console:
    """Standard output, as wide as the terminal; without colour where NO_COLOR is set."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, emoji=False, markup=False)


def written(text: str, console: Console) -> str:
    """The text with characters that the terminal has."""
    try:
        text.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return text.translate(PLAIN)
    return text


def coloured(word: str) -> Text:
    """A model's word, each letter in the colour of its kind."""
    from rich.text import Text

    colour = {LETTER[kind]: style for kind, style in KINDS.items()}
    return Text.assemble(*((letter, colour.get(letter, "")) for letter in word))


def sentence(claim: Claim) -> str:
    """What a claim says, the number that decides it, and over what."""
    from backlight.report.words import measured, rests_on

    number = measured(claim)
    because = claim.reason or (f"{claim.quantity}: {number}" if number else "")
    over = "" if claim.reason else rests_on(claim)
    return f"{claim.statement.rstrip('.')}.  " + ", ".join(filter(None, (because, over)))


def few_numbers(result: Result) -> Iterator[tuple[str, str]]:
    """The numbers of the entire model with their intervals, as far as the intervals support; those of claims are above."""
    from backlight.comparing.readers import READERS, described, of_table
    from backlight.comparing.series import with_intervals
    from backlight.report.words import interval

    for series in READERS.get(result.analysis, of_table)(result):
        for number, (value, low, high) in zip(series.numbers, with_intervals(series).T, strict=True):
            about = described(number.quantity)
            if not number.place and math.isfinite(value):
                scaled = interval(value, low, high, about.scale)
                yield series.title or about.title, f"{scaled} {'%' if about.scale == 100 else about.unit}".rstrip()


def whole_table(result: Result, console: Console) -> Any:
    """All rows, with three or four figures."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, value in (result.table[0] if result.table else {}).items():
        table.add_column(name, overflow="fold", justify="right" if isinstance(value, float) else "left")
    for row in result.table:
        table.add_row(*(written(f"{value:.4g}" if isinstance(value, float) else str(value), console) for value in row.values()))
    return table


def foot(result: Result, seconds: float, place: Path | None) -> str:
    """Over how many images, in what time, and where it is."""
    provenance = result.provenance
    data = provenance.get("data", {})
    over = f"{provenance.get('images', 0):,} images" + (f" of {data['data']}, {data['split']}" if "data" in data else "")
    took = clock(seconds) if seconds else "there already"
    saved = f"saved in {place}" if place else "not saved: --out DIR saves rows and figure"
    return " · ".join([over, took, saved, f"all {len(result.table):,} rows: --rows or --csv"])
