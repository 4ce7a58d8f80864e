"""Where a unit's branch begins and ends, in terms of the modules at which it can be replaced.

A branch that one module computes begins and ends at that module.  A branch that a block computes line by line (``conv1``
... ``bn3``) begins where the stream enters the innermost module around the branch and ends at the last module of the
branch.  Which modules and parameters are unused once the branch is gone is read from the gradients of the output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from backlight.errors import UserError
from backlight.inputs import first_tensor, tensors
from backlight.models.surgery.modules import blends_with_original
from backlight.tracing.layout import Layout
from backlight.tracing.tap import Tap, Unit
from backlight.tracing.trace import Call, Trace, evaluating, plain_attention, record_calls


@dataclass(frozen=True)
class Site:
    """The part of a model that a unit's replacement takes over: from the activation at ``begin`` to the result of ``end``."""

    unit: Unit
    begin: Tap | None  # None: the input of ``end``, which computes the whole branch
    end: str
    read: Call  # the call that made the activation which the replacement reads
    write: Call  # the call that made the activation which the replacement returns

    @property
    def layouts(self) -> tuple[Layout, Layout]:
        """How the activations that are read and written hold a map."""
        assert self.read.layout
        assert self.write.layout
        return self.read.layout, self.write.layout

    @property
    def channels(self) -> tuple[int, int]:
        """The number of channels that are read and written."""
        axes = [-1 if layout.order in ("channels last", "tokens") else 1 for layout in self.layouts]
        return self.read.shape[axes[0]], self.write.shape[axes[1]]

    @property
    def stride(self) -> int:
        """The stride from the map that is read to the one that is written.  Errors: UserError if no stride gives it."""
        (h, w), (rows, columns) = (layout.size for layout in self.layouts)
        stride = max(1, round(h / rows))
        if (-(-h // stride), -(-w // stride)) != (rows, columns):
            raise UserError(f"{self.unit} turns a {h} x {w} map into {rows} x {columns}, which no stride does")
        return stride


def site_of(model: nn.Module, images: Tensor, unit: Unit, *, from_stream: bool) -> Site:
    """The site of a unit's branch.  from_stream: the replacement must read the stream before the unit.

    Errors: UserError if no module returns the branch, or it does not read and return maps.
    """
    with evaluating(model):
        trace = record_calls(model, images)
    ends = [tap.module for tap in unit.branch if tap.side == "output" and trace.times_called[tap.module] == 1]
    if len(unit.branch) != 1 or not ends:
        raise UserError(f"{unit} cannot be replaced: no module that runs once returns its branch")
    end = ends[0]
    if any(end == path or end.startswith(f"{path}.") for path, _ in blends_with_original(model)):
        raise UserError(f"{unit} has a replacement already: drop the original first")
    sites = [] if from_stream else [module_site(trace, unit, end, result_lengths(model, images))]
    for site in [*sites, block_site(trace, unit, end)]:
        if site and site.read.layout and site.write.layout:
            return site
    raise UserError(f"{unit} cannot be replaced: its branch does not read a map from a module and return one")


def module_site(trace: Trace, unit: Unit, end: str, lengths: Mapping[str, int | None]) -> Site | None:
    """The site of a branch that one module computes: one that returns one tensor and nothing besides the branch."""
    path = unit.module
    inside_a_block = not path or end.startswith(f"{path}.")
    if inside_a_block or trace.times_called.get(path) != 1 or lengths.get(path, 0) is not None:
        return None
    read = next((call for call in trace.calls if (path, 0) in call.received), None)
    write = next((call for call in trace.calls if (path, 0) in call.returned), None)
    return Site(unit, None, path, read, write) if read and write else None


def block_site(trace: Trace, unit: Unit, end: str) -> Site | None:
    """The site of a branch inside a block: from where the stream enters the innermost module around it to ``end``.

    If no module around the branch receives the stream, the site begins at any module that receives or returns it.
    """
    write = next(call for call in trace.calls if (end, 0) in call.returned)
    read = next((call for call in trace.calls if unit.before and is_at(call, unit.before)), None)
    if read is None:
        return None
    received = [path for path, time in read.received if trace.times_called[path] == 1]
    around = sorted((path for path in received if end.startswith(f"{path}.")), key=len)
    taps = [Tap(path, "input") for path in [*around[-1:], *received]]
    taps += [Tap(path, "output") for path, _ in read.returned if trace.times_called[path] == 1]
    return Site(unit, taps[0], end, read, write) if taps else None


def is_at(call: Call, tap: Tap) -> bool:
    """Whether the call's result is the activation at ``tap``."""
    if tap.side == "function":
        return (call.name, call.time) == (tap.module, tap.call)
    return (tap.module, tap.call) in (call.received if tap.side == "input" else call.returned)


def unused_without(model: nn.Module, images: Tensor, paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """The modules (outermost only) and other modules' parameters that the output uses only through the modules ``paths``.

    The output uses a module or parameter if it has a gradient with respect to it.
    """
    before, after = used(model, images, ()), used(model, images, paths)
    unused = {name for name in before if name not in after}
    modules = [path for path, _ in model.named_modules() if path in unused]
    outermost = [path for path in modules if not any(path.startswith(f"{other}.") for other in modules)]
    parameters = [name for name, _ in model.named_parameters() if name in unused]
    return outermost, [name for name in parameters if not any(name.startswith(f"{path}.") for path in outermost)]


def used(model: nn.Module, images: Tensor, silenced: Sequence[str]) -> set[str]:
    """The modules and parameters on which the output depends while the modules ``silenced`` return zeros."""
    probes: dict[str, Tensor] = {}

    def probe(path: str, module: nn.Module, args: Any, out: Any) -> Any:
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return None
        probes.setdefault(path, first.new_zeros((), requires_grad=True))
        probed = torch.zeros_like(first) if path in silenced else first + probes[path]
        return probed if first is out else type(out)([probed, *out[1:]])

    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    handles = [m.register_forward_hook(partial(probe, path)) for path, m in model.named_modules() if path]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with evaluating(model), torch.enable_grad(), plain_attention():
            total = sum(t.double().sum() for t in tensors(model(images)) if t.is_floating_point())
        sources = probes | dict(model.named_parameters())
        gradients = torch.autograd.grad(total, list(sources.values()), allow_unused=True)  # type: ignore[arg-type]
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)
    return {name for name, gradient in zip(sources, gradients, strict=True) if gradient is not None}


def result_lengths(model: nn.Module, images: Tensor) -> dict[str, int | None]:
    """For each module that runs, None if it returns a tensor, else the number of its results."""
    lengths: dict[str, int | None] = {}

    def record(path: str, module: nn.Module, args: Any, out: Any) -> None:
        lengths[path] = None if isinstance(out, Tensor) else len(out) if hasattr(out, "__len__") else 0

    handles = [module.register_forward_hook(partial(record, path)) for path, module in model.named_modules() if path]
    try:
        output_of(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return lengths


def output_of(model: nn.Module, images: Tensor) -> Tensor:
    """The first tensor that the model returns, in evaluation mode."""
    with evaluating(model), torch.no_grad(), plain_attention():
        return first_tensor(model(images)).clone()


def runs(model: nn.Module, images: Tensor) -> bool:
    """Whether the model runs without an exception."""
    try:
        output_of(model, images)
    except Exception:
        return False
    return True


def has_module(model: nn.Module, path: str) -> bool:
    """Whether the model has a module at ``path``."""
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True
