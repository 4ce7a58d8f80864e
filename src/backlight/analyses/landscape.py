"""Loss landscape: how does the loss rise around the trained weights, along a line or over a plane?

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figure 1a, with the directions of Li et al., "Visualizing the Loss
Landscape of Neural Nets" (NeurIPS 2018): random, and each filter as long as the model's own.  The same images at every point;
NLL and weight decay apart.  The authors' published figures differ in all of this: ``paper=True`` follows them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import UserError, did_you_mean
from ..evidence import evidence
from ..numerics import plane, relief
from ..numerics.bootstrap import Interval, counts, mean_interval
from ..objective import Objective, Predicate, everything, soft_cross_entropy, uncompiled
from ..pieces import Pieces
from ..result import Claim, Result, Row, columns
from ..trace import plain_attention
from .directions import IGNORED, Plane, Snapshot, eigenplane, path_plane, random_plane
from .moving import Images, Loss, Mover, Rounded, refuse_unfit, trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Arrays = dict[str, np.ndarray]
Watch = Callable[[list[int]], Iterable[int]]

DIRECTIONS = ("random", "eigenvectors", "path")
PRECISIONS = ("float32", "bfloat16")
#: Curvature at the centre is taken over this share of the radius: float32 still resolves it, higher derivatives do not show.
STEP = 0.01
#: Flatness as a radius: how far out the loss has risen by so many nats.
RISE = 1.0
#: bfloat16 must agree with float32 within this share of the value.
AGREE = 1e-3
#: Numbers that the bootstrap of ECE holds at once.
HELD = 20_000_000


# --- what is asked


@dataclass(frozen=True)
class Asked:
    """The settings of a landscape, as they go into its evidence.  Errors: UserError for one that cannot be."""

    grid: int
    radius: float
    dimensions: int
    directions: str
    normalise: str
    ignore: tuple[str, ...]
    weight_decay: float
    precision: str
    statistics: str
    paper: bool
    bins: int

    def __post_init__(self) -> None:
        if isinstance(self.grid, bool) or not isinstance(self.grid, int) or self.grid < 3 or self.grid % 2 == 0:
            raise UserError(f"grid={self.grid!r}: it must be odd and at least 3, so that the trained weights are a point of it")
        if not 0 < self.radius < float("inf"):
            raise UserError(f"radius={self.radius!r}: it must be a positive number")
        if self.dimensions not in (1, 2):
            raise UserError(f"dimensions={self.dimensions!r}: a landscape has 1 or 2")
        for what, known in (("directions", DIRECTIONS), ("normalise", ("filter", "none")), ("precision", PRECISIONS)):
            if (value := getattr(self, what)) not in known:
                raise UserError(f"{what}={value!r}: there are {', '.join(known)}{did_you_mean(str(value), known)}")
        if self.paper and self.directions != "random":
            raise UserError(f"paper with directions={self.directions!r}: the authors' directions are random")
        if self.bins < 1:
            raise UserError(f"ECE needs at least 1 bin, got {self.bins}")

    @property
    def across(self) -> Array:
        """Coordinates along the first direction; 0, the trained weights, is exactly the middle one.  Shapes: -> (grid,)."""
        half = self.grid // 2
        return self.radius * np.arange(-half, half + 1) / half

    @property
    def along(self) -> Array:
        """Coordinates along the second direction.  Shapes: -> (grid,) or (1,)."""
        return self.across if self.dimensions == 2 else np.zeros(1)


def landscape(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    grid: int = 21,
    radius: float = 1.0,
    dimensions: int = 2,
    directions: str = "random",
    snapshots: Sequence[Snapshot] = (),
    normalise: str | None = None,
    ignore: Sequence[str] = IGNORED,
    loss: Loss = soft_cross_entropy,
    weight_decay: float = 0.05,
    decayed: Predicate = everything,
    precision: str = "float32",
    statistics: str = "running",
    paper: bool = False,
    bins: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
    pieces: Pieces | None = None,
    shard: tuple[int, int] = (0, 1),
    watch: Watch = lambda rows: rows,
) -> Landscape:
    """NLL, weight decay, their sum, accuracy and ECE at ``grid`` points along each direction, with 95% intervals over images.

    ``batches`` yields (images, targets), targets classes or probabilities; all are held in memory and used at every point.
    ``radius`` is in units of the directions: the model's own filters for random ones, Euclidean length for eigenvectors of the
    Hessian, the farthest snapshot for the principal axes of a path.  ``normalise``: ``"filter"`` or ``"none"``; default:
    filter by filter for random directions alone.  Parameters that are trained move, those whose name holds a word of
    ``ignore`` not at random, buffers never.  ``precision="bfloat16"`` checks up to nine points against float32.  ``paper``
    has the authors' normalisation and weight decay.  Rows of the grid are kept in ``pieces`` and not computed twice;
    ``shard=(rank, world)`` computes its share of them; ``watch`` wraps the rows to do.
    Errors: UserError for no images, targets the model has no output for, nothing to move, weights that are not finite.
    """
    started = time.perf_counter()
    normalise = normalise or ("filter" if directions == "random" else "none")
    asked = Asked(
        grid, radius, dimensions, directions, normalise, tuple(ignore), weight_decay, precision, statistics, paper, bins
    )
    if not (len(shard) == 2 and 0 <= shard[0] < shard[1]):
        raise UserError(f"shard={shard!r}: it is (rank, world) with 0 <= rank < world")
    model = uncompiled(model)  # slow to change
    objective = Objective(loss, weight_decay, decayed, statistics)
    refuse_unfit(model)
    images = Images.held(model, batches, objective)
    chosen = _plane(model, images, objective, asked, snapshots, seed)
    facts = evidence(model, batches, images=images.count, resamples=resamples, seed=seed, **asdict(asked))
    key = _fingerprint(facts["model"]["weights_sha256"], chosen.evidence["sha256"], images.sha256(), facts["settings"])
    measured = _measured(model, images, objective, asked, chosen, pieces or Pieces(None, {}), key, shard, watch)
    seen = Seen.of(measured.rows, asked)
    decay, decay_curvature = _decay(model, chosen, objective, seen.x, seen.y, paper=paper)
    nll = _resampled(seen.nll, resamples, seed)
    table = _table(seen, nll, decay, bins, resamples, seed)
    missing = [i for i in range(len(asked.along)) if i not in measured.rows]
    curvature = _curvature(measured.around, STEP * radius, resamples, seed)
    facts |= {
        "points": len(table),
        "missing_rows": missing,
        "not_finite": sum(not np.isfinite(row["nll"]) for row in table),
        "plane": chosen.evidence,
        "switched_off": "dropout and drop path",
        "flatness": {} if missing else _flatness(nll, decay, curvature, decay_curvature, asked),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if precision == "bfloat16":
        facts["agreement"] = _agreement(measured.rows, asked)
    claims = [] if missing else _claims(nll, curvature, asked)
    return Landscape(name or type(model).__name__, table, claims, facts, chosen.arrays)


def _plane(
    model: nn.Module, images: Images, objective: Objective, asked: Asked, snapshots: Sequence[Snapshot], seed: int
) -> Plane:
    if asked.directions == "eigenvectors":
        return eigenplane(model, images, objective, asked.dimensions, seed, asked.normalise)
    if asked.directions == "path":
        return path_plane(model, snapshots, asked.dimensions, asked.normalise)
    return random_plane(model, asked.dimensions, seed, asked.normalise, asked.ignore, paper=asked.paper)


def _fingerprint(*what: Any) -> str:
    """Names the pieces of one surface, so that another's are never taken for them."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]


# --- what it costs


@dataclass(frozen=True)
class Plan:
    """What a landscape will cost: so many points, the same images at each."""

    points: int
    images: int
    seconds: float  # foreseen

    def __str__(self) -> str:
        from ..progress import clock

        return f"{self.points:,} points x {self.images:,} images: about {clock(self.seconds)}"


def plan(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    grid: int = 21,
    dimensions: int = 2,
    loss: Loss = soft_cross_entropy,
    precision: str = "float32",
    statistics: str = "running",
    **others: Any,
) -> Plan:
    """What ``landscape`` with these settings will cost, from the second pass over one batch.  Takes all settings of it."""
    model = uncompiled(model)
    refuse_unfit(model)
    objective = Objective(loss, statistics=statistics)
    images = Images.held(model, batches, objective)
    first, exact = Images(images.batches[:1]), Mover(model, [], statistics)
    mover: Mover | Rounded = exact
    if precision == "bfloat16":
        mover, first = Rounded(exact, first), first.channels_last()
    with torch.inference_mode(), plain_attention():
        first.scores(mover.at(), objective)
        started = time.perf_counter()
        first.scores(mover.at(), objective)
        seconds = time.perf_counter() - started
    points = grid**dimensions
    return Plan(points, images.count, seconds / first.count * images.count * points)


# --- going over the grid


class Measured(NamedTuple):
    """What the images gave at the rows of the grid that are finished, and around the centre."""

    rows: dict[int, Arrays]  # number of the row -> nll, correct, confidence (grid, n); in bfloat16 also exact (<= 3, n)
    around: Arrays  # centre (n,) and ends (directions, 2, n): NLL


def _measured(
    model: nn.Module, images: Images, objective: Objective, asked: Asked, chosen: Plane,
    pieces: Pieces, key: str, shard: tuple[int, int], watch: Watch,
) -> Measured:  # fmt: skip
    """Every row of the grid that is this shard's to compute, or is there already."""
    places = range(len(asked.along))

    def there(but: Iterable[int] = ()) -> dict[int, Arrays]:
        return {i: piece for i in places if i not in but and (piece := pieces.get(f"{key}-row-{i:03}")) is not None}

    rows = there()
    around = pieces.get(f"{key}-centre")
    mover = Mover(model, chosen.directions, asked.statistics)
    rough = asked.precision == "bfloat16"
    working: tuple[Mover | Rounded, Images] = (Rounded(mover, images), images.channels_last()) if rough else (mover, images)
    with torch.inference_mode(), plain_attention():
        if around is None:
            around = _around(mover, images, objective, STEP * asked.radius)
            pieces.put(f"{key}-centre", around)
        for i in watch([i for i in places if i not in rows and i % shard[1] == shard[0]]):
            rows[i] = _row(*working, objective, asked.across, asked.along[i])
            if rough and i in _thirds(len(places)):
                rows[i]["exact"] = _row(mover, images, objective, asked.across[_thirds(asked.grid)], asked.along[i])["nll"]
            pieces.put(f"{key}-row-{i:03}", rows[i])
    rows |= there(but=rows)  # what other shards have done in the meantime
    return Measured(dict(sorted(rows.items())), around)


def _row(mover: Mover | Rounded, images: Images, objective: Objective, across: Array, y: float) -> Arrays:
    """One row of the grid.  Shapes: (len(across), n) each."""
    found = np.stack([images.scores(mover.at(x, y), objective) for x in across], 1)
    return dict(zip(("nll", "correct", "confidence"), found, strict=True))


def _around(mover: Mover, images: Images, objective: Objective, step: float) -> Arrays:
    """NLL of each image at the centre, and a small step back and ahead along each direction."""
    ways = np.eye(len(mover.directions))
    ends = [[images.scores(mover.at(*(side * step * way)), objective)[0] for side in (-1, 1)] for way in ways]
    return {"centre": images.scores(mover.at(), objective)[0], "ends": np.array(ends)}


def _thirds(size: int) -> list[int]:
    """The first, the middle and the last of so many; of one, that one."""
    return sorted({0, size // 2, size - 1})


# --- from numbers an image to numbers a point


class Seen(NamedTuple):
    """Everything measured, a point after another.  Shapes: (points,) and (points, n)."""

    x: Array
    y: Array
    nll: Array
    correct: Array
    confidence: Array

    @classmethod
    def of(cls, rows: Mapping[int, Arrays], asked: Asked) -> Seen:
        if not rows:
            return cls(np.zeros(0), np.zeros(0), *(np.zeros((0, 1)) for _ in range(3)))
        x, y = np.tile(asked.across, len(rows)), np.repeat(asked.along[list(rows)], asked.grid)
        return cls(x, y, *(np.concatenate([row[what] for row in rows.values()]) for what in cls._fields[2:]))


def _decay(model: nn.Module, chosen: Plane, objective: Objective, x: Array, y: Array, *, paper: bool) -> tuple[Array, Array]:
    """The weight decay's part of the loss at points of the plane, in closed form, and its curvature along each direction.

    (wd/2) ||w + x d + y e||^2 over what decays; the authors' is wd times the sum over tensors of ||w + x d + y e||, not
    squared, whose curvature is not one number: NaN.
    """
    own = dict(model.named_parameters())
    decaying = {name: w for name, w in trained(model).items() if paper or objective.decayed(name, own[name])}
    points = [decaying, *({name: d[name] for name in decaying} for d in chosen.directions)]
    if paper:
        points[0] |= {name: p.detach() for name, p in own.items() if not p.requires_grad}
        points[1:] = [{name: d.get(name, torch.zeros_like(w)) for name, w in points[0].items()} for d in points[1:]]
        squares = plane.squared_norm(np.stack(list(plane.grams(points).values())), x, y)
        return objective.weight_decay * np.sqrt(np.maximum(squares, 0)).sum(0), np.full(len(points) - 1, np.nan)
    products = plane.gram(points) if decaying else np.zeros((len(points), len(points)))
    return objective.weight_decay / 2 * plane.squared_norm(products, x, y), objective.weight_decay * np.diag(products)[1:]


class Resampled(NamedTuple):
    """Means over images, and how far each resample of the images is from them; paired over points."""

    value: Array  # (points,)
    deviations: Array  # (resamples, points); NaN where the value is not finite, or there is one image


def _resampled(samples: Array, resamples: int, seed: int) -> Resampled:
    """Shapes: (points, n)."""
    points, images = samples.shape
    with np.errstate(invalid="ignore"):
        value = samples.mean(1)
        centred = (samples - value[:, None]).T
        if images < 2:
            return Resampled(value, np.full((1, points), np.nan))
        return Resampled(value, np.concatenate([w @ centred for w in counts(images, resamples, seed)]) / images)


def _percentile(value: Array, deviations: Array) -> Interval:
    low, high = value + np.quantile(deviations, [0.025, 0.975], axis=0)
    return Interval(value, low, high)


def _table(seen: Seen, nll: Resampled, decay: Array, bins: int, resamples: int, seed: int) -> list[Row]:
    """A row a point."""
    found = {
        "nll": _percentile(*nll),
        "loss": _percentile(nll.value + decay, nll.deviations),
        "accuracy": mean_interval(seen.correct.T, resamples=resamples, seed=seed),
        "ece": eces(seen.confidence, seen.correct, bins, resamples, seed),
    }

    def row(p: int) -> Row:
        several = {what: columns(what, (end[p] for end in interval)) for what, interval in found.items()}
        place = {"x": seen.x[p], "y": seen.y[p]}
        return place | several["nll"] | {"decay": decay[p]} | several["loss"] | several["accuracy"] | several["ece"]

    return [row(p) for p in range(len(seen.x))]


def eces(confidence: Array, correct: Array, bins: int, resamples: int, seed: int) -> Interval:
    """ECE at each point with its basic interval, within 0..1 and around the estimate, as ``calibration`` has it.

    Shapes: (points, n) x 2 -> (points,) each.  Many points at once: one by one takes longer than the forward passes.
    """
    points, images = confidence.shape
    some = max(1, HELD // (images * bins))
    parts = [_eces(confidence[p : p + some], correct[p : p + some], bins, resamples, seed) for p in range(0, points, some)]
    return Interval(*(np.concatenate(column) for column in zip(*parts, strict=True))) if parts else Interval(*np.zeros((3, 0)))


def _eces(confidence: Array, correct: Array, bins: int, resamples: int, seed: int) -> Interval:
    points, images = confidence.shape
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)  # bins (a, b], as everywhere
    gaps = np.zeros((points, images, bins))
    np.put_along_axis(gaps, which[..., None], (confidence - correct)[..., None], 2)
    flat = gaps.transpose(1, 0, 2).reshape(images, -1)

    def ece(weights: Array) -> Array:
        return np.abs((weights @ flat).reshape(*weights.shape[:-1], points, bins)).sum(-1) / images

    value = ece(np.ones(images))
    if images < 2:
        return Interval(value, np.full(points, np.nan), np.full(points, np.nan))
    low, high = _basic(value, np.concatenate([ece(w) for w in counts(images, resamples, seed)]))
    return Interval(value, np.minimum(value, np.maximum(low, 0)), np.maximum(value, np.minimum(high, 1)))


def _basic(value: Array, resampled: Array) -> tuple[Array, Array]:
    """Ends of the basic interval: the resamples reflected about the estimate.  Shapes: (...), (resamples, ...) -> (...) x 2."""
    least, most = np.quantile(resampled, [0.025, 0.975], axis=0)
    return 2 * value - most, 2 * value - least


def _agreement(rows: Mapping[int, Arrays], asked: Asked) -> dict[str, Any]:
    """How far bfloat16 is from float32 at the centre, the corners and the ends of the axes, over the same images."""
    means = [
        (row["nll"][k].mean(), exact.mean())
        for row in rows.values() if "exact" in row
        for k, exact in zip(_thirds(asked.grid), row["exact"], strict=True)
    ]  # fmt: skip
    rough, exact = np.array(means).reshape(-1, 2).T
    with np.errstate(invalid="ignore", divide="ignore"):
        worst = float(np.max(np.abs(rough / exact - 1), initial=0))
    found = {"points": len(means), "float32": exact.tolist(), "bfloat16": rough.tolist(), "largest_relative_difference": worst}
    if not worst <= AGREE:
        found["warning"] = f"bfloat16 is off by more than {AGREE:g} of the NLL: do not trust it here, say precision='float32'"
    return found


# --- flatness


def _curvature(around: Arrays, step: float, resamples: int, seed: int) -> Interval:
    """Curvature of NLL at the centre along each direction, paired over images.  Shapes: -> (directions,) each."""
    behind, ahead = around["ends"].transpose(1, 0, 2)
    with np.errstate(invalid="ignore"):
        curved = relief.second_differences(behind, around["centre"], ahead, step)
        return mean_interval(curved.T, resamples=resamples, seed=seed)


def _flatness(nll: Resampled, decay: Array, curvature: Interval, decay_curvature: Array, asked: Asked) -> dict[str, Any]:
    """Numbers for flatness, [value, low, high] each, in coordinates of the plane; infinite: not within it."""
    ways = relief.rays(len(asked.along), asked.grid)
    spacing = asked.radius / (asked.grid // 2)

    def shape(value: Array) -> dict[str, list[float]]:
        resampled = value + nll.deviations

        def of(statistic: Callable[[Array], Array]) -> list[float]:
            ends = np.quantile(statistic(resampled), [0.025, 0.975], axis=0, method="inverted_cdf")  # some are infinite
            return [float(statistic(value)), *map(float, ends)]

        return {
            "radius_of_rise": of(lambda s: spacing * np.median(relief.rise_radii(s, ways, RISE), -1)),
            "nearest_rise": of(lambda s: spacing * relief.rise_radii(s, ways, RISE).min(-1)),
            "share_of_rays_never_falling": of(lambda s: relief.never_falling(s, ways)),
        }

    return {
        "nll": shape(nll.value),
        "loss": shape(nll.value + decay),
        "curvature": [[float(end[d]) for end in curvature] for d in range(len(curvature.value))],
        "curvature_of_decay": decay_curvature.tolist(),
        "curvature_step": STEP * asked.radius,
        "rays": len(ways),
        "rise": RISE,
    }


def _claims(nll: Resampled, curvature: Interval, asked: Asked) -> list[Claim]:
    """What one model and one plane can say."""
    if not np.isfinite(nll.value[len(nll.value) // 2]):
        return []
    ways = relief.rays(len(asked.along), asked.grid)

    def smallest_step(surface: Array) -> Array:
        steps = relief.outward_steps(surface, ways)
        return np.where(np.isnan(steps), np.inf, steps).min(-1)  # beyond what is finite nothing is known

    value = smallest_step(nll.value)
    known = nll.deviations[:, np.isfinite(nll.deviations).all(0)].size > 0
    resampled = smallest_step(nll.value + nll.deviations)
    ends = _basic(value, resampled) if known and np.isfinite(resampled).all() else (np.nan, np.nan)
    flattest = int(np.argmin(curvature.value))
    return [
        Claim.of_sign(
            "positive",
            (value, *ends),
            statement="In this plane the loss rises all the way out from the trained weights.",
            source="Figure 1a",
            quantity=f"smallest change of NLL over a step of the grid outwards, on {len(ways)} rays (nats)",
        ),
        Claim.of_sign(
            "positive",
            (end[flattest] for end in curvature),
            statement="At the trained weights the loss curves upwards along every direction looked at.",
            source="Figures 1a and 4",
            quantity="smallest curvature of NLL along a direction (nats per squared coordinate)",
        ),
    ]


# --- the result


@dataclass(frozen=True)
class Landscape(Result):
    """A row a grid point, x fastest: NLL, weight decay, their sum ``loss`` (nats), accuracy and ECE (fractions).

    ``arrays``: ``products``, the inner products of weights and directions; ``directions`` (directions, P) where they are
    small; ``path`` (snapshots, directions), in the plane's coordinates, where they are a path's.
    """

    analysis: ClassVar[str] = "landscape"
    panels: ClassVar[tuple[str, ...]] = ("contour", "surface", "line")

    @property
    def height(self) -> str:
        """The column that figures show: NLL, or with ``paper`` the sum, as the authors' figure does."""
        return "loss" if self.evidence.get("settings", {}).get("paper") else "nll"

    @property
    def axes(self) -> tuple[str, str]:
        """What the coordinates are."""
        kinds = {"eigenvectors": "Eigenvector", "path": "Principal axis"}
        kind = kinds.get(self.evidence.get("settings", {}).get("directions", ""), "Direction")
        return f"{kind} 1", f"{kind} 2"

    def surface(self, column: str | None = None) -> tuple[Array, Array, Array]:
        """x, y and a column as a picture; NaN where a point was not measured.  Shapes: (X,), (Y,), (Y, X)."""
        x, y = (np.unique([row[axis] for row in self.table]) for axis in ("x", "y"))
        z = np.full((len(y), len(x)), np.nan)
        for row in self.table:
            z[np.searchsorted(y, row["y"]), np.searchsorted(x, row["x"])] = row[column or self.height]
        return x, y, z

    def figure(self) -> Figure:
        """Contours, the surface and cross-sections; of a line, that alone."""
        from .. import surfaces

        plain = len({row["y"] for row in self.table}) < 2
        return surfaces.figure([self], ("line",) if plain else self.panels)

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 1a, from above, in space (on 3-D axes), and cut through the centre."""
        from .. import surfaces

        surfaces.PANELS[panel](ax, self, surfaces.levels([self]))
