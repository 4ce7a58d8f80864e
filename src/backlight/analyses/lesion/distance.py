"""The label-free form: how far the output embedding of an image moves without a unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.nn.functional import cosine_similarity

from backlight.numerics.bootstrap import skewed_mean_interval
from backlight.results.result import Row, columns


def distances(outputs: Tensor, intact: Tensor) -> np.ndarray:
    """1 minus the cosine between the outputs with a lesion and those of the intact model.  Shapes: (B, d) twice -> (B,)."""
    return (1 - cosine_similarity(outputs.double(), intact.double(), dim=1)).clamp(min=0).cpu().numpy()


def rows_of(lesions: Sequence[Row], all_distances: np.ndarray, resamples: int, seed: int) -> list[Row]:
    """A row for each lesion with its mean distance.  Shapes: all_distances (lesions, n)."""
    ends = skewed_mean_interval(all_distances.T, resamples=resamples, seed=seed)
    return [row | columns("distance", (end[i] for end in ends)) for i, row in enumerate(lesions)]
