"""Centred kernel alignment (CKA): the similarity of two representations of the same images.

Nguyen, Raghu & Kornblith, "Do Wide and Deep Networks Learn the Same Things?" (ICLR 2021), equations 1 to 4: the unbiased
estimate of HSIC in each mini-batch (Song et al., "Feature Selection via Dependence Maximization", JMLR 2012, equation 5),
averaged over mini-batches, numerators and denominators separately.

HSIC_1 of two Gram matrices without their diagonals is the inner product of both after *U-centring* (Szekely & Rizzo 2014,
section 3).  So a batch needs one small matrix per representation, and one product for all pairs.  A vector added to
the features of all images changes nothing, so features are centred before the float32 product, which saves digits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

#: Smallest number of images with an unbiased estimate, which divides by n - 3.
LEAST = 4
#: Entries centred and multiplied at once, in cache (4 MB); the products are added in float64.
CHUNK = 2**20
#: Features that differ by less than this many rounding errors between images count as equal.
CONSTANT = 8


def gram(maps: Tensor) -> Tensor:
    """Inner products of the images' centred features; zero if all images have the same features.

    A feature is one channel at one position.  Shapes: (B, ...) -> (B, B), in float64 (float32 on devices without float64).
    """
    rows = _features(maps)
    eps = CONSTANT * torch.finfo(rows.dtype).eps
    wide = torch.float32 if rows.device.type == "mps" else torch.float64
    total = torch.zeros(len(rows), len(rows), dtype=wide, device=rows.device)
    shared = torch.zeros((), dtype=wide, device=rows.device)  # squared length of the mean
    width = max(1, CHUNK // len(rows))
    buffer = rows.new_empty(len(rows), min(width, rows.shape[1]))  # once: allocation costs more than the arithmetic
    for chunk in rows.split(width, dim=1):
        mean = chunk.mean(0)
        centred = torch.sub(chunk, mean, out=buffer[:, : chunk.shape[1]])
        total += centred @ centred.T
        shared += mean @ mean
    return total * (total.trace() > len(rows) * eps**2 * shared)


def u_centred(grams: Array) -> Array:
    """Gram matrices with zero diagonals, U-centred: all rows and columns sum to 0.  Shapes: (U, n, n) -> (U, n, n)."""
    n = grams.shape[-1]
    off = grams * (1 - np.eye(n))
    rows = off.sum(-1) / (n - 2)  # equal to those of columns: the matrix is symmetric
    total = off.sum((-2, -1)) / ((n - 1) * (n - 2))
    return (off - rows[..., :, None] - rows[..., None, :] + total[..., None, None]) * (1 - np.eye(n))


def hsic(grams: Array) -> Array:
    """The unbiased estimate of HSIC of all pairs; at least 4 images.  Shapes: (U, n, n) -> (U, U).

    It can be negative for two different representations, not for one with itself.
    """
    n = grams.shape[-1]
    flat = u_centred(grams).reshape(len(grams), -1)
    return flat @ flat.T / (n * (n - 3))


def cka(dependence: Array) -> Array:
    """CKA from the HSIC of all pairs: scaled so that each representation has 1 with itself.

    A representation that is the same for all images has 0/0, NaN.  Shapes: (..., U, U) -> (..., U, U).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(np.diagonal(dependence, axis1=-2, axis2=-1))
        return dependence / scale[..., :, None] / scale[..., None, :]


def _features(maps: Tensor) -> Tensor:
    """One row per image, features in memory order, so that nothing is copied.  Shapes: (B, ...) -> (B, P)."""
    if maps.ndim == 4 and not maps.is_contiguous():
        maps = maps.permute(0, 2, 3, 1)
    rows = maps.flatten(1)
    return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
