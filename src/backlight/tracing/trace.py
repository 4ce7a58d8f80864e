"""One recorded forward pass: which call made which activation, and which modules received and returned it.

A ``TorchFunctionMode`` records every torch call of an eager model, also calls of functions and of any library, where
symbolic tracing fails on data-dependent Python.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from backlight.inputs import tensors
from backlight.tracing.layout import Coordinates, Layout, TorchCall, coordinates_after, coordinates_of_image

SUM = {"add", "add_", "__add__", "__iadd__", "__radd__"}
PRODUCT = {"matmul", "__matmul__", "bmm", "einsum", "baddbmm"}
GATE = {"mul", "mul_", "__mul__", "__imul__"}
#: Calls that change no value.  One that returns its own operand is not recorded.
NEUTRAL = {"contiguous", "clone", "dropout", "dropout2d", "to", "type", "type_as", "float", "half", "bfloat16", "double"}


@dataclass
class Call:
    """A torch call whose result depends on the images."""

    name: str
    parents: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    coordinates: Coordinates | None = None  # of the result's elements in the image
    module: str = ""  # the innermost module that was running
    summands: tuple[int, ...] = ()  # the two operands of an addition without broadcasting
    product: bool = False  # sums products of two activations: one weights the positions or channels of the other
    kernel: int = 0  # the longest side of the window of a convolution or pooling
    learned: bool = False  # reads a parameter, or a kernel that is computed from the images
    time: int | None = None  # number of earlier calls of this name; None for all results of a call but the first
    received: list[tuple[str, int]] = field(default_factory=list)  # (module, number of its earlier calls in the pass)
    returned: list[tuple[str, int]] = field(default_factory=list)

    @property
    def layout(self) -> Layout | None:
        """How the result holds a feature map; None if it holds none."""
        return self.coordinates.layout if self.coordinates else None


@dataclass
class Trace:
    """The calls of one forward pass in order; ``calls[0]`` is the images, ``last`` the first output."""

    calls: list[Call]
    last: int
    spans: dict[tuple[str, int], tuple[int, int]]  # (module, its earlier calls) -> the calls made while it ran
    times_called: dict[str, int]

    def between(self, start: int, end: int) -> set[int]:
        """The calls on the paths from ``start`` (excluded) to ``end``; empty if there is no path."""
        ancestors, todo = set(), [end]
        while todo:
            i = todo.pop()
            if i > start and i not in ancestors:
                ancestors.add(i)
                todo += self.calls[i].parents
        paths: set[int] = set()
        for i in sorted(ancestors):
            if any(parent == start or parent in paths for parent in self.calls[i].parents):
                paths.add(i)
        return paths if end in paths else set()

    @cached_property
    def readers(self) -> dict[int, list[int]]:
        """The calls that read each call's result, of those on a path from the images to the output."""
        readers: dict[int, list[int]] = defaultdict(list)
        for i in sorted(self.between(0, self.last)):
            for parent in self.calls[i].parents:
                readers[parent].append(i)
        return readers

    @cached_property
    def dominators(self) -> list[int]:
        """The immediate dominator of each call: the last earlier call that lies on every path from the images to it.

        Calls are in topological order, so one sweep is enough (Cooper, Harvey & Kennedy, 2001).
        """
        dominators = [0]
        for call in self.calls[1:]:
            common, *others = call.parents
            for other in others:
                one = other
                while common != one:
                    common, one = (dominators[common], one) if common > one else (common, dominators[one])
            dominators.append(common)
        return dominators


def record_calls(model: nn.Module, images: Tensor) -> Trace:
    """Run ``model`` on ``images`` once and record its calls.  The model stays as it was.

    If the output is a list of feature maps (timm's ``features_only``), the trace ends in a call that reads them all.
    """
    model = inside(model)
    recorder = Recorder(model, images)
    handles = recorder.hooks(model)
    try:
        with eager(model), plain_attention(), torch.no_grad(), recorder:
            output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    outputs = [recorder.made[id(t)] for t in tensors(output) if id(t) in recorder.made]
    last = next(iter(outputs), 0)
    if len(set(outputs)) > 1 and all(len(recorder.calls[i].shape) > 3 for i in outputs):
        last = len(recorder.calls)
        recorder.calls.append(Call("outputs", tuple(dict.fromkeys(outputs))))
    return Trace(recorder.calls, last, recorder.spans, dict(recorder.times))


def inside(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped; or the model itself.  They share their modules and parameters."""
    return getattr(model, "_orig_mod", model)


def model_name(model: nn.Module, name: str | None = None) -> str:
    """The name that a result gives to a model: that which the user gives, or the type of the model, compiled or not."""
    return name or type(inside(model)).__name__


def eager(model: nn.Module) -> AbstractContextManager[Any]:
    """Within the block, what ``torch.compile`` compiled runs without compilation, so hooks neither break nor recompile it."""
    compiled = any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()  # the stance takes seconds to import


@contextmanager
def plain_attention() -> Iterator[None]:
    """Within the block ``torch.nn`` does not use its fused encoder layer, which skips the modules inside it and their hooks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model is in evaluation mode and not compiled, and gets copies of its images.

    After it each module has its former mode, and each buffer its former values.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not buffer.is_meta]
    try:
        with in_evaluation_mode(model), own_images(model):
            yield model
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode and not compiled; after it each module has its former mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with eager(model):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def own_images(model: nn.Module) -> Iterator[None]:
    """Within the block the model gets a copy of its images in each pass, because it may change them in place."""
    hook = inside(model).register_forward_pre_hook(copy_inputs, prepend=True)
    try:
        yield
    finally:
        hook.remove()


def copy_inputs(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook before a pass, after which the model may change its inputs in place."""
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)


@contextmanager
def visiting(
    model: nn.Module,
    points: Sequence[tuple[str, str]],
    visit: Callable[[tuple[str, str, int], Any], Any],
    *,
    first: bool = False,
) -> Iterator[None]:
    """Within the block ``visit((name, side, call), value)`` is called at these points, (name, side) of modules and functions.

    Calls of each point are counted from 0 in every pass.  If ``visit`` returns something for an output, it replaces the
    output.  ``first``: before all other hooks.
    """
    inner = inside(model)
    calls: Counter[tuple[str, str]] = Counter()
    functions = {name for name, side in points if side == "function"}

    def count_and_visit(point: tuple[str, str], value: Any) -> Any:
        calls[point] += 1
        with torch._C.DisableTorchFunction():  # calls that ``visit`` makes are not calls of the model
            return visit((*point, calls[point] - 1), value)

    handles: list[Any] = [inner.register_forward_pre_hook(lambda *_: calls.clear(), prepend=True)]
    try:
        for point in dict.fromkeys(point for point in points if point[1] != "function"):
            module = inner.get_submodule(point[0])
            if point[1] == "output":
                leave = lambda module, args, out, point=point: count_and_visit(point, out)  # noqa: E731
                handles.append(module.register_forward_hook(leave, prepend=first))
            else:
                enter = lambda module, args, kwargs, point=point: count_and_visit(point, (args, kwargs))  # noqa: E731
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=first))
        with eager(model), plain_attention(), _Functions(functions, count_and_visit) if functions else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Functions(TorchFunctionMode):
    """Visits the results of the torch functions of these names."""

    def __init__(self, names: set[str], visit: Callable[[tuple[str, str], Any], Any]) -> None:
        super().__init__()
        self.names, self.visit = names, visit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (name := function_name(func)) not in self.names:
            return result
        replacement = self.visit((name, "function"), result)
        return result if replacement is None else replacement


def function_name(func: Any) -> str:
    """The name of a torch function; of a property, such as x.mT, the name of the property."""
    name = getattr(func, "__name__", str(func))
    return func.__self__.__name__ if name == "__get__" else name


def zeroed(value: Any) -> Any:
    """A module's result with its first tensor set to zero: a tensor, a tuple, a list, a dict or a model output."""
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if hasattr(value, "keys"):
        key = next(key for key in value if any(True for _ in tensors(value[key])))
        result = copy.copy(value)
        result[key] = zeroed(value[key])
        return result
    first = next(i for i, item in enumerate(value) if any(True for _ in tensors(item)))
    items = [zeroed(item) if i == first else item for i, item in enumerate(value)]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


class Recorder(TorchFunctionMode):
    """Records which call made each live tensor."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.coordinates: dict[int, Coordinates] = {id(images): coordinates_of_image(images)}
        self.calls = [Call("images", shape=tuple(images.shape), coordinates=self.coordinates[id(images)])]
        self.made = {id(images): 0}  # tensor -> the call that made it
        self.learned = {id(p) for p in model.parameters()}  # and what is computed from parameters alone
        self.alive: list[Tensor] = [images]  # an id is unique only among live tensors
        self.running: list[str] = []
        self.functions: Counter[str] = Counter()
        self.times: dict[str, int] = defaultdict(int)
        self.started: list[tuple[str, int, int]] = []
        self.spans: dict[tuple[str, int], tuple[int, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        time = self.functions[name]
        self.functions[name] += 1
        operands = list(tensors((args, kwargs)))
        activations = [t for t in operands if id(t) in self.made]
        parents = tuple(dict.fromkeys(self.made[id(t)] for t in activations))
        result = func(*args, **kwargs)
        outs = [args[0]] if name == "__setitem__" else list(tensors(result))
        if name in NEUTRAL and outs and any(outs[0] is t for t in activations):
            return result
        if outs and activations:
            call = self._describe(name, args, kwargs, outs[0])
            self._add(
                outs,
                replace(call, parents=parents, time=None if name == "__setitem__" else time),
                coordinates_after(TorchCall(func, name, args, kwargs), outs, self.coordinates),
            )
        elif any(id(t) in self.learned for t in operands):
            self.alive += outs
            self.learned |= {id(t) for t in outs}
        return result

    def _describe(self, name: str, args: Any, kwargs: Any, out: Tensor) -> Call:
        operands = list(tensors((args, kwargs)))
        activations = [t for t in operands if id(t) in self.made]
        call = Call(name, module=self.running[-1] if self.running else "")
        call.learned = any(id(t) in self.learned for t in operands) or (name.startswith("conv") and len(activations) > 1)
        if name == "sum":  # of products made just before
            source = self.calls[self.made[id(activations[0])]]
            call.product = source.name in GATE and len(source.parents) > 1
        else:
            call.product = name in PRODUCT and len(activations) > 1
        if name.startswith("conv") and len(operands) > 1:
            call.kernel = max(operands[1].shape[2:], default=1)
        elif "pool" in name and "adaptive" not in name:
            sides = args[1] if len(args) > 1 else kwargs.get("kernel_size", 1)
            call.kernel = max(sides) if isinstance(sides, (tuple, list)) else int(sides)
        if name in SUM and len(activations) == len(args) == 2 and all(t.numel() == out.numel() for t in activations):
            call.summands = self.made[id(args[0])], self.made[id(args[1])]
        return call

    def _add(self, outs: list[Tensor], call: Call, coordinates: list[Coordinates | None]) -> None:
        """Add one node for each tensor that a call returned."""
        for k, (out, known) in enumerate(zip(outs, coordinates, strict=True)):
            time = None if k else call.time
            self.made[id(out)] = len(self.calls)
            self.alive.append(out)
            if known:
                self.coordinates[id(out)] = known
            else:
                self.coordinates.pop(id(out), None)
            self.calls.append(replace(call, shape=tuple(out.shape), coordinates=known, time=time, received=[], returned=[]))

    def hooks(self, model: nn.Module) -> list[Any]:
        """Handles of the hooks that record which modules receive and return what; the caller removes them."""
        handles: list[Any] = []
        for name, module in inside(model).named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True, prepend=True))
                handles.append(module.register_forward_hook(self._leave(name), with_kwargs=True))
        return handles

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.running.append(name)
            self.started.append((name, self.times[name], len(self.calls)))
            first = next(tensors((args, kwargs)), None)
            if id(first) in self.made:
                self.calls[self.made[id(first)]].received.append((name, self.times[name]))
            self.times[name] += 1

        return enter

    def _leave(self, name: str) -> Any:
        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.running.pop()
            _, time, start = self.started.pop()
            outs = list(tensors(output))
            activations = [t for t in tensors((args, kwargs)) if id(t) in self.made]
            if outs and activations and not any(id(t) in self.made for t in outs):  # a scripted or custom function
                parents = tuple(dict.fromkeys(self.made[id(t)] for t in activations))
                coordinates = coordinates_after(TorchCall(module, "module", args, kwargs), outs, self.coordinates)
                self._add(outs, Call("module", parents, module=name, learned=True), coordinates)
            self.spans[name, time] = (start, len(self.calls))
            if outs and id(outs[0]) in self.made:
                self.calls[self.made[id(outs[0])]].returned.append((name, time))

        return leave
