"""Noise by frequency: what noise of each band of frequencies costs a model.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figure 2b: x + F⁻¹(F(δ) ⊙ M), with δ white noise and M a band of
frequencies.  Their mask is not symmetric under conjugation, so their noise is complex and loses a part of its energy with its
imaginary part.  Here noise is real, and is added to pixels from 0 to 1, not to normalised images.
The heat map over single waves is that of Yin et al., "A Fourier Perspective on Model Robustness in Computer Vision" (2019).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from backlight.analyses.chance import Answers
from backlight.analyses.noise.settings import NoiseSettings, middle_severity
from backlight.analyses.pixel_scores import image_scores, logits_of_pixels, refuse_other_size
from backlight.data.normalisation import normalisation_of
from backlight.devices import device_of
from backlight.errors import UserError
from backlight.inputs import checked_labels, first_tensor, image_batches, refuse_no_classifier, to_model
from backlight.numerics.bootstrap import Interval
from backlight.numerics.frequency_bands import band, bins, of_spectrum, root_mean_square, signs, wave
from backlight.numerics.proportions import score_intervals, share_interval
from backlight.results.claim import Claim, Sign
from backlight.results.provenance import provenance
from backlight.results.result import Result, Row, columns
from backlight.tracing.find import units
from backlight.tracing.trace import evaluating, model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What is recorded for each image under each noise, in this order.
SCORES = ("accuracy", "nll", "rms")
CLAIMS: dict[str, tuple[Sign, str]] = {
    "attention": (
        "positive",
        "Attention suffers from low frequencies: noise there costs more accuracy than noise in high ones.",
    ),
    "conv": ("negative", "Convolutions suffer from high frequencies: noise there costs more accuracy than noise in low ones."),
}


def measure(
    model: nn.Module,
    data: Iterable[Any],
    settings: NoiseSettings,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Noise:
    """The result of `backlight.noise`."""
    started = time.perf_counter()
    normalisation = normalisation_of(data, mean, std)
    logits_of = logits_of_pixels(model, normalisation)
    batch_scores: list[np.ndarray] = []  # (1 + bands * severities, 3, B) each: the clean images, then severities within bands
    batch_errors: list[np.ndarray] = []  # (N * N // 2 + 1, B) each: whether the answer under each wave is wrong
    images_done, answers = 0, Answers()
    with evaluating(model), torch.inference_mode():
        for images, labels in image_batches(data):
            pixels = normalisation.checked_pixels(images.to(device_of(model)))
            clean = first_tensor(model(to_model(images, model)))
            refuse_no_classifier(model, clean, data)
            clean, labels = checked_labels(clean, labels.to(clean.device) if labels is not None else None)
            answers.add(clean, labels)
            if not batch_scores:
                kinds = {unit.kind for unit in units(model, to_model(images[:2], model))}
                noises = ImageNoise(settings, (int(images.shape[-2]), int(images.shape[-1])), pixels.device, seed)
            refuse_other_size(images, noises.size)
            positions = torch.arange(images_done, images_done + len(images), device=pixels.device)
            scores = [image_scores(clean, labels, torch.zeros_like(pixels))]
            for noisy in noises.with_bands(pixels, positions):
                scores.append(image_scores(logits_of(noisy), labels, noisy - pixels))
            batch_scores.append(torch.stack(scores).cpu().numpy())
            if settings.basis:
                wrong = [logits_of(noisy).argmax(1) != labels for noisy in noises.with_waves(pixels, positions)]
                batch_errors.append(torch.stack(wrong).cpu().numpy())
            images_done += len(images)
    if not batch_scores:
        raise UserError("no images: the data are empty")
    all_scores = np.concatenate(batch_scores, axis=2)
    table, clean_scores = _table(settings, noises, all_scores, resamples, seed)
    contrast = _contrast(settings, all_scores[1:], resamples, seed)
    recorded = asdict(settings) | {"severities": settings.severities_or_default} | asdict(normalisation)
    facts = provenance(model, data, images=images_done, resamples=resamples, seed=seed, **recorded) | {
        "seconds": round(time.perf_counter() - started, 3),
        "clean": clean_scores,
        "kinds": sorted(kinds),
        "high_less_low": {score: [float(x) for x in interval] for score, interval in contrast.items()},
    }
    facts |= answers.caution(facts)
    arrays = {"per_image/correct": _correct(settings, all_scores)}
    arrays |= _heat_map(noises, batch_errors) if settings.basis else {}
    return Noise(model_name(model, name), table, _claims(kinds, contrast, images_done), facts, arrays)


class ImageNoise:
    """The noise of images of one size; that of an image depends only on the seed and on its position in the data.

    Errors: UserError if a band holds none of the frequencies of these images, or if they have fewer waves than the heat map.
    """

    def __init__(self, settings: NoiseSettings, size: tuple[int, int], device: torch.device, seed: int) -> None:
        self.settings, self.size, self.seed = settings, size, seed
        self.masks = [band(size, low, high, device) for low, high in settings.bands]
        for centre, (low, high), mask in zip(settings.frequencies, settings.bands, self.masks, strict=True):
            if not mask.any():
                raise UserError(
                    f"images of {size[0]} x {size[1]} have no frequency in the band {low:g}π to {high:g}π around {centre:g}π; "
                    f"give a width of {2 / max(size):.2g} or more, and frequencies at least half of it away from 0 and 1"
                )
        basis = settings.basis
        self.cycles = [np.linspace(-(n // 2), n // 2, basis).round().astype(int) for n in size] if basis else []
        if any(len(set(cycles.tolist())) < basis for cycles in self.cycles):
            raise UserError(
                f"images of {size[0]} x {size[1]} have fewer than {basis} frequencies along a side; "
                f"give a basis of {2 * (min(size) // 2) + 1} or less"
            )

    def with_bands(self, pixels: Tensor, positions: Tensor) -> Iterator[Tensor]:
        """Noisy pixels, severities within bands; the noise of a band differs between severities in its size only."""
        white = signs(positions, pixels.shape[1:], seed=self.seed).to(pixels.dtype)
        spectrum = torch.fft.rfft2(white)
        for mask in self.masks:
            field = self._in_band(spectrum, mask)
            for severity in self.settings.severities_or_default:
                yield self._added(pixels, field, severity)

    def with_waves(self, pixels: Tensor, positions: Tensor) -> Iterator[Tensor]:
        """Pixels with one wave each, in the order of `half_plane`; its sign is random for each image and channel."""
        severity = middle_severity(self.settings.severities_or_default)
        for stream, cycles in enumerate(self.half_plane(), 1):
            sign = signs(positions, (pixels.shape[1], 1, 1), seed=self.seed, stream=stream)
            field = wave(self.size, cycles).to(pixels)
            yield self._added(pixels, sign.to(pixels.dtype) * field, severity)

    def half_plane(self) -> list[tuple[int, int]]:
        """Cycles along rows and columns, row by row, of one of each wave and its conjugate: the map up to its centre."""
        y, x = (cycles.tolist() for cycles in self.cycles)
        plane = list(itertools.product(y, x))
        return plane[: len(plane) // 2 + 1]

    def _in_band(self, spectrum: Tensor, mask: Tensor) -> Tensor:
        """Noise of root mean square 1 in every image; with ``paper`` what the mask leaves of the white noise."""
        field = of_spectrum(spectrum, mask, self.size[1])
        return field if self.settings.paper else field.div_(root_mean_square(field).view(-1, 1, 1, 1))

    def _added(self, pixels: Tensor, field: Tensor, severity: float) -> Tensor:
        noisy = torch.add(pixels, field, alpha=severity)
        return noisy.clamp_(0, 1) if self.settings.clip else noisy


def _table(
    settings: NoiseSettings, noises: ImageNoise, scores: np.ndarray, resamples: int, seed: int
) -> tuple[list[Row], dict[str, list[float]]]:
    """A row for each severity and band; and the clean images' scores.  Shapes: scores (1 + bands * severities, 3, n)."""
    severities = settings.severities_or_default
    noisy = score_intervals(scores, resamples=resamples, seed=seed)
    change = score_intervals(scores, scores[:1], resamples=resamples, seed=seed)
    table: list[Row] = []
    for k, b in itertools.product(range(len(severities)), range(len(settings.frequencies))):
        i = 1 + b * len(severities) + k
        low, high = settings.bands[b]
        row: Row = {"severity": severities[k], "frequency": settings.frequencies[b], "width": settings.width}
        row |= {"from": low, "to": high, "bins": bins(noises.masks[b], noises.size[1])}
        for s, score in enumerate(SCORES):
            row |= columns(score, (x[i] for x in noisy[s]))
            if score != "rms":
                row |= columns(f"{score}_change", (x[i] for x in change[s]))
        table.append(row)
    return table, {score: [float(x[0]) for x in noisy[s]] for s, score in enumerate(SCORES[:2])}


def _contrast(settings: NoiseSettings, scores: np.ndarray, resamples: int, seed: int) -> dict[str, Interval]:
    """The mean change above 0.5π less that below, over all severities; empty if there are no bands on both sides.

    Shapes: scores under noise (bands * severities, 3, n).
    """
    severities = len(settings.severities_or_default)
    low, high = (np.repeat([side * (f - 0.5) > 1e-9 for f in settings.frequencies], severities) for side in (-1, 1))
    if not (low.any() and high.any()):
        return {}
    above, below = (scores[side].mean(0, keepdims=True) for side in (high, low))  # the clean scores cancel
    intervals = score_intervals(above, below, resamples=resamples, seed=seed)
    return {score: Interval(*(x[0] for x in intervals[s])) for s, score in enumerate(SCORES[:2])}


def _correct(settings: NoiseSettings, scores: np.ndarray) -> np.ndarray:
    """The accuracy of each image, clean and under each band.  Shapes: (1 + bands * severities, 3, n) -> (1 + bands, n)."""
    noisy = scores[1:, 0].reshape(len(settings.frequencies), -1, scores.shape[-1]).mean(1)
    return np.concatenate([scores[:1, 0], noisy]).astype(np.float32)


def _claims(kinds: set[str], contrast: dict[str, Interval], images: int) -> list[Claim]:
    """The paper's statement about each kind of unit in the model; a model with both kinds gets both, and one holds at most."""
    if not contrast:
        return []
    quantity = "change of accuracy under noise above 0.5π less that below, mean of all bands and severities (percentage points)"
    return [
        Claim.of_sign(
            sign,
            (100 * x for x in contrast["accuracy"]),
            id=f"noise/{kind}",
            statement=statement,
            source="Figure 2b",
            quantity=quantity,
            count=images,
        )
        for kind, (sign, statement) in CLAIMS.items()
        if kind in kinds
    ]


def _heat_map(noises: ImageNoise, batch_errors: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Error rates over the plane of waves; a wave and its conjugate have the same."""
    n = noises.settings.basis
    intervals = share_interval(np.concatenate(batch_errors, axis=1).T)
    plane = [np.concatenate([half, half[:-1][::-1]]).reshape(n, n) for half in intervals]
    frequencies = [2 * cycles / size for cycles, size in zip(noises.cycles, noises.size, strict=True)]
    return {"basis": np.stack(plane), "basis_frequencies": np.stack(frequencies)}


@dataclass(frozen=True, repr=False)
class Noise(Result):
    """A row for each severity and band: accuracy, NLL and their change from the clean images.

    ``frequency`` is the band's centre, ``from`` and ``to`` its ends, in units of π; ``bins`` how many frequencies it holds.
    Accuracies are fractions, NLL in nats; a change is noisy minus clean.  ``rms`` is the root mean square of the change of the
    pixels after clipping, for pixels from 0 to 1.
    ``arrays["per_image/correct"]``: (clean, each band) x images, the mean over severities of 1 for a right answer.
    With ``basis``, ``arrays["basis"]`` holds error rates (value, low, high) x rows x columns, ``arrays["basis_frequencies"]``
    the frequencies of the rows and of the columns in units of π.
    """

    analysis: ClassVar[str] = "noise"
    panels: ClassVar[tuple[str, ...]] = ("accuracy", "nll", "basis")

    def shown(self) -> tuple[str, ...]:
        """Figure 2b, and the heat map beside it where there is one."""
        return tuple(panel for panel in self.panels if panel != "basis" or "basis" in self.arrays)

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 2b with a line for each severity, or the heat map of Yin et al."""
        if panel == "basis":
            self._draw_heat_map(ax)
            return
        score, scale = {"accuracy": ("accuracy_change", 100), "nll": ("nll_change", 1)}[panel]
        import matplotlib as mpl

        from backlight.results import figures as drawing

        severities = sorted({row["severity"] for row in self.table})
        shades = mpl.colormaps["plasma_r"](np.linspace(0.3, 0.85, len(severities)))
        for severity, shade in zip(severities, shades, strict=True):
            rows = sorted((row for row in self.table if row["severity"] == severity), key=lambda row: row["frequency"])
            frequency = [row["frequency"] for row in rows]
            value, low, high = (
                scale * np.array([row[f"{score}{end}"] for row in rows], float) for end in ("", "_low", "_high")
            )
            ax.fill_between(frequency, low, high, color=shade, alpha=0.2, lw=0)
            ax.plot(frequency, value, "o-", color=shade, label=f"size {severity:g}")
        ax.axhline(0, color="0.2", lw=0.6)
        ax.set_xticks([0, 0.5, 1], ["0", "0.5π", "1.0π"])
        ax.set_xticks(np.linspace(0, 1, 11), minor=True)
        ax.set_xlim(0, 1)
        drawing.label(ax, self.chart(panel))
        ax.legend(**drawing.LEGEND)

    def _draw_heat_map(self, ax: Axes) -> None:
        from backlight.results.figures import label

        if "basis" not in self.arrays:
            raise UserError("this result has no heat map over waves; run noise with basis, for instance 15")
        y, x = self.arrays["basis_frequencies"]
        half_y, half_x = (y[1] - y[0]) / 2, (x[1] - x[0]) / 2
        extent = (x[0] - half_x, x[-1] + half_x, y[0] - half_y, y[-1] + half_y)
        image = ax.imshow(100 * self.arrays["basis"][0], origin="lower", extent=extent, cmap="magma", aspect="equal")
        ax.figure.colorbar(image, ax=ax, label="Error (%)", pad=0.02, aspect=30)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks([-1, 0, 1], ["−π", "0", "π"])
        label(ax, self.chart("basis"))
        ax.spines[["top", "right"]].set_visible(True)
