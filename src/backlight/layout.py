"""Where the image lies in an activation: channels first or last, or tokens behind a class token.

A model may carry its feature map as (B, C, h, w), as (B, h, w, C), as tokens (B, N, C) with class, register or
distillation tokens around them, or as (B, C, N).  Which one it is cannot be told from a shape (14 x 14 maps of 14
channels; 141 tokens = 10 x 14 + 1), so the layout is carried along from the image, call by call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from .errors import UserError

Order = Literal["channels first", "channels last", "tokens", "channels first tokens"]

#: Calls that define which axes are spatial, whatever they are given.
CHANNELS_FIRST = (
    "conv2d", "_conv_forward", "conv_transpose2d", "batch_norm", "group_norm", "instance_norm", "interpolate",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "pixel_shuffle", "pixel_unshuffle",
)  # fmt: skip
CHANNELS_LAST = ("linear", "layer_norm", "rms_norm")
SHAPE = {
    "reshape", "view", "flatten", "permute", "transpose", "contiguous", "unflatten", "squeeze", "unsqueeze", "movedim",
    "rearrange", "swapaxes", "mT", "T",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How a (h, w) map lies in a tensor; ``prefix`` counts the tokens before it (class, register, distillation)."""

    order: Order
    size: tuple[int, int]
    prefix: int = 0


def grid(activation: Tensor, layout: Layout) -> Tensor:
    """An activation as a feature map, tokens that are no place in the image left out; a view, nothing is copied.

    Shapes: (B, C, h, w) or (B, h, w, C) or (B, N, C) or (B, C, N) -> (B, C, h, w).

    >>> import torch
    >>> grid(torch.zeros(2, 1 + 3 * 5, 8), Layout("tokens", (3, 5), prefix=1)).shape
    torch.Size([2, 8, 3, 5])
    """
    match layout.order, activation.ndim:
        case "channels first", 4:
            return activation
        case "channels last", 4:
            return activation.permute(0, 3, 1, 2)
        case "tokens", 3:
            axis = 1
        case "channels first tokens", 3:
            axis = 2
        case _:
            raise UserError(f"an activation of shape {tuple(activation.shape)} does not hold a map as {layout.order}")
    h, w = layout.size
    if activation.shape[axis] < layout.prefix + h * w:
        raise UserError(
            f"{activation.shape[axis]} tokens do not hold a {h} x {w} map behind {layout.prefix} other tokens; "
            "find the units again with images of this size"
        )
    tokens = activation.narrow(axis, layout.prefix, h * w).unflatten(axis, (h, w))
    return tokens.permute(0, 3, 1, 2) if axis == 1 else tokens


def after_call(name: str, args: Sequence[Any], out: Tensor, parents: Sequence[tuple[Tensor, Layout]]) -> Layout | None:
    """The layout of what call ``name`` returned, given its inputs that had one; None where it is not known."""
    shape = tuple(out.shape)
    if out.ndim == 4:
        if name.startswith(CHANNELS_FIRST):
            return Layout("channels first", shape[2:])
        if name in CHANNELS_LAST:
            return Layout("channels last", shape[1:3])
    for tensor, layout in parents:
        if found := _inherited(name, args, tuple(tensor.shape), layout, shape):
            return found
    return None


def _inherited(
    name: str, args: Sequence[Any], before: tuple[int, ...], layout: Layout, after: tuple[int, ...]
) -> Layout | None:
    if name in SHAPE and before != after:
        return _reshaped(before, layout, after) or _permuted(name, args, layout, after)
    if name in SHAPE and name in ("permute", "transpose", "movedim", "swapaxes"):
        return _permuted(name, args, layout, after)
    if len(before) != len(after):
        return None
    if len(after) == 4:
        first = layout.order == "channels first"
        return replace(layout, size=after[2:] if first else after[1:3])
    if len(after) == 3:
        return _tokens(name, args, before, layout, after)
    return None


def _permuted(name: str, args: Sequence[Any], layout: Layout, after: tuple[int, ...]) -> Layout | None:
    """A swap of the channel axis with the spatial ones."""
    dims = args[1] if len(args) > 1 and isinstance(args[1], (tuple, list)) else tuple(args[1:])
    dims = tuple(d % len(after) if isinstance(d, int) else d for d in dims)
    if len(after) == 3:
        swapped: Order = "tokens" if layout.order == "channels first tokens" else "channels first tokens"
        return replace(layout, order=swapped) if set(dims[-2:]) == {1, 2} else None
    if name == "permute" and dims == (0, 2, 3, 1) and layout.order == "channels first":
        return Layout("channels last", layout.size)
    if name == "permute" and dims == (0, 3, 1, 2) and layout.order == "channels last":
        return Layout("channels first", layout.size)
    return None


def _reshaped(before: tuple[int, ...], layout: Layout, after: tuple[int, ...]) -> Layout | None:
    """A map flattened into tokens, or tokens folded into a map; the channel axis stays where it was."""
    h, w = layout.size
    match layout.order, len(before), len(after):
        case "channels first", 4, 3 if after[1:] == (before[1], h * w):
            return Layout("channels first tokens", (h, w))
        case "channels last", 4, 3 if after[1:] == (h * w, before[3]):
            return Layout("tokens", (h, w))
        case "tokens", 3, 4 if after[3] == before[2] and after[1] * after[2] == before[1]:
            return Layout("channels last", after[1:3])
        case "channels first tokens", 3, 4 if after[1] == before[1] and after[2] * after[3] == before[2]:
            return Layout("channels first", after[2:])
        case "tokens", 3, 3 if before[1:] == after[:0:-1]:
            return replace(layout, order="channels first tokens")
        case "channels first tokens", 3, 3 if before[1:] == after[:0:-1]:
            return replace(layout, order="tokens")
    return None


def _tokens(
    name: str, args: Sequence[Any], before: tuple[int, ...], layout: Layout, after: tuple[int, ...]
) -> Layout | None:
    """Tokens after a call that may have added some in front (cat), taken them away (slice) or pooled them."""
    axis = 1 if layout.order == "tokens" else 2
    (h, w), had, have = layout.size, before[axis], after[axis]
    if had == have:
        return layout
    if name in ("cat", "concat", "concatenate"):
        return replace(layout, prefix=layout.prefix + _length_before(args, before, axis))
    if name == "__getitem__" and have >= h * w:
        return replace(layout, prefix=max(0, layout.prefix - (had - have)))
    for side in (2, 4):  # patch merging
        if have == (h // side) * (w // side):
            return Layout(layout.order, (h // side, w // side))
    return None


def _length_before(args: Sequence[Any], shape: tuple[int, ...], axis: int) -> int:
    """How many tokens a concatenation puts in front of the operand of this shape."""
    length = 0
    for operand in args[0]:
        if tuple(operand.shape) == shape:
            return length
        length += operand.shape[axis]
    return 0
