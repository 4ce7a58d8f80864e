"""Fifteen common corruptions and four more, at five severities, of any image (Hendrycks & Dietterich, ICLR 2019).

Ours although a library exists: that one has no CIFAR-C strengths, and refuses images below 32 px.

The authors publish two sets of strengths: one for ImageNet-C's 224 px, and a milder one for CIFAR-C's 32 px, where the noise
or blur of the first would leave nothing to recognise.  The functions are tested against the library where the two should agree.
The random numbers of an image depend on the seed, the corruption, the severity and the image's position, not on the batch or
the worker.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
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

from backlight.data.corruption_names import NAMES
from backlight.data.corruption_strengths import STRENGTHS
from backlight.errors import Unavailable

#: An image, (C, H, W) float32 in [0, 1] with C 1 or 3.  What a corruption returns may be outside [0, 1]; it is clipped.
Pixels = NDArray[Any]
Random = np.random.Generator
#: Up to this many pixels on the shorter side an image gets CIFAR-C's strengths.
SMALL = 64
INSTALL = "pip install 'backlight[corruptions]'"
#: Corruption -> the modules it needs beside the dependencies of the package.
NEEDS = {"frost": ("imagecorruptions",), "spatter": ("cv2",)}


def corrupted(image: NDArray[np.uint8], name: str, severity: int, *, seed: Sequence[int], strengths: str) -> NDArray[np.uint8]:
    """The corrupted image.  Shapes: (C, H, W) -> the same.

    ``seed`` is different for each image; ``strengths`` is "imagenet" or "cifar".
    """
    random = np.random.default_rng([*seed, NAMES.index(name), severity])
    pixels = CORRUPTIONS[name](image.astype(np.float32) / 255, STRENGTHS[name][strengths][severity - 1], random)
    # Truncated, not rounded, as the authors do; an error of float32 must not change a level.
    return (pixels.clip(0, 1) * 255 + 1e-3).astype(np.uint8)


def strengths_for(size: Sequence[int], strengths: str = "auto") -> str:
    """The strengths, "imagenet" or "cifar", of an image of this size (H, W)."""
    return strengths if strengths != "auto" else "cifar" if min(size) <= SMALL else "imagenet"


def refuse_missing(names: Sequence[str]) -> None:
    """Errors: Unavailable if one of these corruptions needs a library that is not installed."""
    for name in names:
        for module in NEEDS.get(name, ()):
            if importlib.util.find_spec(module) is None:
                raise Unavailable(f"{name} needs the library {module}, which is not installed; run {INSTALL}")


def gaussian_noise(x: Pixels, scale: float, random: Random) -> Pixels:
    """Normal noise of a standard deviation."""
    return x + random.normal(scale=scale, size=x.shape).astype(np.float32)


def shot_noise(x: Pixels, photons: float, random: Random) -> Pixels:
    """Poisson noise; a white pixel has ``photons`` on average."""
    return (random.poisson(x * photons) / photons).astype(np.float32)


def impulse_noise(x: Pixels, share: float, random: Random) -> Pixels:
    """A share of the values is replaced: half of them becomes 0, half 1."""
    chance = random.uniform(size=x.shape)
    return np.where(chance < share / 2, np.float32(0), np.where(chance >= 1 - share / 2, np.float32(1), x))


def speckle_noise(x: Pixels, scale: float, random: Random) -> Pixels:
    """Normal noise in proportion to the pixel."""
    return x + x * random.normal(scale=scale, size=x.shape).astype(np.float32)


def gaussian_blur(x: Pixels, sigma: float, random: Random) -> Pixels:
    """A Gaussian filter; the border repeats the outermost pixel."""
    rows, columns = (gaussian_matrix(side, sigma, "nearest", 4.0) for side in x.shape[1:])
    return rows @ x @ columns.T


@lru_cache(maxsize=64)
def gaussian_matrix(side: int, sigma: float, edge: str, truncate: float) -> Pixels:
    """Gaussian smoothing of a row as a matrix, the extension beyond both ends included.  Shapes: -> (side, side)."""
    if sigma == 0:
        return np.eye(side, dtype=np.float32)
    return gaussian_filter1d(np.eye(side), sigma, axis=0, mode=edge, truncate=truncate).astype(np.float32)


def defocus_blur(x: Pixels, lens: tuple[float, float], random: Random) -> Pixels:
    """A disk-shaped filter with a soft edge; the border is mirrored."""
    kernel = disk(*lens)
    reach = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    return fftconvolve(padded, kernel[None], mode="valid", axes=(1, 2))


@lru_cache(maxsize=16)
def disk(radius: float, softness: float) -> Pixels:
    """A disk smoothed by a Gaussian, normalised, without the zeros around it.  Shapes: -> (2 r + 1, 2 r + 1)."""
    reach = 8 if radius <= 8 else int(radius)
    taps = 1 if radius <= 8 else 2
    squares = np.arange(-reach, reach + 1) ** 2
    flat = (squares[:, None] + squares <= radius**2).astype(np.float64)
    gaussian = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * softness**2))
    soft = flat / flat.sum()
    for axis in (0, 1):
        soft = convolve1d(soft, gaussian / gaussian.sum(), axis=axis, mode="mirror")
    used = int(np.abs(np.flatnonzero(soft.max(0) > 0) - reach).max())
    return soft[reach - used : reach + used + 1, reach - used : reach + used + 1].astype(np.float32)


def glass_blur(x: Pixels, glass: tuple[float, int, int], random: Random) -> Pixels:
    """Blur, move pixels at random to nearby positions, blur again.

    The authors' loop should swap neighbours, from the last pixel to the first.  But the two sides of its swap are views of one
    array, so that it copies: pixel p takes the value of its source q(p), and q(p) has already taken another value if it
    comes earlier in the loop.  Here the ends of these chains of copies are computed for all pixels together: each round
    doubles the number of links that are followed.
    """
    sigma, reach, rounds = glass
    x = np.floor(gaussian_blur(x, sigma, random) * 255 + 1e-3) / np.float32(255)
    height, width = x.shape[1:]
    inner = np.s_[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    index = np.arange(height * width).reshape(height, width)
    turn = np.full((height, width), -1)  # a larger number is earlier in the loop; -1: the loop does not reach this pixel
    turn[inner] = index[inner]
    for _ in range(rounds):
        shift = np.floor(random.uniform(-reach, reach, (2, height, width))).astype(np.int64)
        moved = index.copy()
        moved[inner] += (width * shift[0] + shift[1])[inner]
        source = moved.ravel()
        # If the source comes earlier in the loop, the pixel takes what the source took.  Otherwise the chain ends here.
        earlier = turn.ravel()[source] > np.arange(height * width)
        links = np.where(earlier, source, np.arange(height * width))
        while not np.array_equal(further := links[links], links):
            links = further
        x = x.reshape(len(x), -1)[:, source[links]].reshape(x.shape)
    return gaussian_blur(x, sigma, random)


def motion_blur(x: Pixels, camera: tuple[int, float], random: Random) -> Pixels:
    """A blur along a random direction within 45 degrees of the horizontal."""
    return smeared(x, *camera, angle=random.uniform(-45, 45))


def smeared(x: Pixels, radius: int, sigma: float, angle: float) -> Pixels:
    """A one-sided Gaussian filter along a direction (degrees), in whole pixels; the border repeats the outermost pixel."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    down, right = (-np.ceil(steps * f(np.deg2rad(angle)) - 0.5).astype(int) for f in (np.sin, np.cos))
    height, width = x.shape[1:]
    reach = 2 * radius + 1
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    out = np.zeros_like(x)
    for w, dy, dx in zip((weights / weights.sum()).astype(np.float32), down, right, strict=True):
        out += w * padded[:, reach - dy : reach - dy + height, reach - dx : reach - dx + width]
    return out


def zoom_blur(x: Pixels, factors: Sequence[float], random: Random) -> Pixels:
    """The mean of the image and its enlargements by these factors."""
    return (x + sum(zoomed(x, factor) for factor in factors)) / np.float32(len(factors) + 1)


def zoomed(x: Pixels, factor: float) -> Pixels:
    """The middle of an image, enlarged to its size.  Shapes: (C, H, W) -> the same."""
    rows, columns = (int(np.ceil(side / factor)) for side in x.shape[1:])
    top, left = (x.shape[1] - rows) // 2, (x.shape[2] - columns) // 2
    middle = torch.from_numpy(np.ascontiguousarray(x[:, top : top + rows, left : left + columns]))
    size = [round(rows * factor), round(columns * factor)]
    large = F.interpolate(middle[None], size, mode="bilinear", align_corners=True)[0].numpy()
    top, left = ((larger - side) // 2 for larger, side in zip(large.shape[1:], x.shape[1:], strict=True))
    return large[:, top : top + x.shape[1], left : left + x.shape[2]]


def snow(x: Pixels, weather: tuple[float, float, float, float, int, float, float], random: Random) -> Pixels:
    """Random flakes, enlarged and blurred along their fall, over a paler image."""
    mean, scale, factor, least, radius, sigma, keep = weather
    flakes = zoomed(random.normal(loc=mean, scale=scale, size=(1, *x.shape[1:])).astype(np.float32), factor)
    flakes = np.where(flakes < least, np.float32(0), flakes).clip(0, 1)
    falling = np.round(smeared(flakes, radius, sigma, random.uniform(-135, -45)) * 255) / np.float32(255)
    paler = keep * x + (1 - keep) * np.maximum(x, 1.5 * grey(x) + 0.5)
    return (paler + falling + falling[:, ::-1, ::-1]).astype(np.float32)


def frost(x: Pixels, weather: tuple[float, float, float], random: Random) -> Pixels:
    """A random part of a photograph of frost over the image."""
    keep, cover, scale = weather
    photo = frost_photo(int(random.uniform(0, 5)), scale, x.shape[1:])  # the authors have six and never draw the last
    top, left = (int(random.uniform(0, larger - side)) for larger, side in zip(photo.shape[1:], x.shape[1:], strict=True))
    part = photo[:, top : top + x.shape[1], left : left + x.shape[2]]
    return keep * x + cover * (part if len(x) == 3 else grey(part))


@lru_cache(maxsize=8)
def frost_photo(number: int, scale: float, size: tuple[int, int]) -> Pixels:
    """One of the authors' photographs, scaled, and larger than the image (H, W).  Shapes: -> (3, h, w)."""
    spec = importlib.util.find_spec("imagecorruptions")  # for its photographs; to import it takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(f"frost needs the library imagecorruptions, which is not installed; run {INSTALL}")
    file = Path(spec.submodule_search_locations[0]) / "frost" / f"frost{number + 1}.{'png' if number < 3 else 'jpg'}"
    pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).float() / 255
    scale = max(scale, *((side + 1) / old for side, old in zip(size, pixels.shape[1:], strict=True)))
    if scale == 1:
        return pixels.numpy()
    target = [max(side + 1, round(scale * old)) for side, old in zip(size, pixels.shape[1:], strict=True)]
    return F.interpolate(pixels[None], target, mode="bilinear", align_corners=False)[0].numpy()


def fog(x: Pixels, weather: tuple[float, float], random: Random) -> Pixels:
    """A fractal cloud added to the image, which is darkened so that its brightest pixel is not exceeded."""
    thick, decay = weather
    brightest = x.max()
    side = 1 << (max(x.shape[1:]) - 1).bit_length()
    cloud = plasma(side, decay, random)[: x.shape[1], : x.shape[2]].astype(np.float32)
    return (x + thick * cloud) * (brightest / (brightest + thick))


def plasma(side: int, decay: float, random: Random) -> NDArray[np.float64]:
    """A fractal cloud from 0 to 1, by the diamond-square algorithm on a torus.  Shapes: -> (side, side), a power of two."""
    cloud = np.zeros((side, side))
    roughness, step = 100.0, side

    def midpoints(*neighbours: NDArray[np.float64]) -> NDArray[np.float64]:
        return sum(neighbours) / 4 + roughness * random.uniform(-roughness, roughness, neighbours[0].shape)

    while step >= 2:
        half = step // 2
        corners, centres = cloud[::step, ::step], cloud[half::step, half::step]
        right, below = np.roll(corners, -1, 1), np.roll(corners, -1, 0)
        centres[:] = midpoints(corners, right, below, np.roll(right, -1, 0))
        cloud[::step, half::step] = midpoints(corners, right, centres, np.roll(centres, 1, 0))
        cloud[half::step, ::step] = midpoints(corners, below, centres, np.roll(centres, 1, 1))
        step, roughness = half, roughness / decay
    cloud -= cloud.min()
    return cloud / cloud.max() if cloud.max() else cloud


def brightness(x: Pixels, more: float, random: Random) -> Pixels:
    """A higher value (of hue, saturation, value): black turns grey, other pixels grow in proportion."""
    value = x.max(0, keepdims=True)
    raised = np.minimum(value + np.float32(more), 1)
    return np.where(value > 0, x * (raised / np.where(value > 0, value, 1)), raised)


def contrast(x: Pixels, factor: float, random: Random) -> Pixels:
    """Differences from each channel's mean, times a factor."""
    mean = x.mean((1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    return (x - mean) * factor + mean


def elastic_transform(x: Pixels, warp: tuple[float, float, float], random: Random) -> Pixels:
    """An affine map that moves three points at random, then a smooth random displacement; as fractions of the shorter side."""
    short = min(x.shape[1:])
    push, sigma, jitter = (short * fraction for fraction in warp)
    middle, third = np.array(x.shape[1:]) // 2, short // 3
    points = np.array([middle + third, [middle[0] + third, middle[1] - third], middle - third], float)  # (x, y) each
    moved = points + random.uniform(-jitter, jitter, (3, 2))
    columns, rows = np.meshgrid(*(np.arange(side, dtype=float) for side in x.shape[:0:-1]))
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)  # from a pixel of the result to its source
    source_x, source_y = (columns * back[0, k] + rows * back[1, k] + back[2, k] for k in (0, 1))
    warped = sampled(x, source_y, source_x, through_centres=True)
    smooth = [gaussian_matrix(side, sigma, "reflect", 3.0) for side in x.shape[1:]]
    dx, dy = (push * (smooth[0] @ random.uniform(-1, 1, x.shape[1:]) @ smooth[1].T) for _ in range(2))
    return sampled(warped, rows + dy, columns + dx, through_centres=False)


def sampled(x: Pixels, rows: NDArray[Any], columns: NDArray[Any], *, through_centres: bool) -> Pixels:
    """The image at these coordinates, bilinear; the border is mirrored at the outermost centres, or half a pixel beyond them.

    Shapes: (C, H, W), (H, W), (H, W) -> (C, H, W).
    """
    spans = [max(1, side - 1) if through_centres else side for side in x.shape[1:]]
    start = 0.0 if through_centres else 0.5
    vertical, horizontal = (
        2 * (coordinate + start) / span - 1 for coordinate, span in zip((rows, columns), spans, strict=True)
    )
    grid = torch.from_numpy(np.stack([horizontal, vertical], -1)[None]).float()
    return F.grid_sample(
        torch.from_numpy(x)[None], grid, mode="bilinear", padding_mode="reflection", align_corners=through_centres
    )[0].numpy()


def pixelate(x: Pixels, scale: float, random: Random) -> Pixels:
    """The image made smaller by block means, and enlarged again."""
    image = pil_image(x)
    small = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.BOX)
    return channels_first(small.resize(image.size, Image.Resampling.BOX))


def jpeg_compression(x: Pixels, quality: int, random: Random) -> Pixels:
    """The image saved as JPEG and read again."""
    file = io.BytesIO()
    pil_image(x).save(file, "JPEG", quality=quality)
    return channels_first(Image.open(file))


def saturate(x: Pixels, change: tuple[float, float], random: Random) -> Pixels:
    """The saturation (of hue, saturation, value) times a factor plus a term; grey counts as red of saturation 0."""
    factor, term = change
    colour = x if len(x) == 3 else np.repeat(x, 3, 0)
    value = colour.max(0, keepdims=True)
    below = value - colour  # value x saturation x a factor that depends on the hue only
    chroma = below.max(0, keepdims=True)
    saturation = np.divide(chroma, value, out=np.zeros_like(chroma), where=value > 0)
    red = np.zeros_like(below)
    red[1:] = 1
    hue = np.divide(below, chroma, out=red, where=chroma > 0)
    out = value - value * np.clip(saturation * np.float32(factor) + np.float32(term), 0, 1) * hue
    return out if len(x) == 3 else grey(out)


def spatter(x: Pixels, drops: tuple[float, float, float, float, float, int], random: Random) -> Pixels:
    """Drops of water, or of mud, on the lens."""
    mean, scale, sigma, least, strength, mud = drops
    wet = gaussian_blur(random.normal(mean, scale, (1, *x.shape[1:])).astype(np.float32), sigma, random)[0]
    wet[wet < least] = 0
    if mud:
        cover = gaussian_blur((wet > least)[None].astype(np.float32), strength, random)
        cover[cover < 0.8] = 0
        return x * (1 - cover) + cover * colour_of((63, 42, 20), like=x)
    return x + water(wet, strength) * colour_of((175, 238, 238), like=x)


def water(wet: Pixels, strength: float) -> Pixels:
    """The brightness of drops that are lit from one side.  Shapes: (H, W) -> (1, H, W)."""
    import cv2

    layer = (wet * 255).astype(np.uint8)
    from_edge = cv2.distanceTransform(255 - cv2.Canny(layer, 50, 150), cv2.DIST_L2, 5)
    lit = cv2.equalizeHist(cv2.blur(np.minimum(from_edge, 20), (3, 3)).astype(np.uint8))
    lit = cv2.filter2D(lit, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    drop = layer * cv2.blur(lit, (3, 3)).astype(np.float32)
    return (drop / drop.max() * strength if drop.max() else drop)[None]


def grey(x: Pixels) -> Pixels:
    """The luma (ITU-R 601).  Shapes: (C, H, W) -> (1, H, W)."""
    return x if len(x) == 1 else np.tensordot(LUMA, x, 1)[None]


LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def colour_of(levels: tuple[int, int, int], *, like: Pixels) -> Pixels:
    """A colour given in 8 bits, or its grey if the image is grey.  Shapes: -> (C, 1, 1)."""
    colour = np.array(levels, np.float32).reshape(3, 1, 1) / 255
    return colour if len(like) == 3 else grey(colour)


def pil_image(x: Pixels) -> Image.Image:
    """The image in 8 bits, as Pillow's type.  Shapes: (C, H, W)."""
    levels = np.round(x * 255).astype(np.uint8)
    return Image.fromarray(levels[0] if len(x) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))


def channels_first(image: Image.Image) -> Pixels:
    """Pillow's image as pixels from 0 to 1.  Shapes: -> (C, H, W)."""
    levels = np.asarray(image, np.float32) / 255
    return levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)


CORRUPTIONS: dict[str, Callable[[Pixels, Any, Random], Pixels]] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
        brightness, contrast, elastic_transform, pixelate, jpeg_compression, speckle_noise, gaussian_blur, spatter, saturate,
    )
}  # fmt: skip
