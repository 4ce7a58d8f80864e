"""A training in a folder survives whatever befalls it, and ends as one that nothing befell."""

from __future__ import annotations

import csv
import errno
import json
import os
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

from backlight import checkpoints
from backlight.checkpoints import read_checkpoint, steps_in, write_checkpoint
from backlight.cli import main
from backlight.data import dataset
from backlight.errors import UserError
from backlight.models.saved import describe
from backlight.models.zoo import load_model
from backlight.numerics.student import student
from backlight.recipes import FASHION
from backlight.runs import Progress, Run, fitted, over_seeds, parted, rows_until, train_to_folder

SMALLER = "word:c c?block=basic&dim=4"  # what the data decide is left open
QUICK = replace(FASHION, epochs=4, batch_size=16, warmup_epochs=1, mixup=0.5, cutmix=0.5)
ASKED = Run(SMALLER, "fashion", QUICK, limit=64, held_out=0.25)  # 3 steps an epoch, 16 images to evaluate on


def run(asked: Run, out: Path, **settings: object) -> list[str | Progress]:
    return list(train_to_folder(asked, out, device="cpu", threads=1, **settings))  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing befell."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(ASKED, out)
    return out


def test_what_train_wrote_is_a_model(whole: Path) -> None:
    told = describe(whole)
    assert told["model"] == f"{SMALLER}&in_chans=1&img_size=28&stem=cifar"
    assert told["run"]["recipe"]["epochs"] == 4
    assert (told["test_images"], told["tested_on"]) == (16, "held-out")
    assert 0 <= told["test"]["accuracy"][1] <= told["test"]["accuracy"][0] <= told["test"]["accuracy"][2] <= 1
    model = load_model(str(whole))
    assert model.pretrained_cfg["mean"] == tuple(told["preprocessing"]["mean"])
    assert same(whole, whole / "best") or describe(whole / "best")["trained_steps"] < told["trained_steps"]


def test_timm_finds_what_train_wrote(whole: Path) -> None:
    model = timm.create_model(f"local-dir:{whole}", pretrained=True).eval()
    ours = load_model(str(whole))
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images), ours(images))


def test_the_metrics_have_a_row_an_epoch(whole: Path) -> None:
    rows = list(csv.DictReader((whole / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [3, 6, 9, 12]
    assert all(float(row["loss"]) > 0 for row in rows)
    tested = describe(whole)["test"]
    assert float(rows[-1]["accuracy"]) == pytest.approx(tested["accuracy"][0], abs=1e-4)
    assert float(rows[-1]["nll"]) == pytest.approx(tested["nll"][0], abs=1e-3)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from backlight.training import Training
sys.path.insert(0, {tests!r})
from test_runs import ASKED, run

out, chance, ends = Path({out!r}), random.Random(0), []
written, update = Path.write_bytes, Training._update

def torn(path, content):
    # the n-th file is half a file, and then the end
    global left
    left -= 1
    if not left:
        written(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return written(path, content)

def timed(training, *rest):
    # the first step takes the time, and some share of it later, of computing time, the process dies wherever it is
    started = time.process_time()
    found = update(training, *rest)
    if not signal.getitimer(signal.ITIMER_VIRTUAL)[0]:
        signal.setitimer(signal.ITIMER_VIRTUAL, steps * (time.process_time() - started))
    return found

while not (out / "model.json").exists() and len(ends) < 8:
    left, steps = chance.randint(2, 9), chance.uniform(0.1, 2)
    child = os.fork()  # torch has computed nothing yet in this process, so its children are sound
    if not child:
        if len(ends) < 6:
            Path.write_bytes, Training._update = (torn, update) if len(ends) % 2 else (written, timed)
        run(ASKED, out, resume=True, checkpoint_seconds=0)
        os._exit(0)
    ends.append(os.waitpid(child, 0)[1])
print(ends.count(signal.SIGKILL), ends.count(signal.SIGVTALRM), ends[-1])
"""


def test_killed_again_and_again_it_ends_with_the_same_weights(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    script = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent), out=str(out))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    while_writing, anywhere, last = map(int, done.stdout.split())
    assert last == 0
    assert min(while_writing, anywhere) >= 2, "killed too seldom to say anything"
    assert same(whole, out)
    assert same(whole / "best", out / "best")
    rows, again = ([*csv.DictReader((folder / "metrics.csv").open())] for folder in (whole, out))
    assert [(row["loss"], row["accuracy"]) for row in rows] == [(row["loss"], row["accuracy"]) for row in again]
    assert not list(out.glob("checkpoints"))


def test_ctrl_c_writes_a_checkpoint_first(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    said: list[str | Progress] = []

    def told() -> None:
        for moment in train_to_folder(ASKED, out, device="cpu", threads=1):
            said.append(moment)
            if isinstance(moment, Progress) and moment.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        told()
    assert isinstance(said[-1], str)
    assert said[-1].endswith(": --resume goes on from there")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    step = int(steps_in(out / "checkpoints")[0].name)
    assert 3 <= step < 12
    assert f"going on from step {step} of 12" in run(ASKED, out, resume=True)
    assert same(whole, out)
    assert run(ASKED, out, resume=True) == [f"{out} is complete: nothing is left to train"]


def state(step: int) -> dict[str, object]:
    tensor = torch.full((3,), float(step))
    return {
        "step": step,
        "model": {"w": tensor, "tied": tensor},
        "kept": {},
        "optimizer": {"state": {0: tensor}},
        "scaler": None,
    }


@pytest.mark.parametrize("fault", ["cut", "changed", "gone", "other"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "checkpoint.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, name: str, fault: str) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, state(step), best=step / 10)
    assert [place.name for place in steps_in(tmp_path)] == ["00000003", "00000002"]
    file = tmp_path / "00000003" / name
    content = file.read_bytes()
    if fault == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": content[:-9], "changed": content[:40] + b"#" + content[41:], "other": b""}[fault])
    found, told, wrong = read_checkpoint(tmp_path)
    assert found is not None
    assert (found["step"], told["best"]) == (2, 0.2)
    assert torch.equal(found["model"]["tied"], torch.full((3,), 2.0))
    assert len(wrong) == 1
    assert str(tmp_path / "00000003") in wrong[0]
    (tmp_path / "00000002" / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint can be used"):
        read_checkpoint(tmp_path)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, state(1))
    written = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        written(path, content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"step 2 cannot be written to .*No space left"):
        write_checkpoint(tmp_path, state(2))
    found, _, wrong = read_checkpoint(tmp_path)
    assert found is not None
    assert (found["step"], wrong) == (1, [])
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


@pytest.mark.parametrize("name", ["checkpoint.json", "metrics.csv", "model.safetensors"])
def test_a_disk_that_fills_up_stops_a_run_with_a_sentence(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out, written = tmp_path / "out", Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if name in path.name and len(steps_in(out / "checkpoints")) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot be written.*No space left.*the checkpoint of step \d+ is kept"):
        run(ASKED, out, checkpoint_seconds=0)
    monkeypatch.undo()
    run(ASKED, out, resume=True)
    assert same(whole, out)


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("true",)

    write_checkpoint(tmp_path, state(1) | {"optimizer": Evil()})
    with pytest.raises(UserError, match="no checkpoint can be used"):
        read_checkpoint(tmp_path)
    assert checkpoints.KEPT == 2


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (replace(ASKED, model=TINY), "has model "),
        (replace(ASKED, recipe=replace(QUICK, lr=0.5, mixup=0.1)), r"has lr 0.001, not 0.5; mixup 0.5, not 0.1"),
        (replace(ASKED, seed=1, limit=32), r"has seed 0, not 1; limit 64, not 32"),
    ],
)
def test_going_on_with_something_else_is_refused(whole: Path, changed: Run, what: str) -> None:
    with pytest.raises(UserError, match=what):
        run(changed, whole, resume=True)


def test_a_folder_in_use_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds a model already: choose another --out, --resume to go on, or --overwrite"):
        run(ASKED, whole)
    (tmp_path / "mine.txt").write_text("precious")
    for settings in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"holds (other files|no run|what Backlight did not write)"):
            run(ASKED, tmp_path, **settings)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        run(ASKED, tmp_path / "file" / "out")


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    for wrong in (replace(ASKED, model="word:xx"), replace(ASKED, recipe=replace(QUICK, batch_size=65))):
        with pytest.raises(UserError):
            run(wrong, tmp_path / "out")
    with pytest.raises(UserError, match=r"not to 'tensorbord'.*did you mean tensorboard"):
        run(ASKED, tmp_path / "out", log="tensorbord")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"fraction": 0.0}, "above 0 and at most 1"),
        ({"held_out": 1.0}, "held out"),
        ({"hold": "images"}, "epochs or the steps"),
        ({"snapshots": ("5",)}, "an epoch from 1 to 4, not '5'"),
    ],
)
def test_a_wrong_run_is_refused(changes: dict[str, object], what: str) -> None:
    with pytest.raises(UserError, match=what):
        replace(ASKED, **changes)


def test_snapshots_are_models_of_their_moments(tmp_path: Path) -> None:
    asked = replace(ASKED, snapshots=("init", "warmup", "2"))
    run(asked, tmp_path / "out")
    steps = {name: describe(tmp_path / "out" / "snapshots" / name)["trained_steps"] for name in ("init", "warmup", "2")}
    assert steps == {"init": 0, "warmup": 3, "2": 6}
    first = load_model(describe(tmp_path / "out")["model"], pretrained=False, num_classes=10, seed=0).state_dict()
    kept = weights(tmp_path / "out" / "snapshots" / "init")
    assert all(torch.equal(kept[name], first[name]) for name in kept)
    assert not same(tmp_path / "out" / "snapshots" / "2", tmp_path / "out")


def test_fewer_images_in_as_many_steps(tmp_path: Path) -> None:
    fewer = replace(ASKED, fraction=0.5, held_out=0.0, recipe=replace(QUICK, epochs=2))
    run(replace(fewer, hold="steps"), tmp_path / "steps")
    run(fewer, tmp_path / "epochs")
    assert [describe(tmp_path / name)["trained_steps"] for name in ("steps", "epochs")] == [8, 4]


def test_held_out_images_are_not_trained_on() -> None:
    source = dataset("fashion", "train", limit=200)
    rest, apart = parted(source, replace(ASKED, held_out=0.25, fraction=0.5))
    assert apart is not None
    assert (len(rest), len(apart)) == (75, 50)
    assert not set(rest.rows) & set(apart.rows)
    assert np.bincount(apart.labels).tolist() == [5] * 10


def test_the_data_decide_what_the_name_leaves_open() -> None:
    source = dataset("fashion", "train", limit=20)
    drops = replace(QUICK, drop_path=0.1)
    assert fitted("word:c?stem=imagenet", source, QUICK) == "word:c?stem=imagenet&in_chans=1&img_size=28"
    assert fitted("resnet18", source, drops) == "resnet18?in_chans=1&img_size=28&drop_path_rate=0.1"
    assert fitted("file.py:make", source, QUICK) == "file.py:make"
    with pytest.raises(UserError, match="--drop-path 0"):
        fitted("torchvision:resnet18", source, drops)


def test_seeds_are_summarised(tmp_path: Path) -> None:
    list(over_seeds(replace(ASKED, recipe=replace(QUICK, epochs=1)), tmp_path, [0, 3], device="cpu", threads=1))
    rows = list(csv.DictReader((tmp_path / "seeds.csv").open()))
    assert [row["seed"] for row in rows] == ["0", "3", "mean", "low", "high"]
    found = [describe(tmp_path / f"seed-{seed}")["test"]["nll"][0] for seed in (0, 3)]
    assert found[0] != found[1]
    expected = stats.t.interval(0.95, 1, loc=np.mean(found), scale=stats.sem(found))
    assert [float(row["nll"]) for row in rows[2:]] == pytest.approx([np.mean(found), *expected])
    assert student([1.0])[0] == 1.0
    with pytest.raises(UserError, match="each seed is given once"):
        list(over_seeds(ASKED, tmp_path, [1, 1]))


def test_metrics_go_to_tensorboard(tmp_path: Path) -> None:
    run(replace(ASKED, recipe=replace(QUICK, epochs=1, warmup_epochs=0)), tmp_path / "out", log="tensorboard")
    (events,) = (tmp_path / "out" / "tensorboard").glob("events*")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(events.parent)).Reload()
    (row,) = csv.DictReader((tmp_path / "out" / "metrics.csv").open())
    assert found.Scalars("loss")[0].value == pytest.approx(float(row["loss"]))
    assert found.Scalars("accuracy")[0].step == int(row["step"])


def test_rows_after_the_checkpoint_come_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step\n1,4\n2,8\n")
    assert [row["step"] for row in rows_until(tmp_path / "metrics.csv", 4)] == ["4"]
    assert rows_until(tmp_path / "nothing.csv", 4) == []


def test_the_command_trains_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(["train", SMALLER, "--limit", "64", "--threads", "1", "--out", str(tmp_path / "mine"), *words])
        return int(stop.value.code or 0), capsys.readouterr().err

    assert command("--recipe", "fasion")[0] == 2
    assert "did you mean fashion" in command("--recipe", "fasion")[1]
    assert "--epochz" in command("--epochz", "3")[1]
    assert command("--epochs", "0") == (2, "backlight: epochs is 1 at least, and not 0\n")
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
