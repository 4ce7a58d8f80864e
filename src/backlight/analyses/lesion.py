"""Lesion study: how much worse is a trained model without one of its units?

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figures 10b and D.4.  A lesion silences a unit's branch, so that the
unit passes the stream on as it came; nothing is trained or re-calibrated afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..anatomy import Unit, evaluating, tensors, units, without
from ..errors import UserError
from ..evidence import evidence
from ..numerics.bootstrap import mean_interval
from ..numerics.calibration import scores
from ..result import Claim, Result, Row, columns
from .calibration import labelled
from .single_pass import described, fit, refuse_other_classes, split

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: What is kept of each image, in this order.
SCORES = ("accuracy", "nll")


def lesion(
    model: nn.Module,
    data: Iterable[Any],
    *,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Lesion:
    """Accuracy and NLL without each unit, and the change from the whole model with a paired 95% interval over images.

    The images are read once; each batch runs once whole and once without each unit.
    Units that cannot be removed are left out and named in the evidence.
    Errors: UserError if the model has no residual units that can be removed, or the data no labels.
    """
    started = time.perf_counter()
    found: list[Unit] = []
    left_out: list[Unit] = []
    kept: list[np.ndarray] = []  # (units + 1, 2, B): correct and NLL, the whole model first
    with evaluating(model), torch.inference_mode():
        for images, labels in split(data):
            images = fit(images, model)
            if not kept:
                refuse_other_classes(next(tensors(model(images[:1]))), data)
                found, left_out = removable(model, images[:2])
            kept.append(np.stack([_scores(model, images, labels, unit) for unit in [None, *found]]))
    if not kept:
        raise UserError("no images: the data are empty")
    seen = np.concatenate(kept, axis=2)
    change = seen - seen[:1]
    own = mean_interval(seen.transpose(2, 0, 1), resamples=resamples, seed=seed)  # (units + 1, 2) each, as below
    paired = mean_interval(change.transpose(2, 0, 1), resamples=resamples, seed=seed)
    table: list[Row] = [{"unit": -1, "kind": "whole", "stage": 0, "module": ""}, *map(described, found)]
    for i, row in enumerate(table):
        for s, score in enumerate(SCORES):
            row |= columns(score, (x[i, s] for x in own)) | columns(f"{score}_change", (x[i, s] for x in paired))
    facts = evidence(model, data, images=seen.shape[2], resamples=resamples, seed=seed) | {
        "seconds": round(time.perf_counter() - started, 3),
        "left_out": [str(unit) for unit in left_out],
        "whole": {score: [float(x[0, s]) for x in own] for s, score in enumerate(SCORES)},
    }
    return Lesion(name or type(model).__name__, table, _claims(found, change[1:, 0], resamples, seed), facts)


def removable(model: nn.Module, images: Tensor) -> tuple[list[Unit], list[Unit]]:
    """The units that can be silenced, and those that cannot.  Errors: UserError if none can."""
    found = units(model, images)
    if not found:
        raise UserError(f"{type(model).__name__} has no residual units, so there is nothing a lesion could leave out")
    chosen = [unit for unit in found if unit.branch]
    if not chosen:
        raise UserError(f"no unit of {type(model).__name__} can be removed: nothing returns what they add")
    return chosen, [unit for unit in found if not unit.branch]


def _scores(model: nn.Module, images: Tensor, labels: Tensor | None, unit: Unit | None) -> np.ndarray:
    """Correct (0 or 1) and NLL of each image.  Shapes: (B, C, H, W), (B,) -> (2, B)."""
    if unit is None:
        logits = next(tensors(model(images)))
    else:
        with without(model, unit):
            logits = next(tensors(model(images)))
    s = scores(*labelled(logits, labels.to(logits.device) if labels is not None else None))
    return np.stack([s.prediction == s.label, s.nll])


def _claims(found: Sequence[Unit], change: np.ndarray, resamples: int, seed: int) -> list[Claim]:
    """Shapes: change in correctness (units, n)."""
    stages = [list(group) for _, group in groupby(enumerate(found), key=lambda pair: pair[1].stage)]
    claims = []

    def claim(differences: list[np.ndarray], statement: str, quantity: str) -> None:
        if differences:
            interval = mean_interval(100 * np.mean(differences, axis=0), resamples=resamples, seed=seed)
            claims.append(Claim.of_sign("negative", interval, statement=statement, source="Figure 10b", quantity=quantity))

    def end_of(stage: list[tuple[int, Unit]]) -> np.ndarray | None:
        """Change without the last attention less the change without the unit of another kind next to it."""
        attentions = [i for i, unit in stage if unit.kind == "attention"]
        others = [i for i, unit in stage if unit.kind != "attention"]
        return change[attentions[-1]] - change[others[-1]] if attentions and others else None

    claim(
        [change[stage[0][0]] - change[stage[-1][0]] for stage in stages if len(stage) > 1],
        "Within a stage, losing the first unit hurts more than losing the last.",
        "accuracy without the first unit less accuracy without the last, mean over stages (percentage points)",
    )
    claim(
        [difference for stage in stages if (difference := end_of(stage)) is not None],
        "At the end of a stage, losing an attention hurts more than losing another unit.",
        "accuracy without a stage's last attention less accuracy without its last other unit (percentage points)",
    )
    return claims


@dataclass(frozen=True)
class Lesion(Result):
    """A row a unit: accuracy and NLL without it, and their change; ``unit`` -1 is the whole model.

    Accuracies are fractions, NLL in nats; a change is without minus whole.
    """

    analysis: ClassVar[str] = "lesion"
    panels: ClassVar[tuple[str, ...]] = ("accuracy",)

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 10b: change in accuracy, a bar a unit, coloured by kind, stages marked."""
        from .. import drawing

        lesions = [row for row in self.table if row["unit"] >= 0]
        drawing.bars(ax, lesions, "accuracy_change", scale=100)
        ax.set_ylabel("Change in accuracy\nwithout the unit (points)")
