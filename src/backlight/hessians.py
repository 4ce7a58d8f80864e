"""Several Hessians of one model at once, for devices where a small product costs its launches and not its arithmetic.

The weights are stacked, one copy a Hessian, and the batched forward pass is differentiated twice from outside: the batched
rules of derivatives, which are wrong for layer norm in today's torch, never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import functional_call, vmap

from .curvature import Hessian, enabled, only, over_ranks
from .errors import UserError
from .objective import differentiable
from .trace import tensors


class Hessians:
    """M Hessians of one model and objective, each of one batch, and all batches of one shape.

    ``matvec`` multiplies each by a vector of its own.  The graph of all is kept, about M times that of one.
    Shapes: M = ``count``, P = ``size``.
    Errors: UserError where they are not alike, or where torch cannot run the model on all at once.
    """

    def __init__(self, each: Sequence[Hessian]) -> None:
        first = each[0]
        if any(len(h.batches) > 1 for h in each) or len({tuple(part.shape for part in h.batches[0]) for h in each}) > 1:
            raise UserError("Hessians at once must be of one batch each, and all batches of one shape")
        of = [(h.model, h.objective, *h.parameters) for h in each]
        if any(other != of[0] for other in of):
            raise UserError("Hessians at once must be of one model, one objective and the same parameters")
        self.each, self.count, self.size = each, len(each), first.size
        self.device, self.dtype = first.device, first.dtype
        self._graph: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None

    def matvec(self, v: Tensor) -> Tensor:
        """Each Hessian times its own vector.  Shapes: (M, P) -> (M, P)."""
        if v.shape != (self.count, self.size):
            raise UserError(f"vectors of shape {tuple(v.shape)} do not fit {self.count} Hessians of size {self.size}")
        self.each[0].refuse_changed()
        v = v.detach().to(self.device, self.dtype)
        weights, gradients = self._graph = self._graph or self._derived()
        directions = [part.view_as(w) for part, w in zip(v.split([w[0].numel() for w in weights], 1), weights, strict=True)]
        pairs = [(g, d) for g, d in zip(gradients, directions, strict=True) if g.requires_grad]
        product = torch.zeros_like(v)
        if pairs:  # else the losses are linear in these parameters
            outputs, along = zip(*pairs, strict=True)
            with enabled():
                found = grad(outputs, weights, along, retain_graph=True, materialize_grads=True)
            product = torch.cat([part.flatten(1) for part in found], 1)
        for hessian, its, along_it in zip(self.each, over_ranks(product), v, strict=True):
            hessian.with_decay(its, along_it)
        return product

    @property
    def loss_gradient(self) -> Tensor:
        """Of each batch's mean loss alone.  Shapes: (M, P)."""
        self._graph = self._graph or self._derived()
        return over_ranks(torch.cat([g.detach().flatten(1) for g in self._graph[1]], 1))

    def _derived(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """A copy of the weights for each batch, and the gradient of each batch's loss by its copy.  Shapes: (M, ...) each."""
        first = self.each[0]
        images, targets = (torch.stack(parts) for parts in zip(*(h.here(*h.batches[0]) for h in self.each), strict=True))
        stacked = {n: p.detach().expand(self.count, *p.shape).requires_grad_() for n, p in first.parameters.items()}

        def logits(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
            return next(tensors(functional_call(first.model, dict(weights), images)))

        def all_logits(images: Tensor) -> Tensor:
            return vmap(logits)(stacked, images.unflatten(0, (self.count, -1))).flatten(0, 1)

        model = cast(nn.Module, all_logits)
        with differentiable(first.model, first.objective.statistics), only(first.model, ()), enabled():
            try:
                losses = first.objective.losses(model, images.flatten(0, 1), targets.flatten(0, 1))
            except RuntimeError as error:
                raise UserError(
                    f"torch cannot run {type(first.model).__name__} on {self.count} batches at once, "
                    f"so take one at a time: {' '.join(str(error).split())[:200]}"
                ) from error
            gradients = grad(losses.sum() / first.images, list(stacked.values()), create_graph=True, materialize_grads=True)
        return list(stacked.values()), gradients
