"""Common corruptions: how right is the model, and does it know, when images are noisy, blurred, foggy or compressed?

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR 2019), which
Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), use in figures 7, 12b and E.1.  Reliability under shift: Ovadia et
al., "Can You Trust Your Model's Uncertainty?" (2019).
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from torch import Tensor, nn

from .. import corruptions as making
from ..anatomy import evaluating, tensors
from ..data import cores, stratified
from ..errors import UserError
from ..evidence import evidence
from ..image_sets import pixels as pixels_of
from ..numerics.bootstrap import Interval, mean_interval, statistic_interval
from ..numerics.calibration import scores
from ..pixels import PixelSpace, pixel_space
from ..result import Result, Row, columns
from .calibration import labelled
from .single_pass import fit, refuse_other_classes, split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: AlexNet's error, mean over the severities, in percent, in the order of `COMMON`: what a corruption error is divided by.
#: "paper": the files `resources/results/*_alexnet_dnn_corrupted.csv` of Park & Kim's repository; "published": Hendrycks' own.
ALEXNET = {
    "paper": {
        "imagenet": (89.36, 90.21, 93.04, 85.06, 84.09, 80.74, 79.76, 87.43, 83.58, 83.68, 59.64, 87.16, 67.53, 71.78, 65.06),
        "cifar100": (71.30, 65.35, 78.60, 52.18, 70.60, 55.89, 54.98, 58.74, 61.06, 56.54, 48.84, 61.78, 52.24, 46.87, 49.83),
        "cifar10": (31.82, 27.48, 39.54, 16.54, 30.43, 21.10, 16.22, 24.84, 24.46, 23.03, 16.59, 28.12, 19.60, 18.35, 19.72),
    },
    "published": {
        "imagenet": (
            88.6428, 89.4468, 92.2640, 81.9880, 82.6268, 78.5948, 79.8360, 86.6816, 82.6572, 81.9324, 56.4592, 85.3204,
            64.6056, 71.7840, 60.6500,
        ),
    },
}  # fmt: skip


def corruption(
    model: nn.Module,
    data: Iterable[Any],
    *,
    corruptions: Sequence[str] = making.COMMON,
    severities: Sequence[int] = making.SEVERITIES,
    folder: str | Path | None = None,
    strengths: str = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bins: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Corruption:
    """Accuracy, NLL and ECE under each corruption and severity, and their changes, with paired 95% intervals over images.

    The images are corrupted on the fly, as pixels of the size that the model sees, in threads beside the forward pass; or they
    are read from the official ``folder`` (CIFAR-10-C, CIFAR-100-C, ImageNet-C), image by image those of ``data``.
    ``strengths``: "imagenet", "cifar", or "auto", which takes the latter up to 64 px.  ``mean`` and ``std`` say how the images
    were normalised where the data do not.  Each image's draw depends on the seed and its place in the data.

    Errors: UserError for an unknown corruption or severity, for data without labels or whose normalisation nobody tells, and
    for a folder whose images are not those of the data; Unavailable for a missing library or file.
    """
    started = time.perf_counter()
    names, severities = making.known(corruptions), _severities(severities)
    if bins < 1:
        raise UserError(f"corruption needs at least 1 bin, got {bins}")
    space = pixel_space(data, mean, std)
    source = _Folder.of(folder, names, severities, data) if folder is not None else _Made.of(names, strengths, seed)
    conditions = [("clean", 0), *((name, severity) for name in names for severity in severities)]
    kept: dict[tuple[str, int], list[NDArray[np.float64]]] = {condition: [] for condition in conditions}  # (3, B) each
    with evaluating(model), torch.inference_mode():
        for condition, batch, images in prepared(data, conditions, source, space):
            logits = next(tensors(model(fit(images, model))))
            if not kept["clean", 0]:
                refuse_other_classes(logits, data)
            labels = batch.labels.to(logits.device) if batch.labels is not None else None
            s = scores(*labelled(logits, labels))
            kept[condition].append(np.stack([s.prediction == s.label, s.nll, s.confidence]))
    if not kept["clean", 0]:
        raise UserError("no images: the data are empty")
    seen = np.stack([np.concatenate(kept[condition], axis=1) for condition in conditions])
    groups = _groups(conditions)
    whose, why = reference_of(data, folder, names, severities)
    table, reliability = _summary(seen, groups, whose, bins, resamples, seed)
    settings = {
        "corruptions": list(names), "severities": list(severities), "folder": str(folder) if folder is not None else None,
        "strengths": source.strengths, "mean": list(space.mean), "std": list(space.std), "bins": bins,
    }  # fmt: skip
    facts = evidence(model, data, images=seen.shape[2], resamples=resamples, seed=seed, **settings) | {
        "seconds": round(time.perf_counter() - started, 3),
        "mce": why,
        "summary": {key: [table[-1][f"{key}{end}"] for end in ("", "_low", "_high")] for key in ("accuracy", *RATIOS)},
    }
    return Corruption(name or type(model).__name__, table, [], facts, {"reliability": reliability})


#: The columns that hold a corruption error, and whose AlexNet it is divided by.
RATIOS = {"ce_paper": "paper", "ce_published": "published"}


def reference_of(data: Any, folder: Any, names: Sequence[str], severities: Sequence[int]) -> tuple[str | None, str]:
    """Which of AlexNet's errors fit ("imagenet", "cifar10", "cifar100" or None), and why, in a sentence."""
    told = str(folder) if folder is not None else str(getattr(data, "evidence", {}).get("data", ""))
    classes = len(getattr(data, "classes", ()) or ())
    plain = re.sub(r"[^a-z0-9]", "", told.lower())
    sets = {"cifar100": 100, "cifar10": 10, "imagenet": 1000}
    found = next((each for each, count in sets.items() if each in plain and classes in (0, count)), None)
    if found is None:
        return None, "no mCE: AlexNet's errors are known of CIFAR-10, CIFAR-100 and ImageNet; the mean error is 1 - accuracy"
    if tuple(severities) != making.SEVERITIES:
        return None, "no mCE: AlexNet's errors are means over all five severities; the mean error is 1 - accuracy"
    made = "" if folder is not None else ", the corruptions made here and not the official files"
    return found, f"errors over AlexNet's on {found}{made}; ce_paper: Park & Kim's AlexNet, ce_published: Hendrycks'"


class _Batch(NamedTuple):
    """Images as pixels.  Shapes: (B,), (B, C, H, W), (B, C, H, W) uint8, (B,)."""

    places: range  # which of the data's images
    images: Tensor
    pixels: NDArray[np.uint8]
    labels: Tensor | None


def prepared(
    data: Iterable[Any], conditions: Sequence[tuple[str, int]], source: _Made | _Folder, space: PixelSpace
) -> Iterator[tuple[tuple[str, int], _Batch, Tensor]]:
    """Every batch under every condition, as the model reads it; threads work ahead of whoever takes them."""

    def made(condition: tuple[str, int], batch: _Batch) -> Tensor:
        if condition[1] == 0:
            return batch.images
        return space.images(torch.from_numpy(source.images(condition, batch)).to(batch.images.dtype) / 255)

    jobs = ((condition, batch) for batch in _batches(data, space) for condition in conditions)
    for (condition, batch), images in ahead(made, jobs):
        yield condition, batch, images


def ahead(work: Callable[..., Any], jobs: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, Any]]:
    """Each job with its result, in order, while threads are busy with the next few."""
    threads = cores()
    pool = ThreadPoolExecutor(threads)
    waiting: deque[tuple[Any, Future[Any]]] = deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(work, *job)))
            if len(waiting) > threads + 1:
                first, result = waiting.popleft()
                yield first, result.result()
        for first, result in waiting:
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(data: Iterable[Any], space: PixelSpace) -> Iterator[_Batch]:
    """Errors: UserError if these are no pixels once the normalisation is undone."""
    start = 0
    for images, labels in split(data):
        channels = images.shape[1]
        if channels not in (1, 3) or channels != len(space.mean):
            raise UserError(f"corruptions are of grey or colour images, and these have {channels} channels: give others")
        levels = 255 * space.pixels(images.detach().cpu().float())
        if levels.min() < -0.6 or levels.max() > 255.6:
            low, high = (float(x) / 255 for x in levels.aminmax())
            raise UserError(
                f"without mean {space.mean} and std {space.std} the pixels go from {low:.2f} to {high:.2f}, not from 0 to 1: "
                "give the mean and std that the images were normalised with"
            )
        yield _Batch(range(start, start + len(images)), images, levels.round().clamp(0, 255).byte().numpy(), labels)
        start += len(images)


@dataclass(frozen=True)
class _Made:
    """Corruptions made here."""

    asked: str
    seed: int

    @classmethod
    def of(cls, names: Sequence[str], strengths: str, seed: int) -> _Made:
        making.strengths_of((1, 1), strengths)
        making.refuse_missing(names)
        return cls(strengths, seed)

    @property
    def strengths(self) -> str:
        return f"imagenet above {making.SMALL} px, else cifar" if self.asked == "auto" else self.asked

    def images(self, condition: tuple[str, int], batch: _Batch) -> NDArray[np.uint8]:
        strengths = making.strengths_of(batch.pixels.shape[2:], self.asked)
        return np.stack([
            making.corrupted(image, *condition, seed=(self.seed, place), strengths=strengths)
            for place, image in zip(batch.places, batch.pixels, strict=True)
        ])  # fmt: skip


@dataclass(frozen=True)
class _Folder:
    """The official images that ``data`` hold clean, in the same order."""

    official: making.Official
    rows: NDArray[np.int64]
    resample: Image.Resampling

    strengths: ClassVar[str] = "as in the official files"

    @classmethod
    def of(cls, folder: str | Path, names: Sequence[str], severities: Sequence[int], data: Any) -> _Folder:
        """Errors: UserError if the data hold another number of images."""
        found = making.official(folder, names, severities, getattr(data, "classes", ()))
        facts = getattr(data, "evidence", {})
        limit = facts.get("limit")
        rows = stratified(found.labels, limit, facts["seed"]) if limit else np.arange(len(found.labels))
        images = getattr(data, "images", len(rows))
        if images != len(rows):
            raise UserError(f"{folder} has {len(rows)} images a severity and the data have {images}: give the test split")
        interpolation = str((facts.get("preprocessing") or {}).get("interpolation") or "bicubic").upper()
        known = Image.Resampling.__members__
        return cls(found, rows, known.get(interpolation, Image.Resampling.BICUBIC))

    def images(self, condition: tuple[str, int], batch: _Batch) -> NDArray[np.uint8]:
        """Errors: UserError if a label is not that of the clean image."""
        if batch.places.stop > len(self.rows):
            raise UserError(f"{self.official.folder} has {len(self.rows)} images a severity and the data have more")
        rows = self.rows[batch.places.start : batch.places.stop]
        if batch.labels is not None and not np.array_equal(self.official.labels[rows], batch.labels.cpu().numpy()):
            raise UserError(
                f"{self.official.folder} holds other images than the data, or in another order: give its test images"
            )
        channels, height, width = batch.pixels.shape[1:]
        images = []
        for row in rows:
            image = self.official.read(*condition, int(row)).convert("L" if channels == 1 else "RGB")
            if image.size != (width, height):
                image = image.resize((width, height), self.resample)
            images.append(pixels_of(image).transpose(2, 0, 1))
        return np.stack(images)


def _severities(severities: Sequence[int]) -> tuple[int, ...]:
    """Errors: UserError unless these are some of 1 to 5."""
    if not severities or any(severity not in making.SEVERITIES for severity in severities):
        raise UserError(f"severities are some of 1 to 5, got {list(severities)}")
    return tuple(sorted(set(severities)))


def _groups(conditions: Sequence[tuple[str, int]]) -> dict[tuple[str, int | None], list[int]]:
    """The rows of the table -> the conditions they are means of: each alone, a corruption, a severity, and all."""
    alone: dict[tuple[str, int | None], list[int]] = {condition: [i] for i, condition in enumerate(conditions)}
    means: dict[tuple[str, int | None], list[int]] = {}
    for i, (name, severity) in enumerate(conditions[1:], start=1):
        for group in ((name, None), ("mean", severity), ("mean", None)):
            means.setdefault(group, []).append(i)
    order = sorted(means, key=lambda group: (group[0] == "mean", group[1] is None))
    return alone | {group: means[group] for group in order}


def _summary(
    seen: NDArray[np.float64],
    groups: dict[tuple[str, int | None], list[int]],
    whose: str | None,
    bins: int,
    resamples: int,
    seed: int,
) -> tuple[list[Row], NDArray[np.float64]]:
    """The table, and reliability by severity.  Shapes: (K + 1, 3, n) -> G rows, (S + 1, 3, 3, bins)."""
    images = seen.shape[2]
    means = np.stack([seen[chosen, :2].mean(0) for chosen in groups.values()])  # (G, 2, n)
    own = mean_interval(means.transpose(2, 0, 1), resamples=resamples, seed=seed)
    change = mean_interval((means - means[:1]).transpose(2, 0, 1), resamples=resamples, seed=seed)
    ece, ece_change = _eces(seen, list(groups.values()), bins, resamples, seed)
    ratios = {column: _ratios(means, list(groups), whose, ALEXNET[who], resamples, seed) for column, who in RATIOS.items()}
    table: list[Row] = []
    for g, (name, severity) in enumerate(groups):
        row: Row = {"corruption": name, "severity": severity}
        for s, score in enumerate(("accuracy", "nll")):
            row |= columns(score, (x[g, s] for x in own)) | columns(f"{score}_change", (x[g, s] for x in change))
        row |= columns("ece", (x[g] for x in ece)) | columns("ece_change", (x[g] for x in ece_change))
        for column, found in ratios.items():
            row |= columns(column, (x[g] for x in found))
        table.append(row)
    by_severity = [chosen for (name, severity), chosen in groups.items() if name == "clean" or (name == "mean" and severity)]
    sums = np.stack([_sums(seen[chosen], bins) for chosen in by_severity])  # (S + 1, 3, bins, n)

    def diagram(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        mass, confident, right = np.moveaxis(sums @ weights, 1, 0)
        with np.errstate(invalid="ignore"):
            return np.stack([confident / mass, right / mass, mass / mass.sum(-1, keepdims=True)], axis=1)

    shown = statistic_interval(diagram, images, resamples=resamples, seed=seed, within=(0, 1))
    return table, np.stack(shown, axis=1)


def _bin(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Bins are (a, b], and 0 is in the first, as in `numerics.calibration`."""
    return np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1, 0, bins - 1)


def _eces(
    seen: NDArray[np.float64], groups: list[list[int]], bins: int, resamples: int, seed: int
) -> tuple[Interval, Interval]:
    """ECE of each group, the mean over its conditions, and its change from the first.  Shapes: (K + 1, 3, n) -> (G,), (G,).

    A bin's gap is a sum over images, so that a resample is a product with a sparse matrix, (K + 1) bins x n.
    """
    conditions, _, images = seen.shape
    rows = np.arange(conditions)[:, None] * bins + _bin(seen[:, 2], bins)
    gaps = sparse.csr_matrix(
        ((seen[:, 2] - seen[:, 0]).ravel(), (rows.ravel(), np.tile(np.arange(images), conditions))),
        shape=(conditions * bins, images),
    )
    mixing = np.stack([np.bincount(chosen, minlength=conditions) / len(chosen) for chosen in groups])  # (G, K + 1)

    def eces(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        each = mixing @ (np.abs((gaps @ weights).reshape(conditions, bins)).sum(1) / weights.sum())
        return np.stack([each, each - each[0]])

    found = statistic_interval(eces, images, resamples=resamples, seed=seed, within=([[0], [-1]], 1))
    return Interval(*(x[0] for x in found)), Interval(*(x[1] for x in found))


def _sums(seen: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """How often each image is in each bin, its confidence there, how often it is right.  Shapes: (k, 3, n) -> (3, bins, n)."""
    inside = _bin(seen[:, 2], bins)[:, None] == np.arange(bins)[:, None]  # (k, bins, n)
    return np.stack([(inside * of).sum(0) for of in (1.0, seen[:, 2][:, None], seen[:, 0][:, None])])


def _ratios(
    means: NDArray[np.float64],
    groups: list[tuple[str, int | None]],
    whose: str | None,
    alexnet: Mapping[str, Sequence[float]],
    resamples: int,
    seed: int,
) -> Interval:
    """Errors over AlexNet's: of each corruption over all severities, and their mean if all fifteen are there (mCE); else NaN.

    Shapes: (G, 2, n) -> (G,).
    """
    nothing = np.full(len(groups), np.nan)
    if whose is None or whose not in alexnet:
        return Interval(nothing, nothing, nothing)
    known = dict(zip(making.COMMON, alexnet[whose], strict=True))
    where = {name: g for g, (name, severity) in enumerate(groups) if severity is None and name in known}
    samples = {g: (1 - means[g, 0]) / (known[name] / 100) for name, g in where.items()}
    if len(where) == len(known):
        samples[groups.index(("mean", None))] = np.mean(list(samples.values()), axis=0)
    if not samples:
        return Interval(nothing, nothing, nothing)
    found = mean_interval(np.stack(list(samples.values()), axis=1), resamples=resamples, seed=seed)
    out = Interval(nothing.copy(), nothing.copy(), nothing.copy())
    for whole, part in zip(out, found, strict=True):
        whole[list(samples)] = part
    return out


@dataclass(frozen=True)
class Corruption(Result):
    """A row a corruption and severity; "clean" is severity 0, "mean" is over the corruptions, and no severity is over all.

    Accuracy and ECE are fractions, NLL in nats; a change is corrupted minus clean; ``ce_...`` are errors over AlexNet's.
    ``arrays["reliability"]``: severity, clean first x (value, low, high) x (confidence, accuracy, share of images) x bins.
    """

    analysis: ClassVar[str] = "corruption"
    panels: ClassVar[tuple[str, ...]] = ("accuracy", "ece", "reliability")

    def over_severities(self, name: str) -> list[Row]:
        """The rows of a corruption or of "mean" from clean to the worst."""
        return [row for row in self.table if row["severity"] == 0 or (row["corruption"] == name and row["severity"])]

    def _draw(self, ax: Axes, panel: str) -> None:
        """Accuracy or ECE against severity, the mean thick; or accuracy against confidence, a line a severity."""
        {"accuracy": self._lines, "ece": self._lines, "reliability": self._reliability}[panel](ax, panel)

    def _lines(self, ax: Axes, column: str) -> None:
        from ..drawing import LEGEND

        families = {name: family for family, names in making.FAMILIES.items() for name in names}
        for name in self.evidence["settings"]["corruptions"]:
            rows, family = self.over_severities(name), families.get(name, "extra")
            line = [100 * row[column] for row in rows]
            ax.plot([row["severity"] for row in rows], line, color=FAMILY_COLOUR[family], lw=0.7, alpha=0.6)
        for family in dict.fromkeys(families.get(name, "extra") for name in self.evidence["settings"]["corruptions"]):
            ax.plot([], [], color=FAMILY_COLOUR[family], label=family)
        rows = self.over_severities("mean")
        at = [row["severity"] for row in rows]
        value, low, high = (np.array([100 * row[f"{column}{end}"] for row in rows]) for end in ("", "_low", "_high"))
        ax.fill_between(at, low, high, color="0.1", alpha=0.2, lw=0)
        ax.plot(at, value, "o-", color="0.1", label="mean")
        ax.set(xlabel="Severity", ylabel={"accuracy": "Accuracy (%)", "ece": "ECE (%)"}[column], xticks=at, ylim=(0, None))
        ax.legend(**LEGEND | {"ncols": 3})

    def _reliability(self, ax: Axes, panel: str) -> None:
        import matplotlib as mpl

        from ..drawing import LEGEND

        severities = [0, *self.evidence["settings"]["severities"]]
        for severity, diagram in zip(severities, self.arrays["reliability"][:, 0], strict=True):
            confidence, accuracy, share = diagram
            told = share > 0.01  # a bin that almost no image is in jumps about
            colour = mpl.colormaps["plasma_r"](0.15 + 0.85 * severity / 5)
            ax.plot(confidence[told], accuracy[told], "o-", ms=2, color=colour, label=str(severity) if severity else "clean")
        ax.plot([0, 1], [0, 1], color="0.2", lw=0.8, ls="--")
        ax.set(xlabel="Confidence", ylabel="Accuracy", xlim=(0, 1), ylim=(0, 1))
        ax.legend(**LEGEND | {"ncols": 3})


FAMILY_COLOUR = {"noise": "#D55E00", "blur": "#0072B2", "weather": "#009E73", "digital": "#CC79A7", "extra": "#8A8A8A"}
