"""Crops, flips, erasing and mixing of a whole batch at once, on any device.

All randomness comes in as ``u``: uniform numbers in [0, 1), one row for each image, float64 on the CPU (``generator.random((B,
k))`` of a NumPy generator).  A row decides everything about its image and nothing about the others, so any process can make
any image of a batch, and a resumed run makes the same images.  The constants ``..._DRAWS`` are the numbers of columns that
a function reads.  Images are uint8 pixels until they are normalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from backlight.errors import UserError

ATTEMPTS = 10  # to find a rectangle that fits, as in torchvision's RandomResizedCrop and timm's RandomErasing
CROP_DRAWS = 2  # top, left
FLIP_DRAWS = 1
RESIZED_CROP_DRAWS = 2 * ATTEMPTS + 2  # area and ratio for each attempt; top, left
ERASE_DRAWS = 1 + 2 * ATTEMPTS + 3  # whether; area and ratio for each attempt; top, left, seed of the noise

Box = tuple[int, int, int, int]  # top, bottom, left, right: rows top to bottom - 1, columns left to right - 1


def crop(images: Tensor, u: Tensor, padding: int, *, mode: str = "constant") -> Tensor:
    """Each image shifted by up to ``padding`` pixels in each direction, over zeros or (mode ``reflect``) its mirror image.

    As torchvision's ``RandomCrop(size, padding)``.  Shapes: (B, C, H, W), (B, CROP_DRAWS) -> (B, C, H, W).
    Errors: UserError for another mode, or a reflection wider than the image.
    """
    refuse_wrong_draws(images, u, CROP_DRAWS)
    h, w = images.shape[2:]
    if mode not in ("constant", "reflect"):
        raise UserError(f"a crop is padded in mode constant or reflect, not {mode!r}")
    if mode == "reflect" and padding >= min(h, w):
        raise UserError(f"{padding} pixels of padding cannot mirror images of {h} x {w}: take less, or mode constant")
    if not padding:
        return images
    shift = to_device_of(images, (u * (2 * padding + 1)).long()) - padding
    rows = shift[:, :1] + torch.arange(h, device=images.device)
    columns = shift[:, 1:] + torch.arange(w, device=images.device)
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :]
    rows, columns = (n - 1 - (n - 1 - at.abs()).abs() for n, at in ((h, rows), (w, columns)))  # mirrored
    if mode == "constant":
        rows, columns = rows.clamp(0, h - 1), columns.clamp(0, w - 1)  # any pixel: outside the image the result is zero
    shifted = gathered(images, rows[:, :, None] * w + columns[:, None, :])
    return shifted if mode == "reflect" else torch.where(inside[:, None], shifted, 0)


def flip(images: Tensor, u: Tensor) -> Tensor:
    """Each image mirrored left to right with probability 1/2.  Shapes: (B, C, H, W), (B, FLIP_DRAWS) -> (B, C, H, W)."""
    refuse_wrong_draws(images, u, FLIP_DRAWS)
    mirrored = to_device_of(images, u[:, 0] < 0.5)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def resized_crop(
    images: Tensor,
    u: Tensor,
    size: int | tuple[int, int],
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
) -> Tensor:
    """A random rectangle of each image, resized: torchvision's ``RandomResizedCrop`` with its ten attempts and its fallback.

    One image after the other: every rectangle needs its own smoothing kernel, which sampling on a grid does not have, and the
    rounding of batched matrix products depends on the size of the batch.
    Shapes: (B, C, H, W), (B, RESIZED_CROP_DRAWS) -> (B, C, *size).
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop as resized

    refuse_wrong_draws(images, u, RESIZED_CROP_DRAWS)
    out = (size, size) if isinstance(size, int) else size
    mode = InterpolationMode(interpolation)
    boxes = [crop_box(row, *images.shape[2:], scale=scale, ratio=ratio) for row in u.tolist()]
    return torch.stack(
        [
            resized(image, top, left, bottom - top, right - left, list(out), mode, antialias=True)
            for image, (top, bottom, left, right) in zip(images, boxes, strict=True)
        ]
    )


def erase(images: Tensor, u: Tensor, share: float) -> Tensor:
    """A rectangle of normal noise in a ``share`` of normalised images: timm's ``RandomErasing``, mode ``pixel``.

    The rectangle has 2% to a third of the area and sides in a ratio of 0.3 to 3.3; there is none if ten attempts do not fit.
    The noise is drawn on the CPU from a seed in the row, so it is the same on every device.
    Shapes: (B, C, H, W), (B, ERASE_DRAWS) -> (B, C, H, W).  Source: Zhong et al. 2020.
    """
    refuse_wrong_draws(images, u, ERASE_DRAWS)
    erased = images.clone()
    for i in (u[:, 0] < share).nonzero()[:, 0].tolist():
        box = erased_box(u[i, 1:-1].tolist(), *images.shape[2:])
        if box is not None:
            top, bottom, left, right = box
            generator = torch.Generator().manual_seed(int(u[i, -1] * 2**53))  # the 53 bits of a uniform float64
            noise = torch.randn(images.shape[1], bottom - top, right - left, generator=generator)
            erased[i, :, top:bottom, left:right] = to_device_of(images, noise.to(images.dtype))
    return erased


def draw_mixing(
    generator: np.random.Generator,
    height: int,
    width: int,
    mixup: float,
    cutmix: float,
    probability: float = 1.0,
    switch: float = 0.5,
) -> tuple[float, Box | None]:
    """How a batch is mixed, as timm's ``Mixup`` in batch mode: the weight of the image itself, and CutMix's rectangle or None.

    ``mixup`` and ``cutmix`` are the parameters of their beta distributions, 0 for never; ``switch`` is the share of CutMix
    if both are used.  CutMix's weight is the area outside the rectangle, after the rectangle is clipped at the border.
    Sources: Zhang et al. 2018; Yun et al. 2019.
    """
    if not (mixup or cutmix) or generator.random() >= probability:
        return 1.0, None
    cuts = generator.random() < switch if mixup and cutmix else bool(cutmix)
    weight = float(generator.beta(cutmix, cutmix) if cuts else generator.beta(mixup, mixup))
    if not cuts or weight == 1.0:
        return weight, None
    side = math.sqrt(1 - weight)
    cut_h, cut_w = int(height * side), int(width * side)
    y, x = int(generator.integers(height)), int(generator.integers(width))
    top, bottom = max(0, y - cut_h // 2), min(height, y + (cut_h + 1) // 2)
    left, right = max(0, x - cut_w // 2), min(width, x + (cut_w + 1) // 2)
    return 1.0 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right)


def mixed(images: Tensor, partners: Tensor, lam: float, box: Box | None) -> Tensor:
    """Each image mixed with its partner: a weighted mean, or the partner's pixels inside the box.

    Shapes: normalised images (B, C, H, W) twice -> the same.  Errors: UserError for integer images, which would be rounded.
    """
    if not images.is_floating_point():
        raise UserError(f"images are mixed after they are normalised, and these are {images.dtype}")
    if box is None:
        return images if lam == 1 else images * lam + partners * (1 - lam)
    top, bottom, left, right = box
    result = images.clone()
    result[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    return result


def mixed_targets(labels: Tensor, partner_labels: Tensor, classes: int, lam: float, smoothing: float) -> Tensor:
    """Class probabilities: ``lam`` for the image's own label, the rest for the partner's, both smoothed.

    Shapes: (B,), (B,) -> (B, K) in single precision.  Source: timm's ``mixup_target``, equal to the last bit.
    """
    off = smoothing / classes
    on = 1 - smoothing + off
    own, other = (torch.where(one_hot(each.long(), classes).bool(), on, off) for each in (labels, partner_labels))
    return own * lam + other * (1 - lam)


def crop_box(row: Sequence[float], height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """The rectangle for a row of RESIZED_CROP_DRAWS numbers; the largest one in the centre if no attempt fits."""
    *attempts, y, x = row
    for area, shape in zip(attempts[::2], attempts[1::2], strict=True):
        h, w = sides(area, shape, height * width, scale, (1 / ratio[1], 1 / ratio[0]))
        if 0 < h <= height and 0 < w <= width:
            return placed(h, w, y, x, height, width)
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    top, left = (height - h) // 2, (width - w) // 2
    return top, top + h, left, left + w


def erased_box(row: Sequence[float], height: int, width: int) -> Box | None:
    """The rectangle for a row of 2 ATTEMPTS + 2 numbers, smaller than the image in both sides; None if no attempt fits."""
    *attempts, y, x = row
    for area, shape in zip(attempts[::2], attempts[1::2], strict=True):
        h, w = sides(area, shape, height * width, (0.02, 1 / 3), (0.3, 1 / 0.3))
        if h < height and w < width:
            return placed(h, w, y, x, height, width)
    return None


def sides(area: float, shape: float, pixels: int, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[int, int]:
    """Height and width of a rectangle: area uniform in ``scale`` times ``pixels``, height / width log-uniform in ``ratio``."""
    size = pixels * (scale[0] + area * (scale[1] - scale[0]))
    tall = math.exp(math.log(ratio[0]) + shape * (math.log(ratio[1]) - math.log(ratio[0])))
    return round(math.sqrt(size * tall)), round(math.sqrt(size / tall))


def placed(h: int, w: int, y: float, x: float, height: int, width: int) -> Box:
    """The rectangle at one of the positions where it fits, all equally likely for uniform y and x."""
    top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
    return top, top + h, left, left + w


def gathered(images: Tensor, pixel: Tensor) -> Tensor:
    """The pixels of each image by index, counted row by row.  Shapes: (B, C, H, W), (B, h, w) -> (B, C, h, w)."""
    b, c = images.shape[:2]
    return images.flatten(2).gather(2, pixel.view(b, 1, -1).expand(-1, c, -1)).view(b, c, *pixel.shape[1:])


def to_device_of(images: Tensor, numbers: Tensor) -> Tensor:
    """Numbers from the CPU on the device of the images, without waiting for the copy."""
    return numbers.to(images.device, non_blocking=True)


def refuse_wrong_draws(images: Tensor, u: Tensor, columns: int) -> None:
    """Errors: UserError for uniform numbers that do not fit the images."""
    if u.shape != (len(images), columns) or u.dtype != torch.float64 or u.device.type != "cpu":
        raise UserError(
            f"{len(images)} images need uniform numbers of shape ({len(images)}, {columns}), float64 on the CPU, "
            f"and these are {tuple(u.shape)}, {u.dtype} on {u.device.type}"
        )
