"""Self-attention inside the windows of a feature map, with a learned bias for each relative position.

AlterNet's attention (Park & Kim 2022, section 4): Swin's windows without shifts, and one table of biases that all heads
of a layer share.  A map that the window does not divide is padded at the bottom and on the right, and padded keys are
masked.  A window larger than the map shrinks to the map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn


@register_notrace_module  # the padding depends on the size of the map, which torch.fx does not know
class WindowAttention(nn.Module):
    """Multi-head attention in non-overlapping windows of ``window`` x ``window`` pixels.

    Shapes: (B, dim_in, H, W) -> (B, dim_out, H, W), any H and W.
    bias_per_head: each head has its own table, as in Swin; in the official AlterNet all heads share one.
    """

    def __init__(
        self, dim_in: int, dim_out: int, *, heads: int, dim_head: int = 64, window: int = 7, bias_per_head: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.dim_head, self.window = heads, dim_head, window
        self.qkv = nn.Linear(dim_in, 3 * heads * dim_head, bias=False)
        self.out = nn.Linear(heads * dim_head, dim_out)
        side = 2 * window - 1
        self.bias_table = nn.Parameter(torch.randn(heads if bias_per_head else 1, side, side) * 0.02)
        self.register_buffer("rel_index", relative_index(window), persistent=False)

    rel_index: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Attention in each window.  Shapes: (B, dim_in, H, W) -> (B, dim_out, H, W)."""
        h, w = x.shape[-2:]
        rows, columns = min(self.window, h), min(self.window, w)
        below, right = -h % rows, -w % columns
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        # Cut into windows before the projection: the input has fewer channels than queries, keys and values together.
        qkv = self.qkv(windows(x, rows, columns)).unflatten(2, (3, self.heads, self.dim_head))
        q, k, v = qkv.transpose(1, 3).unbind(2)  # each (windows, heads, pixels, dim_head)
        mask = self.bias(rows, columns)
        if below or right:
            keys = windows(inside(h, w, below, right, x.device), rows, columns).transpose(1, 2)[:, None]
            mask = mask.masked_fill(~keys, float("-inf")).repeat(len(x), 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype)).transpose(1, 2)
        if torch.compiler.is_exporting():  # ONNX replaces the fused kernel by one whose output has other strides
            out = out.clone(memory_format=torch.contiguous_format)
        return from_windows(self.out(out.flatten(2)), rows, columns, h + below, w + right)[..., :h, :w]

    def bias(self, rows: int, columns: int) -> Tensor:
        """The bias of each query and key.  Shapes: () -> (1, 1 or heads, rows*columns, rows*columns)."""
        index = self.rel_index[:rows, :columns, :rows, :columns].flatten(2).flatten(0, 1)
        return self.bias_table.flatten(1)[:, index][None]

    def extra_repr(self) -> str:
        """What ``print(model)`` adds to the class name."""
        return f"heads={self.heads}, dim_head={self.dim_head}, window={self.window}"


def relative_index(window: int) -> Tensor:
    """The index in the flattened table of the bias of (query row, query column, key row, key column).

    Shapes: () -> (window, window, window, window) of integers below (2*window - 1)**2.
    """
    position = torch.arange(window)
    offset = position[None, :] - position[:, None] + window - 1  # key - query, shifted to start at 0
    return offset[:, None, :, None] * (2 * window - 1) + offset[None, :, None, :]


def inside(h: int, w: int, below: int, right: int, device: torch.device) -> Tensor:
    """True for pixels of the map, False for padding.  Shapes: () -> (1, 1, h + below, w + right)."""
    rows, columns = torch.arange(h + below, device=device) < h, torch.arange(w + right, device=device) < w
    return (rows[:, None] & columns)[None, None]


def windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """The windows of a map, row by row.  Shapes: (B, C, n*rows, m*columns) -> (B*n*m, rows*columns, C)."""
    x = x.unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)


def from_windows(x: Tensor, rows: int, columns: int, h: int, w: int) -> Tensor:
    """The inverse of `windows`, channels last in memory.  Shapes: (B*n*m, rows*columns, C) -> (B, C, h, w)."""
    x = x.unflatten(1, (rows, columns)).unflatten(0, (-1, h // rows, w // columns))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
