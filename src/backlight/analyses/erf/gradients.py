"""Gradients of positions of a feature map with respect to the images, and the point of the image under a position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from backlight.errors import UserError
from backlight.tracing.hooks import reading
from backlight.tracing.layout import grid
from backlight.tracing.tap import Tap

#: Share of its peak above which a pixel belongs to the local part of a field.
PEAK = 0.1
#: Row and column of a map of this height and width.
Position = Callable[[int, int], tuple[int, int]]


def central(height: int, width: int) -> tuple[int, int]:
    """The middle of a map; of an even one, the position behind the middle."""
    return height // 2, width // 2


def gradients(
    model: nn.Module,
    images: Tensor,
    taps: Sequence[Tap],
    positions: Sequence[Position] = (central,),
    score: Callable[[Tensor], Tensor] = torch.relu,
) -> Iterator[Tensor]:
    """Yield d sum_c score(y_c(position)) / d images for each tap and, within it, each position.

    One forward pass, then a backward pass for each.  Shapes: images (B, C, H, W) -> (B, C, H, W) each.
    Errors: UserError if no gradient reaches the images.
    """
    leaf = images.detach().clone().requires_grad_()
    scores: dict[int, list[Tensor]] = {}

    def read(i: int, activation: Tensor) -> None:
        maps = grid(activation, taps[i].layout)  # type: ignore[arg-type]
        height, width = maps.shape[2:]
        where = [position(height, width) for position in positions]
        # a copy, because the model may change the activation in place before the backward pass
        scores[i] = [score(maps[:, :, row, column].clone()).sum() for row, column in where]

    with reading(model, taps, read):
        model(leaf.clone())  # a model may change its images in place, which torch forbids for a leaf
    for i, tap in enumerate(taps):
        for value in scores[i]:
            gradient = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
            if gradient is None:
                raise UserError(f"no gradient reaches the images from {tap}; run the model without no_grad and detach")
            yield gradient


def points_under_centre(model: nn.Module, images: Tensor, taps: Sequence[Tap]) -> list[tuple[float, float]]:
    """The point (y, x) of the image under the central position of the map at each tap, in pixels from the top left corner.

    The field of the first position ends, and that of the last one starts, as far from the middle of the map: half the size of
    a field.  So their mean is the middle, and the central position lies half a cell behind it in an even map.
    Two fields that each fill the image have the middle of the image between them.
    """
    corners: list[Position] = [lambda h, w: (0, 0), lambda h, w: (h - 1, w - 1)]
    fields = [gradient.abs().sum((0, 1)).cpu() for gradient in gradients(model, images, taps, corners, torch.abs)]
    points = []
    for tap, first, last in zip(taps, fields[::2], fields[1::2], strict=True):
        h, w = tap.layout.size  # type: ignore[union-attr]
        points.append((_under_centre(first.sum(1), last.sum(1), h), _under_centre(first.sum(0), last.sum(0), w)))
    return points


def _under_centre(first: Tensor, last: Tensor, positions: int) -> float:
    """The pixel under the central one of the positions along an axis, to one half.  Shapes: profiles of fields (n,), (n,).

    A squeeze-and-excitation or an attention adds a little of all pixels to a local field.  So if both profiles have a gradient
    in each pixel, they end where they fall below a share of their peak.
    """
    pixels = len(first)
    level = PEAK if first.all() and last.all() else 0.0
    inside = [(profile > level * profile.max()).nonzero().flatten().tolist() or range(pixels) for profile in (first, last)]
    return round(inside[0][-1] + 1 + inside[1][0] + (0 if positions % 2 else pixels / positions)) / 2


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block no parameter requires a gradient, so that none is computed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield model
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
