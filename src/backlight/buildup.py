"""Build-up: which convolutions of a CNN are better replaced by attention?  The paper's rule as a search.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), section 4.1, figure 12a, and the README of their repository:
replace convolutions by attention alternately, from the end; where that does not improve, go on at the end of an earlier stage.
Each candidate is trained from scratch with several seeds, judged on images held out of the training set, and kept where it is
better by more than the seeds' noise.

    OUT/run.json                        what was asked
    OUT/designs/NAME/model.json         an architecture: a MODEL without weights
    OUT/trainings/NAME/seed-N/          its training, as `backlight train` writes it
    OUT/buildup/                        the result
    OUT/model/                          the winner, of the first seed
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from .anatomy import evaluating, spell, units
from .buildup_rule import Ends, Layout, Search, Trial, places
from .data import load_data
from .data import preprocessing as image_format
from .drawing import KIND_COLOUR, LEGEND
from .errors import UserError
from .evidence import evidence
from .models.cost import parameters
from .models.preprocessing import preprocessing_of
from .models.saved import DESCRIPTION, PREPROCESSING, WEIGHTS, describe, saved_folder
from .models.surgery import drop_original, hybridize, surgery_of
from .models.zoo import load_model
from .numerics.bootstrap import mean_interval
from .numerics.student import student
from .progress import clock
from .result import Claim, Result, Row, columns, plain
from .runs import RUN, Progress, Run, complete, local_device, made, make_ready, train_to_folder
from .whole import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Images at once when a finished model is tested.
BATCH = 256
#: Share of the first training after which its length is known well enough to hold the budget against it.
FORESEEN = 0.1


# The search in a folder


@dataclass(frozen=True)
class BuildupRun(Run):
    """What was asked; a search goes on only with the same.  ``seed`` is of no account: ``seeds`` are trained in turn.

    held_out: the share of the training images on which candidates are judged; the test images are for the end, once.
    heads, dim_head, window: as `hybridize` takes them; heads are 3/64 of a branch's width by default, and so grow with depth.
    """

    held_out: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2)
    heads: int | None = None
    dim_head: int = 64
    window: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(
                f"a build-up needs one seed or more, each given once, and not {', '.join(map(str, self.seeds)) or 'none'}"
            )
        if not self.held_out:
            raise UserError(
                "a build-up chooses by accuracy, which flatters on the images it chose by: hold some training images out, "
                "--held-out 0.1"
            )

    @property
    def attention(self) -> dict[str, Any]:
        """How the new attention is made."""
        return {"heads": self.heads, "dim_head": self.dim_head, "window": self.window}

    def training(self, model: str, seed: int) -> Run:
        """One training of a design, whose arguments have the drop path already."""
        shared = {field.name: getattr(self, field.name) for field in fields(Run)}
        return Run(**shared | {"model": model, "seed": seed, "recipe": replace(self.recipe, drop_path=0.0)})


def buildup_to_folder(
    asked: BuildupRun,
    out: Path,
    *,
    margin: float = 0.0,
    patience: int = 0,
    controls: bool = True,
    minutes: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    data_root: str | None = None,
    **training: Any,
) -> Iterator[str | Progress]:
    """Search from the model that ``asked`` names; yields lines to print, and how far each training is.

    margin: what a replacement must gain for sure, a fraction of the images.  patience: see `candidates`.
    controls: train what is kept once more with ``match_parameters``, to tell attention's share from that of its parameters.
    minutes: of training, over all starts; nothing is begun that is not expected to end within them.
    margin, patience, controls and minutes may change when a search goes on.  training: settings of `train_to_folder`.
    Errors: UserError for what cannot be searched or gone on with.
    """
    refuse_bad_settings(margin, patience, minutes)
    with alone(out):
        complete(asked, out, resume=resume, overwrite=overwrite)
        bench = Bench(asked, out, minutes, {"device": device, "data_root": data_root, **training})
        make_ready(asked, out, overwrite=overwrite)  # now that the rest is right
    with alone(out):  # once more: overwriting makes the folder anew
        yield from (f"{sentence}: it stays" for sentence in bench.refused)
        if len(asked.seeds) == 1:
            yield "one seed: nothing is known of the noise between seeds, and the plain difference decides"
        search = Search(bench.stages, margin=margin, patience=patience)
        stopped = ""
        while search.wanted is not None and not stopped:
            design = bench.design(search.wanted)
            stopped = bench.over_budget(design)
            if not stopped:
                trial = search.tell((yield from bench.trained(design, ahead(search, controls))))
                yield bench.told(design, trial)
        matched: list[Trial] = []
        chosen = sorted(search.kept, key=lambda trial: trial is not search.best) if controls else []
        for number, kept in enumerate(chosen):  # the winner's first
            design = bench.design(kept.units, matched=True)
            stopped = stopped or bench.over_budget(design)
            if stopped:
                break
            accuracies = yield from bench.trained(design, len(chosen) - number)
            matched.append(Trial.compared(kept.units, accuracies, search.trials[0], control=True))
            yield bench.told(design, matched[-1])
        if stopped:
            yield f"{stopped}; --resume with more --minutes goes on"
        result = concluded(bench, search, matched, stopped, {"margin": margin, "patience": patience, "controls": controls})
        result.save(out / "buildup")
        bench.keep(bench.design(search.best.units))
        yield summary(result)


class Bench:
    """The baseline, what can be made of it, and the trainings done so far."""

    def __init__(self, asked: BuildupRun, out: Path, minutes: float | None, settings: dict[str, Any]) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("a build-up runs in one process: start it without torchrun, on the device of your choice")
        self.asked, self.out, self.minutes, self.settings = asked, out, minutes, settings
        first = replace(asked, seed=asked.seeds[0])
        ways = [settings.get("workers"), settings["data_root"], settings.get("download", False)]
        _, held, self.spec, self.model = made(first, *ways)
        self.held_images = held.images
        size = image_format(self.model)["input_size"]
        self.images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
        self.found = units(self.model, self.images)
        self.designs: dict[tuple[Layout, bool], Design] = {}
        self.stages, self.refused = self._operable()
        self.seconds: list[float] = []  # of each training, in the order of the search

    def _operable(self) -> tuple[list[list[int]], list[str]]:
        """`places` without those that surgery refuses, and why it does.  Errors: UserError if none is left."""
        stages, refused = places(self.found), []
        for stage in stages:
            for unit in list(stage):
                try:
                    self.hybrid((unit,))
                except UserError as error:
                    stage.remove(unit)
                    refused.append(str(error))
        if not any(stages):
            word = spell(self.found)
            because = (
                refused[0]
                if refused
                else f"no convolution follows another in a stage of {word!r}"
                if word
                else "it has no units"
            )
            raise UserError(f"{self.asked.model} has nothing to replace: {because}")
        return stages, refused

    def hybrid(self, layout: Layout, *, matched: bool = False) -> nn.Module:
        """The baseline with attention in these places, as if it had been designed so."""
        if not layout:
            return self.model
        settings: dict[str, Any] = {**self.asked.attention, "match_parameters": matched}
        return drop_original(hybridize(self.model, self.images, layout, **settings), self.images)

    def design(self, layout: Layout, *, matched: bool = False) -> Design:
        """The architecture, written down where it can be trained from."""
        if (layout, matched) not in self.designs:
            self.designs[layout, matched] = self.written(layout, matched)
        return self.designs[layout, matched]

    def written(self, layout: Layout, matched: bool) -> Design:
        """A design made for the first time since the search began."""
        name = "-".join(["units", *map(str, layout)] if layout else ["baseline"]) + ("-matched" if matched else "")
        model = self.hybrid(layout, matched=matched)
        folder = self.out / "designs" / name
        source = saved_folder(self.spec)
        cfg = preprocessing_of(model)
        description = {
            "model": describe(source)["model"] if source else self.spec,
            "num_classes": getattr(model, "num_classes", None),
            "preprocessing": {key: cfg[key] for key in PREPROCESSING if key in cfg},
            "surgery": surgery_of(model),
        }
        write_whole(folder / DESCRIPTION, json.dumps(plain(description), indent=2).encode())
        added = [sum(unit.index in layout for unit in stage) for _, stage in groupby(self.found, key=lambda unit: unit.stage)]
        return Design(name, layout, folder, tuple(added), spell(units(model, self.images)), parameters(model))

    def trained(self, design: Design, left: int) -> Generator[str | Progress, None, list[float]]:
        """Train a design with each seed that is not done; the accuracies on its held-out images, one a seed.

        left: designs to be trained at most, this one too.
        """
        found = []
        for number, seed in enumerate(self.asked.seeds):
            folder = self.folder(design, seed)
            if not (folder / DESCRIPTION).exists():
                yield f"{design}, seed {seed}{self.outlook(left * len(self.asked.seeds) - number)}"
                addressed(folder, design.folder)
                run = self.asked.training(str(design.folder), seed)
                with closing(train_to_folder(run, folder, resume=True, **self.settings)) as moments:  # type: ignore[type-var]
                    yield from self.within_budget(moments) if not self.seconds else moments
            shutil.rmtree(folder / "best", ignore_errors=True)  # the last weights are judged, and these would be as large again
            done = describe(folder)
            self.seconds.append(done["seconds"])
            if len(self.seconds) == 1:
                self.refuse_small_budget(done["seconds"])
            found.append(done["test"]["accuracy"][0])
        return found

    def folder(self, design: Design, seed: int) -> Path:
        """Where a training lies."""
        return self.out / "trainings" / design.name / f"seed-{seed}"

    def told(self, design: Design, trial: Trial) -> str:
        """A finished trial in a line."""
        change = ""
        if trial.against is not None:
            against = "the baseline" if not trial.against else ", ".join(map(str, trial.against))
            change = f", {signed(trial.difference)} over {against if not trial.against else f'units {against}'}"
        return f"{design}: {percent(student(trial.accuracies))}{change}: {trial.verdict}"

    def keep(self, design: Design) -> None:
        """Put the first seed's model of a design at ``OUT/model``."""
        source, place = self.folder(design, self.asked.seeds[0]), self.out / "model"
        description = describe(source)
        description["run"] |= {"model": self.asked.model}
        write_whole(place / WEIGHTS, (source / WEIGHTS).read_bytes())
        write_whole(place / DESCRIPTION, json.dumps(description, indent=2).encode())

    # The budget

    def outlook(self, trainings: int) -> str:
        """What is still to come, at most."""
        if not self.seconds:
            return ""
        each = float(np.mean(self.seconds))
        budget = f", {clock(max(0.0, self.remaining()))} of the budget" if self.minutes else ""
        return f"; a training takes {clock(each)}, left are at most {trainings} or {clock(trainings * each)}{budget}"

    def remaining(self) -> float:
        """Seconds of the budget."""
        return 60 * (self.minutes or math.inf) - sum(self.seconds)

    def over_budget(self, design: Design) -> str:
        """Why the design is not trained; empty where it is.

        Only what came before it in the search counts, so that a search that was killed decides as one that was not.
        """
        needed = len(self.asked.seeds) * float(np.mean(self.seconds)) if self.seconds else 0.0
        if needed <= self.remaining():
            return ""
        return f"the budget of {self.minutes:g} minutes ends before {design}, which takes about {clock(needed)}"

    def within_budget(self, moments: Iterator[str | Progress]) -> Iterator[str | Progress]:
        """The first training, ended as soon as it is clear that the baseline takes longer than the budget."""
        began = time.monotonic()
        for moment in moments:
            if isinstance(moment, Progress) and moment.step >= FORESEEN * moment.steps:
                self.refuse_small_budget((time.monotonic() - began) * moment.steps / moment.step)
            yield moment

    def refuse_small_budget(self, seconds: float) -> None:
        """Errors: UserError if the baseline's trainings, of so many seconds each, do not fit into the budget."""
        needed = len(self.asked.seeds) * seconds
        if self.minutes and needed > 60 * self.minutes:
            raise UserError(
                f"the baseline alone takes about {clock(needed)} with {len(self.asked.seeds)} seeds, and the budget is "
                f"{self.minutes:g} minutes: --resume with more --minutes, or search with fewer epochs or images"
            )


@dataclass(frozen=True)
class Design:
    """An architecture to be trained."""

    name: str
    units: Layout
    folder: Path
    added: tuple[int, ...]  # attentions in the place of convolutions, a stage each
    word: str
    parameters: int

    def __str__(self) -> str:
        matched = ", parameters matched" if self.name.endswith("-matched") else ""
        return f"({', '.join(map(str, self.added))}) {self.word}{matched}"


# What was found


def concluded(bench: Bench, search: Search, matched: Sequence[Trial], stopped: str, settings: dict[str, Any]) -> Buildup:
    """The result: the table of trials, and baseline, winner and the winner's control on the test images."""
    asked = bench.asked
    trials = [*search.trials, *matched]
    designs = [bench.design(trial.units, matched=trial.verdict == "control") for trial in trials]
    roles = {"baseline": designs[0]}
    if search.kept:
        roles["winner"] = bench.design(search.best.units)
    if matched:
        roles["matched"] = designs[len(search.trials)]
    right = {role: np.stack([tested(bench, design, seed) for seed in asked.seeds]) for role, design in roles.items()}
    test = {role: over_both(correct) for role, correct in right.items()}
    gains = {role: over_both(correct - right["baseline"]) for role, correct in right.items() if role != "baseline"}
    folder = bench.folder(roles.get("winner", designs[0]), asked.seeds[0])
    model = load_model(str(folder))
    data = load_data(asked.data, model=model, split="test", root=bench.settings["data_root"], batch_size=BATCH)
    facts = evidence(
        model, data, images=data.images, seeds=list(asked.seeds), held_out_images=bench.held_images, resamples=1000, seed=0,
        **settings, **asked.attention,
    ) | {
        "winner": list(search.best.units),
        "test": test,
        "test_gain": gains,
        "stopped": stopped or "the rule was followed to its end",
        "trainings": len(bench.seconds),
        "seconds": round(sum(bench.seconds), 1),
        "interval_of_both": "half-widths over seeds and over images, added as squares",
    }  # fmt: skip
    table = [row(design, trial) for design, trial in zip(designs, trials, strict=True)]
    accuracies = np.array([trial.accuracies for trial in trials])
    return Buildup(asked.model, table, claims(trials, gains), facts, {"accuracy": accuracies})


def row(design: Design, trial: Trial) -> Row:
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
        "against": ""
        if trial.against is None
        else "-".join(["units", *map(str, trial.against)] if trial.against else ["baseline"]),
        **columns("difference", trial.difference),
        "detectable": trial.detectable,
        "verdict": trial.verdict,
    }


def claims(trials: Sequence[Trial], gains: dict[str, dict[str, Any]]) -> list[Claim]:
    """The paper's, as far as the search went.  The first was fixed beforehand, so no choice flatters it."""
    points = "percentage points of accuracy"
    found = []
    if len(trials) > 1:
        found.append(
            Claim.of_sign(
                "positive",
                [100 * x for x in trials[1].difference],
                statement=f"Attention in the place of unit {trials[1].units[0]}, where the rule begins, improves the baseline.",
                source="Section 4.1, figure 12a",
                quantity=f"{points} on held-out images, paired over seeds",
            )
        )
    statements = {
        "winner": "The network that the build-up rule finds is more accurate than its baseline.",
        "matched": "It is so too with attention of no more parameters than the convolutions had.",
    }
    for role, gain in gains.items():
        found.append(
            Claim.of_sign(
                "positive",
                [100 * x for x in gain["both"]],
                statement=statements[role],
                source="Section 4.1, figure 12a",
                quantity=f"{points} on the test images, paired over seeds and images",
            )
        )
    return found


def tested(bench: Bench, design: Design, seed: int) -> np.ndarray:
    """Whether each test image is told right, 0 or 1.  Shapes: -> (n,)."""
    from .study import device_named

    device = device_named(local_device(bench.settings["device"]))
    model = load_model(str(bench.folder(design, seed)))
    data = load_data(bench.asked.data, model=model, split="test", root=bench.settings["data_root"], batch_size=BATCH)
    with evaluating(model.to(device)), torch.inference_mode():
        right = [model(images.to(device)).argmax(1).cpu() == labels for images, labels in data]
    return torch.cat(right).double().numpy()


def over_both(scores: np.ndarray) -> dict[str, Ends]:
    """The mean of scores with its interval over seeds, over images, and over both.

    Over seeds: Student's, the images fixed; over images: the bootstrap, the seeds fixed; over both: the two half-widths
    added as squares, which counts the noise that is of a seed and an image together twice, and so errs to the wide side.
    Shapes: (S, n).
    """
    value, low, high = student(scores.mean(1).tolist())
    _, least, most = map(float, mean_interval(scores.mean(0)))
    both = value - math.hypot(value - low, value - least), value + math.hypot(high - value, most - value)
    return {"seeds": (value, low, high), "images": (value, least, most), "both": (value, *both)}


@dataclass(frozen=True)
class Buildup(Result):
    """A row a trial, in the order of the search, the controls last; accuracies on held-out images, intervals over seeds.

    ``arrays["accuracy"]`` (rows, seeds).
    """

    analysis: ClassVar[str] = "buildup"
    panels: ClassVar[tuple[str, ...]] = ("accuracy",)

    def _draw(self, ax: Axes, panel: str) -> None:
        """Figure 12a: accuracy against the number of attentions; the kept path a line, the rejected open, controls grey."""
        from matplotlib.ticker import MaxNLocator

        drawn: dict[int, int] = {}  # how many stand at each number of attentions
        for name, look in LOOKS.items():
            rows = [row for row in self.table if VERDICTS[row["verdict"]] == name]
            places = []
            for row in rows:
                drawn[row["attentions"]] = drawn.get(row["attentions"], 0) + 1
                places.append(row["attentions"] + 0.16 * (drawn[row["attentions"]] - 1))
                if name != "parameters matched":
                    label(ax, row, places[-1])
            if rows:
                ends = [[100 * row[f"accuracy{end}"] for row in rows] for end in ("", "_low", "_high")]
                value, low, high = np.where(np.isfinite(ends), ends, np.nan)
                ax.errorbar(places, value, [value - low, high - value], elinewidth=0.7, label=name, **look)
        ax.set(xlabel="Attentions in the place of convolutions", ylabel="Accuracy on held-out images (%)")
        ax.set_xlim(-0.2, max(drawn) + 0.9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(**LEGEND)


#: How the figure shows rows, and which of them.
LOOKS: dict[str, dict[str, Any]] = {
    "kept": {"fmt": "o-", "color": KIND_COLOUR["attention"], "zorder": 3},
    "rejected": {"fmt": "o", "color": KIND_COLOUR["attention"], "markerfacecolor": "white", "zorder": 2},
    "parameters matched": {"fmt": "s", "color": "0.6", "zorder": 1},
}
VERDICTS = {"baseline": "kept", "keep": "kept", "reject": "rejected", "control": "parameters matched"}


def label(ax: Axes, row: Row, x: float) -> None:
    """A layout beside its mark; above the line that comes to it from the lower left."""
    on_line: dict[str, Any] = {"xytext": (-2, 2), "ha": "right"}
    where = on_line if row["verdict"] == "keep" else {"xytext": (4, 0), "va": "center"}
    spot = (x, 100 * row["accuracy"])
    text = f"({row['layout'].replace(' ', '')})"
    ax.annotate(text, spot, textcoords="offset points", fontsize=5, color="0.3", zorder=4, **where)


# Small questions


def summary(result: Buildup) -> str:
    """The end of the search in a line."""
    images, test = result.evidence["images"], result.evidence["test"]
    if "winner" not in test:
        return f"no replacement was kept; the baseline on {images} test images: {percent(test['baseline']['both'])}"
    gain = signed(result.evidence["test_gain"]["winner"]["both"])
    word = next(row["word"] for row in reversed(result.table) if row["verdict"] == "keep")
    return f"{word} on {images} test images: {percent(test['winner']['both'])}, {gain} over the baseline"


def ahead(search: Search, controls: bool) -> int:
    """How many designs there are at most from the wanted one on."""
    candidates_left = search.left - (search.wanted == ())
    return search.left + controls * (len(search.kept) + candidates_left)


def percent(ends: Ends) -> str:
    """An accuracy for people, its interval where it has one."""
    value, low, high = (100 * x for x in ends)
    return f"{value:.1f}%" + (f" [{low:.1f}, {high:.1f}]" if math.isfinite(low + high) else "")


def signed(ends: Ends) -> str:
    """A difference of accuracies for people."""
    value, low, high = (100 * x for x in ends)
    return f"{value:+.1f} points" + (f" [{low:+.1f}, {high:+.1f}]" if math.isfinite(low + high) else "")


def addressed(training: Path, design: Path) -> None:
    """Where the whole folder was moved since, an unfinished training is told where its design lies now."""
    try:
        request = json.loads((training / RUN).read_bytes())
    except (OSError, ValueError):
        return
    if request.get("model") != str(design):
        write_whole(training / RUN, (json.dumps(request | {"model": str(design)}, indent=1) + "\n").encode())


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Within the block no other search has the folder; the lock is the system's, and ends with the process.

    Errors: UserError if another has it.
    """
    try:
        import fcntl

        out.mkdir(parents=True, exist_ok=True)
        place = os.open(out, os.O_RDONLY)
    except (ImportError, OSError):  # not to be locked: what is wrong with the folder is said by the first who writes
        yield
        return
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another search is at work in {out}: wait for it, or choose another --out") from error
        yield
    finally:
        os.close(place)
        with suppress(OSError):
            out.rmdir()  # where nothing was written


def refuse_bad_settings(margin: float, patience: int, minutes: float | None) -> None:
    if not (math.isfinite(margin) and 0 <= margin < 1):
        raise UserError(f"the margin is a fraction of the images from 0 up to, but not, 1, and not {margin}")
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
        raise UserError(f"the patience is a whole number, 0 or more, and not {patience!r}")
    if minutes is not None and not minutes > 0:
        raise UserError(f"the budget is a number of minutes above 0, and not {minutes}")
