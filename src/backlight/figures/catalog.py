"""The figures of Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), by number: what each shows, and of what.

Two are ours: they take figures 2a and 8 apart, which are relative to the mean of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from backlight.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from backlight.study.folder import Model


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper."""

    number: str
    shows: str
    analyses: tuple[str, ...]  # results that a model needs to be in it
    drawn_by: str  # module:function, of the models that are in it
    charts: tuple[str, ...]  # keys of `CHARTS`, from left to right; one if every panel is of the same kind

    def function(self) -> Callable[[Sequence[Model]], Figure]:
        """What draws it; it imports matplotlib."""
        module, _, name = self.drawn_by.partition(":")
        return getattr(import_module(f"backlight.figures.{module}"), name)


SPECTRA = "Density of the largest Hessian eigenvalues of each mini-batch, negative and positive."
FIGURES = {
    figure.number: figure
    for figure in (
        PaperFigure(
            "1a",
            "The loss around the trained weights, without and with decay.",
            ("landscape",),
            "surfaces:draw",
            ("landscape/surface",),
        ),
        PaperFigure(
            "1b", f"{SPECTRA}  A CNN and a ViT.", ("hessian",), "spectra:draw", ("hessian/negative", "hessian/positive")
        ),
        PaperFigure(
            "2a", "Δ log amplitude by frequency, a curve a unit.", ("fourier",), "panels:amplitudes", ("fourier/spectrum",)
        ),
        PaperFigure(
            "2a-transfer",
            "Ours: log amplitude after a unit less that before it.",
            ("fourier",),
            "panels:transfers",
            ("fourier/transfer",),
        ),
        PaperFigure("2b", "Change of accuracy by the frequency of noise.", ("noise",), "noise:draw", ("noise/accuracy",)),
        PaperFigure(
            "4", f"{SPECTRA}  All images and a few.", ("hessian",), "spectra:draw", ("hessian/negative", "hessian/positive")
        ),
        PaperFigure(
            "5",
            "Test error against training NLL.",
            ("calibration", "landscape"),
            "points:error_and_nll",
            ("models/error_and_nll",),
        ),
        PaperFigure(
            "6",
            f"{SPECTRA}  Class token and average pooling.",
            ("hessian",),
            "spectra:draw",
            ("hessian/negative", "hessian/positive"),
        ),
        PaperFigure(
            "7",
            "Error against training NLL, and the spectra, by the neighbourhood of attention.",
            ("calibration", "landscape", "hessian"),
            "points:locality",
            ("models/error_and_nll", "hessian/negative", "hessian/positive"),
        ),
        PaperFigure(
            "8",
            "Δ log amplitude at the highest frequency by depth.",
            ("fourier",),
            "panels:highest_amplitude",
            ("fourier/depth",),
        ),
        PaperFigure(
            "8-parts",
            "Ours: the steps of figure 8, of mean and highest frequency.",
            ("fourier",),
            "panels:steps",
            ("fourier/steps",),
        ),
        PaperFigure("9", "Variance of feature maps by depth.", ("variance",), "panels:variances", ("variance/depth",)),
        PaperFigure("10a", "CKA between units.", ("similarity",), "panels:similarities", ("similarity/matrix",)),
        PaperFigure("10b", "Change of accuracy without a unit.", ("lesion",), "panels:lesions", ("lesion/accuracy",)),
        PaperFigure("12a", "Accuracy by the number of attentions.", ("calibration",), "points:build_up", ("models/build_up",)),
        PaperFigure(
            "12b",
            "Accuracy under corruptions against accuracy.",
            ("calibration", "corruption"),
            "points:robustness",
            ("models/robustness",),
        ),
    )
}


def figure_of(number: str) -> PaperFigure:
    """The figure of this number.  Errors: UserError if it is not drawn here."""
    if number not in FIGURES:
        raise UserError(f"no figure is numbered {number!r}{did_you_mean(number, FIGURES)}; there are {', '.join(FIGURES)}")
    return FIGURES[number]
