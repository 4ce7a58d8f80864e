"""Hessian max-eigenvalue spectrum: is the loss that training minimises convex here, and how sharp is it?

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figures 1b, 4 and 6, and section 2: for each mini-batch of the
augmented training set the eigenvalues of largest magnitude of the Hessian of cross-entropy plus weight decay; their density,
the negative eigenvalue proportion NEP and the average positive eigenvalue APE.  The authors' code was never released; they
name PyHessian's power iteration, which is wrong where a positive and a negative eigenvalue are of one size, as in ViTs.  Here
it is Lanczos with residuals, and ``paper=True`` follows the power iteration instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import curvature
from ..anatomy import units
from ..errors import UserError
from ..evidence import evidence
from ..hessians import Hessians
from ..numerics.bootstrap import Interval, mean_interval, statistic_interval
from ..numerics.lanczos import Operator, dot, lanczos, lanczos_each, norm, repeats, smoothed
from ..objective import Objective, Predicate
from ..pieces import Pieces
from ..result import Claim, Result, Row, Verdict
from .single_pass import fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray

#: PyHessian's defaults, the only ones known: the paper does not give its own.
POWER_STEPS, POWER_TOL = 100, 1e-3
#: Up to so many eigenvalues one start finds them all: of 56 mini-batches it missed none at 5, and one in one of them at 8.
ONE_START = 5
#: NEP that is as good as none: 29 batches without any negative one suffice to say so.
FEW = 0.1
#: Points of each half of the density.
POINTS = 200


def hessian(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    top: int = 5,
    tol: float = 1e-3,
    weight_decay: float = 0.05,
    statistics: str = "running",
    by: str | None = None,
    paper: bool = False,
    together: int = 1,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
    pieces: Pieces | None = None,
    watch: Callable[[Iterable[Any]], Iterable[Any]] = lambda batches: batches,
) -> Hessian:
    """The ``top`` Hessian eigenvalues by magnitude of each mini-batch, and what they say together, with intervals over batches.

    ``batches``: pairs (images, targets) as training sees them; see ``draw_batches``.  ``tol``: error of an eigenvalue as a
    share of it.  ``statistics``: of batch norms, ``"running"`` or ``"batch"``.  ``by="kind"`` adds the diagonal blocks of all
    attentions, all convolutions, and so on.  ``paper=True`` follows PyHessian's power iteration, right or wrong.
    ``together``: so many batches at once, with as many times the memory; for a GPU that one small batch leaves idle.
    ``pieces`` keeps each finished batch, so that a killed run goes on.
    Errors: UserError as for `curvature.Hessian`, and if ``top`` or ``together`` is no positive number.
    """
    started = time.perf_counter()
    if top < 1:
        raise UserError(f"hessian needs at least 1 eigenvalue a batch, got top={top}")
    if together < 1 or (together > 1 and paper):
        raise UserError(f"together={together}: it is a positive number of batches, and 1 for the paper's power iteration")
    objective, pieces = Objective(weight_decay=weight_decay, statistics=statistics), pieces or Pieces(None, {})
    blocks: dict[str, Predicate | None] = {}
    found: list[Mapping[str, Array]] = []
    images_seen = 0
    for group in groups(watch(batches), together):
        blocks = blocks or _blocks(model, group[0][0], by)
        images_seen += sum(len(images) for images, _ in group)
        places = range(len(found), len(found) + len(group))
        done = [piece for i in places if (piece := pieces.get(f"batch-{i}")) is not None]
        if len(done) < len(group):
            done = _of_group(model, objective, group, blocks, found[:1], top=top, tol=tol, paper=paper, seed=seed + len(found))
            for i, piece in zip(places, done, strict=True):
                pieces.put(f"batch-{i}", piece)
        found += done
    if not found:
        raise UserError("no images: the data are empty, so the loss has no Hessian")
    table = [row for i, piece in enumerate(found) for block in blocks for row in _rows(i, block, piece)]
    whole = np.stack([piece["all/eigenvalue"] for piece in found])  # (batches, top)
    summary = {block: summarised(np.stack([p[f"{block}/eigenvalue"] for p in found]), resamples, seed) for block in blocks}
    settings = {"top": top, "tol": tol, "weight_decay": weight_decay, "statistics": statistics, "by": by}
    settings |= {"paper": paper, "together": together}
    facts = evidence(model, batches, images=images_seen, resamples=resamples, seed=seed, **settings) | {
        "seconds": round(time.perf_counter() - started, 3),
        "seconds_a_batch": round(float(np.mean([piece["seconds"].item() for piece in found])), 3),
        "solver": "power iteration as in PyHessian" if paper else "Lanczos",
        "products": _spread([sum(piece[f"{block}/matvecs"].item() for block in blocks) for piece in found]),
        "not_converged": sum(not row["converged"] for row in table),
        "probes": {key: found[0][f"probe/{key}"].item() for key in ("symmetry", "repeat")},
        "loss": float(np.mean([piece["loss"].item() for piece in found])),
        "weight_decay_loss": found[0]["weight_decay"].item(),
        "batch_norm": objective.statistics,
        "dropout": "off",
        "summary": {block: {key: list(map(float, ends)) for key, ends in told.items()} for block, told in summary.items()},
    }
    arrays = {side: half for side in ("negative", "positive") if len(half := density(whole, side, resamples, seed))}
    return Hessian(name or type(model).__name__, table, [_claim(summary["all"]["nep"], top)], facts, arrays)


# --- what the eigenvalues say together


def summarised(eigenvalues: Array, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """NEP, the share that is negative, and APE, the mean of the positive, with intervals over batches.

    Shapes: (batches, top).  Where none or all are negative the bootstrap knows no spread; then the other end of NEP is
    1 - 0.05^(1/n) away, the largest share of batches of which n show none in one case of twenty.  APE of none is NaN.
    """
    batches, top = eigenvalues.shape
    negative, positive = eigenvalues < 0, eigenvalues > 0
    of_negatives = np.stack([negative.sum(1), np.full(batches, top)])
    of_positives = np.stack([np.where(positive, eigenvalues, 0).sum(1), positive.sum(1)])

    def ratio(parts: Array, most: float) -> Interval:
        with np.errstate(invalid="ignore"):  # a resample without any positive one is NaN, and left out
            mean = lambda weights: np.divide(*(parts @ weights))  # noqa: E731
            return statistic_interval(mean, batches, resamples=resamples, seed=seed, within=(0, most))

    nep = ratio(of_negatives, 1)
    ape = ratio(of_positives, np.inf) if positive.any() else Interval(*np.full(3, np.nan))
    unseen = 1 - 0.05 ** (1 / batches)
    if not negative.any():
        nep = Interval(nep.value, nep.value, nep.value + unseen)
    elif negative.all():
        nep = Interval(nep.value, nep.value - unseen, nep.value)
    return {"nep": nep, "ape": ape}


def density(eigenvalues: Array, side: str, resamples: int = 1000, seed: int = 0) -> Array:
    """The density of one sign's eigenvalues by normal curves, mirrored at zero, with its interval over batches.

    Shapes: (batches, top) -> (4, POINTS): eigenvalue, density, low, high; empty where none has this sign.  Both sides together
    integrate to 1, so the negative one to NEP.  The curves' width is Silverman's (1986, equation 3.31).
    """
    sign = -1 if side == "negative" else 1
    chosen = sign * eigenvalues > 0
    seen = abs(eigenvalues[chosen])
    if not len(seen):
        return np.empty((0, POINTS))
    quarter, three = np.quantile(seen, [0.25, 0.75])
    spread = min(filter(None, (seen.std(), (three - quarter) / 1.34)), default=0.0) or 0.1 * seen.max()
    width = 0.9 * spread * len(seen) ** -0.2
    grid = np.linspace(0, seen.max() + 3 * width, POINTS)
    each = np.stack(
        [
            smoothed(grid, np.concatenate([-row, row]), np.tile(counted, 2) / len(row), width)
            for row, counted in zip(eigenvalues, chosen, strict=True)
        ]
    )  # (batches, POINTS)
    found = np.stack([sign * grid, *mean_interval(each, resamples=resamples, seed=seed)])
    return found[:, ::sign]


def _claim(nep: Interval, top: int) -> Claim:
    """Claim 5: not convex where a share is negative; nearly convex where surely fewer than `FEW` are."""
    value, low, high = map(float, nep)
    verdict: Verdict = "holds" if low > 0 else "does not hold" if high < FEW else "undecided"
    return Claim(
        "The loss is not convex: some of its largest Hessian eigenvalues are negative, as a ViT's are and a ResNet's hardly.",
        "Figures 1b and 4",
        f"NEP, share of negative ones among the {top} eigenvalues of largest magnitude of each batch",
        value, low, high, verdict,
    )  # fmt: skip


# --- the eigenvalues of a batch


def _blocks(model: nn.Module, images: Tensor, by: str | None) -> dict[str, Predicate | None]:
    """The parts of the Hessian by name: all of it, and if asked the parameters of each kind of unit."""
    if by not in (None, "kind"):
        raise UserError(f"by={by!r}: blocks of the Hessian are had by 'kind' of unit, or not at all")
    found = units(model, fit(images[:2], model)) if by else []
    kinds = dict.fromkeys(unit.kind for unit in found)
    return {"all": None} | {kind: curvature.of_units(u for u in found if u.kind == kind) for kind in kinds}


def groups(batches: Iterable[Any], most: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Batches that follow each other and have one shape, at most so many at a time.

    >>> [len(group) for group in groups([(torch.zeros(n), torch.zeros(n)) for n in (4, 4, 4, 2)], 2)]
    [2, 1, 1]
    """
    group: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        if group and group[0][0].shape != batch[0].shape:
            yield group
            group = []
        group.append(tuple(batch))
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


def _of_group(
    model: nn.Module,
    objective: Objective,
    group: Sequence[tuple[Tensor, Tensor]],
    blocks: Mapping[str, Predicate | None],
    first: Sequence[Mapping[str, Array]],
    *,
    top: int,
    tol: float,
    paper: bool,
    seed: int,
) -> list[dict[str, Array]]:
    """All that is kept of each batch of a group, as arrays that a file can hold.

    The ``first`` batch of all, of which nothing is known yet, is searched with more care: it tells whether the operator is
    sound, and whether eigenvalues repeat, which is the network's doing and not the batch's.
    """
    started = time.perf_counter()
    found: list[dict[str, Any]] = [{} for _ in group]
    for block, params in blocks.items():
        whole, distinct = block == "all", bool(first) and top <= ONE_START
        if distinct and top > 1:
            distinct = repeats(first[0][f"{block}/eigenvalue"], 3 * tol) == 1
        operators = [
            curvature.Hessian(model, objective, [batch], params=params, check=whole and not first and not i, seed=seed)
            for i, batch in enumerate(group)
        ]
        for piece, operator in zip(found, operators if whole else [], strict=False):
            piece |= operator.loss() | {f"probe/{what}": error for what, error in operator.probes.items()}
        for piece, told in zip(found, _spectra(operators, top, tol, paper, distinct, seed), strict=True):
            piece |= {f"{block}/{what}": value for what, value in told.items()}
    seconds = (time.perf_counter() - started) / len(group)
    return [{key: np.atleast_1d(value) for key, value in (piece | {"seconds": seconds}).items()} for piece in found]


def _spectra(
    operators: Sequence[curvature.Hessian], top: int, tol: float, paper: bool, distinct: bool, seed: int
) -> list[dict[str, Any]]:
    """The outermost eigenvalues of each, and how they were found."""
    seeds = range(seed, seed + len(operators))
    if paper:
        told = [power_iteration(operator, top, seed=seed) for operator, seed in zip(operators, seeds, strict=True)]
        return [dict(zip(("eigenvalue", "residual", "matvecs", "converged"), one, strict=True)) for one in told]
    if len(operators) == 1:
        (one,) = operators
        found = [lanczos(one, top, tol=tol, start=one.loss_gradient, distinct=distinct, seed=seed)]
    else:
        many = Hessians(operators)
        found = lanczos_each(many, top, tol=tol, starts=many.loss_gradient, distinct=distinct, seeds=seeds)
    return [{"eigenvalue": p.values, "residual": p.residuals, "matvecs": p.matvecs, "converged": p.converged} for p in found]


def power_iteration(
    operator: Operator, top: int = 5, *, steps: int = POWER_STEPS, tol: float = POWER_TOL, seed: int = 0
) -> tuple[Array, Array, int, Array]:
    """PyHessian's eigenvalues: (values, residuals, products, whether each stopped by itself), in the order of their finding.

    One vector after another, kept orthogonal to those before, is multiplied until two Rayleigh quotients agree to ``tol``; the
    last but one is returned.  A mixture of eigenvectors of lambda and -lambda agrees at once, and its quotient is neither.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors: list[Tensor] = []
    values, residuals, stopped, matvecs = [], [], [], 0
    for _ in range(min(top, operator.size)):
        v = _unit(torch.randn(operator.size, generator=generator).to(operator.device, operator.dtype))
        last, agreed = None, False
        for _ in range(steps):
            for other in vectors:
                v = v - dot(v, other) * other
            v = _unit(v)
            product = operator.matvec(v)
            matvecs += 1
            quotient = dot(product, v)
            residual = norm(product - quotient * v)
            v = _unit(product)
            if agreed := last is not None and abs(last - quotient) / (abs(last) + 1e-6) < tol:
                break
            last = quotient
        vectors.append(v)
        values.append(last if last is not None else 0.0)
        residuals.append(residual)
        stopped.append(agreed)
    return np.array(values), np.array(residuals), matvecs, np.array(stopped)


def _unit(v: Tensor) -> Tensor:
    return v / (norm(v) + 1e-6)  # PyHessian's guard against zero


def _rows(i: int, block: str, piece: Mapping[str, Array]) -> list[Row]:
    columns = [piece[f"{block}/{column}"] for column in ("eigenvalue", "residual", "converged")]
    return [
        {"batch": i, "block": block, "rank": rank, "eigenvalue": float(value), "residual": float(residual)}
        | {"matvecs": piece[f"{block}/matvecs"].item(), "converged": bool(converged)}
        for rank, (value, residual, converged) in enumerate(zip(*columns, strict=True), start=1)
    ]


def _spread(products: Sequence[int]) -> dict[str, float]:
    """Of products a batch."""
    return {"mean": round(float(np.mean(products)), 2), "max": max(products), "total": sum(products)}


@dataclass(frozen=True)
class Hessian(Result):
    """A row an eigenvalue: batch, block of the Hessian, rank by magnitude, residual |Hv - eigenvalue v|, products of its batch.

    ``arrays["negative"]``, ``arrays["positive"]``: eigenvalue, density, low, high x points; one is missing where it is empty.
    """

    analysis: ClassVar[str] = "hessian"
    panels: ClassVar[tuple[str, ...]] = ("negative", "positive", "batches")

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 4: the density, each sign on axes of its own; and the eigenvalues batch by batch."""
        if panel == "batches":
            self._draw_batches(ax)
        else:
            self._draw_density(ax, panel)

    def _draw_density(self, ax: Axes, side: str) -> None:
        from .. import drawing

        colour = drawing.KIND_COLOUR["attention" if side == "negative" else "conv"]
        nep, ape = (self.evidence["summary"]["all"][key] for key in ("nep", "ape"))
        if side in self.arrays:
            grid, density, low, high = self.arrays[side]
            ax.fill_between(grid, low, high, color=colour, alpha=0.2, lw=0)
            ax.plot(grid, density, color=colour)
            seen = [
                row["eigenvalue"]
                for row in self.table
                if row["block"] == "all" and (row["eigenvalue"] < 0) == (side == "negative")
            ]
            ax.plot(seen, np.zeros(len(seen)), "|", color="0.3", markersize=5, alpha=0.6, clip_on=False, zorder=3)
            ax.set(xlim=(grid[0], grid[-1]), ylim=(0, None))
        else:
            ax.text(0.5, 0.5, f"none is {side}", transform=ax.transAxes, ha="center", color="0.4")
            ax.set(xticks=[0], yticks=[])
        told = {"negative": f"NEP {_ends(nep, 100)}%", "positive": f"APE {_ends(ape)}"}
        ax.set_xlabel(f"{side.capitalize()} eigenvalues")
        ax.set_title(told[side])
        if side == "negative":
            ax.set_ylabel("Density")

    def _draw_batches(self, ax: Axes) -> None:
        """Every eigenvalue on a symmetric logarithmic axis, those that did not converge open."""
        from matplotlib.ticker import MaxNLocator

        from .. import drawing

        rows = [row for row in self.table if row["block"] == "all"]
        for negative, kind in ((True, "attention"), (False, "conv")):
            for converged in (True, False):
                seen = [r for r in rows if (r["eigenvalue"] < 0) == negative and r["converged"] == converged]
                ax.plot(
                    [r["batch"] for r in seen],
                    [r["eigenvalue"] for r in seen],
                    "o",
                    color=drawing.KIND_COLOUR[kind],
                    markersize=2.5,
                    markerfacecolor=None if converged else "none",
                )
        ax.axhline(0, color="0.2", lw=0.6)
        sizes = [abs(row["eigenvalue"]) for row in rows if row["eigenvalue"]] or [1.0]
        least, most = (int(np.floor(np.log10(size))) for size in (min(sizes), max(sizes)))
        ax.set_yscale("symlog", linthresh=10.0**least, linscale=0.3)
        powers = 10.0 ** np.arange(least, most + 1)
        ax.set_yticks([*-powers[::-1], 0, *powers])
        low, high = (min(row["eigenvalue"] for row in rows), max(row["eigenvalue"] for row in rows))
        ax.set(xlabel="Batch", ylabel="Eigenvalue", xlim=(-0.7, rows[-1]["batch"] + 0.7))
        ax.set_ylim(2 * min(low, -(10.0**least) / 2), 2 * max(high, 10.0**least / 2))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _ends(interval: Sequence[float], scale: float = 1) -> str:
    value, low, high = (float(f"{scale * x:.3g}") for x in interval)
    return f"{value:g} [{low:g}, {high:g}]" if np.isfinite(low) else f"{value:g}"
