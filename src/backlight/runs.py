"""A training in a folder: it can be stopped at any moment, by anything, and goes on where it was.

    OUT/run.json            what was asked
    OUT/metrics.csv         a row an epoch
    OUT/checkpoints/        the last two, until the run is complete
    OUT/snapshots/NAME/     the model of an earlier moment
    OUT/best/               the model of the best evaluation so far
    OUT/model.json ...      the model, when the run is complete

Each of these models is a MODEL everywhere.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .analyses.calibration import calibration
from .anatomy import evaluating
from .checkpoints import read_checkpoint, steps_in, write_checkpoint
from .data import Data, dataset, load_data, stratified
from .errors import UserError
from .evidence import versions
from .image_sets import ImageSet, own_colours
from .models.preprocessing import preprocessing_of, with_preprocessing
from .models.saved import DESCRIPTION, describe, saved_folder
from .models.spelling import parse, with_arguments
from .models.zoo import load_model, save_model
from .numerics.student import student
from .progress import clock
from .recipes import Recipe, stretched
from .result import plain, unwritable
from .study import device_named
from .trackers import refuse_unknown_tracker, tracker
from .training import Step, Training, train
from .training_images import SMALL, TrainingImages, training_images
from .whole import write_whole

RUN, METRICS, CHECKPOINTS = "run.json", "metrics.csv", "checkpoints"
COLUMNS = ("epoch", "step", "lr", "loss", "images_per_second", "accuracy", "nll")
SUMMARISED = ("accuracy", "nll", "ece")
EVALUATIONS = 20  # of a run, at its epochs' ends


@dataclass(frozen=True)
class Run:
    """What was asked; a run goes on only with the same.

    fraction: a stratified part of the training images.  hold: what stays when they are fewer, epochs or steps.
    held_out: the share of them that is kept for evaluation; 0 evaluates on the test images, so that the best model's accuracy
    there is flattered by the choice.  snapshots: init, warmup, or numbers of epochs.
    """

    model: str
    data: str
    recipe: Recipe
    seed: int = 0
    limit: int | None = None
    fraction: float = 1.0
    hold: str = "epochs"
    held_out: float = 0.0
    snapshots: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"the fraction of the training images is above 0 and at most 1, and not {self.fraction}")
        if not 0 <= self.held_out < 1:
            raise UserError(f"the share of images held out is from 0 up to, but not, 1, and not {self.held_out}")
        if self.hold not in ("epochs", "steps"):
            raise UserError(f"with fewer images the epochs or the steps are held, not {self.hold!r}")
        for name in self.snapshots:
            if name not in ("init", "warmup") and not (name.isdigit() and 1 <= int(name) <= self.recipe.epochs):
                raise UserError(f"a snapshot is init, warmup or an epoch from 1 to {self.recipe.epochs}, not {name!r}")


@dataclass(frozen=True)
class Progress:
    """How far a run is; ``text`` is for people."""

    step: int
    steps: int
    text: str


def train_to_folder(
    asked: Run,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
    compile: bool = False,
    workers: int | None = None,
    data_root: str | None = None,
    download: bool = False,
    checkpoint_seconds: float = 60.0,
    log: str | None = None,
) -> Iterator[str | Progress]:
    """Train a model by name on data by name; yields lines to print, and how far it is.

    Ctrl-C and SIGTERM write a checkpoint first.  Errors: UserError for what cannot be run or gone on with.
    """
    first = first_process()
    if complete(asked, out, resume=resume, overwrite=overwrite) if first else resume and (out / DESCRIPTION).exists():
        yield f"{out} is complete: nothing is left to train"
        return
    if threads:
        torch.set_num_threads(threads)
    images, held, asked_model, model = made(asked, workers, data_root, download)
    model.to(device_named(local_device(device)))
    training = train(model, images, schedule(asked, images), seed=asked.seed, compile=compile)
    refuse_unknown_tracker(log)
    if first:
        make_ready(asked, out, overwrite=overwrite)  # now that the rest is right
    tracking = tracker(log, out, asdict(asked)) if first else None
    training.accelerator.wait_for_everyone()
    state, told, wrong = read_checkpoint(out / CHECKPOINTS)
    yield from (f"{sentence}; the one before is used" for sentence in wrong)
    if state is not None:
        training.load_state_dict(state)
        yield f"going on from step {training.step} of {training.steps}"
    kept = Kept(asked, asked_model, out, training, held, told, tracking)
    with stopping() as stop:
        try:
            for step in chain([None] if training.step == 0 else [], training):
                yield from kept.after(step)
                if stop:
                    kept.checkpoint()
                    yield f"stopped at step {training.step}: --resume goes on from there"
                    raise KeyboardInterrupt
                if time.monotonic() - kept.saved >= checkpoint_seconds and training.step < training.steps:
                    kept.checkpoint()
        except UserError as error:
            there = steps_in(out / CHECKPOINTS)
            raise UserError(f"{error}" + (f"; the checkpoint of step {int(there[0].name)} is kept" if there else "")) from error
        if first:
            yield kept.finished()


def over_seeds(asked: Run, out: Path, seeds: Sequence[int], **settings: Any) -> Iterator[str | Progress]:
    """The same run a seed, each in a folder of its own; then ``seeds.csv``: each seed's test, and their mean with its interval.

    The interval is Student's, over seeds.
    """
    if len(set(seeds)) < len(seeds):
        raise UserError(f"each seed is given once, and not as in {', '.join(map(str, seeds))}")
    for seed in seeds:
        yield f"seed {seed}"
        yield from train_to_folder(replace(asked, seed=seed), out / f"seed-{seed}", **settings)
    if first_process():
        found = [describe(out / f"seed-{seed}")["test"] for seed in seeds]
        rows = [{"seed": seed, **{name: test[name][0] for name in SUMMARISED}} for seed, test in zip(seeds, found, strict=True)]
        spread = {name: student([row[name] for row in rows]) for name in SUMMARISED}
        for place, what in enumerate(("mean", "low", "high")):
            rows.append({"seed": what, **{name: ends[place] for name, ends in spread.items()}})
        write_table(out / "seeds.csv", rows, ("seed", *SUMMARISED))
        mean, low, high = (100 * x for x in spread["accuracy"])
        yield f"accuracy over {len(seeds)} seeds: {mean:.1f}% [{low:.1f}, {high:.1f}]"


class Kept:
    """What a run writes as it goes.  Every process has one, and only the first writes."""

    def __init__(
        self,
        asked: Run,
        spec: str,
        out: Path,
        training: Training,
        held: Data,
        told: Mapping[str, Any],
        tracking: Any,
    ) -> None:
        self.asked, self.spec, self.out, self.training, self.held = asked, spec, out, training, held
        self.writes = training.accelerator.is_main_process
        self.loss, self.count = torch.tensor(told.get("loss", 0.0), device=training.device), told.get("count", 0)
        self.best: float | None = told.get("best")
        self.seconds: float = told.get("seconds", 0.0)
        self.began = self.saved = self.shown = time.monotonic()
        self.idle = 0.0  # seconds since then in which nothing was trained
        self.from_step = training.step
        self.rows = rows_until(out / METRICS, training.step)
        self.tracker = tracking
        self.moments = moments(asked, training)

    def after(self, step: Step | None) -> Iterator[str | Progress]:
        """What is to be written after a step; None is before the first."""
        if self.writes:
            for name in self.moments.get(self.training.step, ()):
                self.save(self.out / "snapshots" / name, snapshot=name)
        if step is None:
            return
        self.loss, self.count = self.loss + step.mean_loss, self.count + 1
        if step.step % self.training.per_epoch == 0:
            yield from self.epoch(step)
        elif time.monotonic() - self.shown > 0.5:
            self.shown = time.monotonic()
            loss = f"loss {step.loss:.3f}, rate {step.lr:.2g}, {self.speed():,.0f} images a second, {clock(self.left())} left"
            yield Progress(step.step, step.steps, f"epoch {step.epoch + 1} of {self.asked_epochs}: {loss}")

    def epoch(self, step: Step) -> Iterator[str | Progress]:
        """A row of the metrics, and where it is time an evaluation."""
        loss = self.training.accelerator.reduce(self.loss / self.count, "mean").item()
        self.loss, self.count = torch.zeros_like(self.loss), 0
        row: dict[str, Any] = {"epoch": step.epoch + 1, "step": step.step, "lr": step.lr, "loss": loss}
        row["images_per_second"] = round(self.speed(), 1)
        if not self.writes:
            return
        paused = time.monotonic()
        if (step.epoch + 1) % max(1, self.asked_epochs // EVALUATIONS) == 0 or step.step == step.steps:
            row |= evaluated(self.training.kept, self.held)
            if self.best is None or row["accuracy"] > self.best:
                self.best = row["accuracy"]
                self.save(self.out / "best", accuracy=row["accuracy"], tested_on=self.tested_on)
        self.rows.append(row)
        write_table(self.out / METRICS, self.rows, COLUMNS)
        self.idle += time.monotonic() - paused
        if self.tracker is not None:
            self.tracker.log({name: value for name, value in row.items() if name not in ("epoch", "step")}, step=step.step)
        found = f", accuracy {100 * row['accuracy']:.1f}%" if "accuracy" in row else ""
        text = f"loss {loss:.3f}{found}, {self.speed():,.0f} images a second, {clock(self.left())} left"
        yield Progress(step.step, step.steps, f"epoch {step.epoch + 1} of {self.asked_epochs}: {text}")

    def checkpoint(self) -> None:
        """Keep everything that going on needs."""
        self.saved = time.monotonic()
        if not self.writes:
            return
        told = {"loss": self.loss.item(), "count": self.count, "best": self.best, "seconds": self.spent()}
        write_checkpoint(self.out / CHECKPOINTS, self.training.state_dict(), **told)
        self.idle += time.monotonic() - self.saved
        self.saved = time.monotonic()

    def finished(self) -> str:
        """Test the model and put it in its place; the run is complete."""
        test = calibration(self.training.kept, self.held, seed=self.asked.seed)
        tested = {row["metric"]: [round(row[end], 4) for end in ("value", "low", "high")] for row in test.table}
        facts = {"test_images": test.evidence["images"], "tested_on": self.tested_on, "test": tested}
        self.save(self.out, **facts, seconds=round(self.spent(), 1))
        if self.tracker is not None:
            self.tracker.finish()
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
        accuracy, low, high = (100 * x for x in tested["accuracy"])
        return f"accuracy on {facts['test_images']} {facts['tested_on']} images: {accuracy:.1f}% [{low:.1f}, {high:.1f}]"

    def save(self, folder: Path, **more: Any) -> None:
        """Write the model as it is now, as a MODEL."""
        images, run = self.training.images, plain(asdict(self.asked))
        told = {**run, "threads": torch.get_num_threads(), "processes": self.training.accelerator.num_processes}
        about = {"run": told, "trained_steps": self.training.step, "versions": dict(versions()), **more}
        save_model(
            self.training.kept,
            folder,
            spec=self.spec,
            num_classes=images.classes,
            preprocessing=images.preprocessing,
            classes=self.held.classes,
            **about,
        )

    @property
    def tested_on(self) -> str:
        return "held-out" if self.asked.held_out else self.held.evidence["split"]

    @property
    def asked_epochs(self) -> int:
        return self.training.recipe.epochs

    def spent(self) -> float:
        """Seconds of training so far, over all starts."""
        return self.seconds + time.monotonic() - self.began

    def speed(self) -> float:
        """Images a second since this start."""
        done = (self.training.step - self.from_step) * self.training.recipe.batch_size
        return done / max(1e-9, time.monotonic() - self.began - self.idle)

    def left(self) -> float:
        """Seconds."""
        return (self.training.steps - self.training.step) * self.training.recipe.batch_size / max(1e-9, self.speed())


# Before the first step


def complete(asked: Run, out: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether the run in the folder is complete and to be left as it is.

    Errors: UserError if the folder holds anything and neither flag is given, or a run of another kind.
    """
    try:
        there = sorted(path.name for path in out.iterdir()) if out.exists() else []
    except OSError as error:
        raise UserError(f"{out} cannot be read: {error.strerror}; choose another --out") from error
    if overwrite:
        if there and not {RUN, DESCRIPTION} & set(there):
            raise UserError(f"{out} holds what Backlight did not write; choose another --out, or empty it")
    elif there and not resume:
        what = "a model already" if DESCRIPTION in there else "a run that was stopped" if RUN in there else "other files"
        raise UserError(f"{out} holds {what}: choose another --out, --resume to go on, or --overwrite to begin again")
    elif there:
        refuse_other_run(out, plain(asdict(asked)))
        return (out / DESCRIPTION).exists()
    return False


def make_ready(asked: Run, out: Path, *, overwrite: bool) -> None:
    """Write down in the folder what was asked.  Errors: UserError where that cannot be done."""
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    try:
        write_whole(out / RUN, (json.dumps(plain(asdict(asked)), indent=1) + "\n").encode())
    except OSError as error:
        raise unwritable(out, error) from error


def refuse_other_run(out: Path, request: Mapping[str, Any]) -> None:
    """Errors: UserError naming what differs, or if the folder holds no run."""
    try:
        there = json.loads((out / RUN).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{out} holds no run that could be gone on with: choose another --out, or --overwrite") from error
    before, now = flat(there), flat(request)
    other = [f"{key} {before.get(key)!r}, not {now.get(key)!r}" for key in {**before, **now} if before.get(key) != now.get(key)]
    if other:
        raise UserError(f"the run in {out} has {'; '.join(other[:4])}: go on with the same, or choose another --out")


def flat(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request with the recipe's fields among its own."""
    return {**{k: v for k, v in request.items() if k != "recipe"}, **request.get("recipe", {})}


def made(asked: Run, workers: int | None, data_root: str | None, download: bool) -> tuple[TrainingImages, Data, str, nn.Module]:
    """The images to train on, those to evaluate on, the model's full name, and the model with random weights."""
    source = dataset(asked.data, "train", limit=asked.limit, seed=asked.seed, root=data_root, download=download)
    if source.split == "all":
        raise UserError(f"{asked.data} has no train and test folders, and a model must not be tested on what it was trained on")
    source, apart = parted(source, asked)
    spec = fitted(asked.model, source, asked.recipe)
    model = built(spec, source, asked)
    size = preprocessing_of(model).get("input_size", (3, 224, 224))
    images = training_images(source, size[1:], size[0], workers)
    refuse_unfit(model, spec, images)
    with_preprocessing(model, {**images.preprocessing, "num_classes": images.classes})
    held = load_data(apart or asked.data, model=model, split="test", root=data_root)
    return images, held, spec, model


def parted(source: ImageSet, asked: Run) -> tuple[ImageSet, ImageSet | None]:
    """The images to train on, and those held out; each a stratified choice."""
    apart = None
    if asked.held_out:
        chosen = stratified(source.labels, max(1, round(asked.held_out * len(source))), asked.seed)
        apart = source.take(chosen)
        source = source.take(np.setdiff1d(np.arange(len(source)), chosen))
    if asked.fraction < 1:
        source = source.take(stratified(source.labels, max(1, round(asked.fraction * len(source))), asked.seed))
    return source, apart


def fitted(spec: str, source: ImageSet, recipe: Recipe) -> str:
    """The model's name with what the data decide, where the name leaves it open: channels, size, a stem for small images."""
    spelling = parse(spec)
    if spelling.source not in ("", "word") or ":" in spelling.name or saved_folder(spelling.name):
        if recipe.drop_path:
            raise UserError(f"how {spec} takes drop path is not known here: use --drop-path 0, or set it in the model's name")
        return spec
    image = source[0][0]
    small = max(image.size) <= SMALL
    told: dict[str, Any] = {"in_chans": 1} if own_colours(image) == "L" and small else {}
    if small:
        told["img_size"] = image.width if image.width == image.height else (image.height, image.width)
        if spelling.source == "word":
            told["stem"] = "cifar"
    if recipe.drop_path:
        told["drop_path_rate"] = recipe.drop_path
    return with_arguments(spec, told)


def built(spec: str, source: ImageSet, asked: Run) -> nn.Module:
    """The model with random weights.  Errors: UserError, with what to do where it takes no drop path."""
    try:
        return load_model(spec, pretrained=False, num_classes=len(source.classes), seed=asked.seed)
    except UserError as error:
        if "takes no argument drop_path_rate" in str(error):
            raise UserError(f"{error}: use --drop-path 0") from error
        raise


def refuse_unfit(model: nn.Module, spec: str, images: TrainingImages) -> None:
    """Errors: UserError if the model cannot read an image, or does not answer with a score a class."""
    shape = tuple(images.preprocessing["input_size"])
    try:
        with evaluating(model), torch.inference_mode():
            answer = model(torch.zeros(1, *shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        size = " x ".join(map(str, shape))
        raise UserError(f"{spec} cannot read images of {size}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(answer, Tensor) or answer.shape != (1, images.classes):
        raise UserError(f"{spec} does not answer an image with {images.classes} scores, one a class of the data")


def schedule(asked: Run, images: TrainingImages) -> Recipe:
    """The recipe, its epochs stretched where a fraction of the images is to be seen in as many steps."""
    if asked.hold == "epochs" or asked.fraction == 1:
        return asked.recipe
    return stretched(asked.recipe, round(asked.recipe.epochs / asked.fraction))


def moments(asked: Run, training: Training) -> dict[int, list[str]]:
    """Step -> snapshots due after it."""
    due: dict[int, list[str]] = {}
    for name in asked.snapshots:
        epochs = {"init": 0.0, "warmup": training.recipe.warmup_epochs}.get(name)
        step = round((int(name) if epochs is None else epochs) * training.per_epoch)
        due.setdefault(step, []).append(name)
    return due


def first_process() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def local_device(device: str) -> str:
    """The device of this process: under torchrun each has a GPU of its own."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


# On the way


def evaluated(model: nn.Module, data: Data) -> dict[str, float]:
    """Accuracy and NLL, in nats."""
    found = {row["metric"]: row["value"] for row in calibration(model, data, resamples=1).table}
    return {name: found[name] for name in ("accuracy", "nll")}


def rows_until(file: Path, step: int) -> list[dict[str, Any]]:
    """The rows of the metrics up to a step: what came after it will come again."""
    try:
        found = list(csv.DictReader(io.StringIO(file.read_text())))
        return [row for row in found if int(row["step"]) <= step]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_table(file: Path, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Rows as CSV.  Errors: UserError where they cannot be written; what was there is as it was."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_whole(file, text.getvalue().encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


@contextmanager
def stopping() -> Iterator[list[int]]:
    """Within the block Ctrl-C and SIGTERM are only noted in the list; a second signal acts as ever."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: Any) -> None:
        noted.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
