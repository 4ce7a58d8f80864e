"""How an activation holds a feature map of the image: channels first or last, or tokens behind a class token.

A model may carry its feature map as (B, C, h, w), as (B, h, w, C), as tokens (B, N, C) with class, register or
distillation tokens around them, as (B, C, N), or shuffled into windows.  The shape alone does not say which
(14 x 14 maps of 14 channels; 141 tokens = 10 x 14 + 1).  So the coordinates of the pixels go through the model together
with the image: of each element of an activation we know which row and column it describes.  A call that moves elements
moves their coordinates by the same call; a call that mixes elements averages them.  The layout is read off the coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from backlight.errors import UserError
from backlight.inputs import tensors

Order = Literal["channels first", "channels last", "tokens", "channels first tokens"]

#: (order, axes of the image, axis of the channels) by the number of axes of the activation.
ORDERS: dict[int, list[tuple[Order, tuple[int, ...], int]]] = {
    4: [("channels first", (2, 3), 1), ("channels last", (1, 2), 3)],
    3: [("tokens", (1,), 2), ("channels first tokens", (2,), 1)],
}

#: Calls that change only the shape or the order of the axes.
SHAPE = {
    "reshape", "view", "flatten", "permute", "transpose", "contiguous", "unflatten", "squeeze", "unsqueeze", "movedim",
    "swapaxes", "mT", "T", "t", "reshape_as", "view_as",
}  # fmt: skip

#: Calls that move, copy or drop elements and compute nothing.
MOVES = SHAPE | {
    "__getitem__", "__setitem__", "cat", "concat", "concatenate", "stack", "chunk", "split", "split_with_sizes",
    "tensor_split", "unbind", "narrow", "select", "index_select", "gather", "take_along_dim", "roll", "flip", "rot90",
    "pad", "expand", "expand_as", "repeat", "tile", "unfold",
}  # fmt: skip

#: Calls on (B, C, h, w) whose output is a map of the whole input, coarser or finer.
RESAMPLES = (
    "conv", "_conv", "max_pool", "avg_pool", "lp_pool", "adaptive_", "interpolate", "upsample", "pixel_shuffle",
    "pixel_unshuffle",
)  # fmt: skip

REDUCTIONS = {"mean", "sum", "max", "min", "amax", "amin"}

#: Calls that mix the last axis of their first operand; the output has one entry for each entry of the other axes.
QUERIES = {"linear", "scaled_dot_product_attention"}

PRODUCTS = {"matmul", "__matmul__", "bmm"}

#: Calls that give no coordinates, even where they keep the shape.
OPAQUE = {"einsum", "grid_sample", "baddbmm", "fold", "lstm", "gru"}

#: In pixels of the image: two positions that differ by less are the same.  Far above the rounding error of a mean, far below
#: one pixel.
TOLERANCE = 0.01

#: Calls that need the activation to be contiguous, and what replaces them for its coordinates, which are expanded views.
REARRANGED: dict[str, Callable[..., Any]] = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}


@dataclass(frozen=True)
class Layout:
    """How a tensor holds a (h, w) map; ``prefix`` is the number of tokens before it (class, register, distillation)."""

    order: Order
    size: tuple[int, int]
    prefix: int = 0


def grid(activation: Tensor, layout: Layout) -> Tensor:
    """An activation as a feature map, without class and other tokens; a view, nothing is copied.

    Shapes: (B, C, h, w) or (B, h, w, C) or (B, N, C) or (B, C, N) -> (B, C, h, w).
    Errors: UserError if the activation has other axes than the layout, or too few tokens.

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


class Coordinates:
    """The row and the column of the image that each element of an activation describes; NaN if none (a class token).

    Both tensors have the activation's shape.  A coarse map spans the image from corner to corner: only the order of
    positions matters, and whether two are the same.
    """

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns

    @cached_property
    def layout(self) -> Layout | None:
        """How the activation holds a map of the image; None if it holds none."""
        for order, axes, channels in ORDERS.get(self.rows.ndim, []):
            rows, columns = (_without_axes(t, (0, channels)) for t in (self.rows, self.columns))
            if rows is None or columns is None:
                continue
            if len(axes) == 2:
                if _is_raster(rows, columns):
                    return Layout(order, (rows.shape[0], rows.shape[1]))
            elif size_and_prefix := _token_map(rows, columns):
                return Layout(order, *size_and_prefix)
        return None

    @cached_property
    def count(self) -> int:
        """The number of different positions in the image: the resolution, in any layout."""
        if self.layout:
            return self.layout.size[0] * self.layout.size[1]
        code = (self.rows / TOLERANCE).round().double() * 2**24 + (self.columns / TOLERANCE).round()
        return code[~code.isnan()].unique().numel()

    def map(self, function: Callable[[Tensor], Tensor]) -> Coordinates:
        """The function of both tensors."""
        return Coordinates(function(self.rows), function(self.columns))


Known = Mapping[int, Coordinates]  # by the id of the tensor


class TorchCall(NamedTuple):
    """A torch function and its arguments."""

    func: Callable[..., Any]
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


def coordinates_of_image(images: Tensor) -> Coordinates:
    """The row and column of each pixel.  Shapes: images (B, C, H, W)."""
    h, w = images.shape[-2:]
    rows = torch.arange(h, dtype=torch.float32, device=images.device).view(h, 1)
    columns = torch.arange(w, dtype=torch.float32, device=images.device)
    return Coordinates(rows.expand(images.shape), columns.expand(images.shape))


def coordinates_after(call: TorchCall, outs: Sequence[Tensor], known: Known) -> list[Coordinates | None]:
    """The coordinates of each tensor ``outs`` that a call returned; None where they are not known."""
    if call.name in MOVES:
        moved = _moved(call, known)
        return [*moved] if len(moved) == len(outs) else [None] * len(outs)
    computed = _computed(call, outs[0].shape, known)
    return [computed if computed and computed.rows.shape == out.shape else None for out in outs]


def _computed(call: TorchCall, shape: torch.Size, known: Known) -> Coordinates | None:
    name, args = call.name, call.args
    operands = [t for t in tensors((args, call.kwargs)) if id(t) in known]
    first = known[id(operands[0])] if operands else None
    if first is None or name in OPAQUE:
        return None
    if name in QUERIES:
        return first.map(lambda t: _mean(t, -1).expand(shape)) if operands[0].shape[:-1] == shape[:-1] else None
    if name in PRODUCTS:
        return _product(known.get(id(args[0])), known.get(id(args[1])), shape)
    if name.startswith(RESAMPLES):
        return _resampled(first, shape)
    if name in REDUCTIONS and not (len(args) > 1 and isinstance(args[1], Tensor)):
        return _reduced(first, *args[1:], **call.kwargs)
    return _elementwise([known[id(t)] for t in operands if t.shape == shape])


def _elementwise(operands: list[Coordinates]) -> Coordinates | None:
    """The coordinates of one operand: of the first that is a map, because a branch may have lost its coordinates."""
    distinct = list(dict.fromkeys(operands))
    if len(distinct) < 2:
        return distinct[0] if distinct else None
    return next((coordinates for coordinates in distinct if coordinates.layout), distinct[0])


def _moved(call: TorchCall, known: Known) -> list[Coordinates]:
    """The same call on the coordinates; what the model adds to the activation (a class token) has no position."""
    args, kwargs = call.args, call.kwargs
    if call.name == "pad":  # padding, reflected or not, is no position of its own
        args, kwargs = args[:2], {**kwargs, "mode": "constant", "value": torch.nan}

    def called_with(side: str) -> list[Tensor]:
        def replaced(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(replaced(item) for item in value)
            if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
                return value  # an index
            coordinates = known.get(id(value))
            return getattr(coordinates, side) if coordinates else _no_position(value)

        operands = [replaced(value) for value in args]
        if call.name == "__setitem__":
            operands[0] = operands[0].clone()
        result = REARRANGED.get(call.name, call.func)(*operands, **{key: replaced(value) for key, value in kwargs.items()})
        return operands[:1] if call.name == "__setitem__" else list(tensors(result))

    try:
        return [Coordinates(rows, columns) for rows, columns in zip(called_with("rows"), called_with("columns"), strict=True)]
    except (RuntimeError, TypeError):
        return []


def _product(a: Coordinates | None, b: Coordinates | None, shape: torch.Size) -> Coordinates | None:
    """Of a matrix product: the positions of the first's rows or of the second's columns, whichever differ.

    In queries times keys both differ; then the queries count, because the output of attention describes them.
    """
    if a and (_varies(rows := a.map(lambda t: _mean(t, -1)), -2) or shape[-2] == 1):
        return rows.map(lambda t: t.expand(shape))
    if b and _varies(columns := b.map(lambda t: _mean(t, -2)), -1):
        return columns.map(lambda t: t.expand(shape))
    return None


def _varies(coordinates: Coordinates, axis: int) -> bool:
    """Whether the position changes along the axis."""
    ranges = [_range(t, (axis,)) for t in (coordinates.rows, coordinates.columns)]
    return any(bool((high - low > TOLERANCE).any()) for low, high in ranges)


def _resampled(coordinates: Coordinates, shape: torch.Size) -> Coordinates | None:
    """Of a convolution or pooling: a map of another size has the same corners, whatever the padding was."""

    def resize(t: Tensor) -> Tensor:
        t = _mean(t, 1)
        if t.shape[2:] != shape[2:]:
            inside = ~t.isnan().all(0).all(0)
            t = t[:, :, inside.any(1)][..., inside.any(0)]
            t = F.interpolate(t, tuple(shape[2:]), mode="bilinear", align_corners=True)
        return t.expand(shape)

    rows = coordinates.rows
    if len(shape) != rows.ndim or (len(shape) != 4 and shape[2:] != rows.shape[2:]):
        return None
    if shape[2:] != rows.shape[2:] and bool(rows.isnan().all()):
        return None
    return coordinates.map(resize)


def _reduced(coordinates: Coordinates, dim: Any = None, keepdim: bool = False, **_: Any) -> Coordinates | None:
    return None if dim is None else coordinates.map(lambda t: t.nanmean(dim, keepdim))


def _mean(coordinates: Tensor, axis: int) -> Tensor:
    """The mean along an axis, which stays with length 1; costs nothing where the coordinates are expanded."""
    if coordinates.stride(axis) == 0:
        return coordinates.narrow(axis, 0, 1)
    return coordinates.nanmean(axis, keepdim=True)


def _no_position(like: Tensor) -> Tensor:
    return torch.full((), torch.nan, device=like.device).expand(like.shape)


def _without_axes(coordinates: Tensor, axes: tuple[int, ...]) -> Tensor | None:
    """The coordinates without these axes; None if they differ along them (NaN aside)."""
    low, high = _range(coordinates, axes)
    return low.where(low <= high, torch.nan) if bool((high - low < TOLERANCE).all()) else None


def _range(coordinates: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The least and the greatest along these axes; +inf and -inf where all are NaN."""
    return coordinates.nan_to_num(torch.inf).amin(axes), coordinates.nan_to_num(-torch.inf).amax(axes)


def _is_raster(rows: Tensor, columns: Tensor) -> bool:
    """Whether positions are in reading order, row by row.  Shapes: (h, w) each."""
    return _ascends(rows) and _ascends(columns.T)


def _ascends(coordinates: Tensor) -> bool:
    """Whether values grow from row to row and are equal within a row; false if any is NaN."""
    same = (coordinates - coordinates[:, :1]).abs() < TOLERANCE
    return bool(same.all() and (coordinates.diff(dim=0) > TOLERANCE).all())


def _token_map(rows: Tensor, columns: Tensor) -> tuple[tuple[int, int], int] | None:
    """The size of the map in a sequence of tokens, and the number of tokens before it.  Shapes: (N,) each."""
    positioned = (~rows.isnan()).nonzero().flatten().tolist()
    if not positioned:
        return None
    prefix, end = positioned[0], positioned[-1] + 1
    rows, columns = rows[prefix:end], columns[prefix:end]
    width = int(((rows - rows[0]).abs() < TOLERANCE).sum())
    if width == 0 or len(rows) % width or not _is_raster(rows.view(-1, width), columns.view(-1, width)):
        return None
    return (len(rows) // width, width), prefix
