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
    by: str = setting(
        "accuracy", "What is measured: accuracy and NLL, or without labels how far the output embedding moves.",
        choices=("accuracy", "similarity"),
    )  # fmt: skip
    heads: bool = setting(False, "Silence single heads too.")
    branches: bool = setting(False, "Silence the branches of parallel units one at a time too.")
    pairs: int = setting(0, "Silence this many pairs of units too.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("heads", "branches"):
            if getattr(self, name) and self.replace != "zero":
                raise UserError(f"{name} needs replace='zero', and replace is {self.replace!r}; leave out {name} or replace")
        if self.pairs and self.by == "similarity":
            raise UserError("pairs needs by='accuracy', because distances do not add up; leave out pairs or by")
