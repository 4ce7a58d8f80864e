"""Where a model attends: its attention matrices, fused or not, and where in the image their tokens lie.

Three calls make an attention: ``scaled_dot_product_attention``, which never shows its matrix, so that it is computed again
from queries and keys; a softmax of a product of queries and keys; and ``nn.MultiheadAttention``, asked for its weights.
The image's coordinates are sent through the model once (`layout`), so that of each token of each window it is known which
place it describes, and of class tokens, registers and padding that they describe none.
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

from .anatomy import Unit
from .layout import TOLERANCE, Places
from .trace import PRODUCT, Recorder, evaluating, function_name, plain_attention

FUSED, SOFTMAX, TORCH = "scaled_dot_product_attention", "softmax", "multi_head_attention_forward"
#: How many calls may lie between the product of queries and keys and its softmax: scale, bias, mask, reshapes and casts.
STEPS = 12


@dataclass(frozen=True, eq=False)
class Attention:
    """An attention of a model, known by which call of which function it is in a forward pass.

    Shapes: queries (W, N, 2) and keys (W, M, 2), the row and column in pixels of what each token of each of an image's W
    windows describes, NaN for tokens that describe no place.
    """

    function: str
    call: int
    module: str
    heads: int
    queries: Tensor
    keys: Tensor

    def unit(self, found: Sequence[Unit]) -> Unit | None:
        """The unit that it belongs to."""
        around = [unit for unit in found if f"{self.module}.".startswith(f"{unit.module}.")]
        return max(around, key=lambda unit: (unit.kind == "attention", len(unit.module)), default=None)

    def split(self, weights: Tensor) -> Tensor:
        """Heads and windows apart.  Shapes: (B * ..., N, M) as the model has them -> (B, W, H, N, M), a view."""
        return weights.reshape(-1, len(self.queries), self.heads, *weights.shape[-2:])


def attentions(model: nn.Module, images: Tensor) -> tuple[list[Attention], list[str]]:
    """The attentions of a model in order, and the modules of those whose tokens are no known places.

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
    return finder.found, finder.unknown


@contextmanager
def watching(model: nn.Module, found: Sequence[Attention], visit: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within the block each forward pass calls ``visit(i, logits)`` as ``found[i]`` attends.

    Shapes: logits (B, W, H, N, M): a softmax over the last axis gives the attention matrix, over part of it the matrix
    restricted to these keys.
    """

    def look(i: int, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        visit(i, found[i].split(_logits(found[i].function, func, args, kwargs)))
        return func(*args, **kwargs)

    with _at(model, found, look):
        yield


@contextmanager
def without_head(model: nn.Module, attention: Attention, head: int) -> Iterator[None]:
    """Within the block a head of an attention contributes nothing to its output; heads count from 0."""

    def silence(i: int, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        if attention.function == TORCH:
            given = inspect.signature(func).bind(*args, **kwargs).arguments
            weight = given["out_proj_weight"].clone()
            weight.unflatten(1, (attention.heads, -1))[:, head] = 0
            return func(**given | {"out_proj_weight": weight})
        result = func(*args, **kwargs).clone()  # of a softmax the weights, else what they sum up
        attention.split(result)[:, :, head] = 0
        return result

    with _at(model, [attention], silence):
        yield


@contextmanager
def _at(model: nn.Module, found: Sequence[Attention], act: Callable[..., Any]) -> Iterator[None]:
    mode = _Mode({(one.function, one.call): i for i, one in enumerate(found)}, act)
    handle = model.register_forward_pre_hook(lambda *_: mode.calls.clear(), prepend=True)
    try:
        with plain_attention(), mode:
            yield
    finally:
        handle.remove()


class _Mode(TorchFunctionMode):
    """Hands some calls of some functions, counted within a pass, to somebody else."""

    def __init__(self, wanted: Mapping[tuple[str, int], int], act: Callable[..., Any]) -> None:
        super().__init__()
        self.wanted, self.act = wanted, act
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function_name(func)
        place = (name, self.calls[name])
        self.calls[name] += 1
        if place not in self.wanted:
            return func(*args, **(kwargs or {}))
        return self.act(self.wanted[place], func, args, kwargs or {})


def _logits(function: str, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    """What the softmax of an attention is taken of, in float32 at least; of torch's own module the log of its weights."""
    if function == SOFTMAX:
        return _wide(args[0] if args else kwargs["input"])
    if function == TORCH:
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        return _wide(func(**given | {"need_weights": True, "average_attn_weights": False})[1]).log()
    given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | dict(kwargs)
    query, key, mask, scale = given["query"], given["key"], given.get("attn_mask"), given.get("scale")
    if given.get("enable_gqa"):
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    logits = _wide(query) @ _wide(key).transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if given.get("is_causal"):
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is None:
        return logits
    return logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


# --- finding


class _Finder(Recorder):
    """Knows of each product which places its rows and columns describe, and so of each softmax of one."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__(model, images)
        self.images = images
        self.found: list[Attention] = []
        self.unknown: list[str] = []
        self.products: dict[int, tuple[Tensor | None, Tensor | None]] = {}  # by call: the places of rows and columns

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        call = self.functions[name]
        if name == FUSED:
            query, key = (args[i] if len(args) > i else kwargs[k] for i, k in enumerate(("query", "key")))
            self._note(FUSED, call, query.shape[:-2], self._tokens(query), self._tokens(key))
        elif name == TORCH:
            given = inspect.signature(func).bind(*args, **kwargs).arguments
            query, key = given["query"], given["key"]  # tokens first
            batch = (query.shape[1] if query.ndim == 3 else 1, given["num_heads"])
            places = [self._tokens(t if t.ndim == 3 else t[:, None]) for t in (query, key)]
            self._note(TORCH, call, torch.Size(batch), *(p if p is None else p.transpose(0, 1)[:, None] for p in places))
        elif name == SOFTMAX and (product := self._product(args, kwargs)) is not None:
            given = args[0] if args else kwargs["input"]
            self._note(SOFTMAX, call, given.shape[:-2], *self.products[product])
        result = super().__torch_function__(func, types, args, kwargs)
        if name in PRODUCT and isinstance(result, Tensor) and self.made.get(id(result)) == len(self.calls) - 1:
            self.products[len(self.calls) - 1] = self._operands(name, args)
        return result

    def _tokens(self, activation: Tensor, channels: int = -1) -> Tensor | None:
        """The row and column of each token.  Shapes: (..., N, d) -> (..., N, 2)."""
        places = self.places.get(id(activation))
        return _averaged(places, channels) if places else None

    def _operands(self, name: str, args: Any) -> tuple[Tensor | None, Tensor | None]:
        """The places of the rows and the columns of a product of queries and keys.  Shapes: -> (..., N, 2), (..., M, 2)."""
        if name == "einsum":
            return self._einsum(*args)
        if name == "baddbmm":
            args = args[1:]
        return self._tokens(args[0]), self._tokens(args[1], channels=-2)

    def _einsum(self, equation: Any, *operands: Any) -> tuple[Tensor | None, Tensor | None]:
        if not isinstance(equation, str) or "->" not in equation:
            return None, None
        operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
        given, out = equation.replace(" ", "").split("->")
        letters, summed = given.split(","), set(given) - set(out) - {","}
        if len(operands) != 2 or len(letters) != 2 or len(summed) != 1 or "." in equation:
            return None, None
        (channel,) = summed
        tokens = []
        for operand, axes, kept in zip(operands, letters, (out[:-1], out[:-2] + out[-1]), strict=True):
            found = self._tokens(operand, axes.index(channel) - len(axes))
            tokens.append(found if axes.replace(channel, "") == kept else None)
        return tokens[0], tokens[1]

    def _product(self, args: Any, kwargs: Any) -> int | None:
        """The product of queries and keys that a softmax over the last axis is taken of."""
        given = args[0] if args else kwargs["input"]
        axis = args[1] if len(args) > 1 else kwargs.get("dim")
        if axis not in (-1, given.ndim - 1) or given.ndim < 3 or id(given) not in self.made:
            return None
        todo, step = {self.made[id(given)]}, 0
        while todo and step < STEPS:
            for i in todo:
                if i in self.products:
                    return i if self.calls[i].shape[-2:] == given.shape[-2:] else None
            todo, step = {p for i in todo for p in self.calls[i].parents}, step + 1
        return None

    def _note(self, function: str, call: int, lead: torch.Size, query: Tensor | None, key: Tensor | None) -> None:
        """Write down an attention.  Shapes: query (..., N, 2) and key (..., M, 2) behind the same axes as ``lead``."""
        module = self.running[-1] if self.running else ""
        if query is None or key is None or query.isnan().all() or not (_differ(query) and _differ(key)):
            if query is None or key is None:
                self.unknown.append(module)  # else it attends to channels, or asks with a class token alone
            return
        images = len(self.images)
        tokens = [t.select(-3, 0).flatten(0, -3) if t.ndim > 3 else t for t in (query, key)]
        if any(len(t) % images for t in tokens):
            self.unknown.append(module)
            return
        first, *others = map(list, zip(*(t.unflatten(0, (images, -1)) for t in tokens), strict=True))
        if not all(_same(a, b) for other in others for a, b in zip(first, other, strict=True)):
            self.unknown.append(module)
            return
        heads = lead[-1] if query.ndim > 3 else 1
        if query.ndim == 3 and all(_same(t[:1].expand_as(t), t) for t in first):  # no windows: heads
            heads, first = len(first[0]), [t[:1] for t in first]
        size = self.images.shape[-2:]
        self.found.append(Attention(function, call, module, heads, *(_in_pixels(t, size) for t in first)))


def _averaged(places: Places, channels: int) -> Tensor:
    """Shapes: rows and columns of an activation -> (..., 2), its channels averaged."""
    return torch.stack([coordinates.nanmean(channels) for coordinates in (places.rows, places.columns)], -1)


def _differ(tokens: Tensor) -> bool:
    """Whether tokens describe different places."""
    seen = tokens.reshape(-1, tokens.shape[-2], 2)
    low, high = seen.nan_to_num(torch.inf).amin(1), seen.nan_to_num(-torch.inf).amax(1)
    return bool((high - low > TOLERANCE).any())


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=TOLERANCE, rtol=0, equal_nan=True)


def _in_pixels(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Where tokens lie, the centres of equal parts of the image: known is only their order.  Shapes: (W, N, 2) -> same."""
    found = torch.full_like(tokens, torch.nan, dtype=torch.float64)
    for axis, side in enumerate(size):
        known = ~tokens[..., axis].isnan()
        steps, rank = (tokens[..., axis][known] / TOLERANCE / 10).round().unique(return_inverse=True)
        found[..., axis][known] = (rank.double() + 0.5) * side / len(steps)
    return found
