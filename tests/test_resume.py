"""A long computation that is killed in the middle resumes, and ends with the result of an uninterrupted one.

Commands run in processes forked from a server that has imported everything already: starting Python anew takes longer than the
work, and a fork of the tests' own process could not differentiate once another test has used autograd's threads.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from backlight.cli.main import main
from backlight.results.result import Row
from backlight.study.cells import folder_name, load
from backlight.study.run import run_study
from backlight.study.settings import StudySettings

MODEL = "word:cc ca?dim=4&heads=1&dim_head=4&stem=cifar&in_chans=1&img_size=28&num_classes=10"
SHARED = ["--no-pretrained", "--resamples", "20", "--quiet"]
#: Settings, shared settings, both as flags, and the number of partial results.
REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str], int]] = {
    "landscape": ({"grid": 7}, {"limit": 16}, ["--grid", "7", "--limit", "16"], 8),  # the rows and the centre
    "hessian": (
        {"batches": 5, "top": 1, "tol": 0.05},
        {"batch_size": 2},
        ["--batches", "5", "--top", "1", "--tol", "0.05", "--batch-size", "2"],
        5,
    ),
}


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["backlight.cli.app", "backlight.study.run", "matplotlib.backends.backend_pdf"])


def run_command(folder: Path, words: Sequence[str], killed_at: int | None) -> None:
    """Run a command; kill this process when ``killed_at`` partial results are finished and the next is not yet renamed."""
    sys.stdout, sys.stderr = ((folder / name).open("w") for name in ("out", "err"))
    replace, finished = os.replace, []

    def recorded(draft: Path, target: Path) -> None:
        if ".partial-" in str(target):
            if len(finished) == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            finished.append(target.name)
            (folder / "written").write_text("\n".join(finished))
        replace(draft, target)

    os.replace = recorded  # type: ignore[assignment]
    torch.set_num_threads(1)  # as in the tests' own process: sums in another order differ in the last digits
    main(words)


class Command:
    """A command in a process of its own."""

    def __init__(self, folder: Path, *words: str, killed_at: int | None = None) -> None:
        folder.mkdir()
        self.folder = folder
        self.process = SERVER.Process(target=run_command, args=(folder, words, killed_at))
        self.process.start()

    def exit_code(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def read(self, name: str) -> str:
        """``out``, ``err``, or ``written``: the names of the partial results that it finished."""
        path = self.folder / name
        return path.read_text() if path.exists() else ""


def uninterrupted(analysis: str, settings: Mapping[str, Any], shared: Mapping[str, Any]) -> list[Row]:
    """The rows of the analysis without interruption."""
    (outcome,) = run_study([MODEL], {analysis: settings}, StudySettings(pretrained=False, resamples=20, **shared))
    assert outcome.result is not None
    return outcome.result.rows()


@pytest.mark.parametrize("analysis", REQUESTS)
def test_a_killed_run_resumes(analysis: str, tmp_path: Path) -> None:
    settings, shared, flags, parts = REQUESTS[analysis]
    expected = uninterrupted(analysis, settings, shared)
    out = tmp_path / "killed"
    words = [analysis, MODEL, "--out", str(out), *flags, *SHARED]
    folder = out / folder_name(MODEL)

    killed = Command(tmp_path / "first", *words, killed_at=3)
    assert killed.exit_code() == -signal.SIGKILL
    stored = {file.name for file in folder.glob(f".partial-{analysis}/*/*.part")}
    assert len(stored) == 3
    assert not (folder / analysis).exists()

    resumed = Command(tmp_path / "second", *words)
    assert resumed.exit_code() == 0, resumed.read("err")
    written = resumed.read("written").splitlines()
    assert not stored & set(written), "computed twice"
    assert len(stored) + len(written) == parts
    assert not list(folder.glob(".partial*"))
    assert load(folder / analysis).rows() == expected


#: What is sharded: settings, shared settings, flags, and what the first of three shards misses.
SHARDED: dict[str, tuple[dict[str, Any], dict[str, Any], list[str], int]] = {
    "landscape": ({"grid": 5}, {"limit": 16}, ["--grid", "5", "--limit", "16"], 3),
    "hessian": (
        {"batches": 5, "top": 1, "tol": 0.05},
        {"batch_size": 2},
        ["--batches", "5", "--top", "1", "--tol", "0.05", "--batch-size", "2"],
        3,  # the first and the fourth are its own
    ),
    "corruption": (
        {"corruptions": ("fog", "contrast"), "severities": (1, 3)},
        {"limit": 12, "batch_size": 6},
        ["--corruptions", "fog,contrast", "--severities", "1,3", "--limit", "12", "--batch-size", "6"],
        2,
    ),
    "lesion": ({"pairs": 1}, {"limit": 12, "batch_size": 6}, ["--pairs", "1", "--limit", "12", "--batch-size", "6"], 3),
}


@pytest.mark.parametrize("analysis", SHARDED)
def test_shards_at_once_make_one_result(tmp_path: Path, analysis: str) -> None:
    settings, shared, flags, missing = SHARDED[analysis]
    expected = uninterrupted(analysis, settings, shared)
    out = tmp_path / "shared"
    words = [analysis, MODEL, *flags, "--out", str(out), *SHARED]
    folder = out / folder_name(MODEL)

    first = Command(tmp_path / "first", *words, "--shard", "1/3")
    assert first.exit_code() == 0, first.read("err")
    assert f"rows missing: {missing}" in first.read("err")
    assert not first.read("out").strip()
    assert not (folder / analysis).exists()
    others = [Command(tmp_path / part, *words, "--shard", f"{part}/3") for part in ("2", "3")]
    assert [other.exit_code() for other in others] == [0, 0]
    assert any(other.read("out") for other in others), "the last one has the result"

    assert str(load(folder / analysis).rows()) == str(expected)  # a column may be NaN
    assert not list(folder.glob(".partial*"))
