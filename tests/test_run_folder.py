"""A training in a folder can be killed at any moment, and ends with the weights of one that was not."""

from __future__ import annotations

import csv
import errno
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from conftest import TINY
from scipy import stats

from backlight.cli.main import main
from backlight.data.loading import dataset
from backlight.errors import UserError
from backlight.model_names.saved import describe
from backlight.models.sources.load import load_model
from backlight.numerics.student import student
from backlight.progress import Progress
from backlight.recipes import FASHION
from backlight.records import encoded
from backlight.settings import options
from backlight.training import checkpoints
from backlight.training.checkpoints import Manifest, checkpoint_folders, read_checkpoint, write_checkpoint
from backlight.training.run import Run, full_spec, split_held_out
from backlight.training.run_folder import over_seeds, train_to_folder
from backlight.training.settings import Execution

SMALLER = "word:c c?block=basic&dim=4"  # without the arguments that follow from the data
QUICK = replace(FASHION, epochs=4, batch_size=16, warmup_epochs=1, mixup=0.5, cutmix=0.5)
RUN = Run(SMALLER, QUICK, limit=64, held_out=0.25)  # 3 steps an epoch, 16 images to evaluate on


def train_in(out: Path, run: Run = RUN, **execution: object) -> list[str | Progress]:
    return list(train_to_folder(run, out, device="cpu", threads=1, **execution))  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trained_steps(folder: Path) -> int:
    return describe(folder).facts["trained_steps"]


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not stopped."""
    out = tmp_path_factory.mktemp("runs") / "unstopped"
    train_in(out)
    return out


def test_a_run_writes_a_model(unstopped: Path) -> None:
    description = describe(unstopped)
    assert description.model == f"{SMALLER}&in_chans=1&img_size=28&stem=cifar"
    assert description.facts["run"]["recipe"]["epochs"] == 4
    assert (description.facts["test_images"], description.facts["tested_on"]) == (16, "held-out")
    accuracy, low, high = description.test["accuracy"]
    assert 0 <= low <= accuracy <= high <= 1
    model = load_model(str(unstopped))
    assert model.pretrained_cfg["mean"] == tuple(description.preprocessing["mean"])
    assert same(unstopped, unstopped / "best") or trained_steps(unstopped / "best") < trained_steps(unstopped)


def test_timm_loads_what_train_wrote(unstopped: Path) -> None:
    model = timm.create_model(f"local-dir:{unstopped}", pretrained=True).eval()
    ours = load_model(str(unstopped))
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images), ours(images))


def test_the_metrics_have_a_row_for_each_epoch(unstopped: Path) -> None:
    rows = list(csv.DictReader((unstopped / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [3, 6, 9, 12]
    assert all(float(row["loss"]) > 0 for row in rows)
    test = describe(unstopped).test
    assert float(rows[-1]["accuracy"]) == pytest.approx(test["accuracy"][0], abs=1e-4)
    assert float(rows[-1]["nll"]) == pytest.approx(test["nll"][0], abs=1e-3)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from backlight.training.loop import Training
sys.path.insert(0, {tests!r})
from test_run_folder import train_in

out, random_numbers, ends = Path({out!r}), random.Random(0), []
write_bytes, update = Path.write_bytes, Training._update

def killed_in_a_file(path, content):
    # the process dies when half of its n-th file is written
    global files_left
    files_left -= 1
    if not files_left:
        write_bytes(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write_bytes(path, content)

def killed_anywhere(training, *rest):
    # the process dies after some multiple of the computing time of its first step, wherever it is then
    started = time.process_time()
    loss = update(training, *rest)
    if not signal.getitimer(signal.ITIMER_VIRTUAL)[0]:
        signal.setitimer(signal.ITIMER_VIRTUAL, steps_left * (time.process_time() - started))
    return loss

while not (out / "model.json").exists() and len(ends) < 8:
    files_left, steps_left = random_numbers.randint(2, 9), random_numbers.uniform(0.1, 2)
    child = os.fork()  # torch has not computed in this process, so its children can
    if not child:
        if len(ends) < 6:
            in_a_file = len(ends) % 2
            Path.write_bytes = killed_in_a_file if in_a_file else write_bytes
            Training._update = update if in_a_file else killed_anywhere
        train_in(out, resume=True, checkpoint_seconds=0)
        os._exit(0)
    ends.append(os.waitpid(child, 0)[1])
print(ends.count(signal.SIGKILL), ends.count(signal.SIGVTALRM), ends[-1])
"""


def test_killed_again_and_again_it_ends_with_the_same_weights(unstopped: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    script = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent), out=str(out))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    killed_in_a_file, killed_anywhere, last = map(int, done.stdout.split())
    assert last == 0
    assert min(killed_in_a_file, killed_anywhere) >= 2, "not killed often enough"
    assert same(unstopped, out)
    assert same(unstopped / "best", out / "best")
    rows, again = ([*csv.DictReader((folder / "metrics.csv").open())] for folder in (unstopped, out))
    assert [(row["loss"], row["accuracy"]) for row in rows] == [(row["loss"], row["accuracy"]) for row in again]
    assert not list(out.glob("checkpoints"))


def test_ctrl_c_writes_a_checkpoint_first(unstopped: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    events: list[str | Progress] = []

    def stopped_at_step_3() -> None:
        for event in train_to_folder(RUN, out, device="cpu", threads=1):
            events.append(event)
            if isinstance(event, Progress) and event.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        stopped_at_step_3()
    assert isinstance(events[-1], str)
    assert events[-1].endswith(": --resume resumes from there")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    step = int(checkpoint_folders(out / "checkpoints")[0].name)
    assert 3 <= step < 12
    assert f"resuming from step {step} of 12" in train_in(out, resume=True)
    assert same(unstopped, out)
    assert train_in(out, resume=True) == [f"{out} is complete: nothing is left to train"]


def state(step: int) -> dict[str, object]:
    tensor = torch.full((3,), float(step))
    return {
        "step": step,
        "model": {"w": tensor, "tied": tensor},
        "average": {},
        "optimizer": {"state": {0: tensor}},
        "scaler": None,
    }


@pytest.mark.parametrize("fault", ["cut", "changed", "gone", "other"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "checkpoint.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, name: str, fault: str) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, state(step), Manifest(best=step / 10))
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["00000003", "00000002"]
    file = tmp_path / "00000003" / name
    content = file.read_bytes()
    if fault == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": content[:-9], "changed": content[:40] + b"#" + content[41:], "other": b""}[fault])
    read, manifest, damaged = read_checkpoint(tmp_path)
    assert read is not None
    assert (read["step"], manifest.best) == (2, 0.2)
    assert torch.equal(read["model"]["tied"], torch.full((3,), 2.0))
    assert len(damaged) == 1
    assert str(tmp_path / "00000003") in damaged[0]
    write_checkpoint(tmp_path, state(3), Manifest(best=0.3))
    assert read_checkpoint(tmp_path)[1].best == 0.3, "the damaged one is replaced"
    (tmp_path / "00000003" / "state.pt").write_bytes(b"")
    (tmp_path / "00000002" / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint can be used"):
        read_checkpoint(tmp_path)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, state(1), Manifest())
    written = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        written(path, content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"step 2 cannot be written: .*No space left"):
        write_checkpoint(tmp_path, state(2), Manifest())
    read, _, damaged = read_checkpoint(tmp_path)
    assert read is not None
    assert (read["step"], damaged) == (1, [])
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


@pytest.mark.parametrize("name", ["checkpoint.json", "metrics.csv", "model.safetensors"])
def test_a_disk_that_fills_up_stops_a_run_with_a_sentence(
    unstopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out, written = tmp_path / "out", Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if name in path.name and len(checkpoint_folders(out / "checkpoints")) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot be written.*No space left.*the checkpoint of step \d+ is kept"):
        train_in(out, checkpoint_seconds=0)
    monkeypatch.undo()
    train_in(out, resume=True)
    assert same(unstopped, out)


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("true",)

    write_checkpoint(tmp_path, state(1) | {"optimizer": Evil()}, Manifest())
    with pytest.raises(UserError, match="no checkpoint can be used"):
        read_checkpoint(tmp_path)
    assert checkpoints.COUNT == 2


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (replace(RUN, model=TINY), "has model "),
        (replace(RUN, recipe=replace(QUICK, lr=0.5, mixup=0.1)), r"has lr 0.001, not 0.5; mixup 0.5, not 0.1"),
        (replace(RUN, seed=1, limit=32), r"has seed 0, not 1; limit 64, not 32"),
    ],
)
def test_resuming_another_run_is_refused(unstopped: Path, changed: Run, what: str) -> None:
    with pytest.raises(UserError, match=what):
        train_in(unstopped, changed, resume=True)


def test_the_signature_repeats_the_settings() -> None:
    parameters = list(inspect.signature(train_to_folder, eval_str=True).parameters.values())[2:]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
    signature = {parameter.name: (parameter.annotation, parameter.default) for parameter in parameters}
    assert signature == {option.name: (option.type, option.default) for option in options(Execution)}


def test_a_folder_in_use_is_refused(unstopped: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds a model already: choose another --out, --resume to resume it, or --overwrite"):
        train_in(unstopped)
    (tmp_path / "mine.txt").write_text("precious")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"holds (other files|no run|what Backlight did not write)"):
            train_in(tmp_path, **flags)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        train_in(tmp_path / "file" / "out")


def test_a_refused_run_writes_nothing(tmp_path: Path) -> None:
    for wrong in (replace(RUN, model="word:xx"), replace(RUN, recipe=replace(QUICK, batch_size=65))):
        with pytest.raises(UserError):
            train_in(tmp_path / "out", wrong)
    with pytest.raises(UserError, match=r"log is 'tensorbord'.*did you mean tensorboard"):
        train_in(tmp_path / "out", log="tensorbord")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"fraction": 0.0}, "fraction is 0.0; it must be above 0, at most 1"),
        ({"held_out": 1.0}, "held_out is 1.0; it must be at least 0, below 1"),
        ({"hold": "images"}, "hold is 'images'; it must be epochs or steps"),
        ({"snapshots": ("5",)}, "a snapshot is '5'; it must be init, warmup or an epoch from 1 to 4"),
    ],
)
def test_a_wrong_run_is_refused(changes: dict[str, object], what: str) -> None:
    with pytest.raises(UserError, match=what):
        replace(RUN, **changes)


def test_snapshots_are_models_of_earlier_moments(tmp_path: Path) -> None:
    train_in(tmp_path / "out", replace(RUN, snapshots=("init", "warmup", "2")))
    steps = {name: trained_steps(tmp_path / "out" / "snapshots" / name) for name in ("init", "warmup", "2")}
    assert steps == {"init": 0, "warmup": 3, "2": 6}
    first = load_model(describe(tmp_path / "out").model, pretrained=False, num_classes=10, seed=0).state_dict()
    init = weights(tmp_path / "out" / "snapshots" / "init")
    assert all(torch.equal(init[name], first[name]) for name in init)
    assert not same(tmp_path / "out" / "snapshots" / "2", tmp_path / "out")


def test_fewer_images_in_as_many_steps(tmp_path: Path) -> None:
    fewer = replace(RUN, fraction=0.5, recipe=replace(QUICK, epochs=2, batch_size=8))
    train_in(tmp_path / "steps", replace(fewer, hold="steps"))
    train_in(tmp_path / "epochs", fewer)
    assert [trained_steps(tmp_path / name) for name in ("steps", "epochs")] == [12, 6]


def test_held_out_images_are_not_trained_on() -> None:
    source = dataset("fashion", "train", limit=200)
    rest, held_out = split_held_out(source, replace(RUN, held_out=0.25, fraction=0.5))
    assert held_out is not None
    assert (len(rest), len(held_out)) == (75, 50)
    assert not set(rest.rows) & set(held_out.rows)
    assert np.bincount(held_out.labels).tolist() == [5] * 10


def test_missing_arguments_follow_from_the_data() -> None:
    source = dataset("fashion", "train", limit=20)
    drops = replace(QUICK, drop_path=0.1)
    assert full_spec("word:c?stem=imagenet", source, QUICK) == "word:c?stem=imagenet&in_chans=1&img_size=28"
    assert full_spec("resnet18", source, drops) == "resnet18?in_chans=1&img_size=28&drop_path_rate=0.1"
    assert full_spec("file.py:make", source, QUICK) == "file.py:make"
    with pytest.raises(UserError, match="--drop-path 0"):
        full_spec("torchvision:resnet18", source, drops)


def test_seeds_are_summarised(tmp_path: Path) -> None:
    list(over_seeds(replace(RUN, recipe=replace(QUICK, epochs=1)), tmp_path, [0, 3], device="cpu", threads=1))
    rows = list(csv.DictReader((tmp_path / "seeds.csv").open()))
    assert [row["seed"] for row in rows] == ["0", "3", "mean", "low", "high"]
    nll = [describe(tmp_path / f"seed-{seed}").test["nll"][0] for seed in (0, 3)]
    assert nll[0] != nll[1]
    expected = stats.t.interval(0.95, 1, loc=np.mean(nll), scale=stats.sem(nll))
    assert [float(row["nll"]) for row in rows[2:]] == pytest.approx([np.mean(nll), *expected])
    assert student([1.0])[0] == 1.0
    with pytest.raises(UserError, match="each seed must be given once"):
        list(over_seeds(RUN, tmp_path, [1, 1]))


def test_metrics_go_to_tensorboard(tmp_path: Path) -> None:
    train_in(tmp_path / "out", replace(RUN, recipe=replace(QUICK, epochs=1, warmup_epochs=0)), log="tensorboard")
    (events,) = (tmp_path / "out" / "tensorboard").glob("events*")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator(str(events.parent)).Reload()
    (row,) = csv.DictReader((tmp_path / "out" / "metrics.csv").open())
    assert written.Scalars("loss")[0].value == pytest.approx(float(row["loss"]))
    assert written.Scalars("accuracy")[0].step == int(row["step"])


def train_until(step: int, out: Path) -> None:
    """Train, and stop after this step, which writes a checkpoint."""
    for event in train_to_folder(RUN, out, device="cpu", threads=1):
        if isinstance(event, Progress) and event.step >= step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("damage", ["gone", "other", "of another run"])
def test_damaged_metrics_are_written_again(unstopped: Path, tmp_path: Path, damage: str) -> None:
    """All rows, those before the checkpoint too: the checkpoint holds them."""
    with pytest.raises(KeyboardInterrupt):
        train_until(6, tmp_path)
    file = tmp_path / "metrics.csv"
    assert len(file.read_text().splitlines()) > 2
    if damage == "gone":
        file.unlink()
    else:
        file.write_text("null" if damage == "other" else "epoch,step,lr,loss\n1,3,9,9\n")
    train_in(tmp_path, resume=True)
    expected, rows = ([*csv.DictReader((folder / "metrics.csv").open())] for folder in (unstopped, tmp_path))
    timed = "images_per_second"
    assert [{**row, timed: ""} for row in rows] == [{**row, timed: ""} for row in expected]


@pytest.mark.parametrize("name", ["run.json", "model.json"])
@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "3", "[" * 100_000, '{"backlight": "run"}'])
def test_damaged_files_of_a_run_are_named(unstopped: Path, tmp_path: Path, name: str, text: str) -> None:
    out = Path(shutil.copytree(unstopped, tmp_path / "out"))
    (out / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} (is damaged|was not written).*: choose another --out, or --overwrite"):
        train_in(out, resume=True)


def test_a_run_of_a_newer_version_is_refused(unstopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path(shutil.copytree(unstopped, tmp_path / "out"))
    with monkeypatch.context() as later:
        later.setattr(Run, "version", Run.version + 1)
        (out / "run.json").write_bytes(encoded(RUN))
    with pytest.raises(UserError, match=r"run\.json was written by a newer Backlight: it is version 2"):
        train_in(out, resume=True)


def test_the_command_trains_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(["train", SMALLER, "--limit", "64", "--threads", "1", "--out", str(tmp_path / "mine"), *words])
        return int(stop.value.code or 0), capsys.readouterr().err

    assert command("--recipe", "fasion")[0] == 2
    assert "did you mean fashion" in command("--recipe", "fasion")[1]
    assert "--epochz" in command("--epochz", "3")[1]
    assert command("--epochs", "0") == (2, "backlight: --epochs is 0; it must be at least 1\n")
    assert not (tmp_path / "mine").exists()
    code, said = command("--epochs", "1", "--milestones", "1", "--snapshots", "init")
    assert code == 0
    assert "accuracy on 2000 test images" in said
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["recipe"]["milestones"] == [1]
    assert command("--epochs", "1")[0] == 2
    assert (
        "lr 0.001, not 0.1" in command("--epochs", "1", "--milestones", "1", "--snapshots", "init", "--lr", ".1", "--resume")[1]
    )
    code, said = command("--epochs", "1", "--milestones", "1", "--snapshots", "init", "--resume")
    assert (code, said.strip().endswith("is complete: nothing is left to train")) == (0, True)
