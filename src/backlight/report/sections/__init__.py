"""The sections of the page, a file an analysis: what its figure shows and how to read it.

To give an analysis its own section, add ``sections/ANALYSIS.py`` with a ``SECTION``.  Charts are told, not drawn: one
names the table it reads and the columns to show, and ``page.js`` draws it.  An analysis without a file gets a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec

from ...result import Result
from .section import Section

GENERIC = Section(title="", reading="")


def section_of(analysis: str) -> Section:
    """The section of an analysis."""
    if find_spec(f"{__name__}.{analysis}") is None:
        return GENERIC
    return import_module(f".{analysis}", __name__).SECTION


def check(result: Result) -> None:
    """Errors: ValueError if the section could not show this result."""
    if not isinstance(result.evidence, Mapping):
        raise ValueError("its evidence is no mapping")
    if not result.table:
        raise ValueError("it has no rows")
    lacking = set(section_of(result.analysis).needs) - set(result.table[0]) - set(result.arrays)
    if lacking:
        raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
