"""A long computation that is killed in the middle goes on where it was, and ends as one that never was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from backlight.result import load
from backlight.setup import Setup
from backlight.study import folder_name, run_study

MODEL = "word:cc ca?dim=4&heads=1&dim_head=4&stem=cifar&in_chans=1&img_size=28&num_classes=10"
ASKED = {
    "landscape": ({"grid": 21, "dimensions": 2}, ["--grid", "21", "--limit", "16"], Setup(limit=16, pretrained=False)),
    "hessian": (
        {"batches": 10, "top": 1},
        ["--batches", "10", "--top", "1", "--batch-size", "2"],
        Setup(pretrained=False, batch_size=2),
    ),
}


@pytest.mark.parametrize("analysis", ASKED)
def test_killed_and_run_again(analysis: str, tmp_path: Path) -> None:
    settings, flags, setup = ASKED[analysis]
    command = [sys.executable, "-m", "backlight", analysis, MODEL, "--no-pretrained", "--out", str(tmp_path / "killed"), *flags]

    def run() -> subprocess.Popen[bytes]:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)

    place = tmp_path / "killed" / folder_name(MODEL)
    process = run()
    while len(list(place.glob(f".pieces-{analysis}/*/*.safetensors"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -9, "killed before it was done"
    kept = {file: file.stat().st_mtime_ns for file in place.glob(f".pieces-{analysis}/*/*.safetensors")}
    assert len(kept) >= 3
    assert not (place / analysis).exists()

    process = run()
    while not (place / analysis / "result.json").exists() and process.poll() is None:
        again = {file: file.stat().st_mtime_ns for file in kept if file.exists()}  # gone in the end
        assert all(kept[file] == when for file, when in again.items()), "computed twice"
        time.sleep(0.05)
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()
    assert not list(place.glob(".pieces*"))

    torch.set_num_threads(1)
    (whole,) = run_study([MODEL], {analysis: settings}, setup)
    assert whole.result is not None
    assert load(place / analysis).rows() == whole.result.rows()


def test_two_shards_at_once_make_one_landscape(tmp_path: Path) -> None:
    common = [sys.executable, "-m", "backlight", "landscape", MODEL, "--no-pretrained", "--grid", "5", "--limit", "16"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(*flags: str) -> subprocess.Popen[str]:
        command = [*common, "--out", str(tmp_path / "shared"), *flags]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True)

    place = tmp_path / "shared" / folder_name(MODEL)
    first = run("--shard", "1/3")
    out, said = first.communicate()
    assert first.returncode == 0, said
    assert "3 rows are missing" in said
    assert not out.strip()
    assert not (place / "landscape").exists()
    others = [run("--shard", part) for part in ("2/3", "3/3")]
    assert [other.communicate()[0] and other.returncode for other in others].count(0) >= 1
    assert all(other.returncode == 0 for other in others)

    torch.set_num_threads(1)
    (whole,) = run_study([MODEL], {"landscape": {"grid": 5}}, Setup(limit=16, pretrained=False))
    assert whole.result is not None
    assert load(place / "landscape").rows() == whole.result.rows()
    assert not list(place.glob(".pieces*"))
