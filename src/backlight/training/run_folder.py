"""A training in a folder: it can be stopped at any moment, by anything, and resumes bit for bit.

    OUT/run.json            the request: model, data, recipe, seed, ...
    OUT/metrics.csv         a row for each epoch; the checkpoints hold the same rows
    OUT/checkpoints/        the last two, until the run is complete
    OUT/snapshots/NAME/     the model at an earlier moment
    OUT/best/               the model of the best evaluation so far
    OUT/model.json ...      the model, when the run is complete

Each of these models is a MODEL for every command.  One process at a time trains into a folder.
"""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backlight.analyses.calibration import calibration
from backlight.data.loading import Data
from backlight.devices import device_named, first_process, local_device
from backlight.errors import UserError
from backlight.files import clear_drafts, refuse_foreign, unwritable, write_atomic
from backlight.locks import LOCK, locked
from backlight.model_names.saved import DESCRIPTION, SavedModel, describe
from backlight.models.sources.saved import save_model
from backlight.numerics.student import student
from backlight.progress import Progress, clock
from backlight.records import R, encoded, read_record
from backlight.results.provenance import versions
from backlight.signals import Stopped, delayed
from backlight.training.checkpoints import Manifest, checkpoint_folders, read_checkpoint, write_checkpoint
from backlight.training.loop import Step, Training, train
from backlight.training.run import PreparedRun, Run, RunRecord, prepare
from backlight.training.settings import Execution
from backlight.training.trackers import refuse_missing_tracker, start_tracker

RUN, METRICS, CHECKPOINTS = "run.json", "metrics.csv", "checkpoints"
COLUMNS = ("epoch", "step", "lr", "loss", "images_per_second", "accuracy", "nll")
SUMMARISED = ("accuracy", "nll", "ece")
EVALUATIONS = 20  # of a run, each at the end of an epoch
PROGRESS_SECONDS = 0.5  # between two events


def train_to_folder(
    run: Run,
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
    """Train a model by name on data by name; yields lines for people, and progress.

    The settings are those of `Execution`.  Ctrl-C and SIGTERM write a checkpoint first.
    Errors: UserError for what cannot be trained or resumed, and if another process trains into the folder.
    """
    execution = Execution(
        resume=resume, overwrite=overwrite, device=device, threads=threads, compile=compile, workers=workers,
        data_root=data_root, download=download, checkpoint_seconds=checkpoint_seconds, log=log,
    )  # fmt: skip
    with locked(out) if first_process() else nullcontext():
        yield from trained(run, out, execution)


def trained(run: Run, out: Path, execution: Execution) -> Iterator[str | Progress]:
    """The same in a folder that no other process uses."""
    first, resume, overwrite, log = first_process(), execution.resume, execution.overwrite, execution.log
    refuse_missing_tracker(log)
    if first:
        clear_drafts(path for below in ("", "*/", "snapshots/*/") for path in out.glob(f"{below}.*"))
    if is_complete(run, out, resume=resume, overwrite=overwrite) if first else resume and (out / DESCRIPTION).exists():
        yield f"{out} is complete: nothing is left to train"
        return
    if execution.threads:
        torch.set_num_threads(execution.threads)
    prepared = prepare(run, execution)
    prepared.model.to(device_named(local_device(execution.device)))
    training = train(prepared.model, prepared.images, run.schedule(), seed=run.seed, compile=execution.compile)
    if first:
        start_folder(run, out, overwrite=overwrite)  # only now, because everything else is valid
    tracker = start_tracker(log, out, run.request()) if first else None
    training.accelerator.wait_for_everyone()
    state, manifest, damaged = read_checkpoint(out / CHECKPOINTS)
    yield from (f"{sentence}; the one before it is used" for sentence in damaged)
    if state is not None:
        training.load_state_dict(state)
        yield f"resuming from step {training.step} of {training.steps}"
    writer = RunWriter(run, prepared, out, training, manifest, tracker)
    with delayed() as signals:
        try:
            for step in chain([None] if training.step == 0 else [], training):
                yield from writer.after(step)
                if signals:
                    writer.checkpoint()
                    yield f"stopped at step {training.step}: --resume resumes from there"
                    raise Stopped(signals[0])
                if time.monotonic() - writer.saved_at >= execution.checkpoint_seconds and training.step < training.steps:
                    writer.checkpoint()
        except UserError as error:
            newest = next(iter(checkpoint_folders(out / CHECKPOINTS)), None)
            raise UserError(f"{error}" + (f"; the checkpoint of step {int(newest.name)} is kept" if newest else "")) from error
        if first:
            yield writer.finish()


def over_seeds(run: Run, out: Path, seeds: Sequence[int], **execution: Any) -> Iterator[str | Progress]:
    """The same run with each seed, in a folder each; then ``seeds.csv``: the tests, and their mean with its interval.

    The interval is Student's 95% interval over seeds.
    """
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds is {', '.join(map(str, seeds))}; each seed must be given once")
    if first_process():
        clear_drafts(out.glob(".*"))
    for seed in seeds:
        yield f"seed {seed}"
        yield from train_to_folder(replace(run, seed=seed), out / f"seed-{seed}", **execution)
    if first_process():
        tests = [describe(out / f"seed-{seed}").test for seed in seeds]
        rows: list[dict[str, Any]] = [
            {"seed": seed, **{name: test[name][0] for name in SUMMARISED}} for seed, test in zip(seeds, tests, strict=True)
        ]
        intervals = {name: student([row[name] for row in rows]) for name in SUMMARISED}
        for i, label in enumerate(("mean", "low", "high")):
            rows.append({"seed": label, **{name: interval[i] for name, interval in intervals.items()}})
        write_table(out / "seeds.csv", rows, ("seed", *SUMMARISED))
        mean, low, high = (100 * x for x in intervals["accuracy"])
        yield f"accuracy over {len(seeds)} seeds: {mean:.1f}% [{low:.1f}, {high:.1f}]"


class RunWriter:
    """Writes the files of a run while it proceeds.  Every process has one, and only the first writes."""

    def __init__(
        self, run: Run, prepared: PreparedRun, out: Path, training: Training, manifest: Manifest, tracker: Any
    ) -> None:
        self.run, self.spec, self.evaluation = run, prepared.spec, prepared.evaluation
        self.out, self.training, self.tracker = out, training, tracker
        self.writes = training.accelerator.is_main_process
        self.loss, self.count = torch.tensor(manifest.loss, device=training.device), manifest.count
        self.best = manifest.best
        self.seconds = manifest.seconds  # before this start
        self.started_at = self.saved_at = self.shown_at = time.monotonic()
        self.idle = 0.0  # seconds of this start without training
        self.first_step = training.step
        self.rows = list(manifest.rows)
        self.snapshots = snapshots_by_step(run, training)

    def after(self, step: Step | None) -> Iterator[str | Progress]:
        """Write what is due after a step; None is the moment before the first step."""
        if self.writes:
            for name in self.snapshots.get(self.training.step, ()):
                self._save(self.out / "snapshots" / name, snapshot=name)
        if step is None:
            return
        self.loss, self.count = self.loss + step.mean_loss, self.count + 1
        if step.step % self.training.per_epoch == 0:
            yield from self._after_epoch(step)
        elif time.monotonic() - self.shown_at > PROGRESS_SECONDS:
            self.shown_at = time.monotonic()
            yield self._progress(step, f"loss {step.loss:.3f}, rate {step.lr:.2g}")

    def _after_epoch(self, step: Step) -> Iterator[str | Progress]:
        """Write a row of the metrics, after some epochs with an evaluation."""
        loss = self.training.accelerator.reduce(self.loss / self.count, "mean").item()
        self.loss, self.count = torch.zeros_like(self.loss), 0
        row: dict[str, Any] = {"epoch": step.epoch + 1, "step": step.step, "lr": step.lr, "loss": loss}
        row["images_per_second"] = round(self._speed(), 1)
        if not self.writes:
            return
        paused_at = time.monotonic()
        if (step.epoch + 1) % max(1, self.training.recipe.epochs // EVALUATIONS) == 0 or step.step == step.steps:
            row |= evaluate(self.training.averaged, self.evaluation)
            if self.best is None or row["accuracy"] > self.best:
                self.best = row["accuracy"]
                self._save(self.out / "best", accuracy=row["accuracy"], tested_on=self.tested_on)
        self.rows.append(row)
        write_table(self.out / METRICS, self.rows, COLUMNS)
        self.idle += time.monotonic() - paused_at
        if self.tracker is not None:
            self.tracker.log({name: value for name, value in row.items() if name not in ("epoch", "step")}, step=step.step)
        accuracy = f", accuracy {100 * row['accuracy']:.1f}%" if "accuracy" in row else ""
        yield self._progress(step, f"loss {loss:.3f}{accuracy}")

    def checkpoint(self) -> None:
        """Write everything that a resumed run needs."""
        self.saved_at = time.monotonic()
        if not self.writes:
            return
        manifest = Manifest(self.loss.item(), self.count, self.best, self._seconds_so_far(), self.rows)
        write_checkpoint(self.out / CHECKPOINTS, self.training.state_dict(), manifest)
        self.idle += time.monotonic() - self.saved_at
        self.saved_at = time.monotonic()

    def finish(self) -> str:
        """Test the model and save it; the run is then complete.  Returns the accuracy in a line."""
        write_table(self.out / METRICS, self.rows, COLUMNS)  # if it was damaged after the last epoch
        test = calibration(self.training.averaged, self.evaluation, seed=self.run.seed)
        intervals = {row["metric"]: [round(row[end], 4) for end in ("value", "low", "high")] for row in test.table}
        facts = {"test_images": test.provenance["images"], "tested_on": self.tested_on, "test": intervals}
        self._save(self.out, **facts, seconds=round(self._seconds_so_far(), 1))
        if self.tracker is not None:
            self.tracker.finish()
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
        accuracy, low, high = (100 * x for x in intervals["accuracy"])
        return f"accuracy on {facts['test_images']} {facts['tested_on']} images: {accuracy:.1f}% [{low:.1f}, {high:.1f}]"

    def _save(self, folder: Path, **facts: Any) -> None:
        """Save the model in its present state, as a MODEL."""
        images, threads, processes = self.training.images, torch.get_num_threads(), self.training.accelerator.num_processes
        request = {**self.run.request(), "threads": threads, "processes": processes}
        save_model(
            self.training.averaged,
            folder,
            spec=self.spec,
            num_classes=images.classes,
            preprocessing=images.preprocessing,
            classes=self.evaluation.classes,
            **{"run": request, "trained_steps": self.training.step, "versions": dict(versions()), **facts},
        )

    @property
    def tested_on(self) -> str:
        """Which images the evaluations use."""
        return "held-out" if self.run.held_out else self.evaluation.provenance["split"]

    def _progress(self, step: Step, text: str) -> Progress:
        epoch = f"epoch {step.epoch + 1} of {self.training.recipe.epochs}"
        left = (self.training.steps - self.training.step) * self.training.recipe.batch_size / max(1e-9, self._speed())
        text = f"{epoch}: {text}, {self._speed():,.0f} images a second, {clock(left)} left"
        return Progress(step.step, step.steps, text, what=self.out.name)

    def _seconds_so_far(self) -> float:
        """Seconds of the run, over all starts."""
        return self.seconds + time.monotonic() - self.started_at

    def _speed(self) -> float:
        """Images a second since this start."""
        images = (self.training.step - self.first_step) * self.training.recipe.batch_size
        return images / max(1e-9, time.monotonic() - self.started_at - self.idle)


def is_complete(run: RunRecord, out: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether the folder holds this run and it is complete, so that nothing is left to do.

    Errors: UserError if the folder holds anything and neither flag is given, another run, or damaged files.
    """
    try:
        names = {path.name for path in out.iterdir()} - {LOCK} if out.exists() else set()
    except OSError as error:
        raise UserError(f"{out} cannot be read: {error.strerror}; choose another --out") from error
    if overwrite:
        refuse_foreign(out, (RUN, DESCRIPTION))
    elif names and not resume:
        content = "a model already" if DESCRIPTION in names else "a run that was stopped" if RUN in names else "other files"
        raise UserError(f"{out} holds {content}: choose another --out, --resume to resume it, or --overwrite to start again")
    elif names:
        refuse_other_run(run, out)
        return read_for_resuming(out / DESCRIPTION, SavedModel) is not None
    return False


def start_folder(run: RunRecord, out: Path, *, overwrite: bool) -> None:
    """Write the request into the folder.  Errors: UserError if the folder cannot be written."""
    if overwrite:
        remove_contents(out)
    try:
        write_atomic(out / RUN, encoded(run))
    except OSError as error:
        raise unwritable(out, error) from error


def remove_contents(folder: Path) -> None:
    """Remove what a folder holds, its lock excepted."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink(missing_ok=True)


def read_for_resuming(file: Path, kind: type[R]) -> R | None:
    """The record in a file of a run.  Errors: UserError, with what to do, if it cannot be read."""
    try:
        return read_record(file, kind)
    except UserError as error:
        raise UserError(f"{error}: choose another --out, or --overwrite") from error


def refuse_other_run(run: RunRecord, out: Path) -> None:
    """Errors: UserError naming what differs from the run in the folder, or if the folder holds no run."""
    written = read_for_resuming(out / RUN, type(run))
    if written is None:
        raise UserError(f"{out} holds no run that can be resumed: choose another --out, or --overwrite")
    old, new = flat(written.request()), flat(run.request())
    differences = [f"{key} {old.get(key)!r}, not {new.get(key)!r}" for key in {**old, **new} if old.get(key) != new.get(key)]
    if differences:
        raise UserError(f"the run in {out} has {'; '.join(differences[:4])}: resume with the same, or choose another --out")


def flat(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request with the recipe's fields among its own."""
    return {**{key: value for key, value in request.items() if key != "recipe"}, **request.get("recipe", {})}


def snapshots_by_step(run: Run, training: Training) -> dict[int, list[str]]:
    """Step -> names of the snapshots that are saved after it."""
    due: dict[int, list[str]] = {}
    for name in run.snapshots:
        epochs = {"init": 0.0, "warmup": training.recipe.warmup_epochs}.get(name)
        step = round((int(name) if epochs is None else epochs) * training.per_epoch)
        due.setdefault(step, []).append(name)
    return due


def evaluate(model: nn.Module, data: Data) -> dict[str, float]:
    """Accuracy, and NLL in nats."""
    values = {row["metric"]: row["value"] for row in calibration(model, data, resamples=1).table}
    return {name: values[name] for name in ("accuracy", "nll")}


def write_table(file: Path, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as CSV.  Errors: UserError if that fails; the old file then stays."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_atomic(file, text.getvalue().encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
