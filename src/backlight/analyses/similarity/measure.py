"""Similarity: the units that represent the images alike, and whether the stages of a model stand out as blocks.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figures 10a and D.3: mini-batch CKA (Nguyen et al. 2021) between
the stream after each unit and the stream after each other unit.  There a multi-stage model shows one block per stage, like a
series of small models.

Block structure is measured by a number: the mean CKA of two units of the same stage minus that of two units of different
stages.  In any model CKA falls with the distance in depth, and units of the same stage are closer to each other.  A second
number therefore compares pairs of units at equal distance.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from backlight.analyses.similarity.settings import SimilaritySettings
from backlight.analyses.single_pass import Reads, Streams, alone, described, find_streams, unreadable
from backlight.errors import UserError
from backlight.inputs import image_batches, to_model
from backlight.numerics.bootstrap import Interval
from backlight.numerics.cka import LEAST, Array, cka, gram, hsic
from backlight.numerics.student import jackknife_interval
from backlight.results.claim import Claim
from backlight.results.provenance import provenance, weights_sha256
from backlight.results.result import Result, Row, columns
from backlight.tracing.hooks import reading
from backlight.tracing.layout import grid
from backlight.tracing.tap import Tap
from backlight.tracing.trace import evaluating, model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Intervals are over mini-batches; a long run's in this many groups to twice as many, so that memory is constant.
GROUPS = 128
BLOCKS = (
    "similarity/blocks",
    "Units are more alike within a stage than across stages: the model behaves like a series of small models.",
    "Figure 10a",
    "mean CKA of two units of the same stage minus that of two units of different stages",
)
MATCHED = (
    "similarity/blocks-at-equal-distance",
    "At equal distance in depth, units are still more alike within a stage than across stages.",
    "A control of figure 10a",
    "mean CKA of two units of the same stage minus that of units at the same distance in different stages",
)


def measure(
    model: nn.Module,
    data: Iterable[Any],
    *,
    other: nn.Module | None,
    branch: bool,
    at: Sequence[str] | None,
    other_at: Sequence[str] | None,
    resamples: int,
    seed: int,
    name: str | None,
    other_name: str | None,
) -> Similarity:
    """The result of `backlight.similarity`."""
    other_name = None if other is None else other_name or type(other).__name__
    settings = SimilaritySettings(other=other_name, branch=branch)
    if other is None and not branch:
        return alone(Grams, settings, model, data, at=at, name=name, resamples=resamples, seed=seed)
    if branch and (at or other_at):
        raise UserError("branch compares what units add, and at names modules to read instead of units; give one of the two")
    started = time.perf_counter()
    models = [model] if other is None else [model, other]
    readable: list[list[tuple[Row, Tap]]] = []  # of each model
    left_out: list[str] = []
    grams: dict[tuple[int, int], Tensor] = {}  # (model, tap) -> (B, B)
    dependence, images_read = Dependence(), 0

    def reader(m: int) -> Callable[[int, Tensor], None]:
        def read(tap: int, activation: Tensor) -> None:
            grams[m, tap] = gram(grid(activation, readable[m][tap][1].layout))  # type: ignore[arg-type]

        return read

    with ExitStack() as stack, torch.inference_mode():
        for network in models:
            stack.enter_context(evaluating(network))
        for images, _ in image_batches(data):
            if not readable:
                for m, (network, paths) in enumerate(zip(models, (at, other_at), strict=False)):
                    taps, unread = _readable(network, find_streams(network, to_model(images[:2], network), paths), branch)
                    readable.append(taps)
                    left_out += unread
                    stack.enter_context(reading(network, [tap for _, tap in taps], reader(m)))
            if len(images) >= LEAST:
                for network in models:
                    network(to_model(images, network))
            dependence.add(len(images), [grams[key] for key in sorted(grams)])
            grams.clear()
            images_read += len(images)
    if not readable:
        raise UserError("no images: the data are empty")
    facts = provenance(
        model, data, images=images_read, resamples=resamples, seed=seed, at=list(at) if at else None, **asdict(settings)
    ) | {"seconds": round(time.perf_counter() - started, 3), "left_out": left_out}
    if other is not None:
        facts["other"] = {
            "name": other_name,
            "weights_sha256": weights_sha256(other),
            "at": list(other_at) if other_at else None,
        }
    units, *others = ([row for row, _ in taps] for taps in readable)
    return _result(model_name(model, name), units, others[0] if others else None, dependence, facts)


class Grams:
    """Takes the (B, B) inner products of the images at each tap, and adds up their HSIC."""

    analysis: ClassVar[str] = "similarity"
    reads: ClassVar[Reads] = "stream"

    def __init__(self, streams: Streams, settings: SimilaritySettings) -> None:
        self.units = [unit for unit, _, _ in streams.rows()]
        self.order = [after for _, _, after in streams.rows()]
        self.batch: dict[int, Tensor] = {}
        self.dependence = Dependence()

    def read(self, tap: int, maps: Tensor) -> None:
        """Multiply the images of a batch with each other.  Shapes: maps (B, C, h, w)."""
        if len(maps) >= LEAST and tap in self.order:
            self.batch[tap] = gram(maps)

    def finish(self, logits: Tensor, labels: Tensor | None) -> None:
        """Add the HSIC of a batch."""
        self.dependence.add(len(logits), [self.batch[tap] for tap in self.order] if self.batch else [])
        self.batch.clear()

    def result(self, model: str, provenance: dict[str, Any], resamples: int, seed: int) -> Similarity:
        """CKA for all images, with intervals over mini-batches, which need no resamples."""
        return _result(model, self.units, None, self.dependence, provenance)


class Dependence:
    """HSIC of all pairs of units, summed over mini-batches with the number of images as weight.

    In a long run neighbouring mini-batches are summed in groups.
    """

    def __init__(self) -> None:
        self.groups: list[Array] = []  # (U, U) each
        self.sizes: list[int] = []  # mini-batches in each group
        self.largest = 1  # mini-batches in a full group
        self.too_small = 0  # images in mini-batches that have no estimate

    def add(self, images: int, grams: Sequence[Tensor]) -> None:
        """Add a mini-batch.  Shapes: U tensors (B, B)."""
        if images < LEAST:
            self.too_small += images
            return
        weighted = images * hsic(torch.stack(list(grams)).cpu().double().numpy())  # one copy from the device
        if self.sizes and self.sizes[-1] < self.largest:
            self.groups[-1] += weighted
            self.sizes[-1] += 1
            return
        if len(self.groups) == 2 * GROUPS:
            self.groups = [self.groups[i] + self.groups[i + 1] for i in range(0, 2 * GROUPS, 2)]
            self.sizes = [self.sizes[i] + self.sizes[i + 1] for i in range(0, 2 * GROUPS, 2)]
            self.largest *= 2
        self.groups.append(weighted)
        self.sizes.append(1)

    def by_group(self) -> Array:
        """The sum of each group.  Shapes: -> (groups, U, U).  Errors: UserError if every batch was too small."""
        if not self.groups:
            raise UserError(
                f"similarity compares the images of a batch with each other and needs at least {LEAST}: raise the batch size"
            )
        return np.stack(self.groups)


def _readable(model: nn.Module, streams: Streams, branch: bool) -> tuple[list[tuple[Row, Tap]], list[str]]:
    """The units that can be read, each with the tap of its stream or branch, and the units that cannot."""
    if not branch:
        return [(row, streams.taps[after]) for row, _, after in streams.rows()], unreadable(streams)
    units = [unit for unit in streams.units if len(unit.branch) == 1 and unit.branch[0].layout]
    if not units:
        raise UserError(f"no unit of {model_name(model)} returns what it adds as a map; compare streams, without branch")
    return [(described(unit), unit.branch[0]) for unit in units], [str(unit) for unit in streams.units if unit not in units]


# --- the numbers


def _result(
    name: str,
    units: Sequence[Row],
    others: Sequence[Row] | None,
    dependence: Dependence,
    facts: dict[str, Any],
) -> Similarity:
    """Shapes: of two models ``dependence`` holds the units of both, the first model's first."""
    groups = dependence.by_group()
    rows, across = range(len(units)), range(len(units), groups.shape[1]) if others is not None else range(len(units))
    square = cka(groups.sum(0))
    stages = [row["stage"] if row["unit"] >= 0 and square[i, i] > 0 else -1 for i, row in enumerate(units)]
    contrasts = [] if others is not None else [_contrast(stages, matched) for matched in (False, True)]
    without = cka(groups.sum(0) - groups)  # each group
    ends = np.clip(jackknife_interval(square, without), -1, 1)
    matrix = ends[:, rows][:, :, across]
    table = [
        unit | {f"other_{key}": entry for key, entry in partner.items()} | columns("cka", matrix[:, i, j])
        for i, unit in enumerate(units)
        for j, partner in enumerate(others if others is not None else units)
        if others is not None or i < j
    ]
    facts |= {
        "rows": list(units),  # of the matrix
        "columns": list(others if others is not None else units),
        "batches": sum(dependence.sizes),
        "images_in_batches_below_4": dependence.too_small,
        "interval_over": f"mini-batches, in {len(dependence.sizes)} groups" if dependence.largest > 1 else "mini-batches",
        "same_for_all_images": [
            f"the stream at unit {row['unit']} ({row['module']}) is the same for all images: its CKA is 0/0"
            for row, own in zip([*units, *(others or [])], np.diagonal(square), strict=True)
            if np.isnan(own)
        ],
    }
    claims = [
        _claim(*text, _contrasted(contrast, square, without), sum(dependence.sizes))
        for text, contrast in zip((BLOCKS, MATCHED), contrasts, strict=False)
        if contrast.any()
    ]
    return Similarity(name, table, claims, facts, {"cka": matrix})


def _contrast(stages: Sequence[int], matched: bool) -> Array:
    """The weight of each CKA in the block structure: 1 in all for pairs within a stage, -1 in all for pairs across stages.

    ``matched``: each pair within a stage is compared with the pairs across stages at the same distance in depth, and left out
    if there are none.  Stage -1 has weight 0: the stem, and streams that are the same for all images.
    Shapes: U -> (U, U); all zero if there is nothing to compare.
    """
    stage, position = np.array(stages), np.arange(len(stages))
    counted = (position[:, None] < position) & (stage[:, None] >= 0) & (stage >= 0)
    same = stage[:, None] == stage
    distances = position - position[:, None] if matched else np.zeros_like(same, int)
    weights = np.zeros(same.shape)
    for distance in np.unique(distances[counted]):
        pairs = counted & (distances == distance)
        within, across = pairs & same, pairs & ~same
        if within.any() and across.any():
            weights += within - across * (within.sum() / across.sum())
    total = weights[weights > 0].sum()
    return weights / total if total else weights


def _contrasted(contrast: Array, square: Array, without: Array) -> Interval:
    """The block structure, with its interval.  Shapes: (U, U), (U, U), (G, U, U) -> ()."""
    counted = contrast != 0
    return jackknife_interval(square[counted] @ contrast[counted], without[:, counted] @ contrast[counted])


def _claim(id: str, statement: str, source: str, quantity: str, interval: Interval, batches: int) -> Claim:
    about: dict[str, Any] = {"id": id, "statement": statement, "source": source, "quantity": quantity}
    return Claim.of_sign("positive", interval, count=batches, over="mini-batches", **about)


@dataclass(frozen=True, repr=False)
class Similarity(Result):
    """One row per pair: CKA of the stream after a unit and after an ``other_`` unit, with its 95% interval over mini-batches.

    Of one model each pair has one row; of two models ``other_`` is the second model.  ``unit`` -1 is the stem.
    ``arrays["cka"]``: (value, low, high) x units x other units, the full matrix.
    """

    analysis: ClassVar[str] = "similarity"
    panels: ClassVar[tuple[str, ...]] = ("matrix",)

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 10a: the matrix, the first unit at the lower left, lines between stages."""
        from matplotlib.ticker import MaxNLocator

        from backlight.results import figures as drawing

        rows, others = self.provenance["rows"], self.provenance["columns"]
        first, first_other = rows[0]["unit"] - 0.5, others[0]["unit"] - 0.5  # the stem is -1
        extent = (first_other, first_other + len(others), first, first + len(rows))
        image = ax.imshow(self.arrays["cka"][0], origin="lower", vmin=0, vmax=1, cmap="inferno", extent=extent)
        ax.figure.colorbar(image, ax=ax, label="CKA", pad=0.02, aspect=30, ticks=[0, 0.5, 1])
        colour = drawing.KIND_COLOUR["other"]  # visible on dark and on bright squares
        for mark, start, units in ((ax.axhline, first, rows), (ax.axvline, first_other, others)):
            for i, (unit, following) in enumerate(itertools.pairwise(units)):
                if unit["stage"] != following["stage"]:
                    mark(start + i + 1, color=colour, lw=1, ls=":")
        other = self.provenance.get("other")
        ax.set(xlabel=f"Unit of {other['name']}" if other else "Unit", ylabel=f"Unit of {self.model}" if other else "Unit")
        for axis, units in ((ax.xaxis, others), (ax.yaxis, rows)):
            axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axis.set_ticks([at for at in axis.get_ticklocs() if 1 <= at <= units[-1]["unit"]])
            if units[0]["unit"] < 0:
                axis.set_ticks([-1, *axis.get_ticklocs()])
                axis.set_major_formatter(lambda at, _: "stem" if at < 0 else f"{at:g}")
