"""The settings of `similarity`; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass

from backlight.settings import Settings, setting


@dataclass(frozen=True)
class SimilaritySettings(Settings):
    """What is compared."""

    other: str | None = setting(None, "Compare with the units of this model.", metavar="MODEL", loads="model", own_pass=True)
    branch: bool = setting(False, "Compare what units add, instead of the stream after them.", own_pass=True)
