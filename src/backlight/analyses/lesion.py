"""Lesion study: how much worse is a trained model without one of its units?

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figures 10b and D.4.  A lesion silences a unit's branch, so that the
unit passes the stream on as it came; nothing is trained or re-calibrated afterwards.

Zero is a value that the units behind may never have seen.  So a branch can also be replaced by its mean over the images, which
takes away what it says of an image and leaves what it says of all; or by the branch of another image, which the units behind
have seen the like of.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..anatomy import Unit, evaluating, reading, tensors, units, without
from ..attending import Attention, attentions, without_head
from ..errors import UserError, did_you_mean
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
#: What takes the place of a branch.
REPLACEMENTS = ("zero", "mean", "resampled")
#: What the summary by position tells apart, and the kinds in each.
GROUPS = ("all", "attention", "others")

#: What the unit adds instead: (which of its taps, what that returned) -> the same shape.
Instead = Callable[[Unit], Callable[[int, Tensor], Tensor]]


def lesion(
    model: nn.Module,
    data: Iterable[Any],
    *,
    replace: str = "zero",
    heads: bool = False,
    pairs: int = 0,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Lesion:
    """Accuracy and NLL without each unit, and the change from the whole model with a paired 95% interval over images.

    ``replace``: a branch becomes "zero", its "mean" over the images, or is "resampled", that of another image of its batch.
    ``heads`` silences the heads of each attention too, one at a time; ``pairs`` so many pairs of units, drawn if there are
    more.  The images are read once (with "mean" twice); each batch runs once whole and once for each lesion.
    Units that cannot be removed are left out and named in the evidence.
    Errors: UserError if the model has no residual units that can be removed, or the data no labels.
    """
    started = time.perf_counter()
    refuse_unknown(replace, heads, pairs)
    if replace == "mean" and iter(data) is data:
        raise UserError("replace='mean' reads the images twice, and these can be read once: give a list or a loader")
    cuts: list[_Cut] = []
    left_out: list[str] = []
    means: dict[tuple[int, int], Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    kept: list[np.ndarray] = []  # (lesions + 1, 2, B): correct and NLL, the whole model first
    with evaluating(model), torch.inference_mode():
        for images, labels in _at_least_two(split(data)) if replace == "resampled" else split(data):
            images = fit(images, model)
            if not kept:
                refuse_other_classes(next(tensors(model(images[:1]))), data)
                found, left_out = removable(model, images[:2], whole_batches=replace != "zero")
                cuts = _cuts(model, images[:2], found, heads, pairs, seed)
                means = _means(model, data, found) if replace == "mean" else {}
            instead = _instead(replace, len(images), means, generator)
            kept.append(
                np.stack([_scores(model, images, labels), *(_scores(model, images, labels, cut, instead) for cut in cuts)])
            )
    if not kept:
        raise UserError("no images: the data are empty")
    seen = np.concatenate(kept, axis=2)
    single = [cut for cut in cuts if cut.row["lesion"] == "unit"]
    change = seen[1 : len(single) + 1] - seen[:1]  # (units, 2, n)
    table, whole = _table(cuts, seen, resamples, seed)
    settings = {"replace": replace, "heads": heads, "pairs": pairs}
    facts = evidence(model, data, images=seen.shape[2], resamples=resamples, seed=seed, **settings) | {
        "seconds": round(time.perf_counter() - started, 3),
        "left_out": left_out,
        "whole": whole,
        "by_position": _by_position([cut.units[0] for cut in single], change, resamples, seed),
    }
    claims = _claims([cut.units[0] for cut in single], change[:, 0], resamples, seed)
    return Lesion(name or type(model).__name__, table, claims, facts)


def removable(model: nn.Module, images: Tensor, *, whole_batches: bool = False) -> tuple[list[Unit], list[str]]:
    """The units that can be silenced, and those that cannot.  Errors: UserError if none can.

    ``whole_batches``: their branches must be a tensor of so many equal parts an image, one image after the other.
    """
    found = units(model, images)
    if not found:
        raise UserError(f"{type(model).__name__} has no residual units, so there is nothing a lesion could leave out")
    chosen = [unit for unit in found if unit.branch]
    if not chosen:
        raise UserError(f"no unit of {type(model).__name__} can be removed: nothing returns what they add")
    if whole_batches:
        chosen = _by_images(model, images[:1], chosen)
        if not chosen:
            raise UserError(f"no branch of {type(model).__name__} can be told apart by images: replace it by zero")
    return chosen, [str(unit) for unit in found if unit not in chosen]


def refuse_unknown(replace: str, heads: bool, pairs: int) -> None:
    """Errors: UserError for settings that mean nothing."""
    if replace not in REPLACEMENTS:
        raise UserError(
            f"a branch is replaced by {', '.join(REPLACEMENTS)}, not {replace!r}{did_you_mean(replace, REPLACEMENTS)}"
        )
    if heads and replace != "zero":
        raise UserError(f"heads are silenced, not replaced: heads and replace={replace!r} do not go together")
    if pairs < 0:
        raise UserError(f"pairs is how many pairs of units are silenced, not {pairs}")


# --- what is cut


@dataclass(frozen=True)
class _Cut:
    """A lesion: its row's first columns, and the units, or the head, that are silent in it."""

    row: Row
    units: tuple[Unit, ...]
    attention: Attention | None = None
    parts: tuple[int, ...] = ()  # of a pair: which lesions its units are by themselves

    def made(self, model: nn.Module, instead: Instead) -> AbstractContextManager[Any]:
        """Within the block the model has this lesion."""
        if self.attention is not None:
            return without_head(model, self.attention, self.row["head"])
        stack = ExitStack()
        for unit in self.units:
            stack.enter_context(without(model, unit, instead(unit)))
        return stack


def _cuts(model: nn.Module, images: Tensor, found: Sequence[Unit], heads: bool, pairs: int, seed: int) -> list[_Cut]:
    """Each unit, then each head if wanted, then pairs of units."""
    more: Row = ({"head": -1} if heads else {}) | ({"other_unit": -1} if pairs else {})
    cuts = [_Cut(_row(unit) | more, (unit,)) for unit in found]
    if heads:
        attending, _ = attentions(model, images)
        if not attending:
            raise UserError(f"{type(model).__name__} has no attention whose heads could be silenced; leave out heads")
        for attention in attending:
            unit = attention.unit(found)
            if unit is not None:
                row = {**_row(unit, "head"), "module": attention.module, **more}
                cuts += [_Cut(row | {"head": h}, (unit,), attention) for h in range(attention.heads)]
    if pairs:
        several = list(itertools.combinations(range(len(found)), 2))
        drawn = np.random.default_rng(seed).choice(len(several), min(pairs, len(several)), replace=False)
        for k in sorted(drawn):
            i, j = several[k]
            row = _row(found[i], "pair") | more | {"other_unit": found[j].index}
            cuts.append(_Cut(row, (found[i], found[j]), parts=(i, j)))
    return cuts


def _row(unit: Unit, what: str = "unit") -> Row:
    return described(unit) | {"lesion": what}


def _instead(replace: str, images: int, means: dict[tuple[int, int], Tensor], generator: torch.Generator) -> Instead:
    """What takes the place of the branches in a batch."""
    if replace == "zero":
        return lambda unit: lambda i, branch: torch.zeros_like(branch)
    if replace == "mean":
        return lambda unit: (
            lambda i, branch: means[unit.index, i].expand(images, *means[unit.index, i].shape).reshape(branch.shape)
        )
    order = torch.randperm(images, generator=generator)
    another = torch.empty_like(order)
    another[order] = order.roll(1)  # one ring through all images: nobody keeps its own
    return lambda unit: lambda i, branch: branch.unflatten(0, (images, -1))[another.to(branch.device)].flatten(0, 1)


def _means(model: nn.Module, data: Iterable[Any], found: Sequence[Unit]) -> dict[tuple[int, int], Tensor]:
    """The mean over all images of what each tap of each unit returns.  Shapes: -> (k, ...), k parts an image."""
    places = [(unit.index, i, tap) for unit in found for i, tap in enumerate(unit.branch)]
    sums: dict[int, Tensor] = {}
    seen = 0

    def look(place: int, activation: Tensor) -> None:
        wide = activation.float() if activation.device.type == "mps" else activation.double()
        total = wide.unflatten(0, (len(images), -1)).sum(0)
        sums[place] = sums[place] + total if place in sums else total

    with reading(model, [tap for *_, tap in places], look):
        for images, _ in split(data):
            model(fit(images, model))
            seen += len(images)
    return {(unit, i): sums[k] / seen for k, (unit, i, _) in enumerate(places)}


def _by_images(model: nn.Module, image: Tensor, found: Sequence[Unit]) -> list[Unit]:
    """The units whose branches grow along the first axis, in whole parts, with the images.  Shapes: image (1, C, H, W)."""
    shapes: list[dict[int, torch.Size]] = []
    taps = [tap for unit in found for tap in unit.branch]
    for copies in (2, 3):
        shapes.append({})
        with reading(model, taps, lambda k, activation: shapes[-1].update({k: activation.shape})):
            model(image.repeat(copies, 1, 1, 1))
    two, three = shapes
    good = {tap for k, tap in enumerate(taps) if 3 * two[k][0] == 2 * three[k][0]}
    return [unit for unit in found if good.issuperset(unit.branch)]


def _at_least_two(batches: Iterator[tuple[Tensor, Tensor | None]]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches, an image that is alone in one put with those before it.  Errors: UserError if it is alone in the data."""
    held = next(batches, None)
    for images, labels in batches:
        if held is None or len(images) > 1:
            yield from [held] if held is not None else []
            held = images, labels
        else:
            both = None if labels is None or held[1] is None else torch.cat([held[1], labels])
            held = torch.cat([held[0], images]), both
    if held is not None:
        if len(held[0]) < 2:
            raise UserError("replace='resampled' takes the branch of another image, and there is none: raise the batch size")
        yield held


# --- the numbers


def _scores(
    model: nn.Module, images: Tensor, labels: Tensor | None, cut: _Cut | None = None, instead: Instead | None = None
) -> np.ndarray:
    """Correct (0 or 1) and NLL of each image.  Shapes: (B, C, H, W), (B,) -> (2, B)."""
    if cut is None or instead is None:
        logits = next(tensors(model(images)))
    else:
        with cut.made(model, instead):
            logits = next(tensors(model(images)))
    s = scores(*labelled(logits, labels.to(logits.device) if labels is not None else None))
    return np.stack([s.prediction == s.label, s.nll])


def _table(cuts: Sequence[_Cut], seen: np.ndarray, resamples: int, seed: int) -> tuple[list[Row], dict[str, list[float]]]:
    """A row a lesion, the whole model first, and what the whole model scores.  Shapes: seen (lesions + 1, 2, n)."""
    nobody = {key: {"module": "", "lesion": "whole", "kind": "whole", "stage": 0}.get(key, -1) for key in cuts[0].row}
    table: list[Row] = [nobody, *(cut.row for cut in cuts)]
    change = seen - seen[:1]
    own, paired = (mean_interval(x.transpose(2, 0, 1), resamples=resamples, seed=seed) for x in (seen, change))
    for i, row in enumerate(table):
        for s, score in enumerate(SCORES):
            row |= columns(score, (x[i, s] for x in own)) | columns(f"{score}_change", (x[i, s] for x in paired))
    for row in table if "other_unit" in nobody else []:
        for score in SCORES:
            row |= columns(f"{score}_interaction", [math.nan] * 3)
    together = [i for i, cut in enumerate(cuts, start=1) if cut.parts]
    if together:
        apart = [change[i] - sum(change[part + 1] for part in cuts[i - 1].parts) for i in together]
        found = mean_interval(np.stack(apart).transpose(2, 0, 1), resamples=resamples, seed=seed)
        for k, i in enumerate(together):
            for s, score in enumerate(SCORES):
                table[i] |= columns(f"{score}_interaction", (x[k, s] for x in found))
    return table, {score: [float(x[0, s]) for x in own] for s, score in enumerate(SCORES)}


def _by_position(found: Sequence[Unit], change: np.ndarray, resamples: int, seed: int) -> list[Row]:
    """The mean change without a unit at the start, in the middle and at the end of a stage, attentions and others apart.

    Shapes: change (units, 2, n).  A unit that is a stage by itself is at no position.
    """
    where: dict[int, str] = {}
    for _, group in groupby(range(len(found)), key=lambda i: found[i].stage):
        first, *rest = group
        if rest:
            where |= {first: "first", **dict.fromkeys(rest[:-1], "middle"), rest[-1]: "last"}
    table: list[Row] = []
    for position, kinds in itertools.product(("first", "middle", "last"), GROUPS):
        here = [
            i for i, unit in enumerate(found)
            if where.get(i) == position and kinds in ("all", "attention" if unit.kind == "attention" else "others")
        ]  # fmt: skip
        if here:
            mean = mean_interval(change[here].mean(0).T, resamples=resamples, seed=seed)
            numbers = [columns(f"{score}_change", (x[s] for x in mean)) for s, score in enumerate(SCORES)]
            table.append({"position": position, "of": kinds, "units": len(here), **numbers[0], **numbers[1]})
    return table


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
    """A row a lesion: accuracy and NLL with it, and their change; ``unit`` -1 is the whole model.

    ``lesion`` says what was silenced: a "unit", a "head" of its attention, or a "pair" of units, whose ``_interaction`` is
    its change less the changes without each of both.  Accuracies are fractions, NLL in nats; a change is without minus whole.
    ``evidence["by_position"]``: the mean change by the unit's position in its stage.
    """

    analysis: ClassVar[str] = "lesion"
    panels: ClassVar[tuple[str, ...]] = ("accuracy", "position")

    def singles(self) -> list[Row]:
        """The rows of single units."""
        return [row for row in self.table if row["unit"] >= 0 and row.get("lesion", "unit") == "unit"]

    def _draw(self, ax: Axes, panel: str) -> None:
        """``accuracy``: figure 10b, a bar a unit, coloured by kind, stages marked.  ``position``: their means by position."""
        if panel == "position":
            self._draw_positions(ax)
            return
        from .. import drawing

        drawing.bars(ax, self.singles(), "accuracy_change", scale=100)
        ax.set_ylabel("Change in accuracy\nwithout the unit (points)")

    def _draw_positions(self, ax: Axes) -> None:
        """Bars by position in the stage, attentions beside others."""
        from .. import drawing

        colours = {"attention": drawing.KIND_COLOUR["attention"], "others": drawing.KIND_COLOUR["conv"]}
        rows = [row for row in self.evidence.get("by_position", []) if row["of"] in colours]
        for x, position in enumerate(("first", "middle", "last")):
            here = [row for row in rows if row["position"] == position]
            for k, row in enumerate(here):
                value, low, high = (100 * float(row[f"accuracy_change{end}"] or 0) for end in ("", "_low", "_high"))
                centre = x + 0.4 * (k - (len(here) - 1) / 2)
                ax.bar(centre, value, width=0.36, color=colours[row["of"]])
                ax.errorbar(centre, value, [[value - low], [high - value]], fmt="none", ecolor="0.2", elinewidth=0.7)
        shown = [group for group in colours if any(row["of"] == group for row in rows)]
        for group in shown:
            ax.bar(0, 0, color=colours[group], label=group)
        ax.axhline(0, color="0.2", lw=0.6)
        ax.set_xticks([0, 1, 2], ["first", "middle", "last"])
        ax.set(xlabel="Position in the stage", ylabel="Mean change in accuracy\nwithout the unit (points)", xlim=(-0.6, 2.6))
        if shown:
            ax.legend(**drawing.LEGEND)
