"""The caption below a figure for print: its axes and terms, over how many images it is, and what bands and bars are."""

# ruff: noqa: D102 (members of a protocol, which Result describes)
from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS = {"train": "training", "test": "test", "val": "validation", "validation": "validation"}
#: Size in points, grey, and inches between the caption, the axes and the edge.
SIZE, GREY, MARGIN = 6, "0.35", 0.06
#: The horizontal axis of figures over depth, and what else they show.
DEPTH = "Normalised depth: 0 is the first mark (the stem, before all units), 1 is after the last unit."
DOTTED = ("A dotted line is the end of a stage.",)
SHADED = ("Attention is shaded.", *DOTTED)


class Measured(Protocol):
    """What a caption needs of a result."""

    @property
    def analysis(self) -> str: ...
    @property
    def table(self) -> list[dict[str, Any]]: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    @property
    def sample(self) -> str: ...
    @property
    def marks(self) -> Mapping[str, tuple[str, ...]]: ...
    def caption(self, panel: str) -> str: ...


def split_of(result: Measured | None) -> str:
    """The split in a word that stands before "images"; empty if it is not known."""
    split = str((result.provenance.get("data") or {}).get("split") or "") if result is not None else ""
    return SPLITS.get(split, split)


def images_of(result: Measured) -> str:
    """What a result is measured on: "2,000 test images", "320 training images"."""
    count, split = int(result.provenance.get("images") or 0), split_of(result)
    kind = f"{split} image" if split else "image"
    return f"{count:,} {kind}{'' if count == 1 else 's'}" if count else f"{kind}s"


def of_panels(result: Measured, panels: Sequence[str]) -> list[str]:
    """The paragraphs of the caption of a result's figure, one a panel and one for what all share."""
    each = [result.caption(panel) for panel in panels]
    numbered = [f"Panel {i}: {text}" for i, text in enumerate(each, 1)] if len(each) > 1 else each
    marks = dict.fromkeys(mark for panel in panels for mark in result.marks.get(panel, ()))
    return [*numbered, " ".join([*marks, *shared([result])])]


def shared(results: Sequence[Measured], *, intervals: bool = True) -> list[str]:
    """Over what results are, and what their bands and bars are; of several analyses each by name."""
    over: dict[str, dict[str, None]] = {}
    for result in results:
        over.setdefault(result.analysis, {})[images_of(result)] = None
    counts = [(f"{name}: " if len(over) > 1 else "") + " or ".join(each) for name, each in over.items()]
    samples = dict.fromkeys(result.sample for result in results if intervals and result.sample and has_intervals(result))
    bands = [f"Bands and error bars are 95% intervals over {' or '.join(samples)}."] if samples else []
    return [f"Over {'; '.join(counts)}.", *bands]


def has_intervals(result: Measured) -> bool:
    """Whether a lower end of an interval is known."""
    ends = (value for row in result.table for name, value in row.items() if name == "low" or name.endswith("_low"))
    return any(value is not None and math.isfinite(value) for value in ends)


def write_below(figure: Figure, paragraphs: Iterable[str]) -> None:
    """Write a caption below the axes, as wide as the figure, which gets higher by what it needs.  Within `paper_style`."""
    from matplotlib.font_manager import FontProperties

    renderer, font = figure.canvas.get_renderer(), FontProperties(size=SIZE)  # type: ignore[attr-defined]
    width, height = figure.get_size_inches()

    def fits(line: str) -> bool:
        return renderer.get_text_width_height_descent(line, font, ismath=False)[0] <= (width - 3 * MARGIN) * figure.dpi

    text = "\n".join(line for paragraph in paragraphs for line in wrapped(paragraph, fits))
    caption = figure.text(
        MARGIN / width, 0, text, fontproperties=font, color=GREY, va="bottom", gid="caption", parse_math=False
    )
    below = caption.get_window_extent(renderer).height / figure.dpi + 2 * MARGIN
    figure.set_size_inches(width, height + below)
    caption.set_y(MARGIN / (height + below))
    figure.get_layout_engine().set(rect=(0, below / (height + below), 1, height / (height + below)))  # type: ignore[union-attr, call-arg]


def wrapped(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The lines of a text, each of which fits; a word of more than 40 letters is broken.

    >>> wrapped("log amplitude at a frequency", lambda line: len(line) <= 14)
    ['log amplitude', 'at a frequency']
    """
    lines = [""]
    for word in itertools.chain.from_iterable(textwrap.wrap(word, 40) for word in text.split()):
        if lines[-1] and not fits(f"{lines[-1]} {word}"):
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
