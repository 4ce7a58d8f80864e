"""Shapes: a data set that is drawn, not downloaded, in which outline and fill may disagree.

It shows which of the two a model follows.  There are eight outlines and eight fills.  In ``train`` and ``test`` class k is
outline k with fill k, so either of them identifies the class; in ``conflict`` the fill is that of another class.  The question
is that of Geirhos et al., "ImageNet-trained CNNs are biased towards texture" (2019); the pictures are not their stimuli, so the
numbers cannot be compared with theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from backlight.data.image_set import ImageSet, image_set, resolved_split, sha256_of_lines
from backlight.errors import UserError

Plane = NDArray[np.float64]

#: Images of each split: the same number for each of the 8 classes, or of the 56 pairs that disagree.
SPLITS = {"train": 8 * 500, "test": 8 * 100, "conflict": 56 * 20}


def shapes(split: str = "train", *, size: int = 64, channels: int = 3, seed: int = 0) -> ImageSet:
    """The images of a split, each drawn when it is read; a picture is the same at any size.

    Labels are outlines; `textures` has the fills.  Errors: UserError for a wrong split, size or channels.
    """
    split = resolved_split(split, SPLITS, "shapes")
    if size < 16 or channels not in (1, 3):
        raise UserError(f"shapes have {size} px and {channels} channels; they need at least 16 px, and 1 or 3 channels")
    labels = outlines(split, np.arange(SPLITS[split]))
    return image_set("shapes", Drawings(split, size, channels, seed), split=split, classes=tuple(OUTLINES), labels=labels)


def outlines(split: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The outline of each row of a split.  Shapes: (N,) -> (N,)."""
    return rows % 8 if split != "conflict" else rows % 56 // 7


def textures(split: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fill of each row of a split; in ``conflict`` the seven other classes in turn.  Shapes: (N,) -> (N,)."""
    outline = outlines(split, rows)
    return outline if split != "conflict" else (outline + 1 + rows % 7) % 8


@dataclass(frozen=True)
class Drawings:
    """The rows of a split, drawn from the seed, the split and the row number."""

    split: str
    size: int
    channels: int
    seed: int

    def read(self, row: int) -> NDArray[np.uint8]:
        """The picture.  Shapes: -> (H, W, 3), or (H, W) with one channel."""
        outline, texture = (int(function(self.split, np.array([row]))[0]) for function in (outlines, textures))
        # Only random(), which is the generator's bits: NumPy may change how it computes other distributions from them.
        random = np.random.Generator(np.random.PCG64([self.seed, list(SPLITS).index(self.split), row])).random
        return drawn(outline, texture, self.size, self.channels, random)

    def id(self, row: int) -> str:
        """The row's name, the same on every machine."""
        return f"{self.split}/{row}"

    def where(self, row: int) -> str:
        """The row's name in an error message."""
        return f"shapes {self.split} row {row}"

    def content(self, rows: Iterable[int]) -> tuple[str, str]:
        """A sha256 that changes when the images change, and what was hashed."""
        recipe = [f"{VERSION} {self.split} {self.size} {self.channels} {self.seed}", *map(str, rows)]
        return sha256_of_lines(recipe), "the recipe of the drawings"


# --- the drawing

#: Increase it when the same random numbers give other pictures.
VERSION = 1
#: Half the width of the line, in the coordinates of a shape, which reaches from -1 to 1.
LINE = 0.07


def drawn(outline: int, texture: int, size: int, channels: int, random: Callable[[], float]) -> NDArray[np.uint8]:
    """A picture: a line around a fill of two colours on a plain background.  Position, size, tilt and colours are random.

    Shapes: -> (size, size, 3), or (size, size) with one channel.
    """

    def between(low: float, high: float) -> float:
        return low + (high - low) * random()

    fine = 3 if size < 100 else 2  # a pixel is the mean of this many by this many
    x, y = pixel_centres(size * fine)
    tilt, scale, dx, dy = between(-0.25, 0.25), between(0.62, 0.82), between(-0.15, 0.15), between(-0.15, 0.15)
    u, v = (x - dx) / scale, (y - dy) / scale
    u, v = np.cos(tilt) * u - np.sin(tilt) * v, np.sin(tilt) * u + np.cos(tilt) * v
    distance = list(OUTLINES.values())[outline](u, v)  # negative inside
    lighter = list(TEXTURES.values())[texture](x, y, between(0.28, 0.36), random)
    levels = (between(0.4, 0.6), between(0.05, 0.25), between(0.75, 0.95), float(random() < 0.5))
    colours = [[level + between(-0.12, 0.12) * (channels == 3) for _ in range(channels)] for level in levels]
    parts = np.where(np.abs(distance) < LINE, 3, np.where(distance < 0, 1 + lighter, 0))  # background, dark, light, line
    picture = np.array(colours).clip(0, 1)[parts]  # (H, W, C), before the mean over pixels
    picture = picture.reshape(size, fine, size, fine, channels).mean((1, 3))
    pixels = np.round(255 * picture).astype(np.uint8)
    return pixels if channels == 3 else pixels[:, :, 0]


@lru_cache(maxsize=4)
def pixel_centres(size: int) -> tuple[Plane, Plane]:
    """The coordinates of pixel centres, from -1 to 1, to the right and downwards.  Shapes: -> (size, size) x 2."""
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
    """By symmetry one straight edge in a tenth of a turn, from an inner corner at radius 0.45 to a tip at 1.05."""
    turn = np.abs((np.arctan2(v, u) + np.pi / 2) % (2 * np.pi / 5) - np.pi / 5)
    r = np.hypot(u, v)
    edge = 1.05 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)]) - [0.45, 0]
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return normal[0] * (r * np.cos(turn) - 0.45) + normal[1] * r * np.sin(turn)


#: About how far a position is outside the outline, negative inside, in the coordinates of the shape.
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
    """Disks that cover half of the area: their radius is sqrt(1 / 2π) periods."""
    a, b = ((along / (1.2 * period) + random()) % 1 - 0.5 for along in (x, y))
    return np.hypot(a, b) < (2 * np.pi) ** -0.5


def _grain(x: Plane, y: Plane, period: float, random: Callable[[], float]) -> NDArray[np.bool_]:
    cells = int(np.ceil(4 / period)) + 1  # of half a period
    lighter = np.array([[random() < 0.5 for _ in range(cells)] for _ in range(cells)])
    row, column = (np.floor((along + 1) * 2 / period).astype(int) for along in (y, x))
    return lighter[row, column]


def _ripples(x: Plane, y: Plane, period: float, random: Callable[[], float]) -> NDArray[np.bool_]:
    centre = (0.6 * random() - 0.3, 0.6 * random() - 0.3)
    return _stripes(np.hypot(x - centre[0], y - centre[1]), period, random)


#: Whether a position has the lighter colour, as about half of them have, in the coordinates of the picture; fill k has class k.
TEXTURES: dict[str, Callable[[Plane, Plane, float, Callable[[], float]], NDArray[np.bool_]]] = {
    "horizontal stripes": lambda x, y, period, random: _stripes(y, period, random),
    "vertical stripes": lambda x, y, period, random: _stripes(x, period, random),
    "rising stripes": lambda x, y, period, random: _stripes((x + y) / 2**0.5, period, random),
    "falling stripes": lambda x, y, period, random: _stripes((x - y) / 2**0.5, period, random),
    "checks": _checks,
    "dots": _dots,
    "grain": _grain,
    "ripples": _ripples,
}
