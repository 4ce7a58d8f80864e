"""The attention calls of a model: their matrices, fused or not, and the positions of their tokens in the image.

Three calls compute attention: ``scaled_dot_product_attention``, which never returns its matrix, so that it is computed again
from queries and keys; a softmax of a product of queries and keys; and ``nn.MultiheadAttention``, which can return its weights.
The image's coordinates are sent through the model once (`layout`), so that the position of each token of each window is known.
Class tokens, registers and padding have no position.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from backlight.tracing.layout import TOLERANCE, Coordinates
from backlight.tracing.tap import Unit
from backlight.tracing.trace import PRODUCT, Recorder, evaluating, function_name, plain_attention

FUSED, SOFTMAX, TORCH = "scaled_dot_product_attention", "softmax", "multi_head_attention_forward"
#: Logits given at once: on a processor they stay in its cache.  Elsewhere 2 ** 24: 64 MB in float32, and a few copies.
LOGITS_AT_ONCE = {"cpu": 2**18}
#: The most calls between the product of queries and keys and its softmax: scale, bias, mask, reshapes and casts.
MOST_STEPS = 12


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention call of a forward pass: the function, and how many calls of it come before in the pass.

    Shapes: queries (W, N, 2) and keys (W, M, 2), the row and the column in pixels of each token in each of an image's W
    windows, NaN for a token without a position.
    """

    function: str
    call: int
    module: str
    heads: int
    queries: Tensor
    keys: Tensor

    def unit(self, units: Sequence[Unit]) -> Unit | None:
        """The unit that contains this call; None if no unit does."""
        around = [unit for unit in units if f"{self.module}.".startswith(f"{unit.module}.")]
        return max(around, key=lambda unit: (unit.kind == "attention", len(unit.module)), default=None)

    def at_once(self, shape: Sequence[int], device: torch.device) -> int:
        """How many matrices are given at once: those of one or several images.  The shape is that of all: (..., N, M)."""
        image = len(self.queries) * self.heads
        return image * max(1, LOGITS_AT_ONCE.get(device.type, 2**24) // (image * shape[-2] * shape[-1]))

    def split(self, weights: Tensor) -> Tensor:
        """The weights with an axis for windows and one for heads.  Shapes: (B * ..., N, M) -> (B, W, H, N, M), a view."""
        return weights.reshape(-1, len(self.queries), self.heads, *weights.shape[-2:])


def attention_calls(model: nn.Module, images: Tensor) -> tuple[list[AttentionCall], list[str]]:
    """The attention calls of a model in order, and the modules of those whose tokens have unknown positions.

    Shapes: images (B, C, H, W); one or two are enough.
    """
    finder = _Finder(model, images)
    handles = finder.hooks(model)
    try:
        with evaluating(model), plain_attention(), torch.no_grad(), finder:
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return finder.attention, finder.unknown


@contextmanager
def reading_attention(model: nn.Module, calls: Sequence[AttentionCall], visit: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within the block each forward pass calls ``visit(i, logits)`` when ``calls[i]`` runs, for a few images after another.

    Shapes: logits (B, W, H, N, M).  A softmax over the last axis gives the attention matrix; a softmax over part of that axis
    gives the matrix restricted to these keys.
    """

    def read(i: int, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        for logits in _logits(calls[i], func, args, kwargs):
            visit(i, calls[i].split(logits))
        return func(*args, **kwargs)

    with _intercepting(model, calls, read):
        yield


@contextmanager
def without_head(model: nn.Module, attention: AttentionCall, head: int) -> Iterator[None]:
    """Within the block a head of an attention call adds nothing to its output; heads count from 0."""

    def silence(i: int, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        if attention.function == TORCH:
            arguments = inspect.signature(func).bind(*args, **kwargs).arguments
            weight = arguments["out_proj_weight"].clone()
            weight.unflatten(1, (attention.heads, -1))[:, head] = 0
            return func(**arguments | {"out_proj_weight": weight})
        result = func(*args, **kwargs).clone()  # a softmax returns the weights, a fused call the weighted values
        attention.split(result)[:, :, head] = 0
        return result

    with _intercepting(model, [attention], silence):
        yield


@contextmanager
def _intercepting(model: nn.Module, calls: Sequence[AttentionCall], replace: Callable[..., Any]) -> Iterator[None]:
    mode = _Intercept({(call.function, call.call): i for i, call in enumerate(calls)}, replace)
    handle = model.register_forward_pre_hook(lambda *_: mode.counts.clear(), prepend=True)
    try:
        with plain_attention(), mode:
            yield
    finally:
        handle.remove()


class _Intercept(TorchFunctionMode):
    """Replaces selected calls, each known by its function and its number within the pass, by ``replace(i, ...)``."""

    def __init__(self, selected: Mapping[tuple[str, int], int], replace: Callable[..., Any]) -> None:
        super().__init__()
        self.selected, self.replace = selected, replace
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function_name(func)
        call = (name, self.counts[name])
        self.counts[name] += 1
        if call not in self.selected:
            return func(*args, **(kwargs or {}))
        return self.replace(self.selected[call], func, args, kwargs or {})


def _logits(attention: AttentionCall, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The logits of an attention call, in float32 at least; of ``nn.MultiheadAttention`` the log of its weights."""
    if attention.function == FUSED:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        yield from _fused_logits(attention, dict(zip(names, args, strict=False)) | dict(kwargs))
        return
    if attention.function == SOFTMAX:
        logits = args[0] if args else kwargs["input"]
    else:
        arguments = inspect.signature(func).bind(*args, **kwargs).arguments
        logits = func(**arguments | {"need_weights": True, "average_attn_weights": False})[1].log()
    yield from _at_least_float32(logits).flatten(0, -3).split(attention.at_once(logits.shape, logits.device))


def _fused_logits(attention: AttentionCall, arguments: Mapping[str, Any]) -> Iterator[Tensor]:
    query, key, mask, scale = arguments["query"], arguments["key"], arguments.get("attn_mask"), arguments.get("scale")
    if arguments.get("enable_gqa"):
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    query, key = _at_least_float32(query), _at_least_float32(key)
    shape = (*query.shape[:-1], key.shape[-2])
    if arguments.get("is_causal"):
        mask = torch.ones(shape[-2:], dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    terms = [t.flatten(0, -3) for t in (query, key, *(() if mask is None else (mask.expand(shape),)))]
    for some_queries, some_keys, *masks in zip(*(t.split(attention.at_once(shape, query.device)) for t in terms), strict=True):
        logits = (some_queries * scale) @ some_keys.transpose(-2, -1)
        yield logits.add_(masks[0]) if masks else logits


def _at_least_float32(t: Tensor) -> Tensor:
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


# --- finding the calls


class _Finder(Recorder):
    """Records the positions of the rows and columns of each product, and so those of each softmax of a product."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__(model, images)
        self.images = images
        self.attention: list[AttentionCall] = []
        self.unknown: list[str] = []  # modules
        self.products: dict[int, tuple[Tensor | None, Tensor | None]] = {}  # by call: the positions of rows and columns

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        call = self.functions[name]
        if name == FUSED:
            query, key = (args[i] if len(args) > i else kwargs[k] for i, k in enumerate(("query", "key")))
            self._record(FUSED, call, query.shape[:-2], self._positions(query), self._positions(key))
        elif name == TORCH:
            arguments = inspect.signature(func).bind(*args, **kwargs).arguments
            query, key = arguments["query"], arguments["key"]  # (N, B, d) or (N, d)
            batch = (query.shape[1] if query.ndim == 3 else 1, arguments["num_heads"])
            positions = [self._positions(t if t.ndim == 3 else t[:, None]) for t in (query, key)]
            self._record(TORCH, call, torch.Size(batch), *(p if p is None else p.transpose(0, 1)[:, None] for p in positions))
        elif name == SOFTMAX and (product := self._product(args, kwargs)) is not None:
            logits = args[0] if args else kwargs["input"]
            self._record(SOFTMAX, call, logits.shape[:-2], *self.products[product])
        result = super().__torch_function__(func, types, args, kwargs)
        if name in PRODUCT and isinstance(result, Tensor) and self.made.get(id(result)) == len(self.calls) - 1:
            self.products[len(self.calls) - 1] = self._of_product(name, args)
        return result

    def _positions(self, activation: Tensor, channels: int = -1) -> Tensor | None:
        """The row and the column of each token.  Shapes: (..., N, d) -> (..., N, 2)."""
        coordinates = self.coordinates.get(id(activation))
        return _averaged(coordinates, channels) if coordinates else None

    def _of_product(self, name: str, args: Any) -> tuple[Tensor | None, Tensor | None]:
        """The positions of the rows and the columns of a product of queries and keys.  Shapes: -> (..., N, 2), (..., M, 2)."""
        if name == "einsum":
            return self._of_einsum(*args)
        if name == "baddbmm":
            args = args[1:]
        return self._positions(args[0]), self._positions(args[1], channels=-2)

    def _of_einsum(self, equation: Any, *operands: Any) -> tuple[Tensor | None, Tensor | None]:
        if not isinstance(equation, str) or "->" not in equation:
            return None, None
        operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
        inputs, out = equation.replace(" ", "").split("->")
        letters, summed = inputs.split(","), set(inputs) - set(out) - {","}
        if len(operands) != 2 or len(letters) != 2 or len(summed) != 1 or "." in equation:
            return None, None
        (channel,) = summed
        tokens = []
        for operand, axes, needed in zip(operands, letters, (out[:-1], out[:-2] + out[-1]), strict=True):
            positions = self._positions(operand, axes.index(channel) - len(axes))
            tokens.append(positions if axes.replace(channel, "") == needed else None)
        return tokens[0], tokens[1]

    def _product(self, args: Any, kwargs: Any) -> int | None:
        """The call whose product of queries and keys is the input of a softmax over the last axis; None if there is none."""
        logits = args[0] if args else kwargs["input"]
        axis = args[1] if len(args) > 1 else kwargs.get("dim")
        if axis not in (-1, logits.ndim - 1) or logits.ndim < 3 or id(logits) not in self.made:
            return None
        todo, step = {self.made[id(logits)]}, 0
        while todo and step < MOST_STEPS:
            for i in todo:
                if i in self.products:
                    return i if self.calls[i].shape[-2:] == logits.shape[-2:] else None
            todo, step = {p for i in todo for p in self.calls[i].parents}, step + 1
        return None

    def _record(self, function: str, call: int, lead: torch.Size, query: Tensor | None, key: Tensor | None) -> None:
        """Record an attention call.  Shapes: query (..., N, 2) and key (..., M, 2) behind the same axes as ``lead``."""
        module = self.running[-1] if self.running else ""
        if query is None or key is None:
            self.unknown.append(module)
            return
        if query.isnan().all() or not (_several_positions(query) and _several_positions(key)):
            return  # attention over channels, or with a class token as the only query
        images = len(self.images)
        tokens = [t.select(-3, 0).flatten(0, -3) if t.ndim > 3 else t for t in (query, key)]
        if any(len(t) % images for t in tokens):
            self.unknown.append(module)
            return
        first, *others = map(list, zip(*(t.unflatten(0, (images, -1)) for t in tokens), strict=True))
        if not all(_equal(a, b) for other in others for a, b in zip(first, other, strict=True)):
            self.unknown.append(module)
            return
        heads = lead[-1] if query.ndim > 3 else 1
        if query.ndim == 3 and all(_equal(t[:1].expand_as(t), t) for t in first):  # the axis holds heads, not windows
            heads, first = len(first[0]), [t[:1] for t in first]
        size = self.images.shape[-2:]
        self.attention.append(AttentionCall(function, call, module, heads, *(_in_pixels(t, size) for t in first)))


def _averaged(coordinates: Coordinates, channels: int) -> Tensor:
    """The mean coordinates over the channels.  Shapes: an activation's -> the same without channels, and 2."""
    return torch.stack([t.nanmean(channels) for t in (coordinates.rows, coordinates.columns)], -1)


def _several_positions(tokens: Tensor) -> bool:
    """Whether the tokens of any window have different positions.  Shapes: (..., N, 2)."""
    windows = tokens.reshape(-1, tokens.shape[-2], 2)
    low, high = windows.nan_to_num(torch.inf).amin(1), windows.nan_to_num(-torch.inf).amax(1)
    return bool((high - low > TOLERANCE).any())


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=TOLERANCE, rtol=0, equal_nan=True)


def _in_pixels(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Positions as centres of equal parts of the image, because only their order is known.  Shapes: (W, N, 2) -> the same."""
    pixels = torch.full_like(tokens, torch.nan, dtype=torch.float64)
    for axis, side in enumerate(size):
        known = ~tokens[..., axis].isnan()
        steps, rank = (tokens[..., axis][known] / TOLERANCE / 10).round().unique(return_inverse=True)
        pixels[..., axis][known] = (rank.double() + 0.5) * side / len(steps)
    return pixels
