"""Packs trained models for the repository: matrices and filters in float16, everything else as it is, half the size.

A packed folder is a model as `backlight train` writes it, so every command reads it, and computes in float32.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from analyse import read_moments
from series import HERE, Planned

from backlight.files import write_atomic
from backlight.model_names.saved import DESCRIPTION, WEIGHTS, describe
from backlight.models.sources.saved import FOR_TIMM
from backlight.records import encoded, sha256_of

PACKED = HERE / "weights"


def pack(series: Sequence[Planned], options: argparse.Namespace) -> Iterator[tuple[Path, int]]:
    """Pack the trainings that are complete, with the snapshots that the studies read: each folder, and its bytes."""
    for training in series:
        for moment in ("", *read_moments()):
            source = training.folder / moment
            if (source / DESCRIPTION).exists() and training.complete:
                target = PACKED / options.scale / training.folder.relative_to(options.out / options.scale) / moment
                yield target, pack_model(source, target)


def pack_model(source: Path, target: Path) -> int:
    """Write a packed copy of a model.  Returns the bytes of its weights.  Errors: UserError if there is no model."""
    state = safetensors.torch.load_file(source / WEIGHTS)
    weights = safetensors.torch.save({name: halved(tensor).contiguous() for name, tensor in state.items()})
    write_atomic(target / WEIGHTS, weights)
    if (source / FOR_TIMM).exists():
        shutil.copyfile(source / FOR_TIMM, target / FOR_TIMM)
    write_atomic(target / DESCRIPTION, encoded(replace(describe(source), weights_sha256=sha256_of(weights))))
    return len(weights)


def halved(tensor: torch.Tensor) -> torch.Tensor:
    """A matrix or filter in float16; biases, norms and their statistics, which are few and range widely, as they are."""
    return tensor.half() if tensor.ndim > 1 and tensor.dtype == torch.float32 else tensor
