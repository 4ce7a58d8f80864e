"""Random crops, flips, erasing and mixing of a whole batch at once, on whatever device it lies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad


def crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to ``padding`` pixels each way, reflected at the border.  Shapes: (B, C, H, W) -> the same."""
    if not padding:
        return images
    b, _, h, w = images.shape
    padded = pad(images, (padding,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * padding + 1, (2, b, 1), generator=generator).to(images.device)
    rows = top + torch.arange(h, device=images.device)
    columns = left + torch.arange(w, device=images.device)
    each = torch.arange(b, device=images.device)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability one half.  Shapes: (B, C, H, W) -> the same."""
    mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def erase(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A random rectangle of normal noise in a ``share`` of the images (Zhong et al. 2020): 2% to 33% of the area,
    sides in a ratio of 0.3 to 3.3.  Shapes: (B, C, H, W) -> the same.
    """
    if not share:
        return images
    b, _, h, w = images.shape
    chosen, area, ratio, y, x = torch.rand(5, b, generator=generator)
    area, ratio = (0.02 + 0.31 * area) * h * w, torch.exp((2 * ratio - 1) * torch.log(torch.tensor(1 / 0.3)))
    height, width = (area * ratio).sqrt().clamp(max=h), (area / ratio).sqrt().clamp(max=w)
    top, left = y * (h - height), x * (w - width)
    rows, columns = torch.arange(h)[None, :, None], torch.arange(w)[None, None, :]
    inside = (rows >= top[:, None, None]) & (rows < (top + height)[:, None, None])
    inside = inside & (columns >= left[:, None, None]) & (columns < (left + width)[:, None, None])
    inside = (inside & (chosen < share)[:, None, None])[:, None].to(images.device)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return torch.where(inside, noise, images)


def mixing(
    classes: int, mixup: float, cutmix: float, label_smoothing: float
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function of images and labels (B,) that returns them mixed; targets are soft (B, K) where anything softens them."""
    from timm.data.mixup import Mixup, mixup_target

    if mixup or cutmix:
        return Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=classes)
    if label_smoothing:
        return lambda images, labels: (images, mixup_target(labels, classes, 1.0, label_smoothing))
    return lambda images, labels: (images, labels)
