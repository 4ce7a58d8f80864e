"""The engine of a Ray cluster: a local one, and one of two nodes of which one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, TINY_ALTERNATING

from backlight.errors import Unavailable, UserError
from backlight.study.cells import folder_name, load
from backlight.study.engines.ray import ENVIRONMENT
from backlight.study.run import run_study
from backlight.study.settings import StudySettings

os.environ.update({**ENVIRONMENT, "RAY_AUTH_TOKEN": "0" * 64})  # Ray reads them once, when it is imported
pytest.importorskip("ray", reason="the extra ray")

SMALL = StudySettings(limit=20, resamples=20, pretrained=False, batch_size=10)
MODELS = [TINY, TINY_ALTERNATING]
ANALYSES: dict[str, dict[str, Any]] = {"variance": {}, "lesion": {}, "landscape": {"grid": 5}}
KILLED = """
import os, signal, torch

class Net(torch.nn.Module):
    num_classes = 10
    pretrained_cfg = {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)}

    def forward(self, x):
        os.kill(os.getpid(), signal.SIGKILL)

def make():
    return Net()
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in the tests' own process
    (tmp_path / "killed.py").write_text(KILLED)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of one core each, on this machine, with a token."""
    from ray.cluster_utils import Cluster

    both = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    both.second = both.add_node(num_cpus=1)
    yield both
    both.shutdown()


def rows(out: Path) -> dict[tuple[str, str], str]:
    return {(model, name): str(load(out / folder_name(model) / name).rows()) for model in MODELS for name in ANALYSES}


def test_a_cluster_measures_what_this_process_measures_also_if_a_node_is_killed(tmp_path: Path, cluster: Any) -> None:
    """And what was measured is not measured again by another engine."""
    list(run_study(MODELS, ANALYSES, SMALL, tmp_path / "here"))
    expected = rows(tmp_path / "here")
    running = run_study(MODELS, ANALYSES, SMALL, tmp_path / "out", engine="ray", address=cluster.address)
    first = next(running)
    cluster.remove_node(cluster.second, allow_graceful=False)
    rest = list(running)
    assert {o.state for o in [first, *rest]} == {"done"}
    assert sorted((o.model, o.analysis) for o in [first, *rest]) == sorted(expected)
    assert rows(tmp_path / "out") == expected
    assert {o.state for o in run_study(MODELS, ANALYSES, SMALL, tmp_path / "out", engine="processes:2")} == {"there already"}


def test_a_killed_worker_is_tried_once_more_and_then_failed(tmp_path: Path) -> None:
    said: list[Any] = []
    models = ["killed.py:make", TINY]
    outcomes = list(run_study(models, {"calibration": {}}, SMALL, tmp_path / "out", engine="ray:1", show=said.append))
    errors = {o.model: o.error for o in outcomes}
    assert errors[TINY] == ""
    assert errors["killed.py:make"].startswith("the worker that measured it died: ")
    assert sum("tried once more" in line for line in said if isinstance(line, str)) == 1


def sockets() -> dict[str, str]:
    """Listening sockets of processes of Ray: address -> process."""
    listed = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[3]: line for line in listed if any(word in line for word in ("ray", "gcs_server", "python"))}


def test_a_local_cluster_listens_on_loopback_only_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    waiting = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "open('begun', 'w'); signal.pause()")
    (tmp_path / "hangs.py").write_text(waiting)
    before = set(sockets())
    words = ["study", "--models", "hangs.py:make", "--analyses", "calibration", "--out", "out", "--engine", "ray:1"]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    command = [sys.executable, "-m", "backlight", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed, start_new_session=True)  # noqa: PLW1509
    end = time.monotonic() + 90
    while not (tmp_path / "begun").exists() and time.monotonic() < end:
        time.sleep(0.2)
    opened = set(sockets()) - before
    assert opened
    assert {address.rpartition(":")[0] for address in opened} <= {"127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"}
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in said
    left = subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True, check=False).stdout.split()
    assert [number for number in left if "Z" not in Path(f"/proc/{number}/stat").read_text().rpartition(")")[2][:3]] == []


def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Ray's cluster at 127.0.0.1:9 does not answer") as raised:
        list(run_study([TINY], {"calibration": {}}, SMALL, tmp_path / "out", engine="ray", address="127.0.0.1:9"))
    assert raised.type is Unavailable
