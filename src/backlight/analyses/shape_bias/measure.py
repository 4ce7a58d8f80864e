"""Shape bias: which of the two a model follows where outline and fill of a drawing disagree.

The question is that of Geirhos et al., "ImageNet-trained CNNs are biased towards texture" (2019), asked on our own drawings
(``shapes``).  Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), read their figure 2 as an answer: attention follows
shape, convolution texture.
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

from backlight.data.cue_conflict import OUTLINES, SPLITS, outlines, textures
from backlight.data.sampling import stratified
from backlight.errors import UserError
from backlight.inputs import first_tensor, image_batches, refuse_no_classifier, to_model
from backlight.numerics.proportions import ratio_interval
from backlight.results.provenance import provenance
from backlight.results.result import Result, Row, columns
from backlight.tracing.trace import evaluating, model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def measure(
    model: nn.Module, data: Iterable[Any], *, resamples: int = 1000, seed: int = 0, name: str | None = None
) -> ShapeBias:
    """The result of `backlight.shape_bias`."""
    started = time.perf_counter()
    record = getattr(data, "provenance", {})
    if record.get("data") != "shapes" or record.get("split") != "conflict":
        raise UserError("shape bias needs images whose outline and fill disagree; give the data shapes, split conflict")
    all_rows = np.arange(SPLITS["conflict"])
    limit = record.get("limit")
    rows = stratified(outlines("conflict", all_rows), limit, record["seed"]) if limit else all_rows
    batch_answers = []
    with evaluating(model), torch.inference_mode():
        for images, _ in image_batches(data):
            logits = first_tensor(model(to_model(images, model)))
            refuse_no_classifier(model, logits, data)
            batch_answers.append(logits.argmax(1).cpu().numpy())
    answers = np.concatenate(batch_answers)
    table = bias_table(answers, outlines("conflict", rows), textures("conflict", rows))
    facts = provenance(model, data, images=len(answers), resamples=resamples, seed=seed)
    return ShapeBias(model_name(model, name), table, [], facts | {"seconds": round(time.perf_counter() - started, 3)})


def bias_table(answers: NDArray[np.int64], outline: NDArray[np.int64], texture: NDArray[np.int64]) -> list[Row]:
    """The bias and the shares of all answers, over all images and for each outline.  Shapes: (N,) x 3 -> 1 + 8 rows."""
    by_shape, by_texture = answers == outline, answers == texture
    either, every = by_shape | by_texture, np.ones_like(by_shape)
    counted = np.stack([by_shape, by_shape, by_texture, ~either]), np.stack([either, every, every, every])  # (4, N) each
    table: list[Row] = []
    for name, members in zip(("all", *OUTLINES), (every, *(outline == k for k in range(len(OUTLINES)))), strict=True):
        interval = ratio_interval(*((count & members).T for count in counted))
        row: Row = {"outline": name, "images": int(members.sum())}
        for m, share in enumerate(SHARES):
            row |= columns(share, (end[m] for end in interval))
        table.append(row)
    return table


SHARES = ("shape_bias", "by_shape", "by_texture", "by_neither")


@dataclass(frozen=True, repr=False)
class ShapeBias(Result):
    """A row for all images, and one for each outline.

    ``shape_bias`` is by_shape / (by_shape + by_texture), NaN if no answer follows either; the others are shares of images.
    """

    analysis: ClassVar[str] = "shape_bias"
    panels: ClassVar[tuple[str, ...]] = ("bias",)

    def _draw(self, ax: Axes, panel: str) -> None:
        """The bias for each outline and, as a dashed line, over all of them, as Geirhos et al. draw it."""
        rows = self.table[1:]
        value, low, high = (np.array([row[f"shape_bias{end}"] for row in rows]) for end in ("", "_low", "_high"))
        y = np.arange(len(rows))[::-1]
        ax.errorbar(value, y, xerr=np.abs([value - low, high - value]), fmt="o", color="#0072B2", elinewidth=0.8)
        overall = self.table[0]
        ax.axvline(overall["shape_bias"], color="0.2", lw=0.8, ls="--")
        ax.axvspan(overall["shape_bias_low"], overall["shape_bias_high"], color="0.2", alpha=0.12, lw=0)
        ax.set(xlim=(-0.02, 1.02), xlabel="Shape bias (0: by texture, 1: by shape)")
        ax.set_yticks(y, [row["outline"] for row in rows])
