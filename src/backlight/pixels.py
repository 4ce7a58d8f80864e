"""Images as pixels in [0, 1], where noise, corruptions and attacks live, and back as the model reads them.

A distance measured after normalisation is another distance for every model; the authors' attacks are bounded there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import UserError


@dataclass(frozen=True)
class PixelSpace:
    """The normalisation of a data set, a number a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, images: Tensor) -> Tensor:
        """Undo the normalisation.  Shapes: (B, C, H, W) -> the same, in [0, 1] for images that were."""
        return images * like(self.std, images) + like(self.mean, images)

    def images(self, pixels: Tensor) -> Tensor:
        """Pixels as the model reads them.  Shapes: (B, C, H, W) -> the same."""
        return (pixels - like(self.mean, pixels)) / like(self.std, pixels)


def pixel_space(data: Iterable[Any], mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> PixelSpace:
    """How ``data`` were normalised: as told, or as `load_data` recorded it.

    Errors: UserError if nobody says.
    """
    if mean is not None and std is not None:
        return PixelSpace(tuple(mean), tuple(std))
    record = getattr(data, "evidence", {}).get("preprocessing")
    if record is None or "transform" in record:
        raise UserError("the data do not say how their images were normalised: give mean and std, a number a channel each")
    channels = record["input_size"][0]
    return PixelSpace(tuple(record["mean"] or [0.0] * channels), tuple(record["std"] or [1.0] * channels))


def like(statistic: tuple[float, ...], images: Tensor) -> Tensor:
    """Shapes: C numbers -> (C, 1, 1), in the type and on the device of the images."""
    return torch.tensor(statistic, dtype=images.dtype, device=images.device).view(-1, 1, 1)
