"""Several analyses, one forward pass over the images.

An analysis that only watches is a *reducer*: it takes numbers of each image from the stream as it flows by, and makes a
result of them at the end.  Feature maps are never kept, so memory does not grow with the number of images.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..anatomy import Tap, Unit, evaluating, grid, places, reading, tensors, units
from ..errors import UserError
from ..evidence import device_of, dtype_of, evidence
from ..result import Result, Row


@dataclass(frozen=True)
class Anatomy:
    """The units of a model and the places where its stream is read, in order of depth."""

    units: list[Unit]
    places: list[Tap]

    def before(self, unit: Unit) -> int | None:
        """The place of the stream that a unit reads."""
        return self.places.index(unit.before) if unit.before in self.places else None

    def after(self, unit: Unit) -> int | None:
        """The place of the stream after a unit."""
        return self.places.index(unit.after) if unit.after in self.places else None

    def streams(self) -> Iterator[tuple[Row, int | None, int]]:
        """What is read, as rows to be: the stem, called unit -1, then each unit, with the places before and after it."""
        stem = self.before(self.units[0])
        if stem is not None:
            yield {"unit": -1, "kind": "stem", "stage": 0, "module": self.places[stem].module}, None, stem
        for unit in self.units:
            after = self.after(unit)
            if after is not None:
                yield described(unit), self.before(unit), after

    def transforms(self, kinds: Sequence[str]) -> list[tuple[int, int]]:
        """Places before and after each unit of these kinds that keeps the resolution."""
        pairs = ((self.before(u), self.after(u)) for u in self.units if u.kind in kinds)
        return [
            (a, b) for a, b in pairs
            if a is not None and b is not None and self.places[a].layout.size == self.places[b].layout.size  # type: ignore[union-attr]
        ]  # fmt: skip


class Reducer(Protocol):
    """What a single-pass analysis keeps of the images.  Made with the model's anatomy and the analysis's settings."""

    analysis: ClassVar[str]
    reads_stream: ClassVar[bool]
    reads_labels: ClassVar[bool]

    def read(self, place: int, maps: Tensor) -> None:
        """Take numbers of the stream at a place.  Shapes: maps (B, C, h, w), valid during the call only."""

    def finish(self, logits: Tensor, labels: Tensor | None) -> None:
        """The batch is over.  Shapes: logits (B, K), labels (B,)."""

    def result(self, model: str, evidence: dict[str, Any], resamples: int, seed: int) -> Result:
        """Everything seen, with intervals."""


def single_pass(
    model: nn.Module,
    data: Iterable[Any],
    reducers: Mapping[type[Reducer], Mapping[str, Any]],
    *,
    at: Sequence[str] | None = None,
    name: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Result]:
    """Run reducers (type -> settings) over the images together, and return their results in order.

    ``data`` yields batches of images, or of (images, labels).  Errors: UserError if there are no images, or if a reducer
    needs to read the stream and the model has no residual units and ``at`` names no places.
    """
    started = time.perf_counter()
    batches = split(data)
    first = next(batches, None)
    if first is None:
        raise UserError("no images: the data are empty")
    streaming = any(kind.reads_stream for kind in reducers)
    anatomy = read_anatomy(model, fit(first[0][:2], model), at) if streaming else Anatomy([], [])
    running = [kind(anatomy, **settings) for kind, settings in reducers.items()]  # type: ignore[call-arg]
    images_seen = 0
    with evaluating(model), torch.inference_mode(), watching(model, anatomy, running):
        for images, labels in itertools.chain([first], batches):
            if streaming and images.shape[2:] != first[0].shape[2:]:
                sizes = " and ".join(f"{h} x {w}" for h, w in (first[0].shape[2:], images.shape[2:]))
                raise UserError(f"the data hold images of {sizes}, whose feature maps differ; bring them to one size")
            logits = next(tensors(model(fit(images, model))))
            if images_seen == 0 and any(reducer.reads_labels for reducer in running):
                refuse_other_classes(logits, data)
            images_seen += len(images)
            for reducer in running:
                reducer.finish(logits, labels.to(logits.device) if labels is not None else None)
    seconds = time.perf_counter() - started
    return [
        reducer.result(
            name or type(model).__name__,
            evidence(model, data, images=images_seen, resamples=resamples, seed=seed, at=list(at) if at else None, **settings)
            | {"seconds": round(seconds, 3), "left_out": unreadable(anatomy)},
            resamples,
            seed,
        )
        for reducer, settings in zip(running, reducers.values(), strict=True)
    ]


@contextmanager
def watching(model: nn.Module, anatomy: Anatomy, reducers: Sequence[Reducer]) -> Iterator[None]:
    """Within the block each forward pass hands the maps at each place to the reducers that read the stream."""
    readers = [reducer for reducer in reducers if reducer.reads_stream]

    def visit(place: int, activation: Tensor) -> None:
        maps = grid(activation, anatomy.places[place].layout)  # type: ignore[arg-type]
        for reader in readers:
            reader.read(place, maps)

    with reading(model, anatomy.places, visit):
        yield


def read_anatomy(model: nn.Module, images: Tensor, at: Sequence[str] | None) -> Anatomy:
    """The units of a model and where their streams are read.  Errors: UserError, with what to do, if there are none."""
    found = units(model, images, at=at)
    if not found:
        raise UserError(
            f"{type(model).__name__} has no residual units; name the places to read, for instance {suggestion(model)}"
        )
    anatomy = Anatomy(found, [tap for tap in places(found) if min(tap.layout.size) > 1])  # type: ignore[union-attr]
    if len(unreadable(anatomy)) == len(found):
        what = f"at {', '.join(at)}" if at else "between its units"
        raise UserError(f"{type(model).__name__} carries no feature map {what}; name modules that return one with --at")
    return anatomy


def split(data: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches as (images, labels), labels None where there are none.  Errors: UserError if these are no batches."""
    for batch in data:
        images, labels, *_ = (batch, None) if isinstance(batch, Tensor) else (*batch, None, None)
        if not isinstance(images, Tensor) or images.ndim != 4:
            what = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(batch).__name__}"
            raise UserError(f"data must yield batches of images (B, C, H, W), alone or with labels, and this yields {what}")
        if not images.is_floating_point():
            kind = str(images.dtype).removeprefix("torch.")
            raise UserError(f"the images are pixels of type {kind}; scale and normalise them as the model was trained")
        if len(images):
            yield images, labels if isinstance(labels, Tensor) else None


def refuse_other_classes(logits: Tensor, data: Any) -> None:
    """Errors: UserError if the data say how many classes they have and the model tells apart another number."""
    classes = getattr(data, "classes", None)
    if classes and logits.ndim == 2 and logits.shape[1] != len(classes):
        raise UserError(
            f"the model tells {logits.shape[1]} classes apart and the data have {len(classes)}, so its accuracy on them means "
            "nothing; name a model trained on these classes, or data of the model's own"
        )


def unreadable(anatomy: Anatomy) -> list[str]:
    """The units after which the stream is no map with two rows and two columns at least, each with its module."""
    return [str(unit) for unit in anatomy.units if anatomy.after(unit) is None]


def described(unit: Unit) -> dict[str, Any]:
    """A unit in the columns that every table of units starts with."""
    return {"unit": unit.index, "kind": unit.kind, "stage": unit.stage, "module": unit.module}


def fit(images: Tensor, model: nn.Module) -> Tensor:
    """Images where the model lives, in the type of its weights."""
    return images.to(device_of(model), dtype_of(model), non_blocking=True)


def suggestion(model: nn.Module) -> str:
    """``--at`` with a few convolutions, attentions or blocks that the model has."""
    weighty = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.MultiheadAttention))] or [
        n for n, m in model.named_modules() if n and not list(m.children())
    ]
    chosen = weighty[:: max(1, len(weighty) // 3)][:3]
    return " ".join(f"--at {path}" for path in chosen)
