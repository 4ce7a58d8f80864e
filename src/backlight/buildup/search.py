"""Build-up: which convolutions of a CNN are better replaced by attention?  The paper's rule as a search.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), section 4.1, figure 12a, and the README of their repository:
replace convolutions by attention alternately, from the end; if that does not improve, continue at the end of an earlier stage.
Each candidate is trained from scratch with several seeds, evaluated on images held out of the training set, and kept if it is
better by more than the noise between seeds and between images.

    OUT/run.json                        the request: model, data, recipe, ...
    OUT/designs/NAME/model.json         an architecture: a MODEL without weights
    OUT/trainings/NAME/seed-N/          its training, as `backlight train` writes it
    OUT/buildup/                        the result
    OUT/model/                          the best model, trained with the first seed
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from backlight.buildup.result import Buildup, claims, gain_over_both, over_both, percent, signed, summary
from backlight.buildup.rule import Placement, Search, Trial, replaceable_units
from backlight.buildup.scores import held_out_images, scores
from backlight.buildup.settings import CHANGEABLE, SearchSettings
from backlight.data.loading import load_data
from backlight.data.preprocessing import preprocessing as image_format
from backlight.data.preprocessing import pretrained_cfg_of
from backlight.errors import UserError
from backlight.files import write_atomic
from backlight.model_names.saved import DESCRIPTION, WEIGHTS, SavedModel, describe, saved_folder
from backlight.models.cost import parameters
from backlight.models.sources.load import load_model
from backlight.models.sources.saved import PREPROCESSING
from backlight.models.surgery.hybridize import drop_original, hybridize, surgery_of
from backlight.numerics.student import student
from backlight.progress import Progress, clock
from backlight.recipes import Recipe
from backlight.records import encoded, read_record
from backlight.results.claim import LEAST
from backlight.results.provenance import provenance
from backlight.results.result import Row, columns
from backlight.tracing.find import units
from backlight.tracing.tap import spell
from backlight.training.run import Run, RunRecord, prepare
from backlight.training.run_folder import RUN, is_complete, start_folder, train_to_folder
from backlight.training.settings import Execution, ImageSelection

#: Share of the first training after which its length is known well enough to compare it with the budget.
FORESEEN = 0.1


@dataclass(frozen=True)
class BuildupRun(ImageSelection, SearchSettings, RunRecord):
    """A baseline by name, the recipe of all trainings, and the settings of the search.

    A search resumes only if all of them are the same, except margin, patience, controls and minutes.
    """

    record = "search"

    model: str
    recipe: Recipe

    @property
    def attention(self) -> dict[str, Any]:
        """Arguments of `hybridize` for the new attention."""
        return {"heads": self.heads, "dim_head": self.dim_head, "window": self.window}

    def request(self) -> dict[str, Any]:
        """What has to be the same when the search resumes."""
        return {name: value for name, value in super().request().items() if name not in CHANGEABLE}

    def training(self, model: str, recipe: Recipe, seed: int) -> Run:
        """One training of a design."""
        images = {field.name: getattr(self, field.name) for field in fields(ImageSelection)}
        return Run(model, recipe, **images, held_out=self.held_out, seed=seed)


def buildup_to_folder(run: BuildupRun, out: Path, **execution: Any) -> Iterator[str | Progress]:
    """Search from the model that ``run`` names; yields lines for people, and the progress of each training.

    execution: settings of `Execution`.  Errors: UserError for what cannot be searched or resumed.
    """
    how = Execution(**execution)
    with exclusive(out):
        is_complete(run, out, resume=how.resume, overwrite=how.overwrite)
        bench = Bench(run, out, how)
        start_folder(run, out, overwrite=how.overwrite)  # only now, because everything else is valid
    with exclusive(out):  # again, because overwriting makes a new folder
        yield from (f"{sentence}: it stays" for sentence in bench.refused)
        if len(run.seeds) < LEAST["seeds"]:
            yield f"seeds: {len(run.seeds)}, too few for the noise between seeds; nothing is kept below {LEAST['seeds']}"
        search = Search(bench.stages, margin=run.margin, patience=run.patience)
        over_budget = ""
        while search.candidate is not None and not over_budget:
            design = bench.design(search.candidate)
            over_budget = bench.over_budget(design)
            if not over_budget:
                trial = search.tell((yield from bench.train(design, designs_left(search, run.controls))))
                yield bench.line(design, trial)
        matched: list[Trial] = []
        controlled = sorted(search.kept, key=lambda trial: trial is not search.best) if run.controls else []
        for number, kept in enumerate(controlled):  # the best design first
            design = bench.design(kept.units, matched=True)
            over_budget = over_budget or bench.over_budget(design)
            if over_budget:
                break
            correct = yield from bench.train(design, len(controlled) - number)
            matched.append(Trial.compared(kept.units, correct, search.trials[0], control=True))
            yield bench.line(design, matched[-1])
        if over_budget:
            yield f"{over_budget}; --resume with more --minutes continues"
        result = final_result(bench, search, matched, over_budget)
        result.save(out / "buildup")
        bench.save_model(bench.design(search.best.units))
        yield summary(result)


class Bench:
    """The baseline, the designs made from it, and their trainings."""

    def __init__(self, run: BuildupRun, out: Path, execution: Execution) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("a build-up runs in one process: start it without torchrun, and choose the device with --device")
        self.run, self.out, self.execution = run, out, execution
        baseline = prepare(run.training(run.model, run.recipe, run.seeds[0]), execution)
        self.model, self.spec, self.held_out_images = baseline.model, baseline.spec, baseline.evaluation.images
        size = image_format(self.model)["input_size"]
        self.images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
        self.units = units(self.model, self.images)
        self.designs: dict[tuple[Placement, bool], Design] = {}
        self.stages, self.refused = self._replaceable()
        self.seconds: list[float] = []  # of each training, in the order of the search

    def _replaceable(self) -> tuple[list[list[int]], list[str]]:
        """`replaceable_units` that surgery can replace, and why it refuses the others.  Errors: UserError if none is left."""
        stages, refused = replaceable_units(self.units), []
        for stage in stages:
            for unit in list(stage):
                try:
                    self.hybrid((unit,))
                except UserError as error:
                    stage.remove(unit)
                    refused.append(str(error))
        if not any(stages):
            word = spell(self.units)
            reason = f"no convolution follows another in a stage of {word!r}" if word else "it has no units"
            raise UserError(f"{self.run.model} has nothing to replace: {refused[0] if refused else reason}")
        return stages, refused

    def hybrid(self, placement: Placement, *, matched: bool = False) -> nn.Module:
        """The baseline with attention in these units, and nothing of their convolutions."""
        if not placement:
            return self.model
        settings: dict[str, Any] = {**self.run.attention, "match_parameters": matched}
        return drop_original(hybridize(self.model, self.images, placement, **settings), self.images)

    def design(self, placement: Placement, *, matched: bool = False) -> Design:
        """The architecture, in a folder from which it can be trained."""
        if (placement, matched) not in self.designs:
            self.designs[placement, matched] = self._write_design(placement, matched)
        return self.designs[placement, matched]

    def _write_design(self, placement: Placement, matched: bool) -> Design:
        name = placement_name(placement) + ("-matched" if matched else "")
        model = self.hybrid(placement, matched=matched)
        folder = self.out / "designs" / name
        source = saved_folder(self.spec)
        cfg = pretrained_cfg_of(model)
        description = SavedModel(
            describe(source).model if source else self.spec,
            getattr(model, "num_classes", None),
            {key: cfg[key] for key in PREPROCESSING if key in cfg},
            surgery=surgery_of(model),
        )
        write_atomic(folder / DESCRIPTION, encoded(description))
        stages = groupby(self.units, key=lambda unit: unit.stage)
        added = tuple(sum(unit.index in placement for unit in stage) for _, stage in stages)
        return Design(name, placement, folder, added, spell(units(model, self.images)), parameters(model))

    def train(self, design: Design, designs: int) -> Generator[str | Progress, None, np.ndarray]:
        """Train a design with each seed, unless that is done; returns whether it classifies each held-out image correctly.

        designs: at most so many are still to be trained, with this one.  Shapes: -> (seeds, images).
        """
        correct = []
        recipe = replace(self.run.recipe, drop_path=0.0)  # drop path is among the arguments of the design
        for number, seed in enumerate(self.run.seeds):
            folder = self.folder(design, seed)
            if not (folder / DESCRIPTION).exists():
                yield f"{design}, seed {seed}{self.outlook(designs * len(self.run.seeds) - number)}"
                update_design_path(folder, design.folder)
                execution = asdict(replace(self.execution, resume=True, overwrite=False))
                run = self.run.training(str(design.folder), recipe, seed)
                with closing(train_to_folder(run, folder, **execution)) as events:  # type: ignore[type-var]
                    yield from self.within_budget(events) if not self.seconds else events
            shutil.rmtree(folder / "best", ignore_errors=True)  # the last weights are evaluated; this saves half the space
            description = describe(folder)
            self.seconds.append(description.seconds or 0.0)
            if len(self.seconds) == 1:
                self.refuse_small_budget(self.seconds[0])
            correct.append(scores_held_out(self, design, seed))
        return np.stack(correct)

    def folder(self, design: Design, seed: int) -> Path:
        """The folder of a training."""
        return self.out / "trainings" / design.name / f"seed-{seed}"

    def line(self, design: Design, trial: Trial) -> str:
        """A complete trial in a line."""
        gain = ""
        if trial.against is not None:
            other = f"units {', '.join(map(str, trial.against))}" if trial.against else "the baseline"
            gain = f", {signed(trial.difference)} over {other}"
        return f"{design}: {percent(student(trial.accuracies))}{gain}: {trial.verdict}"

    def save_model(self, design: Design) -> None:
        """Copy the first seed's model of a design to ``OUT/model``."""
        source, target = self.folder(design, self.run.seeds[0]), self.out / "model"
        description = describe(source)
        facts = {**description.facts, "run": {**description.facts["run"], "model": self.run.model}}
        write_atomic(target / WEIGHTS, (source / WEIGHTS).read_bytes())
        write_atomic(target / DESCRIPTION, encoded(replace(description, facts=facts)))

    # The budget

    def outlook(self, trainings: int) -> str:
        """How long so many trainings take; empty before the first."""
        if not self.seconds:
            return ""
        each = float(np.mean(self.seconds))
        budget = f"; the budget has {clock(max(0.0, self.remaining()))} left" if self.run.minutes else ""
        return f"; a training takes {clock(each)}; at most {trainings} left, in all {clock(trainings * each)}{budget}"

    def remaining(self) -> float:
        """Seconds that are left of the budget."""
        return 60 * (self.run.minutes or math.inf) - sum(self.seconds)

    def over_budget(self, design: Design) -> str:
        """Why the design is not trained; empty if it is.

        Only trainings before it in the search count, so that a resumed search decides as one that was not stopped.
        """
        needed = len(self.run.seeds) * float(np.mean(self.seconds)) if self.seconds else 0.0
        if needed <= self.remaining():
            return ""
        return f"the budget of {self.run.minutes:g} minutes ends before {design}, which takes about {clock(needed)}"

    def within_budget(self, events: Iterator[str | Progress]) -> Iterator[str | Progress]:
        """The events of the first training.  Errors: UserError once it is clear that the baseline is over the budget."""
        started_at = time.monotonic()
        for event in events:
            if isinstance(event, Progress) and event.step >= FORESEEN * event.steps:
                self.refuse_small_budget((time.monotonic() - started_at) * event.steps / event.step)
            yield event

    def refuse_small_budget(self, seconds: float) -> None:
        """Errors: UserError if the baseline's trainings, of so many seconds each, are over the budget."""
        needed = len(self.run.seeds) * seconds
        if self.run.minutes and needed > 60 * self.run.minutes:
            raise UserError(
                f"the baseline alone takes about {clock(needed)} with {len(self.run.seeds)} seeds, and the budget is "
                f"{self.run.minutes:g} minutes: --resume with more --minutes, or search with fewer epochs or images"
            )


@dataclass(frozen=True)
class Design:
    """An architecture to train."""

    name: str
    units: Placement
    folder: Path
    added: tuple[int, ...]  # attentions that replaced convolutions, in each stage
    word: str
    parameters: int

    def __str__(self) -> str:
        matched = ", parameters matched" if self.name.endswith("-matched") else ""
        return f"({', '.join(map(str, self.added))}) {self.word}{matched}"


def final_result(bench: Bench, search: Search, matched: Sequence[Trial], over_budget: str) -> Buildup:
    """The table of trials, and baseline, winner and the winner's control on the test images."""
    run = bench.run
    trials = [*search.trials, *matched]
    designs = [bench.design(trial.units, matched=trial.verdict == "control") for trial in trials]
    roles = {"baseline": designs[0]}
    if search.kept:
        roles["winner"] = bench.design(search.best.units)
    if matched:
        roles["matched"] = designs[len(search.trials)]
    correct = {role: np.stack([scores_on_test(bench, design, seed) for seed in run.seeds]) for role, design in roles.items()}
    test = {role: over_both(answers) for role, answers in correct.items()}
    gains = {role: gain_over_both(answers, correct["baseline"]) for role, answers in correct.items() if role != "baseline"}
    model = load_model(str(bench.folder(roles.get("winner", designs[0]), run.seeds[0])))
    data = load_data(run.data, model=model, split="test", root=bench.execution.data_root)
    facts = provenance(
        model, data, images=data.images, seeds=list(run.seeds), held_out_images=bench.held_out_images,
        margin=run.margin, patience=run.patience, controls=run.controls, **run.attention,
    ) | {
        "winner": list(search.best.units),
        "test": test,
        "test_gain": gains,
        "stopped": over_budget or "the rule was followed to its end",
        "trainings": len(bench.seconds),
        "seconds": round(sum(bench.seconds), 1),
        "interval_of_both": "half-widths over seeds and over images, added as squares",
    }  # fmt: skip
    table = [trial_row(design, trial) for design, trial in zip(designs, trials, strict=True)]
    accuracies = np.array([trial.accuracies for trial in trials])
    return Buildup(run.model, table, claims(trials, gains, len(run.seeds)), facts, {"accuracy": accuracies})


def trial_row(design: Design, trial: Trial) -> Row:
    """A trial as a row of the table."""
    return {
        "candidate": design.name,
        "layout": ", ".join(map(str, design.added)),
        "word": design.word,
        "units": ", ".join(map(str, trial.units)),
        "attentions": len(trial.units),
        "parameters": design.parameters,
        "seeds": len(trial.accuracies),
        **columns("accuracy", student(trial.accuracies)),
        "against": "" if trial.against is None else placement_name(trial.against),
        **columns("difference", trial.difference),
        "detectable": trial.detectable,
        "verdict": trial.verdict,
    }


def placement_name(placement: Placement) -> str:
    """The name of a design.

    >>> placement_name(()), placement_name((3, 5))
    ('baseline', 'units-3-5')
    """
    return "-".join(["units", *map(str, placement)]) if placement else "baseline"


def scores_on_test(bench: Bench, design: Design, seed: int) -> np.ndarray:
    """Whether each test image is classified correctly, 0 or 1.  Shapes: -> (n,)."""
    return scores(bench.folder(design, seed), bench.run.data, bench.execution)


def scores_held_out(bench: Bench, design: Design, seed: int) -> np.ndarray:
    """Whether each image that this training held out is classified correctly, 0 or 1.  Shapes: -> (n,)."""
    run = bench.run.training(str(design.folder), bench.run.recipe, seed)
    return scores(bench.folder(design, seed), held_out_images(run, bench.execution), bench.execution)


def designs_left(search: Search, controls: bool) -> int:
    """How many designs are still to be trained at most, with the present candidate."""
    may_be_kept = search.left - (search.candidate == ())
    return search.left + controls * (len(search.kept) + may_be_kept)


def update_design_path(training: Path, design: Path) -> None:
    """Write the present folder of the design into an unfinished training, because the search may have been moved."""
    run = read_record(training / RUN, Run)
    if run is not None and run.model != str(design):
        write_atomic(training / RUN, encoded(replace(run, model=str(design))))


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Within the block no other search uses the folder; the operating system releases the lock when the process ends.

    Errors: UserError if another search uses it.
    """
    try:
        import fcntl

        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY)
    except (ImportError, OSError):  # no lock; a folder that cannot be written is reported by the first who writes
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another search uses {out}: wait for it, or choose another --out") from error
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):
            out.rmdir()  # if nothing was written
