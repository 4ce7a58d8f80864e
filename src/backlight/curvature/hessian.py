"""The Hessian of the training loss as an operator: products with vectors, exact, without ever forming it.

A product is the gradient of (gradient . v) (Pearlmutter 1994), by two nested ``torch.autograd.grad``.  Forward-mode and
batched derivatives are not used: torch's rules for them give wrong second derivatives of layer norm.
Weight decay adds wd v for the parameters that decay, exactly, and is never differentiated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from backlight.curvature.checks import (
    PROBE_TOLERANCE,
    differentiable_model,
    gradients_enabled,
    gradients_only_of,
    micro_batches,
    selected_parameters,
    undifferentiable_module,
)
from backlight.curvature.loss import Objective, Predicate, differentiable
from backlight.errors import UserError
from backlight.numerics.lanczos import dot, norm
from backlight.tracing.tap import Unit

#: Bytes of stored graphs; the graphs that do not fit are rebuilt for each product.
MEMORY = 4 * 2**30


def of_module(*paths: str) -> Predicate:
    """The parameters inside these modules.

    >>> of_module("blocks.1")("blocks.1.attn.qkv.weight", None), of_module("blocks.1")("blocks.10.norm.bias", None)
    (True, False)
    """
    return lambda name, _: any(not path or name == path or name.startswith(f"{path}.") for path in paths)


def of_units(units: Iterable[Unit]) -> Predicate:
    """The parameters of the modules of these units: ``of_units(u for u in units(...) if u.kind == "attention")``."""
    return of_module(*(unit.module for unit in units))


class Hessian:
    """The Hessian of an objective, averaged over all images of fixed batches, at the current weights of the model.

    ``params`` selects a diagonal block: some of the parameters that require a gradient.  ``dtype``: work on a copy of the model
    in this type.  The batches are read once.  Each image has the same weight, whatever the sizes of the batches.
    ``keep_graph="auto"`` stores the graphs of batches between products while they take less than ``memory`` bytes, and always
    that of a single batch: a product then costs 2.3 times forward and backward, 3.4 times if its graph is rebuilt.
    ``micro_batch`` cuts batches into parts of at most this many images, which changes nothing but the memory.  Under
    ``torch.distributed`` each rank holds its own batches, and products are sums over all ranks.  ``check`` tests symmetry and
    repeatability with three products.

    Shapes: P = ``size`` entries, the parameters one after the other in the model's order.  The model is not changed.
    Errors: UserError for a model or data without a Hessian; the message names the reason.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batches: Iterable[Any],
        *,
        params: Predicate | None = None,
        dtype: torch.dtype | None = None,
        keep_graph: bool | Literal["auto"] = "auto",
        memory: int = MEMORY,
        micro_batch: int | None = None,
        check: bool = True,
        seed: int = 0,
    ) -> None:
        if objective.statistics == "re-estimated":
            raise UserError("statistics is 're-estimated', which a Hessian cannot use; it must be 'running' or 'batch'")
        self.objective = objective
        self.model = differentiable_model(model, dtype)
        self.parameters = selected_parameters(self.model, params)
        values = list(self.parameters.values())
        self.size = sum(p.numel() for p in values)
        self.device, self.dtype = values[0].device, values[0].dtype
        self._versions = [p._version for p in values]
        self._decay = self._decay_of_entries()
        self.batches = micro_batches(batches, micro_batch, objective.statistics)
        self.images = int(sum_over_ranks(torch.tensor(float(sum(len(i) for i, _ in self.batches)), device=self.device)))
        self._graphs: dict[int, Sequence[Tensor]] = {}
        self._most_graphs = len(self.batches) if keep_graph is True else self._affordable(memory) if keep_graph else 0
        self.probes: Mapping[str, float] = self._probed(seed) if check else {}

    # --- products

    def matvec(self, v: Tensor) -> Tensor:
        """Hessian times vector.  Shapes: (P,) -> (P,)."""
        if v.shape != (self.size,):
            raise UserError(f"a vector of shape {tuple(v.shape)} does not fit a Hessian of size {self.size}")
        v = v.detach().to(self.device, self.dtype)
        product = torch.zeros_like(v)
        directions = list(self.named(v).values())
        for i in range(len(self.batches)):
            gradient = self._graph(i)
            pairs = [(g, d) for g, d in zip(gradient, directions, strict=True) if g.requires_grad]
            if pairs:  # else the loss is linear in these parameters
                product += self._second(i, *zip(*pairs, strict=True))
        return self.with_decay(sum_over_ranks(product), v)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Shapes: (P,) -> (P,), or several vectors as columns (P, K) -> (P, K)."""
        return self.matvec(v) if v.ndim == 1 else torch.stack([self.matvec(column) for column in v.unbind(1)], 1)

    @property
    def gradient(self) -> Tensor:
        """The gradient of the objective, with weight decay.  Shapes: (P,)."""
        return self.with_decay(self.loss_gradient, self.weights)

    @property
    def loss_gradient(self) -> Tensor:
        """The gradient of the mean loss alone; it lies mostly along directions of large curvature.  Shapes: (P,)."""
        total = torch.zeros(self.size, device=self.device, dtype=self.dtype)
        for i in range(len(self.batches)):
            total += flattened(self._graph(i)).detach()
        return sum_over_ranks(total)

    @property
    def weights(self) -> Tensor:
        """A copy of the current parameters.  Shapes: (P,)."""
        return flattened([p.detach() for p in self.parameters.values()])

    def named(self, v: Tensor) -> dict[str, Tensor]:
        """A vector as parameters: name -> its part of ``v`` in the parameter's shape."""
        parts = v.split([p.numel() for p in self.parameters.values()])
        return {name: part.view_as(p) for (name, p), part in zip(self.parameters.items(), parts, strict=True)}

    # --- the loss and its sharpness

    def loss(self, step: Tensor | None = None) -> dict[str, float]:
        """The mean loss over images, in nats, and the weight decay term; at the weights plus ``step`` (P,) if it is given."""
        moved = self.named(self.weights + step) if step is not None else self.parameters
        total = torch.zeros((), dtype=torch.float64)
        with differentiable(self.model, self.objective.statistics), torch.no_grad():
            for images, targets in self.batches:
                model = cast(nn.Module, partial(functional_call, self.model, dict(moved)))
                losses = self.objective.losses(model, *self.to_device(images, targets))
                total += losses.detach().cpu().double().sum()
        data = float(sum_over_ranks(total.to(self.device, self.dtype if self.device.type == "mps" else torch.float64)))
        weights = dict(self.model.named_parameters()) | dict(moved)
        decay = self.objective.decay(cast(dict[str, nn.Parameter], weights))
        return {"loss": data / self.images, "weight_decay": decay}

    def sharpness(self) -> float:
        """Curvature along the gradient, g.Hg / g.g."""
        g = self.gradient
        return dot(g, self.matvec(g)) / (dot(g, g) or 1.0)

    def sam_sharpness(self, rho: float = 0.05) -> float:
        """Rise of the objective after a step of length ``rho`` along the gradient, as in SAM (Foret et al. 2021)."""
        g = self.gradient
        length = norm(g)
        before, after = self.loss(), self.loss(g * (rho / length if length else 0.0))
        return sum(after.values()) - sum(before.values())

    # --- derivatives of one batch

    def _graph(self, i: int) -> Sequence[Tensor]:
        """The gradient of batch ``i``'s share of the loss, with the graph that differentiates it again."""
        self.refuse_changed()
        if i in self._graphs:
            return self._graphs[i]
        images, targets = self.to_device(*self.batches[i])
        values = list(self.parameters.values())
        with self._reporting(i), differentiable(self.model, self.objective.statistics), gradients_only_of(self.model, values):
            loss = self.objective.losses(self.model, images, targets).sum() / self.images
            if not loss.requires_grad:
                raise UserError("the loss does not depend on these parameters through torch operations, so it has no Hessian")
            gradient = grad(loss, values, create_graph=True, materialize_grads=True)
        if len(self._graphs) < self._most_graphs:
            self._graphs[i] = gradient
        return gradient

    def _second(self, i: int, gradient: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
        """Derivative of the gradient of batch ``i`` along directions.  Shapes: -> (P,)."""
        values = list(self.parameters.values())
        with self._reporting(i), gradients_enabled():
            return flattened(grad(gradient, values, directions, retain_graph=i in self._graphs, materialize_grads=True))

    def with_decay(self, product: Tensor, v: Tensor) -> Tensor:
        """A product with ``v`` to which weight decay is added, in place.  Shapes: (P,), (P,) -> (P,)."""
        return product if self._decay is None else product.addcmul_(self._decay, v)

    def _decay_of_entries(self) -> Tensor | None:
        """The weight decay of each parameter's entries (P,); None if nothing decays."""
        objective = self.objective
        decays = [objective.weight_decay * objective.decayed(name, p) for name, p in self.parameters.items()]
        if not any(decays):
            return None
        parts = zip(self.parameters.values(), decays, strict=True)
        return flattened([torch.full_like(p.detach(), decay) for p, decay in parts])

    def _affordable(self, memory: int) -> int:
        """How many graphs fit into this many bytes: the size of each is that of the tensors saved by the first."""
        self._most_graphs = 1
        if len(self.batches) == 1:
            return 1
        of_parameters = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        saved: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            self._graph(0)
        self._graphs.clear()
        largest = max(len(images) for images, _ in self.batches) / len(self.batches[0][0])
        each = largest * sum(size for pointer, size in saved.items() if pointer not in of_parameters)
        return int(memory // max(1.0, each))

    def to_device(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device and in the type of the parameters."""
        targets = targets.to(self.device, self.dtype if targets.is_floating_point() else None)
        return images.to(self.device, self.dtype if images.is_floating_point() else None), targets

    def _probed(self, seed: int) -> Mapping[str, float]:
        """Relative errors of symmetry and of repetition.  Errors: UserError if rounding does not explain them."""
        v = torch.randn(self.size, generator=torch.Generator().manual_seed(seed)).to(self.device, self.dtype)
        first = self.matvec(v)
        if not (length := norm(first)):
            return {"symmetry": 0.0, "repeat": 0.0}
        u = first / length  # for a random u, u.Hv is nearly zero for any H
        symmetry = abs(dot(u, first) - dot(v, self.matvec(u))) / length
        self._graphs.clear()  # a stored graph always repeats itself
        errors = {"symmetry": symmetry, "repeat": norm(self.matvec(v) - first) / length}
        for probe, compared in {"repeat": "the same product twice", "symmetry": "|u.Hv - v.Hu|"}.items():
            if not errors[probe] <= PROBE_TOLERANCE[self.dtype]:
                images, _ = self.to_device(*self.batches[0])
                module = undifferentiable_module(self.model, images[:2], self.objective.statistics)
                raise UserError(
                    f"the Hessian of {type(self.model).__name__} fails a test: {compared} has a relative error of "
                    f"{errors[probe]:.1e}; a layer draws random numbers, or has no correct second derivative"
                    + (f" ({module})" if module else "")
                )
        return errors

    def refuse_changed(self) -> None:
        """Errors: UserError if the weights have changed since this Hessian was made."""
        if self._versions != [p._version for p in self.parameters.values()]:
            raise UserError("the weights have changed since this Hessian was made; make a new one")

    @contextmanager
    def _reporting(self, i: int) -> Iterator[None]:
        """Turns torch's errors about batch ``i`` into a UserError."""
        images = self.batches[i][0]
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the graph of {len(images)} images does not fit on {self.device}; {self._smaller_batch(len(images))}"
            ) from error
        except RuntimeError as error:
            first_images, _ = self.to_device(images[:2], images[:2])
            module = undifferentiable_module(self.model, first_images, self.objective.statistics)
            if module is None:
                raise
            reason = " ".join(str(error).split("\n")[0].split())
            raise UserError(f"{module} cannot be differentiated twice, so the model has no Hessian: {reason}") from error

    def _smaller_batch(self, images: int) -> str:
        """Advice: half the batch, halved again until a product fits."""
        self._graphs.clear()
        first = self.batches[0]
        while (images := images // 2) and self.objective.statistics == "running":
            try:
                torch.cuda.empty_cache()
                part = [(first[0][:images], first[1][:images])]
                other = Hessian(self.model, self.objective, part, params=lambda n, _: n in self.parameters, check=False)
                other.matvec(torch.zeros(self.size, device=self.device, dtype=self.dtype))
                return f"micro_batch={images} fits, with keep_graph=False"
            except (torch.OutOfMemoryError, UserError):
                continue
        return "not even one image fits"


def flattened(parts: Sequence[Tensor]) -> Tensor:
    """All tensors one after the other.  Shapes: -> (P,)."""
    return torch.cat([part.reshape(-1) for part in parts])


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum over all ranks of ``torch.distributed``, in place; without ranks ``x`` itself."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
    return x
