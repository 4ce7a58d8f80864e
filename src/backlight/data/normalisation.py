"""Normalised images as pixels from 0 to 1, which noise, corruptions and attacks change, and back.

A distance between normalised images depends on the normalisation, so it differs from model to model; the authors of "How Do
Vision Transformers Work?" (ICLR 2022) bound their attacks there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlight.errors import UserError


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_pixels(self, images: Tensor) -> Tensor:
        """Undo the normalisation.  Shapes: (B, C, H, W) -> the same."""
        return images * per_channel(self.std, images) + per_channel(self.mean, images)

    def to_images(self, pixels: Tensor) -> Tensor:
        """Normalise, for the model.  Shapes: (B, C, H, W) -> the same."""
        return (pixels - per_channel(self.mean, pixels)) / per_channel(self.std, pixels)

    def checked_pixels(self, images: Tensor, tolerance: float = 0.01) -> Tensor:
        """Undo the normalisation, at least in float32.  Shapes: (B, C, H, W) -> the same.

        Errors: UserError if a pixel is outside 0 to 1 by more than ``tolerance``: then the images were normalised otherwise.
        """
        if not len(self.mean) == len(self.std) == images.shape[1]:
            raise UserError(
                f"mean and std have {len(self.mean)} and {len(self.std)} numbers, and the images have {images.shape[1]} "
                "channels; give one number for each channel"
            )
        pixels = self.to_pixels(images if images.dtype in (torch.float32, torch.float64) else images.float())
        low, high = pixels.aminmax()
        if not (low > -tolerance and high < 1 + tolerance):
            raise UserError(
                f"with mean {self.mean} and std {self.std} undone the pixels run from {low:.3g} to {high:.3g}, not from 0 to 1"
                "; give the mean and std with which the images were normalised"
            )
        return pixels


def normalisation_of(
    data: Iterable[Any], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Normalisation:
    """The normalisation of ``data``: ``mean`` and ``std`` where both are given, else what `load_data` recorded.

    Errors: UserError if it is not known.
    """
    if mean is not None and std is not None:
        return Normalisation(tuple(mean), tuple(std))
    record = getattr(data, "provenance", {}).get("preprocessing")
    if record is None or "transform" in record:
        raise UserError("the data do not say how their images were normalised; give mean and std, one number for each channel")
    channels = record["input_size"][0]
    return Normalisation(tuple(record["mean"] or [0.0] * channels), tuple(record["std"] or [1.0] * channels))


def per_channel(statistic: tuple[float, ...], images: Tensor) -> Tensor:
    """One number for each channel, in the type and on the device of the images.  Shapes: C numbers -> (C, 1, 1)."""
    return torch.tensor(statistic, dtype=images.dtype, device=images.device).view(-1, 1, 1)
