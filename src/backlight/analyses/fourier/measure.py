"""Spectra of the stream, and what each unit changes in them.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figures 2a and 8; section 2 of their supplement.

Δ log amplitude(f) = log A(f) - log A(0).  A is the amplitude of the stream's feature map at frequency f along the diagonal;
the logarithm is averaged over channels and images.  Frequencies are in units of pi per pixel of that map.

The transfer function of a unit is log A_after - log A_before at equal cycles per image, each amplitude divided by the number
of pixels of its map.  It separates what a unit does to a wave from what subsampling does to the frequency axis.

The step of Δ at a unit has two parts, because Δ is relative to the mean of the map: the change of the highest frequency's log
amplitude minus the change of the mean's.  So each claim is decided in two readings: relative to the mean, and absolute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from backlight.analyses.fourier.settings import FourierSettings
from backlight.analyses.single_pass import Reads, Streams
from backlight.numerics.bootstrap import Interval, mean_interval
from backlight.numerics.frequency import diagonal_frequencies, log_amplitude, paper_bins, radial_log_amplitude
from backlight.results.claim import LOG_ROUNDING, Claim, Sign
from backlight.results.result import Result, Row, columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The sign, the paper's statement, which is relative to the mean, and the absolute statement.
CLAIMS: dict[str, tuple[Sign, str, str]] = {
    "attention": (
        "negative",
        "Attention is a low-pass filter: it lowers the share of high frequencies.",
        "Attention removes high frequencies: it lowers the amplitude of the highest frequency itself.",
    ),
    "conv": (
        "positive",
        "Convolutions are high-pass filters: they raise the share of high frequencies.",
        "Convolutions amplify high frequencies: they raise the amplitude of the highest frequency itself.",
    ),
    "mlp": (
        "positive",
        "MLPs are high-pass filters: they raise the share of high frequencies.",
        "MLPs amplify high frequencies: they raise the amplitude of the highest frequency itself.",
    ),
}


class Spectra:
    """Stores each image's log amplitudes at each tap: (n, F) per tap."""

    analysis: ClassVar[str] = "fourier"
    reads: ClassVar[Reads] = "stream"

    def __init__(self, streams: Streams, settings: FourierSettings) -> None:
        self.streams = streams
        self.paper = settings.paper
        self.spectrum = radial_log_amplitude if settings.radial else log_amplitude
        self.batches: list[list[np.ndarray]] = [[] for _ in streams.taps]
        self.batch: dict[int, Tensor] = {}

    def read(self, tap: int, maps: Tensor) -> None:
        """Compute the spectra of a batch.  Shapes: (B, C, h, w)."""
        self.batch[tap] = self.spectrum(maps)

    def finish(self, logits: Tensor, labels: Tensor | None) -> None:
        """Store the spectra of a batch."""
        for tap, spectra in self.batch.items():  # after the pass, because a copy from the device waits for it
            self.batches[tap].append(spectra.double().cpu().numpy())
        self.batch.clear()

    def result(self, model: str, provenance: dict[str, Any], resamples: int, seed: int) -> Fourier:
        """Δ log amplitudes and transfer functions with their intervals."""
        logs = [np.concatenate(batches)[:, : self._bins(tap)] for tap, batches in enumerate(self.batches)]
        deltas = np.stack([logs[tap][:, -1] - logs[tap][:, 0] for _, _, tap in self.streams.rows()])
        claims, steps = self._claims(logs, resamples, seed)
        arrays = {"per_image/delta": deltas.astype(np.float32)} | steps
        return Fourier(model, self._table(logs, resamples, seed), claims, provenance, arrays)

    def _bins(self, tap: int) -> int:
        size = self._size(tap)
        return paper_bins(size) if self.paper else diagonal_frequencies(size).numel()

    def _size(self, tap: int) -> tuple[int, int]:
        return self.streams.taps[tap].layout.size  # type: ignore[union-attr]

    def _frequencies(self, tap: int) -> np.ndarray:
        bins = self._bins(tap)
        return np.linspace(0, 1, bins) if self.paper else diagonal_frequencies(self._size(tap)).numpy()

    def _table(self, logs: list[np.ndarray], resamples: int, seed: int) -> list[Row]:
        units = self.streams.rows()
        return [row for unit, before, after in units for row in self._rows(unit, logs, after, before, resamples, seed)]

    def _rows(self, unit: Row, logs: list[np.ndarray], after: int, before: int | None, resamples: int, seed: int) -> list[Row]:
        level = logs[after] - math.log(math.prod(self._size(after)))
        delta = mean_interval(logs[after] - logs[after][:, :1], resamples=resamples, seed=seed)
        log_amplitudes = mean_interval(level, resamples=resamples, seed=seed)
        transfer = Interval(*np.full((3, level.shape[1]), np.nan))
        if before is not None:
            shared = min(level.shape[1], logs[before].shape[1])  # bin k is k cycles per image at either resolution
            change = level[:, :shared] - logs[before][:, :shared] + math.log(math.prod(self._size(before)))
            for column, values in zip(transfer, mean_interval(change, resamples=resamples, seed=seed), strict=True):
                column[:shared] = values
        h, w = self._size(after)
        highest = level.shape[1] - 1 if before is not None and self._size(before) == self._size(after) else None
        return [
            unit
            | {"height": h, "width": w, "cycles": k, "frequency": float(frequency)}
            | columns("delta", (ends[k] for ends in delta))
            | columns("transfer", (ends[k] for ends in transfer))
            | columns("log_amplitude", (ends[k] for ends in log_amplitudes))
            | columns("high_step", (ends[k] if k == highest else math.nan for ends in transfer))
            | columns("mean_step", (ends[0] if k == highest else math.nan for ends in transfer))
            for k, frequency in enumerate(self._frequencies(after))
        ]

    def _claims(self, logs: list[np.ndarray], resamples: int, seed: int) -> tuple[list[Claim], dict[str, np.ndarray]]:
        """Each statement in both readings: by Δ, relative to the mean of the map, and by the highest frequency alone.

        Beside the claims the number of each image, by the name of its array.
        """
        delta, high = [log[:, -1] - log[:, 0] for log in logs], [log[:, -1] for log in logs]  # (n,) per tap
        readings = [
            (delta, "relative", "Figure 8", "relative to the mean of the map: change of Δ log amplitude"),
            (high, "absolute", "A second reading of figure 8", "absolute: change of log amplitude"),
        ]
        claims, steps = [], {}
        for kind, (sign, *statements) in CLAIMS.items():
            pairs = self.streams.transforms([kind])
            if not pairs:
                continue
            for (levels, reading, source, change), statement in zip(readings, statements, strict=True):
                step = np.mean([levels[after] - levels[before] for before, after in pairs], axis=0)
                interval = mean_interval(step, resamples=resamples, seed=seed)
                quantity = f"{change} at the highest frequency, mean of {len(pairs)} {kind} units (nepers)"
                about: dict[str, Any] = {
                    "id": f"fourier/{kind}-{reading}",
                    "statement": statement,
                    "source": source,
                    "quantity": quantity,
                }
                claims.append(Claim.of_sign(sign, interval, count=len(step), rounding=LOG_ROUNDING, **about))
                steps[f"per_image/claims/{kind}-{reading}"] = step.astype(np.float32)
        return claims, steps


@dataclass(frozen=True, repr=False)
class Fourier(Result):
    """One row per unit and frequency: Δ log amplitude and transfer in nepers, each with its 95% interval.

    ``unit`` -1 is the stem: the stream that the first unit reads.  ``frequency`` is in units of pi, ``cycles`` per map.
    ``log_amplitude`` is the mean log amplitude per pixel.  ``high_step`` and ``mean_step``, on the row of the highest frequency
    of a unit that keeps the resolution: the change of log amplitude there and of the mean; the step of Δ is their difference.
    ``arrays["per_image/delta"]``: Δ at the highest frequency, (stem and units) x images; ``["per_image/claims/NAME"]``: the
    number of a claim of each image.
    """

    analysis: ClassVar[str] = "fourier"
    panels: ClassVar[tuple[str, ...]] = ("spectrum", "depth", "steps", "transfer")

    def _draw(self, ax: Axes, panel: str) -> None:
        """``spectrum``: figure 2a, one curve per unit.  ``depth``: figure 8.  ``steps``: its steps in two parts.

        ``transfer``: one curve per unit.
        """
        from backlight.results import figures

        if panel == "depth":
            highest = [rows[-1] for rows in figures.by_unit(self.table)]
            figures.over_depth(ax, highest, "delta")
            figures.label(ax, self.chart(panel))
            return
        if panel == "steps":
            rows = [unit[-1] for unit in figures.by_unit(self.table) if np.isfinite(unit[-1].get("high_step", np.nan))]
            figures.steps(ax, rows, "mean_step", "high_step")
            figures.label(ax, self.chart(panel))
            return
        if panel == "transfer":
            figures.transfers(ax, self.table, "transfer")
            figures.label(ax, self.chart(panel))
            return
        figures.spectra(ax, self.table, "delta")
        figures.label(ax, self.chart(panel))
