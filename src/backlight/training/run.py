"""One run of a training: what is asked for, and the model and images that follow from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from backlight.data.image_set import ImageSet, own_colours
from backlight.data.loading import Data, dataset, load_data
from backlight.data.preprocessing import pretrained_cfg_of, with_pretrained_cfg
from backlight.data.sampling import stratified
from backlight.data.training_images import SMALL, TrainingImages, training_images
from backlight.errors import UserError, first_line
from backlight.model_names.saved import saved_folder
from backlight.model_names.spec import parse, with_arguments
from backlight.models.sources.load import load_model
from backlight.recipes import Recipe, stretched
from backlight.records import Record, plain
from backlight.tracing.trace import evaluating
from backlight.training.settings import Execution, ImageSelection, TrainingRun


@dataclass(frozen=True)
class RunRecord(Record):
    """What ``run.json`` holds."""

    record = "run"
    version = 1

    def request(self) -> dict[str, Any]:
        """What has to be the same when the run resumes."""
        return plain(asdict(self))


@dataclass(frozen=True)
class Run(ImageSelection, TrainingRun, RunRecord):
    """A model by name, its recipe, and the settings of the run.  A run resumes only if all of them are the same.

    With ``held_out`` 0 the evaluations use the test images, and the best model's accuracy on them is too high, because it is
    selected by it.
    """

    model: str
    recipe: Recipe

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.snapshots:
            if name not in ("init", "warmup") and not (name.isdigit() and 1 <= int(name) <= self.recipe.epochs):
                raise UserError(f"a snapshot is {name!r}; it must be init, warmup or an epoch from 1 to {self.recipe.epochs}")

    def schedule(self) -> Recipe:
        """The recipe; with ``hold`` steps and a fraction of the images it has more epochs, so that the steps are as many."""
        if self.hold == "epochs" or self.fraction == 1:
            return self.recipe
        return stretched(self.recipe, round(self.recipe.epochs / self.fraction))


class PreparedRun(NamedTuple):
    """A run, ready to start."""

    model: nn.Module  # with random weights
    spec: str  # its full name
    images: TrainingImages
    evaluation: Data


def prepare(run: Run, execution: Execution) -> PreparedRun:
    """Load the images and build the model.  Errors: UserError if they are not available, or do not fit each other."""
    root = execution.data_root
    source = dataset(run.data, "train", limit=run.limit, seed=run.seed, root=root, download=execution.download)
    if source.split == "all":
        raise UserError(f"{run.data} has no train and test folders, and a model must not be tested on its training images")
    source, held_out = split_held_out(source, run)
    spec = full_spec(run.model, source, run.recipe)
    model = random_model(spec, source, run.seed)
    size = pretrained_cfg_of(model).get("input_size", (3, 224, 224))
    images = training_images(source, size[1:], size[0], execution.workers)
    refuse_misfit(model, spec, images)
    with_pretrained_cfg(model, {**images.preprocessing, "num_classes": images.classes})
    return PreparedRun(model, spec, images, load_data(held_out or run.data, model=model, split="test", root=root))


def split_held_out(source: ImageSet, run: Run) -> tuple[ImageSet, ImageSet | None]:
    """The images to train on, and the held-out images; both stratified."""
    held_out = None
    if run.held_out:
        indices = stratified(source.labels, max(1, round(run.held_out * len(source))), run.seed)
        held_out = source.take(indices)
        source = source.take(np.setdiff1d(np.arange(len(source)), indices))
    if run.fraction < 1:
        source = source.take(stratified(source.labels, max(1, round(run.fraction * len(source))), run.seed))
    return source, held_out


def full_spec(spec: str, source: ImageSet, recipe: Recipe) -> str:
    """The model's name with the arguments that follow from the data: channels, size, a stem for small images; and drop path."""
    parsed = parse(spec)
    if parsed.source not in ("", "word") or ":" in parsed.name or saved_folder(parsed.name):
        if recipe.drop_path:
            raise UserError(f"it is not known how {spec} takes drop path: use --drop-path 0, or set it in the model's name")
        return spec
    image = source[0][0]
    small = max(image.size) <= SMALL
    arguments: dict[str, Any] = {"in_chans": 1} if own_colours(image) == "L" and small else {}
    if small:
        arguments["img_size"] = image.width if image.width == image.height else (image.height, image.width)
        if parsed.source == "word":
            arguments["stem"] = "cifar"
    if recipe.drop_path:
        arguments["drop_path_rate"] = recipe.drop_path
    return with_arguments(spec, arguments)


def random_model(spec: str, source: ImageSet, seed: int) -> nn.Module:
    """The model with random weights.  Errors: UserError; if it has no drop path, with what to do."""
    try:
        return load_model(spec, pretrained=False, num_classes=len(source.classes), seed=seed)
    except UserError as error:
        if "takes no argument drop_path_rate" in str(error):
            raise UserError(f"{error}: use --drop-path 0") from error
        raise


def refuse_misfit(model: nn.Module, spec: str, images: TrainingImages) -> None:
    """Errors: UserError if the model cannot read an image, or does not return a score for each class."""
    shape = tuple(images.preprocessing["input_size"])
    try:
        with evaluating(model), torch.inference_mode():
            scores = model(torch.zeros(1, *shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        size = " x ".join(map(str, shape))
        raise UserError(f"{spec} cannot read images of {size}: {first_line(error)}") from error
    if not isinstance(scores, Tensor) or scores.shape != (1, images.classes):
        raise UserError(f"{spec} does not return {images.classes} scores for an image, one for each class of the data")
