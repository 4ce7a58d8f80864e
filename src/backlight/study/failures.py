"""What a failure of a model means, so that one model does not end a study."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from backlight.errors import UserError
from backlight.inputs import to_model
from backlight.shortage import MEMORY, shortage
from backlight.tracing.trace import evaluating


@contextmanager
def described_failures(model: nn.Module | None = None, images: Callable[[], Tensor] | None = None) -> Iterator[None]:
    """Within the block, a program that exits and memory that runs out are `UserError`; the second says what would fit.

    ``images`` returns the first batch of the model's images, (B, C, H, W).
    """
    try:
        yield
    except SystemExit as error:
        raise UserError(f"a forward pass ends the program (sys.exit({error.code!r})); remove that from the model") from error
    except Exception as error:
        if shortage(error) != MEMORY or model is None or images is None:
            raise
        size = batch_size_that_fits(model, images())
        fits = f"a forward pass fits with --batch-size {size}" if size else "not even one image fits; use another --device"
        raise UserError(f"the memory is used up: {fits}") from error


def batch_size_that_fits(model: nn.Module, images: Tensor) -> int:
    """The largest half, quarter, ... of these images with which a forward pass fits; 0 if not even one image does.

    Shapes: images (B, C, H, W).
    """
    size = len(images) // 2
    while size:
        try:
            with evaluating(model), torch.inference_mode():
                model(to_model(images[:size], model))
        except Exception as error:
            if shortage(error) != MEMORY:
                return 0
            size //= 2
        else:
            return size
    return 0


def sentence(error: Exception) -> str:
    """What went wrong in a line; for a fault of ours, with the place in the code."""
    if isinstance(error, UserError):
        return str(error)
    if ran_out := shortage(error):
        return ran_out
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"
