"""The trainings of the series: what `trainings.toml` lists, and which of them are complete."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backlight
from backlight.training.run import Run

HERE = Path("examples/paper")


@dataclass(frozen=True)
class Planned:
    """One training of the series."""

    folder: Path
    run: Run
    seconds: float  # of one core, without evaluations; 0: not known

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train."""
        return (self.folder / "model.json").exists()


def read(file: str) -> dict[str, Any]:
    """A TOML file beside this one."""
    return tomllib.loads((HERE / file).read_text())


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
        run = Run(
            model=model["model"], recipe=recipe, data=data, limit=options.limit, fraction=fraction, hold=hold,
            snapshots=tuple(snapshots), seed=int(seed),
        )  # fmt: skip
        passes = recipe.epochs * (fraction if hold == "epochs" else 1.0) * (options.limit or 50_000) / 50_000
        yield Planned(options.out / options.scale / name / f"seed-{seed}", run, model.get("seconds", 0) * passes)


def data_name(options: argparse.Namespace) -> str:
    """The data as results record it: a name, or a link in the folder of results, so that no path of a machine is recorded."""
    if not Path(options.data).is_dir():
        return str(options.data)
    link: Path = options.out / "data"
    if options.stage != "plan" and link.resolve() != Path(options.data).resolve():
        options.out.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(Path(options.data).resolve(), target_is_directory=True)
    return str(link)
