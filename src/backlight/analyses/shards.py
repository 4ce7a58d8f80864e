"""An analysis whose parts several processes compute, each its share, into one folder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backlight.errors import UserError
from backlight.files import PartialResults


def refuse_no_shard(shard: tuple[int, int]) -> None:
    """Errors: UserError unless this is one part of several."""
    if not (len(shard) == 2 and 0 <= shard[0] < shard[1]):
        raise UserError(f"shard is {shard!r}; it must be (rank, world) with 0 <= rank < world")


def own_parts(count: int, shard: tuple[int, int], partial_results: PartialResults) -> list[int]:
    """Which of ``count`` parts this process computes: the first, which all need, and those of its share that are not stored.

    >>> own_parts(6, (1, 2), PartialResults(None, {}))
    [0, 2, 4]
    """
    rank, world = shard
    share = range(1 + rank, count, world)
    return [0, *(i for i in share if partial_results.get(_name(i)) is None)]


def joined(own: Mapping[int, np.ndarray], count: int, partial_results: PartialResults) -> dict[int, np.ndarray]:
    """Store the parts of this process; all parts of the ``count`` that are known by now, in order.

    Every process stores its parts before it reads those of others, so the last one knows all.
    """
    for i, scores in own.items():
        if i:
            partial_results.put(_name(i), {"scores": scores})
    stored = {i: part["scores"] for i in range(count) if i not in own and (part := partial_results.get(_name(i))) is not None}
    return dict(sorted({**own, **stored}.items()))


def _name(part: int) -> str:
    return f"scores-{part:04}"
