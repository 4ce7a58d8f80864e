"""The settings of `calibration`; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass

from backlight.analyses.entry import BINS
from backlight.settings import Settings, setting


@dataclass(frozen=True)
class CalibrationSettings(Settings):
    """Bins, and whether a temperature is fitted."""

    bins: int = setting(BINS, "Bins of the reliability diagram and of ECE.", least=1)
    temperature: bool = setting(False, "Fit a temperature on half of the images; metrics on the other half.")
