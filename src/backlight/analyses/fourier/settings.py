"""The settings of `fourier`; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass

from backlight.settings import Settings, setting


@dataclass(frozen=True)
class FourierSettings(Settings):
    """How spectra are taken."""

    radial: bool = setting(False, "Average over directions instead of following the diagonal.")
    paper: bool = setting(False, "The authors' bins, which stop short of π.")
