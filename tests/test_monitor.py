"""A monitor measures during a training, and the training is bit for bit the one without it."""

from __future__ import annotations

import copy
import csv
import math
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_ALTERNATING
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import backlight
from backlight import Monitor
from backlight.analyses.together import measured_together
from backlight.errors import UserError
from backlight.monitoring.trackers import to_tensorboard, to_wandb
from backlight.monitoring.untouched import same_randomness, untouched

#: Those that read a pass, change the model's parts, differentiate by images, differentiate by weights, and draw numbers.
ANALYSES: dict[str, dict[str, Any]] = {
    "fourier": {}, "variance": {}, "similarity": {}, "attention": {}, "calibration": {}, "lesion": {}, "erf": {},
    "noise": {"frequencies": (0.5,), "severities": (0.1,), "mean": (0.0,), "std": (1.0,)},
    "adversarial": {"epsilons": (1.0,), "steps": 2, "mean": (0.0,), "std": (1.0,)},
    "hessian": {"top": 1},
}  # fmt: skip


def network(name: str = TINY_ALTERNATING) -> nn.Module:
    """A model with batch norms, attention and dropout, in training mode."""
    torch.manual_seed(0)
    return nn.Sequential(backlight.load_model(name, pretrained=False), nn.Dropout(0.2)).train()


def pairs(images: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images, 1, 28, 28, generator=generator), torch.randint(10, (images,), generator=generator)


IMAGES = pairs(24, 1)


def train(after_step: Callable[[nn.Module, int], object], *, steps: int = 6) -> dict[str, Any]:
    """A loop that draws from every generator; everything that it leaves behind."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(1)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(*pairs(48, 2)), batch_size=8, shuffle=True)
    losses = []
    for step, (images, labels) in enumerate(loader, start=1):
        shift = random.choice([-1, 1]) * np.random.uniform(0, 0.1)
        loss = cross_entropy(model(images + shift), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
        after_step(model, step)
        if step == steps:
            break
    gradients = [parameter.grad for parameter in model.parameters()]
    return {
        "losses": losses, "weights": model.state_dict(), "gradients": gradients, "optimizer": optimizer.state_dict(),
        "modes": [module.training for module in model.modules()],
        "hooks": [sorted(key for key, value in vars(module).items() if "hooks" in key and value) for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "random": random.getstate(), "numpy": np.random.get_state()[1], "torch": torch.get_rng_state(),
    }  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Whether two nested values are equal bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(np.array_equal(one, other))


# --- the training does not notice


@pytest.mark.filterwarnings("ignore")
def test_the_training_is_bit_for_bit_the_one_without_a_monitor() -> None:
    plain = train(lambda model, step: None)
    monitors: dict[int, Monitor] = {}
    numbers = []

    def measured(model: nn.Module, step: int) -> None:
        monitor = monitors.setdefault(0, Monitor(model, IMAGES, every=2, analyses=ANALYSES, batch_size=8))
        numbers.append(monitor.step(step))

    watched = train(measured)
    assert [each is not None for each in numbers] == [False, True] * 3
    for name, value in plain.items():
        assert same(value, watched[name]), name
    assert {name.partition("/")[0] for name in numbers[1]} >= {"fourier", "variance", "calibration", "similarity", "hessian"}


def test_a_loader_that_shuffles_draws_nothing_from_the_training() -> None:
    plain = train(lambda model, step: None)
    loader = DataLoader(TensorDataset(*IMAGES), batch_size=8, shuffle=True)
    watched = train(lambda model, step: Monitor(model, loader, every=1, analyses=["calibration"]).step(step))
    assert same(plain, watched)


def test_the_test_of_sameness_can_fail() -> None:
    plain = train(lambda model, step: None)
    assert not same(plain, train(lambda model, step: torch.rand(1)))
    assert not same(plain, train(lambda model, step: model[0](IMAGES[0])))  # batch norm's statistics


def test_it_measures_what_the_analysis_measures() -> None:
    model = network()
    numbers = Monitor(model, IMAGES, analyses=["calibration"], batch_size=8).measure()
    rows = backlight.calibration(model, [IMAGES]).rows()
    expected = {f"calibration/{row['metric']}": row["value"] for row in rows if math.isfinite(row["value"])}
    assert numbers == pytest.approx(expected)
    assert model.training


@pytest.mark.parametrize(
    "surroundings", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)]
)
def test_where_in_a_loop_it_is_called_does_not_matter(surroundings: Callable[[], Any]) -> None:
    model = network()
    monitor = Monitor(model, IMAGES, analyses={"calibration": {}, "variance": {}, "hessian": {"top": 1}}, batch_size=8)
    outside = monitor.measure()
    with surroundings():
        inside = monitor.measure()
        assert torch.is_grad_enabled() == (surroundings is not torch.no_grad and surroundings is not torch.inference_mode)
    assert inside == pytest.approx(outside, nan_ok=True, abs=0, rel=0)


def test_gradients_that_are_being_accumulated_stay() -> None:
    model = network()
    cross_entropy(model(IMAGES[0]), IMAGES[1]).backward()
    before = [parameter.grad for parameter in model.parameters()]
    copies = copy.deepcopy(before)
    Monitor(model, IMAGES, analyses={name: ANALYSES[name] for name in ("adversarial", "hessian", "erf")}).measure()
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), before, strict=True))
    assert same(before, copies)


def test_everything_is_put_back_after_a_failure() -> None:
    model = network()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    random.seed(3)
    states = random.getstate(), torch.get_rng_state()
    with pytest.raises(UserError, match="have a label 19"):
        Monitor(model, (IMAGES[0], IMAGES[1] + 10), analyses=["calibration"]).measure()
    with pytest.raises(KeyError), untouched(model) as inner:
        {}[inner.eval(), random.random()]
    assert [module.training for module in model.modules()] == modes
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_the_generators_are_put_back() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with same_randomness():
        random.random(), np.random.random(), torch.rand(1)
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())


def test_a_wrapped_model_is_measured_inside() -> None:
    model = network()
    wrapped = nn.DataParallel(model)
    numbers = [Monitor(each, IMAGES, analyses=["variance"]).measure() for each in (model, wrapped)]
    assert numbers[0] == numbers[1]


# --- what it takes and returns


def test_only_every_so_many_steps() -> None:
    monitor = Monitor(network(TINY), IMAGES, every=3, analyses=["calibration"])
    assert [step for step in range(7) if monitor.step(step)] == [0, 3, 6]
    assert [row["step"] for row in monitor.history] == [0, 3, 6]
    assert monitor.seconds == pytest.approx(sum(row["seconds"] for row in monitor.history))


@pytest.mark.parametrize("data", [IMAGES, list(zip(IMAGES[0].split(9), IMAGES[1].split(9), strict=True))])
def test_tensors_and_batches_are_the_same_images(data: Iterable[Any]) -> None:
    model = network(TINY)
    numbers = Monitor(model, data, analyses=["calibration"], batch_size=5).measure()
    assert numbers == pytest.approx(Monitor(model, IMAGES, analyses=["calibration"]).measure(), nan_ok=True)


def test_an_analysis_without_an_answer_is_left_out_once() -> None:
    monitor = Monitor(network(TINY), IMAGES, analyses=["attention", "variance"])
    with pytest.warns(UserWarning, match="the monitor leaves out attention: "):
        numbers = monitor.measure()
    assert {name.partition("/")[0] for name in numbers} == {"variance"}
    assert monitor.measure() == numbers  # and no second warning, which pytest.ini's filters would not hide


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"every": 0}, "every is 0; it must be at least 1 step"),
        ({"analyses": ["furier"]}, "did you mean fourier"),
        ({"analyses": {"calibration": {"bin": 3}}}, "did you mean bins"),
        ({"images_and_labels": iter([IMAGES])}, "an iterator can be read once: give tensors, a list or a loader"),
    ],
)
def test_a_mistake_is_told_when_the_monitor_is_made(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Monitor(network(TINY), **{"images_and_labels": IMAGES} | arguments)


def test_analyses_together_are_as_alone() -> None:
    """Those that share a pass, those that run alone, and one without an answer."""
    model = network(TINY).eval()
    results, left_out = measured_together(model, [IMAGES], ["lesion", "variance", "attention", "fourier"], resamples=20)
    assert [result.analysis for result in results] == ["fourier", "variance", "lesion"]
    assert list(left_out) == ["attention"]
    for result in results:
        alone = getattr(backlight, result.analysis)(model, [IMAGES], resamples=20)
        np.testing.assert_equal(result.table, alone.table)


# --- adapters


def test_a_monitor_attached_to_an_optimizer_counts_its_steps() -> None:
    """Two backward passes a step, as with gradient accumulation."""
    model = network(TINY)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = Monitor(model, IMAGES, every=2, analyses=["calibration"])
    handle = monitor.attach(optimizer, step=10)
    for batch in range(8):
        cross_entropy(model(IMAGES[0][:4]), IMAGES[1][:4]).backward()
        if batch % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert [row["step"] for row in monitor.history] == [12, 14]
    handle.remove()
    optimizer.step()
    optimizer.step()
    assert len(monitor.history) == 2


def test_numbers_go_to_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = Monitor(network(TINY), IMAGES, every=2, analyses=["calibration"], log=to_tensorboard(tmp_path))
    numbers = [monitor.step(step) for step in (2, 3, 4)]
    events = EventAccumulator(str(tmp_path)).Reload()
    logged = events.Scalars("backlight/calibration/ece")
    assert [event.step for event in logged] == [2, 4]
    assert logged[0].value == pytest.approx((numbers[0] or {})["calibration/ece"])


class FakeRun:
    """What a run of W&B is asked."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, dict[str, Any]]] = []
        self.rows: list[dict[str, float]] = []

    def define_metric(self, name: str, **about: Any) -> None:
        self.metrics.append((name, about))

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)


def test_numbers_for_wandb_have_an_axis_of_their_own() -> None:
    run = FakeRun()
    monitor = Monitor(network(TINY), IMAGES, every=1, analyses=["calibration"], log=[to_wandb(run)])
    numbers = monitor.step(5)
    assert run.metrics[-1] == ("backlight/*", {"step_metric": "backlight/step"})
    assert run.rows == [{f"backlight/{name}": number for name, number in (numbers or {}).items()} | {"backlight/step": 5}]


def test_wandb_itself_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with wandb.init(dir=str(tmp_path)) as run:
        monitor = Monitor(network(TINY), IMAGES, every=1, analyses=["calibration"], log=to_wandb(run))
        monitor.step(5)
        run.log({"loss": 1.0})
        assert run.summary["backlight/step"] == 5
        assert run.summary["loss"] == 1.0


def test_in_hugging_faces_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from backlight.monitoring.hugging_face import MonitorCallback

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(TINY)

        def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.inner(pixel_values)
            return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}

    def trained(watched: bool) -> Any:
        torch.manual_seed(0)
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=4, per_device_train_batch_size=4, logging_steps=2, report_to=[], save_strategy="no",
            gradient_accumulation_steps=2, disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        rows = [{"pixel_values": image, "labels": label} for image, label in zip(*pairs(48, 4), strict=True)]
        trainer = transformers.Trainer(Classifier(), arguments, train_dataset=rows)
        if watched:
            monitor = Monitor(trainer.model, IMAGES, every=2, analyses=["calibration", "variance"])
            trainer.add_callback(MonitorCallback(monitor, trainer))
        trainer.train()
        return trainer

    plain, watched = trained(False), trained(True)
    assert same(plain.model.state_dict(), watched.model.state_dict())
    logged = [row for row in watched.state.log_history if "backlight/calibration/ece" in row]
    assert [row["step"] for row in logged] == [2, 4]
    losses = [[row["loss"] for row in each.state.log_history if "loss" in row] for each in (plain, watched)]
    assert losses[0] == losses[1]


def test_in_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("pytorch_lightning")
    from backlight.monitoring.lightning import MonitorCallback

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(TINY)

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def trained(watched: bool) -> tuple[Any, Any]:
        lightning.seed_everything(0)
        module, logger = Module(), lightning.loggers.CSVLogger(tmp_path / str(watched))
        monitor = Monitor(module.inner, IMAGES, every=2, analyses=["calibration", "variance"])
        trainer = lightning.Trainer(
            max_steps=4, accelerator="cpu", logger=logger, callbacks=[MonitorCallback(monitor)] if watched else [],
            enable_progress_bar=False, enable_checkpointing=False, accumulate_grad_batches=2,
        )  # fmt: skip
        loader = DataLoader(TensorDataset(*pairs(48, 4)), batch_size=4, shuffle=True)
        trainer.fit(module, loader)
        return module, logger

    (plain, _), (watched, logger) = trained(False), trained(True)
    assert same(plain.state_dict(), watched.state_dict())
    rows = csv.DictReader((Path(logger.log_dir) / "metrics.csv").open())
    assert [int(row["step"]) for row in rows if row["backlight/calibration/ece"]] == [0, 2, 4]


def test_in_a_loop_as_timms_train_script_has_it() -> None:
    """Its optimizer, gradient scaler, moving average and summary: two lines are added to the script."""
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    def trained(watched: bool) -> tuple[nn.Module, Monitor | None]:
        torch.manual_seed(0)
        model = network(TINY)
        optimizer = create_optimizer_v2(model, opt="adamw", lr=0.01)
        monitor = Monitor(model, IMAGES, every=2, analyses=["calibration"]) if watched else None
        if monitor:
            monitor.attach(optimizer)
        average = ModelEmaV3(model)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        for images, labels in zip(*(part.split(6) for part in pairs(24, 5)), strict=True):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            average.update(model)
        return average, monitor

    (plain, _), (watched, monitor) = trained(False), trained(True)
    assert same(plain.state_dict(), watched.state_dict())
    assert [row["step"] for row in monitor.history] == [2, 4]
    assert all(math.isfinite(row["calibration/nll"]) for row in monitor.history)


def test_the_example_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "monitor.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(script, "monitor.md", "exec"), {})
    (line,) = capsys.readouterr().out.splitlines()
    step, *numbers = line.split()
    assert step == "2"
    assert all(math.isfinite(float(number)) for number in numbers)
