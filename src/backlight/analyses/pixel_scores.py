"""A model's logits on changed pixels, and the scores of each image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from backlight.data.normalisation import Normalisation
from backlight.devices import dtype_of
from backlight.errors import UserError
from backlight.inputs import first_tensor
from backlight.numerics.frequency_bands import root_mean_square

#: The model's logits as a function of pixels from 0 to 1.
PixelLogits = Callable[[Tensor], Tensor]


def logits_of_pixels(model: nn.Module, normalisation: Normalisation) -> PixelLogits:
    """The model's logits as a function of pixels.  Shapes of the function: (B, C, H, W) -> (B, K)."""
    dtype = dtype_of(model)
    return lambda pixels: first_tensor(model(normalisation.to_images(pixels).to(dtype)))


def image_scores(logits: Tensor, labels: Tensor, change: Tensor) -> Tensor:
    """Accuracy (0 or 1), NLL (nats) and the root mean square of the change of the pixels, for each image.

    Shapes: (B, K), (B,), (B, C, H, W) -> (3, B), on the model's device, so that the caller need not wait for it.
    """
    logs = (logits.float() if logits.device.type == "mps" else logits.double()).log_softmax(1)
    correct, nll = logits.argmax(1) == labels, -logs.gather(1, labels[:, None]).squeeze(1)
    return torch.stack([correct.to(logs.dtype), nll, root_mean_square(change).to(logs.dtype)])


def refuse_other_size(images: Tensor, size: tuple[int, int]) -> None:
    """Errors: UserError if the images (B, C, H, W) are not of this size (H, W), that of the first batch."""
    if tuple(images.shape[-2:]) != size:
        sizes = " and ".join(f"{h} x {w}" for h, w in (size, images.shape[-2:]))
        raise UserError(f"the data hold images of {sizes}, whose frequencies differ; resize them to one size")
