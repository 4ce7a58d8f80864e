"""The one model of the series that is not in Backlight's registry: a quick ViT with local attention."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor

from backlight.errors import UserError
from backlight.models.architectures.local_vit import LocalViT


class MaskedAttention(Attention):
    """timm's multi-head attention, in which a token attends to those at most ``kernel // 2`` rows and columns away.

    The same function, and the same names of weights, as Backlight's `NeighbourAttention`; with 64 tokens a mask over all
    pairs is quicker than gathering the neighbours.  Shapes: (B, h*w, C) -> (B, h*w, C).
    """

    mask: Tensor

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attention within each neighbourhood."""
        return super().forward(x, attn_mask=self.mask)


def local_vit(kernel: int = 3, num_classes: int = 100, **arguments: Any) -> LocalViT:
    """``local_vit_ti_cifar?kernel=...`` of the same arguments, with `MaskedAttention`; for images of 32 px, patches of 4 px."""
    if kernel % 2 == 0:
        raise UserError(f"kernel={kernel}: it must be odd")
    settings = {"img_size": 32, "patch_size": 4, "qkv_bias": False, **arguments}
    model = LocalViT(kernel=None, attn_layer=MaskedAttention, num_classes=num_classes, **settings)
    mask = neighbourhood(*model.patch_embed.grid_size, kernel)
    for module in model.modules():
        if isinstance(module, MaskedAttention):
            module.register_buffer("mask", mask, persistent=False)
    return model


def neighbourhood(height: int, width: int, kernel: int) -> Tensor:
    """Whether the token of a row is near the token of a column.  Shapes: -> (h*w, h*w) bool."""
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    return (places[:, None] - places).abs().amax(-1) <= kernel // 2
