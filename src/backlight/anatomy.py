"""What a vision model is made of: residual units, found by watching one forward pass.

A unit reads the stream, computes a branch (attention, convolution or MLP) and adds it back to the stream: ``x + f(x)``.
So walk back from the output.  A sum of an activation and of something made of it ends a unit: the activation is the
stream before it, the rest is the branch, and the walk goes on from there.  Anything else is looked through.  Where the
stream changes its shape there is no ``x`` to add; there ``g(x) + f(x)`` is a unit if ``g`` is a mere projection and
nothing bypasses the sum.  The words are big_vision's: stream, branch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import UserError, did_you_mean
from .layout import SHAPE, Layout, grid
from .trace import NEUTRAL, SUM, Call, Trace, evaluating, plain_attention, silent, tensors, trace, visiting

__all__ = [
    "Tap", "Unit", "check", "evaluating", "feature_maps", "grid", "places", "reading", "spell", "tensors", "units", "without",
]  # fmt: skip

#: A rectifier after the sum belongs to the unit (the paper reads ResNets there).  Being idempotent it keeps the law that
#: a silent branch leaves a rectified stream as it was; other activations do not, and the stream is read before them.
RECTIFIER = {"relu", "relu_", "relu6", "hardtanh"}
#: What no projection does.
NONLINEAR = RECTIFIER | {
    "gelu", "silu", "silu_", "hardswish", "leaky_relu", "elu", "mish", "prelu", "sigmoid", "tanh", "softmax", "module",
}  # fmt: skip
#: Calls that turn zeros into zeros: a branch is silent if what they were given is.
HOMOGENEOUS = SHAPE | NEUTRAL | {
    "mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "neg", "roll", "__getitem__", "pad",
    "split", "chunk", "unbind", "sum", "mean", "flip",
}  # fmt: skip
FUSED_ATTENTION = {"scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention"}
LAYERS = ("linear", "conv")
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
LETTER = {"attention": "a", "conv": "c", "mlp": "m", "blur": "b", "other": "o"}


@dataclass(frozen=True)
class Tap:
    """A place in a model: what a module receives or returns, counting its calls within a pass from 0.

    Where no module does, it is what a torch function of the name ``module`` returns, its calls counted likewise.
    """

    module: str
    side: Literal["input", "output", "function"]
    call: int = 0
    layout: Layout | None = None  # None: not a map

    def __str__(self) -> str:
        where = {"input": " (input)", "output": "", "function": "()"}[self.side]
        return f"{self.module}{where}{f' #{self.call}' if self.call else ''}"


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
    branch: tuple[Tap, ...]  # the outputs that add up to its branch; empty: nothing returns it
    identity: bool  # the skip leaves the stream as it is

    def __str__(self) -> str:
        """As sentences and evidence name it."""
        return f"unit {self.index} ({self.module})"


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

    def look(place: tuple[str, str, int], value: Any) -> None:
        if place in wanted:
            seen.add(wanted[place])
            visit(wanted[place], next(tensors(value)))

    def verify(*_: Any) -> None:
        if missing := [str(tap) for i, tap in enumerate(taps) if i not in seen]:
            raise RuntimeError(f"the model did not run {', '.join(missing)} in this pass; find its units again")

    with visiting(model, [(tap.module, tap.side) for tap in taps], look):
        start = model.register_forward_pre_hook(lambda *_: seen.clear())
        end = model.register_forward_hook(verify)
        try:
            yield model
        finally:
            start.remove()
            end.remove()


@contextmanager
def without(
    model: nn.Module, unit: Unit, instead: Callable[[int, Tensor], Tensor] = lambda i, branch: torch.zeros_like(branch)
) -> Iterator[nn.Module]:
    """Within the block ``unit`` adds nothing to the stream; or ``instead(i, branch)`` of what ``unit.branch[i]`` returns.

    Errors: UserError if nothing returns its branch.
    """
    if not unit.branch:
        raise UserError(f"{unit} cannot be removed: nothing returns what it adds")
    wanted = {(tap.module, tap.side, tap.call): i for i, tap in enumerate(unit.branch)}

    def replace(place: tuple[str, str, int], value: Any) -> Any:
        if place not in wanted:
            return None
        replaced = silent(value)
        next(tensors(replaced)).copy_(instead(wanted[place], next(tensors(value))))
        return replaced

    with visiting(model, [(tap.module, tap.side) for tap in unit.branch], replace, first=True):
        yield model


def feature_maps(model: nn.Module, images: Tensor, found: Sequence[Unit]) -> list[Tensor]:
    """The stream after each unit, as images.  Shapes: (B, C, H, W) -> U tensors (B, c, h, w), copies.

    Errors: UserError if a unit's stream is not a map or passes no module.
    """
    taps = []
    for unit in found:
        if unit.after is None or unit.after.layout is None:
            raise UserError(f"the stream after {unit} cannot be read as a map")
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


def check(model: nn.Module, images: Tensor, found: Sequence[Unit]) -> Iterator[tuple[Unit, bool | None]]:
    """Whether removing each unit leaves the stream after it equal to the stream before it; None where that says nothing.

    Nothing is said of units whose skip is not the identity, or whose stream nothing returns.
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
        stream[i] = activation.clone()
        if len(stream) == 2:
            raise _Enough

    with contextlib.suppress(_Enough), without(model, unit), reading(model, (unit.before, unit.after), keep):
        model(images)
    before, after = stream[0], stream[1]
    if before.shape != after.shape or unit.before.layout != unit.after.layout:  # between them the places are reordered
        before, after = before.flatten().sort().values, after.flatten().sort().values
    return torch.equal(before, after)


class _Enough(Exception):
    """Ends a forward pass of which no more is asked."""


# --- finding


@dataclass(frozen=True)
class _Sum:
    """``cut = skip + branches``, all made of ``fork``, the stream before it."""

    cut: int
    fork: int
    branches: tuple[int, ...]
    body: frozenset[int]  # the calls of the branches
    identity: bool


def _residual(seen: Trace) -> list[Unit]:
    """The units of a watched pass."""
    sums = _sums(seen)
    found = []
    for index, (one, stage) in enumerate(zip(sums, _stages(seen.calls[one.cut] for one in sums), strict=True)):
        end = _rectified(seen, one)
        adding = [_outputs(seen, i, one.fork) or _itself(seen, i) for i in one.branches]
        found.append(
            Unit(
                index=index,
                kind=_kind(seen.calls, one.body),
                stage=stage,
                module=_module(seen, one.body),
                shape=seen.calls[end].shape[1:],
                before=_tap(seen, one.fork),
                after=_tap(seen, end) or _tap(seen, one.cut),
                branch=tuple(dict.fromkeys(tap for taps in adding for tap in taps or ())) if all(adding) else (),
                identity=one.identity and (end == one.cut or _is_rectified(seen, one.fork)),
            )
        )
    return found


def _named(seen: Trace, at: Sequence[str]) -> list[Unit]:
    """The first call of each named module as a unit without a branch."""
    given = [_first_result(seen, path) for path in at]
    found = []
    for index, (path, call, stage) in enumerate(zip(at, given, _stages(given), strict=True)):
        taken = next((call for call in seen.calls if (path, 0) in call.received), None)
        before = Tap(path, "input", 0, taken.layout) if taken else None
        after = Tap(path, "output", 0, call.layout)
        kind = _kind(seen.calls, range(*seen.spans[path, 0]))
        found.append(Unit(index, kind, stage, path, call.shape[1:], before, after, (), identity=False))
    return found


def _first_result(seen: Trace, path: str) -> Call:
    if (path, 0) not in seen.spans:
        raise UserError(f"at={path!r}: this module does not run in a forward pass")
    for call in seen.calls:
        if (path, 0) in call.returned:
            return call
    raise UserError(f"at={path!r}: this module returns nothing that depends on the images")


def _stages(streams: Iterable[Call]) -> Iterator[int]:
    """The stage of each stream: its resolution, in whatever layout, counted in order of appearance."""
    resolutions: list[int] = []
    stage = 0
    for call in streams:
        if places := call.places.count if call.places else 0:
            if places not in resolutions:
                resolutions.append(places)
            stage = resolutions.index(places)
        yield stage


def _sums(seen: Trace) -> list[_Sum]:
    """The sums that end a unit, found by walking back from the output; the walk steps over a unit to its fork."""
    found, visited, todo = [], {0}, [seen.last]
    while todo:
        i = todo.pop()
        if i in visited:
            continue
        visited.add(i)
        one = _identity_sum(seen, i) or _projected_sum(seen, i)
        if one:
            found.append(one)
            todo.append(one.fork)
        else:
            todo += seen.calls[i].parents
    inner = set().union(*(one.body for one in found))  # also read from outside
    return sorted((one for one in found if one.cut not in inner), key=lambda one: one.cut)


def _identity_sum(seen: Trace, cut: int) -> _Sum | None:
    """``x + f(x)``, or ``x + f(x) + g(x)``: a sum of an activation and what was made of it."""
    terms, known = seen.calls[cut].summands, 0
    while len(terms) > known:
        for k, skip in enumerate(terms):
            fork, branches = _unshaped(seen, skip), terms[:k] + terms[k + 1 :]
            ways = [seen.between(fork, i) for i in branches]
            if all(ways):
                return _Sum(cut, fork, branches, frozenset().union(*ways) - seen.between(fork, skip), identity=True)
        terms, known = _opened(seen, terms, fork=0), len(terms)
    return None


def _projected_sum(seen: Trace, cut: int) -> _Sum | None:
    """``g(x) + f(x)``, where everything since ``x`` passes through the sum, and ``g`` is a projection: not rectified."""
    terms, known, fork = seen.calls[cut].summands, 0, seen.above[cut]
    if not terms or len(seen.calls[cut].shape) < 3:  # a sum of two heads is no unit
        return None
    inside = seen.between(fork, cut)
    if any(reader not in inside for i in inside - {cut} for reader in seen.readers[i]):
        return None
    while len(terms) > known:
        terms, known = _opened(seen, terms, fork), len(terms)
    ways = {i: seen.between(fork, i) for i in terms}
    skip = min(terms, key=lambda i: _work(seen, ways[i]))
    branches = tuple(i for i in terms if i != skip)
    if not all(ways.values()) or any(seen.calls[i].name in NONLINEAR for i in ways[skip]):
        return None
    body = frozenset().union(*(ways[i] for i in branches)) - ways[skip]
    return _Sum(cut, fork, branches, body, identity=False) if body else None


def _opened(seen: Trace, terms: tuple[int, ...], fork: int) -> tuple[int, ...]:
    """The terms of a sum, those that are sums themselves and read nowhere else replaced by their own."""
    inner = [i for i in terms if i > fork and seen.calls[i].summands and len(seen.readers[i]) == 1]
    return tuple(part for i in terms for part in (seen.calls[i].summands if i in inner else (i,)))


def _work(seen: Trace, body: set[int]) -> tuple[int, int, int]:
    """How much a way does: by layers, else by the size of their windows, else by calls."""
    calls = [seen.calls[i] for i in body]
    layers = sum(call.learned and call.name.startswith(LAYERS) for call in calls)
    return layers, max((call.kernel for call in calls), default=0), len(calls)


def _unshaped(seen: Trace, i: int) -> int:
    """The call that made the numbers that ``i`` returned, perhaps in another shape."""
    while seen.calls[i].name in SHAPE | NEUTRAL and len(seen.calls[i].parents) == 1:
        (i,) = seen.calls[i].parents
    return i


def _rectified(seen: Trace, one: _Sum) -> int:
    """The cut itself, or the rectifier of the same block that alone reads it: not that of a block that begins with one."""
    block = _common(seen.calls[i].module for i in (one.cut, *one.body))
    match seen.readers[one.cut]:
        case [reader] if seen.calls[reader].name in RECTIFIER and _common([block, seen.calls[reader].module]) == block:
            return reader
    return one.cut


def _is_rectified(seen: Trace, i: int) -> bool:
    """Whether a rectifier leaves it as it is."""
    while seen.calls[i].name in SHAPE | NEUTRAL | {"max_pool2d"}:
        i = seen.calls[i].parents[0]
    return seen.calls[i].name in RECTIFIER


def _kind(calls: Sequence[Call], body: Iterable[int]) -> str:
    """What a branch does to the image."""
    made = [calls[i] for i in sorted(body)]
    names = {call.name for call in made}
    spatial = [call for call in made if call.kernel > 1]
    convolved = any(call.name.startswith("conv") and call.learned for call in spatial)
    products = sum(call.product for call in made)
    if names & FUSED_ATTENTION or products > 1 or (products and not convolved):
        return "attention"
    if convolved:
        return "conv"
    if spatial:
        return "blur"
    if names & RECURRENT:
        return "other"
    return "mlp" if any(call.learned and call.name.startswith(LAYERS) for call in made) else "other"


def _module(seen: Trace, body: Iterable[int]) -> str:
    """The innermost module around the calls of a branch that mix channels or places."""
    calls = [seen.calls[i] for i in body]
    mixing = [c.module for c in calls if c.product or c.kernel or c.name in {"linear", *FUSED_ATTENTION}]
    return _common(mixing or [call.module for call in calls])


def _common(modules: Iterable[str]) -> str:
    """The innermost module that holds all of these."""
    return os.path.commonpath([module.replace(".", "/") for module in modules]).replace("/", ".")


def _tap(seen: Trace, i: int) -> Tap | None:
    """Where call ``i``, perhaps reshaped, enters or leaves a module: as a map if it does, once in a pass if it can."""
    same, todo = [], [i]
    while todo:
        j = todo.pop(0)
        same.append(j)
        todo += [k for k in seen.readers[j] if seen.calls[k].name in SHAPE | NEUTRAL]
    taps = [tap for j in same for tap in _passes(seen.calls[j])]
    found = min(taps, key=lambda tap: (tap.layout is None, seen.times_called[tap.module] > 1), default=None)
    return found or _function(seen.calls[i])


def _passes(call: Call) -> list[Tap]:
    """What returns and receives a call's result: the outermost module first."""
    returned = [Tap(module, "output", time, call.layout) for module, time in reversed(call.returned)]
    return returned + [Tap(module, "input", time, call.layout) for module, time in call.received]


def _function(call: Call) -> Tap | None:
    """What the function itself returns, where no module has a hand in it."""
    return Tap(call.name, "function", call.time, call.layout) if call.time is not None else None


def _itself(seen: Trace, i: int) -> tuple[Tap, ...]:
    tap = _function(seen.calls[i])
    return (tap,) if tap else ()


def _outputs(seen: Trace, i: int, fork: int) -> tuple[Tap, ...] | None:
    """The module outputs whose silence makes call ``i`` zero; None if there are none such after ``fork``."""
    if i <= fork:
        return None
    call = seen.calls[i]
    if call.returned:
        here = [tap for tap in _passes(call) if tap.side == "output"]
        return (min(here, key=lambda tap: seen.times_called[tap.module] > 1),)
    if call.name in HOMOGENEOUS and call.parents:
        return next((taps for p in call.parents if (taps := _outputs(seen, p, fork))), None)
    if call.name in SUM | {"cat", "stack", "concat"}:
        parts = [_outputs(seen, p, fork) for p in call.parents]
        return tuple(dict.fromkeys(tap for part in parts for tap in part or ())) if all(parts) else None
    return None


def _refuse_unknown(model: nn.Module, at: Sequence[str]) -> None:
    known = {name for name, _ in model.named_modules() if name}
    for path in at:
        if path not in known:
            raise UserError(f"at={path!r}: the model has no module of this name{did_you_mean(path, known)}")
