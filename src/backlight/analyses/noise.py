"""Noise by frequency: which frequencies does a model need undisturbed?

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figure 2b: x + F⁻¹(F(δ) ⊙ M), with δ white noise and M a band of
frequencies.  Their mask is not symmetric under conjugation, so their noise is complex and loses a part of its energy with its
imaginary part; here noise is real, and added to pixels in [0, 1] rather than to what the model's normalisation makes of them.
The heat map over single waves is that of Yin et al., "A Fourier Perspective on Model Robustness in Computer Vision" (2019).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..anatomy import evaluating, tensors, units
from ..errors import UserError
from ..evidence import device_of, dtype_of, evidence
from ..numerics.bands import band, bins, of_spectrum, root_mean_square, signs, wave
from ..numerics.bootstrap import Interval, mean_interval
from ..pixels import PixelSpace, pixel_space
from ..result import Claim, Result, Row, Sign, columns
from .calibration import labelled
from .single_pass import fit, refuse_other_classes, split

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The centres of the bands of figure 2b, in units of pi.
FREQUENCIES = tuple(k / 10 for k in range(1, 10))
#: Root mean square of the noise in pixels, which run from 0 to 1.
SEVERITIES = (0.025, 0.05, 0.1)
#: Root mean square of the white noise before the mask.  A band 0.1 pi wide holds a tenth of its energy on average, so that the
#: mean energy over the bands is that of the severities above.
PAPER_SEVERITIES = (0.08, 0.16, 0.32)
#: What is kept of each image, in this order.
SCORES = ("accuracy", "nll", "rms")
CLAIMS: dict[str, tuple[Sign, str]] = {
    "attention": (
        "positive",
        "Attention suffers from low frequencies: noise there costs more accuracy than noise in high ones.",
    ),
    "conv": ("negative", "Convolutions suffer from high frequencies: noise there costs more accuracy than noise in low ones."),
}


def noise(
    model: nn.Module,
    data: Iterable[Any],
    *,
    frequencies: Sequence[float] = FREQUENCIES,
    width: float = 0.1,
    severities: Sequence[float] | None = None,
    paper: bool = False,
    clip: bool = True,
    basis: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Noise:
    """Accuracy and NLL under noise of each band and severity, and their change with paired 95% intervals over images.

    ``frequencies`` are the centres of the bands and ``width`` their width, in units of pi per pixel.  A severity is the root
    mean square of every image's noise in pixels, the same in each band; with ``paper`` that of the white noise before the
    mask, so that each frequency gets the same amplitude and a band of more frequencies more energy.  ``clip`` keeps noisy
    pixels in [0, 1].  ``basis`` adds the heat map: so many waves a side, an odd number, each at the middle severity.
    ``mean`` and ``std`` say how the images were normalised, where the data do not.  The noise of an image depends on ``seed``
    and on its position in the data alone.
    Errors: UserError if a setting makes no sense for these images, or the data have no labels.
    """
    started = time.perf_counter()
    asked = Asked(
        tuple(frequencies), width, tuple(severities or (PAPER_SEVERITIES if paper else SEVERITIES)), paper, clip, basis
    )
    asked.check()
    space = pixel_space(data, mean, std)
    kept: list[np.ndarray] = []  # (1 + bands * severities, 3, B): the clean images first, then severities within bands
    waves: list[np.ndarray] = []  # (N * N // 2 + 1, B): wrong or not
    with evaluating(model), torch.inference_mode():
        for images, labels in split(data):
            pixels = in_pixels(images.to(device_of(model)), space)
            clean = next(tensors(model(fit(images, model))))
            clean, labels = labelled(clean, labels.to(clean.device) if labels is not None else None)
            if not kept:
                refuse_other_classes(clean, data)
                kinds = {unit.kind for unit in units(model, fit(images[:2], model))}
                field = Field(asked, (int(images.shape[-2]), int(images.shape[-1])), pixels.device, seed)
            refuse_other_size(images, field.size)
            answer = answering(model, space)
            found = [graded(clean, labels, torch.zeros_like(pixels))]
            for noisy in field.banded(pixels):
                found.append(graded(answer(noisy), labels, noisy - pixels))
            if basis:
                wrong = [1 - graded(answer(noisy), labels)[0] for noisy in field.waving(pixels)]
                waves.append(torch.stack(wrong).bool().cpu().numpy())
            kept.append(torch.stack(found).cpu().numpy())
            field.position += len(images)
    if not kept:
        raise UserError("no images: the data are empty")
    seen = np.concatenate(kept, axis=2)
    facts = evidence(
        model, data, images=seen.shape[2], resamples=resamples, seed=seed,
        frequencies=list(asked.frequencies), width=width, severities=list(asked.severities), paper=paper, clip=clip,
        basis=basis, mean=list(space.mean), std=list(space.std),
    )  # fmt: skip
    table, clean_scores = _table(asked, field, seen, resamples, seed)
    contrast = _contrast(asked, seen[1:] - seen[:1], resamples, seed)
    facts |= {
        "seconds": round(time.perf_counter() - started, 3),
        "clean": clean_scores,
        "kinds": sorted(kinds),
        "high_less_low": {score: [float(x) for x in interval] for score, interval in contrast.items()},
    }
    arrays = _heat_map(field, waves, resamples, seed) if basis else {}
    return Noise(name or type(model).__name__, table, _claims(asked, kinds, contrast), facts, arrays)


@dataclass(frozen=True)
class Asked:
    """The settings of the noise."""

    frequencies: tuple[float, ...]
    width: float
    severities: tuple[float, ...]
    paper: bool
    clip: bool
    basis: int

    def check(self) -> None:
        """Errors: UserError for what makes no sense whatever the images."""
        if not self.width > 0:
            raise UserError(f"width is that of a band in units of pi and must be above 0, got {self.width:g}")
        if not self.frequencies:
            raise UserError("noise needs at least one frequency, the centre of a band in units of pi")
        for centre in self.frequencies:
            if not (centre - self.width / 2 >= -1e-9 and centre + self.width / 2 <= 1 + 1e-9):
                raise UserError(
                    f"the band of width {self.width:g}π around {centre:g}π reaches beyond 0 to 1π, where all frequencies of an "
                    "image lie: move or narrow it"
                )
        for severity in self.severities:
            if not 0 < severity < float("inf"):
                raise UserError(
                    f"a severity is the size of the noise in pixels from 0 to 1 and must be above 0, got {severity:g}"
                )
        if self.basis and (self.basis < 3 or self.basis % 2 == 0):
            raise UserError(
                f"basis is the number of waves along a side of the heat map, an odd one from 3 (0 for none), got {self.basis}"
            )

    def bands(self) -> list[tuple[float, float]]:
        """Where each band begins and ends, in units of pi."""
        ends = ((f - self.width / 2, f + self.width / 2) for f in self.frequencies)
        return [(max(0.0, round(low, 12)), min(1.0, round(high, 12))) for low, high in ends]  # 0.15, not 0.15000000000000002


class Field:
    """The noise of the images from ``position`` on.  Errors: UserError if a band holds none of their frequencies."""

    def __init__(self, asked: Asked, size: tuple[int, int], device: torch.device, seed: int) -> None:
        self.asked, self.size, self.seed, self.position = asked, size, seed, 0
        self.masks = [band(size, low, high, device) for low, high in asked.bands()]
        for centre, (low, high), mask in zip(asked.frequencies, asked.bands(), self.masks, strict=True):
            if not mask.any():
                raise UserError(
                    f"images of {size[0]} x {size[1]} have no frequency in the band {low:g}π to {high:g}π around {centre:g}π: "
                    f"give a width of {2 / max(size):.2g} or more, and frequencies that leave it room"
                )
        self.cycles = [np.linspace(-(n // 2), n // 2, asked.basis).round().astype(int) for n in size] if asked.basis else []
        if any(len(set(k.tolist())) < asked.basis for k in self.cycles):
            raise UserError(
                f"images of {size[0]} x {size[1]} have no {asked.basis} different frequencies along a side: "
                f"give a basis of {2 * (min(size) // 2) + 1} or less"
            )

    def banded(self, pixels: Tensor) -> Iterator[Tensor]:
        """Noisy pixels, severities within bands; the noise of a band is the same for each severity but for its size."""
        white = signs(self._positions(pixels), pixels.shape[1:], seed=self.seed).to(pixels.dtype)
        spectrum = torch.fft.rfft2(white)
        for mask in self.masks:
            field = self._of_band(spectrum, mask)
            for severity in self.asked.severities:
                yield self._added(pixels, field, severity)

    def waving(self, pixels: Tensor) -> Iterator[Tensor]:
        """Pixels with one wave each, rows within the upper half of the plane; a random sign an image and channel."""
        severity = middle(self.asked.severities)
        for stream, cycles in enumerate(self.half_plane(), 1):
            sign = signs(self._positions(pixels), (pixels.shape[1], 1, 1), seed=self.seed, stream=stream)
            field = wave(self.size, cycles).to(pixels)
            yield self._added(pixels, sign.to(pixels.dtype) * field, severity)

    def half_plane(self) -> list[tuple[int, int]]:
        """Cycles along rows and columns of one of each wave and its conjugate: up to and with the centre of the map."""
        rows, columns_ = (k.tolist() for k in self.cycles)
        everywhere = [(y, x) for y in rows for x in columns_]
        return everywhere[: len(everywhere) // 2 + 1]

    def _of_band(self, spectrum: Tensor, mask: Tensor) -> Tensor:
        """Of root mean square 1 in every image; with ``paper`` as much of the white noise as the mask leaves."""
        field = of_spectrum(spectrum, mask, self.size[1])
        return field if self.asked.paper else field.div_(root_mean_square(field).view(-1, 1, 1, 1))

    def _added(self, pixels: Tensor, field: Tensor, severity: float) -> Tensor:
        noisy = torch.add(pixels, field, alpha=severity)
        return noisy.clamp_(0, 1) if self.asked.clip else noisy

    def _positions(self, pixels: Tensor) -> Tensor:
        return torch.arange(self.position, self.position + len(pixels), device=pixels.device)


# --- pixels and answers


def in_pixels(images: Tensor, space: PixelSpace) -> Tensor:
    """Images as pixels.  Errors: UserError if they are not within [0, 1], so that the normalisation cannot be theirs."""
    if not len(space.mean) == len(space.std) == images.shape[1]:
        raise UserError(
            f"mean and std have {len(space.mean)} and {len(space.std)} numbers, and the images {images.shape[1]} channels: "
            "give a number a channel each"
        )
    pixels = space.pixels(images if images.dtype in (torch.float32, torch.float64) else images.float())
    low, high = pixels.aminmax()
    if not (low > -0.01 and high < 1.01):
        raise UserError(
            f"with mean {space.mean} and std {space.std} undone the images run from {low:.3g} to {high:.3g} and not within "
            "0 and 1: give the mean and std that they were normalised with"
        )
    return pixels


def answering(model: nn.Module, space: PixelSpace) -> Callable[[Tensor], Tensor]:
    """The model's logits as a function of pixels."""
    dtype = dtype_of(model)
    return lambda pixels: next(tensors(model(space.images(pixels).to(dtype))))


def graded(logits: Tensor, labels: Tensor, change: Tensor | None = None) -> Tensor:
    """Correct (0 or 1), NLL and, of a change of the pixels, its root mean square, for each image.

    Shapes: (B, K), (B,), (B, C, H, W) -> (2 or 3, B), on the model's device: nothing waits for it.
    """
    logs = (logits.float() if logits.device.type == "mps" else logits.double()).log_softmax(1)
    rows = [(logits.argmax(1) == labels).to(logs.dtype), -logs.gather(1, labels[:, None]).squeeze(1)]
    return torch.stack(rows if change is None else [*rows, root_mean_square(change).to(logs.dtype)])


def refuse_other_size(images: Tensor, size: tuple[int, int]) -> None:
    """Errors: UserError if images are not of the size of the first ones."""
    if tuple(images.shape[-2:]) != size:
        sizes = " and ".join(f"{h} x {w}" for h, w in (size, images.shape[-2:]))
        raise UserError(f"the data hold images of {sizes}, which have different frequencies; bring them to one size")


def middle(severities: Sequence[float]) -> float:
    """The one that the heat map takes."""
    return sorted(severities)[len(severities) // 2]


# --- what was found


def _table(asked: Asked, field: Field, seen: np.ndarray, resamples: int, seed: int) -> tuple[list[Row], dict[str, list[float]]]:
    """A row a severity and band; and the clean images' scores.  Shapes: seen (1 + bands * severities, 3, n)."""
    own = mean_interval(seen.transpose(2, 0, 1), resamples=resamples, seed=seed)
    paired = mean_interval((seen - seen[:1]).transpose(2, 0, 1), resamples=resamples, seed=seed)
    table: list[Row] = []
    for k, b in itertools.product(range(len(asked.severities)), range(len(asked.frequencies))):
        severity, i = asked.severities[k], 1 + b * len(asked.severities) + k
        low, high = asked.bands()[b]
        row: Row = {"severity": severity, "frequency": asked.frequencies[b], "width": asked.width, "from": low, "to": high}
        row["bins"] = bins(field.masks[b], field.size[1])
        for s, score in enumerate(SCORES):
            row |= columns(score, (x[i, s] for x in own))
            if score != "rms":
                row |= columns(f"{score}_change", (x[i, s] for x in paired))
        table.append(row)
    return table, {score: [float(x[0, s]) for x in own] for s, score in enumerate(SCORES[:2])}


def _contrast(asked: Asked, change: np.ndarray, resamples: int, seed: int) -> dict[str, Interval]:
    """How much less high frequencies cost than low ones: the mean change above 0.5 pi less that below, over all severities.

    Shapes: change (bands * severities, 3, n).  Nothing if there are no bands on both sides.
    """
    low, high = (np.repeat([side * (f - 0.5) > 1e-9 for f in asked.frequencies], len(asked.severities)) for side in (-1, 1))
    if not (low.any() and high.any()):
        return {}
    difference = change[high].mean(0) - change[low].mean(0)
    return {score: mean_interval(difference[s], resamples=resamples, seed=seed) for s, score in enumerate(SCORES[:2])}


def _claims(asked: Asked, kinds: set[str], contrast: dict[str, Interval]) -> list[Claim]:
    """The paper's statement for each kind of unit that the model has: of one that has both, they say whose it resembles."""
    if not contrast:
        return []
    quantity = "change of accuracy under noise above 0.5π less that below, mean of all bands and severities (percentage points)"
    return [
        Claim.of_sign(sign, (100 * x for x in contrast["accuracy"]), statement=statement, source="Figure 2b", quantity=quantity)
        for kind, (sign, statement) in CLAIMS.items()
        if kind in kinds
    ]


def _heat_map(field: Field, waves: list[np.ndarray], resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Error rates over the whole plane of waves, a wave and its conjugate the same."""
    n = field.asked.basis
    found = mean_interval(np.concatenate(waves, axis=1).T, resamples=resamples, seed=seed)
    whole = [np.concatenate([half, half[:-1][::-1]]).reshape(n, n) for half in found]
    at = [2 * k / size for k, size in zip(field.cycles, field.size, strict=True)]
    return {"basis": np.stack(whole), "basis_frequencies": np.stack(at)}


@dataclass(frozen=True)
class Noise(Result):
    """A row a severity and band: accuracy, NLL and their change from the clean images.

    ``frequency`` is the band's centre, ``from`` and ``to`` its ends, in units of pi; ``bins`` how many frequencies it holds.
    Accuracies are fractions, NLL in nats; a change is noisy minus clean.  ``rms`` is the root mean square of what the noise
    really changed, after clipping, in pixels from 0 to 1.
    ``arrays["basis"]``, if asked for: error rates (value, low, high) x rows x columns; ``arrays["basis_frequencies"]``: the
    frequencies of the rows and of the columns in units of pi.
    """

    analysis: ClassVar[str] = "noise"
    panels: ClassVar[tuple[str, ...]] = ("accuracy", "nll", "basis")

    def figure(self) -> Figure:
        """Figure 2b; with the heat map beside it where there is one."""
        from .. import drawing

        panels = [panel for panel in self.panels if panel != "basis" or "basis" in self.arrays]
        with drawing.paper_style():
            figure, axes = drawing.paper_figure(len(panels))
            for ax, panel in zip(axes, panels, strict=True):
                self.draw(ax, panel)
            drawing.title(figure, self.model)
        return figure

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 2b, a line a severity, and the heat map of Yin et al."""
        if panel == "basis":
            self._draw_heat_map(ax)
            return
        score, scale, label = {
            "accuracy": ("accuracy_change", 100, "Change in accuracy (points)"),
            "nll": ("nll_change", 1, "Change in NLL (nats)"),
        }[panel]
        import matplotlib as mpl

        from .. import drawing

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
        ax.set(xlabel="Frequency of the noise", ylabel=label, xlim=(0, 1))
        ax.legend(**drawing.LEGEND)

    def _draw_heat_map(self, ax: Axes) -> None:
        if "basis" not in self.arrays:
            raise UserError("this result has no heat map over waves: run noise with basis, for instance 15")
        y, x = self.arrays["basis_frequencies"]
        half_y, half_x = (y[1] - y[0]) / 2, (x[1] - x[0]) / 2
        extent = (x[0] - half_x, x[-1] + half_x, y[0] - half_y, y[-1] + half_y)
        shown = ax.imshow(100 * self.arrays["basis"][0], origin="lower", extent=extent, cmap="magma", aspect="equal")
        ax.figure.colorbar(shown, ax=ax, label="Error (%)", pad=0.02, aspect=30)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks([-1, 0, 1], ["−π", "0", "π"])
        ax.set(xlabel="Horizontal frequency", ylabel="Vertical frequency")
        ax.spines[["top", "right"]].set_visible(True)
