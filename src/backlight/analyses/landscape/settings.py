"""The settings of `landscape`; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass

from backlight.analyses.entry import BINS, ObjectiveSettings
from backlight.errors import UserError
from backlight.settings import setting

#: Words in the names of parameters that random directions do not move, besides biases and norms; from the authors'
#: ``losslandscape.ipynb``.
IGNORED = ("pos_embed", "relative_position")


@dataclass(frozen=True)
class LandscapeSettings(ObjectiveSettings):
    """The plane, its size, and the loss over it."""

    grid: int = setting(21, "Points along each direction.", least=3, odd=True)
    radius: float = setting(1.0, "Distance from the centre to the edge, in units of the directions.", above=0)
    dimensions: int = setting(2, "Directions: 1 for a line, 2 for a plane.", least=1, most=2)
    directions: str = setting("random", "What the directions are.", choices=("random", "eigenvectors", "path"))
    snapshots: tuple[str, ...] = setting(
        (), "Earlier models of this training, in order.", metavar="MODEL...", repeat=True, loads="weights"
    )
    normalise: str | None = setting(
        None, "Length of a direction; default: filter by filter for random directions.", choices=("filter", "none")
    )
    ignore: tuple[str, ...] = setting(IGNORED, "Parameters whose name holds one of these words do not move at random.")
    precision: str = setting("float32", "Type of numbers in the forward passes.", choices=("float32", "bfloat16"))
    paper: bool = setting(False, "The authors' normalisation and weight decay.")
    bins: int = setting(BINS, "Bins of ECE.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.paper and self.directions != "random":
            raise UserError(f"directions is {self.directions!r}; with paper it must be random, as the authors' directions are")
