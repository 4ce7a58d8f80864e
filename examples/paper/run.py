"""The paper, measured again: trainings, their analyses, and the page about them.  Run it from the root of the repository.

    python examples/paper/run.py --stage plan                                       # what would be trained, and what is
    python examples/paper/run.py --stage train --scale small --data FOLDER          # a CPU: hours
    python examples/paper/run.py --stage train --scale paper --data-root DIR        # the paper's models and recipe: GPUs
    python examples/paper/run.py --stage analyse --data FOLDER                      # what is trained; --quick: a trial
    python examples/paper/run.py --stage write                                      # docs/claims.md and docs/gallery

    python examples/paper/run.py --stage pack --only vit/0                          # the weights, for the repository

A second call resumes.  `trainings.toml` lists models, recipe and order; each training is a folder OUT/SCALE/MODEL/seed-N, as
`backlight train` writes it.  `studies.toml` and `studies/` say what is measured, `statements.toml` what decides each statement
of the paper.  Ctrl-C and SIGTERM write a checkpoint, and the exit code is 130.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import datetime
from pathlib import Path

from analyse import analyse, results_folder
from pack import pack
from series import Planned, data_name, planned, read
from store import store, store_hours
from write import write

import backlight
from backlight.errors import UserError

LOG_SECONDS = 60.0  # between two lines of one training


def main() -> int:
    """Run the stage; 0: complete, 1: a training failed, 5: an analysis failed, 130: stopped."""
    options = arguments()
    series = list(planned(read("trainings.toml")[options.scale], options))
    if options.stage == "plan":
        show_plan(series)
        return 0
    if options.stage == "write":
        write(options.scale)
        return 0
    if options.stage == "pack":
        for folder, size in pack(series, options):
            say(f"{folder}: {size / 1e6:.2f} MB")
        return 0
    try:
        if options.stage == "analyse":
            failed = analyse(series, options, data_name(options), say)
            if not options.quick:
                say(f"stored in {store(results_folder(options), options.scale)}; next: --stage write")
                store_hours([each.folder for each in series], options.scale)
            return 5 if failed else 0
        return train(series, options)
    except KeyboardInterrupt:
        say("stopped; the same command resumes")
        return 130


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
    parser.add_argument("--stage", choices=("plan", "train", "analyse", "write", "pack"), required=True)
    parser.add_argument("--scale", choices=("small", "paper"), default="small")
    parser.add_argument("--data", default="cifar100", help="CIFAR-100: a folder, or cifar100 below --data-root")
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--threads", type=int, help="CPU threads; 1 is quicker while the machine does other work")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", metavar="MODEL/SEED", help="only these trainings, in this order")
    parser.add_argument("--epochs", type=int, help="instead of those in trainings.toml")
    parser.add_argument("--limit", type=int, help="train on so many images: a trial")
    parser.add_argument("--trained", metavar="DIR", help="analyse DIR/MODEL/seed-N, for instance the shipped models")
    parser.add_argument("--quick", action="store_true", help="analyse in a few minutes: too small for most verdicts")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
