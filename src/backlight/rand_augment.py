"""RandAugment of a whole batch at once, on whatever device it lies, equal to timm's and Pillow's to the last bit.

Each of a few layers applies one of fifteen operations, drawn alike and with replacement, with probability one half and at a
level drawn around the magnitude.  A row of uniform numbers decides everything about its image (see ``augmentation``).  What
happens to which image is settled on the CPU, so the device never waits: images of one operation go through it together.
Sources: Cubuk et al. 2020; timm's ``rand_augment_transform``, whose levels these are.

Pillow cuts results down to whole numbers where others round, so arithmetic here follows its steps: blends in single
precision, geometry and contrast in double (on Apple's devices, which have none, in single: some pixels differ by 1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .augmentation import checked, sent, taken
from .errors import UserError

GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
COLOURS = (
    *("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness"),
)
OPERATIONS = (*GEOMETRIC, *COLOURS)  # as timm calls them
DRAWS_PER_LAYER = 5  # operation, whether, level, sign, interpolation
HIGHEST = 10  # level


@dataclass(frozen=True)
class Policy:
    """RandAugment's settings, as ``rand_augment`` takes them."""

    magnitude: int = 9
    layers: int = 2
    deviation: float = 1.0  # of the level around the magnitude
    increasing: bool = False  # colour operations change more at higher levels, as geometric ones always do

    @property
    def draws(self) -> int:
        """Columns of uniform numbers an image."""
        return DRAWS_PER_LAYER * self.layers

    @classmethod
    def named(cls, spelling: str) -> Policy:
        """From timm's spelling, with timm's defaults for what it leaves out.

        Errors: UserError for what is spelled or supported otherwise.

        >>> Policy.named("rand-m9-n2-mstd1.0")
        Policy(magnitude=9, layers=2, deviation=1.0, increasing=False)
        """
        word, *sections = spelling.split("-")
        found = [re.fullmatch(r"(m|n|inc)(\d+)|(mstd)(\d+\.?\d*)", section) for section in sections]
        told = {match[1] or match[3]: float(match[2] or match[4]) for match in found if match}
        if word != "rand" or len(told) < len(sections):
            raise UserError(
                f"RandAugment is spelled like rand-m9-n2-mstd1.0-inc1 (m, n, mstd and inc, each once), not {spelling!r}"
            )
        if told.get("n") == 0 or told.get("inc", 0) > 1 or told.get("m", 0) > HIGHEST or told.get("mstd", 0) > 100:
            raise UserError(f"RandAugment takes m up to {HIGHEST}, n from 1, mstd up to 100 and inc 0 or 1, not {spelling!r}")
        return cls(int(told.get("m", 10)), int(told.get("n", 2)), told.get("mstd", 0.0), bool(told.get("inc", 0)))


def rand_augment(
    images: Tensor,
    u: Tensor,
    *,
    magnitude: float = 9,
    layers: int = 2,
    deviation: float = 1.0,
    increasing: bool = False,
    fill: int | Sequence[int] = 128,
    interpolation: str = "random",
) -> Tensor:
    """Images, each changed by the operations that its row chooses.

    ``fill`` is the colour, a number or one a channel, of what a rotation or shift uncovers.  ``interpolation`` is bilinear,
    bicubic or, as in timm, either at random.  Grey images have no colour to change: Color leaves them as they are.
    Shapes: uint8 (B, 1 or 3, H, W), (B, DRAWS_PER_LAYER x layers) -> the same, uint8.
    Errors: UserError for other images, another table, or a fill that does not fit.
    """
    checked(images, u, DRAWS_PER_LAYER * layers)
    if images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise UserError(f"RandAugment takes uint8 images of 1 or 3 channels, not {images.shape[1]} channels of {images.dtype}")
    if interpolation not in ("random", "bilinear", "bicubic"):
        raise UserError(f"interpolation is random, bilinear or bicubic, not {interpolation!r}")
    colour = [fill] * images.shape[1] if isinstance(fill, int) else list(fill)
    if len(colour) != images.shape[1]:
        raise UserError(f"a fill of {len(colour)} numbers does not fit images of {images.shape[1]} channels")
    uncovered = sent(torch.tensor(colour, dtype=torch.uint8), images).view(1, -1, 1, 1)
    for row in u.split(DRAWS_PER_LAYER, dim=1):
        choice = drawn(row, magnitude=magnitude, deviation=deviation, increasing=increasing)
        cubic = choice.cubic if interpolation == "random" else torch.full((len(u),), interpolation == "bicubic")
        images = changed(images, choice.operation, choice.argument, cubic, uncovered)
    return images


@dataclass(frozen=True)
class Choice:
    """What one layer does to each image.  Shapes: (B,) each, on the CPU."""

    operation: Tensor  # index into OPERATIONS, or their number where there is none
    argument: Tensor  # degrees, share of a side, factor, threshold, ...: what the operation takes
    cubic: Tensor  # interpolated by cubics rather than lines


def drawn(u: Tensor, *, magnitude: float, deviation: float, increasing: bool) -> Choice:
    """The choices that rows of uniform numbers stand for.  Shapes: (B, DRAWS_PER_LAYER) -> (B,) each."""
    which, whether, height, side, how = u.unbind(1)
    operation = torch.where(whether < 0.5, (which * len(OPERATIONS)).long(), len(OPERATIONS))
    level = (magnitude + deviation * torch.special.ndtri(height.clamp(min=1e-300))).clamp(0, HIGHEST)
    sign = torch.where(side < 0.5, -1.0, 1.0).double()
    argument = torch.zeros_like(level)
    for index, name in enumerate(OPERATIONS):
        argument = torch.where(operation == index, argument_of(name, level, sign, increasing), argument)
    return Choice(operation, argument, how < 0.5)


def argument_of(name: str, level: Tensor, sign: Tensor, increasing: bool) -> Tensor:
    """What an operation takes at a level from 0 to 10: degrees, shares, factors, thresholds, bits.  Shapes: (B,) -> (B,)."""
    share = level / HIGHEST
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        return 1.0 + sign * (share * 0.9) if increasing else share * 1.8 + 0.1
    if name == "Posterize":  # bits kept
        return 4 - (share * 4).floor() if increasing else (share * 4).floor()
    if name == "Solarize":  # pixels from here on are inverted
        return 256 - (share * 256).floor() if increasing else (share * 256).floor()
    if name == "SolarizeAdd":
        return (share * 110).floor()
    if name in GEOMETRIC:
        return sign * (share * {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3}.get(name, 0.45))
    return torch.zeros_like(level)


def changed(images: Tensor, operation: Tensor, argument: Tensor, cubic: Tensor, fill: Tensor) -> Tensor:
    """Each image after its operation.  Shapes: (B, C, H, W), (B,) three times on the CPU, (1, C, 1, 1) -> (B, C, H, W)."""
    geometric = operation < len(GEOMETRIC)
    group = torch.where(geometric, cubic.long(), operation)  # geometry is one operation with two interpolations
    order = group.argsort(stable=True)
    pieces, start = [], 0
    together = images.index_select(0, sent(order, images))
    for index, count in enumerate(torch.bincount(group, minlength=len(OPERATIONS) + 1).tolist()):
        rows, piece = order[start : start + count], together[start : start + count]
        start += count
        if not count or index == len(OPERATIONS):
            pieces.append(piece)
        elif index < len(GEOMETRIC):
            matrix = matrices([OPERATIONS[i] for i in operation[rows]], argument[rows].tolist(), *images.shape[2:])
            pieces.append(transformed(piece, matrix, bool(index), fill))
        else:
            pieces.append(RECOLOURED[OPERATIONS[index]](piece, argument[rows]))
    return torch.cat(pieces).index_select(0, sent(order.argsort(), images))


def matrices(names: Sequence[str], arguments: Sequence[float], height: int, width: int) -> Tensor:
    """From a pixel's place in the result to its place in the image: x' = a x + b y + c, y' = d x + e y + f.

    Shapes: B names and arguments -> (B, 6): a to f, in pixels.
    """

    def matrix(name: str, argument: float) -> tuple[float, ...]:
        if name == "Rotate":  # about the middle; degrees, counter-clockwise
            angle = -math.radians(argument % 360.0)
            cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
            x, y = width / 2, height / 2
            return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y
        return {
            "ShearX": (1, argument, 0, 0, 1, 0),
            "ShearY": (1, 0, 0, argument, 1, 0),
            "TranslateXRel": (1, 0, argument * width, 0, 1, 0),
            "TranslateYRel": (1, 0, 0, 0, 1, argument * height),
        }[name]

    return torch.tensor([matrix(*each) for each in zip(names, arguments, strict=True)], dtype=torch.float64)


def transformed(images: Tensor, matrix: Tensor, cubic: bool, fill: Tensor) -> Tensor:
    """Images seen through affine maps, interpolated by lines or by Pillow's cubics; ``fill`` where a map leaves the image.

    Shapes: (B, C, H, W), (B, 6), (1, C, 1, 1) -> (B, C, H, W).
    """
    h, w = images.shape[2:]
    real = wide(images)
    a, b, c, d, e, f = sent(matrix.to(real), images).view(-1, 6, 1, 1).unbind(1)
    y = torch.arange(h, dtype=real, device=images.device)[:, None] + 0.5
    x = torch.arange(w, dtype=real, device=images.device) + 0.5
    across, down = a * x + b * y + c, d * x + e * y + f
    inside = (across >= 0) & (across < w) & (down >= 0) & (down < h)
    across, down = across - 0.5, down - 0.5
    left, top = across.floor(), down.floor()
    between = cubic_between if cubic else line_between
    reach = range(-1, 3) if cubic else range(2)
    columns = [(left + i).clamp(0, w - 1).long() for i in reach]

    def row(j: int) -> Tensor:
        start = (top + j).clamp(0, h - 1).long() * w
        return between([taken(images, start + column).to(real) for column in columns], (across - left)[:, None])

    seen = between([row(j) for j in reach], (down - top)[:, None]).clamp(0, 255).to(torch.uint8)
    return torch.where(inside[:, None], seen, fill)


def line_between(values: list[Tensor], at: Tensor) -> Tensor:
    """The line through two values, at 0 to 1 between them."""
    one, two = values
    return one + (two - one) * at


def cubic_between(values: list[Tensor], at: Tensor) -> Tensor:
    """The cubic that runs through the middle two of four values, at 0 to 1 between them; Pillow's (the sharpest, a = -1)."""
    one, two, three, four = values
    return two + at * (three - one + at * (2 * (one - two) + three - four + at * (two - one - three + four)))


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """The darkest pixel of each channel becomes 0 and the lightest 255."""
    pixels = images.to(wide(images))
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    scale = torch.full_like(low, 255) / (high - low)  # a number over a tensor would be rounded twice
    return torch.where(high > low, (pixels * scale + -low * scale).clamp(0, 255), pixels).to(torch.uint8)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """As many pixels of each channel in one range of values as in another, as far as whole numbers go."""
    b, c, h, w = images.shape
    pixels = images.flatten(2).long()
    channel = 256 * torch.arange(b * c, device=images.device).view(b, c, 1)
    counts = torch.zeros(256 * b * c, dtype=torch.long, device=images.device)
    counts = counts.scatter_add_(0, (pixels + channel).flatten(), torch.ones_like(pixels).flatten()).view(b, c, 256)
    step = (h * w - counts.gather(2, pixels.amax(2, keepdim=True))) // 255  # pixels a value, the lightest left out
    table = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
    equal = table.clamp(max=255).gather(2, pixels)
    return torch.where(step > 0, equal, pixels).view_as(images).to(torch.uint8)


def invert(images: Tensor, _: Tensor) -> Tensor:
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The highest ``bits`` of 8 are kept; none leaves black, which today's Pillow refuses and older ones gave."""
    return images & each(256 - 2 ** (8 - bits.long()).clamp(max=8), images).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Pixels from the threshold on are inverted."""
    return torch.where(images < each(threshold.long(), images), images, 255 - images)


def solarize_add(images: Tensor, added: Tensor) -> Tensor:
    """The darker half is made lighter."""
    lighter = images + each(added.to(torch.uint8), images)  # 127 + 110 at most; where it wraps around it is not taken
    return torch.where(images < 128, lighter, images)


def color(images: Tensor, factor: Tensor) -> Tensor:
    return blended(grey(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, the mean grey of the image."""
    pixels = images.shape[2] * images.shape[3]
    mean = (2 * grey(images).sum((2, 3), keepdim=True) + pixels) // (2 * pixels)  # rounded
    return blended(mean, images, factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return blended(torch.zeros_like(images), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, means over 3 x 3 pixels of which the middle weighs 5; the border stays."""
    smooth = images.int()
    if min(images.shape[2:]) > 2:
        rows = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
        total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * smooth[:, :, 1:-1, 1:-1]
        smooth = smooth.clone()
        smooth[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26  # a thirteenth, rounded
    return blended(smooth, images, factor)


RECOLOURED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
}


def grey(images: Tensor) -> Tensor:
    """Luminance as ITU-R 601 weighs it, in Pillow's whole numbers.  Shapes: (B, 1 or 3, H, W) -> (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def blended(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """``base`` at factor 0, the image at 1, beyond it above; cut to 0..255 and down to whole numbers."""
    start = base.float()
    return (start + each(factor.float(), images) * (images.float() - start)).clamp(0, 255).to(torch.uint8)


def each(numbers: Tensor, images: Tensor) -> Tensor:
    """A number an image, where the images are.  Shapes: (B,) -> (B, 1, 1, 1)."""
    return sent(numbers, images).view(-1, 1, 1, 1)


def wide(images: Tensor) -> torch.dtype:
    """The most precise floating point of the device."""
    return torch.float32 if images.device.type == "mps" else torch.float64
