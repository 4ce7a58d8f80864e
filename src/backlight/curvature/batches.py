"""Batches of the training loss: those of the first epoch of a training with some recipe, drawn once and then fixed.

The curvature and the landscape of a loss need one fixed function of the weights.  New augmentation at every evaluation, as in
the authors' code, changes the function each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backlight.data.class_names import as_outputs_of
from backlight.data.given_classes import GivenClasses
from backlight.data.image_set import ImageSet
from backlight.data.loading import dataset
from backlight.data.opening import source_record
from backlight.data.preprocessing import preprocessing
from backlight.data.sampling import at_least_one
from backlight.data.training_batches import training_batch
from backlight.data.training_images import images_for
from backlight.data.training_sampling import micro_batches
from backlight.errors import UserError
from backlight.models.sources.saved import saved_recipe
from backlight.recipes import AUGMENTATION, Recipe, recipe_named
from backlight.settings import refuse_unknown

#: The recipe of the loss where none is given or saved with the model: the paper's.
DEFAULT = "cifar"


@dataclass(frozen=True)
class ChosenRecipe:
    """The recipe of a loss, and why it is this one."""

    recipe: Recipe
    name: str | None  # None: it has no name
    chosen: str  # "given", "saved with the model" or "the default"
    replaced: tuple[str, ...] = ()  # fields that were given beside it

    def replacing(self, fields: tuple[str, ...], changes: dict[str, Any]) -> ChosenRecipe:
        """With other values of some of these fields; None: the recipe's.  Errors: UserError for another field or value."""
        refuse_unknown(changes, fields, "the recipe of a loss")
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, recipe=replace(self.recipe, **given), replaced=(*self.replaced, *given))

    def record(self) -> dict[str, Any]:
        """Which recipe it is, in plain values."""
        return {"name": self.name, "chosen": self.chosen, "replaced": list(self.replaced)}


def chosen_recipe(model: nn.Module, recipe: Recipe | str | None = None) -> ChosenRecipe:
    """The recipe that is given; without one, that which is saved with the model; without that, the paper's `DEFAULT`.

    Errors: UserError for an unknown name.
    """
    if isinstance(recipe, Recipe):
        return ChosenRecipe(recipe, None, "given")
    if recipe is not None:
        return ChosenRecipe(recipe_named(recipe), recipe, "given")
    if saved := saved_recipe(model):
        return ChosenRecipe(saved, None, "saved with the model")
    return ChosenRecipe(recipe_named(DEFAULT), DEFAULT, "the default, because none is saved with the model")


@dataclass(frozen=True, eq=False)
class Batches:
    """Fixed batches of (images, targets).  Shapes: images (B, C, H, W), targets (B,) classes or (B, K) probabilities."""

    batches: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)
    classes: tuple[str, ...]
    recipe: ChosenRecipe
    provenance: dict[str, Any]

    @property
    def images(self) -> int:
        """The number of images in all batches."""
        return sum(len(images) for images, _ in self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


def draw_batches(
    name: str,
    *,
    model: nn.Module,
    images: int,
    batch_size: int = 16,
    recipe: Recipe | str | None = None,
    split: str = "train",
    seed: int = 0,
    root: str | Path | None = None,
    download: bool = False,
    classes: GivenClasses | None = None,
    **changes: Any,
) -> Batches:
    """The full batches of one epoch over a stratified subset of a data set, as a training with this seed makes them.

    ``recipe``: as for `chosen_recipe`; ``changes``: fields of its augmentation with other values, as ``mixup=0.0``.  Size,
    colours and statistics of the images are the model's, and so are the labels if ``classes`` says which output each is.
    ``images`` is rounded down to full batches.
    Errors: UserError for a wrong name or number; Unavailable if the data are not available.
    """
    at_least_one("images", images)
    at_least_one("batch_size", batch_size)
    chosen = chosen_recipe(model, recipe).replacing(AUGMENTATION, changes)
    source = dataset(name, split, limit=images, seed=seed, root=root, download=download)
    if len(source) < batch_size:
        raise UserError(f"{name} has {len(source)} images, fewer than a batch of {batch_size}; give a smaller batch size")
    source, outputs = as_outputs_of(model, source, classes)
    if not source.classes:
        raise UserError("the model does not say how many outputs it has: set its num_classes")
    wanted = preprocessing(model)
    batches = tuple(first_epoch(source, wanted, replace(chosen.recipe, batch_size=batch_size, accumulate=1), seed))
    facts = {
        "preprocessing": wanted,
        "augmentation": {field: getattr(chosen.recipe, field) for field in AUGMENTATION},
        "batch_size": batch_size,
        "batches": len(batches),
    }
    return Batches(batches, source.classes, chosen, source_record(source, images, seed) | facts | outputs)


def first_epoch(source: ImageSet, wanted: dict[str, Any], recipe: Recipe, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of the first epoch of a training on these images, in order.  ``wanted``: a model's `preprocessing`."""
    images = images_for(source, wanted)
    settings: dict[str, Any] = {"cropped": images.cropped, "seed": seed}
    steps = range(len(images) // recipe.batch_size)
    parts = (part for step in steps for part in micro_batches(recipe, len(images), images.size, step=step, **settings))
    for part, pixels in images.fetch(parts, recipe.crop_scale):
        yield training_batch(part, pixels, images, recipe)


def recipe_of(batches: Iterable[Any], model: nn.Module) -> ChosenRecipe:
    """The recipe with which the batches were drawn; for other batches that of the model, as `chosen_recipe`."""
    return batches.recipe if isinstance(batches, Batches) else chosen_recipe(model)
