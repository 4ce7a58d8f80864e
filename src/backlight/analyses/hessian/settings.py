"""The settings of `hessian`; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass

from backlight.analyses.entry import ObjectiveSettings
from backlight.errors import UserError
from backlight.settings import setting


@dataclass(frozen=True)
class HessianSettings(ObjectiveSettings):
    """Which eigenvalues, of which loss."""

    top: int = setting(5, "Eigenvalues of each mini-batch, by magnitude.", least=1)
    tol: float = setting(1e-3, "Relative error of an eigenvalue.", above=0)
    by: str | None = setting(None, "kind: also the blocks of all attentions, all convolutions, ...", choices=("kind",))
    paper: bool = setting(False, "Power iteration as in PyHessian, which can be wrong.")
    together: int = setting(1, "Mini-batches at once, for a GPU that one does not fill.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.paper and self.together > 1:
            raise UserError(f"together is {self.together}; the paper's power iteration takes 1 mini-batch at a time")
