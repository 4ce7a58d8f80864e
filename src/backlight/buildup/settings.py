"""The settings of a build-up search; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass

from backlight.errors import UserError
from backlight.settings import Settings, setting

#: What a search may resume with another value of: the trainings that are complete stay valid.
CHANGEABLE = ("margin", "patience", "controls", "minutes")


@dataclass(frozen=True, kw_only=True)
class SearchSettings(Settings):
    """How candidates are built, trained and compared."""

    held_out: float = setting(0.1, "Share of the training images that candidates are compared on.", least=0, below=1)
    seeds: tuple[int, ...] = setting((0, 1, 2), "Train each candidate with each seed; 2 or fewer keep nothing.", least=0)
    heads: int | None = setting(None, "Heads of each attention; default: 3 x the branch's width / dim_head.", least=1)
    dim_head: int = setting(64, "Channels of a head.", least=1)
    window: int = setting(7, "Side of the attention windows.", least=1)
    margin: float = setting(0.0, "Gain of accuracy, as a fraction, that the interval must lie above.", least=0, below=1)
    patience: int = setting(0, "Further candidates in a stage after one is rejected.", least=0)
    controls: bool = setting(True, "Train kept candidates again, with as many parameters as the convolutions had.")
    minutes: float | None = setting(None, "Budget of training time in minutes, over all starts.", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            listed = ", ".join(map(str, self.seeds)) or "empty"
            raise UserError(f"seeds is {listed}; a build-up needs one seed or more, each given once")
        if not self.held_out:
            raise UserError(
                "held_out is 0; a build-up selects by accuracy, so accuracy on the same images is too high: "
                "hold some training images out, --held-out 0.1"
            )
