"""Several Hessians of one model at once, for devices where launching kernels costs more than a small product.

The weights are stacked, one copy for each Hessian.  Only the forward pass is batched by torch; both derivatives are taken
outside it, because torch's batched rules for derivatives are wrong for layer norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import functional_call, vmap

from backlight.curvature.checks import gradients_enabled, gradients_only_of
from backlight.curvature.hessian import Hessian, sum_over_ranks
from backlight.curvature.loss import differentiable
from backlight.errors import UserError
from backlight.inputs import first_tensor


class Hessians:
    """M Hessians of one model and one objective, each of one batch; all batches have one shape.

    ``matvec`` multiplies each by a vector of its own.  The graph of all is stored, about M times that of one.
    Shapes: M = ``count``, P = ``size``.
    Errors: UserError if models, objectives, parameters or shapes differ, or if torch cannot run the model on all batches.
    """

    def __init__(self, hessians: Sequence[Hessian]) -> None:
        first = hessians[0]
        if any(len(h.batches) > 1 for h in hessians) or len({tuple(part.shape for part in h.batches[0]) for h in hessians}) > 1:
            raise UserError("Hessians at once must be of one batch each, and all batches of one shape")
        described = [(h.model, h.objective, *h.parameters) for h in hessians]
        if any(other != described[0] for other in described):
            raise UserError("Hessians at once must be of one model, one objective and the same parameters")
        self.hessians, self.count, self.size = hessians, len(hessians), first.size
        self.device, self.dtype = first.device, first.dtype
        self._graph: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None

    def matvec(self, v: Tensor) -> Tensor:
        """Each Hessian times its own vector.  Shapes: (M, P) -> (M, P)."""
        if v.shape != (self.count, self.size):
            raise UserError(f"vectors of shape {tuple(v.shape)} do not fit {self.count} Hessians of size {self.size}")
        self.hessians[0].refuse_changed()
        v = v.detach().to(self.device, self.dtype)
        weights, gradients = self._graph = self._graph or self._differentiated()
        directions = [part.view_as(w) for part, w in zip(v.split([w[0].numel() for w in weights], 1), weights, strict=True)]
        pairs = [(g, d) for g, d in zip(gradients, directions, strict=True) if g.requires_grad]
        product = torch.zeros_like(v)
        if pairs:  # else the losses are linear in these parameters
            outputs, along = zip(*pairs, strict=True)
            with gradients_enabled():
                second = grad(outputs, weights, along, retain_graph=True, materialize_grads=True)
            product = torch.cat([part.flatten(1) for part in second], 1)
        for hessian, row, vector in zip(self.hessians, sum_over_ranks(product), v, strict=True):
            hessian.with_decay(row, vector)
        return product

    @property
    def loss_gradient(self) -> Tensor:
        """The gradient of each batch's mean loss, without weight decay.  Shapes: (M, P)."""
        self._graph = self._graph or self._differentiated()
        return sum_over_ranks(torch.cat([g.detach().flatten(1) for g in self._graph[1]], 1))

    def _differentiated(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """A copy of the weights for each batch, and the gradient of each batch's loss by its copy.  Shapes: (M, ...) each."""
        first = self.hessians[0]
        batches = (h.to_device(*h.batches[0]) for h in self.hessians)
        images, targets = (torch.stack(parts) for parts in zip(*batches, strict=True))
        stacked = {n: p.detach().expand(self.count, *p.shape).requires_grad_() for n, p in first.parameters.items()}

        def logits(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
            return first_tensor(functional_call(first.model, dict(weights), images))

        def all_logits(images: Tensor) -> Tensor:
            return vmap(logits)(stacked, images.unflatten(0, (self.count, -1))).flatten(0, 1)

        model = cast(nn.Module, all_logits)
        with differentiable(first.model, first.objective.statistics), gradients_only_of(first.model, ()), gradients_enabled():
            try:
                losses = first.objective.losses(model, images.flatten(0, 1), targets.flatten(0, 1))
            except RuntimeError as error:
                raise UserError(
                    f"torch cannot run {type(first.model).__name__} on {self.count} batches at once, "
                    f"so take one at a time: {' '.join(str(error).split())[:200]}"
                ) from error
            gradients = grad(losses.sum() / first.images, list(stacked.values()), create_graph=True, materialize_grads=True)
        return list(stacked.values()), gradients
