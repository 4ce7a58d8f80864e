"""Surgery on a trained model: convolutions become attention, attention becomes convolutions, or either becomes a blur.

AlterNet is built by replacing convolutions at the ends of stages by attention, one at a time (Park & Kim 2022, section 4).
Surgery does this to any model whose units Backlight finds, and keeps its weights: each new branch is added beside the old
one behind a gate that starts at 0, so at first the model's outputs are the same, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from backlight.errors import UserError, did_you_mean
from backlight.models.architectures.alternet import BlurDifference, attention_branch
from backlight.models.architectures.window_attention import WindowAttention
from backlight.models.surgery.modules import (
    Blend,
    Chain,
    GatedBlur,
    Placeholder,
    StoredInput,
    StoreInput,
    blends_with_original,
    for_layouts,
    separable_branch,
)
from backlight.models.surgery.sites import (
    Site,
    has_module,
    is_at,
    output_of,
    result_lengths,
    runs,
    site_of,
    unused_without,
)
from backlight.tracing.find import units as units_of
from backlight.tracing.tap import Unit
from backlight.tracing.trace import evaluating, record_calls

#: A kind of replacement -> the kinds of unit that it can replace.
REPLACES = {"attention": ("conv",), "convolution": ("attention",), "blur": ("conv", "attention")}
STOCHASTIC_DEPTH = ("DropPath", "StochasticDepth")  # classes that drop a branch, old or new


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
    units: indices into `backlight.units`.  to: ``"attention"`` in windows, for convolutions; ``"convolution"``, depthwise 3x3
    and 1x1, for attention; ``"blur"``, the fixed 3x3 binomial, for both.
    heads: by default 3/64 of the branch's width, AlterNet's 3, 6, 12, 24.  match_parameters: choose ``dim_head`` and
    the width so that attention has as many parameters as the branch that it can replace.
    seed: of the new weights; None draws them from the caller's generator.
    Errors: UserError for a unit that cannot be replaced in this way.
    """
    settings = {"to": to, "heads": heads, "dim_head": dim_head, "window": window, "match_parameters": match_parameters}
    refuse_bad_settings(units, settings)
    hybrid = deepcopy(model)
    with torch.random.fork_rng(devices=[]) if seed is not None else nullcontext():
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # weights are drawn on the CPU; other generators are not changed
        for index in units:
            add_replacement(hybrid, images, index, to, partial(new_attention, heads, dim_head, window, match_parameters))
    refuse_changed(model, hybrid, images, units)
    return recorded(hybrid, images, {"operation": "hybridize", "units": list(units), **settings})


def drop_original(hybrid: nn.Module, images: Tensor) -> nn.Module:
    """A copy of ``hybrid`` without the old branches: its outputs are those of ``hybrid`` with all gates at 1.

    Shapes: images (B, C, H, W).  Errors: UserError if there is no old branch, or one cannot be removed.
    """
    dropped = deepcopy(hybrid)
    blends = dict(blends_with_original(dropped))
    if not blends:
        raise UserError("the model has no branches to drop: hybridize it first")
    lengths = result_lengths(dropped, images)
    modules, parameters = unused_without(dropped, images, [f"{path}.original" for path in blends])
    for blend in blends.values():
        blend.original = blend.gate = None
    expected = output_of(dropped, images)
    for path in modules:
        if has_module(dropped, path) and not isinstance(dropped.get_submodule(path), StoreInput):
            dropped.set_submodule(path, Placeholder(lengths[path]))
    remove_parameters(dropped, images, [name for name in parameters if has_module(dropped, name.rpartition(".")[0])])
    try:
        same = torch.equal(output_of(dropped, images), expected)
    except Exception as error:
        raise UserError(f"the old branches cannot be removed from their blocks: {' '.join(str(error).split())}") from error
    if not same:
        raise UserError("the old branches cannot be removed from their blocks: the output still depends on them")
    return recorded(dropped, images, {"operation": "drop_original"})


def smooth(model: nn.Module, images: Tensor, *, after: str | Sequence[int] = "stages", gate: float = 1.0) -> nn.Module:
    """A copy of ``model`` whose stream is blurred at the end of each stage, or ``after`` these units.

    The fixed 3x3 binomial is spatial smoothing (Park & Kim 2022, figure 3a).  Each blur is a unit of its own, ``b``, with a
    gate: at 0 the stream is unchanged, bit for bit.
    Shapes: images (B, C, H, W).  Errors: UserError if the stream there is not a map that a module returns.
    """
    if isinstance(gate, bool) or not isinstance(gate, (int, float)) or not math.isfinite(gate):
        raise UserError(f"gate={gate!r}: it must be a number: 0 for the stream unchanged, 1 for the blurred stream")
    smoothed = deepcopy(model)
    units = units_of(smoothed, images)
    refuse_without_units(units)
    if after == "stages":
        selected = [list(group)[-1].index for _, group in groupby(units, key=lambda unit: unit.stage)]
    else:
        refuse_bad_indices("after", after)
        selected = sorted(after)  # type: ignore[arg-type]
    for index in selected:
        blur_after(smoothed, images, unit_at(units, index), gate)
    operation = {"operation": "smooth", "after": after if isinstance(after, str) else selected, "gate": gate}
    return recorded(smoothed, images, operation)


def gates(model: nn.Module) -> dict[str, nn.Parameter]:
    """The gates of a model after surgery, by name; each is one number: 0 as before the surgery, 1 as after it."""
    blends = ((name, module.gate) for name, module in model.named_modules() if isinstance(module, (Blend, GatedBlur)))
    return {f"{name}.gate".lstrip("."): gate for name, gate in blends if gate is not None}


def set_gates(model: nn.Module, value: float) -> None:
    """Set all gates of a model.  Errors: UserError if it has none."""
    parameters = gates(model)
    if not parameters:
        raise UserError("the model has no gates: hybridize or smooth it first")
    with torch.no_grad():
        for gate in parameters.values():
            gate.fill_(value)


def surgery_of(model: nn.Module) -> list[dict[str, Any]]:
    """The operations of surgery on the model, in order, as JSON can hold them."""
    return list(model.__dict__.get("_surgery", ()))


def recorded(model: nn.Module, images: Tensor, operation: dict[str, Any]) -> nn.Module:
    """The model, with the operation added to its record."""
    model.__dict__["_surgery"] = [*surgery_of(model), operation | {"images": list(images.shape[1:])}]
    return model


def with_surgery(model: nn.Module, operations: Any) -> nn.Module:
    """The model after these operations, as `surgery_of` lists them; new weights are drawn from the caller's generator.

    Errors: UserError for anything but a list of operations that fit the model.
    """
    known: dict[str, Callable[..., nn.Module]] = {
        "hybridize": partial(hybridize, seed=None),
        "drop_original": drop_original,
        "smooth": smooth,
    }
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise UserError(f"surgery: {operations!r} is not a list of operations")
    for operation in operations:
        arguments = dict(operation)
        name, shape = arguments.pop("operation", None), arguments.pop("images", None)
        if name not in known:
            raise UserError(f"surgery: there is no operation {name!r}{did_you_mean(str(name), known)}")
        if not (isinstance(shape, list) and len(shape) == 3 and all(isinstance(side, int) and side > 0 for side in shape)):
            raise UserError(f"surgery: images={shape!r} must be [channels, height, width] of the images for {name}")
        images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(weight_of(model))
        try:
            model = known[name](model, images, **arguments)
        except TypeError as error:
            raise UserError(f"surgery: {name} does not accept {arguments}: {error}") from error
    return model


def add_replacement(model: nn.Module, images: Tensor, index: int, to: str, attention: Callable[..., nn.Module]) -> None:
    """Add a new branch to unit ``index``, in place, blended with the old one; ``attention`` makes one of that kind."""
    units = units_of(model, images)
    refuse_without_units(units)
    unit = unit_at(units, index)
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
            raise UserError(f"{unit} changes the stream's shape, so a blur cannot replace it")
        branch = BlurDifference()
    like = weight_of(model)
    new = for_layouts(branch, *site.layouts, site.read.shape).to(like.device, like.dtype)
    insert_blend(model, site, new, nn.Parameter(like.new_zeros(())))


def insert_blend(model: nn.Module, site: Site, new: nn.Module, gate: nn.Parameter) -> None:
    """Put ``new`` beside the branch at ``site``, in place."""
    end = model.get_submodule(site.end)
    if site.begin is None:
        replace_module(model, site.end, Blend(end, new, gate), new)
        return
    stored = StoredInput()
    if type(end).__name__ in STOCHASTIC_DEPTH:
        blend = Blend(nn.Identity(), new, gate, stored)
        replace_module(model, site.end, Chain(blend, end), blend, *blend.children())
    else:
        replace_module(model, site.end, Blend(end, new, gate, stored), new)
    begin = site.begin.module
    module = StoreInput(model.get_submodule(begin), stored, result=site.begin.side == "output")
    replace_module(model, begin, module)


def replace_module(model: nn.Module, path: str, module: nn.Module, *new: nn.Module) -> None:
    """Replace the module at ``path`` by ``module``; it and the ``new`` ones inside it take over the training mode."""
    training = model.get_submodule(path).training
    for part in new:
        part.train(training)
    module.training = training
    model.set_submodule(path, module)


def old_branch(model: nn.Module, images: Tensor, site: Site) -> tuple[list[nn.Module], int]:
    """The modules of the branch at ``site``, and the number of parameters that are removed when it is dropped."""
    if site.begin is None:
        paths, names = [site.end], list[str]()
    else:
        paths, names = unused_without(model, images, [site.end])
    modules = [model.get_submodule(path) for path in paths]
    parameters = [p for module in modules for p in module.parameters()] + [model.get_parameter(name) for name in names]
    return [inner for module in modules for inner in module.modules()], sum(p.numel() for p in parameters)


def new_attention(
    heads: int | None, dim_head: int, window: int, match_parameters: bool, site: Site, old: Sequence[nn.Module], parameters: int
) -> nn.Module:
    """AlterNet's attention branch; its inner width is that of the narrowest spatial convolution among the modules ``old``."""
    dim_in, dim_out = site.channels
    widths = [m.out_channels for m in old if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    width = min([*widths, dim_out])
    heads = heads or max(1, round(3 * width / dim_head))
    if match_parameters:
        width, dim_head = matched(dim_in, dim_out, width, heads=heads, window=window, parameters=parameters)
    attend = WindowAttention(width, dim_out, heads=heads, dim_head=dim_head, window=window)
    return attention_branch(dim_in, width, site.stride, attend)


def matched(dim_in: int, dim_out: int, width: int, *, heads: int, window: int, parameters: int) -> tuple[int, int]:
    """The width w and dim_head d with which the attention branch has the number of parameters closest to ``parameters``.

    The branch has (dim_in + 2) w parameters before the attention, 3 w heads d for queries, keys and values, heads d dim_out
    and dim_out for the output projection, and a table of biases.  Of the pairs within 1% the one closest to ``width`` wins.
    """
    fixed = dim_out + (2 * window - 1) ** 2
    pairs = []
    for dim_head in range(1, max(2, (parameters - fixed) // (heads * dim_out) + 1)):
        inner = heads * dim_head
        exact = max(1, round((parameters - fixed - inner * dim_out) / (dim_in + 2 + 3 * inner)))
        for candidate in (width, exact):
            count = fixed + inner * dim_out + candidate * (dim_in + 2 + 3 * inner)
            error = abs(count / parameters - 1)
            pairs.append((max(0.01, error), abs(math.log(candidate / width)), error, candidate, dim_head))
    return min(pairs)[3:]


def blur_after(model: nn.Module, images: Tensor, unit: Unit, gate: float) -> None:
    """Blur the stream after ``unit``, in place: at the end of an nn.Sequential if the unit ends one."""
    with evaluating(model):
        trace = record_calls(model, images)
    stream = next((call for call in trace.calls if unit.after and is_at(call, unit.after)), None)
    paths = [path for path, _ in stream.returned if trace.times_called[path] == 1] if stream else []
    if not stream or not stream.layout or not paths:
        raise UserError(f"the stream after {unit} cannot be smoothed: it is not a map that a module returns")
    branch = for_layouts(BlurDifference(), stream.layout, stream.layout, stream.shape)
    like = weight_of(model)
    blur = GatedBlur(branch.to(like.device, like.dtype), nn.Parameter(like.new_tensor(gate))).train(model.training)
    around = [path for path in paths if any(tap.module.startswith(f"{path}.") for tap in unit.branch)]  # innermost first
    for sequence in map(model.get_submodule, around):
        if type(sequence).forward is nn.Sequential.forward:
            sequence.append(blur)  # type: ignore[operator]
            return
    path = [*around, paths[-1]][0]
    replace_module(model, path, Chain(model.get_submodule(path), blur), blur)


def remove_parameters(model: nn.Module, images: Tensor, names: Sequence[str]) -> None:
    """Set unused parameters of modules that are still used to None, unless the module needs them to run."""
    for name in names:
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        parameter = getattr(module, attribute)
        setattr(module, attribute, None)
        if not runs(model, images):
            setattr(module, attribute, parameter)


def weight_of(model: nn.Module) -> Tensor:
    """A weight of the model, which gives the device and type of new weights."""
    return next((p.detach() for p in model.parameters() if p.is_floating_point()), torch.zeros(()))


def unit_at(units: Sequence[Unit], index: int) -> Unit:
    """The unit of this index.  Errors: UserError if there is none."""
    if not 0 <= index < len(units):
        raise UserError(f"there is no unit {index}: the model has units 0 to {len(units) - 1}")
    return units[index]


def refuse_without_units(units: Sequence[Unit]) -> None:
    """Errors: UserError if there are no units."""
    if not units:
        raise UserError("the model has no residual units, so there is no branch to replace")


def refuse_bad_indices(name: str, units: Any) -> None:
    """Errors: UserError for anything but a sequence of different integers."""
    if isinstance(units, (str, bytes)) or not isinstance(units, Sequence) or not units:
        raise UserError(f"{name}={units!r}: it must be a list of unit indices")
    if any(isinstance(index, bool) or not isinstance(index, int) for index in units):
        raise UserError(f"{name}={units!r}: the index of a unit must be an integer")
    if len(set(units)) < len(units):
        raise UserError(f"{name}={units!r}: a unit is listed twice")


def refuse_bad_settings(units: Any, settings: Mapping[str, Any]) -> None:
    """Errors: UserError for settings of `hybridize` that are out of range or contradict each other."""
    refuse_bad_indices("units", units)
    to = settings["to"]
    if to not in REPLACES:
        raise UserError(f"to={to!r}: it must be {', '.join(REPLACES)}{did_you_mean(str(to), REPLACES)}")
    if settings["match_parameters"] and to != "attention":
        raise UserError(f"match_parameters sets the size of attention, and to={to!r} makes none")
    for name in ("heads", "dim_head", "window"):
        if (value := settings[name]) is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{name}={value!r}: it must be an integer, at least 1")


def refuse_changed(model: nn.Module, hybrid: nn.Module, images: Tensor, units: Sequence[int]) -> None:
    """Errors: UserError if the outputs of ``hybrid``, whose gates are at 0, are not exactly the model's."""
    try:
        same = torch.equal(output_of(hybrid, images), output_of(model, images))
    except Exception as error:
        raise UserError(f"units {list(units)} cannot be replaced: {' '.join(str(error).split())}") from error
    if not same:
        raise UserError(f"units {list(units)} cannot be replaced: the model's output changes although the gates are at 0")
