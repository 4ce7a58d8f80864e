"""Two processes in one folder: one trains, equal studies share the work, and what a killed process left goes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, TINY_ALTERNATING
from matplotlib.figure import Figure
from test_run_folder import QUICK, RUN, train_in

from backlight.errors import UserError
from backlight.files import draft_name
from backlight.locks import Busy, locked
from backlight.model_names.saved import describe
from backlight.results.result import Result
from backlight.study.cells import folder_name, load, write_record
from backlight.study.folder import StudyRequest, read_request, store_request
from backlight.study.outcome import Outcome
from backlight.study.plan import plan
from backlight.study.run import run_study
from backlight.study.settings import StudySettings

HOLD = """
import sys
from pathlib import Path
from backlight.locks import locked
with locked(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""
SMALL = StudySettings(limit=20, resamples=20, pretrained=False)
Hold = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Starts a process that holds a lock until it is killed."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(folder: Path, name: str = "") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", HOLD, str(folder), name]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def killed(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.mark.parametrize("name", ["", "calibration"])
def test_a_lock_names_its_process_and_ends_with_it(tmp_path: Path, hold: Hold, name: str) -> None:
    folder = tmp_path / "a" / "b"
    process = hold(folder, name)
    with pytest.raises(
        Busy, match=rf"{folder / name} is in use by process {process.pid}: wait for it, or choose another --out"
    ):
        locked(folder, name).__enter__()
    with locked(folder, "other"):
        pass
    killed(process)
    with locked(folder, name):
        assert f"{os.getpid()}\n" in (folder / f".{name}.lock".replace("..", ".")).read_text()
    assert not [*folder.glob("*")]


def test_a_lock_of_another_machine_is_named(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / ".lock").write_text("17\nelsewhere\n")
        with pytest.raises(Busy, match="in use by process 17 on elsewhere"):
            locked(tmp_path).__enter__()


def test_no_folder_stays_that_a_lock_made(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file is in the way"):
        locked(tmp_path / "file").__enter__()


def test_a_second_training_is_refused(tmp_path: Path, hold: Hold) -> None:
    out = tmp_path / "out"
    process = hold(out)
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=rf"{out} is in use by process {process.pid}"):
            train_in(out, **flags)
    assert [path.name for path in out.iterdir()] == [".lock"]
    killed(process)
    train_in(out, replace(RUN, recipe=replace(QUICK, epochs=1)))
    assert describe(out)
    train_in(out, replace(RUN, recipe=replace(QUICK, epochs=1)), overwrite=True)
    assert not [*out.glob(".*")]


def test_two_trainings_of_different_settings_do_not_mix(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["-m", "backlight", "train", RUN.model, "--limit", "64", "--epochs", "2", "--threads", "1", "--out", str(out)]
    both = [
        subprocess.Popen([sys.executable, *words, "--seed", seed], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for seed in ("0", "1")
    ]
    said = [process.communicate()[1].decode() for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    refused = said[[process.returncode for process in both].index(2)]
    assert "is in use by process" in refused or "holds a model already" in refused
    assert len(refused.strip().splitlines()) == 1
    seed = [process.returncode for process in both].index(0)
    assert {describe(folder).facts["run"]["seed"] for folder in (out, out / "best")} == {seed}
    assert json.loads((out / "run.json").read_text())["seed"] == seed


@pytest.fixture
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Result, "figure", lambda _: Figure(figsize=(1, 1)))


def beside(tmp_path: Path, hold: Hold, shared: StudySettings, settings: StudySettings, **how: Any) -> tuple[Outcome, str]:
    """The outcome of a cell that another process measures with ``shared`` while this one wants it with ``settings``."""
    list(run_study([TINY], {"calibration": {}}, shared, tmp_path / "theirs"))
    place = Path(folder_name(TINY)) / "calibration"
    process = hold(tmp_path / "out" / folder_name(TINY), "calibration")
    lines: list[str] = []

    def other_process_ends(line: Any) -> None:
        if isinstance(line, str):
            lines.append(line)
            shutil.copytree(tmp_path / "theirs" / place, tmp_path / "out" / place)
            killed(process)

    (outcome,) = run_study([TINY], {"calibration": {}}, settings, tmp_path / "out", show=other_process_ends, **how)
    return outcome, "\n".join(lines)


@pytest.mark.usefixtures("_without_figures")
def test_the_result_of_an_equal_study_is_waited_for(tmp_path: Path, hold: Hold) -> None:
    outcome, said = beside(tmp_path, hold, SMALL, SMALL)
    assert said == f"{TINY} calibration: another process measures it, and its result is waited for"
    assert outcome.skipped
    assert outcome.result is not None
    assert str(outcome.result.rows()) == str(load(tmp_path / "theirs" / folder_name(TINY) / "calibration").rows())


@pytest.mark.usefixtures("_without_figures")
def test_an_unequal_study_is_told(tmp_path: Path, hold: Hold) -> None:
    outcome, _ = beside(tmp_path, hold, SMALL, replace(SMALL, limit=30))
    assert "was made with limit 20, not 30: choose another --out" in outcome.error
    place = tmp_path / "out" / folder_name(TINY)
    assert load(place / "calibration").provenance["images"] == 20
    assert not [*place.glob("*.reason.json")]


@pytest.mark.usefixtures("_without_figures")
def test_an_unequal_command_is_told(tmp_path: Path, hold: Hold) -> None:
    with pytest.raises(UserError, match="was made with limit 20, not 30"):
        beside(tmp_path, hold, SMALL, replace(SMALL, limit=30), keep_going=False)


@pytest.mark.usefixtures("_without_figures")
def test_the_cells_of_a_dead_process_are_measured(tmp_path: Path, hold: Hold) -> None:
    killed(hold(tmp_path / folder_name(TINY), "calibration"))
    (outcome,) = run_study([TINY], {"calibration": {}}, SMALL, tmp_path)
    assert (outcome.error, outcome.skipped) == ("", False)
    assert not [*tmp_path.rglob(".*")]


def test_equal_studies_at_once_share_the_work(tmp_path: Path) -> None:
    analyses, models = ["variance", "noise"], [TINY, TINY_ALTERNATING]
    words = ["--models", *models, "--analyses", *analyses, "--out", str(tmp_path / "out"), "--no-pretrained", "--limit", "40"]
    command = [sys.executable, "-m", "backlight", "study", *words, "--resamples", "20"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    lines = "".join(said).splitlines()
    assert sum(line.endswith(": done") for line in lines) == sum(line.endswith(": there already") for line in lines) == 4
    assert not [*(tmp_path / "out").rglob(".*")]


def test_the_request_is_changed_by_one_process_at_a_time(tmp_path: Path, hold: Hold) -> None:
    """Both requests are in the file, though the second process starts before the first has written."""
    process = hold(tmp_path, "study.json")
    cells = plan([TINY], {"calibration": {}}, SMALL)
    second = threading.Thread(target=store_request, args=(tmp_path, cells, SMALL))
    second.start()
    second.join(0.5)
    assert second.is_alive()
    write_record(tmp_path / "study.json", StudyRequest({"first": ["lesion"]}, {}))
    killed(process)
    second.join()
    request = read_request(tmp_path)
    assert request is not None
    assert request.cells == {"first": ["lesion"], TINY: ["calibration"]}


def left_over(*places: Path) -> list[Path]:
    """A half-written file and folder at each place, of a process that no longer runs."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    drafts = []
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        name = draft_name(Path("x")).replace(f"-{os.getpid()}@", f"-{ended.pid}@")
        (place / name).touch()
        (place / f"{name}abc").mkdir()
        (place / f"{name}abc" / "file").touch()
        drafts += [place / name, place / f"{name}abc"]
    return drafts


@pytest.mark.usefixtures("_without_figures")
def test_drafts_of_dead_processes_go_when_a_study_starts(tmp_path: Path) -> None:
    home = tmp_path / folder_name(TINY)
    list(run_study([TINY], {"calibration": {}}, SMALL, tmp_path))
    drafts = left_over(tmp_path, home, home / ".partial-hessian" / "123")
    mine, strange = home / f"{draft_name(Path('x'))}abc", home / ".x.draft-1"
    elsewhere = home / draft_name(Path("x")).replace(socket.gethostname(), "elsewhere")
    for path in (mine, strange, elsewhere):
        path.mkdir()
    (outcome,) = run_study([TINY], {"calibration": {}}, SMALL, tmp_path)
    assert outcome.skipped
    assert not [path for path in drafts if path.exists()]
    assert all(path.exists() for path in (mine, strange, elsewhere))


def test_drafts_of_dead_processes_go_when_a_training_starts(tmp_path: Path) -> None:
    out, run = tmp_path / "out", replace(RUN, recipe=replace(QUICK, epochs=1), snapshots=("init",))
    drafts = left_over(out)
    train_in(out, run)  # not "holds other files"
    drafts += left_over(out, out / "checkpoints", out / "best", out / "snapshots" / "init")
    train_in(out, run, resume=True)
    assert not [path for path in drafts if path.exists()]
