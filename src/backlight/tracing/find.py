"""The residual units of a vision model, found in one recorded forward pass.

A unit reads the stream, computes a branch (attention, convolution or MLP) and adds it back to the stream: ``x + f(x)``.
The search walks back from the output.  A sum of an activation and of something computed from it ends a unit: the activation
is the stream before the unit, the rest is the branch, and the walk continues from that activation.  All other calls are
passed.  Where the stream changes its shape there is no ``x`` to add; there ``g(x) + f(x)`` is a unit if ``g`` is only a
projection and nothing bypasses the sum.  The words stream and branch are big_vision's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from backlight.errors import UserError, did_you_mean
from backlight.tracing.corrections import Corrections, Key, corrected, corrections_of
from backlight.tracing.layout import SHAPE
from backlight.tracing.tap import Tap, Unit
from backlight.tracing.trace import NEUTRAL, SUM, Call, Trace, evaluating, inside, record_calls

#: A rectifier after the sum belongs to the unit (the paper reads ResNets there).  It is idempotent: with the branch at zero, a
#: rectified stream stays as it was.  Other activation functions change it, so the stream is read before them.
RECTIFIER = {"relu", "relu_", "relu6", "hardtanh"}

#: Calls that a projection does not make.
NONLINEAR = RECTIFIER | {
    "gelu", "silu", "silu_", "hardswish", "leaky_relu", "elu", "mish", "prelu", "sigmoid", "tanh", "softmax", "module",
}  # fmt: skip

#: Calls that turn zeros into zeros: the branch is zero if their operands are.
HOMOGENEOUS = SHAPE | NEUTRAL | {
    "mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "neg", "roll", "__getitem__", "pad",
    "split", "chunk", "unbind", "sum", "mean", "flip",
}  # fmt: skip

FUSED_ATTENTION = {"scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention"}
LAYERS = ("linear", "conv")
JOIN = {"cat", "stack", "concat"}
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


def units(
    model: nn.Module,
    images: Tensor,
    *,
    at: Sequence[str] | None = None,
    kinds: Mapping[Key, str] | None = None,
    stages: Mapping[Key, int] | None = None,
    branches: Mapping[Key, Sequence[str]] | None = None,
) -> list[Unit]:
    """The residual units of a model in order of depth; or, with ``at``, the modules of these paths as if they were units.

    Shapes: images (B, C, H, W); one or two are enough.  A model without residual sums gives an empty list.
    The units hold the layout of the maps for images of this size; find them again for another size.
    ``kinds``, ``stages`` and ``branches`` correct this list, after what `correct` gave to the model (which is about its
    residual units, and not about ``at``).
    Errors: UserError if a path of ``at`` names no module or one that does not run, or if a correction names no unit or module
    or gives no kind or stage.
    """
    given = Corrections(kinds or {}, stages or {}, branches or {})
    with evaluating(model):
        _refuse_unknown(model, at or ())
        trace = record_calls(model, images)
    if at is not None:
        return corrected(_named(trace, at), given, partial(_output, model, trace))
    model_units = corrected(_residual(trace), corrections_of(model), partial(_output, model, trace))
    return corrected(model_units, given, partial(_output, model, trace))


@dataclass(frozen=True)
class _Sum:
    """``cut = skip + branches``, all computed from ``fork``, the stream before the unit; calls by their index in the trace."""

    cut: int
    fork: int
    branches: tuple[int, ...]
    body: frozenset[int]  # the calls of the branches
    identity: bool  # the skip connection is the identity


def _residual(trace: Trace) -> list[Unit]:
    """The units that end in a residual sum."""
    sums = _sums(trace)
    result = []
    for index, (one, stage) in enumerate(zip(sums, _stages(trace.calls[one.cut] for one in sums), strict=True)):
        end = _rectified(trace, one)
        kind, branch = _branch(trace, one)
        result.append(
            Unit(
                index=index,
                kind=kind,
                stage=stage,
                module=_module(trace, one.body),
                shape=trace.calls[end].shape[1:],
                before=_tap(trace, one.fork),
                after=_tap(trace, end) or _tap(trace, one.cut),
                branch=tuple(branch),
                identity=one.identity and (end == one.cut or _is_rectified(trace, one.fork)),
                kinds=tuple(branch.values()),
                source=_source(trace, one.fork),
            )
        )
    return result


def _branch(trace: Trace, one: _Sum) -> tuple[str, dict[Tap, str]]:
    """The kind of a unit, and its outputs with the kind of each; no outputs if a branch has none.

    If branches have different kinds, each has outputs of its own where the modules return them.
    """
    terms = dict.fromkeys(term for i in one.branches for term in _terms(trace, i, one.fork))
    kinds = _kinds(trace, one, tuple(terms))
    if len(set(kinds.values())) < 2:
        kind = _kind(trace.calls, one.body)
    else:
        kind = "parallel"
        separate = {tap: kinds.get(i, kind) for i in terms for tap in _outputs(trace, i, one.fork) or ()}
        crossed = any(_projects_parts(trace, i) for i in one.body)  # its bias is added even if the parts are zero
        if not crossed and all(_outputs(trace, i, one.fork) for i in terms):
            return kind, separate
    taps = [_outputs(trace, i, one.fork) or _function_result(trace, i) for i in one.branches]
    return kind, {tap: kind for each in taps for tap in each} if all(taps) else {}


def _kinds(trace: Trace, one: _Sum, terms: tuple[int, ...]) -> dict[int, str]:
    """The kinds of the terms that run side by side; none of them is computed from another.

    A term without a nonlinear call that acts at each position alone is not a branch of another kind: beside a convolution
    it is the middle of its kernel (RepVGG), beside an attention it is a second value matrix.
    """
    paths = {i: trace.between(one.fork, i) & one.body for i in terms}
    paths = {i: path for i, path in paths.items() if path and not any(i in paths[j] for j in terms if j != i)}
    shared = set.intersection(*paths.values()) if len(paths) > 1 else set()
    kinds = {}
    for i, path in paths.items():
        kind = _kind(trace.calls, path - shared)
        if kind not in {"mlp", "other"} or any(trace.calls[k].name in NONLINEAR for k in path - shared):
            kinds[i] = _kind(trace.calls, path) if kind == "other" else kind  # its layers are joined with those of the others
    return kinds


def _terms(trace: Trace, i: int, fork: int) -> tuple[int, ...]:
    """The calls that call ``i`` adds up or joins, also where the sum is scaled, moved or projected as a whole."""
    call = trace.calls[i]
    if i <= fork:
        return ()
    if call.summands:
        parts = call.summands
    elif call.name in JOIN or (call.name in HOMOGENEOUS and len(call.parents) == 1) or _projects_parts(trace, i):
        parts = call.parents
    else:
        return (i,)
    terms = tuple(dict.fromkeys(term for part in parts for term in _terms(trace, part, fork)))
    return terms if len(terms) > 1 else (i,)


def _projects_parts(trace: Trace, i: int) -> bool:
    """Whether call ``i`` is a linear layer of a concatenation, which is a sum of linear layers, one of each part."""
    call = trace.calls[i]
    return call.name == "linear" and len(call.parents) == 1 and trace.calls[call.parents[0]].name in JOIN


def _source(trace: Trace, i: int) -> str:
    """The outermost module that computed and returned call ``i``, not one that only passed it on; else of its operands."""
    while i:
        returned = [run for j in _same_values(trace, i) for run in trace.calls[j].returned]
        if computed := [module for module, time in returned if trace.spans[module, time][0] <= i]:
            return computed[-1]
        i = max(trace.calls[i].parents)
    return ""


def _named(trace: Trace, at: Sequence[str]) -> list[Unit]:
    """The first call of each named module as a unit without a branch."""
    results = [_first_result(trace, path) for path in at]
    named = []
    for index, (path, call, stage) in enumerate(zip(at, results, _stages(results), strict=True)):
        read = next((call for call in trace.calls if (path, 0) in call.received), None)
        before = Tap(path, "input", 0, read.layout) if read else None
        after = Tap(path, "output", 0, call.layout)
        kind = _kind(trace.calls, range(*trace.spans[path, 0]))
        named.append(Unit(index, kind, stage, path, call.shape[1:], before, after, (), identity=False))
    return named


def _output(model: nn.Module, trace: Trace, path: str, where: str) -> tuple[Tap, str]:
    """What a module returned when it first ran, and its kind.  Errors: UserError, after ``where``."""
    _refuse_unknown(model, [path], where)
    call = _first_result(trace, path, where)
    return Tap(path, "output", 0, call.layout), _kind(trace.calls, range(*trace.spans[path, 0]))


def _first_result(trace: Trace, path: str, where: str = "at=") -> Call:
    """The call that made what a module returned when it first ran."""
    if (path, 0) not in trace.spans:
        raise UserError(f"{where}{path!r}: this module does not run in a forward pass")
    for call in trace.calls:
        if (path, 0) in call.returned:
            return call
    raise UserError(f"{where}{path!r}: this module returns nothing that depends on the images")


def _stages(streams: Iterable[Call]) -> Iterator[int]:
    """The stage of each stream: its resolution, in any layout, numbered in order of appearance."""
    resolutions: list[int] = []
    stage = 0
    for call in streams:
        if positions := call.coordinates.count if call.coordinates else 0:
            if positions not in resolutions:
                resolutions.append(positions)
            stage = resolutions.index(positions)
        yield stage


def _sums(trace: Trace) -> list[_Sum]:
    """The sums that end a unit.  The walk goes back from the output and jumps from the end of a unit to its fork."""
    sums, visited, todo = [], {0}, [trace.last]
    while todo:
        i = todo.pop()
        if i in visited:
            continue
        visited.add(i)
        one = _identity_sum(trace, i) or _projected_sum(trace, i)
        if one:
            sums.append(one)
            todo.append(one.fork)
        else:
            todo += trace.calls[i].parents
    inner = set().union(*(one.body for one in sums))  # a sum within a branch that is also read outside it
    return sorted((one for one in sums if one.cut not in inner), key=lambda one: one.cut)


def _identity_sum(trace: Trace, cut: int) -> _Sum | None:
    """``x + f(x)``, or ``x + f(x) + g(x)``: a sum of an activation and what is computed from it."""
    terms, known = trace.calls[cut].summands, 0
    while len(terms) > known:
        for k, skip in enumerate(terms):
            fork, branches = _unshaped(trace, skip), terms[:k] + terms[k + 1 :]
            paths = [trace.between(fork, i) for i in branches]
            if all(paths):
                return _Sum(cut, fork, branches, frozenset().union(*paths) - trace.between(fork, skip), identity=True)
        terms, known = _opened(trace, terms, fork=0), len(terms)
    return None


def _projected_sum(trace: Trace, cut: int) -> _Sum | None:
    """``g(x) + f(x)``, where every path from ``x`` passes through the sum, and ``g`` is a projection: no nonlinear call."""
    terms, known, fork = trace.calls[cut].summands, 0, trace.dominators[cut]
    if not terms or len(trace.calls[cut].shape) < 3:  # a sum of two heads is no unit
        return None
    inside = trace.between(fork, cut)
    if any(reader not in inside for i in inside - {cut} for reader in trace.readers[i]):
        return None
    while len(terms) > known:
        terms, known = _opened(trace, terms, fork), len(terms)
    paths = {i: trace.between(fork, i) for i in terms}
    skip = min(terms, key=lambda i: _work(trace, paths[i]))
    branches = tuple(i for i in terms if i != skip)
    if not all(paths.values()) or any(trace.calls[i].name in NONLINEAR for i in paths[skip]):
        return None
    body = frozenset().union(*(paths[i] for i in branches)) - paths[skip]
    return _Sum(cut, fork, branches, body, identity=False) if body else None


def _opened(trace: Trace, terms: tuple[int, ...], fork: int) -> tuple[int, ...]:
    """The terms of a sum; a term that is itself a sum, and is read only here, is replaced by its own terms."""
    inner = [i for i in terms if i > fork and trace.calls[i].summands and len(trace.readers[i]) == 1]
    return tuple(part for i in terms for part in (trace.calls[i].summands if i in inner else (i,)))


def _work(trace: Trace, body: set[int]) -> tuple[int, int, int]:
    """How much these calls do: by the number of layers, then the size of their windows, then the number of calls."""
    calls = [trace.calls[i] for i in body]
    layers = sum(call.learned and call.name.startswith(LAYERS) for call in calls)
    return layers, max((call.kernel for call in calls), default=0), len(calls)


def _unshaped(trace: Trace, i: int) -> int:
    """The call that computed the values of call ``i``, which may only have another shape."""
    while trace.calls[i].name in SHAPE | NEUTRAL and len(trace.calls[i].parents) == 1:
        (i,) = trace.calls[i].parents
    return i


def _rectified(trace: Trace, one: _Sum) -> int:
    """The cut, or the rectifier that follows it.

    The rectifier counts if it is the only reader and belongs to the same block; the next block may begin with one.
    """
    block = _common(trace.calls[i].module for i in (one.cut, *one.body))
    match trace.readers[one.cut]:
        case [reader] if trace.calls[reader].name in RECTIFIER and _common([block, trace.calls[reader].module]) == block:
            return reader
    return one.cut


def _is_rectified(trace: Trace, i: int) -> bool:
    """Whether a rectifier leaves the result of call ``i`` as it is."""
    while trace.calls[i].name in SHAPE | NEUTRAL | {"max_pool2d"}:
        i = trace.calls[i].parents[0]
    return trace.calls[i].name in RECTIFIER


def _kind(calls: Sequence[Call], body: Iterable[int]) -> str:
    """The kind of a unit, by the calls of its branch."""
    branch = [calls[i] for i in sorted(body)]
    names = {call.name for call in branch}
    spatial = [call for call in branch if call.kernel > 1]
    convolved = any(call.name.startswith("conv") and call.learned for call in spatial)
    products = sum(call.product for call in branch)
    if names & FUSED_ATTENTION or products > 1 or (products and not convolved):
        return "attention"
    if convolved:
        return "conv"
    if spatial:
        return "blur"
    if names & RECURRENT:
        return "other"
    return "mlp" if any(call.learned and call.name.startswith(LAYERS) for call in branch) else "other"


def _module(trace: Trace, body: Iterable[int]) -> str:
    """The innermost module around the calls of a branch that mix channels or positions."""
    calls = [trace.calls[i] for i in body]
    mixing = [c.module for c in calls if c.product or c.kernel or c.name in {"linear", *FUSED_ATTENTION}]
    return _common(mixing or [call.module for call in calls])


def _common(modules: Iterable[str]) -> str:
    """The innermost module that holds all of these."""
    return os.path.commonpath([module.replace(".", "/") for module in modules]).replace("/", ".")


def _tap(trace: Trace, i: int) -> Tap | None:
    """Where the result of call ``i``, also reshaped, enters or leaves a module.

    A tap where it is a map is preferred, then a module that runs once in a pass; else it is the function's result.
    """
    taps = [tap for j in _same_values(trace, i) for tap in _module_taps(trace.calls[j])]
    best = min(taps, key=lambda tap: (tap.layout is None, trace.times_called[tap.module] > 1), default=None)
    return best or _function_tap(trace.calls[i])


def _same_values(trace: Trace, i: int) -> list[int]:
    """Call ``i`` and the calls that only give its result another shape."""
    calls, todo = [], [i]
    while todo:
        j = todo.pop(0)
        calls.append(j)
        todo += [k for k in trace.readers[j] if trace.calls[k].name in SHAPE | NEUTRAL]
    return calls


def _module_taps(call: Call) -> list[Tap]:
    """Where modules return and receive the result of a call: the outermost module first."""
    returned = [Tap(module, "output", time, call.layout) for module, time in reversed(call.returned)]
    return returned + [Tap(module, "input", time, call.layout) for module, time in call.received]


def _function_tap(call: Call) -> Tap | None:
    """The result of the torch function itself; None if it is not the function's first result."""
    return Tap(call.name, "function", call.time, call.layout) if call.time is not None else None


def _function_result(trace: Trace, i: int) -> tuple[Tap, ...]:
    """The tap of the torch function alone, where no module returns the branch; empty if it has none."""
    tap = _function_tap(trace.calls[i])
    return (tap,) if tap else ()


def _outputs(trace: Trace, i: int, fork: int) -> tuple[Tap, ...] | None:
    """The module outputs that make call ``i`` zero when they are zero; None if there are none after ``fork``."""
    if i <= fork:
        return None
    call = trace.calls[i]
    if call.returned:
        outputs = [tap for tap in _module_taps(call) if tap.side == "output"]
        return (min(outputs, key=lambda tap: trace.times_called[tap.module] > 1),)
    if call.name in HOMOGENEOUS and call.parents:
        return next((taps for p in call.parents if (taps := _outputs(trace, p, fork))), None)
    if call.name in SUM | JOIN:
        parts = [_outputs(trace, p, fork) for p in call.parents]
        return tuple(dict.fromkeys(tap for part in parts for tap in part or ())) if all(parts) else None
    return None


def _refuse_unknown(model: nn.Module, paths: Sequence[str], where: str = "at=") -> None:
    """Errors: UserError for a path that names no module, with a similar one."""
    known = {name for name, _ in inside(model).named_modules() if name}
    for path in paths:
        if path not in known:
            raise UserError(f"{where}{path!r}: the model has no module of this name{did_you_mean(path, known)}")
