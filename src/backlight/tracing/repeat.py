"""Whether a model computes the same twice: a function of its images, with weights that stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backlight.inputs import tensors
from backlight.tracing.trace import in_evaluation_mode, inside, own_images

#: The attribute of a model that holds what `check_repeats` noticed.
ATTRIBUTE = "not_repeatable"
#: A larger relative difference between two passes over the same images is no rounding.
TOLERANCE = 1e-4


def check_repeats(model: nn.Module, images: Tensor) -> str:
    """What differs between two passes over the same images, in words; empty if nothing does.

    It is noted on the model, and stands in its results.  Weights and buffers that a pass changes are restored.
    Shapes: images (B, C, H, W); a few are enough.
    """
    state = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    with in_evaluation_mode(model), own_images(model), torch.no_grad():
        first, second = (list(tensors(model(images))) for _ in range(2))
        changed = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if differs(tensor, state[name])]
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in changed:
                tensor.copy_(state[name])
    reasons = [f"a forward pass changes {', '.join(changed[:3])}"] if changed else []
    if any(map(unlike, first, second)):
        reasons.append("outputs change from call to call")
    setattr(inside(model), ATTRIBUTE, sentence := " and ".join(reasons))
    return sentence


def differs(one: Tensor, other: Tensor) -> bool:
    """Whether any number differs; NaN equals NaN."""
    return not torch.equal(one.nan_to_num(), other.nan_to_num()) if one.is_floating_point() else not torch.equal(one, other)


def unlike(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs differ by more than rounding."""
    if one.shape != other.shape:
        return True
    if not one.is_floating_point():
        return differs(one, other)
    scale = one.float().abs().nan_to_num().max() if one.numel() else 0.0
    return bool(((one.float() - other.float()).abs().nan_to_num() > TOLERANCE * scale).any())


def caution_of(model: nn.Module) -> str:
    """What `check_repeats` noticed of a model."""
    return str(getattr(inside(model), ATTRIBUTE, ""))
