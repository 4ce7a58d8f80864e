"""A ViT whose tokens attend only to their k x k neighbourhood: the paper's locality ablation, figure 7.

Park & Kim (2022) call it ViT with convolutional MSA (Yang et al. 2019), and their code "ConViT".  At the border their
softmax includes zero-padded keys; here a token attends only to the tokens that exist.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, register_notrace_module
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import unfold

from backlight.errors import UserError
from backlight.models.architectures.cifar import VIT_TI, configuration, create


@register_notrace_module  # torch.fx traces a mask of None as a variable
class NeighbourAttention(Attention):
    """timm's multi-head attention; each query attends to the keys at most ``kernel // 2`` rows and columns away.

    Shapes: (B, h*w, C) -> (B, h*w, C).  Memory grows with h*w*kernel**2, not with (h*w)**2.
    """

    kernel: int
    size: tuple[int, int]  # h and w

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attention in each neighbourhood.  Shapes: (B, h*w, C) -> (B, h*w, C)."""
        if attn_mask is not None or is_causal:
            raise ValueError("NeighbourAttention takes no mask: each token attends to its neighbourhood")
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.unbind(2)
        q, k = self.q_norm(q), self.k_norm(k)
        near = self.neighbours(torch.ones(1, n, 1, 1, dtype=x.dtype, device=x.device))[..., 0] > 0
        q = q.transpose(1, 2)[..., None, :]  # (B, heads, N, 1, d): each query has neighbours of its own
        logits = (q * self.scale) @ self.neighbours(k).mT
        weights = self.attn_drop(logits.masked_fill(~near[:, :, :, None], float("-inf")).softmax(-1))
        out = (weights @ self.neighbours(v)).squeeze(3).transpose(1, 2).reshape(b, n, c)
        return self.proj_drop(self.proj(self.norm(out)))

    def neighbours(self, x: Tensor) -> Tensor:
        """The neighbours of each token, zero beyond the border.  Shapes: (B, N, heads, d) -> (B, heads, N, kernel**2, d)."""
        b, _, heads, d = x.shape
        maps = x.permute(0, 2, 3, 1).reshape(b, heads * d, *self.size)
        around = unfold(maps, self.kernel, padding=self.kernel // 2)
        return around.reshape(b, heads, d, self.kernel**2, -1).permute(0, 1, 4, 3, 2)


class LocalViT(VisionTransformer):
    """timm's VisionTransformer with average pooling and attention in k x k neighbourhoods.

    kernel: the side of the neighbourhood, odd; None: all tokens.
    """

    def __init__(self, *, kernel: int | None = 3, **arguments: Any) -> None:
        if kernel is not None and (not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0):
            raise UserError(f"kernel={kernel!r}: it must be odd, at least 1, or none for all tokens")
        for name, default, refused in (("class_token", False, (True,)), ("global_pool", "avg", ("token",))):
            if arguments.setdefault(name, default) in refused:
                raise UserError(f"{name}={arguments[name]!r}: a class token has no neighbourhood; use vit_ti_cifar")
        if kernel is not None:
            arguments["attn_layer"] = NeighbourAttention
        super().__init__(**arguments)
        self.kernel = kernel
        for module in self.modules():
            if kernel is not None and isinstance(module, NeighbourAttention):
                module.kernel, module.size = kernel, self.patch_embed.grid_size


default_cfgs = generate_default_cfgs({"local_vit_ti_cifar": configuration("local_vit_ti_cifar")})


@register_model
def local_vit_ti_cifar(pretrained: bool = False, **arguments: Any) -> LocalViT:
    """ViT-Ti with patches of 4 px and local attention: ``?kernel=3``, 5, 7, or ``none`` for all 8 x 8 tokens."""
    return create(LocalViT, "local_vit_ti_cifar", pretrained, VIT_TI | {"patch_size": 4}, arguments)
