"""Engines: equal rows whoever measures, and workers that die, hang or lose their parent take nothing with them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, TINY_ALTERNATING

from backlight.errors import UserError
from backlight.study.cache import CACHE
from backlight.study.cells import folder_name, load
from backlight.study.engines import resources
from backlight.study.engines.messages import Died, Finished, Raised, Ready
from backlight.study.engines.named import engine_named
from backlight.study.engines.pool import Pool
from backlight.study.how import How
from backlight.study.outcome import Outcome
from backlight.study.plan import plan
from backlight.study.run import run_study
from backlight.study.settings import StudySettings
from backlight.study.tasks import Schedule, Task, for_workers, tasks

SMALL = StudySettings(limit=20, resamples=20, pretrained=False, batch_size=10)
ANALYSES: dict[str, dict[str, Any]] = {"fourier": {}, "variance": {}, "lesion": {}, "hessian": {"batches": 2, "top": 1}}
#: A model that does something else in its forward pass than a model should.
STRANGE = """
import os, signal, sys, time
import torch

class Net(torch.nn.Module):
    num_classes = 10
    pretrained_cfg = {{"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)}}

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(28 * 28, 10)

    def forward(self, x):
        {line}
        return self.head(x.flatten(1))

def make():
    return Net()
"""
LINES = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "crashes": "print('something is wrong', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "open('begun', 'w').close(); time.sleep(1000)",
    "works": "pass",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in the tests' own process
    for name, line in LINES.items():
        (tmp_path / f"{name}.py").write_text(STRANGE.format(line=line))


def rows(out: Path, model: str, analysis: str) -> str:
    return str(load(out / folder_name(model) / analysis).rows())


def test_worker_processes_measure_what_this_process_measures(tmp_path: Path) -> None:
    """Two models: a worker each.  The same request afterwards starts no worker, whatever the engine."""
    models = [TINY, TINY_ALTERNATING]
    here = list(run_study(models, ANALYSES, SMALL, tmp_path / "here"))
    done = list(run_study(models, ANALYSES, SMALL, tmp_path / "processes", engine="processes:2"))
    assert sorted((o.model, o.analysis, o.state) for o in done) == sorted((o.model, o.analysis, "done") for o in here)
    for outcome in here:
        expected = rows(tmp_path / "here", outcome.model, outcome.analysis)
        assert rows(tmp_path / "processes", outcome.model, outcome.analysis) == expected
    assert {o.state for o in run_study(models, ANALYSES, SMALL, tmp_path / "processes")} == {"there already"}


@pytest.mark.parametrize("analyses", [{"landscape": {"grid": 5}}, {"corruption": {"corruptions": ["fog"]}}, {"lesion": {}}])
def test_the_shards_of_one_cell_are_measured_by_several_workers(tmp_path: Path, analyses: dict[str, dict[str, Any]]) -> None:
    (here,) = run_study([TINY], analyses, SMALL)
    (outcome,) = run_study([TINY], analyses, SMALL, tmp_path / "out", engine="processes:2")
    assert outcome.state == "done"
    assert outcome.result is not None
    assert here.result is not None
    assert str(outcome.result.rows()) == str(here.result.rows())
    assert not [*(tmp_path / "out").rglob(".*")]


def test_workers_that_die_or_hang_fail_their_cells_and_the_rest_goes_on(tmp_path: Path) -> None:
    said: list[Any] = []
    models = ["killed.py:make", "crashes.py:make", "hangs.py:make", "works.py:make"]
    running = run_study(
        models, {"calibration": {}}, SMALL, tmp_path / "out", engine="processes:2", timeout=16, show=said.append
    )  # fmt: skip
    errors = {outcome.model.partition(".")[0]: outcome.error for outcome in running}
    assert errors["killed"] == "the process that measured it was killed, probably because the memory was used up"
    assert errors["crashes"] == "the process that measured it was ended by SIGSEGV: something is wrong"
    assert errors["hangs"] == "it took longer than --timeout 16 s allows a cell"
    assert errors["works"] == ""
    again = [line for line in said if isinstance(line, str) and "tried once more" in line]
    assert len(again) == 1
    assert again[0].startswith("killed.py:make: ")
    reasons = [*(tmp_path / "out").rglob("calibration.reason.json")]
    assert len(reasons) == 3
    assert not [*(tmp_path / "out").rglob(".partial*")]


def workers_of(parent: int) -> list[int]:
    """The processes of workers whose parent is this process, or was it before it ended."""
    found = subprocess.run(["pgrep", "-f", "backlight.study.engines.child"], capture_output=True, text=True, check=False)
    return [number for number in map(int, found.stdout.split()) if parent_of(number) in (parent, 1)]


def parent_of(number: int) -> int | None:
    try:
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_no_worker_outlives_its_study(tmp_path: Path, how: signal.Signals, code: int) -> None:
    words = ["--models", "hangs.py:make", "--analyses", "calibration", "--limit", "4", "--engine", "processes:1"]
    command = [sys.executable, "-m", "backlight", "study", *words, "--out", str(tmp_path / "out")]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed)  # noqa: PLW1509
    until((tmp_path / "begun").exists)
    started = workers_of(process.pid)
    process.send_signal(how)
    _, said = process.communicate()
    assert process.returncode == code
    assert b"Traceback" not in said
    until(lambda: not any(Path(f"/proc/{number}").exists() and state_of(number) != "Z" for number in started), 10)


def state_of(number: int) -> str | None:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def test_a_complete_study_imports_no_torch(tmp_path: Path) -> None:
    code = f"""if True:
        import sys
        from backlight.cli.main import main
        words = ["study", "--models", {TINY!r}, "--analyses", "calibration", "--out", "out", "--limit", "8", "--no-pretrained"]
        try:
            main(words)
        except SystemExit as end:
            print("code", end.code, "torch", "torch" in sys.modules)
    """
    first, second = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False) for _ in "12")
    assert first.stdout == "code 0 torch True\n", first.stderr
    assert second.stdout == "code 0 torch False\n", second.stderr
    assert "has all 1 cells already" in second.stderr


def test_a_damaged_cell_of_a_complete_study_is_measured_again(tmp_path: Path) -> None:
    list(run_study([TINY], {"calibration": {}, "variance": {}}, SMALL, tmp_path))
    file = tmp_path / folder_name(TINY) / "variance" / "rows.parquet"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    said: list[Any] = []
    again = run_study([TINY], {"calibration": {}, "variance": {}}, SMALL, tmp_path, show=said.append)
    assert {outcome.analysis: outcome.state for outcome in again} == {"calibration": "there already", "variance": "done"}
    assert any(isinstance(line, str) and "is damaged" in line and "it is made again" in line for line in said)


def test_a_cache_shares_cells_between_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    (first,) = run_study([TINY], {"calibration": {}}, SMALL, tmp_path / "one")
    (second,) = run_study([TINY], {"calibration": {}}, SMALL, tmp_path / "two")
    (other,) = run_study([TINY], {"calibration": {}}, replace(SMALL, limit=21), tmp_path / "two", overwrite=True)
    assert [o.state for o in (first, second, other)] == ["done", "there already", "done"]
    assert rows(tmp_path / "one", TINY, "calibration") == str(second.result and first.result and first.result.rows())
    (entry, _) = sorted((tmp_path / "cache" / "cells").iterdir(), key=lambda path: path.stat().st_mtime)
    content = bytearray((entry / "rows.parquet").read_bytes())
    content[100] ^= 1
    (entry / "rows.parquet").write_bytes(content)
    (third,) = run_study([TINY], {"calibration": {}}, SMALL, tmp_path / "three")
    assert third.state == "done"


@pytest.mark.parametrize(
    ("name", "about", "sentence"),
    [
        ("rays", {}, "there is no engine 'rays'; did you mean ray?"),
        ("processes:0", {}, "after the colon stands the number of workers"),
        ("here:2", {}, "use processes:N for more"),
        ("here", {"timeout": 3.0}, "a time limit needs --engine processes:N or ray"),
        ("processes:2", {"address": "auto"}, "an address is that of a Ray cluster"),
        ("processes:2", {"folder": None}, "give the folder with --out DIR"),
    ],
)
def test_a_wrong_engine_is_one_sentence(name: str, about: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        engine_named(name, **{"folder": tmp_path, **about})


# --- disks and clocks


@pytest.mark.parametrize("lost", [True, False])
def test_a_rename_that_a_drive_loses_or_refuses_costs_one_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """As a network drive may: it is tried again at once, or the cell is measured again; nothing half-written stays."""
    replace_file, failed = os.replace, []

    def unreliable(source: Any, target: Any) -> None:
        if Path(target).name == "variance" and not failed:
            failed.append(target)
            if lost:
                return
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", unreliable)
    requested: dict[str, dict[str, Any]] = {"variance": {}, "calibration": {}}
    first = {o.analysis: o for o in run_study([TINY], requested, SMALL, tmp_path / "out")}
    assert len(failed) == 1
    assert first["calibration"].state == "done"
    assert first["variance"].state == "done"
    second = {o.analysis: o.state for o in run_study([TINY], requested, SMALL, tmp_path / "out")}
    assert second == {"variance": "done" if lost else "there already", "calibration": "there already"}
    assert not [*(tmp_path / "out").rglob(".*")]


@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs Debian's faketime")
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    """A study begun five years ago, and used again five years before that."""
    words = ["study", "--models", TINY, "--analyses", "calibration", "--out", "out", "--no-pretrained", "--limit", "8"]
    for moment, state in (("2021-05-05", "done"), ("2016-02-02", "has all 1 cells already"), ("2038-02-02", "all 1 cells")):
        command = ["faketime", moment, sys.executable, "-m", "backlight", *words]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        assert state in process.stderr


# --- without processes


def cells(*models: str, analyses: tuple[str, ...] = ("lesion", "noise")) -> list[Any]:
    return plan(models, {name: {} for name in analyses}, SMALL)


def test_a_worker_gets_all_cells_of_its_model_then_a_new_model_then_helps_the_slowest() -> None:
    schedule = Schedule(tasks(cells("a", "b", "c", analyses=("lesion", "noise", "hessian"))))
    first, second = schedule.next(), schedule.next()
    assert first is not None
    assert second is not None
    assert (first.model, second.model) == ("a", "b")
    given = [schedule.next("a") for _ in range(2)]
    assert {task.model for task in given if task} == {"a"}
    fresh = schedule.next("a")
    assert fresh is not None
    assert fresh.model == "c"
    helped = schedule.next("a")  # nothing of a is left, b and c are begun, two of each are left
    assert helped is not None
    assert helped.model == "b"
    schedule.postpone(first)
    rest = [schedule.next("c") for _ in range(5)]
    assert [task.model if task else None for task in rest] == ["c", "c", "b", "a", None]


def test_cells_are_sharded_only_if_workers_would_be_idle() -> None:
    own = tasks(cells("a", analyses=("erf", "landscape")))
    assert for_workers(own, 2) == own
    parts = for_workers(own, 3)
    assert [(task.cells[0].analysis, task.shard) for task in parts] == [
        ("erf", (0, 1)), ("landscape", (0, 3)), ("landscape", (1, 3)), ("landscape", (2, 3)),
    ]  # fmt: skip


def test_a_cell_with_a_budget_is_not_sharded(tmp_path: Path) -> None:
    """Its parts would be over other images."""
    limited = replace(SMALL, budget="1h")
    (task,) = tasks(plan([TINY], {"corruption": {}}, limited))
    assert for_workers([task], 3) == [task]
    with pytest.raises(UserError, match="parts of one result need the same images, and a budget ends each elsewhere"):
        list(run_study([TINY], {"corruption": {}}, limited, tmp_path / "out", shard=(0, 3)))
    analyses = {"corruption": {"corruptions": ["fog"], "severities": [1]}}
    (outcome,) = run_study([TINY], analyses, limited, tmp_path / "out")
    assert outcome.state == "done"


class Script:
    """Workers that send what a test says: for each task, in turn, a list of messages made from the task."""

    def __init__(self, *answers: Callable[[Task], list[Any]]) -> None:
        self.answers, self.queue, self.given = list(answers), list[tuple[int, Any]](), list[Task]()
        self.closed, self.starts = False, 9

    def start(self, number: int, how: How) -> None:
        self.starts -= 1
        if self.starts >= 0:
            self.queue.append((number, Ready()))

    def give(self, number: int, task: Task) -> None:
        self.given.append(task)
        self.queue += [(number, message) for message in self.answers.pop(0)(task)]

    def messages(self, seconds: float) -> list[tuple[int, Any]]:
        queue, self.queue = self.queue, []
        return queue

    def end(self, number: int) -> None: ...

    def close(self) -> None:
        self.closed = True


def done(task: Task) -> list[Any]:
    return [*(Outcome(cell) for cell in task.cells), Finished()]


def part(task: Task) -> list[Any]:
    return [Outcome(task.cells[0], missing=1), Finished()]


def failing(task: Task) -> list[Any]:
    return [Outcome(task.cells[0], error="bad"), Finished()]


def dying(task: Task) -> list[Any]:
    return [Died("gone", again=True)]


def busy(task: Task) -> list[Any]:
    return [Outcome(task.cells[0], busy=True), Finished()]


def played(script: Script, count: int, own: list[Any], **how: Any) -> Iterator[Outcome]:
    return Pool(script, count, None)(tasks(own), How(**how))


def test_a_cell_of_shards_has_one_outcome() -> None:
    one = cells("a", analyses=("landscape",))
    assert [o.state for o in played(Script(part, done), 2, one)] == ["done"]
    assert [o.state for o in played(Script(failing, part), 2, one)] == ["failed: bad"]
    assert [o.state for o in played(Script(failing, done), 2, one)] == ["done"]
    script = Script(part, part, done)  # both ended before they saw the other's last piece
    assert [o.state for o in played(script, 2, one)] == ["done"]
    assert [task.shard for task in script.given] == [(0, 2), (1, 2), (0, 1)]


def test_a_task_whose_worker_died_is_tried_twice_and_only_for_what_is_left() -> None:
    own = cells("a", analyses=("fourier", "variance"))
    half = lambda task: [Outcome(task.cells[0]), *dying(task)]  # noqa: E731
    script = Script(half, done)
    assert [(o.analysis, o.state) for o in played(script, 1, own)] == [("fourier", "done"), ("variance", "done")]
    assert [len(task.cells) for task in script.given] == [2, 1]
    assert [o.state for o in played(Script(dying, dying), 1, own)] == ["failed: gone"] * 2


def test_the_others_do_the_work_of_a_worker_that_does_not_start_again() -> None:
    """As when its machine is gone: it never says that it is ready."""
    script = Script(dying, done, done, done)
    script.starts = 2
    assert sorted(o.model for o in played(script, 2, cells("a", "b", "c", analyses=("lesion",)))) == ["a", "b", "c"]
    assert len(script.given) == 4


def test_workers_that_never_start_end_the_study() -> None:
    script = Script()
    script.starts = 0
    script.queue = [(0, Died("no torch", again=False))] * 9
    with pytest.raises(UserError, match="no worker can be started: no torch"):
        list(played(script, 1, cells("a")))
    assert script.closed


def test_a_busy_cell_is_waited_for_at_the_end() -> None:
    own = cells("a", "b", analyses=("lesion",))
    script = Script(busy, done, done)
    assert [o.model for o in played(script, 1, own)] == ["b", "a"]
    assert [task.wait for task in script.given] == [False, False, True]


def test_an_error_ends_a_study_that_does_not_keep_going_and_the_workers() -> None:
    script = Script(lambda task: [Raised(UserError("no"))])
    with pytest.raises(UserError, match="no"):
        list(played(script, 1, cells("a"), keep_going=False))
    assert script.closed


def test_cores_and_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "usable_cores", lambda: tuple(range(10)))
    monkeypatch.setenv(resources.VISIBLE, "4,7")
    shares = [resources.share(number, 4) for number in range(4)]
    assert [core for share in shares for core in share.cores] == list(range(10))
    assert [share.visible[resources.VISIBLE] for share in shares] == ["4", "7", "4", "7"]
    assert resources.workers_by_default() == 2
    monkeypatch.setenv(resources.VISIBLE, "")
    assert resources.share(1, 2).visible == {}
    assert resources.engine_by_default() == "processes:2"
    monkeypatch.setattr(resources, "usable_cores", lambda: (3, 4))
    assert resources.engine_by_default() == "here"
    assert [resources.share(number, 4).cores for number in range(4)] == [(3,), (4,), (3,), (4,)]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert resources.threads_of(3)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert resources.threads_of(3)["OMP_NUM_THREADS"] == "2"
    assert os.environ["OMP_NUM_THREADS"] == "2"
