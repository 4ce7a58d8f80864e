"""Fourier analysis of feature maps: which frequencies does each unit remove, and which does it amplify?

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figures 2a and 8; section 2 of their supplement.

Δ log amplitude(f) = log A(f) - log A(0), with A the amplitude of the stream's feature map at frequency f along the diagonal,
the logarithm averaged over channels and images.  A frequency is stated in units of pi per pixel of that map.

The transfer function of a unit is log A_after - log A_before at equal cycles per image, each amplitude divided by its number
of pixels.  It tells what a unit does to a wave apart from what subsampling does to the frequency axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from torch import Tensor, nn

from ..numerics.bootstrap import Interval, mean_interval
from ..numerics.frequency import diagonal_frequencies, log_amplitude, paper_bins, radial_log_amplitude
from ..result import Claim, Result, Row, Sign, columns
from .single_pass import Anatomy, single_pass

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLAIMS: dict[str, tuple[Sign, str]] = {
    "attention": ("negative", "Attention is a low-pass filter: it lowers the share of high frequencies."),
    "conv": ("positive", "Convolutions are high-pass filters: they raise the share of high frequencies."),
    "mlp": ("positive", "MLPs are high-pass filters: they raise the share of high frequencies."),
}


def fourier(
    model: nn.Module,
    data: Iterable[Any],
    *,
    at: Sequence[str] | None = None,
    radial: bool = False,
    paper: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Fourier:
    """Δ log amplitude of the stream after each unit, and each unit's transfer function, with 95% intervals over images.

    ``at`` names modules to read instead of units; ``radial`` averages over directions instead of following the diagonal;
    ``paper`` keeps the authors' bins and frequency axis, which call the last bin 1.0π though it lies below.
    Errors: UserError if the model has no units and ``at`` is not given, or if there are no images.
    """
    settings = {"radial": radial, "paper": paper}
    (result,) = single_pass(model, data, {Spectra: settings}, at=at, name=name, resamples=resamples, seed=seed)
    return cast(Fourier, result)


class Spectra:
    """Keeps each image's log amplitudes at each place: (n, F) a place."""

    analysis: ClassVar[str] = "fourier"
    reads_stream: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False

    def __init__(self, anatomy: Anatomy, *, radial: bool = False, paper: bool = False) -> None:
        self.anatomy = anatomy
        self.paper = paper
        self.spectrum = radial_log_amplitude if radial else log_amplitude
        self.kept: list[list[np.ndarray]] = [[] for _ in anatomy.places]
        self.batch: dict[int, Tensor] = {}

    def read(self, place: int, maps: Tensor) -> None:
        self.batch[place] = self.spectrum(maps)

    def finish(self, logits: Tensor, labels: Tensor | None) -> None:
        for place, spectra in self.batch.items():  # after the pass: a copy from the device waits for it
            self.kept[place].append(spectra.double().cpu().numpy())
        self.batch.clear()

    def result(self, model: str, evidence: dict[str, Any], resamples: int, seed: int) -> Fourier:
        logs = [np.concatenate(batches)[:, : self._bins(p)] for p, batches in enumerate(self.kept)]
        return Fourier(model, self._table(logs, resamples, seed), self._claims(logs, resamples, seed), evidence)

    def _bins(self, place: int) -> int:
        size = self._size(place)
        return paper_bins(size) if self.paper else diagonal_frequencies(size).numel()

    def _size(self, place: int) -> tuple[int, int]:
        return self.anatomy.places[place].layout.size  # type: ignore[union-attr]

    def _frequencies(self, place: int) -> np.ndarray:
        bins = self._bins(place)
        return np.linspace(0, 1, bins) if self.paper else diagonal_frequencies(self._size(place)).numpy()

    def _table(self, logs: list[np.ndarray], resamples: int, seed: int) -> list[Row]:
        streams = self.anatomy.streams()
        return [row for unit, before, after in streams for row in self._rows(unit, logs, after, before, resamples, seed)]

    def _rows(self, unit: Row, logs: list[np.ndarray], after: int, before: int | None, resamples: int, seed: int) -> list[Row]:
        level = logs[after] - math.log(math.prod(self._size(after)))
        delta = mean_interval(logs[after] - logs[after][:, :1], resamples=resamples, seed=seed)
        itself = mean_interval(level, resamples=resamples, seed=seed)
        transfer = _nothing(level.shape[1])
        if before is not None:
            shared = min(level.shape[1], logs[before].shape[1])  # bin k is k cycles an image at either resolution
            known = level[:, :shared] - logs[before][:, :shared] + math.log(math.prod(self._size(before)))
            for ends, found in zip(transfer, mean_interval(known, resamples=resamples, seed=seed), strict=True):
                ends[:shared] = found
        h, w = self._size(after)
        return [
            unit
            | {"height": h, "width": w, "cycles": k, "frequency": float(frequency)}
            | columns("delta", (ends[k] for ends in delta))
            | columns("transfer", (ends[k] for ends in transfer))
            | columns("log_amplitude", (ends[k] for ends in itself))
            for k, frequency in enumerate(self._frequencies(after))
        ]

    def _claims(self, logs: list[np.ndarray], resamples: int, seed: int) -> list[Claim]:
        high = [log[:, -1] - log[:, 0] for log in logs]  # (n,) a place: Δ at the highest frequency
        claims = []
        for kind, (sign, statement) in CLAIMS.items():
            steps = [high[after] - high[before] for before, after in self.anatomy.transforms([kind])]
            if steps:
                interval = mean_interval(np.mean(steps, axis=0), resamples=resamples, seed=seed)
                quantity = f"change of Δ log amplitude at the highest frequency, mean of {len(steps)} {kind} units (nepers)"
                claims.append(Claim.of_sign(sign, interval, statement=statement, source="Figure 8", quantity=quantity))
        return claims


def _nothing(bins: int) -> Interval:
    return Interval(*np.full((3, bins), np.nan))


@dataclass(frozen=True)
class Fourier(Result):
    """A row a unit and frequency: Δ log amplitude and transfer in nepers, each with its 95% interval.

    ``unit`` -1 is the stem: the stream that the first unit reads.  ``frequency`` is in units of pi, ``cycles`` a map.
    ``log_amplitude`` is the mean log amplitude per pixel itself.
    """

    analysis: ClassVar[str] = "fourier"
    panels: ClassVar[tuple[str, ...]] = ("spectrum", "depth", "transfer")

    def _draw(self, ax: Axes, panel: str) -> None:
        """``spectrum``: figure 2a, a curve a unit.  ``depth``: figure 8.  ``transfer``: a curve a unit."""
        from .. import drawing

        if panel == "depth":
            last = [rows[-1] for rows in drawing.by_unit(self.table)]
            drawing.over_depth(ax, last, "delta")
            ax.set_ylabel("Δ log amplitude at the\nhighest frequency (nepers)")
            return
        if panel == "transfer":
            drawing.transfers(ax, self.table, "transfer")
            ax.set_ylabel("Transfer: log amplitude\nafter − before (nepers)")
            return
        drawing.spectra(ax, self.table, "delta")
        ax.set_ylabel("Δ log amplitude (nepers)")
