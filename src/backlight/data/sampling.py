"""A random subset with the classes in proportion, the same on every machine."""

from __future__ import annotations

import numpy as np

from backlight.errors import UserError


def stratified(labels: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """The indices of a random subset with the classes in proportion, ascending; all indices if the limit allows.

    Of NumPy's random streams only the raw stream of a bit generator is guaranteed never to change, so it is used here.
    Shapes: labels (N,) -> (min(limit, N),).  Errors: UserError for a limit below 1 or a negative seed.
    """
    at_least_one("limit", limit)
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"seed must be a whole number and not negative, got {seed}")
    if limit >= len(labels):
        return np.arange(len(labels))
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    keys, ties = np.split(np.random.PCG64(seed).random_raw(len(labels) + len(counts)), [len(labels)])
    by_class = np.lexsort((keys, member))
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[rank_in_class < shares(counts, limit, ties)[member[by_class]]])


def shares(counts: np.ndarray, limit: int, ties: np.ndarray) -> np.ndarray:
    """How many images each class gets: by largest remainder, and at least one if the limit allows.

    `ties` decides between equal remainders.  Shapes: counts (K,), ties (K,) -> (K,), which sum to the limit; the limit is
    below the sum of the counts.
    """
    total = counts.sum()
    take = counts * limit // total
    if limit >= len(counts):
        take = np.maximum(take, 1)
    while missing := limit - take.sum():
        order = np.lexsort((ties, counts * limit - take * total))  # by the exact remainder, in integers
        if missing > 0:
            take[order[-1]] += 1
        else:
            take[order[take[order] > 1][0]] -= 1
    return take


def at_least_one(name: str, value: object) -> None:
    """Errors: UserError if the value is not a whole number, or below 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise UserError(f"{name} must be at least 1, got {value}")
