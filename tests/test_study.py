"""A study: whole cells or none, nothing done twice, and what fails does not stop the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, TINY_ALTERNATING

from backlight.errors import UserError
from backlight.result import load
from backlight.setup import Setup
from backlight.study import folder_name, run_study

SMALL = Setup(limit=20, resamples=50, pretrained=False)
ASKED: dict[str, dict[str, object]] = {"fourier": {}, "variance": {}, "lesion": {}, "calibration": {}}


def test_a_study_is_a_folder_of_results(tmp_path: Path) -> None:
    cells = list(run_study([TINY, TINY_ALTERNATING], ASKED, SMALL, tmp_path))
    assert [(cell.model, cell.error, cell.skipped) for cell in cells] == [
        (m, "", False) for m in (TINY, TINY_ALTERNATING) for _ in ASKED
    ]
    for cell in cells:
        saved = load(tmp_path / folder_name(cell.model) / cell.analysis)
        assert str(saved.rows()) == str(cell.result.rows())
    assert json.loads((tmp_path / folder_name(TINY_ALTERNATING) / "model.json").read_text())["word"] == "c ca"
    assert json.loads((tmp_path / "study.json").read_text())["models"] == [TINY, TINY_ALTERNATING]


def test_together_or_alone_the_numbers_are_the_same(tmp_path: Path) -> None:
    together = {cell.analysis: cell.result for cell in run_study([TINY], ASKED, SMALL)}
    for name in ASKED:
        (alone,) = run_study([TINY], {name: {}}, SMALL)
        assert str(alone.result.rows()) == str(together[name].rows())


def test_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    list(run_study([TINY], {"variance": {}}, SMALL, tmp_path))
    before = (tmp_path / folder_name(TINY) / "variance" / "result.json").stat().st_mtime_ns
    cells = list(run_study([TINY], ASKED, SMALL, tmp_path))
    assert [cell.analysis for cell in cells if cell.skipped] == ["variance"]
    assert len(cells) == 4
    assert (tmp_path / folder_name(TINY) / "variance" / "result.json").stat().st_mtime_ns == before


def test_results_made_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    list(run_study([TINY], {"variance": {}}, SMALL, tmp_path))
    other = Setup(limit=30, resamples=50, pretrained=False)
    with pytest.raises(UserError, match="limit 20, not 30: choose another --out, or --overwrite"):
        list(run_study([TINY], {"variance": {}}, other, tmp_path))
    (cell,) = run_study([TINY], {"variance": {}}, other, tmp_path, overwrite=True)
    assert cell.result.evidence["images"] == 30


def test_a_cell_that_fails_does_not_stop_the_rest(tmp_path: Path) -> None:
    cells = list(run_study(["resnet5", "vgg11?img_size=32", TINY], {"variance": {}, "lesion": {}}, SMALL, tmp_path))
    errors = {(cell.model, cell.analysis): cell.error for cell in cells}
    assert "did you mean" in errors["resnet5", "variance"]
    assert errors[TINY, "variance"] == errors[TINY, "lesion"] == ""
    assert "there is no model" in json.loads((tmp_path / "resnet5" / "failed.json").read_text())["lesion"]
    assert not list(tmp_path.rglob(".*"))  # nothing half-written


def test_a_single_command_does_not_go_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model"):
        list(run_study(["resnet5", TINY], {"variance": {}}, SMALL, tmp_path, keep_going=False))


def test_the_same_seed_gives_the_same_numbers() -> None:
    (one,), (two,) = (run_study([TINY], {"lesion": {}}, SMALL) for _ in range(2))
    assert str(one.result.rows()) == str(two.result.rows())
    assert one.result.evidence["data"]["ids_sha256"] == two.result.evidence["data"]["ids_sha256"]
    (three,) = run_study([TINY], {"lesion": {}}, Setup(limit=20, resamples=50, pretrained=False, seed=1))
    assert three.result.evidence["data"]["ids_sha256"] != one.result.evidence["data"]["ids_sha256"]


def study_process(out: Path) -> subprocess.Popen[bytes]:
    words = [
        "study",
        "--models",
        TINY,
        TINY_ALTERNATING,
        "--out",
        out,
        "--no-pretrained",
        "--limit",
        "400",
        "--batch-size",
        "8",
    ]
    return subprocess.Popen([sys.executable, "-m", "backlight", *map(str, words)], stderr=subprocess.PIPE)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_study_that_is_stopped_goes_on(tmp_path: Path, how: signal.Signals, code: int) -> None:
    process = study_process(tmp_path)
    first = tmp_path / folder_name(TINY) / "variance" / "result.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(how)
    _, said = process.communicate()
    assert process.returncode == code
    assert b"Traceback" not in said
    there = {
        path.parent: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json") if not path.parent.name.startswith(".")
    }
    assert 0 < len(there) < 10
    for folder in there:
        load(folder)  # whole
    assert study_process(tmp_path).wait() == 0
    assert len([path for path in tmp_path.glob("*/*/result.json") if not path.parent.name.startswith(".")]) == 10
    assert all((folder / "result.json").stat().st_mtime_ns == when for folder, when in there.items())


def test_failed_cells_exit_with_5(tmp_path: Path) -> None:
    words = [
        "study",
        "--models",
        TINY,
        "resnet5",
        "--analyses",
        "variance",
        "--out",
        tmp_path,
        "--no-pretrained",
        "--limit",
        "4",
    ]
    process = subprocess.run([sys.executable, "-m", "backlight", *map(str, words)], capture_output=True, text=True, check=False)
    assert process.returncode == 5
    assert "1 of 2 cells failed" in process.stderr


def test_a_plan_runs_nothing_and_a_file_says_the_same_as_flags(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(f'models = ["{TINY}"]\nanalyses = ["variance"]\nlimit = 4\nout = "{tmp_path}/runs"\n')
    command = [sys.executable, "-m", "backlight", "study", str(tmp_path / "study.toml"), "--plan"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[1] == f"{TINY},variance,{tmp_path}/runs"
    assert not (tmp_path / "runs").exists()
    (tmp_path / "study.toml").write_text('model = "x"\n')
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "did you mean models" in process.stderr


def test_numbers_do_not_depend_on_the_batch() -> None:
    (small,) = run_study([TINY], {"fourier": {}}, Setup(limit=20, resamples=50, pretrained=False, batch_size=7))
    (large,) = run_study([TINY], {"fourier": {}}, Setup(limit=20, resamples=50, pretrained=False, batch_size=20))
    pairs = zip(small.result.rows(), large.result.rows(), strict=True)
    assert np.allclose(*zip(*((a["delta_high"], b["delta_high"]) for a, b in pairs), strict=True), atol=1e-5)


if os.name == "nt":  # pragma: no cover
    pytest.skip("signals differ on Windows", allow_module_level=True)
