"""Hessian max-eigenvalue spectrum: the convexity and the sharpness of the loss that training minimises.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figures 1b, 4 and 6, and section 2.  For each mini-batch of the
augmented training set: the eigenvalues of largest magnitude of the Hessian of cross-entropy plus weight decay.  Over all
batches: their density, the negative eigenvalue proportion (NEP) and the average positive eigenvalue (APE).  The authors' code
was never released.  They name PyHessian's power iteration, which is wrong where a positive and a negative eigenvalue have the
same magnitude, as in ViTs.  The solver here is Lanczos with residuals; ``paper=True`` uses the power iteration instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from backlight.analyses.entry import Track
from backlight.analyses.hessian.settings import HessianSettings
from backlight.analyses.shards import refuse_no_shard
from backlight.analyses.training_loss import training_objective
from backlight.curvature.batched_hessian import Hessians
from backlight.curvature.hessian import Hessian, of_units
from backlight.curvature.loss import Objective, Predicate
from backlight.errors import UserError
from backlight.files import PartialResults
from backlight.inputs import labelled, to_model
from backlight.numerics.bootstrap import Interval, mean_interval, statistic_interval
from backlight.numerics.lanczos import Operator, dot, lanczos, lanczos_each, norm, repeats
from backlight.numerics.proportions import share_interval
from backlight.numerics.quadrature import smoothed
from backlight.results.claim import Claim, Verdict
from backlight.results.over import counted
from backlight.results.provenance import provenance
from backlight.results.result import Result, Row
from backlight.tracing.find import units
from backlight.tracing.trace import model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray
Batch = tuple[Tensor, Tensor]
#: What is stored of one mini-batch: "all/eigenvalue", "conv/residual", "loss", "seconds", ... -> array.
Spectrum = Mapping[str, Array]

#: PyHessian's defaults.  The paper gives no values.
POWER_STEPS, POWER_TOL = 100, 1e-3
#: Up to this many eigenvalues one start vector finds all: on 56 mini-batches it missed none of 5, and one of 8 in one batch.
ONE_START = 5
#: A smaller NEP counts as none: 36 batches without a negative eigenvalue are enough to show it.
FEW = 0.1
#: Points of each half of the density.
POINTS = 200


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    settings: HessianSettings,
    *,
    resamples: int,
    seed: int,
    name: str | None,
    partial_results: PartialResults | None,
    shard: tuple[int, int],
    track: Track,
) -> HessianSpectrum:
    """The result of `backlight.hessian` with these settings."""
    started = time.perf_counter()
    refuse_no_shard(shard)
    settings, objective, recipe = training_objective(settings, model, batches)
    partial_results = partial_results or PartialResults(None, {})
    blocks: dict[str, Predicate | None] = {}
    known: dict[int, Spectrum] = {}  # batch -> its spectrum
    images, count = 0, 0
    for number, group in enumerate(groups(track(batches), settings.together)):
        blocks = blocks or _blocks(model, group[0][0], settings.by)
        images += sum(len(batch_images) for batch_images, _ in group)
        own = range(count, count + len(group))
        count += len(group)
        finished = stored_batches(partial_results, own)
        if len(finished) < len(group) and (number == 0 or number % shard[1] == shard[0]):  # the first is everybody's
            spectra_of_group = _spectra(model, objective, group, blocks, known.get(0), settings, seed + own[0])
            finished = dict(zip(own, spectra_of_group, strict=True))
            for i, spectrum in finished.items():
                partial_results.put(f"batch-{i}", spectrum)
        known |= finished
    if not known:
        raise UserError("no images: the data are empty, so the loss has no Hessian")
    known |= stored_batches(partial_results, [i for i in range(count) if i not in known])  # of other shards in the meantime
    missing = [i for i in range(count) if i not in known]
    spectra = [known[i] for i in sorted(known)]
    table = [row for i in sorted(known) for block in blocks for row in _rows(i, block, known[i])]
    eigenvalues = {block: np.stack([spectrum[f"{block}/eigenvalue"] for spectrum in spectra]) for block in blocks}
    summary = {block: nep_and_ape(values, resamples, seed) for block, values in eigenvalues.items()}
    facts = provenance(model, batches, images=images, resamples=resamples, seed=seed, **asdict(settings)) | {
        "recipe": recipe,
        "missing_rows": missing,
        "seconds": round(time.perf_counter() - started, 3),
        "seconds_a_batch": round(float(np.mean([spectrum["seconds"].item() for spectrum in spectra])), 3),
        "solver": "power iteration as in PyHessian" if settings.paper else "Lanczos",
        "products": _products([sum(spectrum[f"{block}/matvecs"].item() for block in blocks) for spectrum in spectra]),
        "not_converged": sum(not row["converged"] for row in table),
        "probes": {probe: spectra[0][f"probe/{probe}"].item() for probe in ("symmetry", "repeat")},
        "loss": float(np.mean([spectrum["loss"].item() for spectrum in spectra])),
        "weight_decay_loss": spectra[0]["weight_decay"].item(),
        "batch_norm": objective.statistics,
        "dropout": "off",
        "summary": {
            block: {key: list(map(float, interval)) for key, interval in intervals.items()}
            for block, intervals in summary.items()
        },
    }
    densities = {side: density(eigenvalues["all"], side, resamples, seed) for side in ("negative", "positive")}
    arrays = {side: points for side, points in densities.items() if len(points)}
    claims = [negative_claim(summary["all"]["nep"], settings.top, len(spectra))]
    return HessianSpectrum(model_name(model, name), table, claims, facts, arrays)


def stored_batches(partial_results: PartialResults, numbers: Iterable[int]) -> dict[int, Spectrum]:
    """The spectra of these batches that are stored."""
    return {i: spectrum for i in numbers if (spectrum := partial_results.get(f"batch-{i}")) is not None}


# --- summaries of the eigenvalues


def nep_and_ape(eigenvalues: Array, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """NEP, the share of negative eigenvalues, and APE, the mean of the positive ones, with intervals over batches.

    The interval of NEP is that of a mean of shares, a share a batch.  APE without a positive eigenvalue is NaN.
    Shapes: (batches, top).
    """
    positive = eigenvalues > 0
    sums = np.stack([np.where(positive, eigenvalues, 0).sum(1), positive.sum(1)])

    def mean_positive(weights: Array) -> Array:
        with np.errstate(invalid="ignore"):  # a resample without a positive eigenvalue is NaN, and is omitted
            return np.divide(*(sums @ weights))

    ape = Interval(*np.full(3, np.nan))
    if positive.any():
        ape = statistic_interval(mean_positive, len(eigenvalues), resamples=resamples, seed=seed, within=(0, np.inf))
    return {"nep": share_interval((eigenvalues < 0).mean(1)), "ape": ape}


def density(eigenvalues: Array, side: str, resamples: int = 1000, seed: int = 0) -> Array:
    """The density of the eigenvalues of one sign, with its interval over batches.

    A sum of normal curves, mirrored at zero; their width is Silverman's (1986, equation 3.31).  Both sides together integrate
    to 1, so the negative side integrates to NEP.
    Shapes: (batches, top) -> (4, POINTS): eigenvalue, density, low, high; (0, POINTS) if no eigenvalue has this sign.
    """
    sign = -1 if side == "negative" else 1
    on_side = sign * eigenvalues > 0
    sizes = abs(eigenvalues[on_side])
    if not len(sizes):
        return np.empty((0, POINTS))
    first_quartile, third_quartile = np.quantile(sizes, [0.25, 0.75])
    spread = min(filter(None, (sizes.std(), (third_quartile - first_quartile) / 1.34)), default=0.0) or 0.1 * sizes.max()
    width = 0.9 * spread * len(sizes) ** -0.2
    grid = np.linspace(0, sizes.max() + 3 * width, POINTS)
    per_batch = np.stack(
        [
            smoothed(grid, np.concatenate([-row, row]), np.tile(counted, 2) / len(row), width)
            for row, counted in zip(eigenvalues, on_side, strict=True)
        ]
    )  # (batches, POINTS)
    return np.stack([sign * grid, *mean_interval(per_batch, resamples=resamples, seed=seed)])[:, ::sign]


def negative_claim(nep: Interval, top: int, batches: int) -> Claim:
    """Claim 5: some of the largest eigenvalues are negative.  It holds if NEP is above 0, and not if NEP is below `FEW`.

    If it holds, the loss is not convex.  If it does not, nothing follows about convexity: smaller ones are not measured.
    """
    value, low, high = map(float, nep)
    verdict: Verdict = "holds" if low > 0 else "does not hold" if high < FEW else "undecided"
    return Claim(
        "hessian/negative-eigenvalues",
        "Some of the largest Hessian eigenvalues of the loss are negative, many for a ViT and few for a ResNet.",
        "Figures 1b and 4",
        f"NEP, share of negative ones among the {top} eigenvalues of largest magnitude of each batch; "
        "smaller ones are not measured",
        value, low, high, verdict, batches, "mini-batches", decided_at=FEW if verdict == "does not hold" else 0.0,
    )  # fmt: skip


# --- the eigenvalues of a mini-batch


def _blocks(model: nn.Module, images: Tensor, by: str | None) -> dict[str, Predicate | None]:
    """Names of the Hessian's blocks and their parameters: all, and with ``by`` those of each kind of unit."""
    model_units = units(model, to_model(images[:2], model)) if by else []
    kinds = dict.fromkeys(unit.kind for unit in model_units)
    return {"all": None} | {kind: of_units(unit for unit in model_units if unit.kind == kind) for kind in kinds}


def groups(batches: Iterable[Any], most: int) -> Iterator[list[Batch]]:
    """Consecutive batches of one shape, at most ``most`` at a time.

    >>> [len(group) for group in groups([(torch.zeros(n), torch.zeros(n)) for n in (4, 4, 4, 2)], 2)]
    [2, 1, 1]
    """
    group: list[Batch] = []
    for batch in map(labelled, batches):
        if group and group[0][0].shape != batch[0].shape:
            yield group
            group = []
        group.append(batch)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


def _spectra(
    model: nn.Module,
    objective: Objective,
    group: Sequence[Batch],
    blocks: Mapping[str, Predicate | None],
    first: Spectrum | None,
    settings: HessianSettings,
    seed: int,
) -> list[dict[str, Array]]:
    """The spectrum of each batch of a group.

    ``first``: that of the first batch of all; None in the group that holds it.  The first batch probes whether the products
    are sound, and shows whether eigenvalues repeat.
    """
    started = time.perf_counter()
    spectra: list[dict[str, Any]] = [{} for _ in group]
    for block, params in blocks.items():
        probed = block == "all" and first is None
        operators = [
            Hessian(model, objective, [batch], params=params, check=probed and not i, seed=seed)
            for i, batch in enumerate(group)
        ]
        if block == "all":
            for spectrum, operator in zip(spectra, operators, strict=True):
                spectrum |= operator.loss() | {f"probe/{probe}": error for probe, error in operator.probes.items()}
        solutions = _eigenvalues(operators, settings, _distinct(first, block, settings), seed)
        for spectrum, solution in zip(spectra, solutions, strict=True):
            spectrum |= {f"{block}/{column}": value for column, value in solution.items()}
    seconds = (time.perf_counter() - started) / len(group)
    return [{key: np.atleast_1d(value) for key, value in (spectrum | {"seconds": seconds}).items()} for spectrum in spectra]


def _distinct(first: Spectrum | None, block: str, settings: HessianSettings) -> bool:
    """Whether each eigenvalue occurs once, as in the first batch: repetition is a property of the network, not of a batch."""
    if first is None or settings.top > ONE_START:
        return False
    return settings.top == 1 or repeats(first[f"{block}/eigenvalue"], 3 * settings.tol) == 1


def _eigenvalues(operators: Sequence[Hessian], settings: HessianSettings, distinct: bool, seed: int) -> list[dict[str, Any]]:
    """The outermost eigenvalues of each operator, with residuals and the number of products."""
    top, seeds = settings.top, range(seed, seed + len(operators))
    if settings.paper:
        powers = [power_iteration(operator, top, seed=seed) for operator, seed in zip(operators, seeds, strict=True)]
        return [dict(zip(("eigenvalue", "residual", "matvecs", "converged"), power, strict=True)) for power in powers]
    if len(operators) == 1:
        (one,) = operators
        pairs = [lanczos(one, top, tol=settings.tol, start=one.loss_gradient, distinct=distinct, seed=seed)]
    else:
        many = Hessians(operators)
        pairs = lanczos_each(many, top, tol=settings.tol, starts=many.loss_gradient, distinct=distinct, seeds=seeds)
    return [{"eigenvalue": p.values, "residual": p.residuals, "matvecs": p.matvecs, "converged": p.converged} for p in pairs]


def power_iteration(
    operator: Operator, top: int = 5, *, steps: int = POWER_STEPS, tol: float = POWER_TOL, seed: int = 0
) -> tuple[Array, Array, int, Array]:
    """PyHessian's eigenvalues: (values, residuals, products, whether each stopped by itself), in PyHessian's order.

    Each vector in turn is kept orthogonal to the earlier ones and multiplied until two Rayleigh quotients agree to ``tol``; the
    last but one is returned.  A mixture of eigenvectors of lambda and -lambda agrees at once, and its quotient is neither.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors: list[Tensor] = []
    values, residuals, stopped, matvecs = [], [], [], 0
    for _ in range(min(top, operator.size)):
        v = _unit_vector(torch.randn(operator.size, generator=generator).to(operator.device, operator.dtype))
        last, agreed = None, False
        for _ in range(steps):
            for other in vectors:
                v = v - dot(v, other) * other
            v = _unit_vector(v)
            product = operator.matvec(v)
            matvecs += 1
            quotient = dot(product, v)
            residual = norm(product - quotient * v)
            v = _unit_vector(product)
            if agreed := last is not None and abs(last - quotient) / (abs(last) + 1e-6) < tol:
                break
            last = quotient
        vectors.append(v)
        values.append(last if last is not None else 0.0)
        residuals.append(residual)
        stopped.append(agreed)
    return np.array(values), np.array(residuals), matvecs, np.array(stopped)


def _unit_vector(v: Tensor) -> Tensor:
    return v / (norm(v) + 1e-6)  # PyHessian's guard against zero


def _rows(i: int, block: str, spectrum: Spectrum) -> list[Row]:
    columns = [spectrum[f"{block}/{column}"] for column in ("eigenvalue", "residual", "converged")]
    return [
        {"batch": i, "block": block, "rank": rank, "eigenvalue": float(value), "residual": float(residual)}
        | {"matvecs": spectrum[f"{block}/matvecs"].item(), "converged": bool(converged)}
        for rank, (value, residual, converged) in enumerate(zip(*columns, strict=True), start=1)
    ]


def _products(per_batch: Sequence[int]) -> dict[str, float]:
    """Summary of the number of products per batch."""
    return {"mean": round(float(np.mean(per_batch)), 2), "max": max(per_batch), "total": sum(per_batch)}


@dataclass(frozen=True, repr=False)
class HessianSpectrum(Result):
    """One row per eigenvalue: batch, block of the Hessian, rank by magnitude, residual |Hv - eigenvalue v|, products.

    ``arrays["negative"]``, ``arrays["positive"]``: (eigenvalue, density, low, high) x points; absent without eigenvalues of
    this sign.
    """

    analysis: ClassVar[str] = "hessian"
    panels: ClassVar[tuple[str, ...]] = ("negative", "positive", "ranks", "batches")

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 4, the density of each sign on separate axes; each eigenvalue by its rank, and those of each batch."""
        if panel == "batches":
            self._draw_batches(ax)
        elif panel == "ranks":
            self._draw_ranks(ax)
        else:
            self._draw_density(ax, panel)

    @property
    def measured(self) -> str:
        """Mini-batches, of so many images."""
        return f"{counted(len({row['batch'] for row in self.table}), 'mini-batch', 'mini-batches')} of {self.over} in all"

    def _draw_density(self, ax: Axes, side: str) -> None:
        from backlight.results import figures

        colour = figures.KIND_COLOUR["attention" if side == "negative" else "conv"]
        nep, ape = (self.provenance["summary"]["all"][key] for key in ("nep", "ape"))
        if side in self.arrays:
            grid, density, low, high = self.arrays[side]
            ax.fill_between(grid, low, high, color=colour, alpha=0.2, lw=0)
            ax.plot(grid, density, color=colour)
            values = [row["eigenvalue"] for row in self._rows_of_side(side == "negative")]
            ax.plot(values, np.zeros(len(values)), "|", color="0.3", markersize=5, alpha=0.6, clip_on=False, zorder=3)
            ax.set(xlim=(grid[0], grid[-1]), ylim=(0, None))
        else:
            ax.text(0.5, 0.5, f"none is {side}", transform=ax.transAxes, ha="center", color="0.4")
            ax.set(xticks=[0], yticks=[])
        figures.label(ax, self.chart(side))
        share, mean = f"negative proportion (NEP)\n{_interval(nep, 100)} %", f"average positive (APE)\n{_interval(ape)}"
        ax.set_title(share if side == "negative" else mean)

    def _draw_ranks(self, ax: Axes) -> None:
        """The mean over mini-batches of the eigenvalue of each rank by magnitude, with its interval."""
        from matplotlib.ticker import MaxNLocator

        from backlight.results import figures

        rows = [row for row in self.table if row["block"] == "all"]
        ranks = sorted({row["rank"] for row in rows})
        values = np.array([[row["eigenvalue"] for row in rows if row["rank"] == rank] for rank in ranks], float)
        mean, low, high = mean_interval(values.T)
        first = ranks[0]
        for negative, kind in ((True, "attention"), (False, "conv")):
            own = (mean < 0) == negative
            error = np.nan_to_num(np.abs([mean - low, high - mean])[:, own])
            at = np.array(ranks)[own] - first + 1
            ax.errorbar(at, mean[own], error, fmt="o", color=figures.KIND_COLOUR[kind], ms=2.5, elinewidth=0.8)
        ax.axhline(0, color="0.2", lw=0.6)
        ax.set_xlim(0.4, len(ranks) + 0.6)
        figures.label(ax, self.chart("ranks"))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))

    def _draw_batches(self, ax: Axes) -> None:
        """Every eigenvalue on a symmetric logarithmic axis; open markers did not converge."""
        from matplotlib.ticker import MaxNLocator

        from backlight.results import figures

        for negative, kind in ((True, "attention"), (False, "conv")):
            for converged in (True, False):
                rows = [row for row in self._rows_of_side(negative) if row["converged"] == converged]
                ax.plot(
                    [row["batch"] for row in rows],
                    [row["eigenvalue"] for row in rows],
                    "o",
                    color=figures.KIND_COLOUR[kind],
                    markersize=2.5,
                    markerfacecolor=None if converged else "none",
                )
        ax.axhline(0, color="0.2", lw=0.6)
        rows = [row for row in self.table if row["block"] == "all"]
        sizes = [abs(row["eigenvalue"]) for row in rows if row["eigenvalue"]] or [1.0]
        least, most = (int(np.floor(np.log10(size))) for size in (min(sizes), max(sizes)))
        ax.set_yscale("symlog", linthresh=10.0**least, linscale=0.3)
        powers = 10.0 ** np.arange(least, most + 1)
        ticks = [*-powers[::-1], 0, *powers] if least < most else [*-powers, *powers]
        ax.set_yticks(ticks[:: 1 + len(ticks) // 10], minor=False)
        ax.yaxis.set_major_formatter(figures.powers_of_ten)
        low, high = (min(row["eigenvalue"] for row in rows), max(row["eigenvalue"] for row in rows))
        ax.set_xlim(-0.7, rows[-1]["batch"] + 0.7)
        figures.label(ax, self.chart("batches"))
        ax.set_ylim(2 * min(low, -(10.0**least) / 2), 2 * max(high, 10.0**least / 2))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))

    def _rows_of_side(self, negative: bool) -> list[Row]:
        """The rows of the block "all" with negative eigenvalues, or with the others."""
        return [row for row in self.table if row["block"] == "all" and (row["eigenvalue"] < 0) == negative]


def _interval(interval: Sequence[float], scale: float = 1) -> str:
    value, low, high = (float(f"{scale * end:.3g}") for end in interval)
    return f"{value:g} [{low:g}, {high:g}]" if np.isfinite(low) else f"{value:g}"
