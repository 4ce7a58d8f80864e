"""Variance of feature maps: which units average the map, and which make its places differ?

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figure 9.  The paper's code takes the unbiased variance over the
places of a map, for each image and channel, and averages it over both.  In an issue its author also agreed to "over
samples"; that is here on request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..numerics.bootstrap import mean_interval
from ..result import Claim, Result, Sign, columns
from .single_pass import Anatomy, single_pass

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Mean square over variance above which a difference of float32 sums, each right to 1e-7, is not right to 1e-4.
WORST_RATIO = 1000.0
Over = Literal["space", "samples"]
CLAIMS: dict[str, tuple[Sign, str]] = {
    "attention": ("negative", "Attention averages feature maps: it lowers their variance."),
    "conv": ("positive", "Convolutions make feature maps diverse: they raise their variance."),
    "mlp": ("positive", "MLPs make feature maps diverse: they raise their variance."),
}


def variance(
    model: nn.Module,
    data: Iterable[Any],
    *,
    at: Sequence[str] | None = None,
    over: Over = "space",
    normalise: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Variance:
    """Variance of the stream after each unit, with 95% intervals.

    ``over="space"`` (the paper): over places, for each image and channel.  ``over="samples"``: over the images of a batch,
    for each place and channel; the interval is then over batches.  ``normalise`` divides by the mean square of the same
    map, because the stream grows with depth.  Unit: that of the activation, squared.
    """
    settings = {"over": over, "normalise": normalise}
    (result,) = single_pass(model, data, {Spread: settings}, at=at, name=name, resamples=resamples, seed=seed)
    return cast(Variance, result)


def spatial_variance(maps: Tensor) -> Tensor:
    """Unbiased variance over places, averaged over channels.  Shapes: (B, C, h, w) -> (B,).

    From the sums and the sums of squares, which read the map at the speed of memory, twenty times faster than
    ``Tensor.var`` on a CPU.  Their difference loses digits where the mean square is far above the variance: there, and
    where it is not finite, ``Tensor.var`` it is.
    """
    (_, channels, h, w), together = maps.shape, maps.stride(1) == 1
    squares = torch.linalg.vector_norm(maps, dim=1 if together else (2, 3)).double().square()
    total = squares.flatten(1).sum(1)
    about_mean = total - h * w * maps.mean((2, 3)).double().square().sum(1)
    if maps.device.type != "cpu" or not bool((about_mean * WORST_RATIO > total).all()):
        return maps.var(dim=(2, 3)).mean(1)
    return (about_mean / ((h * w - 1) * channels)).to(maps.dtype)


def sample_variance(maps: Tensor) -> Tensor:
    """Unbiased variance over the images of a batch, averaged over channels and places.  Shapes: (B, C, h, w) -> (1,).

    Each batch estimates the variance over all images without bias, so batches may be averaged.
    """
    return maps.var(dim=0).mean()[None]


class Spread:
    """Keeps one number an image (over space) or a batch (over samples) for each place."""

    analysis: ClassVar[str] = "variance"
    reads_stream: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False

    def __init__(self, anatomy: Anatomy, *, over: Over = "space", normalise: bool = False) -> None:
        if over not in ("space", "samples"):
            raise UserError(f"variance is taken over 'space' or 'samples', not {over!r}")
        self.anatomy, self.over, self.normalise = anatomy, over, normalise
        self.kept: list[list[np.ndarray]] = [[] for _ in anatomy.places]
        self.batch: dict[int, Tensor] = {}

    def read(self, place: int, maps: Tensor) -> None:
        maps = maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
        if self.over == "samples" and len(maps) < 2:
            return  # the last image alone has no variance
        found = spatial_variance(maps) if self.over == "space" else sample_variance(maps)
        if self.normalise:
            square = maps.square().mean((1, 2, 3))
            found = found / (square if self.over == "space" else square.mean())
        self.batch[place] = found

    def finish(self, logits: Tensor, labels: Tensor | None) -> None:
        for place, found in self.batch.items():
            self.kept[place].append(found.double().cpu().numpy())
        self.batch.clear()

    def result(self, model: str, evidence: dict[str, Any], resamples: int, seed: int) -> Variance:
        if not any(self.kept):
            raise UserError("the variance over samples needs batches of at least 2 images")
        seen = [np.concatenate(batches) for batches in self.kept]
        table = [
            row | columns("variance", mean_interval(seen[place], resamples=resamples, seed=seed))
            for row, _, place in self.anatomy.streams()
        ]
        return Variance(model, table, self._claims(seen, resamples, seed), evidence)

    def _claims(self, seen: list[np.ndarray], resamples: int, seed: int) -> list[Claim]:
        claims = []
        for kind, (sign, statement) in CLAIMS.items():
            with np.errstate(divide="ignore", invalid="ignore"):
                steps = [np.log(seen[after] / seen[before]) for before, after in self.anatomy.transforms([kind])]
            change = np.mean(steps, axis=0) if steps else np.empty(0)
            change = change[np.isfinite(change)]  # a blank image has no variance that could grow or shrink
            if len(change):
                interval = mean_interval(change, resamples=resamples, seed=seed)
                quantity = f"log of variance after over before, mean of {len(steps)} {kind} units (nepers)"
                claims.append(Claim.of_sign(sign, interval, statement=statement, source="Figure 9", quantity=quantity))
        return claims


@dataclass(frozen=True)
class Variance(Result):
    """A row a unit: the variance of the stream after it with its 95% interval; ``unit`` -1 is the stem."""

    analysis: ClassVar[str] = "variance"
    panels: ClassVar[tuple[str, ...]] = ("depth",)

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 9: variance over normalised depth, attention units shaded."""
        from .. import drawing

        drawing.over_depth(ax, self.table, "variance")
        settings = self.evidence.get("settings", {})
        ax.set_ylabel("Variance / mean square" if settings.get("normalise") else "Feature map variance")
