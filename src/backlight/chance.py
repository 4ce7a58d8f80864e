"""Chance in training: which images an update sees, how they are changed, and which process works them off.

Every number is drawn from (seed, step) alone.  So a run that goes on after a stop needs no memory of chance, and any process
can make any image of a batch by itself: N processes see what one would see.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .augmentation import CROP_DRAWS, ERASE_DRAWS, FLIP_DRAWS, RESIZED_CROP_DRAWS, Box, draw_mixing
from .rand_augment import Policy
from .recipes import Recipe


@dataclass(frozen=True, eq=False)
class Part:
    """The images of a batch that one process works off at once: ``own`` of its own, then partners they are mixed with.

    Shapes: images (m,) positions in the set; uniform numbers (m, k) for each augmentation; partners (own,) rows of this part.
    """

    images: Tensor
    numbers: dict[str, Tensor]
    own: int
    partners: Tensor
    lam: float
    box: Box | None


def parts(
    recipe: Recipe,
    images: int,
    size: tuple[int, int],
    *,
    cropped: bool,
    seed: int,
    step: int,
    process: int = 0,
    processes: int = 1,
) -> list[Part]:
    """What a process works off in a step, one after the other.  Image i of a batch is mixed with the i-th from its end.

    images: how many there are to train on.  cropped: large images, whose crops are cut from the file.
    """
    batch = recipe.batch_size
    epoch, place = divmod(step, images // batch)
    chosen = order(images, seed, epoch)[place * batch :][:batch]
    generator = np.random.default_rng([1, seed, step])
    lam, box = draw_mixing(generator, *size, recipe.mixup, recipe.cutmix)
    numbers = {name: torch.from_numpy(generator.random((batch, k))) for name, k in columns(recipe, cropped).items()}
    shares = torch.arange(batch).chunk(processes * recipe.accumulate)
    mine = shares[process * recipe.accumulate :][: recipe.accumulate]
    return [part(rows, chosen, numbers, lam, box) for rows in mine]


def part(rows: Tensor, chosen: Tensor, numbers: dict[str, Tensor], lam: float, box: Box | None) -> Part:
    """Shapes: rows (own,) of the batch, chosen (B,) images of the batch."""
    partners = len(chosen) - 1 - rows if lam < 1 else rows
    elsewhere = partners[~torch.isin(partners, rows)]
    wanted = torch.cat([rows, elsewhere])
    at = torch.empty(len(chosen), dtype=torch.long)
    at[wanted] = torch.arange(len(wanted))
    return Part(chosen[wanted], {name: u[wanted] for name, u in numbers.items()}, len(rows), at[partners], lam, box)


def columns(recipe: Recipe, cropped: bool) -> dict[str, int]:
    """How many uniform numbers an image needs for each augmentation of the recipe."""
    found = {"crop": RESIZED_CROP_DRAWS if cropped else CROP_DRAWS, "flip": FLIP_DRAWS}
    if recipe.rand_augment:
        found["rand_augment"] = Policy.named(recipe.rand_augment).draws
    if recipe.erase:
        found["erase"] = ERASE_DRAWS
    return found


@lru_cache(maxsize=2)  # the same for every step of an epoch
def order(images: int, seed: int, epoch: int) -> Tensor:
    """The images in the order of an epoch.  Shapes: -> (images,)."""
    return torch.from_numpy(np.random.default_rng([0, seed, epoch]).permutation(images))
