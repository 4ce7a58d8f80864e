"""The settings of `adversarial`; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backlight.errors import UserError
from backlight.settings import Settings, setting

Norm = Literal["linf", "l2"]

#: Bounds in 1/255 of a pixel's range; robustness is usually reported at 8 on CIFAR and at 4 on ImageNet.  A length over all
#: pixels and channels grows with their number, so those of "l2" are larger.
EPSILONS: dict[str, tuple[float, ...]] = {"linf": (1.0, 2.0, 4.0, 8.0), "l2": (32.0, 64.0, 128.0, 256.0)}


@dataclass(frozen=True)
class AdversarialSettings(Settings):
    """The attacks."""

    epsilons: tuple[float, ...] | None = setting(
        None, "Bounds, in 1/255 of a pixel's range; default: 1, 2, 4, 8, with --norm l2 32, 64, 128, 256.", above=0
    )
    norm: Norm = setting("linf", "What the bounds limit: the largest change of a pixel, or the length of the change.",
                         choices=("linf", "l2"))  # fmt: skip
    steps: int = setting(10, "Steps of PGD.", least=1)
    step_size: float | None = setting(None, "Of PGD, in 1/255; default: 2.5 epsilon / steps.", above=0)
    random_start: bool = setting(True, "Start PGD at a random point within the bound.")
    targeted: bool = setting(False, "Attack towards another class, not away from the label.")
    band: tuple[float, ...] | None = setting(
        None, "Change only these frequencies, in units of π.", metavar="FROM,TO", least=0, most=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        largest = max(self.epsilons_or_default)
        if self.norm == "linf" and largest > 255:
            raise UserError(f"epsilons has {largest:g}; in units of 1/255 a pixel cannot change by more than 255")
        if self.band is not None and not (len(self.band) == 2 and self.band[0] < self.band[1]):
            numbers = ", ".join(f"{end:g}" for end in self.band)
            raise UserError(f"band is {numbers}; it must be two numbers from 0 to 1 (in units of π), the first the smaller")

    @property
    def epsilons_or_default(self) -> tuple[float, ...]:
        """The epsilons, or their default."""
        return self.epsilons or EPSILONS[self.norm]
