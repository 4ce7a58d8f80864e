"""Which batch size fits into memory, once a larger one did not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backlight.shortage import MEMORY, shortage
from backlight.tracing.trace import evaluating


def batch_size_that_fits(model: nn.Module, images: Tensor) -> int:
    """The largest half, quarter, ... of these images with which a forward pass fits; 0 if not even one image does.

    Shapes: images (B, C, H, W).
    """
    size = len(images) // 2
    while size:
        try:
            with evaluating(model), torch.inference_mode():
                model(images[:size])
        except Exception as error:
            if shortage(error) != MEMORY:
                return 0
            size //= 2
        else:
            return size
    return 0
