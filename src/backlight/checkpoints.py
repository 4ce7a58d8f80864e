"""Checkpoints of a training: a folder each, whole or not there, and checked when it is read.

    FOLDER/00001200/model.safetensors    weights, and their average
    FOLDER/00001200/state.pt             what the optimizer remembers, for ``torch.load(weights_only=True)``
    FOLDER/00001200/checkpoint.json      step, and the sha256 of the others

Two are kept: where the newest turns out to be damaged, the one before takes its place.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from .errors import UserError

MANIFEST, WEIGHTS, REST = "checkpoint.json", "model.safetensors", "state.pt"
KEPT = 2


def write_checkpoint(folder: Path, state: Mapping[str, Any], **more: Any) -> Path:
    """Keep what `Training.state_dict` gives; ``more`` is what JSON can hold.  Older checkpoints are removed.

    Errors: UserError where it cannot be written; the one before is as it was.
    """
    place = folder / f"{state['step']:08d}"
    draft = folder / f".{place.name}.{os.getpid()}"
    weights = {f"{part}.{name}": copied(x) for part in ("model", "kept") for name, x in state[part].items()}
    rest = io.BytesIO()
    torch.save({name: value for name, value in state.items() if name not in ("model", "kept")}, rest)
    files = {WEIGHTS: safetensors.torch.save(weights), REST: rest.getvalue()}
    manifest = {"step": state["step"], "sha256": {name: hashlib.sha256(file).hexdigest() for name, file in files.items()}}
    files[MANIFEST] = json.dumps({**manifest, **more}, indent=1).encode()
    try:
        draft.mkdir(parents=True, exist_ok=True)
        for name, file in files.items():
            (draft / name).write_bytes(file)
        if place.exists():  # a damaged one, found at the start of a run that went on from an earlier step
            shutil.rmtree(place)
        os.replace(draft, place)
    except OSError as error:
        raise UserError(f"the checkpoint of step {state['step']} cannot be written to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in steps_in(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def read_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any], list[str]]:
    """The newest good checkpoint's state, None where there is none; what was said with it; and what is wrong with newer ones.

    Errors: UserError where there are checkpoints and none of them is good.
    """
    wrong: list[str] = []
    for place in steps_in(folder):
        try:
            return *read(place), wrong
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            wrong.append(f"{place} is damaged ({' '.join(str(error).split())})")
    if wrong:
        raise UserError(f"no checkpoint can be used: {'; '.join(wrong)}: begin again with --overwrite")
    return None, {}, []


def read(place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and manifest of a checkpoint.  Errors: ValueError and its like for one that is not what was written."""
    manifest = json.loads((place / MANIFEST).read_bytes())
    files = {name: (place / name).read_bytes() for name in (WEIGHTS, REST)}
    for name, file in files.items():
        if hashlib.sha256(file).hexdigest() != manifest["sha256"][name]:
            raise ValueError(f"{name} is not what was written: its sha256 differs")
    weights = safetensors.torch.load(files[WEIGHTS])
    state = torch.load(io.BytesIO(files[REST]), map_location="cpu", weights_only=True)
    for part in ("model", "kept"):
        state[part] = {name.removeprefix(f"{part}."): x for name, x in weights.items() if name.startswith(f"{part}.")}
    return state, manifest


def steps_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted((path for path in folder.glob("[0-9]*") if path.is_dir()), reverse=True)


def copied(tensor: Tensor) -> Tensor:
    """A copy of its own in main memory: safetensors refuses tensors that share theirs, as tied weights do."""
    return tensor.detach().to("cpu", copy=True).contiguous()
