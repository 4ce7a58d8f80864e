"""The settings of `lesion`; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass

from backlight.errors import UserError
from backlight.settings import Settings, setting


@dataclass(frozen=True)
class LesionSettings(Settings):
    """What is silenced, and how."""

    replace: str = setting(
        "zero", "What replaces a branch: zero, its mean over the images, or the branch of another image.",
        choices=("zero", "mean", "resampled"),
    )  # fmt: skip
    heads: bool = setting(False, "Silence single heads too.")
    pairs: int = setting(0, "Silence this many pairs of units too.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads and self.replace != "zero":
            raise UserError(f"heads needs replace='zero', and replace is {self.replace!r}; leave out heads or replace")
