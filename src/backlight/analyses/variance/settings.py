"""The settings of `variance`; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backlight.settings import Settings, setting

Over = Literal["space", "samples"]


@dataclass(frozen=True)
class VarianceSettings(Settings):
    """What the variance is taken over."""

    over: Over = setting("space", "What the variance is taken over; the paper: space.", choices=("space", "samples"))
    normalise: bool = setting(False, "Divide by the stream's mean square.")
