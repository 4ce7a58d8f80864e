"""Deterministic sampling of a training step: which images, which random numbers for them, and which process gets them.

Every number depends on (seed, step) alone.  So a resumed run needs no state of a random generator, and every process can make
every image of a batch: N processes make the images that one process makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from backlight.data.augmentation import CROP_DRAWS, ERASE_DRAWS, FLIP_DRAWS, RESIZED_CROP_DRAWS, Box, draw_mixing
from backlight.data.rand_augment import Policy
from backlight.recipes import Recipe


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Images of a batch that one process computes together: ``own`` images, then those of their mixing partners.

    Shapes: images (m,) indices into the training set; uniform (m, k) numbers in [0, 1) for each augmentation;
    partners (own,) rows of this micro-batch.
    """

    images: Tensor
    uniform: dict[str, Tensor]
    own: int
    partners: Tensor
    lam: float
    box: Box | None


def micro_batches(
    recipe: Recipe,
    images: int,
    size: tuple[int, int],
    *,
    cropped: bool,
    seed: int,
    step: int,
    process: int = 0,
    processes: int = 1,
) -> list[MicroBatch]:
    """The micro-batches of one process in a step, in order.  Image i of a batch is mixed with image -1 - i.

    images: size of the training set.  cropped: the images are cropped when they are read from their files.
    """
    batch = recipe.batch_size
    epoch, position = divmod(step, images // batch)
    indices = epoch_order(images, seed, epoch)[position * batch :][:batch]
    generator = np.random.default_rng([1, seed, step])
    lam, box = draw_mixing(generator, *size, recipe.mixup, recipe.cutmix)
    uniform = {name: torch.from_numpy(generator.random((batch, k))) for name, k in draw_counts(recipe, cropped).items()}
    chunks = torch.arange(batch).chunk(processes * recipe.accumulate)
    own_chunks = chunks[process * recipe.accumulate :][: recipe.accumulate]
    return [_micro_batch(rows, indices, uniform, lam, box) for rows in own_chunks]


def _micro_batch(rows: Tensor, indices: Tensor, uniform: dict[str, Tensor], lam: float, box: Box | None) -> MicroBatch:
    """Shapes: rows (own,) of the batch, indices (B,) into the training set."""
    partners = len(indices) - 1 - rows if lam < 1 else rows
    others = partners[~torch.isin(partners, rows)]
    needed = torch.cat([rows, others])
    row_in_part = torch.empty(len(indices), dtype=torch.long)
    row_in_part[needed] = torch.arange(len(needed))
    selected = {name: u[needed] for name, u in uniform.items()}
    return MicroBatch(indices[needed], selected, len(rows), row_in_part[partners], lam, box)


def draw_counts(recipe: Recipe, cropped: bool) -> dict[str, int]:
    """How many uniform numbers each augmentation of the recipe needs for an image."""
    counts = {"crop": RESIZED_CROP_DRAWS if cropped else CROP_DRAWS, "flip": FLIP_DRAWS}
    if recipe.rand_augment:
        counts["rand_augment"] = Policy.named(recipe.rand_augment).draws
    if recipe.erase:
        counts["erase"] = ERASE_DRAWS
    return counts


@lru_cache(maxsize=2)  # the same for every step of an epoch
def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """The images in the order of an epoch.  Shapes: -> (images,)."""
    return torch.from_numpy(np.random.default_rng([0, seed, epoch]).permutation(images))
