"""The two mistakes a user is told about in one sentence: their own, and a thing that is not to be had.

Anything else is a fault of Backlight and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What is wrong, where, and what to do instead.  The command line exits with 2."""

    exit_code = 2


class Unavailable(UserError):
    """A model, weights or data that cannot be had from here.  The command line exits with 4."""

    exit_code = 4


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A half-sentence that names the closest known words, or nothing.

    >>> did_you_mean("furier", ["fourier", "variance"])
    '; did you mean fourier?'
    """
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
