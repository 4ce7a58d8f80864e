"""Similarity: which units see the images alike, and do the stages of a model stand out as blocks?

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figures 10a and D.3: mini-batch CKA (Nguyen et al. 2021) between the
stream after each unit and the stream after each other.  Multi-stage models show a block a stage there, as a series of small
models would.

Block structure is a number here: the mean CKA of two units of one stage less that of two units of different stages.  Units
that lie close are alike in any model, and those of one stage lie closer; so it is also compared at equal distance.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..anatomy import Tap, evaluating, grid, reading
from ..errors import UserError
from ..evidence import evidence, weights_sha256
from ..numerics.bootstrap import counts
from ..numerics.cka import LEAST, Array, cka, gram, hsic
from ..result import Claim, Result, Row, columns
from .single_pass import Anatomy, described, fit, read_anatomy, single_pass, split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Of what is resampled: mini-batches, those of a long run in this many groups or twice as many, so that memory is constant.
GROUPS = 128
BLOCKS = (
    "Units are more alike within a stage than across stages: the model behaves like a series of small models.",
    "Figure 10a",
    "mean CKA of two units of one stage less that of two units of different stages",
)
MATCHED = (
    "At equal distance in depth, too, two units are more alike within a stage than across stages.",
    "A control of figure 10a",
    "mean CKA of two units of one stage less that of units as far apart in different stages",
)


def similarity(
    model: nn.Module,
    data: Iterable[Any],
    *,
    other: nn.Module | None = None,
    branch: bool = False,
    at: Sequence[str] | None = None,
    other_at: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
    other_name: str | None = None,
) -> Similarity:
    """Unbiased CKA between all units of a model, or those of a model and an ``other``, with 95% intervals over mini-batches.

    Both models see the same images, as ``data`` yields them.  ``branch`` compares what units add instead of the stream after
    them; ``at`` and ``other_at`` name modules to read instead of units.  Errors: UserError if a model has no units and its
    modules are not named, if there are no images, or if all batches have fewer than 4.
    """
    if other is None and not branch:
        (result,) = single_pass(model, data, {Grams: {}}, at=at, name=name, resamples=resamples, seed=seed)
        return cast(Similarity, result)
    if branch and (at or other_at):
        raise UserError("branch reads what units add, and at names modules to read instead of units: choose one")
    return _compared(model, other, data, branch, (at, other_at), resamples, seed, (name, other_name))


class Grams:
    """Takes the (B, B) inner products of the images at each place, and keeps their HSIC."""

    analysis: ClassVar[str] = "similarity"
    reads_stream: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False

    def __init__(self, anatomy: Anatomy) -> None:
        streams = [(unit, place) for unit, _, place in anatomy.streams()]
        self.units = [unit for unit, _ in streams]
        self.order = [place for _, place in streams]
        self.batch: dict[int, Tensor] = {}
        self.kept = Dependence()

    def read(self, place: int, maps: Tensor) -> None:
        if len(maps) >= LEAST and place in self.order:
            self.batch[place] = gram(maps)

    def finish(self, logits: Tensor, labels: Tensor | None) -> None:
        self.kept.add(len(logits), [self.batch[place] for place in self.order] if self.batch else [])
        self.batch.clear()

    def result(self, model: str, evidence: dict[str, Any], resamples: int, seed: int) -> Similarity:
        return _summary(model, self.units, None, self.kept, evidence, resamples, seed)


class Dependence:
    """HSIC between all pairs in each mini-batch, each counted as its images; a long run's in groups of neighbours."""

    def __init__(self) -> None:
        self.groups: list[Array] = []  # (U, U) each
        self.sizes: list[int] = []  # batches in each
        self.largest = 1
        self.too_small = 0  # images in batches that have no estimate

    def add(self, images: int, grams: Sequence[Tensor]) -> None:
        """A mini-batch more.  Shapes: U tensors (B, B)."""
        if images < LEAST:
            self.too_small += images
            return
        found = images * hsic(torch.stack(list(grams)).cpu().double().numpy())  # one copy from the device
        if self.sizes and self.sizes[-1] < self.largest:
            self.groups[-1] += found
            self.sizes[-1] += 1
            return
        if len(self.groups) == 2 * GROUPS:
            self.groups = [self.groups[i] + self.groups[i + 1] for i in range(0, 2 * GROUPS, 2)]
            self.sizes = [self.sizes[i] + self.sizes[i + 1] for i in range(0, 2 * GROUPS, 2)]
            self.largest *= 2
        self.groups.append(found)
        self.sizes.append(1)

    def known(self) -> Array:
        """Shapes: -> (groups, U, U).  Errors: UserError if no batch was large enough."""
        if not self.groups:
            raise UserError(
                f"similarity compares the images of a batch with each other and needs {LEAST} at least: raise the batch size"
            )
        return np.stack(self.groups)


def _compared(
    model: nn.Module,
    other: nn.Module | None,
    data: Iterable[Any],
    branch: bool,
    at: tuple[Sequence[str] | None, Sequence[str] | None],
    resamples: int,
    seed: int,
    names: tuple[str | None, str | None],
) -> Similarity:
    """Of two models in turn on each batch, or of the branches of one."""
    started = time.perf_counter()
    models = [model] if other is None else [model, other]
    read: list[list[tuple[Row, Tap]]] = []  # a list a model
    left_out: list[str] = []
    kept, grams, images_seen = Dependence(), cast(dict[tuple[int, int], Tensor], {}), 0

    def look(m: int) -> Callable[[int, Tensor], None]:
        def visit(place: int, activation: Tensor) -> None:
            grams[m, place] = gram(grid(activation, read[m][place][1].layout))  # type: ignore[arg-type]

        return visit

    with ExitStack() as stack, torch.inference_mode():
        for one in models:
            stack.enter_context(evaluating(one))
        for images, _ in split(data):
            if not read:
                for m, (one, paths) in enumerate(zip(models, at, strict=False)):
                    places, unread = _places(read_anatomy(one, fit(images[:2], one), paths), branch, one)
                    read.append(places)
                    left_out += unread
                    stack.enter_context(reading(one, [tap for _, tap in places], look(m)))
            if len(images) >= LEAST:
                for one in models:
                    one(fit(images, one))
            kept.add(len(images), [grams[key] for key in sorted(grams)])
            grams.clear()
            images_seen += len(images)
    if not read:
        raise UserError("no images: the data are empty")
    name, other_name = (n or type(one).__name__ for n, one in zip(names, [*models, model][:2], strict=True))
    settings = {"branch": branch, "at": list(at[0]) if at[0] else None, "resamples": resamples, "seed": seed}
    facts = evidence(model, data, images=images_seen, **settings) | {
        "seconds": round(time.perf_counter() - started, 3),
        "left_out": left_out,
    }
    units, *others = ([row for row, _ in places] for places in read)
    if other is not None:
        facts["other"] = {
            "name": other_name,
            "weights_sha256": weights_sha256(other),
            "at": list(at[1]) if at[1] else None,
        }
    return _summary(name, units, others[0] if others else None, kept, facts, resamples, seed)


def _places(anatomy: Anatomy, branch: bool, model: nn.Module) -> tuple[list[tuple[Row, Tap]], list[str]]:
    """What is read of a model, and the units of which nothing is."""
    if not branch:
        unread = [str(unit) for unit in anatomy.units if anatomy.after(unit) is None]
        return [(row, anatomy.places[place]) for row, _, place in anatomy.streams()], unread
    readable = [unit for unit in anatomy.units if len(unit.branch) == 1 and unit.branch[0].layout]
    if not readable:
        raise UserError(f"no unit of {type(model).__name__} returns what it adds as a map; compare streams instead")
    return [(described(u), u.branch[0]) for u in readable], [str(u) for u in anatomy.units if u not in readable]


# --- the numbers


def _summary(
    name: str,
    units: Sequence[Row],
    others: Sequence[Row] | None,
    kept: Dependence,
    evidence: dict[str, Any],
    resamples: int,
    seed: int,
) -> Similarity:
    """Shapes: of two models ``kept`` holds the units of both, the first model's first."""
    dependence = kept.known()
    rows, across = range(len(units)), range(len(units), dependence.shape[1]) if others is not None else range(len(units))
    value = cka(dependence.sum(0))
    stages = [row["stage"] if row["unit"] >= 0 and value[i, i] > 0 else -1 for i, row in enumerate(units)]
    contrasts = [] if others is not None else [_contrast(stages, matched) for matched in (False, True)]
    low, high, drawn = _resampled(dependence, rows, across, contrasts, resamples, seed)
    table = [
        unit | {f"other_{key}": entry for key, entry in partner.items()} | columns("cka", (m[i, j] for m in (block, low, high)))
        for block in [value[np.ix_(rows, across)]]
        for i, unit in enumerate(units)
        for j, partner in enumerate(others if others is not None else units)
        if others is not None or i < j
    ]
    facts = evidence | {
        "rows": list(units),  # of the matrix
        "columns": list(others if others is not None else units),
        "batches": sum(kept.sizes),
        "images_in_batches_below_4": kept.too_small,
        "resampled": f"mini-batches, in {len(kept.sizes)} groups" if kept.largest > 1 else "mini-batches",
        "same_for_all_images": [
            f"the stream at unit {row['unit']} ({row['module']}) is the same for all images: its CKA is 0/0"
            for row, own in zip([*units, *(others or [])], np.diagonal(value), strict=True)
            if np.isnan(own)
        ],
    }
    claims = [_claim(*words, c, value, d) for words, c, d in zip((BLOCKS, MATCHED), contrasts, drawn, strict=False) if c.any()]
    return Similarity(name, table, claims, facts, {"cka": np.stack([value[np.ix_(rows, across)], low, high])})


def _contrast(stages: Sequence[int], matched: bool) -> Array:
    """What each CKA counts in the block structure: 1 over the pairs within a stage, less 1 over those across stages.

    ``matched``: a pair within a stage against the pairs across stages that are as far apart; left out if there are none.
    What is of no stage (-1) does not count: the stem, and streams that are the same for all images.
    Shapes: U -> (U, U), zero for pairs that do not count; all zero if there is nothing to compare.
    """
    stage, position = np.array(stages), np.arange(len(stages))
    counted = (position[:, None] < position) & (stage[:, None] >= 0) & (stage >= 0)
    same = stage[:, None] == stage
    apart = position - position[:, None] if matched else np.zeros_like(same, int)
    weights = np.zeros(same.shape)
    for distance in np.unique(apart[counted]):
        here = counted & (apart == distance)
        within, across = here & same, here & ~same
        if within.any() and across.any():
            weights += within - across * (within.sum() / across.sum())
    compared = weights[weights > 0].sum()
    return weights / compared if compared else weights


def _resampled(
    dependence: Array, rows: range, across: range, contrasts: Sequence[Array], resamples: int, seed: int
) -> tuple[Array, Array, Array]:
    """The ends of each CKA's interval, and the resamples of each contrast.

    Shapes: (G, U, U) -> (rows, across) twice, (contrasts, resamples).  A row at a time: memory is resamples x units.
    """
    drawn = np.zeros((len(contrasts), resamples))
    low, high = np.full((2, len(rows), len(across)), np.nan)
    if len(dependence) < 2:
        return low, high, drawn + np.nan
    weights = np.concatenate(list(counts(len(dependence), resamples, seed)))
    own = np.sqrt(weights @ np.diagonal(dependence, axis1=1, axis2=2))  # (resamples, U)
    for i in rows:
        with np.errstate(invalid="ignore", divide="ignore"):
            ckas = weights @ dependence[:, i, across] / own[:, [i]] / own[:, across]
        low[i], high[i] = np.quantile(ckas, [0.025, 0.975], axis=0)
        for contrast, found in zip(contrasts, drawn, strict=True):
            counted = contrast[i] != 0
            found += ckas[:, counted] @ contrast[i, counted]
    return low, high, drawn


def _claim(statement: str, source: str, quantity: str, contrast: Array, value: Array, drawn: Array) -> Claim:
    counted = contrast != 0
    ends = (float(value[counted] @ contrast[counted]), *np.quantile(drawn, [0.025, 0.975]))
    return Claim.of_sign("positive", ends, statement=statement, source=source, quantity=quantity)


@dataclass(frozen=True)
class Similarity(Result):
    """A row a pair: the CKA of the stream after a unit and after an ``other_`` unit, with its 95% interval over mini-batches.

    Of one model each pair once; of two, ``other_`` is the second model.  ``unit`` -1 is the stem.
    ``arrays["cka"]``: (value, low, high) x units x other units, the whole matrix.
    """

    analysis: ClassVar[str] = "similarity"
    panels: ClassVar[tuple[str, ...]] = ("matrix",)

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 10a: the matrix, the first unit below left, lines where a stage ends."""
        from matplotlib.ticker import MaxNLocator

        from .. import drawing

        rows, others = self.evidence["rows"], self.evidence["columns"]
        first, first_other = rows[0]["unit"] - 0.5, others[0]["unit"] - 0.5  # the stem is -1
        extent = (first_other, first_other + len(others), first, first + len(rows))
        image = ax.imshow(self.arrays["cka"][0], origin="lower", vmin=0, vmax=1, cmap="inferno", extent=extent)
        ax.figure.colorbar(image, ax=ax, label="CKA", pad=0.02, aspect=30, ticks=[0, 0.5, 1])
        colour = drawing.KIND_COLOUR["other"]  # seen on the dark and on the bright
        for mark, start, units in ((ax.axhline, first, rows), (ax.axvline, first_other, others)):
            for i, (unit, following) in enumerate(itertools.pairwise(units)):
                if unit["stage"] != following["stage"]:
                    mark(start + i + 1, color=colour, lw=1, ls=":")
        other = self.evidence.get("other")
        ax.set(xlabel=f"Unit of {other['name']}" if other else "Unit", ylabel=f"Unit of {self.model}" if other else "Unit")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
