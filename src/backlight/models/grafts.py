"""The parts that surgery puts into a model: a branch blended with its replacement, and a blur behind a unit.

They take the place of the module that they hold, so that the forward pass around them stays as its author wrote it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..layout import Layout, grid
from .alternet import conv1x1


class Blend(nn.Module):
    """``(1 - gate) original + gate replacement``; once the original is dropped, the replacement alone.

    The gate is one number.  At 0 the result is the original, bit for bit; there the gate has a gradient, while that of
    the replacement is 0 until the gate has moved.  With a handover the replacement reads what was handed over; else
    the two read the same.
    """

    def __init__(
        self, original: nn.Module, replacement: nn.Module, gate: nn.Parameter, handover: Handover | None = None
    ) -> None:
        super().__init__()
        self.original: nn.Module | None = original
        self.replacement = replacement
        self.gate: nn.Parameter | None = gate
        self.handover = handover

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        new = self.replacement(x if self.handover is None else self.handover.taken())
        if self.original is None or self.gate is None:
            return new
        old = self.original(x, *args, **kwargs)
        return torch.lerp(old, new.to(old.dtype), self.gate.to(old.dtype))


class Handover:
    """Holds what a replacement is to read from where the branch begins to where it ends, within one pass."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def taken(self) -> Tensor:
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError("the end of an operated branch ran without its beginning: run the whole block")
        return value


class Entrance(nn.Module):
    """A module that also hands over what it receives, or what it returns."""

    def __init__(self, module: nn.Module, handover: Handover, *, returned: bool) -> None:
        super().__init__()
        self.module, self.handover, self.returned = module, handover, returned

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.returned:
            self.handover.value = args[0] if args else next(iter(kwargs.values()))
            return self.module(*args, **kwargs)
        self.handover.value = result = self.module(*args, **kwargs)
        return result


class Removed(nn.Module):
    """Stands where a module was of whose result nothing is made; ``results``: of how many, None for a bare tensor.

    It hands on an empty batch, so that the calls around it that still run cost nothing, and none of them, in place,
    touches the stream.
    """

    def __init__(self, results: int | None = None) -> None:
        super().__init__()
        self.results = results

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Any:
        nothing = x.new_empty((0, *x.shape[1:]))
        return nothing if self.results is None else (nothing, *[None] * (self.results - 1))


class Smooth(nn.Module):
    """``x + gate (blur(x) - x)``: at 0 the stream as it is, bit for bit; at 1 blurred."""

    def __init__(self, branch: nn.Module, gate: nn.Parameter) -> None:
        super().__init__()
        self.branch, self.gate = branch, gate

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate.to(x.dtype) * self.branch(x)


class Followed(nn.Module):
    """A module and what comes after it."""

    def __init__(self, module: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.module, self.after = module, after

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.after(self.module(*args, **kwargs))


class OnMap(nn.Module):
    """A branch for maps (B, C, h, w), run on activations that hold their maps otherwise.

    Tokens that are no place in the image, such as the class token, are left out, and zero is added to them.
    Errors: UserError for another number of tokens than ``shape``, that of the activation at the surgery, has.
    """

    def __init__(self, branch: nn.Module, read: Layout, write: Layout, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.branch, self.read, self.write = branch, read, write
        self.axis = {"tokens": 1, "channels first tokens": 2}.get(read.order)
        self.length = shape[self.axis] if self.axis else 0

    def forward(self, x: Tensor) -> Tensor:
        if self.axis and x.shape[self.axis] != self.length:
            raise UserError(f"this model was operated on for {self.length} tokens, not {x.shape[self.axis]}: operate again")
        return from_grid(self.branch(grid(x, self.read)), self.write, self.length)


def from_grid(x: Tensor, layout: Layout, length: int) -> Tensor:
    """The inverse of `grid`; the tokens around the map are zero.  Shapes: (B, C, h, w) -> as ``layout`` says.

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


def mapped(branch: nn.Module, read: Layout, write: Layout, shape: tuple[int, ...]) -> nn.Module:
    """The branch, for activations that hold their maps as ``read`` says and are to hold them as ``write`` does."""
    if read.order == write.order == "channels first":
        return branch
    return OnMap(branch, read, write, shape)


def separable_branch(dim_in: int, dim_out: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution of each channel, then a mixture of channels, as in MobileNet."""
    depthwise = nn.Conv2d(dim_in, dim_in, 3, stride, 1, groups=dim_in, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(dim_in), conv1x1(dim_in, dim_out))
