"""A training batch: augmented, normalised and mixed images, and their targets.

The training loop, and the analyses of the loss that it minimises, make their batches here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache

import torch
from torch import Tensor

from backlight.data.augmentation import crop, erase, flip, mixed, mixed_targets
from backlight.data.rand_augment import Policy, rand_augment
from backlight.data.training_images import TrainingImages
from backlight.data.training_sampling import MicroBatch
from backlight.recipes import Recipe


def training_batch(part: MicroBatch, pixels: Tensor, images: TrainingImages, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The model's inputs, and their targets, on the device of the pixels.

    Shapes: (m, C, H, W) uint8 -> (own, C, H, W) float32; (own,) labels, or (own, K) probabilities if the recipe softens them.
    """
    grey = [round(255 * mean) for mean in images.mean]
    x = augmented(pixels, part, recipe, cropped=images.cropped, grey=grey).float() / 255
    x = (x - per_channel(images.mean, x.device)) / per_channel(images.std, x.device)
    if recipe.erase:
        x = erase(x, part.uniform["erase"], recipe.erase)
    labels = images.labels[part.images]
    targets = labels[: part.own]
    if recipe.mixup or recipe.cutmix or recipe.label_smoothing:
        targets = mixed_targets(targets, labels[part.partners], images.classes, part.lam, recipe.label_smoothing)
    if part.lam < 1:
        x = mixed(x[: part.own], x[part.partners.to(x.device)], part.lam, part.box)
    return x, targets.to(x.device, non_blocking=True)


def augmented(pixels: Tensor, part: MicroBatch, recipe: Recipe, *, cropped: bool, grey: Sequence[int]) -> Tensor:
    """Pixels after crop, flip and RandAugment; ``grey``, one value a channel, fills what a geometric operation uncovers.

    Shapes: (m, C, H, W) uint8 -> the same.
    """
    uniform = part.uniform
    if not cropped:
        pixels = crop(pixels, uniform["crop"], recipe.crop_pad, mode=recipe.crop_mode)
    if recipe.flip:
        pixels = flip(pixels, uniform["flip"])
    if not recipe.rand_augment:
        return pixels
    return rand_augment(pixels, uniform["rand_augment"], **asdict(Policy.named(recipe.rand_augment)), fill=grey)


@lru_cache(maxsize=8)  # so that a step copies nothing to the GPU for it
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One value a channel.  Shapes: -> (C, 1, 1)."""
    return torch.tensor(values, device=device).view(-1, 1, 1)
