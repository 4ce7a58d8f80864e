"""What hooks do at the units of a model: read the stream, remove a branch, and check that removing it restores the stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backlight.errors import UserError
from backlight.inputs import tensors
from backlight.tracing.layout import grid
from backlight.tracing.tap import Tap, Unit
from backlight.tracing.trace import evaluating, inside, plain_attention, visiting, zeroed


@contextmanager
def reading(model: nn.Module, taps: Sequence[Tap], visit: Callable[[int, Tensor], None]) -> Iterator[nn.Module]:
    """Within the block each forward pass calls ``visit(i, activation)`` with the activation at ``taps[i]``.

    The activation is the model's own tensor, which the model may change in place afterwards: keep numbers or a copy.
    Errors: RuntimeError after a pass in which a tap did not run.
    """
    index = {(tap.module, tap.side, tap.call): i for i, tap in enumerate(taps)}
    visited: set[int] = set()

    def visit_tap(point: tuple[str, str, int], value: Any) -> None:
        if point in index:
            visited.add(index[point])
            visit(index[point], next(tensors(value)))

    def verify(*_: Any) -> None:
        if missing := [str(tap) for i, tap in enumerate(taps) if i not in visited]:
            raise RuntimeError(f"the model did not run {', '.join(missing)} in this pass; find its units again")

    with visiting(model, [(tap.module, tap.side) for tap in taps], visit_tap):
        start = inside(model).register_forward_pre_hook(lambda *_: visited.clear())
        end = inside(model).register_forward_hook(verify)
        try:
            yield model
        finally:
            start.remove()
            end.remove()


@contextmanager
def without(
    model: nn.Module, unit: Unit, instead: Callable[[int, Tensor], Tensor] = lambda i, branch: torch.zeros_like(branch)
) -> Iterator[nn.Module]:
    """Within the block ``unit`` adds nothing to the stream; or ``instead(i, output)`` for the output at ``unit.branch[i]``.

    Errors: UserError if no module or function returns its branch.
    """
    if not unit.branch:
        raise UserError(f"{unit} cannot be removed: nothing returns what it adds")
    index = {(tap.module, tap.side, tap.call): i for i, tap in enumerate(unit.branch)}

    def replace(point: tuple[str, str, int], value: Any) -> Any:
        if point not in index:
            return None
        replaced = zeroed(value)
        next(tensors(replaced)).copy_(instead(index[point], next(tensors(value))))
        return replaced

    with visiting(model, [(tap.module, tap.side) for tap in unit.branch], replace, first=True):
        yield model


def feature_maps(model: nn.Module, images: Tensor, units: Sequence[Unit]) -> list[Tensor]:
    """The stream after each unit, as feature maps.  Shapes: (B, C, H, W) -> U tensors (B, c, h, w), copies.

    Errors: UserError if the stream after a unit is not a map or cannot be read.
    """
    taps = []
    for unit in units:
        if unit.after is None or unit.after.layout is None:
            raise UserError(f"the stream after {unit} cannot be read as a map")
        taps.append(unit.after)
    maps: dict[Tap, Tensor] = {}
    distinct = list(dict.fromkeys(taps))

    def keep(i: int, activation: Tensor) -> None:
        maps[distinct[i]] = grid(activation, distinct[i].layout).clone()  # type: ignore[arg-type]

    with evaluating(model), torch.no_grad(), reading(model, distinct, keep):
        model(images)
    return [maps[tap] for tap in taps]


def check(model: nn.Module, images: Tensor, units: Sequence[Unit]) -> Iterator[tuple[Unit, bool | None]]:
    """Whether removing each unit makes the stream after it equal to the stream before it; None where this proves nothing.

    None for units whose skip is not the identity, and for units whose branch or stream cannot be read.
    Errors: RuntimeError if the model's output afterwards is not bit-identical to the output before.
    """
    with evaluating(model), torch.no_grad(), plain_attention():
        outputs = [tensor.clone() for tensor in tensors(model(images))]
        for unit in units:
            yield unit, _restores_stream(model, images, unit)
        if not all(map(torch.equal, tensors(model(images)), outputs)):
            raise RuntimeError("the model's output changed while its units were checked")


def _restores_stream(model: nn.Module, images: Tensor, unit: Unit) -> bool | None:
    """Whether the stream after the removed unit equals the stream before it; None where this proves nothing."""
    if not (unit.identity and unit.branch and unit.before and unit.after):
        return None
    stream: dict[int, Tensor] = {}

    def keep(i: int, activation: Tensor) -> None:
        stream[i] = activation.clone()
        if len(stream) == 2:
            raise _BothRead

    with contextlib.suppress(_BothRead), without(model, unit), reading(model, (unit.before, unit.after), keep):
        model(images)
    before, after = stream[0], stream[1]
    if before.shape != after.shape or unit.before.layout != unit.after.layout:  # the positions are reordered between the two
        before, after = before.flatten().sort().values, after.flatten().sort().values
    return torch.equal(before, after)


class _BothRead(Exception):
    """Stops the forward pass early."""
