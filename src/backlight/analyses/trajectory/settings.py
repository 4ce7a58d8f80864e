"""The settings of `trajectory`; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass

from backlight.analyses.entry import ObjectiveSettings
from backlight.errors import UserError
from backlight.settings import setting


@dataclass(frozen=True)
class TrajectorySettings(ObjectiveSettings):
    """The path, and the loss surface over its plane."""

    snapshots: tuple[str, ...] = setting(
        (), "Earlier models of this training, in order.", metavar="MODEL...", repeat=True, loads="weights"
    )
    grid: int = setting(0, "Points along each axis of the loss surface in the plane, an odd number; 0: no surface.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid and (self.grid < 3 or self.grid % 2 == 0):
            raise UserError(f"grid is {self.grid}; it must be odd, at least 3, or 0 for no surface")
