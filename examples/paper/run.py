"""The trainings behind the claims, one after another; a second call resumes.  Run it from the root of the repository.

    python examples/paper/run.py --stage train --scale small --data FOLDER          # a CPU: hours
    python examples/paper/run.py --stage train --scale paper --data-root DIR        # the paper's models and recipe: GPUs
    python examples/paper/run.py --stage plan                                       # what would be trained, and what is

`trainings.toml` beside this file lists models, recipe and order.  Each training is a folder OUT/SCALE/MODEL/seed-N, as
`backlight train` writes it.  Ctrl-C and SIGTERM write a checkpoint, and the exit code is 130.
"""

from __future__ import annotations

import argparse
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import backlight
from backlight.errors import UserError

HERE = Path("examples/paper")
LOG_SECONDS = 60.0  # between two lines of one training


@dataclass(frozen=True)
class Planned:
    """One training of the series."""

    folder: Path
    run: backlight.Run
    seconds: float  # of one core, without evaluations; 0: not known

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train."""
        return (self.folder / "model.json").exists()


def main() -> int:
    """Run the stage; 0: complete, 1: a training failed, 130: stopped."""
    options = arguments()
    scale = tomllib.loads((HERE / "trainings.toml").read_text())[options.scale]
    series = list(planned(scale, options))
    if options.stage == "plan":
        show_plan(series)
        return 0
    try:
        return train(series, options)
    except KeyboardInterrupt:
        say("stopped; the same command resumes")
        return 130


def planned(scale: Mapping[str, Any], options: argparse.Namespace) -> Iterator[Planned]:
    """The trainings in their order."""
    changes = {**scale["recipe"], **({"epochs": options.epochs} if options.epochs else {})}
    recipe = backlight.recipe(changes.pop("name"), **changes)
    data = data_name(options)
    for entry in options.only or scale["order"]:
        name, _, seed = entry.partition("/")
        own = scale["models"][name]
        model = {**scale["models"].get(own.get("like"), {}), **own}
        fraction, hold = model.get("fraction", 1.0), model.get("hold", "epochs")
        snapshots = [s for s in model.get("snapshots", scale["snapshots"]) if not s.isdigit() or int(s) <= recipe.epochs]
        run = backlight.Run(
            model=model["model"], recipe=recipe, data=data, limit=options.limit, fraction=fraction, hold=hold,
            snapshots=tuple(snapshots), seed=int(seed),
        )  # fmt: skip
        passes = recipe.epochs * (fraction if hold == "epochs" else 1.0) * (options.limit or 50_000) / 50_000
        yield Planned(options.out / options.scale / name / f"seed-{seed}", run, model.get("seconds", 0) * passes)


def data_name(options: argparse.Namespace) -> str:
    """The data as the trainings record it: a name, or a link in the folder of results, so that no path of a machine is kept."""
    if not Path(options.data).is_dir():
        return str(options.data)
    link: Path = options.out / "data"
    if options.stage == "train" and link.resolve() != Path(options.data).resolve():
        options.out.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(Path(options.data).resolve(), target_is_directory=True)
    return str(link)


def train(series: list[Planned], options: argparse.Namespace) -> int:
    """Train what is not complete; a training that fails is named, and the next one starts."""
    failed = 0
    for number, training in enumerate(series, 1):
        if training.complete:
            continue
        left = sum(each.seconds for each in series if not each.complete) / 3600
        say(f"{number} of {len(series)}: {training.folder}" + (f"; {left:.1f} core hours left" if left else ""))
        try:
            follow(training, options)
        except UserError as error:
            failed += 1
            say(f"failed: {error}")
    say(f"{sum(training.complete for training in series)} of {len(series)} trainings are complete")
    return int(failed > 0)


def follow(training: Planned, options: argparse.Namespace) -> None:
    """Train, or resume; print a line a minute and after each evaluation."""
    execution = {"threads": options.threads, "device": options.device, "data_root": options.data_root}
    shown = time.monotonic()
    for event in backlight.train_to_folder(training.run, training.folder, resume=True, checkpoint_seconds=300, **execution):
        if isinstance(event, str):
            say(event)
        elif "accuracy" in event.text or time.monotonic() - shown > LOG_SECONDS:
            shown = time.monotonic()
            say(f"{training.folder.parent.name}/{training.run.seed} {event.text}")


def show_plan(series: list[Planned]) -> None:
    """A line for each training: core hours, state, model."""
    for each in series:
        state = "complete" if each.complete else "started" if each.folder.exists() else ""
        print(f"{each.seconds / 3600:6.2f} h  {state:8}  {each.folder.parent.name}/{each.run.seed}  {each.run.model}")
    print(f"{sum(each.seconds for each in series) / 3600:6.2f} h in all")


def say(line: str) -> None:
    """A line with the time, at once."""
    print(f"{datetime.now():%m-%d %H:%M} {line}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("train", "plan"), required=True)
    parser.add_argument("--scale", choices=("small", "paper"), default="small")
    parser.add_argument("--data", default="cifar100", help="CIFAR-100: a folder, or cifar100 below --data-root")
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--threads", type=int, help="CPU threads; 1 is quicker while the machine does other work")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", metavar="MODEL/SEED", help="only these trainings, in this order")
    parser.add_argument("--epochs", type=int, help="instead of those in trainings.toml")
    parser.add_argument("--limit", type=int, help="train on so many images: a trial")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
