"""One forward pass, watched: which call made which activation, and which module received or returned it.

A ``TorchFunctionMode`` sees every torch call of an eager model, functional ones and those of any library, where
symbolic tracing gives up on data-dependent Python.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .layout import Layout, after_call

SUM = {"add", "add_", "__add__", "__iadd__", "__radd__"}
PRODUCT = {"matmul", "__matmul__", "bmm", "einsum", "baddbmm"}


@dataclass
class Call:
    """A torch call whose result depends on the images."""

    name: str
    parents: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    layout: Layout | None = None
    module: str = ""  # innermost module running
    summands: tuple[int, ...] = ()  # the two operands of a sum of equals
    product: bool = False  # of two activations
    kernel: int = 0  # largest side of the window of a convolution or pooling
    learned: bool = False  # reads a parameter
    received: list[tuple[str, int]] = field(default_factory=list)  # (module, its how-manieth call in the pass)
    returned: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Trace:
    """The calls of one forward pass in order; ``calls[0]`` is the images, ``last`` the first output."""

    calls: list[Call]
    last: int
    spans: dict[tuple[str, int], tuple[int, int]]  # (module, call) -> the calls made while it ran
    times_called: dict[str, int]


def trace(model: nn.Module, images: Tensor) -> Trace:
    """Run ``model`` on ``images`` once and write down its calls.  Leaves the model as it was."""
    recorder = _Recorder(model, images)
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


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value that modules pass around: nested tuples, lists, dicts and model outputs."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "values") and hasattr(value, "keys"):
        for item in value.values():
            yield from tensors(item)


class _Recorder(TorchFunctionMode):
    """Knows of each live tensor which call made it."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        h, w = images.shape[-2:]
        self.calls = [Call("images", shape=tuple(images.shape), layout=Layout("channels first", (h, w)))]
        self.made = {id(images): 0}
        self.kept: list[Tensor] = [images]  # an id is a tensor's own only while it lives
        self.parameters = {id(p) for p in model.parameters()}
        self.running: list[str] = []
        self.times: dict[str, int] = defaultdict(int)
        self.started: list[tuple[str, int, int]] = []
        self.spans: dict[tuple[str, int], tuple[int, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        outs = [args[0]] if name == "__setitem__" else list(tensors(result))
        given = list(tensors((args, kwargs)))
        if outs and (known := [t for t in given if id(t) in self.made]):
            self._add(name, args, kwargs or {}, given, known, outs)
        return result

    def _add(self, name: str, args: Any, kwargs: Any, given: Any, known: list[Tensor], outs: list[Tensor]) -> None:
        parents = tuple(dict.fromkeys(self.made[id(t)] for t in known))
        laid = [(t, layout) for t in known if (layout := self.calls[self.made[id(t)]].layout)]
        call = Call(name, parents, tuple(outs[0].shape), after_call(name, args, outs[0], laid))
        call.module = self.running[-1] if self.running else ""
        call.learned = any(id(t) in self.parameters or isinstance(t, nn.Parameter) for t in given)
        call.product = name in PRODUCT and len(known) > 1
        if name.startswith(("conv", "_conv")) and len(given) > 1:
            call.kernel = max(given[1].shape[2:], default=1)
        elif "pool" in name and "adaptive" not in name and len(args) > 1:
            call.kernel = max(args[1]) if isinstance(args[1], (tuple, list)) else int(args[1])
        if name in SUM and len(args) == 2 and all(isinstance(a, Tensor) and id(a) in self.made for a in args):
            a, b = args
            if math.prod(a.shape) == math.prod(b.shape) == math.prod(outs[0].shape):
                call.summands = self.made[id(a)], self.made[id(b)]
        self._own(outs, call)

    def _own(self, outs: list[Tensor], call: Call) -> None:
        for out in outs:
            self.made[id(out)] = len(self.calls)
            self.kept.append(out)
        self.calls.append(call)

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
                laid = [(t, layout) for t in given if (layout := self.calls[self.made[id(t)]].layout)]
                layout = after_call(name, (), outs[0], laid)
                parents = tuple(dict.fromkeys(self.made[id(t)] for t in given))
                self._own(outs, Call("module", parents, tuple(outs[0].shape), layout, name, learned=True))
            self.spans[name, time] = (start, len(self.calls))
            if outs and id(outs[0]) in self.made:
                self.calls[self.made[id(outs[0])]].returned.append((name, time))

        return leave
