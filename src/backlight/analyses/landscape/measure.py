"""Loss landscape: the loss around the trained weights, along a line or over a plane.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figure 1a, with the directions of Li et al., "Visualizing the Loss
Landscape of Neural Nets" (NeurIPS 2018): random, with each filter as long as the model's own.  All points use the same images;
NLL and weight decay are reported apart.  The authors' published figures differ in all of this; ``paper=True`` follows them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backlight.analyses.entry import Track
from backlight.analyses.landscape.flatness import STEP, ResampledMean, claims, flatness, resampled_mean
from backlight.analyses.landscape.result import Landscape
from backlight.analyses.landscape.settings import LandscapeSettings
from backlight.analyses.shards import refuse_no_shard
from backlight.analyses.training_loss import training_objective
from backlight.curvature.directions import Plane, Snapshot, eigenvector_plane, path_plane, random_plane
from backlight.curvature.loss import Loss, Objective, Predicate, soft_cross_entropy
from backlight.curvature.perturbed import (
    Batch,
    BFloat16PerturbedModel,
    PerturbedModel,
    batches_sha256,
    channels_last,
    fixed_batches,
    image_count,
    image_scores,
    refuse_unfit_weights,
    trainable_weights,
)
from backlight.files import PartialResults
from backlight.numerics import weight_space
from backlight.numerics.bootstrap import Interval, mean_interval
from backlight.numerics.calibration import ece_of_points
from backlight.numerics.proportions import share_interval
from backlight.numerics.surface_shape import second_differences
from backlight.progress import clock
from backlight.results.provenance import provenance
from backlight.results.result import Row, columns
from backlight.tracing.trace import inside, model_name, plain_attention

Array = NDArray[np.float64]
Arrays = dict[str, np.ndarray]

#: The relative difference between bfloat16 and float32 above which the provenance holds a warning.
AGREEMENT = 1e-3


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    settings: LandscapeSettings,
    *,
    snapshots: Sequence[Snapshot],
    loss: Loss | None,
    decayed: Predicate | None,
    resamples: int,
    seed: int,
    name: str | None,
    partial_results: PartialResults | None,
    shard: tuple[int, int],
    track: Track,
) -> Landscape:
    """The result of `backlight.landscape` with these settings."""
    started = time.perf_counter()
    refuse_no_shard(shard)
    model = inside(model)  # weights of a compiled model are slow to change
    settings, objective, recipe = training_objective(settings, model, batches, loss=loss, decayed=decayed)
    refuse_unfit_weights(model)
    fixed = fixed_batches(model, batches, objective)
    plane = _plane(model, fixed, objective, settings, snapshots, seed)
    recorded = asdict(settings) | {"normalise": _normalisation(settings), "snapshots": len(snapshots)}
    facts = provenance(model, batches, images=image_count(fixed), resamples=resamples, seed=seed, **recorded)
    key = _fingerprint(facts["model"]["weights_sha256"], plane.provenance["sha256"], batches_sha256(fixed), facts["settings"])
    evaluators = Evaluators.of(model, fixed, objective, plane.directions, settings)
    partial_results = partial_results or PartialResults(None, {})
    rows, centre = _grid_scores(evaluators, settings, partial_results, key, shard, track)
    points = Points.of(rows, settings)
    decay, decay_curvature = _decay(model, plane, objective, points.x, points.y, paper=settings.paper)
    nll = resampled_mean(points.nll, resamples, seed)
    table = _table(points, nll, decay, settings.bins, resamples, seed)
    missing = [i for i in range(len(second_coordinates(settings))) if i not in rows]
    curvature = _curvature(centre, STEP * settings.radius, resamples, seed)
    facts |= {
        "points": len(table),
        "missing_rows": missing,
        "not_finite": sum(not np.isfinite(row["nll"]) for row in table),
        "recipe": recipe,
        "plane": plane.provenance,
        "switched_off": "dropout and drop path",
        "flatness": {} if missing else flatness(nll, decay, curvature, decay_curvature, settings),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if settings.precision == "bfloat16":
        facts["agreement"] = _agreement(rows, settings)
    tested = [] if missing else claims(nll, curvature, settings, image_count(fixed))
    arrays = plane.arrays if missing else plane.arrays | _per_image(points, settings)
    return Landscape(model_name(model, name), table, tested, facts, arrays)


def first_coordinates(settings: LandscapeSettings) -> Array:
    """Coordinates along the first direction; the middle one is exactly 0, the trained weights.  Shapes: -> (grid,)."""
    half = settings.grid // 2
    return settings.radius * np.arange(-half, half + 1) / half


def second_coordinates(settings: LandscapeSettings) -> Array:
    """Coordinates along the second direction.  Shapes: -> (grid,), or (1,) on a line."""
    return first_coordinates(settings) if settings.dimensions == 2 else np.zeros(1)


def _normalisation(settings: LandscapeSettings) -> str:
    """The normalisation of directions; default: filter by filter for random directions, none for others."""
    return settings.normalise or ("filter" if settings.directions == "random" else "none")


def _plane(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective,
    settings: LandscapeSettings,
    snapshots: Sequence[Snapshot],
    seed: int,
) -> Plane:
    count, normalise = settings.dimensions, _normalisation(settings)
    if settings.directions == "eigenvectors":
        return eigenvector_plane(model, batches, objective, count, seed, normalise)
    if settings.directions == "path":
        return path_plane(model, snapshots, count, normalise)
    return random_plane(model, count, seed, normalise, settings.ignore, paper=settings.paper)


def _fingerprint(*parts: Any) -> str:
    """A name for the partial results of one surface, so that they are not used for another."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


# --- cost


@dataclass(frozen=True)
class Plan:
    """What a landscape will cost."""

    points: int
    images: int  # at each point
    seconds: float  # estimated

    def __str__(self) -> str:
        return f"{self.points:,} points x {self.images:,} images: about {clock(self.seconds)}"


def plan(model: nn.Module, batches: Iterable[Any], settings: LandscapeSettings, *, loss: Loss | None = None) -> Plan:
    """What a landscape with these settings will cost, estimated from the second pass over one batch."""
    model = inside(model)
    refuse_unfit_weights(model)
    objective = Objective(loss or soft_cross_entropy, statistics=settings.statistics)
    fixed = fixed_batches(model, batches, objective)
    evaluator = Evaluators.of(model, fixed[:1], objective, [], settings).fast
    with torch.inference_mode(), plain_attention():
        evaluator.scores()
        started = time.perf_counter()
        evaluator.scores()
        seconds = time.perf_counter() - started
    points, images = settings.grid**settings.dimensions, image_count(fixed)
    return Plan(points, images, seconds / image_count(fixed[:1]) * images * points)


# --- scores of images at points of the grid


@dataclass(frozen=True)
class Evaluator:
    """The scores of fixed images at points of the plane."""

    perturbed: PerturbedModel | BFloat16PerturbedModel
    batches: Sequence[Batch]
    objective: Objective

    def scores(self, *coordinates: float) -> Array:
        """Loss, correctness and confidence of each image at a point.  Shapes: -> (3, n)."""
        return image_scores(self.perturbed.at(*coordinates), self.batches, self.objective)

    def row(self, xs: Array, y: float) -> Arrays:
        """One row of the grid: ``nll``, ``correct`` and ``confidence``.  Shapes: xs (X,) -> (X, n) each."""
        scores = np.stack([self.scores(x, y) for x in xs], 1)
        return dict(zip(("nll", "correct", "confidence"), scores, strict=True))

    def around_centre(self, directions: int, step: float) -> Arrays:
        """NLL at the centre, and a step behind and ahead along each direction.  Shapes: -> (n,) and (directions, 2, n)."""
        axes = np.eye(directions)
        ends = [[self.scores(*(side * step * axis))[0] for side in (-1, 1)] for axis in axes]
        return {"centre": self.scores()[0], "ends": np.array(ends)}


class Evaluators(NamedTuple):
    """The evaluator in the model's own precision, and the one in the requested precision."""

    exact: Evaluator
    fast: Evaluator
    directions: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Sequence[Batch],
        objective: Objective,
        directions: Sequence[dict[str, Tensor]],
        settings: LandscapeSettings,
    ) -> Evaluators:
        """The evaluators of a model; without bfloat16 they are the same."""
        perturbed = PerturbedModel(model, directions, settings.statistics)
        exact = fast = Evaluator(perturbed, batches, objective)
        if settings.precision == "bfloat16":
            fast = Evaluator(BFloat16PerturbedModel(perturbed, batches), channels_last(batches), objective)
        return cls(exact, fast, len(directions))


def _grid_scores(
    evaluators: Evaluators,
    settings: LandscapeSettings,
    partial_results: PartialResults,
    key: str,
    shard: tuple[int, int],
    track: Track,
) -> tuple[dict[int, Arrays], Arrays]:
    """The scores of every finished row of the grid, by its number, and those around the centre.

    A row is finished if this call or another process of the same surface has computed it.  In bfloat16, rows hold ``exact``
    too, float32 NLL at up to three points.
    """
    xs, ys = first_coordinates(settings), second_coordinates(settings)
    rank, world = shard

    def stored(numbers: Iterable[int]) -> dict[int, Arrays]:
        return {i: row for i in numbers if (row := partial_results.get(f"{key}-row-{i:03}")) is not None}

    rows = stored(range(len(ys)))
    centre = partial_results.get(f"{key}-centre")
    with torch.inference_mode(), plain_attention():
        if centre is None:
            centre = evaluators.exact.around_centre(evaluators.directions, STEP * settings.radius)
            partial_results.put(f"{key}-centre", centre)
        for i in track([i for i in range(len(ys)) if i not in rows and i % world == rank]):
            rows[i] = evaluators.fast.row(xs, float(ys[i]))
            if settings.precision == "bfloat16" and i in _ends_and_middle(len(ys)):
                rows[i]["exact"] = evaluators.exact.row(xs[_ends_and_middle(len(xs))], float(ys[i]))["nll"]
            partial_results.put(f"{key}-row-{i:03}", rows[i])
    rows |= stored(i for i in range(len(ys)) if i not in rows)  # finished by other shards in the meantime
    return dict(sorted(rows.items())), centre


def _ends_and_middle(size: int) -> list[int]:
    """The first, the middle and the last index of a sequence of this size."""
    return sorted({0, size // 2, size - 1})


# --- from scores of images to rows of the table


class Points(NamedTuple):
    """The scores at all points, one point after the other.  Shapes: x, y (points,), scores (points, n)."""

    x: Array
    y: Array
    nll: Array
    correct: Array
    confidence: Array

    @classmethod
    def of(cls, rows: Mapping[int, Arrays], settings: LandscapeSettings) -> Points:
        """The points of the finished rows."""
        if not rows:
            return cls(np.zeros(0), np.zeros(0), *(np.zeros((0, 1)) for _ in range(3)))
        x = np.tile(first_coordinates(settings), len(rows))
        y = np.repeat(second_coordinates(settings)[list(rows)], settings.grid)
        return cls(x, y, *(np.concatenate([row[score] for row in rows.values()]) for score in cls._fields[2:]))


def _decay(model: nn.Module, plane: Plane, objective: Objective, x: Array, y: Array, *, paper: bool) -> tuple[Array, Array]:
    """The weight decay term at points of the plane, in closed form, and its curvature along each direction.

    (wd/2) ||w + x d + y e||^2 over the parameters that decay.  The authors' term is wd times the sum over tensors of
    ||w + x d + y e||, not squared; its curvature is not constant, so it is NaN.
    Shapes: x, y (points,) -> (points,), (directions,).
    """
    parameters = dict(model.named_parameters())
    centre = {name: w for name, w in trainable_weights(model).items() if paper or objective.decayed(name, parameters[name])}
    vectors = [centre, *({name: d[name] for name in centre} for d in plane.directions)]
    if paper:
        centre |= {name: p.detach() for name, p in parameters.items() if not p.requires_grad}
        vectors[1:] = [{name: d.get(name, torch.zeros_like(w)) for name, w in centre.items()} for d in vectors[1:]]
        squares = weight_space.squared_norm(np.stack(list(weight_space.grams(vectors).values())), x, y)
        return objective.weight_decay * np.sqrt(np.maximum(squares, 0)).sum(0), np.full(len(plane.directions), np.nan)
    products = weight_space.gram(vectors) if centre else np.zeros((len(vectors), len(vectors)))
    decay = objective.weight_decay / 2 * weight_space.squared_norm(products, x, y)
    return decay, objective.weight_decay * np.diag(products)[1:]


def _table(points: Points, nll: ResampledMean, decay: Array, bins: int, resamples: int, seed: int) -> list[Row]:
    """A row per point.  Shapes: decay (points,)."""
    intervals = {
        "nll": nll.interval(),
        "loss": nll.interval(decay),
        "accuracy": share_interval(points.correct.T),
        "ece": ece_of_points(points.confidence, points.correct, bins, resamples, seed),
    }

    def row(p: int) -> Row:
        cells = {column: columns(column, (end[p] for end in interval)) for column, interval in intervals.items()}
        point = {"x": points.x[p], "y": points.y[p]}
        return point | cells["nll"] | {"decay": decay[p]} | cells["loss"] | cells["accuracy"] | cells["ece"]

    return [row(p) for p in range(len(points.x))]


def _per_image(points: Points, settings: LandscapeSettings) -> Arrays:
    """What models are compared by, image by image: the NLL at the centre, and its rise.  Shapes: (n,) each."""
    numbers = {"nll": points.nll[len(points.nll) // 2], "rise": _rise(points, settings)}
    with np.errstate(over="ignore"):  # beyond float32 it is infinite
        return {f"per_image/{name}": values.astype(np.float32) for name, values in numbers.items()}


def _rise(points: Points, settings: LandscapeSettings) -> Array:
    """The rise of each image's NLL from the centre to half of the radius, the mean over the points next to that circle.

    Shapes: -> (n,).
    """
    distance, spacing = np.hypot(points.x, points.y), settings.radius / (settings.grid // 2)
    ring = abs(distance - settings.radius / 2) <= spacing / 2 * (1 + 1e-9)
    with np.errstate(invalid="ignore"):
        return points.nll[ring].mean(0) - points.nll[len(points.nll) // 2]


def _curvature(centre: Arrays, step: float, resamples: int, seed: int) -> Interval:
    """Curvature of NLL at the centre along each direction, paired over images.  Shapes: -> (directions,) each."""
    behind, ahead = centre["ends"].transpose(1, 0, 2)
    with np.errstate(invalid="ignore"):
        curvature = second_differences(behind, centre["centre"], ahead, step)
        return mean_interval(curvature.T, resamples=resamples, seed=seed)


def _agreement(rows: Mapping[int, Arrays], settings: LandscapeSettings) -> dict[str, Any]:
    """NLL in bfloat16 and in float32 at the centre, the corners and the ends of the axes, and their largest difference."""
    means = [
        (row["nll"][k].mean(), exact.mean())
        for row in rows.values() if "exact" in row
        for k, exact in zip(_ends_and_middle(settings.grid), row["exact"], strict=True)
    ]  # fmt: skip
    rounded, exact = np.array(means).reshape(-1, 2).T
    with np.errstate(invalid="ignore", divide="ignore"):
        largest = float(np.max(np.abs(rounded / exact - 1), initial=0))
    agreement = {"points": len(means), "float32": exact.tolist(), "bfloat16": rounded.tolist()}
    agreement["largest_relative_difference"] = largest
    if not largest <= AGREEMENT:
        agreement["warning"] = f"bfloat16 changes NLL by more than {AGREEMENT:g} of it: use precision='float32' for this model"
    return agreement
