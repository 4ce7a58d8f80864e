"""The settings of `erf`; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass

from backlight.errors import UserError
from backlight.settings import Settings, setting


@dataclass(frozen=True)
class ErfSettings(Settings):
    """How the size of a receptive field is measured."""

    shares: tuple[float, ...] = setting(
        (0.2, 0.3, 0.5, 0.99), "Shares of the field that the squares hold; 1 is all of it.", above=0, most=1
    )
    paper: bool = setting(False, "RepLKNet's numbers: the logarithm of the field, and its squares, without intervals.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shares:
            raise UserError("shares is empty; give one share at least, such as 0.5")
