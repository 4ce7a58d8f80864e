"""Within a block, work on a model that is in training; after it everything is as it was, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

from backlight.devices import device_of


@contextmanager
def untouched(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model can be measured; after it random generators, modes and gradients are as before.

    The block runs with gradients allowed and without autocast, whatever surrounds it, so that the numbers do not depend on
    where in a loop they are measured.  Yields the module inside of a DistributedDataParallel or DataParallel.
    """
    module = getattr(model, "module", model) if isinstance(model, WRAPPERS) else model
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    modes = {each: each.training for each in module.modules()}
    with ExitStack() as surroundings:
        surroundings.enter_context(same_randomness())
        surroundings.enter_context(torch.inference_mode(False))
        surroundings.enter_context(torch.enable_grad())
        surroundings.enter_context(torch.autocast(device_of(module).type, enabled=False))
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            yield module
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for each, mode in modes.items():
                each.training = mode


WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@contextmanager
def same_randomness() -> Iterator[None]:
    """After the block the generators of Python, NumPy and torch, on every device, are as before."""
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
