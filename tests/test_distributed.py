"""Two processes train as one with the same batch does: torchrun's launcher and gloo, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import safetensors.torch
import torch

from backlight.model_names.saved import describe
from backlight.recipes import recipe
from backlight.training.run import Run
from backlight.training.run_folder import train_to_folder

#: No batch norm: its statistics are those of each process (docs/training.md).
MODEL = "vit_tiny_patch16_224?img_size=28&patch_size=7&in_chans=1&embed_dim=12&depth=2&num_heads=2"
FIELDS = {"epochs": 2, "batch_size": 16, "mixup": 0.5, "cutmix": 0.5, "drop_path": 0.0, "optimizer": "sgd", "lr": 0.1}

#: What ``torchrun --standalone --nproc-per-node 2 -m backlight ...`` does, except that the processes are forked: torch and timm
#: are imported once and not three times.
LAUNCH = """
import sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from backlight.cli.main import main
import backlight.training.run_folder

standalone = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test"}
config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=0, start_method="fork", **standalone)
elastic_launch(config, main)(sys.argv[1:])
"""


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    options = [word for name, value in FIELDS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = ["train", MODEL, "--limit", "64", "--held-out", "0.25", "--out", str(tmp_path / "two"), *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-c", LAUNCH, *command]
    done = subprocess.run(launch, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "two"), "only the first process prints"
    run = Run(MODEL, recipe("fashion", **FIELDS), limit=64, held_out=0.25)
    list(train_to_folder(run, tmp_path / "one", device="cpu"))
    one, two = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
    assert [describe(tmp_path / name).facts["run"]["processes"] for name in ("one", "two")] == [1, 2]
    losses = [(tmp_path / name / "metrics.csv").read_text().split("\n")[2].split(",")[3] for name in ("one", "two")]
    assert abs(float(losses[0]) - float(losses[1])) < 1e-5, "the loss is the mean over processes"
