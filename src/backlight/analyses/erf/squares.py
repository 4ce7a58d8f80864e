"""How large a field is: the squares around a point of the image, and the share of the field within each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from backlight.numerics.bootstrap import Array

#: Sums of the same numbers in another order differ by less than this, relative to the sum.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Squares:
    """The squares around a point of an image, each one ring of pixels larger than the one before.

    ``centre`` (y, x) is in pixels from the top left corner, where pixel p spans p to p + 1, and is a multiple of one half.
    """

    centre: tuple[float, float]
    image: tuple[int, int]

    @cached_property
    def rings(self) -> tuple[Array, np.ndarray]:
        """The sides of all squares (S,), and the smallest square that holds each pixel, as an index (H, W)."""
        rows, columns = (np.abs(np.arange(n) + 0.5 - c) for n, c in zip(self.image, self.centre, strict=True))
        sides, ring = np.unique(2 * np.maximum(rows[:, None], columns) + 1, return_inverse=True)
        return sides, ring.reshape(self.image)

    @property
    def sides(self) -> Array:
        """In pixels, ascending; the last square holds the whole image.  Shapes: (S,)."""
        return self.rings[0]

    @cached_property
    def order(self) -> tuple[Tensor, Tensor]:
        """The pixels by ring, and where each ring ends in this order.  Shapes: (H W,), (S,)."""
        ring = torch.from_numpy(self.rings[1]).flatten()
        return ring.argsort(), ring.bincount().cumsum(0) - 1

    def held(self, fields: Tensor) -> Array:
        """The sum of each field within each square.  Shapes: (B, H, W) -> (B, S)."""
        pixels, ends = self.order
        return fields.flatten(1)[:, pixels].cumsum(1)[:, ends].numpy()

    def area(self, side: Array) -> Array:
        """The share of the image within squares of these sides, which may reach beyond its border."""
        (y, x), (h, w) = self.centre, self.image
        height, width = (np.minimum(c + side / 2, n) - np.maximum(c - side / 2, 0) for c, n in ((y, h), (x, w)))
        return height * width / (h * w)

    def side(self, held: Array, shares: Array) -> Array:
        """The sides of the smallest squares that hold these shares; NaN if the field is zero.  Shapes: (S,), (T,) -> (T,)."""
        enough = held >= shares[:, None] * held[-1] * (1 - ROUNDING)
        return np.where(held[-1] > 0, self.sides[enough.argmax(1)], np.nan)

    def central_share(self, held: Array, side: float) -> Array:
        """The share of the field within half the area of the square of this side, interpolated.  Shapes: (S,) -> ()."""
        half = np.interp(self.area(np.array(side)) / 2, [0, *self.area(self.sides)], [0, *held])
        return np.divide(half, held[-1], out=np.array(np.nan), where=held[-1] > 0)


def script_squares(field: Tensor, shares: Array) -> tuple[Squares, Array]:
    """The squares that RepLKNet's ``erf/analyze_erf.py`` finds, with their sides.  Shapes: (H, W), (T,) -> (T,).

    ``field`` is the mean over images; shares are of log10(field + 1).  Squares have odd sides from 3 around pixel (H // 2,
    W // 2), lie within the image, and hold *more* than the share; if none does, the script fails and the side is NaN.
    """
    h, w = field.shape
    squares = Squares((h // 2 + 0.5, w // 2 + 0.5), (h, w))
    (held,) = squares.held((field + 1).log10()[None])
    allowed = (squares.sides >= 3) & (squares.sides < 2 * (min(h, w) // 2))
    enough = allowed & (held > shares[:, None] * held[-1])
    return squares, np.where(enough.any(1), squares.sides[enough.argmax(1)], np.nan)
