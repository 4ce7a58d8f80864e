"""One forward pass over the images for several analyses.

An analysis that only reads activations is a *reducer*: it takes a few numbers per image from the model's stream, its attention
or its output, and makes a result of them at the end.  Activations are not stored, so memory hardly grows with the number of
images.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from backlight.data.class_names import subset_of
from backlight.errors import NotApplicable, UserError
from backlight.inputs import first_tensor, image_batches, not_finite, refuse_no_classifier, refuse_not_finite, to_model
from backlight.results.provenance import provenance
from backlight.results.result import Result, Row
from backlight.settings import Settings
from backlight.tracing.attention_maps import AttentionCall, attention_calls, reading_attention
from backlight.tracing.find import units
from backlight.tracing.hooks import reading
from backlight.tracing.layout import grid
from backlight.tracing.tap import Tap, Unit, stream_taps
from backlight.tracing.trace import evaluating, model_name

R_co = TypeVar("R_co", bound=Result, covariant=True)
#: What a reducer needs: the stream as maps, attention matrices, or the logits with labels.
Reads = Literal["stream", "attention", "labels"]


@dataclass(frozen=True)
class Streams:
    """The units of a model and the taps where its stream is read, in order of depth."""

    units: list[Unit]
    taps: list[Tap]
    subset: tuple[int, ...] = ()  # the model's outputs that are the classes of the data; empty: the data do not say

    def before(self, unit: Unit) -> int | None:
        """The index of the tap of the stream that a unit reads; None if that is not read."""
        return self.taps.index(unit.before) if unit.before in self.taps else None

    def after(self, unit: Unit) -> int | None:
        """The index of the tap of the stream after a unit; None if that is not read."""
        return self.taps.index(unit.after) if unit.after in self.taps else None

    def rows(self) -> Iterator[tuple[Row, int | None, int]]:
        """The first columns of a row, and the indices of the taps before and after: for the stem (unit -1), then each unit."""
        stem = self.before(self.units[0])
        if stem is not None:
            yield {"unit": -1, "kind": "stem", "stage": 0, "module": self.units[0].source or self.taps[stem].module}, None, stem
        for unit in self.units:
            after = self.after(unit)
            if after is not None:
                yield described(unit), self.before(unit), after

    def transforms(self, kinds: Sequence[str]) -> list[tuple[int, int]]:
        """The indices of the taps before and after each unit of these kinds that keeps the resolution."""
        pairs = ((self.before(unit), self.after(unit)) for unit in self.units if unit.kind in kinds)
        return [
            (a, b) for a, b in pairs
            if a is not None and b is not None and self.taps[a].layout.size == self.taps[b].layout.size  # type: ignore[union-attr]
        ]  # fmt: skip


@dataclass(frozen=True)
class Attentions:
    """The attention calls of a model in order, the modules of those that cannot be read, and the units."""

    calls: list[AttentionCall]
    unknown: list[str]
    units: list[Unit]


#: What a reducer gets; or why the model has nothing of the kind.
Readable = Streams | Attentions | NotApplicable


class Reducer(Protocol[R_co]):
    """A single-pass analysis in progress."""

    analysis: ClassVar[str]
    reads: ClassVar[Reads]

    def __init__(self, readable: Any, settings: Any) -> None:
        """Take what it reads, `Streams` or `Attentions`, and the settings of the analysis."""

    def read(self, index: int, activation: Tensor) -> None:
        """Reduce the stream at the tap of this index, maps (B, C, h, w), or the logits of an attention call (B, W, H, N, M).

        They are valid during the call only.
        """

    def finish(self, logits: Tensor, labels: Tensor | None) -> None:
        """Finish a batch.  Shapes: logits (B, K), labels (B,)."""

    def result(self, model: str, provenance: dict[str, Any], resamples: int, seed: int) -> R_co:
        """The result for all images, with intervals."""


def single_pass(
    model: nn.Module,
    data: Iterable[Any],
    reducers: Mapping[type[Reducer], Settings],
    *,
    at: Sequence[str] | None = None,
    name: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Result | NotApplicable]:
    """The results of several reducers (class -> settings), in order, from one pass over the images.

    ``data`` yields batches of images, or of (images, labels).  ``at`` names modules to read instead of units.  A reducer that
    finds nothing to read in this model gets an error in the place of its result, and the others run without it.
    Errors: UserError if there are no images.
    """
    started = time.perf_counter()
    batches = image_batches(data)
    first = next(batches, None)
    if first is None:
        raise UserError("no images: the data are empty")
    readable = readable_of(model, to_model(first[0][:2], model), {kind.reads for kind in reducers}, at, subset_of(data))
    begun = [_begun(readable[kind.reads], kind, settings) for kind, settings in reducers.items()]
    running = {i: each for i, each in enumerate(begun) if not isinstance(each, NotApplicable)}
    count, wrong = 0, 0
    with evaluating(model), torch.inference_mode(), reading_all(model, readable, running.values()):
        for images, labels in itertools.chain([first], batches) if running else ():
            if images.shape[2:] != first[0].shape[2:] and any(each.reads != "labels" for each in running.values()):
                sizes = " and ".join(f"{h} x {w}" for h, w in (first[0].shape[2:], images.shape[2:]))
                raise UserError(
                    f"the data have images of {sizes}, so feature maps differ in size; resize the images to one size"
                )
            logits = first_tensor(model(to_model(images, model)))
            if count == 0:
                for i, refusal in _no_classifier(model, logits, data, running).items():
                    begun[i] = refusal
                    del running[i]
                if not running:
                    break
            count += len(images)
            wrong += not_finite(logits)
            for reducer in running.values():
                reducer.finish(logits, labels.to(logits.device) if labels is not None else None)
    refuse_not_finite(wrong, count)
    seconds = round(time.perf_counter() - started, 3)
    about: dict[str, Any] = {"images": count, "resamples": resamples, "seed": seed, "at": list(at) if at else None}
    return [
        reducer
        if isinstance(reducer, NotApplicable)
        else reducer.result(
            model_name(model, name),
            provenance(model, data, **about, **asdict(settings))
            | {"seconds": seconds, "left_out": _left_out(readable[reducer.reads])},
            resamples,
            seed,
        )
        for reducer, settings in zip(begun, reducers.values(), strict=True)
    ]


def readable_of(
    model: nn.Module, images: Tensor, wanted: set[Reads], at: Sequence[str] | None, subset: tuple[int, ...]
) -> dict[Reads, Readable]:
    """What can be read of the model, each looked for once; or why it has nothing of the kind."""
    readable: dict[Reads, Readable] = {"labels": Streams([], [], subset)}
    if "stream" in wanted:
        readable["stream"] = _or_refusal(lambda: replace(find_streams(model, images, at), subset=subset))
    if "attention" in wanted:
        streams = readable.get("stream")
        known = streams.units if isinstance(streams, Streams) and not at else None
        readable["attention"] = _or_refusal(lambda: find_attentions(model, images, known))
    return readable


def _or_refusal(find: Callable[[], Readable]) -> Readable:
    try:
        return find()
    except NotApplicable as error:
        return error


def _begun(readable: Readable, kind: type[Reducer], settings: Settings) -> Reducer | NotApplicable:
    return readable if isinstance(readable, NotApplicable) else kind(readable, settings)


def _left_out(readable: Readable) -> list[str]:
    """What a result says that it does not contain."""
    if isinstance(readable, Attentions):
        return readable.unknown
    return unreadable(readable) if isinstance(readable, Streams) else []


def _no_classifier(
    model: nn.Module, logits: Tensor, data: Iterable[Any], running: Mapping[int, Reducer]
) -> dict[int, NotApplicable]:
    """Why the reducers that read labels cannot, if the outputs are no class scores; empty if they are."""
    reading = [i for i, reducer in running.items() if reducer.reads == "labels"]
    try:
        if reading:
            refuse_no_classifier(model, logits, data)
    except NotApplicable as error:
        return dict.fromkeys(reading, error)
    return {}


@contextmanager
def reading_all(model: nn.Module, readable: Mapping[Reads, Readable], reducers: Iterable[Reducer]) -> Iterator[None]:
    """Within the block each forward pass gives each reducer what it reads."""
    with ExitStack() as stack:
        for reads, what in readable.items():
            readers = [reducer for reducer in reducers if reducer.reads == reads]
            if isinstance(what, Streams) and what.taps:
                stack.enter_context(reading_streams(model, what, readers))
            elif isinstance(what, Attentions):
                stack.enter_context(reading_attention(model, what.calls, _to_all(readers)))
        yield


def _to_all(reducers: Sequence[Reducer]) -> Callable[[int, Tensor], None]:
    def visit(index: int, activation: Tensor) -> None:
        for reducer in reducers:
            reducer.read(index, activation)

    return visit


def alone(
    reducer: type[Reducer[R_co]],
    settings: Settings,
    model: nn.Module,
    data: Iterable[Any],
    *,
    at: Sequence[str] | None = None,
    name: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> R_co:
    """The result of one reducer."""
    (result,) = single_pass(model, data, {reducer: settings}, at=at, name=name, resamples=resamples, seed=seed)
    if isinstance(result, NotApplicable):
        raise result
    return cast(R_co, result)


@contextmanager
def reading_streams(model: nn.Module, streams: Streams, reducers: Sequence[Reducer]) -> Iterator[None]:
    """Within the block each forward pass gives the maps at each tap to the reducers that read the stream."""
    give = _to_all(reducers)
    with reading(model, streams.taps, lambda tap, activation: give(tap, grid(activation, streams.taps[tap].layout))):  # type: ignore[arg-type]
        yield


def find_attentions(model: nn.Module, images: Tensor, known: list[Unit] | None = None) -> Attentions:
    """The attention calls of a model between positions of the image.  ``known``: its units, if they were looked for.

    Errors: NotApplicable if there are none, or if the positions of their tokens are not known.
    """
    calls, unknown = attention_calls(model, images)
    if not calls:
        name = model_name(model)
        wrong = f"{name} has no attention between positions of the image"
        if unknown:
            wrong = f"the positions of the tokens in the attention of {name} are not known"
        raise NotApplicable(f"{wrong}; analyse its units with fourier or variance")
    return Attentions(calls, unknown, units(model, images) if known is None else known)


def find_streams(model: nn.Module, images: Tensor, at: Sequence[str] | None) -> Streams:
    """The units of a model, or the modules ``at``, and the taps where its stream is a map of at least 2 x 2 positions.

    Errors: UserError, with what to do, if there are none.
    """
    model_units = units(model, images, at=at)
    if not model_units:
        raise NotApplicable(
            f"{model_name(model)} has no residual units; name the modules to read, for example {suggestion(model)}"
        )
    taps = [tap for tap in stream_taps(model_units) if min(tap.layout.size) > 1]  # type: ignore[union-attr]
    streams = Streams(model_units, taps)
    if len(unreadable(streams)) == len(model_units):
        where = f"at {', '.join(at)}" if at else "between its units"
        raise NotApplicable(f"{model_name(model)} has no feature map {where}; name modules that return one with --at")
    return streams


def unreadable(streams: Streams) -> list[str]:
    """The units, with module, after which the stream is not a map of at least 2 x 2 positions."""
    return [str(unit) for unit in streams.units if streams.after(unit) is None]


def described(unit: Unit) -> Row:
    """A unit as the first columns of a row."""
    return {"unit": unit.index, "kind": unit.kind, "stage": unit.stage, "module": unit.module}


def suggestion(model: nn.Module) -> str:
    """``--at`` with up to three of the model's convolutions or attentions; of other modules if it has none."""
    paths = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.MultiheadAttention))] or [
        n for n, m in model.named_modules() if n and not list(m.children())
    ]
    return " ".join(f"--at {path}" for path in paths[:: max(1, len(paths) // 3)][:3])
