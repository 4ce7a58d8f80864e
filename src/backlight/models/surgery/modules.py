"""The modules that surgery puts into a model: a branch blended with its replacement, and a blur after a unit.

Each takes the place of the module that it wraps, so the forward pass around it does not change.  The names of submodules and
parameters are part of the format of saved models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backlight.errors import UserError
from backlight.models.architectures.alternet import conv1x1
from backlight.tracing.layout import Layout, grid


class Blend(nn.Module):
    """``(1 - gate) original + gate replacement``; once the original is dropped, the replacement alone.

    The gate is one number.  At 0 the result is the original, bit for bit; there the gate has a gradient, but the gradient of
    the replacement is 0 until the gate has moved.  The replacement reads the stored input if there is one, else the
    original's input.
    """

    def __init__(
        self, original: nn.Module, replacement: nn.Module, gate: nn.Parameter, stored: StoredInput | None = None
    ) -> None:
        super().__init__()
        self.original: nn.Module | None = original
        self.replacement = replacement
        self.gate: nn.Parameter | None = gate
        self.stored = stored

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The blended branch; further arguments are the original's."""
        new = self.replacement(x if self.stored is None else self.stored.take())
        if self.original is None or self.gate is None:
            return new
        old = self.original(x, *args, **kwargs)
        return torch.lerp(old, new.to(old.dtype), self.gate.to(old.dtype))


class StoredInput:
    """The input of a replacement, stored where the branch begins and taken where it ends, within one pass."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def take(self) -> Tensor:
        """The stored input, which is then forgotten.  Errors: RuntimeError if none was stored."""
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError("the end of a replaced branch ran without its beginning; run the whole block")
        return value


class StoreInput(nn.Module):
    """A module that also stores its input, or its result, for a replacement."""

    def __init__(self, module: nn.Module, stored: StoredInput, *, result: bool) -> None:
        super().__init__()
        self.module, self.stored, self.result = module, stored, result

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The result of the module."""
        if not self.result:
            self.stored.value = args[0] if args else next(iter(kwargs.values()))
            return self.module(*args, **kwargs)
        self.stored.value = result = self.module(*args, **kwargs)
        return result


class Placeholder(nn.Module):
    """Takes the place of a removed module; ``results``: how many results that had, None for a single tensor.

    It returns an empty batch, so that the remaining calls around it cost nothing, and those that work in place do not change
    the stream.
    """

    def __init__(self, results: int | None = None) -> None:
        super().__init__()
        self.results = results

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Any:
        """An empty batch, and None for each further result."""
        empty = x.new_empty((0, *x.shape[1:]))
        return empty if self.results is None else (empty, *[None] * (self.results - 1))


class GatedBlur(nn.Module):
    """``x + gate (blur(x) - x)``: at 0 the stream unchanged, bit for bit; at 1 the blurred stream."""

    def __init__(self, branch: nn.Module, gate: nn.Parameter) -> None:
        super().__init__()
        self.branch, self.gate = branch, gate

    def forward(self, x: Tensor) -> Tensor:
        """The blended stream."""
        return x + self.gate.to(x.dtype) * self.branch(x)


class Chain(nn.Module):
    """A module, and another that is applied to its result."""

    def __init__(self, module: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.module, self.after = module, after

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The result of the second module."""
        return self.after(self.module(*args, **kwargs))


class MapBranch(nn.Module):
    """A branch for maps (B, C, h, w), applied to activations that hold their maps in another layout.

    Tokens outside the map, such as the class token, are not read, and zero is added to them.
    Errors: UserError for a number of tokens other than in ``shape``, the activation's shape at the time of surgery.
    """

    def __init__(self, branch: nn.Module, read: Layout, write: Layout, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.branch, self.read, self.write = branch, read, write
        self.axis = {"tokens": 1, "channels first tokens": 2}.get(read.order)
        self.length = shape[self.axis] if self.axis else 0

    def forward(self, x: Tensor) -> Tensor:
        """The branch's result, in the layout ``write``."""
        if self.axis and x.shape[self.axis] != self.length:
            raise UserError(
                f"this branch was replaced for {self.length} tokens, not {x.shape[self.axis]}: "
                "repeat the surgery with images of this size"
            )
        return from_grid(self.branch(grid(x, self.read)), self.write, self.length)


def from_grid(x: Tensor, layout: Layout, length: int) -> Tensor:
    """The inverse of `grid`; tokens outside the map are zero.  Shapes: (B, C, h, w) -> according to ``layout``.

    >>> from_grid(torch.ones(2, 8, 3, 5), Layout("tokens", (3, 5), prefix=1), 16).shape
    torch.Size([2, 16, 8])
    """
    if layout.order == "channels first":
        return x
    if layout.order == "channels last":
        return x.permute(0, 2, 3, 1).contiguous()
    tokens = x.flatten(2)
    around = (layout.prefix, length - layout.prefix - tokens.shape[2])
    return F.pad(tokens, around) if layout.order == "channels first tokens" else F.pad(tokens.mT, (0, 0, *around)).contiguous()


def for_layouts(branch: nn.Module, read: Layout, write: Layout, shape: tuple[int, ...]) -> nn.Module:
    """The branch for maps, made to read activations in the layout ``read`` and return them in ``write``."""
    if read.order == write.order == "channels first":
        return branch
    return MapBranch(branch, read, write, shape)


def separable_branch(dim_in: int, dim_out: int, stride: int) -> nn.Sequential:
    """A depthwise 3x3 convolution, batch norm and a 1x1 convolution, as in MobileNet."""
    depthwise = nn.Conv2d(dim_in, dim_in, 3, stride, 1, groups=dim_in, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(dim_in), conv1x1(dim_in, dim_out))


def blends_with_original(model: nn.Module) -> Iterator[tuple[str, Blend]]:
    """The path and module of each blend that still has its original."""
    for path, module in model.named_modules():
        if isinstance(module, Blend) and module.original is not None:
            yield path, module
