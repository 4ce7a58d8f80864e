"""The cost of a model: its parameters, and its multiply-accumulates for one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backlight.tracing.trace import evaluating


def parameters(model: nn.Module) -> int:
    """The number of values in all parameters."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, input_size: Sequence[int]) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image (C, H, W), on the model's own device.

    Attention uses the math kernel, because torch's counter does not count the fused kernels on a CPU.
    """
    weight = next(model.parameters())
    image = torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype)
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2  # a multiplication and an addition each
