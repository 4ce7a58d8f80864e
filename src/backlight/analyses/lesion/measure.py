"""Lesion study: how much worse a trained model is without one of its units.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figures 10b and D.4.  A lesion silences the branch of a unit, so
that the unit leaves the stream unchanged.  The model is neither trained nor recalibrated afterwards.

Zero ablation is out of distribution.  A branch can therefore also be replaced by its mean over the images, which removes what
depends on the image and leaves what is constant; or by the branch of another image, which is in the distribution.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from backlight.analyses.chance import Answers
from backlight.analyses.lesion.distance import distances, rows_of
from backlight.analyses.lesion.settings import LesionSettings
from backlight.analyses.shards import joined, own_parts, refuse_no_shard
from backlight.analyses.single_pass import described
from backlight.errors import NotApplicable, UserError
from backlight.files import PartialResults
from backlight.inputs import checked_labels, first_tensor, image_batches, refuse_no_classifier, to_model
from backlight.numerics.bootstrap import Interval
from backlight.numerics.calibration import scores
from backlight.numerics.proportions import paired_difference_interval, score_intervals
from backlight.results.charts import ChartText
from backlight.results.claim import Claim
from backlight.results.provenance import provenance
from backlight.results.result import Result, Row, columns
from backlight.tracing.attention_maps import AttentionCall, attention_calls, without_head
from backlight.tracing.find import units
from backlight.tracing.hooks import reading, without
from backlight.tracing.replay import Replay
from backlight.tracing.tap import Unit
from backlight.tracing.trace import evaluating, model_name, plain_attention

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What is measured of each image, in this order.
SCORES = ("accuracy", "nll")
#: The groups of units in the summary by position.
GROUPS = ("all", "attention", "others")
#: A parallel unit is attention and something else, so it is in "all" only.
GROUP_OF = {"attention": "attention", "parallel": "all"}

#: What replaces the branch of a unit: (index of a tap in ``unit.branch``, its output) -> the same shape.
Replacement = Callable[[Unit], Callable[[int, Tensor], Tensor]]


def measure(
    model: nn.Module,
    data: Iterable[Any],
    settings: LesionSettings,
    *,
    resamples: int,
    seed: int,
    name: str | None,
    partial_results: PartialResults | None,
    shard: tuple[int, int],
) -> Lesion:
    """The result of `backlight.lesion`."""
    started = time.perf_counter()
    refuse_no_shard(shard)
    if settings.replace == "mean" and iter(data) is data:
        raise UserError("replace='mean' reads the images twice, and an iterator can be read only once; give a list or a loader")
    rows = _measured(model, data, settings, seed, partial_results or PartialResults(None, {}), shard)
    image_scores, lesions = rows.image_scores, rows.lesions
    facts = provenance(model, data, images=image_scores.shape[2], resamples=resamples, seed=seed, **asdict(settings)) | {
        "seconds": round(time.perf_counter() - started, 3),
        "left_out": rows.left_out,
        "missing_rows": rows.missing,
    }
    name = model_name(model, name)
    if settings.by == "similarity":
        table = rows_of([rows.intact, *(lesion.row for lesion in lesions)], image_scores[:, 0], resamples, seed)
        return Lesion(name, table, [], facts, {"per_image/distance": image_scores[:, 0].astype(np.float32)})
    facts |= rows.answers.caution(facts)
    single = [lesion.units[0] for lesion in lesions if lesion.row["lesion"] == "unit"]
    table, whole = _table(rows.intact, lesions, image_scores, resamples, seed)
    facts |= {"whole": whole, "by_position": [] if rows.missing else _by_position(single, image_scores, resamples, seed)}
    correct, nll = image_scores.transpose(1, 0, 2)
    arrays = {"per_image/correct": correct.astype(np.uint8), "per_image/nll": nll.astype(np.float32)}
    claims = [] if rows.missing else _claims(single, correct[1 : len(single) + 1])
    return Lesion(name, table, claims, facts, arrays)


class _Rows(NamedTuple):
    """The rows that are known: of the intact model, and of lesions that this process or another one has measured."""

    intact: Row  # its first columns
    lesions: list[_OneLesion]
    image_scores: np.ndarray  # (lesions + 1, 2 scores or 1 distance, n), the intact model first
    missing: list[int]  # numbers of rows
    left_out: list[str]
    answers: Answers


def _measured(
    model: nn.Module,
    data: Iterable[Any],
    settings: LesionSettings,
    seed: int,
    partial_results: PartialResults,
    shard: tuple[int, int],
) -> _Rows:
    """Row 0 is the intact model, the others are lesions; this process measures its share, and stores it.

    Errors: UserError if there are no images.
    """
    lesions: list[_OneLesion] = []
    own: list[int] = []  # rows
    left_out: list[str] = []
    means: dict[tuple[int, int], Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    answers, scorer = Answers(), _distances if settings.by == "similarity" else _scores
    batch_scores: list[np.ndarray] = []  # (own, 2 scores or 1 distance, B) each
    batches = image_batches(data)
    with evaluating(model), torch.inference_mode():
        for images, labels in _at_least_two(batches) if settings.replace == "resampled" else batches:
            images = to_model(images, model)
            if not batch_scores:
                if settings.by == "accuracy":
                    refuse_no_classifier(model, first_tensor(model(images[:1])), data)
                silenced, left_out = removable(model, images[:2], by_image=settings.replace != "zero")
                lesions = _lesions(model, images[:2], silenced, settings, seed)
                own = own_parts(len(lesions) + 1, shard, partial_results)
                means = _means(model, data, silenced) if settings.replace == "mean" else {}
                replay = Replay(model, images[:2])
                finished = {i: lesions[i - 1].finished_before(replay) for i in own[1:]}
            replacement = _replacement(settings.replace, len(images), means, generator)
            with nullcontext() if replay.own_pass else replay.keeping():
                intact = first_tensor(model(images))
            if replay.own_pass:
                with plain_attention(), replay.keeping():
                    model(images)
            if settings.by == "accuracy":
                answers.add(*checked_labels(intact, labels.to(intact.device) if labels is not None else None))
            rows = [scorer(intact, labels, intact)]
            for i, names in finished.items():
                with replay.handing_back(names), lesions[i - 1].applied(model, replacement):
                    rows.append(scorer(first_tensor(model(images)), labels, intact))
            batch_scores.append(np.stack(rows))
    if not batch_scores:
        raise UserError("no images: the data are empty")
    own_scores = dict(zip(own, np.concatenate(batch_scores, axis=2), strict=True))
    known = joined(own_scores, len(lesions) + 1, partial_results)
    missing = [i for i in range(len(lesions) + 1) if i not in known]
    image_scores = np.stack(list(known.values()))
    return _Rows(_intact_row(lesions), _known(lesions, list(known)), image_scores, missing, left_out, answers)


def removable(model: nn.Module, images: Tensor, *, by_image: bool = False) -> tuple[list[Unit], list[str]]:
    """The units that can be silenced, and those that cannot.  Errors: UserError if none can.

    ``by_image``: only units whose branch can be split by image, along its first axis.
    """
    name = model_name(model)
    all_units = units(model, images)
    if not all_units:
        raise NotApplicable(f"{name} has no residual units, so it has no unit to silence")
    selected = [unit for unit in all_units if unit.branch]
    if not selected:
        raise NotApplicable(f"no unit of {name} can be removed: no module or function returns what it adds")
    if by_image:
        selected = _split_by_image(model, images[:1], selected)
        if not selected:
            raise UserError(f"no branch of {name} can be split by image, along its first axis; use replace='zero'")
    return selected, [str(unit) for unit in all_units if unit not in selected]


# --- the lesions


@dataclass(frozen=True)
class _OneLesion:
    """The first columns of the lesion's row, and the units, or the head, that are silent in it."""

    row: Row
    units: tuple[Unit, ...]
    attention: AttentionCall | None = None
    parts: tuple[int, ...] = ()  # of a pair: the indices of the lesions of each unit

    def finished_before(self, replay: Replay) -> frozenset[str]:
        """The modules that have finished before anything differs from the intact model."""
        taps = [tap for unit in self.units for tap in unit.branch]
        if self.attention is not None or any(tap.side == "function" for tap in taps):
            return frozenset()  # calls of a function are counted from the start of the pass
        return replay.finished(min(replay.moment(tap.module, entered=tap.side == "input") for tap in taps))

    def applied(self, model: nn.Module, replacement: Replacement) -> AbstractContextManager[Any]:
        """Within the block the model has this lesion."""
        if self.attention is not None:
            return without_head(model, self.attention, self.row["head"])
        stack = ExitStack()
        for unit in self.units:
            stack.enter_context(without(model, unit, replacement(unit)))
        return stack


def _lesions(
    model: nn.Module, images: Tensor, silenced: Sequence[Unit], settings: LesionSettings, seed: int
) -> list[_OneLesion]:
    """The lesion of each unit, then of each head, then of pairs of units, as the settings say."""
    more: Row = ({"head": -1} if settings.heads else {}) | ({"other_unit": -1} if settings.pairs else {})
    lesions = [_OneLesion(_row(unit) | more, (unit,)) for unit in silenced]
    if settings.branches:
        lesions += _branches(model, silenced, more)
    if settings.heads:
        calls, _ = attention_calls(model, images)
        if not calls:
            raise UserError(f"{model_name(model)} has no attention whose heads can be silenced; leave out heads")
        for call in calls:
            unit = call.unit(silenced)
            if unit is not None:
                row = {**_row(unit, "head"), "module": call.module, **more}
                lesions += [_OneLesion(row | {"head": head}, (unit,), call) for head in range(call.heads)]
    if settings.pairs:
        pairs = list(itertools.combinations(range(len(silenced)), 2))
        drawn = np.random.default_rng(seed).choice(len(pairs), min(settings.pairs, len(pairs)), replace=False)
        for i, j in (pairs[k] for k in sorted(drawn)):
            row = _row(silenced[i], "pair") | more | {"other_unit": silenced[j].index}
            lesions.append(_OneLesion(row, (silenced[i], silenced[j]), parts=(i, j)))
    return lesions


def _branches(model: nn.Module, silenced: Sequence[Unit], more: Row) -> list[_OneLesion]:
    """The lesion of each kind of branch of each parallel unit.  Errors: UserError if there is no parallel unit."""
    parts = [unit.only(kind) for unit in silenced if unit.kind == "parallel" for kind in dict.fromkeys(unit.kinds)]
    if not parts:
        raise UserError(f"{model_name(model)} has no unit with branches of different kinds; leave out branches")
    return [_OneLesion(_row(part, "branch") | more, (part,)) for part in parts]


def _known(lesions: Sequence[_OneLesion], rows: Sequence[int]) -> list[_OneLesion]:
    """The lesions of these rows; a pair has no parts unless the lesions of both its units are among them."""
    place = {row - 1: i - 1 for i, row in enumerate(rows)}  # of a lesion among all -> among these
    lesions = [lesions[row - 1] for row in rows[1:]]
    return [
        replace(lesion, parts=tuple(place[part] for part in lesion.parts) if place.keys() >= set(lesion.parts) else ())
        for lesion in lesions
    ]


def _row(unit: Unit, lesion: str = "unit") -> Row:
    return described(unit) | {"lesion": lesion}


def _replacement(replace: str, images: int, means: dict[tuple[int, int], Tensor], generator: torch.Generator) -> Replacement:
    """What replaces the branches in a batch."""
    if replace == "zero":
        return lambda unit: lambda i, branch: torch.zeros_like(branch)
    if replace == "mean":
        return lambda unit: (
            lambda i, branch: means[unit.index, i].expand(images, *means[unit.index, i].shape).reshape(branch.shape)
        )
    order = torch.randperm(images, generator=generator)
    other = torch.empty_like(order)
    other[order] = order.roll(1)  # one cycle through all images, so that no image keeps its own branch
    return lambda unit: lambda i, branch: branch.unflatten(0, (images, -1))[other.to(branch.device)].flatten(0, 1)


def _means(model: nn.Module, data: Iterable[Any], silenced: Sequence[Unit]) -> dict[tuple[int, int], Tensor]:
    """The mean over all images of each tap of each branch.  Shapes: -> (k, ...), k parts per image."""
    taps = [(unit.index, i, tap) for unit in silenced for i, tap in enumerate(unit.branch)]
    sums: dict[int, Tensor] = {}
    count = 0

    def add(k: int, activation: Tensor) -> None:
        wide = activation.float() if activation.device.type == "mps" else activation.double()
        total = wide.unflatten(0, (len(images), -1)).sum(0)
        sums[k] = sums[k] + total if k in sums else total

    with reading(model, [tap for *_, tap in taps], add):
        for images, _ in image_batches(data):
            model(to_model(images, model))
            count += len(images)
    return {(unit, i): sums[k] / count for k, (unit, i, _) in enumerate(taps)}


def _split_by_image(model: nn.Module, image: Tensor, candidates: Sequence[Unit]) -> list[Unit]:
    """The units whose branch has the same number of parts for each image, along its first axis.  Shapes: image (1, C, H, W)."""
    shapes: list[dict[int, torch.Size]] = []
    taps = [tap for unit in candidates for tap in unit.branch]
    for copies in (2, 3):
        shapes.append({})
        with reading(model, taps, lambda k, activation: shapes[-1].update({k: activation.shape})):
            model(image.repeat(copies, 1, 1, 1))
    two, three = shapes
    proportional = {tap for k, tap in enumerate(taps) if 3 * two[k][0] == 2 * three[k][0]}
    return [unit for unit in candidates if proportional.issuperset(unit.branch)]


def _at_least_two(batches: Iterator[tuple[Tensor, Tensor | None]]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches, with a batch of one image joined to the one before.  Errors: UserError if the data hold one image."""
    held = next(batches, None)
    for images, labels in batches:
        if held is None or min(len(images), len(held[0])) > 1:
            yield from [held] if held is not None else []
            held = images, labels
        else:
            both = None if labels is None or held[1] is None else torch.cat([held[1], labels])
            held = torch.cat([held[0], images]), both
    if held is not None:
        if len(held[0]) < 2:
            raise UserError(
                "replace='resampled' needs the branch of another image, and there is only one; raise the batch size"
            )
        yield held


# --- the numbers


def _scores(logits: Tensor, labels: Tensor | None, _: Tensor) -> np.ndarray:
    """Correct (0 or 1) and NLL of each image.  Shapes: (B, K), (B,) -> (2, B)."""
    s = scores(*checked_labels(logits, labels.to(logits.device) if labels is not None else None))
    return np.stack([s.prediction == s.label, s.nll])


def _distances(outputs: Tensor, _: Tensor | None, intact: Tensor) -> np.ndarray:
    """How far the output of each image moves.  Shapes: (B, ...) twice -> (1, B)."""
    return distances(outputs.flatten(1), intact.flatten(1))[None]


def _intact_row(lesions: Sequence[_OneLesion]) -> Row:
    """The first columns of the intact model's row."""
    return {key: {"module": "", "lesion": "whole", "kind": "whole", "stage": 0}.get(key, -1) for key in lesions[0].row}


def _table(
    intact: Row, lesions: Sequence[_OneLesion], image_scores: np.ndarray, resamples: int, seed: int
) -> tuple[list[Row], dict[str, list[float]]]:
    """One row per lesion, the intact model first, and the intact model's scores.  Shapes: image_scores (lesions + 1, 2, n)."""
    table: list[Row] = [intact, *(lesion.row for lesion in lesions)]
    own = score_intervals(image_scores, resamples=resamples, seed=seed)
    paired = score_intervals(image_scores, image_scores[:1], resamples=resamples, seed=seed)
    for i, row in enumerate(table):
        for s, score in enumerate(SCORES):
            row |= columns(score, (x[i] for x in own[s])) | columns(f"{score}_change", (x[i] for x in paired[s]))
    for row in table if "other_unit" in intact else []:
        for score in SCORES:
            row |= columns(f"{score}_interaction", [math.nan] * 3)
    pairs = [i for i, lesion in enumerate(lesions, start=1) if lesion.parts]
    if pairs:
        # (pair + intact) - (one + other) is twice a difference of two means of scores
        together = (image_scores[pairs] + image_scores[:1]) / 2
        apart = np.stack([image_scores[[part + 1 for part in lesions[i - 1].parts]].mean(0) for i in pairs])
        interval = score_intervals(together, apart, resamples=resamples, seed=seed)
        for k, i in enumerate(pairs):
            for s, score in enumerate(SCORES):
                table[i] |= columns(f"{score}_interaction", (2 * x[k] for x in interval[s]))
    return table, {score: [float(x[0]) for x in own[s]] for s, score in enumerate(SCORES)}


def _by_position(silenced: Sequence[Unit], image_scores: np.ndarray, resamples: int, seed: int) -> list[Row]:
    """The mean change without a unit at the start, in the middle and at the end of a stage, attentions and others apart.

    Shapes: image_scores (lesions + 1, 2, n), the intact model first, then the units.  The only unit of a stage has no position.
    """
    positions: dict[int, str] = {}
    for _, group in groupby(range(len(silenced)), key=lambda i: silenced[i].stage):
        first, *rest = group
        if rest:
            positions |= {first: "first", **dict.fromkeys(rest[:-1], "middle"), rest[-1]: "last"}
    table: list[Row] = []
    for position, kinds in itertools.product(("first", "middle", "last"), GROUPS):
        selected = [
            i for i, unit in enumerate(silenced, start=1)
            if positions.get(i - 1) == position and kinds in ("all", GROUP_OF.get(unit.kind, "others"))
        ]  # fmt: skip
        if selected:
            mean = image_scores[selected].mean(0, keepdims=True)
            intervals = score_intervals(mean, image_scores[:1], resamples=resamples, seed=seed)
            changes = [columns(f"{score}_change", (x[0] for x in intervals[s])) for s, score in enumerate(SCORES)]
            table.append({"position": position, "of": kinds, "units": len(selected), **changes[0], **changes[1]})
    return table


def _claims(silenced: Sequence[Unit], correct: np.ndarray) -> list[Claim]:
    """Shapes: correct (units, n), whether the model without the unit classifies the image correctly."""
    stages = [list(group) for _, group in groupby(enumerate(silenced), key=lambda pair: pair[1].stage)]
    claims = []

    def claim(name: str, pairs: list[tuple[int, int]], statement: str, quantity: str) -> None:
        if pairs:
            first, second = (correct[list(members)].mean(0) for members in zip(*pairs, strict=True))
            interval = Interval(*(100 * x for x in paired_difference_interval(first, second)))
            about: dict[str, Any] = {
                "id": f"lesion/{name}",
                "statement": statement,
                "source": "Figure 10b",
                "quantity": quantity,
            }
            claims.append(Claim.of_sign("negative", interval, count=correct.shape[1], **about))

    def end_of(stage: list[tuple[int, Unit]]) -> list[tuple[int, int]]:
        """The last attention and the last unit of another kind, if the stage has both."""
        attentions = [i for i, unit in stage if unit.kind == "attention"]
        others = [i for i, unit in stage if unit.kind not in GROUP_OF]
        return [(attentions[-1], others[-1])] if attentions and others else []

    claim(
        "first-unit",
        [(stage[0][0], stage[-1][0]) for stage in stages if len(stage) > 1],
        "Within a stage, losing the first unit hurts more than losing the last.",
        "accuracy without the first unit minus accuracy without the last, mean over stages (percentage points)",
    )
    claim(
        "last-attention",
        [pair for stage in stages for pair in end_of(stage)],
        "At the end of a stage, losing an attention hurts more than losing another unit.",
        "accuracy without a stage's last attention minus accuracy without its last other unit (percentage points)",
    )
    return claims


@dataclass(frozen=True, repr=False)
class Lesion(Result):
    """One row per lesion: accuracy and NLL with it, and the change from the intact model, which is the row of ``unit`` -1.

    ``lesion`` is what is silent: a "unit", a "branch" of a parallel unit, a "head" of its attention, or a "pair" of units.  The
    ``_interaction`` of a pair is its change minus the changes of the two single lesions.  Accuracies are fractions, NLL in
    nats; a change is the value without the unit minus that of the intact model.  ``provenance["by_position"]``: the mean
    change by position in the stage.  ``arrays["per_image/correct"]``, 1 for a right answer, and ``["per_image/nll"]``: rows x
    images.  With ``by="similarity"`` there is ``distance`` instead: 1 minus the cosine between the outputs with the lesion and
    without.
    """

    analysis: ClassVar[str] = "lesion"
    panels: ClassVar[tuple[str, ...]] = ("accuracy", "position")

    def singles(self) -> list[Row]:
        """The rows of single units."""
        return [row for row in self.table if row["unit"] >= 0 and row.get("lesion", "unit") == "unit"]

    def _draw(self, ax: Axes, panel: str) -> None:
        """``accuracy``: figure 10b, one bar per unit, coloured by kind, stages marked.  ``position``: means by position."""
        if panel == "position":
            self._draw_positions(ax)
            return
        from backlight.results import figures as drawing

        if "distance" in self.table[0]:
            drawing.bars(ax, self.singles(), "distance")
        else:
            drawing.bars(ax, self.singles(), "accuracy_change", scale=100)
        drawing.label(ax, self.chart(panel))

    def chart(self, panel: str) -> ChartText:
        """The words of a panel; without labels it shows distances."""
        return super().chart("distance" if panel == "accuracy" and "distance" in self.table[0] else panel)

    def _draw_positions(self, ax: Axes) -> None:
        """Bars by position in the stage, for attentions and for other units."""
        from backlight.results import figures as drawing

        colours = {"attention": drawing.KIND_COLOUR["attention"], "others": drawing.KIND_COLOUR["conv"]}
        rows = [row for row in self.provenance.get("by_position", []) if row["of"] in colours]
        for x, position in enumerate(("first", "middle", "last")):
            bars = [row for row in rows if row["position"] == position]
            for k, row in enumerate(bars):
                value, low, high = (100 * float(row[f"accuracy_change{end}"] or 0) for end in ("", "_low", "_high"))
                centre = x + 0.4 * (k - (len(bars) - 1) / 2)
                ax.bar(centre, value, width=0.36, color=colours[row["of"]])
                ax.errorbar(centre, value, [[value - low], [high - value]], fmt="none", ecolor="0.2", elinewidth=0.7)
        shown = [group for group in colours if any(row["of"] == group for row in rows)]
        for group in shown:
            ax.bar(0, 0, color=colours[group], label=group)
        ax.axhline(0, color="0.2", lw=0.6)
        ax.set_xticks([0, 1, 2], ["first", "middle", "last"])
        ax.set_xlim(-0.6, 2.6)
        drawing.label(ax, self.chart("position"))
        if shown:
            ax.legend(**drawing.LEGEND)
