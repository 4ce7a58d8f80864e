"""Which images a trained model classifies correctly: the test images, or those that its training held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from backlight.data.image_set import ImageSet
from backlight.data.loading import dataset, load_data
from backlight.devices import device_named, local_device
from backlight.models.sources.load import load_model
from backlight.tracing.trace import evaluating
from backlight.training.run import Run, split_held_out
from backlight.training.settings import Execution

BATCH = 256  # images of a forward pass


def scores(folder: Path, images: str | ImageSet, execution: Execution) -> np.ndarray:
    """Whether the model in a folder classifies each image correctly, 0 or 1.  Shapes: -> (n,)."""
    device = device_named(local_device(execution.device))
    model = load_model(str(folder))
    data = load_data(images, model=model, split="test", root=execution.data_root, batch_size=BATCH)
    with evaluating(model.to(device)), torch.inference_mode():
        correct = [model(images.to(device)).argmax(1).cpu() == labels for images, labels in data]
    return torch.cat(correct).double().numpy()


def held_out_images(run: Run, execution: Execution) -> ImageSet:
    """The images that a training holds out."""
    source = dataset(run.data, "train", limit=run.limit, seed=run.seed, root=execution.data_root)
    _, held_out = split_held_out(source, run)
    if held_out is None:
        raise ValueError("the training holds no images out")
    return held_out
