"""Requirements of a Hessian: which models, parameters and batches have one, and which modules have no second derivative."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.parallel import DataParallel, DistributedDataParallel

from backlight.curvature.loss import Predicate, differentiable
from backlight.errors import UserError
from backlight.inputs import first_tensor, labelled
from backlight.tracing.trace import inside

#: The largest relative error of a probe that rounding explains.
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}


def differentiable_model(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The model itself, or a copy of it in another type.  Errors: UserError if it has no second derivatives."""
    model = inside(model)
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        model = model.module
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            where = f"module {name}" if name else type(model).__name__
            raise UserError(f"{where} is compiled, and compiled code has no second derivatives; give the uncompiled model")
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            raise UserError(f"the weights {name} are not all finite, so the loss has no Hessian")
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtype is not None and types != {dtype}:
        model, types = copy.deepcopy(model).to(dtype), {dtype}
    if not types <= PROBE_TOLERANCE.keys():
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in types))
        raise UserError(f"weights of type {names} are too coarse for second derivatives; give dtype=torch.float32")
    return model


def selected_parameters(model: nn.Module, params: Predicate | None) -> dict[str, nn.Parameter]:
    """The selected parameters that require a gradient, by name; a tied parameter once, under its first selected name.

    Errors: UserError if there are none.
    """
    names: dict[nn.Parameter, str] = {}
    trainable = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    if not trainable:
        raise UserError(f"{type(model).__name__} is frozen: no parameter requires a gradient, so there is no Hessian")
    for name, p in trainable:
        if params is None or params(name, p):
            names.setdefault(p, name)
    if not names:
        examples = f"{len(trainable)} parameters of {type(model).__name__}, for example {trainable[0][0]}"
        raise UserError(f"params selects none of the {examples}")
    return {name: p for p, name in names.items()}


def micro_batches(batches: Iterable[Any], micro_batch: int | None, statistics: str) -> tuple[tuple[Tensor, Tensor], ...]:
    """The batches, cut into parts of at most ``micro_batch`` images.

    Errors: UserError if there are no images, targets are missing or no tensors, or statistics of a batch forbid cutting it.
    """
    if micro_batch is not None and (micro_batch < 1 or statistics == "batch"):
        raise UserError(f"micro_batch is {micro_batch}; it must be at least 1, and needs statistics='running'")
    parts: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        images, targets = labelled(batch)
        if len(images) != len(targets):
            raise UserError(f"a batch has {len(images)} images and {len(targets)} targets")
        if len(images):
            parts += zip(images.split(micro_batch or len(images)), targets.split(micro_batch or len(images)), strict=True)
    if not parts:
        raise UserError("no images: the data are empty, so the loss has no Hessian")
    return tuple(parts)


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Within the block torch computes gradients, even if the caller disabled them."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def gradients_only_of(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the block these parameters of the model require a gradient and no others, which keeps the graph small."""
    selected = {id(p) for p in parameters}
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in before:
            p.requires_grad_(id(p) in selected)
        with gradients_enabled():
            yield
    finally:
        for p, required in before:
            p.requires_grad_(required)


def undifferentiable_module(model: nn.Module, images: Tensor, statistics: str) -> str | None:
    """The innermost module without a second derivative: each is tested on its own input.  None if all have one."""
    received: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: received.update({name: (module, args, kwargs)})

    handles = [module.register_forward_pre_hook(note(name), with_kwargs=True) for name, module in model.named_modules()]
    try:
        with differentiable(model, statistics):
            with torch.no_grad():
                model(images)
            for handle in handles:
                handle.remove()
            for name, (module, args, kwargs) in reversed(received.items()):
                if not _is_smooth(copy.deepcopy(module), args, kwargs):
                    return f"{name} ({type(module).__name__})" if name else type(module).__name__
    except RuntimeError:  # the model does not run at all: the caller's own error says more
        return None
    finally:
        for handle in handles:
            handle.remove()
    return None


def _is_smooth(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a module gives the same output twice and can be differentiated twice.  The module may be changed.

    The second derivative uses ``backward``, which goes through the whole graph: ``grad`` treats a layer that can be
    differentiated only once as a constant.
    """
    inputs = [a.detach().clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    leaves = [a for a in (*inputs, *module.parameters()) if isinstance(a, Tensor) and a.requires_grad]
    with gradients_enabled():
        out = first_tensor(module(*inputs, **kwargs))
        if not out.requires_grad:
            return True
        if not torch.equal(out, first_tensor(module(*inputs, **kwargs))):
            return False
        try:
            first = grad(out.square().sum(), leaves, create_graph=True, materialize_grads=True)
            if second := [g.square().sum() for g in first if g.requires_grad]:
                torch.stack(second).sum().backward()
        except RuntimeError:
            return False
    return True
