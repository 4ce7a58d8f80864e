"""Fifteen common corruptions and four more, in five strengths, of any image (Hendrycks & Dietterich 2019).

The authors publish two strengths: one for ImageNet-C's 224 px and a milder one for CIFAR-C's 32 px, where 224's noise or
blur would leave nothing to recognise.  The libraries that make these corruptions know the first alone, so they are written
out here for both, and tested against one of them where they should agree.  Each image draws from a generator of its own:
what happens to it depends on the seed, the corruption, the severity and its number, and on no batch and no worker.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import convolve1d, gaussian_filter1d
from scipy.signal import fftconvolve

from .errors import Unavailable, UserError, did_you_mean

#: An image, (C, H, W) float32 in [0, 1] with C 1 or 3; what a corruption returns may lie outside and is clipped.
Pixels = NDArray[Any]
Random = np.random.Generator

FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
COMMON = tuple(name for names in FAMILIES.values() for name in names)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
NAMES = COMMON + EXTRA
SEVERITIES = (1, 2, 3, 4, 5)

#: Up to this many pixels on the shorter side an image gets CIFAR-C's strengths.
SMALL = 64
INSTALL = "pip install 'backlight[corruptions]'"


def corrupted(image: NDArray[np.uint8], name: str, severity: int, *, seed: Sequence[int], strengths: str) -> NDArray[np.uint8]:
    """The image as ``name`` leaves it.  Shapes: (C, H, W) -> the same.

    ``seed`` is what makes this image's draw its own; ``strengths`` is "imagenet" or "cifar".
    """
    function, published = CORRUPTIONS[name]
    random = np.random.default_rng([*seed, NAMES.index(name), severity])
    changed = function(image.astype(np.float32) / 255, published[strengths][severity - 1], random)
    # Cut off, not rounded, as the authors do; an error of float32 must not cost a level.
    return (changed.clip(0, 1) * 255 + 1e-3).astype(np.uint8)


def strengths_of(size: Sequence[int], asked: str = "auto") -> str:
    """Whose strengths an image of (H, W) gets.  Errors: UserError for an unknown word."""
    if asked not in ("auto", "imagenet", "cifar"):
        raise UserError(f"strengths are auto, imagenet or cifar, got {asked!r}")
    return asked if asked != "auto" else "cifar" if min(size) <= SMALL else "imagenet"


def known(names: Sequence[str]) -> tuple[str, ...]:
    """The names themselves, once each.  Errors: UserError if there is none, or one is unknown."""
    if isinstance(names, str) or not names:
        raise UserError(f"corruptions are a list of names, out of {', '.join(NAMES)}")
    for name in names:
        if name not in NAMES:
            raise UserError(f"no corruption is called {name!r}{did_you_mean(name, NAMES)}; there are {', '.join(NAMES)}")
    return tuple(dict.fromkeys(names))


def refuse_missing(names: Sequence[str]) -> None:
    """Errors: Unavailable if one of these needs what is not installed."""
    for name in names:
        for module in NEEDS.get(name, ()):
            if importlib.util.find_spec(module) is None:
                raise Unavailable(f"{name} needs the library {module}, which is not installed: {INSTALL}")


# Noise


def gaussian_noise(x: Pixels, scale: float, random: Random) -> Pixels:
    return x + random.normal(scale=scale, size=x.shape).astype(np.float32)


def shot_noise(x: Pixels, photons: float, random: Random) -> Pixels:
    """``photons`` of a white pixel."""
    return (random.poisson(x * photons) / photons).astype(np.float32)


def impulse_noise(x: Pixels, share: float, random: Random) -> Pixels:
    """Half of the share becomes black, half white."""
    drawn = random.uniform(size=x.shape)
    return np.where(drawn < share / 2, np.float32(0), np.where(drawn >= 1 - share / 2, np.float32(1), x))


def speckle_noise(x: Pixels, scale: float, random: Random) -> Pixels:
    return x + x * random.normal(scale=scale, size=x.shape).astype(np.float32)


# Blur


def gaussian_blur(x: Pixels, sigma: float, random: Random) -> Pixels:
    rows, columns = (gaussian_matrix(side, sigma, "nearest", 4.0) for side in x.shape[1:])
    return rows @ x @ columns.T


@lru_cache(maxsize=64)
def gaussian_matrix(side: int, sigma: float, edge: str, truncate: float) -> Pixels:
    """Gaussian smoothing of a row as a matrix: what lies beyond the ends is folded in.  Shapes: -> (side, side)."""
    if sigma == 0:
        return np.eye(side, dtype=np.float32)
    return gaussian_filter1d(np.eye(side), sigma, axis=0, mode=edge, truncate=truncate).astype(np.float32)


def defocus_blur(x: Pixels, lens: tuple[float, float], random: Random) -> Pixels:
    """A disk of a radius, its edge softened by a Gaussian."""
    kernel = disk(*lens)
    reach = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    return fftconvolve(padded, kernel[None], mode="valid", axes=(1, 2))


@lru_cache(maxsize=16)
def disk(radius: float, softness: float) -> Pixels:
    """Shapes: -> (2 r + 1, 2 r + 1), without the zeros around it."""
    reach = 8 if radius <= 8 else int(radius)
    taps = 1 if radius <= 8 else 2
    across = np.arange(-reach, reach + 1) ** 2
    flat = (across[:, None] + across <= radius**2).astype(np.float64)
    bell = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * softness**2))
    soft = flat / flat.sum()
    for axis in (0, 1):
        soft = convolve1d(soft, bell / bell.sum(), axis=axis, mode="mirror")
    used = int(np.abs(np.flatnonzero(soft.max(0) > 0) - reach).max())
    return soft[reach - used : reach + used + 1, reach - used : reach + used + 1].astype(np.float32)


def glass_blur(x: Pixels, glass: tuple[float, int, int], random: Random) -> Pixels:
    """Blur, move pixels about, blur.

    The authors' loop means to swap neighbours, from the last to the first, but its two sides are views of one array, so it
    copies: pixel p takes what q(p) holds by then, and that q took before if it came earlier.  Where a chain of such copies
    ends is found for all pixels together, by following twice as many links in each round.
    """
    sigma, reach, rounds = glass
    x = np.floor(gaussian_blur(x, sigma, random) * 255 + 1e-3) / np.float32(255)
    height, width = x.shape[1:]
    inner = np.s_[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    place = np.arange(height * width).reshape(height, width)
    came = np.full((height, width), -1)  # when its turn was: those of later rows, and columns, first
    came[inner] = place[inner]
    for _ in range(rounds):
        drawn = np.floor(random.uniform(-reach, reach, (2, height, width))).astype(np.int64)
        moved = place.copy()
        moved[inner] += (width * drawn[0] + drawn[1])[inner]
        source = moved.ravel()
        # Its source's turn was earlier: it takes what that pixel took.  Otherwise the chain ends with what lay there.
        earlier = came.ravel()[source] > np.arange(height * width)
        links = np.where(earlier, source, np.arange(height * width))
        while not np.array_equal(further := links[links], links):
            links = further
        x = x.reshape(len(x), -1)[:, source[links]].reshape(x.shape)
    return gaussian_blur(x, sigma, random)


def motion_blur(x: Pixels, camera: tuple[int, float], random: Random) -> Pixels:
    return smeared(x, *camera, angle=random.uniform(-45, 45))


def smeared(x: Pixels, radius: int, sigma: float, angle: float) -> Pixels:
    """Half a Gaussian along a direction (degrees), pixel by pixel; the edge goes on beyond itself."""
    steps = np.arange(2 * radius + 1)
    weight = np.exp(-(steps**2) / (2 * sigma**2))
    down, across = (-np.ceil(steps * f(np.deg2rad(angle)) - 0.5).astype(int) for f in (np.sin, np.cos))
    height, width = x.shape[1:]
    reach = 2 * radius + 1
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    out = np.zeros_like(x)
    for w, dy, dx in zip((weight / weight.sum()).astype(np.float32), down, across, strict=True):
        out += w * padded[:, reach - dy : reach - dy + height, reach - dx : reach - dx + width]
    return out


def zoom_blur(x: Pixels, factors: Sequence[float], random: Random) -> Pixels:
    return (x + sum(zoomed(x, factor) for factor in factors)) / np.float32(len(factors) + 1)


def zoomed(x: Pixels, factor: float) -> Pixels:
    """The middle of an image, enlarged to its size.  Shapes: (C, H, W) -> the same."""
    kept = [int(np.ceil(side / factor)) for side in x.shape[1:]]
    (top, left), (rows, columns) = ([(side - k) // 2 for side, k in zip(x.shape[1:], kept, strict=True)], kept)
    middle = torch.from_numpy(np.ascontiguousarray(x[:, top : top + rows, left : left + columns]))
    large = F.interpolate(middle[None], [round(k * factor) for k in kept], mode="bilinear", align_corners=True)[0].numpy()
    trim = [(have - want) // 2 for have, want in zip(large.shape[1:], x.shape[1:], strict=True)]
    return large[:, trim[0] : trim[0] + x.shape[1], trim[1] : trim[1] + x.shape[2]]


# Weather


def snow(x: Pixels, weather: tuple[float, float, float, float, int, float, float], random: Random) -> Pixels:
    mean, scale, factor, least, radius, sigma, keep = weather
    flakes = zoomed(random.normal(loc=mean, scale=scale, size=(1, *x.shape[1:])).astype(np.float32), factor)
    flakes = np.where(flakes < least, np.float32(0), flakes).clip(0, 1)
    falling = np.round(smeared(flakes, radius, sigma, random.uniform(-135, -45)) * 255) / np.float32(255)
    whiter = keep * x + (1 - keep) * np.maximum(x, 1.5 * grey(x) + 0.5)
    return (whiter + falling + falling[:, ::-1, ::-1]).astype(np.float32)


def frost(x: Pixels, weather: tuple[float, float, float], random: Random) -> Pixels:
    """A photograph of frost, a random part of it, over the image."""
    keep, cover, scale = weather
    photo = frost_photo(int(random.uniform(0, 5)), scale, x.shape[1:])  # the sixth was never drawn by the authors
    top, left = (int(random.uniform(0, have - want)) for have, want in zip(photo.shape[1:], x.shape[1:], strict=True))
    part = photo[:, top : top + x.shape[1], left : left + x.shape[2]]
    return keep * x + cover * (part if len(x) == 3 else grey(part))


@lru_cache(maxsize=8)
def frost_photo(number: int, scale: float, size: tuple[int, int]) -> Pixels:
    """One of the authors' photographs, scaled, and enlarged where the image would not fit in.  Shapes: -> (3, h, w)."""
    spec = importlib.util.find_spec("imagecorruptions")  # for its photographs; importing it would take seconds
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(f"frost needs the library imagecorruptions, which is not installed: {INSTALL}")
    file = Path(spec.submodule_search_locations[0]) / "frost" / f"frost{number + 1}.{'png' if number < 3 else 'jpg'}"
    pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).float() / 255
    scale = max(scale, *((want + 1) / have for want, have in zip(size, pixels.shape[1:], strict=True)))
    if scale == 1:
        return pixels.numpy()
    target = [max(want + 1, round(scale * have)) for want, have in zip(size, pixels.shape[1:], strict=True)]
    return F.interpolate(pixels[None], target, mode="bilinear", align_corners=False)[0].numpy()


def fog(x: Pixels, weather: tuple[float, float], random: Random) -> Pixels:
    thick, decay = weather
    brightest = x.max()
    side = 1 << (max(x.shape[1:]) - 1).bit_length()
    cloud = plasma(side, decay, random)[: x.shape[1], : x.shape[2]].astype(np.float32)
    return (x + thick * cloud) * (brightest / (brightest + thick))


def plasma(side: int, decay: float, random: Random) -> NDArray[np.float64]:
    """A fractal cloud by diamonds and squares on a torus, from 0 to 1.  Shapes: -> (side, side), a power of two."""
    cloud = np.zeros((side, side))
    rough, step = 100.0, side

    def middle_of(*four: NDArray[np.float64]) -> NDArray[np.float64]:
        return sum(four) / 4 + rough * random.uniform(-rough, rough, four[0].shape)

    while step >= 2:
        half = step // 2
        corners, centres = cloud[::step, ::step], cloud[half::step, half::step]
        right, below = np.roll(corners, -1, 1), np.roll(corners, -1, 0)
        centres[:] = middle_of(corners, right, below, np.roll(right, -1, 0))
        cloud[::step, half::step] = middle_of(corners, right, centres, np.roll(centres, 1, 0))
        cloud[half::step, ::step] = middle_of(corners, below, centres, np.roll(centres, 1, 1))
        step, rough = half, rough / decay
    cloud -= cloud.min()
    return cloud / cloud.max() if cloud.max() else cloud


def brightness(x: Pixels, more: float, random: Random) -> Pixels:
    """The value of hue, saturation and value raised: black turns grey, other pixels grow in proportion."""
    value = x.max(0, keepdims=True)
    raised = np.minimum(value + np.float32(more), 1)
    return np.where(value > 0, x * (raised / np.where(value > 0, value, 1)), raised)


# Digital


def contrast(x: Pixels, kept: float, random: Random) -> Pixels:
    mean = x.mean((1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    return (x - mean) * kept + mean


def elastic_transform(x: Pixels, warp: tuple[float, float, float], random: Random) -> Pixels:
    """An affine map that moves three points at random, then a smooth random displacement; in parts of the shorter side."""
    short = min(x.shape[1:])
    push, sigma, jitter = (short * part for part in warp)
    middle, third = np.array(x.shape[1:]) // 2, short // 3
    points = np.array([middle + third, [middle[0] + third, middle[1] - third], middle - third], float)  # (x, y) each
    moved = points + random.uniform(-jitter, jitter, (3, 2))
    columns, rows = np.meshgrid(*(np.arange(side, dtype=float) for side in x.shape[:0:-1]))
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)  # where each pixel of the result comes from
    across, down = (columns * back[0, k] + rows * back[1, k] + back[2, k] for k in (0, 1))
    warped = sampled(x, down, across, through_centres=True)
    smooth = [gaussian_matrix(side, sigma, "reflect", 3.0) for side in x.shape[1:]]
    dx, dy = (push * (smooth[0] @ random.uniform(-1, 1, x.shape[1:]) @ smooth[1].T) for _ in range(2))
    return sampled(warped, rows + dy, columns + dx, through_centres=False)


def sampled(x: Pixels, rows: NDArray[Any], columns: NDArray[Any], *, through_centres: bool) -> Pixels:
    """Pixels between pixels; beyond the edge is a mirror, in the last centres or half a pixel behind them.

    Shapes: (C, H, W), (H, W), (H, W) -> (C, H, W).
    """
    spans = [max(1, side - 1) if through_centres else side for side in x.shape[1:]]
    start = 0.0 if through_centres else 0.5
    at = [2 * (place + start) / span - 1 for place, span in zip((rows, columns), spans, strict=True)]
    grid = torch.from_numpy(np.stack([at[1], at[0]], -1)[None]).float()
    return F.grid_sample(
        torch.from_numpy(x)[None], grid, mode="bilinear", padding_mode="reflection", align_corners=through_centres
    )[0].numpy()


def pixelate(x: Pixels, share: float, random: Random) -> Pixels:
    image = picture(x)
    small = image.resize((max(1, int(image.width * share)), max(1, int(image.height * share))), Image.Resampling.BOX)
    return channels_first(small.resize(image.size, Image.Resampling.BOX))


def jpeg_compression(x: Pixels, quality: int, random: Random) -> Pixels:
    file = io.BytesIO()
    picture(x).save(file, "JPEG", quality=quality)
    return channels_first(Image.open(file))


def saturate(x: Pixels, change: tuple[float, float], random: Random) -> Pixels:
    """The saturation of hue, saturation and value times a factor plus a term; grey counts as a red of saturation 0."""
    times, plus = change
    colour = x if len(x) == 3 else np.repeat(x, 3, 0)
    value = colour.max(0, keepdims=True)
    below = value - colour  # value x saturation x a share that the hue alone decides
    least = below.max(0, keepdims=True)
    saturation = np.divide(least, value, out=np.zeros_like(least), where=value > 0)
    red = np.zeros_like(below)
    red[1:] = 1
    hue = np.divide(below, least, out=red, where=least > 0)
    out = value - value * np.clip(saturation * np.float32(times) + np.float32(plus), 0, 1) * hue
    return out if len(x) == 3 else grey(out)


def spatter(x: Pixels, drops: tuple[float, float, float, float, float, int], random: Random) -> Pixels:
    """Drops of water, or of mud, on the lens."""
    mean, scale, sigma, least, strength, mud = drops
    wet = gaussian_blur(random.normal(mean, scale, (1, *x.shape[1:])).astype(np.float32), sigma, random)[0]
    wet[wet < least] = 0
    if mud:
        where = gaussian_blur((wet > least)[None].astype(np.float32), strength, random)
        where[where < 0.8] = 0
        return x * (1 - where) + where * shade((63, 42, 20), like=x)
    return x + water(wet, strength) * shade((175, 238, 238), like=x)


def water(wet: Pixels, strength: float) -> Pixels:
    """How much of a drop is at a place, lit from one side.  Shapes: (H, W) -> (1, H, W)."""
    import cv2

    layer = (wet * 255).astype(np.uint8)
    from_edge = cv2.distanceTransform(255 - cv2.Canny(layer, 50, 150), cv2.DIST_L2, 5)
    lit = cv2.equalizeHist(cv2.blur(np.minimum(from_edge, 20), (3, 3)).astype(np.uint8))
    lit = cv2.filter2D(lit, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    drop = layer * cv2.blur(lit, (3, 3)).astype(np.float32)
    return (drop / drop.max() * strength if drop.max() else drop)[None]


# What they share


def grey(x: Pixels) -> Pixels:
    """Luma (ITU-R 601).  Shapes: (C, H, W) -> (1, H, W)."""
    return x if len(x) == 1 else np.tensordot(LUMA, x, 1)[None]


LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def shade(colour: tuple[int, int, int], *, like: Pixels) -> Pixels:
    """A colour of 8 bits a channel, grey where the image is.  Shapes: -> (C, 1, 1)."""
    whole = np.array(colour, np.float32).reshape(3, 1, 1) / 255
    return whole if len(like) == 3 else grey(whole)


def picture(x: Pixels) -> Image.Image:
    levels = np.round(x * 255).astype(np.uint8)
    return Image.fromarray(levels[0] if len(x) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))


def channels_first(image: Image.Image) -> Pixels:
    levels = np.asarray(image, np.float32) / 255
    return levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)


# How strong


def _zooms(*ends_and_steps: tuple[float, float]) -> list[tuple[float, ...]]:
    return [tuple(np.arange(1, end, step).tolist()) for end, step in ends_and_steps]


#: What the name stands for, and its five strengths in `make_imagenet_c.py` and `make_cifar_c.py` of hendrycks/robustness.
CORRUPTIONS: dict[str, tuple[Callable[[Pixels, Any, Random], Pixels], dict[str, Sequence[Any]]]] = {
    "gaussian_noise": (gaussian_noise, {"imagenet": (0.08, 0.12, 0.18, 0.26, 0.38), "cifar": (0.04, 0.06, 0.08, 0.09, 0.1)}),
    "shot_noise": (shot_noise, {"imagenet": (60, 25, 12, 5, 3), "cifar": (500, 250, 100, 75, 50)}),
    "impulse_noise": (impulse_noise, {"imagenet": (0.03, 0.06, 0.09, 0.17, 0.27), "cifar": (0.01, 0.02, 0.03, 0.05, 0.07)}),
    "defocus_blur": (defocus_blur, {
        "imagenet": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "cifar": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    }),
    "glass_blur": (glass_blur, {
        "imagenet": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "cifar": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    }),
    "motion_blur": (motion_blur, {
        "imagenet": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "cifar": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    }),
    "zoom_blur": (zoom_blur, {
        "imagenet": _zooms((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        "cifar": _zooms((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    }),
    "snow": (snow, {
        "imagenet": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        "cifar": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    }),
    "frost": (frost, {  # and how much the photographs are scaled
        "imagenet": ((1, 0.4, 1.0), (0.8, 0.6, 1.0), (0.7, 0.7, 1.0), (0.65, 0.7, 1.0), (0.6, 0.75, 1.0)),
        "cifar": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    }),
    "fog": (fog, {
        "imagenet": ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
        "cifar": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    }),
    "brightness": (brightness, {"imagenet": (0.1, 0.2, 0.3, 0.4, 0.5), "cifar": (0.05, 0.1, 0.15, 0.2, 0.3)}),
    "contrast": (contrast, {"imagenet": (0.4, 0.3, 0.2, 0.1, 0.05), "cifar": (0.75, 0.5, 0.4, 0.3, 0.15)}),
    "elastic_transform": (elastic_transform, {  # in parts of the side; the authors wrote 244 where images have 224
        "imagenet": tuple(
            tuple(244 / 224 * part for part in warp)
            for warp in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
        "cifar": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    }),
    "pixelate": (pixelate, {"imagenet": (0.6, 0.5, 0.4, 0.3, 0.25), "cifar": (0.95, 0.9, 0.85, 0.75, 0.65)}),
    "jpeg_compression": (jpeg_compression, {"imagenet": (25, 18, 15, 10, 7), "cifar": (80, 65, 58, 50, 40)}),
    "speckle_noise": (speckle_noise, {"imagenet": (0.15, 0.2, 0.35, 0.45, 0.6), "cifar": (0.06, 0.1, 0.12, 0.16, 0.2)}),
    "gaussian_blur": (gaussian_blur, {"imagenet": (1, 2, 3, 4, 6), "cifar": (0.4, 0.6, 0.7, 0.8, 1)}),
    "spatter": (spatter, {
        "imagenet": (
            (0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0), (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1), (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        "cifar": (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0), (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1), (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
    }),
    "saturate": (saturate, {
        "imagenet": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        "cifar": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    }),
}  # fmt: skip
NEEDS = {"frost": ("imagecorruptions",), "spatter": ("cv2",)}


# The official sets


@dataclass(frozen=True)
class Official:
    """CIFAR-10-C, CIFAR-100-C or ImageNet-C on a disk.

    Shapes: `labels` (N,), of the images in the order of each severity.
    """

    folder: Path
    labels: NDArray[np.int64]
    files: dict[tuple[str, int], Sequence[Path]]  # ImageNet-C's images; empty for CIFAR-C
    arrays: dict[str, NDArray[np.uint8]]  # CIFAR-C's, (5 N, H, W, 3), on the disk

    def read(self, name: str, severity: int, row: int) -> Image.Image:
        if self.arrays:
            return Image.fromarray(self.arrays[name][(severity - 1) * len(self.labels) + row])
        file = self.files[name, severity][row]
        try:
            return Image.open(file).convert("RGB")
        except OSError as error:
            raise UserError(f"cannot read image {file}: {str(error).splitlines()[0]}") from error


def official(folder: str | Path, names: Sequence[str], severities: Sequence[int], classes: Sequence[str]) -> Official:
    """An official set, opened.

    CIFAR-C: FOLDER/NAME.npy and labels.npy; ImageNet-C: FOLDER/NAME/SEVERITY/CLASS/IMAGE, or a folder of families between.
    Errors: UserError that names what is missing or does not fit.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise Unavailable(f"no folder at {folder}: give the folder of CIFAR-10-C, CIFAR-100-C or ImageNet-C")
    return _cifar_c(folder, names) if (folder / "labels.npy").exists() else _imagenet_c(folder, names, severities, classes)


def _cifar_c(folder: Path, names: Sequence[str]) -> Official:
    repeated = _array(folder / "labels.npy").astype(np.int64)
    labels = repeated[: len(repeated) // 5]
    if len(repeated) % 5 or not np.array_equal(np.tile(labels, 5), repeated):
        raise UserError(f"{folder / 'labels.npy'} does not hold the same labels for each of five severities")
    arrays = {name: _array(folder / f"{name}.npy") for name in names}
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.ndim != 4 or len(array) != len(repeated) or array.shape[3] != 3:
            raise UserError(
                f"{folder / name}.npy holds {array.dtype} of shape {array.shape}, and the labels are those of {len(repeated)} "
                "images (H, W, 3) of uint8: complete the folder"
            )
    return Official(folder, labels, {}, arrays)


def _array(file: Path) -> NDArray[Any]:
    try:
        return np.load(file, mmap_mode="r")
    except FileNotFoundError as error:
        raise Unavailable(f"{file} is missing: leave the corruption out, or complete the folder") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: it is cut short, damaged or no array") from error


def _imagenet_c(folder: Path, names: Sequence[str], severities: Sequence[int], classes: Sequence[str]) -> Official:
    files: dict[tuple[str, int], Sequence[Path]] = {}
    labels: list[int] = []
    for name in names:
        places = [place for place in (folder / name, *sorted(folder.glob(f"*/{name}"))) if place.is_dir()]
        for severity in severities:
            place = places[0] / str(severity) if places else folder / name / str(severity)
            if not place.is_dir():
                raise Unavailable(f"{place} is missing: leave the corruption or the severity out, or complete the folder")
            found = sorted(entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))
            if found != sorted(classes):
                raise UserError(
                    f"the {len(found)} class folders of {place} are not the data's {len(classes)} classes: give data of these"
                )
            here = [(f, k) for k, c in enumerate(found) for f in sorted((place / c).iterdir()) if IMAGE.search(f.name)]
            if labels and [k for _, k in here] != labels:
                raise UserError(f"{place} holds other images than the corruptions before it: complete the folder")
            labels = [k for _, k in here]
            files[name, severity] = [file for file, _ in here]
    return Official(folder, np.array(labels, np.int64), files, {})


IMAGE = re.compile(r"\.(jpe?g|png|bmp|webp)$", re.IGNORECASE)
