"""Shapes: a data set that is drawn, not downloaded, in which outline and fill may disagree.

Which of the two does a model go by?  There are eight outlines and eight fills.  In ``train`` and ``test`` class k is outline k
with fill k, so that either tells the class; in ``conflict`` the fill is another class's.  The question is that of Geirhos et
al., "ImageNet-trained CNNs are biased towards texture" (2019); the pictures are not their stimuli, and the numbers not to be
compared with theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .errors import UserError
from .image_sets import ImageSet, image_set, resolved_split, sha256_of_lines

Plane = NDArray[np.float64]

#: Images of each split: so many of each of the 8 classes, or of each of the 56 pairs that disagree.
SPLITS = {"train": 8 * 500, "test": 8 * 100, "conflict": 56 * 20}


def shapes(split: str = "train", *, size: int = 64, channels: int = 3, seed: int = 0) -> ImageSet:
    """The split's images, each drawn when it is read; the same picture at any size.

    Labels are outlines; in ``conflict`` `textures` tells the fills.  Errors: UserError for a wrong split, size or channels.
    """
    split = resolved_split(split, SPLITS, "shapes")
    if size < 16 or channels not in (1, 3):
        raise UserError(f"shapes are drawn from 16 px on in 1 or 3 channels, got {size} px and {channels} channels")
    labels = outlines(split, np.arange(SPLITS[split]))
    return image_set("shapes", Drawings(split, size, channels, seed), split=split, classes=tuple(OUTLINES), labels=labels)


def outlines(split: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The outline of each row of a split.  Shapes: (N,) -> (N,)."""
    return rows % 8 if split != "conflict" else rows % 56 // 7


def textures(split: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fill of each row of a split; in ``conflict`` each of the seven others in turn.  Shapes: (N,) -> (N,)."""
    own = outlines(split, rows)
    return own if split != "conflict" else (own + 1 + rows % 7) % 8


@dataclass(frozen=True)
class Drawings:
    """The rows of a split: a number is all that a picture needs."""

    split: str
    size: int
    channels: int
    seed: int

    def read(self, row: int) -> NDArray[np.uint8]:
        """Shapes: -> (H, W, 3), or (H, W) of one channel."""
        outline, texture = (int(of(self.split, np.array([row]))[0]) for of in (outlines, textures))
        # Only random(), straight from the generator's bits: NumPy may change how it makes other numbers of them.
        random = np.random.Generator(np.random.PCG64([self.seed, list(SPLITS).index(self.split), row])).random
        return drawn(outline, texture, self.size, self.channels, random)

    def id(self, row: int) -> str:
        return f"{self.split}/{row}"

    def where(self, row: int) -> str:
        return f"shapes {self.split} row {row}"

    def content(self, rows: Iterable[int]) -> tuple[str, str]:
        recipe = [f"{VERSION} {self.split} {self.size} {self.channels} {self.seed}", *map(str, rows)]
        return sha256_of_lines(recipe), "the recipe of the drawings"


# The drawing

#: To be raised when the same numbers would give other pictures.
VERSION = 1
#: Half the width of the line, where a shape reaches from -1 to 1.
LINE = 0.07


def drawn(outline: int, texture: int, size: int, channels: int, random: Callable[[], float]) -> NDArray[np.uint8]:
    """A picture: a line around a fill of two colours on a plain ground.  Place, size, tilt and all colours are random.

    Shapes: -> (size, size, 3), or (size, size) of one channel.
    """

    def between(low: float, high: float) -> float:
        return low + (high - low) * random()

    fine = 3 if size < 100 else 2  # a pixel is the mean of so many by so many
    x, y = plane(size * fine)
    tilt, scale, dx, dy = between(-0.25, 0.25), between(0.62, 0.82), between(-0.15, 0.15), between(-0.15, 0.15)
    u, v = (x - dx) / scale, (y - dy) / scale
    u, v = np.cos(tilt) * u - np.sin(tilt) * v, np.sin(tilt) * u + np.cos(tilt) * v
    depth = list(OUTLINES.values())[outline](u, v)  # below 0 inside
    bright = list(TEXTURES.values())[texture](x, y, between(0.28, 0.36), random)
    ground, dark, light, line = between(0.4, 0.6), between(0.05, 0.25), between(0.75, 0.95), float(random() < 0.5)
    tints = [[level + between(-0.12, 0.12) * (channels == 3) for _ in range(channels)] for level in (ground, dark, light, line)]
    parts = np.where(np.abs(depth) < LINE, 3, np.where(depth < 0, 1 + bright, 0))
    picture = np.array(tints).clip(0, 1)[parts]  # (H, W, C), too large
    picture = picture.reshape(size, fine, size, fine, channels).mean((1, 3))
    pixels = np.round(255 * picture).astype(np.uint8)
    return pixels if channels == 3 else pixels[:, :, 0]


@lru_cache(maxsize=4)
def plane(size: int) -> tuple[Plane, Plane]:
    """The middles of pixels, from -1 to 1, to the right and downwards.  Shapes: -> (size, size) x 2."""
    along = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = np.meshgrid(along, along)
    return x, y


def _triangle(u: Plane, v: Plane) -> Plane:
    turns = np.pi * np.array([1 / 2, 7 / 6, 11 / 6])
    return np.max([np.cos(t) * u + np.sin(t) * (v - 0.2) for t in turns], axis=0) - 0.55


def _cross(u: Plane, v: Plane) -> Plane:
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 0.95, v - 0.34), np.maximum(u - 0.34, v - 0.95))


def _star(u: Plane, v: Plane) -> Plane:
    """Folded into a tenth of a turn it is one straight edge, from an inner corner at 0.45 to a tip at 1.05."""
    turn = np.abs((np.arctan2(v, u) + np.pi / 2) % (2 * np.pi / 5) - np.pi / 5)
    r = np.hypot(u, v)
    edge = 1.05 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)]) - [0.45, 0]
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return normal[0] * (r * np.cos(turn) - 0.45) + normal[1] * r * np.sin(turn)


#: How far outside the outline a place is; below 0 inside.  In the shape's own coordinates.
OUTLINES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "disk": lambda u, v: np.hypot(u, v) - 0.9,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.66) - 0.3,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.8,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, 0.75 - np.hypot(u - 0.5, v)),
    "hourglass": lambda u, v: np.maximum(np.abs(v) - 0.9, 0.8 * (np.abs(u) - 0.2 - 0.75 * np.abs(v))),
}


def _stripes(across: Plane, period: float, random: Callable[[], float]) -> NDArray[np.bool_]:
    return (across / period + random()) % 1 < 0.5


def _checks(x: Plane, y: Plane, period: float, random: Callable[[], float]) -> NDArray[np.bool_]:
    return _stripes(x, 1.4 * period, random) ^ _stripes(y, 1.4 * period, random)


def _dots(x: Plane, y: Plane, period: float, random: Callable[[], float]) -> NDArray[np.bool_]:
    """Half of the area: a radius of sqrt(1 / 2 pi) periods."""
    a, b = ((along / (1.2 * period) + random()) % 1 - 0.5 for along in (x, y))
    return np.hypot(a, b) < (2 * np.pi) ** -0.5


def _grain(x: Plane, y: Plane, period: float, random: Callable[[], float]) -> NDArray[np.bool_]:
    cells = int(np.ceil(4 / period)) + 1  # of half a period
    lit = np.array([[random() < 0.5 for _ in range(cells)] for _ in range(cells)])
    row, column = (np.floor((along + 1) * 2 / period).astype(int) for along in (y, x))
    return lit[row, column]


def _ripples(x: Plane, y: Plane, period: float, random: Callable[[], float]) -> NDArray[np.bool_]:
    centre = (0.6 * random() - 0.3, 0.6 * random() - 0.3)
    return _stripes(np.hypot(x - centre[0], y - centre[1]), period, random)


#: Whether a place is of the lighter colour, as half of them are, in the picture's coordinates; in the order of the outlines.
TEXTURES: dict[str, Callable[[Plane, Plane, float, Callable[[], float]], NDArray[np.bool_]]] = {
    "lying stripes": lambda x, y, period, random: _stripes(y, period, random),
    "standing stripes": lambda x, y, period, random: _stripes(x, period, random),
    "rising stripes": lambda x, y, period, random: _stripes((x + y) / 2**0.5, period, random),
    "falling stripes": lambda x, y, period, random: _stripes((x - y) / 2**0.5, period, random),
    "checks": _checks,
    "dots": _dots,
    "grain": _grain,
    "ripples": _ripples,
}


# The bias
