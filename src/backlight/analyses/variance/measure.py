"""Variance of feature maps: the units that average the map, and those that make its positions differ.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figure 9.  The authors' code computes the unbiased variance over
the positions of a map, for each image and channel, and averages it over both.  In an issue the author also agreed to the
variance "over samples"; ``over="samples"`` computes it.  The paper also says of figure 9 that the variance accumulates with
depth and peaks at the end of each stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from backlight.analyses.single_pass import Reads, Streams
from backlight.analyses.variance.settings import VarianceSettings
from backlight.errors import UserError
from backlight.numerics.bootstrap import mean_interval
from backlight.results.charts import ChartText
from backlight.results.claim import LOG_ROUNDING, Claim, Sample, Sign
from backlight.results.result import Result, columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Mean square over variance above which a difference of float32 sums, each exact to 1e-7, is not exact to 1e-4.
WORST_RATIO = 1000.0
CLAIMS: dict[str, tuple[Sign, str]] = {
    "attention": ("negative", "Attention averages feature maps: it lowers their variance."),
    "conv": ("positive", "Convolutions make feature maps diverse: they raise their variance."),
    "mlp": ("positive", "MLPs make feature maps diverse: they raise their variance."),
}
ACCUMULATES = "accumulates", "Variance accumulates with depth."
PEAKS = "peaks", "Variance peaks at the end of a stage, then falls."
LOWERS_AT_ENDS = "attention-at-ends", "Attention at the end of a stage lowers the variance there."
#: Indices of taps whose variances a claim compares: (denominator, numerator) each.
Pairs = Sequence[tuple[int, int]]


def spatial_variance(maps: Tensor) -> Tensor:
    """Unbiased variance over positions, averaged over channels.  Shapes: (B, C, h, w) -> (B,).

    Computed from sums and sums of squares, twenty times faster than ``Tensor.var`` on a CPU.  Their difference loses digits
    if the mean square is far above the variance; then, and if it is not finite, ``Tensor.var`` is used.
    """
    (_, channels, h, w), channels_adjacent = maps.shape, maps.stride(1) == 1
    squares = torch.linalg.vector_norm(maps, dim=1 if channels_adjacent else (2, 3)).double().square()
    total = squares.flatten(1).sum(1)
    deviations = total - h * w * maps.mean((2, 3)).double().square().sum(1)
    if maps.device.type != "cpu" or not bool((deviations * WORST_RATIO > total).all()):
        return maps.var(dim=(2, 3)).mean(1)
    return (deviations / ((h * w - 1) * channels)).to(maps.dtype)


def sample_variance(maps: Tensor) -> Tensor:
    """Unbiased variance over the images of a batch, averaged over channels and positions.  Shapes: (B, C, h, w) -> (1,).

    Each batch is an unbiased estimate of the variance over all images, so batches can be averaged.
    """
    return maps.var(dim=0).mean()[None]


class Variances:
    """Stores one number per image (over space) or per batch (over samples) for each tap."""

    analysis: ClassVar[str] = "variance"
    reads: ClassVar[Reads] = "stream"

    def __init__(self, streams: Streams, settings: VarianceSettings) -> None:
        self.streams, self.over, self.normalise = streams, settings.over, settings.normalise
        self.batches: list[list[np.ndarray]] = [[] for _ in streams.taps]
        self.batch: dict[int, Tensor] = {}

    def read(self, tap: int, maps: Tensor) -> None:
        """Compute the variances of a batch.  Shapes: (B, C, h, w)."""
        maps = maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
        if self.over == "samples" and len(maps) < 2:
            return  # one image has no variance over samples
        variances = spatial_variance(maps) if self.over == "space" else sample_variance(maps)
        if self.normalise:
            square = maps.square().mean((1, 2, 3))
            variances = variances / (square if self.over == "space" else square.mean())
        self.batch[tap] = variances

    def finish(self, logits: Tensor, labels: Tensor | None) -> None:
        """Store the variances of a batch."""
        for tap, variances in self.batch.items():
            self.batches[tap].append(variances.double().cpu().numpy())
        self.batch.clear()

    def result(self, model: str, provenance: dict[str, Any], resamples: int, seed: int) -> Variance:
        """The variance after each unit with its interval."""
        if not any(self.batches):
            raise UserError("the variance over samples needs batches of at least 2 images")
        variances = [np.concatenate(batches) for batches in self.batches]
        table = [
            row | columns("variance", mean_interval(variances[after], resamples=resamples, seed=seed))
            for row, _, after in self.streams.rows()
        ]
        of_rows = [variances[after] for *_, after in self.streams.rows()]
        claims, changes = self._claims(variances, resamples, seed)
        arrays = {"per_image/variance": np.stack(of_rows).astype(np.float32)} | changes if self.over == "space" else {}
        return Variance(model, table, claims, provenance, arrays)

    def _claims(self, variances: list[np.ndarray], resamples: int, seed: int) -> tuple[list[Claim], dict[str, np.ndarray]]:
        """The claims, and the number of each image, by the name of its array."""
        claims, changes = [], {}
        variance = "normalised variance" if self.normalise else "variance"
        for sign, (name, statement), compared, pairs in self._comparisons(variances):
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = [np.log(variances[above] / variances[below]) for below, above in pairs]
            all_images = np.mean(ratios, axis=0) if ratios else np.empty(0)
            change = all_images[np.isfinite(all_images)]  # a blank image has variance 0
            if len(change):
                changes[f"per_image/claims/{name}"] = all_images.astype(np.float32)
                interval = mean_interval(change, resamples=resamples, seed=seed)
                quantity = f"log of {variance} {compared} (nepers)"
                about: dict[str, Any] = {
                    "id": f"variance/{name}",
                    "statement": statement,
                    "source": "Figure 9",
                    "quantity": quantity,
                }
                over: Sample = "images" if self.over == "space" else "mini-batches"
                claims.append(Claim.of_sign(sign, interval, count=len(change), over=over, rounding=LOG_ROUNDING, **about))
        return claims, changes

    def _comparisons(self, variances: list[np.ndarray]) -> Iterator[tuple[Sign, tuple[str, str], str, Pairs]]:
        """Each claim as sign, statement, what is compared, and the taps; without taps it cannot be tested on this model."""
        for kind, (sign, statement) in CLAIMS.items():
            pairs = self.streams.transforms([kind])
            yield sign, (kind, statement), f"after over before, mean of {len(pairs)} {kind} units", pairs
        stages = self._stages()
        taps = [[tap for _, tap in stage] for stage in stages]
        ends = [(0, taps[-1][-1])] if sum(map(len, taps)) > 1 else []
        yield "positive", ACCUMULATES, "after the last unit over before the first", ends
        others = [[*stage[:-1], following[0]] for stage, following in pairwise(taps)]
        largest = [max(stage, key=lambda tap: float(variances[tap].mean())) for stage in others]
        peaks = [(other, stage[-1]) for other, stage in zip(largest, taps, strict=False)]
        compared = (
            f"after the last unit of a stage over the largest other in it and after the next unit, mean of {len(peaks)} stages"
        )
        yield "positive", PEAKS, compared, peaks
        last = [tap for stage in stages for tap in [tap for kind, tap in stage if kind != "mlp"][-1:]]
        pairs = [pair for pair in self.streams.transforms(["attention"]) if pair[1] in last] if len(stages) > 1 else []
        compared = f"after over before, mean of {len(pairs)} attention units that end a stage or have only MLPs behind them"
        yield "negative", LOWERS_AT_ENDS, compared, pairs

    def _stages(self) -> list[list[tuple[str, int]]]:
        """The kind of each unit and the tap after it, by stage."""
        units = [(row["stage"], row["kind"], after) for row, _, after in self.streams.rows() if row["unit"] >= 0]
        return [[(kind, after) for _, kind, after in stage] for _, stage in groupby(units, key=itemgetter(0))]


@dataclass(frozen=True, repr=False)
class Variance(Result):
    """One row per unit: the variance of the stream after it with its 95% interval; ``unit`` -1 is the stem.

    ``arrays["per_image/variance"]``, of a variance over space: rows x images; ``["per_image/claims/NAME"]``: the number of a
    claim of each image, not finite where a map is constant.
    """

    analysis: ClassVar[str] = "variance"
    panels: ClassVar[tuple[str, ...]] = ("depth",)

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 9: variance over normalised depth, attention units shaded."""
        from backlight.results import figures

        figures.over_depth(ax, self.table, "variance")
        figures.label(ax, self.chart(panel))

    def chart(self, panel: str) -> ChartText:
        """The words of a panel; variances over mean squares have others."""
        normalised = self.provenance.get("settings", {}).get("normalise")
        return super().chart("normalised" if normalised else panel)
