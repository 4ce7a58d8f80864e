"""Centred kernel alignment: how alike are two representations of the same images?

Nguyen, Raghu & Kornblith, "Do Wide and Deep Networks Learn the Same Things?" (ICLR 2021), equations 1 to 4: the unbiased
estimate of HSIC in each mini-batch (Song et al., "Feature Selection via Dependence Maximization", JMLR 2012, equation 5),
averaged over mini-batches, numerators and denominators apart.

HSIC_1 of two Gram matrices without their diagonals is the inner product of both after *U-centring* (Szekely & Rizzo 2014,
section 3), so a batch needs one small matrix a representation, and one product for all pairs.  U-centring forgets whatever is
added to all features alike; so features are centred before the float32 product, where a large common part costs digits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

#: Fewer images have no unbiased estimate: it divides by n - 3.
LEAST = 4
#: Numbers multiplied at once: 4 MB, so that they are centred and multiplied in cache, and summed up in float64.
CHUNK = 2**20
#: Features that differ less than this share of their size between images, in rounding errors, do not differ.
CONSTANT = 8


def gram(maps: Tensor) -> Tensor:
    """Inner products of images' features, less what all images share; zero if they share everything.

    Shapes: (B, ...) -> (B, B), in float64 (float32 on devices that have no other).  A feature is one channel at one place.
    """
    rows = _features(maps)
    eps = CONSTANT * torch.finfo(rows.dtype).eps
    wide = torch.float32 if rows.device.type == "mps" else torch.float64
    total = torch.zeros(len(rows), len(rows), dtype=wide, device=rows.device)
    shared = torch.zeros((), dtype=wide, device=rows.device)  # squared length of the mean
    width = max(1, CHUNK // len(rows))
    room = rows.new_empty(len(rows), min(width, rows.shape[1]))  # once: fresh memory costs more than the arithmetic
    for chunk in rows.split(width, dim=1):
        mean = chunk.mean(0)
        centred = torch.sub(chunk, mean, out=room[:, : chunk.shape[1]])
        total += centred @ centred.T
        shared += mean @ mean
    return total * (total.trace() > len(rows) * eps**2 * shared)


def u_centred(grams: Array) -> Array:
    """Gram matrices without their diagonals, all rows and columns brought to zero sum.  Shapes: (U, n, n) -> the same."""
    n = grams.shape[-1]
    off = grams * (1 - np.eye(n))
    rows = off.sum(-1) / (n - 2)  # symmetric: of columns, too
    everything = off.sum((-2, -1)) / ((n - 1) * (n - 2))
    return (off - rows[..., :, None] - rows[..., None, :] + everything[..., None, None]) * (1 - np.eye(n))


def hsic(grams: Array) -> Array:
    """The unbiased estimate of HSIC between all pairs.  Shapes: (U, n, n) -> (U, U), n at least 4.

    May be negative between two representations, not of one with itself.
    """
    n = grams.shape[-1]
    flat = u_centred(grams).reshape(len(grams), -1)
    return flat @ flat.T / (n * (n - 3))


def cka(dependence: Array) -> Array:
    """HSIC between all pairs, brought to 1 of each representation with itself.  Shapes: (U, U) -> the same.

    0/0, of a representation that is the same for all images, is NaN.
    """
    own = np.sqrt(np.diagonal(dependence))
    with np.errstate(divide="ignore", invalid="ignore"):
        return dependence / own[:, None] / own


def _features(maps: Tensor) -> Tensor:
    """A row an image, in the order in which features lie in memory, so that nothing is copied.  Shapes: (B, ...) -> (B, P)."""
    if maps.ndim == 4 and not maps.is_contiguous():
        maps = maps.permute(0, 2, 3, 1)
    rows = maps.flatten(1)
    return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
