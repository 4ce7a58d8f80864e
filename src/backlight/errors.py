"""What a user hears of in one sentence: a mistake, something that is not available, a question that a model has no answer to.

Anything else is a fault of Backlight and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What is wrong, where, and what to do instead.  The command line exits with 2."""

    exit_code = 2


class Unavailable(UserError):
    """A model, weights or data that are not available here.  The command line exits with 4."""

    exit_code = 4


class NotApplicable(UserError):
    """The question has no answer for this model, for instance attention for a CNN.  In a study that is no failure."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Half a sentence with the closest known words; empty if there are none.

    >>> did_you_mean("furier", ["fourier", "variance"])
    '; did you mean fourier?'
    """
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def first_line(error: BaseException) -> str:
    """An exception in one line: the first line that says something, or its type.

    >>> first_line(ValueError("\\nbad\\nworse")), first_line(KeyError())
    ('bad', 'KeyError')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
