"""The studies of the trained models: `studies/` says what is measured, `studies.toml` of which trainings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from series import HERE, Planned, read

from backlight.study.config import Config, read_config
from backlight.study.run import run_study
from backlight.study.settings import StudySettings

STUDIES = ("accuracy", "units", "robustness", "warmup", "curvature", "published", "published-warmup")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """A study, and the folders of its models."""

    name: str
    config: Config
    folders: list[Path]

    @property
    def trained(self) -> list[str]:
        """The models that are there."""
        return [str(folder) for folder in self.folders if (folder / "model.json").exists()]

    @property
    def missing(self) -> list[str]:
        """The others, as ``MODEL/SEED``."""
        return [training_of(str(folder)) for folder in self.folders if str(folder) not in self.trained]


def analyse(series: Sequence[Planned], options: argparse.Namespace, data: str, say: Say) -> int:
    """Run every study of what is trained, each into its folder; what is there is not run again.

    Returns how many cells failed.
    """
    failed = 0
    shared = {"data": data, "data_root": options.data_root, "device": options.device}
    for study in planned_studies(series, options):
        out = results_folder(options) / study.name
        settings = StudySettings(**{**study.config.shared, **shared})
        for done in run_study(study.trained, study.config.analyses, settings, out) if study.trained else ():
            failed += done.failed
            say(f"{study.name}: {done.model} {done.analysis}: {done.state}")
        for training in study.missing:
            say(f"{study.name}: {training} is not trained yet: {train_command(training, options.scale)}")
    return failed


def planned_studies(series: Sequence[Planned], options: argparse.Namespace) -> Iterator[Study]:
    """The studies in the order in which they run, in the size that is chosen."""
    about, size = read("studies.toml"), "quick" if options.quick else options.scale
    for name in STUDIES:
        moment = about["moment"].get(name, "")
        of_models = [each for wanted in about["models"][name] for each in series if wanted in names_of(each)]
        folders = [trained_folder(each, options) / moment for each in of_models]
        yield Study(name, resized(read_config(HERE / "studies" / f"{name}.toml"), about["sizes"].get(size, {})), folders)


def names_of(training: Planned) -> tuple[str, str]:
    """How `studies.toml` can name a training: by its model, or with its seed."""
    return training.folder.parent.name, training_of(str(training.folder))


def resized(config: Config, size: Mapping[str, Any]) -> Config:
    """A study with other values of the settings that it has."""
    analyses = {name: {**own, **size.get(name, {})} for name, own in config.analyses.items()}
    shared = {name: size.get(name, value) for name, value in config.shared.items()}
    return Config(config.models, analyses, shared, config.out)


def trained_folder(training: Planned, options: argparse.Namespace) -> Path:
    """Where a trained model is read: --trained, for instance the shipped weights, or where it was trained."""
    if options.trained is None:
        return training.folder
    return Path(options.trained) / training.folder.parent.name / training.folder.name


def results_folder(options: argparse.Namespace) -> Path:
    """The folder of all studies; another for other sizes and for other weights."""
    out: Path = options.out
    return out / options.scale / ("quick" if options.quick else "shipped" if options.trained else "results")


def read_moments() -> list[str]:
    """The folders of the snapshots that are analysed, in that of a training."""
    return list(dict.fromkeys(read("studies.toml")["moment"].values()))


def with_results(folder: Path) -> dict[str, Path]:
    """The studies in a folder that have a result: name -> folder."""
    return {name: folder / name for name in STUDIES if any((folder / name).glob("*/*/result.json"))}


def training_of(folder: str) -> str:
    """The training that a folder belongs to, as `run.py --only` names it.

    >>> training_of("runs/paper/small/vit/seed-0/snapshots/warmup")
    'vit/0'
    """
    parts = Path(folder).parts
    at = next(i for i, part in enumerate(parts) if part.startswith("seed-"))
    return f"{parts[at - 1]}/{parts[at].removeprefix('seed-')}"


def train_command(training: str, scale: str) -> str:
    """How to train it."""
    return f"python examples/paper/run.py --stage train --scale {scale} --data FOLDER --only {training}"
