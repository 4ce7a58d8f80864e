"""Where the image lies in an activation: channels first or last, or tokens behind a class token.

A model may carry its feature map as (B, C, h, w), as (B, h, w, C), as tokens (B, N, C) with class, register or
distillation tokens around them, as (B, C, N), or shuffled into windows.  Which one it is cannot be told from a shape
(14 x 14 maps of 14 channels; 141 tokens = 10 x 14 + 1).  So the image's coordinates are sent through the model beside
the image: each element of an activation knows the row and the column it describes.  A call that moves elements moves
the coordinates by the very same call; one that mixes elements averages them.  The layout is then read off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError

Order = Literal["channels first", "channels last", "tokens", "channels first tokens"]

#: (order, axes of the image, axis of the channels) by number of axes.
ORDERS: dict[int, list[tuple[Order, tuple[int, ...], int]]] = {
    4: [("channels first", (2, 3), 1), ("channels last", (1, 2), 3)],
    3: [("tokens", (1,), 2), ("channels first tokens", (2,), 1)],
}
#: Calls that change the shape only: in the order of memory, the elements stay or are permuted.
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
#: Calls whose output is as long as their first operand, whose last axis is mixed.
QUERIES = {"linear", "scaled_dot_product_attention"}
PRODUCTS = {"matmul", "__matmul__", "bmm"}
#: Calls of which nothing is known even where they keep the shape.
OPAQUE = {"einsum", "grid_sample", "baddbmm", "fold", "lstm", "gru"}
#: Pixels of the image: below it two places are the same.  Far above the rounding of a mean, far below a pixel.
TOLERANCE = 0.01


#: What stands for a call that asks for the memory of the activation to lie so or so, as its coordinates do not.
REARRANGED: dict[str, Callable[..., Any]] = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}


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


# --- the coordinates


class Places:
    """The row and the column of the image that each element of an activation describes; NaN for none (a class token).

    Both tensors have the activation's shape.  A coarse map spans the image from corner to corner: only the order of
    places is read off, and whether two are the same.
    """

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns

    @cached_property
    def layout(self) -> Layout | None:
        """How the activation holds a map of the image; None if it does not."""
        for order, axes, channels in ORDERS.get(self.rows.ndim, []):
            rows, columns = (_agreed(t, (0, channels)) for t in (self.rows, self.columns))
            if rows is None or columns is None:
                continue
            if len(axes) == 2:
                if _is_raster(rows, columns):
                    return Layout(order, (rows.shape[0], rows.shape[1]))
            elif found := _token_map(rows, columns):
                return Layout(order, *found)
        return None

    @cached_property
    def count(self) -> int:
        """How many different places of the image there are: the resolution, in any layout."""
        if self.layout:
            return self.layout.size[0] * self.layout.size[1]
        code = (self.rows / TOLERANCE).round().double() * 2**24 + (self.columns / TOLERANCE).round()
        return code[~code.isnan()].unique().numel()

    def each(self, act: Callable[[Tensor], Tensor]) -> Places:
        return Places(act(self.rows), act(self.columns))


Known = Mapping[int, Places]  # by the tensor's id


class Made(NamedTuple):
    """A torch call as it was made."""

    func: Callable[..., Any]
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


def places_of_image(images: Tensor) -> Places:
    """Each pixel's own row and column.  Shapes: (B, C, H, W)."""
    h, w = images.shape[-2:]
    rows = torch.arange(h, dtype=torch.float32, device=images.device).view(h, 1)
    columns = torch.arange(w, dtype=torch.float32, device=images.device)
    return Places(rows.expand(images.shape), columns.expand(images.shape))


def places_after(call: Made, outs: Sequence[Tensor], known: Known) -> list[Places | None]:
    """The places of each tensor that a call returned; None where they are not known."""
    if call.name in MOVES:
        places = _moved(call, known)
        return [*places] if len(places) == len(outs) else [None] * len(outs)
    one = _computed(call, outs[0].shape, known)
    return [one if one and one.rows.shape == out.shape else None for out in outs]


def _computed(call: Made, shape: torch.Size, known: Known) -> Places | None:
    name, args = call.name, call.args
    given = [t for t in tensors((args, call.kwargs)) if id(t) in known]
    first = known[id(given[0])] if given else None
    if first is None or name in OPAQUE:
        return None
    if name in QUERIES:
        return first.each(lambda t: _mean(t, -1).expand(shape)) if given[0].shape[:-1] == shape[:-1] else None
    if name in PRODUCTS:
        return _product(known.get(id(args[0])), known.get(id(args[1])), shape)
    if name.startswith(RESAMPLES):
        return _resampled(first, shape)
    if name in REDUCTIONS and not (len(args) > 1 and isinstance(args[1], Tensor)):
        return _reduced(first, *args[1:], **call.kwargs)
    return _elementwise([known[id(t)] for t in given if t.shape == shape])


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value that modules pass around: nested tuples, lists, dicts and model outputs."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "values") and hasattr(value, "keys"):
        for item in value.values():
            yield from tensors(item)


def _elementwise(operands: list[Places]) -> Places | None:
    """One of the operands' places: of a map if there is one, as where a branch of lost places joins the stream."""
    distinct = list(dict.fromkeys(operands))
    if len(distinct) < 2:
        return distinct[0] if distinct else None
    return next((places for places in distinct if places.layout), distinct[0])


def _moved(call: Made, known: Known) -> list[Places]:
    """The same call, made with the coordinates; what the model adds to the activation (a class token) is nowhere."""
    args, kwargs = call.args, call.kwargs
    if call.name == "pad":  # reflected or not, what is added is no further place
        args, kwargs = args[:2], {**kwargs, "mode": "constant", "value": torch.nan}

    def made_with(side: str) -> list[Tensor]:
        def coordinates(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(coordinates(item) for item in value)
            if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
                return value  # an index
            places = known.get(id(value))
            return getattr(places, side) if places else _nowhere(value)

        given = [coordinates(value) for value in args]
        if call.name == "__setitem__":
            given[0] = given[0].clone()
        result = REARRANGED.get(call.name, call.func)(*given, **{key: coordinates(value) for key, value in kwargs.items()})
        return given[:1] if call.name == "__setitem__" else list(tensors(result))

    try:
        return [Places(rows, columns) for rows, columns in zip(made_with("rows"), made_with("columns"), strict=True)]
    except (RuntimeError, TypeError):
        return []


def _product(a: Places | None, b: Places | None, shape: torch.Size) -> Places | None:
    """Of a matrix product: of the rows of the first or the columns of the second, whichever are different places.

    Both are in queries times keys; there it is the queries, which the output of attention describes.
    """
    if a and (_varies(rows := a.each(lambda t: _mean(t, -1)), -2) or shape[-2] == 1):
        return rows.each(lambda t: t.expand(shape))
    if b and _varies(columns := b.each(lambda t: _mean(t, -2)), -1):
        return columns.each(lambda t: t.expand(shape))
    return None


def _varies(places: Places, axis: int) -> bool:
    ranges = [_range(coordinates, (axis,)) for coordinates in (places.rows, places.columns)]
    return any(bool((high - low > TOLERANCE).any()) for low, high in ranges)


def _resampled(places: Places, shape: torch.Size) -> Places | None:
    """Of a convolution or pooling: a map of another size has the same corners, whatever was padded."""

    def act(t: Tensor) -> Tensor:
        t = _mean(t, 1)
        if t.shape[2:] != shape[2:]:
            inside = ~t.isnan().all(0).all(0)
            t = t[:, :, inside.any(1)][..., inside.any(0)]
            t = F.interpolate(t, tuple(shape[2:]), mode="bilinear", align_corners=True)
        return t.expand(shape)

    if len(shape) != places.rows.ndim or (len(shape) != 4 and shape[2:] != places.rows.shape[2:]):
        return None
    if shape[2:] != places.rows.shape[2:] and bool(places.rows.isnan().all()):
        return None
    return places.each(act)


def _reduced(places: Places, dim: Any = None, keepdim: bool = False, **_: Any) -> Places | None:
    return None if dim is None else places.each(lambda t: t.nanmean(dim, keepdim))


def _mean(coordinates: Tensor, axis: int) -> Tensor:
    """The mean place along an axis, which stays with length 1; free where the coordinates are expanded."""
    if coordinates.stride(axis) == 0:
        return coordinates.narrow(axis, 0, 1)
    return coordinates.nanmean(axis, keepdim=True)


def _nowhere(like: Tensor) -> Tensor:
    return torch.full((), torch.nan, device=like.device).expand(like.shape)


# --- reading the layout off


def _agreed(coordinates: Tensor, axes: tuple[int, ...]) -> Tensor | None:
    """The coordinates without these axes, along which they must be equal (or nowhere)."""
    low, high = _range(coordinates, axes)
    return low.where(low <= high, torch.nan) if bool((high - low < TOLERANCE).all()) else None


def _range(coordinates: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The least and the greatest along these axes; infinite, the least the greater, where all is nowhere."""
    return coordinates.nan_to_num(torch.inf).amin(axes), coordinates.nan_to_num(-torch.inf).amax(axes)


def _is_raster(rows: Tensor, columns: Tensor) -> bool:
    """Whether places lie as an image is read.  Shapes: (h, w) each."""
    return _ascends(rows) and _ascends(columns.T)


def _ascends(coordinates: Tensor) -> bool:
    """Whether it grows from row to row and is the same within one; never so where NaN."""
    same = (coordinates - coordinates[:, :1]).abs() < TOLERANCE
    return bool(same.all() and (coordinates.diff(dim=0) > TOLERANCE).all())


def _token_map(rows: Tensor, columns: Tensor) -> tuple[tuple[int, int], int] | None:
    """The size of the map in a sequence of tokens and what comes before it.  Shapes: (N,) each."""
    somewhere = (~rows.isnan()).nonzero().flatten().tolist()
    if not somewhere:
        return None
    prefix, end = somewhere[0], somewhere[-1] + 1
    rows, columns = rows[prefix:end], columns[prefix:end]
    width = int(((rows - rows[0]).abs() < TOLERANCE).sum())
    if width == 0 or len(rows) % width or not _is_raster(rows.view(-1, width), columns.view(-1, width)):
        return None
    return (len(rows) // width, width), prefix
