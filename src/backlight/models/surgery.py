"""Turning convolutions of a trained model into attention, attention into convolutions, either into a blur.

AlterNet is built by replacing convolutions at the ends of stages by attention, one at a time (Park & Kim 2022, section 4).
Here this is done to any model whose units Backlight finds, and without losing its weights: the new branch stands beside
the old one behind a gate that starts at 0, so that the model is at first, bit for bit, what it was.

A branch that one module computes is blended where that module stands.  The branch of a block that computes it line by
line (``conv1`` ... ``bn3``) is blended where its last module stands; what the replacement is to read is handed there
from where the stream enters the block.  Which modules are then no more needed is asked of autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from .. import anatomy
from ..anatomy import Tap, Unit, evaluating
from ..errors import UserError, did_you_mean
from ..layout import Layout, tensors
from ..trace import Call, Trace, plain_attention, trace
from .alternet import BlurDifference, attention_branch
from .attention import WindowAttention
from .grafts import Blend, Entrance, Followed, Handover, Removed, Smooth, mapped, separable_branch

#: What a unit may become, and the kinds of unit that may become it.
REPLACES = {"attention": ("conv",), "convolution": ("attention",), "blur": ("conv", "attention")}
STOCHASTIC_DEPTH = ("DropPath", "StochasticDepth")  # what keeps or drops a branch, be it old or new


def hybridize(
    model: nn.Module,
    images: Tensor,
    units: Sequence[int],
    *,
    to: str = "attention",
    heads: int | None = None,
    dim_head: int = 64,
    window: int = 7,
    match_parameters: bool = False,
    seed: int | None = 0,
) -> nn.Module:
    """A copy of ``model`` in which the branches of ``units`` can be blended with new ones; its outputs are the model's.

    Shapes: images (B, C, H, W); one or two are enough.
    units: indices into `backlight.units`.  to: ``"attention"``, in windows, for convolutions; ``"convolution"``, 3x3 by
    channel and 1x1, for attention; ``"blur"``, the fixed 3x3 binomial, for both.
    heads: by default 3/64 of the branch's width, AlterNet's 3, 6, 12, 24.  match_parameters: choose ``dim_head`` and
    the width so that attention has as many parameters as the branch that it can replace.
    seed: of the new weights; None draws them from the caller's generator.
    Errors: UserError for a unit that cannot become that.
    """
    settings = {"to": to, "heads": heads, "dim_head": dim_head, "window": window, "match_parameters": match_parameters}
    refuse_bad_settings(units, settings)
    hybrid = deepcopy(model)
    with torch.random.fork_rng(devices=[]) if seed is not None else nullcontext():
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # the weights are drawn on the CPU; other generators stay as they are
        for index in units:
            graft(hybrid, images, index, to, partial(new_attention, heads, dim_head, window, match_parameters))
    refuse_changed(model, hybrid, images, units)
    return recorded(hybrid, images, {"operation": "hybridize", "units": list(units), **settings})


def drop_original(hybrid: nn.Module, images: Tensor) -> nn.Module:
    """A copy of ``hybrid`` in which each replacement stands alone: as with all gates at 1, but the old branches are gone.

    Shapes: images (B, C, H, W).  Errors: UserError if there is no old branch, or one cannot be taken out.
    """
    alone = deepcopy(hybrid)
    blends = dict(open_blends(alone))
    if not blends:
        raise UserError("the model has no branches to drop: hybridize it first")
    forms = forms_of_results(alone, images)
    modules, parameters = needless(alone, images, [f"{path}.original" for path in blends])
    for blend in blends.values():
        blend.original = blend.gate = None
    wanted = output_of(alone, images)
    for path in modules:
        if holds(alone, path) and not isinstance(alone.get_submodule(path), Entrance):
            alone.set_submodule(path, Removed(forms[path]))
    take_out(alone, images, [path for path in parameters if holds(alone, path.rpartition(".")[0])])
    try:
        same = torch.equal(output_of(alone, images), wanted)
    except Exception as error:
        raise UserError(f"the old branches cannot be taken out of their blocks: {' '.join(str(error).split())}") from error
    if not same:
        raise UserError("the old branches cannot be taken out of their blocks: the output depends on them still")
    return recorded(alone, images, {"operation": "drop_original"})


def smooth(model: nn.Module, images: Tensor, *, after: str | Sequence[int] = "stages", gate: float = 1.0) -> nn.Module:
    """A copy of ``model`` whose stream is blurred at the end of each stage, or ``after`` these units.

    The fixed 3x3 binomial is spatial smoothing (Park & Kim 2022, figure 3a).  Each blur is a unit of its own, ``b``, with a
    gate: at 0 the stream passes as it is, bit for bit.
    Shapes: images (B, C, H, W).  Errors: UserError if the stream there is not a map that a module returns.
    """
    if isinstance(gate, bool) or not isinstance(gate, (int, float)) or not math.isfinite(gate):
        raise UserError(f"gate={gate!r}: a number is needed, 0 for the stream as it is, 1 for the blurred one")
    smoothed = deepcopy(model)
    found = anatomy.units(smoothed, images)
    refuse_without_units(found)
    if after == "stages":
        chosen = [list(group)[-1].index for _, group in groupby(found, key=lambda unit: unit.stage)]
    else:
        refuse_bad_numbers("after", after)
        chosen = sorted(after)  # type: ignore[arg-type]
    for index in chosen:
        blur_after(smoothed, images, numbered(found, index), gate)
    told = {"after": after if isinstance(after, str) else chosen, "gate": gate}
    return recorded(smoothed, images, {"operation": "smooth", **told})


def gates(model: nn.Module) -> dict[str, nn.Parameter]:
    """The gates of an operated model by name, each one number: 0 as before the surgery, 1 as after it."""
    held = ((name, module.gate) for name, module in model.named_modules() if isinstance(module, (Blend, Smooth)))
    return {f"{name}.gate".lstrip("."): gate for name, gate in held if gate is not None}


def set_gates(model: nn.Module, value: float) -> None:
    """Set all gates of an operated model.  Errors: UserError if it has none."""
    found = gates(model)
    if not found:
        raise UserError("the model has no gates: hybridize or smooth it first")
    with torch.no_grad():
        for gate in found.values():
            gate.fill_(value)


# --- what was done to a model, and doing it again


def surgery_of(model: nn.Module) -> list[dict[str, Any]]:
    """The operations that made the model of another, in order, as JSON can hold them."""
    return list(model.__dict__.get("_surgery", ()))


def recorded(model: nn.Module, images: Tensor, operation: dict[str, Any]) -> nn.Module:
    """The model, the operation added to its record."""
    model.__dict__["_surgery"] = [*surgery_of(model), operation | {"images": list(images.shape[1:])}]
    return model


def operated(model: nn.Module, operations: Any) -> nn.Module:
    """The model after these operations, new weights from the caller's generator.

    Errors: UserError for what is no record of operations, or does not fit the model.
    """
    known: dict[str, Callable[..., nn.Module]] = {
        "hybridize": partial(hybridize, seed=None),
        "drop_original": drop_original,
        "smooth": smooth,
    }
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise UserError(f"surgery: {operations!r} is no list of operations")
    for operation in operations:
        arguments = dict(operation)
        name, shape = arguments.pop("operation", None), arguments.pop("images", None)
        if name not in known:
            raise UserError(f"surgery: there is no operation {name!r}{did_you_mean(str(name), known)}")
        if not (isinstance(shape, list) and len(shape) == 3 and all(isinstance(side, int) and side > 0 for side in shape)):
            raise UserError(f"surgery: images={shape!r} is no [channels, height, width] of the images for {name}")
        images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(weight_of(model))
        try:
            model = known[name](model, images, **arguments)
        except TypeError as error:
            raise UserError(f"surgery: {name} cannot be done with {arguments}: {error}") from error
    return model


# --- where a branch begins and ends


@dataclass(frozen=True)
class Site:
    """Where a unit's branch can be replaced: it reads ``begin`` and ends with what ``end`` returns."""

    unit: Unit
    begin: Tap | None  # None: what ``end`` receives, for it is the whole branch
    end: str
    read: Call  # what made the activation that the replacement reads
    write: Call  # what made the one that it returns

    @property
    def layouts(self) -> tuple[Layout, Layout]:
        assert self.read.layout
        assert self.write.layout
        return self.read.layout, self.write.layout

    @property
    def channels(self) -> tuple[int, int]:
        axes = [-1 if layout.order in ("channels last", "tokens") else 1 for layout in self.layouts]
        return self.read.shape[axes[0]], self.write.shape[axes[1]]

    @property
    def stride(self) -> int:
        (h, w), (rows, columns) = (layout.size for layout in self.layouts)
        stride = max(1, round(h / rows))
        if (-(-h // stride), -(-w // stride)) != (rows, columns):
            raise UserError(f"{self.unit} makes {rows} x {columns} of a {h} x {w} map, which no stride does")
        return stride


def site_of(model: nn.Module, images: Tensor, unit: Unit, *, from_stream: bool) -> Site:
    """Where the branch of ``unit`` is to be replaced; ``from_stream``: by one that reads the stream before it.

    Errors: UserError if no module returns the branch, or no map goes in or out.
    """
    with evaluating(model):
        seen = trace(model, images)
    ends = [tap.module for tap in unit.branch if tap.side == "output" and seen.times_called[tap.module] == 1]
    if len(unit.branch) != 1 or not ends:
        raise UserError(f"{unit} cannot be operated on: no module that runs once returns its branch")
    if any(ends[0] == path or ends[0].startswith(f"{path}.") for path, _ in open_blends(model)):
        raise UserError(f"{unit} has a replacement already: drop the original first")
    sites = [] if from_stream else [whole_branch(seen, unit, ends[0], forms_of_results(model, images))]
    for site in [*sites, spliced_branch(seen, unit, ends[0])]:
        if site and site.read.layout and site.write.layout:
            return site
    raise UserError(f"{unit} cannot be operated on: its branch does not read and return maps where modules do")


def whole_branch(seen: Trace, unit: Unit, end: str, forms: Mapping[str, int | None]) -> Site | None:
    """The module that holds the branch's weights, if it computes the branch and no more, of one tensor."""
    path = unit.module
    inside_a_block = not path or end.startswith(f"{path}.")
    if inside_a_block or seen.times_called.get(path) != 1 or forms.get(path, 0) is not None:
        return None
    read = next((call for call in seen.calls if (path, 0) in call.received), None)
    write = next((call for call in seen.calls if (path, 0) in call.returned), None)
    return Site(unit, None, path, read, write) if read and write else None


def spliced_branch(seen: Trace, unit: Unit, end: str) -> Site | None:
    """From where the stream enters the innermost module around the branch, or else passes a module, to the end."""
    write = next(call for call in seen.calls if (end, 0) in call.returned)
    read = next((call for call in seen.calls if unit.before and passes(call, unit.before)), None)
    if read is None:
        return None
    received = [path for path, time in read.received if seen.times_called[path] == 1]
    around = sorted((path for path in received if end.startswith(f"{path}.")), key=len)
    taps = [Tap(path, "input") for path in [*around[-1:], *received]]
    taps += [Tap(path, "output") for path, _ in read.returned if seen.times_called[path] == 1]
    return Site(unit, taps[0], end, read, write) if taps else None


def passes(call: Call, tap: Tap) -> bool:
    """Whether the call's result goes by ``tap``."""
    if tap.side == "function":
        return (call.name, call.time) == (tap.module, tap.call)
    return (tap.module, tap.call) in (call.received if tap.side == "input" else call.returned)


def needless(model: nn.Module, images: Tensor, without: Sequence[str]) -> tuple[list[str], list[str]]:
    """The modules, outermost only, and the parameters of others of which nothing is made once ``without`` return zeros.

    A module is needed if the output has a gradient by its result.
    """
    before, after = reached(model, images, ()), reached(model, images, without)
    unused = {path for path in before if path not in after}
    modules = [path for path, _ in model.named_modules() if path in unused]
    outermost = [path for path in modules if not any(path.startswith(f"{other}.") for other in modules)]
    parameters = [name for name, _ in model.named_parameters() if name in unused]
    return outermost, [name for name in parameters if not any(name.startswith(f"{path}.") for path in outermost)]


def reached(model: nn.Module, images: Tensor, without: Sequence[str]) -> set[str]:
    """The modules and parameters by which the output has a gradient, while the modules ``without`` return zeros."""
    probes: dict[str, Tensor] = {}

    def probe(path: str, module: nn.Module, args: Any, out: Any) -> Any:
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return None
        probes.setdefault(path, first.new_zeros((), requires_grad=True))
        felt = torch.zeros_like(first) if path in without else first + probes[path]
        return felt if first is out else type(out)([felt, *out[1:]])

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


def forms_of_results(model: nn.Module, images: Tensor) -> dict[str, int | None]:
    """What each module that runs returns: a tensor (None), or how many things."""
    forms: dict[str, int | None] = {}

    def look(path: str, module: nn.Module, args: Any, out: Any) -> None:
        forms[path] = None if isinstance(out, Tensor) else len(out) if hasattr(out, "__len__") else 0

    handles = [module.register_forward_hook(partial(look, path)) for path, module in model.named_modules() if path]
    try:
        output_of(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return forms


# --- replacing


def graft(model: nn.Module, images: Tensor, index: int, to: str, attention: Callable[..., nn.Module]) -> None:
    """Blend the branch of unit ``index`` with a new one, in place."""
    found = anatomy.units(model, images)
    refuse_without_units(found)
    unit = numbered(found, index)
    if unit.kind not in REPLACES[to]:
        kinds = " or ".join(REPLACES[to])
        raise UserError(f"{unit} is of kind {unit.kind}: only {kinds} becomes {to}; `backlight units` lists the kinds")
    site = site_of(model, images, unit, from_stream=to == "blur")
    if to == "attention":
        branch = attention(site, *old_branch(model, images, site))
    elif to == "convolution":
        branch = separable_branch(*site.channels, site.stride)
    else:
        if not unit.identity or site.stride != 1:
            raise UserError(f"{unit} changes the stream's shape: a blur takes the place of none such")
        branch = BlurDifference()
    like = weight_of(model)
    new = mapped(branch, *site.layouts, site.read.shape).to(like.device, like.dtype)
    blend_in(model, site, new, nn.Parameter(like.new_zeros(())))


def blend_in(model: nn.Module, site: Site, new: nn.Module, gate: nn.Parameter) -> None:
    """Put ``new`` beside the branch."""
    end = model.get_submodule(site.end)
    if site.begin is None:
        put(model, site.end, Blend(end, new, gate), new)
        return
    handover = Handover()
    if type(end).__name__ in STOCHASTIC_DEPTH:
        blend = Blend(nn.Identity(), new, gate, handover)
        put(model, site.end, Followed(blend, end), blend, *blend.children())
    else:
        put(model, site.end, Blend(end, new, gate, handover), new)
    begin = site.begin.module
    put(model, begin, Entrance(model.get_submodule(begin), handover, returned=site.begin.side == "output"))


def put(model: nn.Module, path: str, module: nn.Module, *fresh: nn.Module) -> None:
    """Put ``module`` in the place of the one at ``path``, it and the ``fresh`` ones inside it in that one's mode."""
    training = model.get_submodule(path).training
    for part in fresh:
        part.train(training)
    module.training = training
    model.set_submodule(path, module)


def old_branch(model: nn.Module, images: Tensor, site: Site) -> tuple[list[nn.Module], int]:
    """The modules of the branch at ``site``, and how many parameters go when it is dropped."""
    if site.begin is None:
        paths, alone = [site.end], list[str]()
    else:
        paths, alone = needless(model, images, [site.end])
    whole = [model.get_submodule(path) for path in paths]
    parameters = size(whole) + sum(model.get_parameter(name).numel() for name in alone)
    return [inner for module in whole for inner in module.modules()], parameters


def new_attention(
    heads: int | None, dim_head: int, window: int, match_parameters: bool, site: Site, old: Sequence[nn.Module], parameters: int
) -> nn.Module:
    """AlterNet's attention branch: as wide inside as the narrowest spatial convolution of the old one."""
    dim_in, dim_out = site.channels
    widths = [m.out_channels for m in old if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    width = min([*widths, dim_out])
    heads = heads or max(1, round(3 * width / dim_head))
    if match_parameters:
        width, dim_head = matched(dim_in, dim_out, width, heads=heads, window=window, parameters=parameters)
    attend = WindowAttention(width, dim_out, heads=heads, dim_head=dim_head, window=window)
    return attention_branch(dim_in, width, site.stride, attend)


def matched(dim_in: int, dim_out: int, width: int, *, heads: int, window: int, parameters: int) -> tuple[int, int]:
    """The width and dim_head of the attention branch that has the most nearly ``parameters`` of them.

    It has (dim_in + 2) w of them before the attention, w 3 heads d and heads d dim_out for queries, keys, values and the
    way out, dim_out biases and the table.  Of the pairs within 1% the one closest to ``width`` is taken.
    """
    fixed = dim_out + (2 * window - 1) ** 2
    pairs = []
    for dim_head in range(1, max(2, (parameters - fixed) // (heads * dim_out) + 1)):
        inner = heads * dim_head
        exact = max(1, round((parameters - fixed - inner * dim_out) / (dim_in + 2 + 3 * inner)))
        for wide in (width, exact):
            has = fixed + inner * dim_out + wide * (dim_in + 2 + 3 * inner)
            error = abs(has / parameters - 1)
            pairs.append((max(0.01, error), abs(math.log(wide / width)), error, wide, dim_head))
    return min(pairs)[3:]


def blur_after(model: nn.Module, images: Tensor, unit: Unit, gate: float) -> None:
    """Put a blur after the stream that ``unit`` leaves, in place: at the end of a sequence if it ends there."""
    with evaluating(model):
        seen = trace(model, images)
    stream = next((call for call in seen.calls if unit.after and passes(call, unit.after)), None)
    paths = [path for path, _ in stream.returned if seen.times_called[path] == 1] if stream else []
    if not stream or not stream.layout or not paths:
        raise UserError(f"the stream after {unit} is not a map that a module returns: it cannot be smoothed there")
    branch = mapped(BlurDifference(), stream.layout, stream.layout, stream.shape)
    like = weight_of(model)
    new = Smooth(branch.to(like.device, like.dtype), nn.Parameter(like.new_tensor(gate))).train(model.training)
    around = [path for path in paths if any(tap.module.startswith(f"{path}.") for tap in unit.branch)]  # innermost first
    for sequence in map(model.get_submodule, around):
        if type(sequence).forward is nn.Sequential.forward:
            sequence.append(new)  # type: ignore[operator]
            return
    place = [*around, paths[-1]][0]
    put(model, place, Followed(model.get_submodule(place), new), new)


def take_out(model: nn.Module, images: Tensor, parameters: Sequence[str]) -> None:
    """Set needless parameters of blocks that are needed to None; a block that minds keeps its own."""
    for path in parameters:
        parent, _, name = path.rpartition(".")
        module = model.get_submodule(parent)
        parameter = getattr(module, name)
        setattr(module, name, None)
        if not runs(model, images):
            setattr(module, name, parameter)


# --- small questions


def open_blends(model: nn.Module) -> Iterator[tuple[str, Blend]]:
    """The blends that still have their original, by path."""
    for path, module in model.named_modules():
        if isinstance(module, Blend) and module.original is not None:
            yield path, module


def weight_of(model: nn.Module) -> Tensor:
    """A weight of the model, on whose device and of whose type new ones are to be."""
    return next((p.detach() for p in model.parameters() if p.is_floating_point()), torch.zeros(()))


def output_of(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad(), plain_attention():
        return next(tensors(model(images))).clone()


def runs(model: nn.Module, images: Tensor) -> bool:
    try:
        output_of(model, images)
    except Exception:
        return False
    return True


def holds(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def size(modules: Sequence[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def numbered(found: Sequence[Unit], index: int) -> Unit:
    if not 0 <= index < len(found):
        raise UserError(f"there is no unit {index}: the model has units 0 to {len(found) - 1}")
    return found[index]


def refuse_without_units(found: Sequence[Unit]) -> None:
    if not found:
        raise UserError("the model has no residual units, so there is no branch to replace")


def refuse_bad_numbers(name: str, units: Any) -> None:
    if isinstance(units, (str, bytes)) or not isinstance(units, Sequence) or not units:
        raise UserError(f"{name}={units!r}: give the numbers of the units as a list")
    if any(isinstance(index, bool) or not isinstance(index, int) for index in units):
        raise UserError(f"{name}={units!r}: a unit is a whole number")
    if len(set(units)) < len(units):
        raise UserError(f"{name}={units!r}: a unit is named twice")


def refuse_bad_settings(units: Any, settings: Mapping[str, Any]) -> None:
    refuse_bad_numbers("units", units)
    to = settings["to"]
    if to not in REPLACES:
        raise UserError(f"to={to!r}: a unit becomes {', '.join(REPLACES)}{did_you_mean(str(to), REPLACES)}")
    if settings["match_parameters"] and to != "attention":
        raise UserError(f"match_parameters chooses the size of attention, and there is none in to={to!r}")
    for name in ("heads", "dim_head", "window"):
        if (value := settings[name]) is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{name}={value!r}: a whole number above 0 is needed")


def refuse_changed(model: nn.Module, hybrid: nn.Module, images: Tensor, units: Sequence[int]) -> None:
    try:
        same = torch.equal(output_of(hybrid, images), output_of(model, images))
    except Exception as error:
        raise UserError(f"units {list(units)} cannot be operated on: {' '.join(str(error).split())}") from error
    if not same:
        raise UserError(f"units {list(units)} cannot be operated on: the model's output changed though their gates are at 0")
