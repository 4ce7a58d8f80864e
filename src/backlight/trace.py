"""One forward pass, watched: which call made which activation, and which module received or returned it.

A ``TorchFunctionMode`` sees every torch call of an eager model, functional ones and those of any library, where
symbolic tracing gives up on data-dependent Python.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .layout import Layout, Made, Places, places_after, places_of_image, tensors

SUM = {"add", "add_", "__add__", "__iadd__", "__radd__"}
PRODUCT = {"matmul", "__matmul__", "bmm", "einsum", "baddbmm"}
GATE = {"mul", "mul_", "__mul__", "__imul__"}
#: Calls that change no number; those that return the very tensor they were given are left out.
NEUTRAL = {"contiguous", "clone", "dropout", "dropout2d", "to", "type", "type_as", "float", "half", "bfloat16", "double"}


@dataclass
class Call:
    """A torch call whose result depends on the images."""

    name: str
    parents: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    places: Places | None = None  # of its elements in the image
    module: str = ""  # innermost module running
    summands: tuple[int, ...] = ()  # the two operands of a sum of equals
    product: bool = False  # sums products of two activations: by places or channels, one weights the other
    kernel: int = 0  # largest side of the window of a convolution or pooling
    learned: bool = False  # reads a parameter, or a kernel made for these images
    time: int | None = None  # how many calls of this name were made before; None where a function does not return it first
    received: list[tuple[str, int]] = field(default_factory=list)  # (module, its how-manieth call in the pass)
    returned: list[tuple[str, int]] = field(default_factory=list)

    @property
    def layout(self) -> Layout | None:
        return self.places.layout if self.places else None


@dataclass
class Trace:
    """The calls of one forward pass in order; ``calls[0]`` is the images, ``last`` the first output."""

    calls: list[Call]
    last: int
    spans: dict[tuple[str, int], tuple[int, int]]  # (module, call) -> the calls made while it ran
    times_called: dict[str, int]

    def between(self, start: int, end: int) -> set[int]:
        """The calls on the ways from ``start`` (left out) to ``end``; empty if there is none."""
        above, todo = set(), [end]
        while todo:
            i = todo.pop()
            if i > start and i not in above:
                above.add(i)
                todo += self.calls[i].parents
        ways: set[int] = set()
        for i in sorted(above):
            if any(parent == start or parent in ways for parent in self.calls[i].parents):
                ways.add(i)
        return ways if end in ways else set()

    @cached_property
    def readers(self) -> dict[int, list[int]]:
        """The calls that read each call's result on the way to the output."""
        readers: dict[int, list[int]] = defaultdict(list)
        for i in sorted(self.between(0, self.last)):
            for parent in self.calls[i].parents:
                readers[parent].append(i)
        return readers

    @cached_property
    def above(self) -> list[int]:
        """The immediate dominator of each call: the last one before it that every way from the images goes through.

        Calls are in topological order, so one sweep finds them (Cooper, Harvey & Kennedy, 2001).
        """
        above = [0]
        for call in self.calls[1:]:
            common, *others = call.parents
            for other in others:
                one = other
                while common != one:
                    common, one = (above[common], one) if common > one else (common, above[one])
            above.append(common)
        return above


def trace(model: nn.Module, images: Tensor) -> Trace:
    """Run ``model`` on ``images`` once and write down its calls.  Leaves the model as it was."""
    recorder = Recorder(model, images)
    handles = recorder.hooks(model)
    try:
        with plain_attention(), torch.no_grad(), recorder:
            output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    last = next((recorder.made[id(t)] for t in tensors(output) if id(t) in recorder.made), 0)
    return Trace(recorder.calls, last, recorder.spans, dict(recorder.times))


@contextmanager
def plain_attention() -> Iterator[None]:
    """Without the fused encoder layer of ``torch.nn``, which skips the modules inside it and so their hooks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


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


@contextmanager
def visiting(
    model: nn.Module,
    places: Sequence[tuple[str, str]],
    act: Callable[[tuple[str, str, int], Any], Any],
    *,
    first: bool = False,
) -> Iterator[None]:
    """Call ``act((name, side, call), value)`` at these modules and functions, their calls counted within each pass.

    What it returns for an output, unless None, takes the output's place.  ``first``: before any other hook sees it.
    """
    calls: Counter[tuple[str, str]] = Counter()
    functions = {name for name, side in places if side == "function"}

    def visit(place: tuple[str, str], value: Any) -> Any:
        calls[place] += 1
        with torch._C.DisableTorchFunction():  # what is done with the value is no call of the model's
            return act((*place, calls[place] - 1), value)

    handles: list[Any] = [model.register_forward_pre_hook(lambda *_: calls.clear(), prepend=True)]
    try:
        for place in dict.fromkeys(place for place in places if place[1] != "function"):
            module = model.get_submodule(place[0])
            if place[1] == "output":
                leave = lambda module, args, out, place=place: visit(place, out)  # noqa: E731
                handles.append(module.register_forward_hook(leave, prepend=first))
            else:
                enter = lambda module, args, kwargs, place=place: visit(place, (args, kwargs))  # noqa: E731
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=first))
        with plain_attention(), _Functions(functions, visit) if functions else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Functions(TorchFunctionMode):
    """Visits what torch functions of these names return."""

    def __init__(self, names: set[str], visit: Callable[[tuple[str, str], Any], Any]) -> None:
        super().__init__()
        self.names, self.visit = names, visit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (name := function_name(func)) not in self.names:
            return result
        instead = self.visit((name, "function"), result)
        return result if instead is None else instead


def function_name(func: Any) -> str:
    """A torch function's name; a property, such as x.mT, goes by its own."""
    name = getattr(func, "__name__", str(func))
    return func.__self__.__name__ if name == "__get__" else name


def silent(value: Any) -> Any:
    """What a module returned, its first tensor set to zero: in a tuple, a list, a dict or a model output, or alone."""
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if hasattr(value, "keys"):
        key = next(key for key in value if any(True for _ in tensors(value[key])))
        silenced = copy.copy(value)
        silenced[key] = silent(value[key])
        return silenced
    first = next(i for i, item in enumerate(value) if any(True for _ in tensors(item)))
    items = [silent(item) if i == first else item for i, item in enumerate(value)]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


class Recorder(TorchFunctionMode):
    """Knows of each live tensor which call made it."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.places: dict[int, Places] = {id(images): places_of_image(images)}
        self.calls = [Call("images", shape=tuple(images.shape), places=self.places[id(images)])]
        self.made = {id(images): 0}
        self.learned = {id(p) for p in model.parameters()}  # and what is computed of them alone
        self.kept: list[Tensor] = [images]  # an id is a tensor's own only while it lives
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
        given = list(tensors((args, kwargs)))
        known = [t for t in given if id(t) in self.made]
        parents = tuple(dict.fromkeys(self.made[id(t)] for t in known))
        result = func(*args, **kwargs)
        outs = [args[0]] if name == "__setitem__" else list(tensors(result))
        if name in NEUTRAL and outs and any(outs[0] is t for t in known):
            return result
        if outs and known:
            call = self._describe(name, args, kwargs, outs[0])
            self._own(
                outs,
                replace(call, parents=parents, time=None if name == "__setitem__" else time),
                places_after(Made(func, name, args, kwargs), outs, self.places),
            )
        elif any(id(t) in self.learned for t in given):
            self.kept += outs
            self.learned |= {id(t) for t in outs}
        return result

    def _describe(self, name: str, args: Any, kwargs: Any, out: Tensor) -> Call:
        given = list(tensors((args, kwargs)))
        known = [t for t in given if id(t) in self.made]
        call = Call(name, module=self.running[-1] if self.running else "")
        call.learned = any(id(t) in self.learned for t in given) or (name.startswith("conv") and len(known) > 1)
        if name == "sum":  # of products made just before
            source = self.calls[self.made[id(known[0])]]
            call.product = source.name in GATE and len(source.parents) > 1
        else:
            call.product = name in PRODUCT and len(known) > 1
        if name.startswith("conv") and len(given) > 1:
            call.kernel = max(given[1].shape[2:], default=1)
        elif "pool" in name and "adaptive" not in name:
            sides = args[1] if len(args) > 1 else kwargs.get("kernel_size", 1)
            call.kernel = max(sides) if isinstance(sides, (tuple, list)) else int(sides)
        if name in SUM and len(known) == len(args) == 2 and all(t.numel() == out.numel() for t in known):
            call.summands = self.made[id(args[0])], self.made[id(args[1])]
        return call

    def _own(self, outs: list[Tensor], call: Call, places: list[Places | None]) -> None:
        """Each tensor that a call returned is a node of its own."""
        for k, (out, place) in enumerate(zip(outs, places, strict=True)):
            time = None if k else call.time
            self.made[id(out)] = len(self.calls)
            self.kept.append(out)
            if place:
                self.places[id(out)] = place
            else:
                self.places.pop(id(out), None)
            self.calls.append(replace(call, shape=tuple(out.shape), places=place, time=time, received=[], returned=[]))

    def hooks(self, model: nn.Module) -> list[Any]:
        handles: list[Any] = []
        for name, module in model.named_modules():
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
            given = [t for t in tensors((args, kwargs)) if id(t) in self.made]
            if outs and given and not any(id(t) in self.made for t in outs):  # a scripted or custom function
                parents = tuple(dict.fromkeys(self.made[id(t)] for t in given))
                places = places_after(Made(module, "module", args, kwargs), outs, self.places)
                self._own(outs, Call("module", parents, module=name, learned=True), places)
            self.spans[name, time] = (start, len(self.calls))
            if outs and id(outs[0]) in self.made:
                self.calls[self.made[id(outs[0])]].returned.append((name, time))

        return leave
