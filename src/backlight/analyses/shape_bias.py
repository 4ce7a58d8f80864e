"""Shape bias: where outline and fill of a drawing disagree, which of the two does a model go by?

The question of Geirhos et al., "ImageNet-trained CNNs are biased towards texture" (2019), on drawings of our own (``shapes``);
Park & Kim read their figure 2 as the same: attention goes by shape, convolution by texture.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..anatomy import evaluating, tensors
from ..data import stratified
from ..errors import UserError
from ..evidence import evidence
from ..numerics.bootstrap import statistic_interval
from ..result import Result, Row, columns
from ..shapes import OUTLINES, SPLITS, outlines, textures
from .single_pass import fit, refuse_other_classes, split

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def shape_bias(
    model: nn.Module, data: Iterable[Any], *, resamples: int = 1000, seed: int = 0, name: str | None = None
) -> ShapeBias:
    """Of the decisions for the shape's or the texture's class, the share for the shape's, with a 95% interval over images.

    ``data`` are ``load_data("shapes", split="conflict", model=model)``; the model was trained on ``shapes``.
    Errors: UserError for other data, or a model of other classes.
    """
    started = time.perf_counter()
    facts = getattr(data, "evidence", {})
    if facts.get("data") != "shapes" or facts.get("split") != "conflict":
        raise UserError("shape bias is read where outline and fill disagree: give the data shapes, split conflict")
    everything = np.arange(SPLITS["conflict"])
    limit = facts.get("limit")
    rows = stratified(outlines("conflict", everything), limit, facts["seed"]) if limit else everything
    guessed = []
    with evaluating(model), torch.inference_mode():
        for images, _ in split(data):
            logits = next(tensors(model(fit(images, model))))
            refuse_other_classes(logits, data)
            guessed.append(logits.argmax(1).cpu().numpy())
    guess = np.concatenate(guessed)
    table = bias_table(guess, outlines("conflict", rows), textures("conflict", rows), resamples, seed)
    found = evidence(model, data, images=len(guess), resamples=resamples, seed=seed)
    return ShapeBias(name or type(model).__name__, table, [], found | {"seconds": round(time.perf_counter() - started, 3)})


def bias_table(
    guess: NDArray[np.int64], outline: NDArray[np.int64], texture: NDArray[np.int64], resamples: int, seed: int
) -> list[Row]:
    """The bias and the shares of all decisions, over all images and for each outline.  Shapes: (N,) x 3 -> 1 + 8 rows."""
    by_shape, by_texture = guess == outline, guess == texture
    of = np.stack([np.ones_like(by_shape), *(outline == k for k in range(len(OUTLINES)))])  # (9, N)
    counted = np.stack([by_shape, by_texture, np.ones_like(by_shape)])[:, None] * of  # (3, 9, N)

    def shares(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        shape, texture, images = counted @ weights
        with np.errstate(invalid="ignore"):
            return np.stack([shape / (shape + texture), shape / images, texture / images, 1 - (shape + texture) / images])

    found = statistic_interval(shares, len(guess), resamples=resamples, seed=seed, within=(0, 1))
    return [
        {"outline": name, "images": int(of[k].sum())}
        | {key: value for m, metric in enumerate(DECISIONS) for key, value in columns(metric, (x[m, k] for x in found)).items()}
        for k, name in enumerate(("all", *OUTLINES))
    ]


DECISIONS = ("shape_bias", "by_shape", "by_texture", "by_neither")


@dataclass(frozen=True)
class ShapeBias(Result):
    """A row for all images and one an outline.

    ``shape_bias`` is by_shape / (by_shape + by_texture), NaN where no decision was for either; the others are shares of images.
    """

    analysis: ClassVar[str] = "shape_bias"
    panels: ClassVar[tuple[str, ...]] = ("bias",)

    def _draw(self, ax: Axes, panel: str) -> None:
        """The bias for each outline and, dashed, over all of them, as Geirhos et al. draw it."""
        rows = self.table[1:]
        value, low, high = (np.array([row[f"shape_bias{end}"] for row in rows]) for end in ("", "_low", "_high"))
        at = np.arange(len(rows))[::-1]
        ax.errorbar(value, at, xerr=np.abs([value - low, high - value]), fmt="o", color="#0072B2", elinewidth=0.8)
        whole = self.table[0]
        ax.axvline(whole["shape_bias"], color="0.2", lw=0.8, ls="--")
        ax.axvspan(whole["shape_bias_low"], whole["shape_bias_high"], color="0.2", alpha=0.12, lw=0)
        ax.set(xlim=(-0.02, 1.02), xlabel="Shape bias (0: by texture, 1: by shape)")
        ax.set_yticks(at, [row["outline"] for row in rows])
