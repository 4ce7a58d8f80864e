"""What a vision model is made of: residual units, found by watching one forward pass.

A unit reads the stream, computes a branch (attention, convolution or MLP) and adds it back to the stream.  In the graph
of a forward pass, an activation that every path from the images to the output goes through is a *cut* (a dominator
of the output).  A unit ends at a cut that is the sum of two activations; what lies between the cut before it and the sum
is the unit, the longer operand is its branch, the shorter its skip.  The word is as in big_vision: stream, branch.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import UserError, did_you_mean
from .layout import SHAPE, Layout, grid
from .trace import NEUTRAL, SUM, Call, Trace, plain_attention, tensors, trace

__all__ = ["Tap", "Unit", "check", "evaluating", "feature_maps", "grid", "places", "reading", "spell", "units", "without"]

#: A rectifier after the sum belongs to the unit (the paper reads ResNets there).  Being idempotent it keeps the law that a
#: silent branch leaves the stream as it was; other activations do not, and the stream is read before them.
RECTIFIER = {"relu", "relu_", "relu6", "hardtanh"}
#: Calls that turn zeros into zeros: a branch is silent if what they were given is.
HOMOGENEOUS = SHAPE | {
    "mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "neg", "roll", "__getitem__", "pad",
    "dropout", "to", "float", "type", "type_as", "clone", "split", "chunk", "unbind", "sum", "mean", "flip",
}  # fmt: skip
FUSED_ATTENTION = {"scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention"}
SOFTMAX = {"softmax", "_softmax", "log_softmax"}
GATE = {"mul", "mul_", "__mul__", "__imul__"}
LETTER = {"attention": "a", "conv": "c", "mlp": "m", "blur": "b", "other": "o"}


@dataclass(frozen=True)
class Tap:
    """A place in a model: what a module receives or returns, counting its calls within a pass from 0."""

    module: str
    side: Literal["input", "output"]
    call: int = 0
    layout: Layout | None = None  # None: not a map

    def __str__(self) -> str:
        return f"{self.module}{'' if self.side == 'output' else ' (input)'}{f' #{self.call}' if self.call else ''}"


@dataclass(frozen=True)
class Unit:
    """A residual unit: ``after = before + branch``."""

    index: int
    kind: str  # attention | conv | mlp | blur | other
    stage: int  # units of one resolution, counted from 0
    module: str  # the module that holds the branch's weights
    shape: tuple[int, ...]  # of the stream after it, images left out
    before: Tap | None  # the stream it reads
    after: Tap | None  # the stream after it
    branch: tuple[Tap, ...]  # the outputs that add up to its branch; empty: no hook can reach it
    identity: bool  # the skip leaves the stream as it is


def units(model: nn.Module, images: Tensor, *, at: Sequence[str] | None = None) -> list[Unit]:
    """The residual units of a model, shallowest first; or, with ``at``, the modules of these paths as if they were units.

    Shapes: images (B, C, H, W); one or two are enough.  A model without residual sums gives an empty list.
    The units know where the map lies for images of this size; find them again for another.
    Errors: UserError if a path of ``at`` names no module or one that does not run.
    """
    with evaluating(model):
        if at is not None:
            _refuse_unknown(model, at)
        seen = trace(model, images)
    return _named(seen, at) if at is not None else _residual(seen)


def spell(found: Sequence[Unit]) -> str:
    """A model as a word, a letter a unit, a group a stage: ``"ccc ccca cacaca caca"``."""
    groups = itertools.groupby(found, key=lambda unit: unit.stage)
    return " ".join("".join(LETTER[unit.kind] for unit in group) for _, group in groups)


# --- reading and cutting


@contextmanager
def reading(model: nn.Module, taps: Sequence[Tap], visit: Callable[[int, Tensor], None]) -> Iterator[nn.Module]:
    """Within the block each forward pass calls ``visit(i, activation)`` as the activation flows through ``taps[i]``.

    The activation is the model's own: it may be changed in place right after, so take numbers or a copy.
    Errors: RuntimeError after a pass in which a tap did not run.
    """
    wanted = {(tap.module, tap.side, tap.call): i for i, tap in enumerate(taps)}
    seen: set[int] = set()

    def look(key: tuple[str, str, int], value: Any) -> None:
        if key in wanted:
            seen.add(wanted[key])
            visit(wanted[key], next(tensors(value)))

    def verify(*_: Any) -> None:
        missing = [str(tap) for i, tap in enumerate(taps) if i not in seen]
        seen.clear()
        if missing:
            raise RuntimeError(f"the model did not run {', '.join(missing)} in this pass; find its units again")

    with _counting_calls(model, [(tap.module, tap.side) for tap in taps], look):
        handle = model.register_forward_hook(verify)
        try:
            yield model
        finally:
            handle.remove()


@contextmanager
def without(model: nn.Module, unit: Unit) -> Iterator[nn.Module]:
    """Within the block ``unit`` adds nothing to the stream.  Errors: UserError if no module returns its branch."""
    if not unit.branch:
        raise UserError(f"unit {unit.index} ({unit.module}) cannot be removed: no module returns what it adds")
    wanted = {(tap.module, tap.call) for tap in unit.branch}

    def silence(key: tuple[str, str, int], value: Any) -> Any:
        return _zeros(value) if (key[0], key[2]) in wanted else None

    with _counting_calls(model, [(tap.module, "output") for tap in unit.branch], silence):
        yield model


def feature_maps(model: nn.Module, images: Tensor, found: Sequence[Unit]) -> list[Tensor]:
    """The stream after each unit, as images.  Shapes: (B, C, H, W) -> U tensors (B, c, h, w), copies.

    Errors: UserError if a unit's stream is not a map or passes no module.
    """
    taps = []
    for unit in found:
        if unit.after is None or unit.after.layout is None:
            raise UserError(f"the stream after unit {unit.index} ({unit.module}) cannot be read as a map")
        taps.append(unit.after)
    maps: dict[Tap, Tensor] = {}
    distinct = list(dict.fromkeys(taps))

    def keep(i: int, activation: Tensor) -> None:
        maps[distinct[i]] = grid(activation, distinct[i].layout).clone()  # type: ignore[arg-type]

    with evaluating(model), torch.no_grad(), reading(model, distinct, keep):
        model(images)
    return [maps[tap] for tap in taps]


def places(found: Sequence[Unit]) -> list[Tap]:
    """The distinct places where the stream can be read as a map, in order: before and after each unit."""
    both = (tap for unit in found for tap in (unit.before, unit.after))
    return list(dict.fromkeys(tap for tap in both if tap is not None and tap.layout is not None))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model is in evaluation mode; after it each module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


def check(model: nn.Module, images: Tensor, found: Sequence[Unit]) -> Iterator[tuple[Unit, bool | None]]:
    """Whether removing each unit leaves the stream after it equal to the stream before it; None where that says nothing.

    Nothing is said of units whose skip is not the identity, or whose stream no module returns.
    Errors: RuntimeError if the model's output afterwards is not bit-identical to the one before.
    """
    with evaluating(model), torch.no_grad(), plain_attention():
        whole = next(tensors(model(images))).clone()
        for unit in found:
            yield unit, _is_silenced(model, images, unit)
        if not torch.equal(next(tensors(model(images))), whole):
            raise RuntimeError("the model's output changed while its units were checked")


def _is_silenced(model: nn.Module, images: Tensor, unit: Unit) -> bool | None:
    if not (unit.identity and unit.branch and unit.before and unit.after):
        return None
    stream: dict[int, Tensor] = {}

    def keep(i: int, activation: Tensor) -> None:
        layout = (unit.before, unit.after)[i].layout  # type: ignore[union-attr]
        stream[i] = (grid(activation, layout) if layout else activation).clone()

    with without(model, unit), reading(model, (unit.before, unit.after), keep):
        model(images)
    return stream[0].numel() == stream[1].numel() and torch.equal(stream[0].reshape(stream[1].shape), stream[1])


@contextmanager
def _counting_calls(
    model: nn.Module, places: Sequence[tuple[str, str]], act: Callable[[tuple[str, str, int], Any], Any]
) -> Iterator[None]:
    """Call ``act((module, side, call), value)`` at these modules; what it returns takes the value's place."""
    calls: Counter[tuple[str, str]] = Counter()

    def reset(*_: Any) -> None:
        calls.clear()

    def seen(place: tuple[str, str], value: Any) -> Any:
        calls[place] += 1
        return act((*place, calls[place] - 1), value)

    handles: list[Any] = [model.register_forward_pre_hook(reset, prepend=True)]
    try:
        for place in dict.fromkeys(places):
            module = model.get_submodule(place[0])
            if place[1] == "output":
                handles.append(module.register_forward_hook(lambda m, args, out, p=place: seen(p, out), prepend=True))
            else:
                hook = lambda m, args, kwargs, p=place: seen(p, (args, kwargs))  # noqa: E731
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))
        with plain_attention():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _zeros(value: Any) -> Any:
    """The same value with its first tensor set to zero: modules return a tensor, or a tuple that starts with it."""
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if isinstance(value, tuple):
        return (_zeros(value[0]), *value[1:])
    raise UserError(f"a branch returned as {type(value).__name__} cannot be silenced")


# --- finding


def _residual(seen: Trace) -> list[Unit]:
    """The units of a watched pass."""
    calls, chain, found = seen.calls, _cuts(seen), []
    stage, count = 0, 0
    for fork, cut in itertools.pairwise(chain):
        skip, branches = _split(calls, fork, cut)
        body = set().union(*(_between(calls, fork, i) for i in branches)) - _between(calls, fork, skip)
        identity = _only_reshaped(calls, fork, skip)
        if not body or not (identity or len(calls[cut].shape) > 2):  # a sum of two heads is no unit
            continue
        end = _rectified(calls, chain, cut)
        taps = [_outputs(seen, i, fork) for i in branches]
        places = calls[cut].places
        if places and places.count:
            stage, count = stage + (0 < count != places.count), places.count
        found.append(
            Unit(
                index=len(found),
                kind=_kind([calls[i] for i in sorted(body)]),
                stage=stage,
                module=_module(seen, body),
                shape=calls[end].shape[1:],
                before=_tap(seen, fork),
                after=_tap(seen, end) or _tap(seen, cut),
                branch=tuple(dict.fromkeys(tap for one in taps for tap in one or ())) if all(taps) else (),
                identity=identity,
            )
        )
    return found


def _named(seen: Trace, at: Sequence[str]) -> list[Unit]:
    """The first call of each named module as a unit without a branch."""
    found: list[Unit] = []
    stage, size = 0, None
    for path in at:
        if (path, 0) not in seen.spans:
            raise UserError(f"at={path!r}: this module does not run in a forward pass")
        start, end = seen.spans[path, 0]
        taken = next((call for call in seen.calls if (path, 0) in call.received), None)
        given = next((call for call in seen.calls if (path, 0) in call.returned), None)
        if given is None:
            raise UserError(f"at={path!r}: this module returns nothing that depends on the images")
        if given.layout and size and given.layout.size != size:
            stage += 1
        size = given.layout.size if given.layout else size
        before = Tap(path, "input", 0, taken.layout) if taken else None
        after = Tap(path, "output", 0, given.layout)
        kind = _kind(seen.calls[start:end])
        found.append(Unit(len(found), kind, stage, path, given.shape[1:], before, after, (), identity=False))
    return found


def _split(calls: list[Call], fork: int, cut: int) -> tuple[int, list[int]]:
    """The skip and the branches of a sum, sums of sums taken apart: ``x + attention(x) + mlp(x)`` is one unit."""
    terms = _terms(calls, fork, cut)
    skips = [i for i in terms if _only_reshaped(calls, fork, i)]
    skip = skips[0] if skips else min(terms, key=lambda i: len(_between(calls, fork, i)))
    terms.remove(skip)
    return skip, terms


def _terms(calls: list[Call], fork: int, i: int) -> list[int]:
    if i <= fork or not calls[i].summands:
        return [i]
    return [term for summand in calls[i].summands for term in _terms(calls, fork, summand)]


def _cuts(seen: Trace) -> list[int]:
    """The dominators of the output, from the images on: calls are in topological order, so one sweep finds them."""
    above = {0: 0}
    for i in range(1, seen.last + 1):
        known = [p for p in seen.calls[i].parents if p in above and p != i]
        if known:
            above[i] = known[0]
            for other in known[1:]:
                a, b = above[i], other
                while a != b:
                    a, b = (above[a], b) if a > b else (a, above[b])
                above[i] = a
    chain, i = [seen.last], seen.last
    while i:
        i = above.get(i, 0)
        chain.append(i)
    return chain[::-1]


def _between(calls: list[Call], fork: int, end: int) -> set[int]:
    """The calls on the ways from ``fork`` (left out) to ``end``."""
    found, todo = set(), [end]
    while todo:
        i = todo.pop()
        if i > fork and i not in found:
            found.add(i)
            todo += calls[i].parents
    return found


def _rectified(calls: list[Call], chain: list[int], cut: int) -> int:
    """The cut itself, or the rectifier that follows it."""
    following = chain[chain.index(cut) + 1 :]
    return following[0] if following and calls[following[0]].name in RECTIFIER else cut


def _kind(body: Sequence[Call]) -> str:
    """What the calls of a branch do to the image."""
    names = {call.name for call in body}
    spatial = [call for call in body if call.kernel > 1]
    convolved = any(call.name.startswith("conv") and call.learned for call in spatial)
    products = sum(call.product for call in body)
    weighted = any(call.product or (call.name in GATE and len(call.parents) > 1) for call in body)
    if names & FUSED_ATTENTION or products >= 2 or (weighted and names & SOFTMAX and not convolved):
        return "attention"
    if convolved:
        return "conv"
    if spatial:
        return "blur"
    if names & {"lstm", "gru", "rnn_tanh", "rnn_relu"}:
        return "other"
    if any(call.name == "linear" or (call.name.startswith("conv") and call.learned) for call in body):
        return "mlp"
    return "other"


def _module(seen: Trace, body: set[int]) -> str:
    """The innermost module around the calls of a branch that mix channels or places."""
    mixing = [c.module for i in body if (c := seen.calls[i]).product or c.kernel or c.name in {"linear", *FUSED_ATTENTION}]
    paths = mixing or [seen.calls[i].module for i in body]
    return os.path.commonpath([path.replace(".", "/") for path in paths]).replace("/", ".") if all(paths) else ""


def _tap(seen: Trace, i: int) -> Tap | None:
    """Where call ``i``, perhaps reshaped, enters or leaves a module; one that runs once if there is one."""
    children = [j for j in range(i + 1, len(seen.calls)) if i in seen.calls[j].parents and seen.calls[j].name in SHAPE]
    for j in [i, *children]:
        call = seen.calls[j]
        here = [Tap(module, "output", time, call.layout) for module, time in reversed(call.returned)]
        here += [Tap(module, "input", time, call.layout) for module, time in call.received]
        if here:
            return min(here, key=lambda tap: seen.times_called[tap.module] > 1)
    return None


def _outputs(seen: Trace, i: int, fork: int) -> tuple[Tap, ...] | None:
    """The module outputs whose silence makes call ``i`` zero; None if there are none such after ``fork``."""
    if i <= fork:
        return None
    call = seen.calls[i]
    if call.returned:
        here = [Tap(module, "output", time, call.layout) for module, time in reversed(call.returned)]
        return (min(here, key=lambda tap: seen.times_called[tap.module] > 1),)
    if call.name in HOMOGENEOUS and call.parents:
        return next((taps for p in call.parents if (taps := _outputs(seen, p, fork))), None)
    if call.name in SUM | {"cat", "stack", "concat"}:
        parts = [_outputs(seen, p, fork) for p in call.parents]
        return tuple(dict.fromkeys(tap for part in parts for tap in part or ())) if all(parts) else None
    return None


def _only_reshaped(calls: list[Call], fork: int, i: int) -> bool:
    while i != fork:
        if calls[i].name not in SHAPE | NEUTRAL or len(calls[i].parents) != 1:
            return False
        (i,) = calls[i].parents
    return True


def _refuse_unknown(model: nn.Module, at: Sequence[str]) -> None:
    known = {name for name, _ in model.named_modules() if name}
    for path in at:
        if path not in known:
            raise UserError(f"at={path!r}: the model has no module of this name{did_you_mean(path, known)}")
