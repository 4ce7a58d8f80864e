"""What a model costs: parameters, and multiply-accumulates of one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..trace import evaluating


def parameters(model: nn.Module) -> int:
    """How many numbers training may change."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, input_size: Sequence[int]) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image (C, H, W), wherever the model lives.

    Attention goes through the math kernel, because torch's counter does not see the fused ones on a CPU.
    """
    example = next(model.parameters())
    image = torch.zeros(1, *input_size, device=example.device, dtype=example.dtype)
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2  # a multiplication and an addition each
