"""Checkpoints of a training: a folder each, complete or absent, and verified when it is read.

    FOLDER/00001200/model.safetensors    weights, and their average
    FOLDER/00001200/state.pt             state of the optimizer, for ``torch.load(weights_only=True)``
    FOLDER/00001200/checkpoint.json      progress of the run, and the sha256 of the other files

The newest two are kept: if the newest is damaged, the one before it is used.
"""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from backlight.errors import UserError, first_line
from backlight.files import atomic_folder
from backlight.records import Damaged, Record, encoded, read_record, read_verified, sha256_of

MANIFEST, WEIGHTS, REST = "checkpoint.json", "model.safetensors", "state.pt"
COUNT = 2  # checkpoints that stay
#: Parts of the state that are weights, and their prefix in the file.
PREFIXES = {"model": "model.", "average": "average."}


@dataclass(frozen=True)
class Manifest(Record):
    """What ``checkpoint.json`` holds: how far the run is, beside the state of its training."""

    record = "checkpoint"
    version = 1

    loss: float = 0.0  # sum over the steps of this epoch
    count: int = 0  # of those steps
    best: float | None = None  # accuracy
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the metrics
    files: dict[str, str] = field(default_factory=dict)  # name -> sha256


def write_checkpoint(folder: Path, state: Mapping[str, Any], manifest: Manifest) -> Path:
    """Write what `Training.state_dict` returns, and the manifest with the sums of the files.  Removes older checkpoints.

    Errors: UserError if it cannot be written; the checkpoint before it stays.
    """
    step = state["step"]
    path = folder / f"{step:08d}"
    weights = {prefix + name: copied(x) for part, prefix in PREFIXES.items() for name, x in state[part].items()}
    rest = io.BytesIO()
    torch.save({name: value for name, value in state.items() if name not in PREFIXES}, rest)
    files = {WEIGHTS: safetensors.torch.save(weights), REST: rest.getvalue()}
    sums = {name: sha256_of(content) for name, content in files.items()}
    files[MANIFEST] = encoded(replace(manifest, files=sums))
    shutil.rmtree(path, ignore_errors=True)  # a damaged one, if the run resumed from the one before it
    try:
        with atomic_folder(path) as draft:
            for name, content in files.items():
                (draft / name).write_bytes(content)
    except UserError as error:
        raise UserError(f"the checkpoint of step {step} cannot be written: {error}") from error
    for old in checkpoint_folders(folder)[COUNT:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def read_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, Manifest, list[str]]:
    """State and manifest of the newest good checkpoint, and a sentence for each newer one that is damaged.

    The state is None if there is no checkpoint.  Errors: UserError if there are checkpoints and all are damaged.
    """
    damaged: list[str] = []
    for path in checkpoint_folders(folder):
        try:
            return *_read(path), damaged
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            damaged.append(f"{path} is damaged ({first_line(error)})")
    if damaged:
        raise UserError(f"no checkpoint can be used: {'; '.join(damaged)}: start again with --overwrite")
    return None, Manifest(), []


def _read(path: Path) -> tuple[dict[str, Any], Manifest]:
    """State and manifest of a checkpoint.  Errors: UserError and others if it is not what was written."""
    manifest = read_record(path / MANIFEST, Manifest)
    if manifest is None or manifest.files.keys() != {WEIGHTS, REST}:
        raise Damaged(f"{path / MANIFEST} is missing, or lists other files")
    files = {name: read_verified(path / name, sha256) for name, sha256 in manifest.files.items()}
    weights = safetensors.torch.load(files[WEIGHTS])
    state = torch.load(io.BytesIO(files[REST]), map_location="cpu", weights_only=True)
    for part, prefix in PREFIXES.items():
        state[part] = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    return state, manifest


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted((path for path in folder.glob("[0-9]*") if path.is_dir()), reverse=True)


def copied(tensor: Tensor) -> Tensor:
    """A copy in main memory, because safetensors refuses tensors that share memory, such as tied weights."""
    return tensor.detach().to("cpu", copy=True).contiguous()
