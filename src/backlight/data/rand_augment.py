"""RandAugment of a whole batch at once, on any device: timm's pixels to the last bit, and resumable, which timm's is not.

Each layer applies one of fifteen operations with probability 1/2, drawn uniformly and with replacement, at a level drawn
around the magnitude.  A row of uniform numbers decides everything about its image (see ``augmentation``).  The CPU decides
which image gets which operation, so nothing waits for the device; images with the same operation go through it together.
Sources: Cubuk et al. 2020; timm's ``rand_augment_transform``, whose levels these are.

Pillow truncates where others round, so the arithmetic here follows its steps: blends in single precision, geometry and
contrast in double precision (Apple's devices have only single precision: there some pixels differ by 1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backlight.data.augmentation import gathered, refuse_wrong_draws, to_device_of
from backlight.errors import UserError

GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
COLOURS = (
    *("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness"),
)
OPERATIONS = (*GEOMETRIC, *COLOURS)  # by timm's names
DRAWS_PER_LAYER = 5  # operation, whether, level, sign, interpolation
HIGHEST = 10  # the highest level


@dataclass(frozen=True)
class Policy:
    """The settings of RandAugment, named as the parameters of ``rand_augment``."""

    magnitude: int = 9
    layers: int = 2
    deviation: float = 1.0  # standard deviation of the level around the magnitude
    increasing: bool = False  # colour operations, too, change more at higher levels

    @property
    def draws(self) -> int:
        """How many uniform numbers an image needs."""
        return DRAWS_PER_LAYER * self.layers

    @classmethod
    def named(cls, spelling: str) -> Policy:
        """From timm's spelling, with timm's defaults for what it leaves out.

        Errors: UserError for another spelling, or a number out of range.

        >>> Policy.named("rand-m9-n2-mstd1.0")
        Policy(magnitude=9, layers=2, deviation=1.0, increasing=False)
        """
        word, *sections = spelling.split("-")
        matches = [re.fullmatch(r"(m|n|inc)(\d+)|(mstd)(\d+\.?\d*)", section) for section in sections]
        values = {match[1] or match[3]: float(match[2] or match[4]) for match in matches if match}
        if word != "rand" or len(values) < len(sections):
            raise UserError(
                f"RandAugment is spelled like rand-m9-n2-mstd1.0-inc1 (m, n, mstd and inc, each once), not {spelling!r}"
            )
        if values.get("n") == 0 or values.get("inc", 0) > 1 or values.get("m", 0) > HIGHEST or values.get("mstd", 0) > 100:
            raise UserError(f"RandAugment takes m up to {HIGHEST}, n from 1, mstd up to 100 and inc 0 or 1, not {spelling!r}")
        return cls(int(values.get("m", 10)), int(values.get("n", 2)), values.get("mstd", 0.0), bool(values.get("inc", 0)))


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
    """Images, each changed by the operations of its row of ``u``.

    ``fill`` is the colour of the pixels that a rotation or shift uncovers, one number or one for each channel.
    ``interpolation`` is bilinear, bicubic or, as in timm, either at random.  Color does not change grey images.
    Shapes: uint8 (B, 1 or 3, H, W), (B, DRAWS_PER_LAYER x layers) -> the same, uint8.
    Errors: UserError for other images, other uniform numbers, or a fill that does not fit.
    """
    refuse_wrong_draws(images, u, DRAWS_PER_LAYER * layers)
    if images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise UserError(f"RandAugment takes uint8 images of 1 or 3 channels, not {images.shape[1]} channels of {images.dtype}")
    if interpolation not in ("random", "bilinear", "bicubic"):
        raise UserError(f"interpolation is random, bilinear or bicubic, not {interpolation!r}")
    colour = [fill] * images.shape[1] if isinstance(fill, int) else list(fill)
    if len(colour) != images.shape[1]:
        raise UserError(f"a fill of {len(colour)} numbers does not fit images of {images.shape[1]} channels")
    uncovered = to_device_of(images, torch.tensor(colour, dtype=torch.uint8)).view(1, -1, 1, 1)
    for row in u.split(DRAWS_PER_LAYER, dim=1):
        choice = drawn_choice(row, magnitude=magnitude, deviation=deviation, increasing=increasing)
        cubic = choice.cubic if interpolation == "random" else torch.full((len(u),), interpolation == "bicubic")
        images = applied(images, choice.operation, choice.argument, cubic, uncovered)
    return images


@dataclass(frozen=True)
class Choice:
    """What one layer does to each image.  Shapes: (B,) each, on the CPU."""

    operation: Tensor  # index into OPERATIONS; len(OPERATIONS) for none
    argument: Tensor  # of the operation: degrees, share of a side, factor, threshold, ...
    cubic: Tensor  # bicubic interpolation, not bilinear


def drawn_choice(u: Tensor, *, magnitude: float, deviation: float, increasing: bool) -> Choice:
    """What one layer does, from rows of uniform numbers.  Shapes: (B, DRAWS_PER_LAYER) -> (B,) each."""
    which, whether, height, side, mode = u.unbind(1)
    operation = torch.where(whether < 0.5, (which * len(OPERATIONS)).long(), len(OPERATIONS))
    level = (magnitude + deviation * torch.special.ndtri(height.clamp(min=1e-300))).clamp(0, HIGHEST)
    sign = torch.where(side < 0.5, -1.0, 1.0).double()
    argument = torch.zeros_like(level)
    for index, name in enumerate(OPERATIONS):
        argument = torch.where(operation == index, argument_of(name, level, sign, increasing), argument)
    return Choice(operation, argument, mode < 0.5)


def argument_of(name: str, level: Tensor, sign: Tensor, increasing: bool) -> Tensor:
    """An operation's argument at a level from 0 to 10: degrees, share, factor, threshold or bits.  Shapes: (B,) -> (B,)."""
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


def applied(images: Tensor, operation: Tensor, argument: Tensor, cubic: Tensor, fill: Tensor) -> Tensor:
    """Each image after its operation.  Shapes: (B, C, H, W), (B,) three times on the CPU, (1, C, 1, 1) -> (B, C, H, W)."""
    geometric = operation < len(GEOMETRIC)
    group = torch.where(geometric, cubic.long(), operation)  # geometry is one operation with two interpolations
    order = group.argsort(stable=True)
    results, start = [], 0
    grouped = images.index_select(0, to_device_of(images, order))
    for index, count in enumerate(torch.bincount(group, minlength=len(OPERATIONS) + 1).tolist()):
        rows, part = order[start : start + count], grouped[start : start + count]
        start += count
        if not count or index == len(OPERATIONS):
            results.append(part)
        elif index < len(GEOMETRIC):
            matrix = matrices([OPERATIONS[i] for i in operation[rows]], argument[rows].tolist(), *images.shape[2:])
            results.append(transformed(part, matrix, bool(index), fill))
        else:
            results.append(COLOUR_FUNCTIONS[OPERATIONS[index]](part, argument[rows]))
    return torch.cat(results).index_select(0, to_device_of(images, order.argsort()))


def matrices(names: Sequence[str], arguments: Sequence[float], height: int, width: int) -> Tensor:
    """Affine maps from a pixel's position in the result to that in the image: x' = a x + b y + c, y' = d x + e y + f.

    Shapes: B names and arguments -> (B, 6): a to f, in pixels.
    """

    def matrix(name: str, argument: float) -> tuple[float, ...]:
        if name == "Rotate":  # around the centre; degrees, counter-clockwise
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
    """Images under affine maps, with bilinear or Pillow's bicubic interpolation; ``fill`` where a map leaves the image.

    Shapes: (B, C, H, W), (B, 6), (1, C, 1, 1) -> (B, C, H, W).
    """
    h, w = images.shape[2:]
    real = float_type(images)
    a, b, c, d, e, f = to_device_of(images, matrix.to(real)).view(-1, 6, 1, 1).unbind(1)
    y = torch.arange(h, dtype=real, device=images.device)[:, None] + 0.5
    x = torch.arange(w, dtype=real, device=images.device) + 0.5
    across, down = a * x + b * y + c, d * x + e * y + f
    inside = (across >= 0) & (across < w) & (down >= 0) & (down < h)
    across, down = across - 0.5, down - 0.5
    left, top = across.floor(), down.floor()
    interpolate = cubic_between if cubic else line_between
    reach = range(-1, 3) if cubic else range(2)
    columns = [(left + i).clamp(0, w - 1).long() for i in reach]

    def row(j: int) -> Tensor:
        start = (top + j).clamp(0, h - 1).long() * w
        return interpolate([gathered(images, start + column).to(real) for column in columns], (across - left)[:, None])

    result = interpolate([row(j) for j in reach], (down - top)[:, None]).clamp(0, 255).to(torch.uint8)
    return torch.where(inside[:, None], result, fill)


def line_between(values: list[Tensor], at: Tensor) -> Tensor:
    """The value on the line through two values, at 0 to 1 between them."""
    one, two = values
    return one + (two - one) * at


def cubic_between(values: list[Tensor], at: Tensor) -> Tensor:
    """The value on Pillow's cubic (a = -1) at 0 to 1 between the middle two of four values."""
    one, two, three, four = values
    return two + at * (three - one + at * (2 * (one - two) + three - four + at * (two - one - three + four)))


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """The darkest pixel of each channel becomes 0 and the lightest 255."""
    pixels = images.to(float_type(images))
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    scale = torch.full_like(low, 255) / (high - low)  # a scalar divided by a tensor would be rounded twice
    return torch.where(high > low, (pixels * scale + -low * scale).clamp(0, 255), pixels).to(torch.uint8)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Histogram equalization of each channel, in integers."""
    b, c, h, w = images.shape
    pixels = images.flatten(2).long()
    channel = 256 * torch.arange(b * c, device=images.device).view(b, c, 1)
    counts = torch.zeros(256 * b * c, dtype=torch.long, device=images.device)
    counts = counts.scatter_add_(0, (pixels + channel).flatten(), torch.ones_like(pixels).flatten()).view(b, c, 256)
    step = (h * w - counts.gather(2, pixels.amax(2, keepdim=True))) // 255  # pixels for each value, the lightest value left out
    table = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
    equal = table.clamp(max=255).gather(2, pixels)
    return torch.where(step > 0, equal, pixels).view_as(images).to(torch.uint8)


def invert(images: Tensor, _: Tensor) -> Tensor:
    """The negative."""
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The highest ``bits`` of 8 stay; 0 bits give black, as in old versions of Pillow (new ones refuse)."""
    return images & per_image(256 - 2 ** (8 - bits.long()).clamp(max=8), images).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Pixels at or above the threshold are inverted."""
    return torch.where(images < per_image(threshold.long(), images), images, 255 - images)


def solarize_add(images: Tensor, added: Tensor) -> Tensor:
    """Pixels below 128 get lighter by ``added``."""
    lighter = images + per_image(added.to(torch.uint8), images)  # below 128 no overflow; others are not used
    return torch.where(images < 128, lighter, images)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Away from grey, or towards it."""
    return blended(grey(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean grey of the image, or towards it."""
    pixels = images.shape[2] * images.shape[3]
    mean = (2 * grey(images).sum((2, 3), keepdim=True) + pixels) // (2 * pixels)  # rounded
    return blended(mean, images, factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Away from black, or towards it."""
    return blended(torch.zeros_like(images), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Away from a 3 x 3 mean in which the centre weighs 5, or towards it; the border does not change."""
    smooth = images.int()
    if min(images.shape[2:]) > 2:
        rows = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
        total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * smooth[:, :, 1:-1, 1:-1]
        smooth = smooth.clone()
        smooth[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26  # a thirteenth, rounded
    return blended(smooth, images, factor)


COLOUR_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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
    """Luma (ITU-R 601) in Pillow's integers.  Shapes: (B, 1 or 3, H, W) -> (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def blended(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """``base`` at factor 0, the image at 1, extrapolated above; clamped to 0..255 and truncated."""
    start = base.float()
    return (start + per_image(factor.float(), images) * (images.float() - start)).clamp(0, 255).to(torch.uint8)


def per_image(numbers: Tensor, images: Tensor) -> Tensor:
    """One number for each image, on the device of the images.  Shapes: (B,) -> (B, 1, 1, 1)."""
    return to_device_of(images, numbers).view(-1, 1, 1, 1)


def float_type(images: Tensor) -> torch.dtype:
    """The most precise floating-point type of the device."""
    return torch.float32 if images.device.type == "mps" else torch.float64
