"""The survey: every module of timm by its smallest architecture, with random weights, measured by five analyses.

    python examples/survey/run.py [--out runs/survey] [--engine processes:2] [--timeout 900]

One command, which resumes.  It runs the study of `survey.toml`, then `erf` of the same models over fewer images (each unit
takes a backward pass).  `backlight collect` makes the table and `summary.py` the page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backlight.progress import Display
from backlight.study.config import read_config
from backlight.study.run import run_study
from backlight.study.settings import StudySettings

HERE = Path(__file__).parent
ERF_IMAGES = 4


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/survey"))
    parser.add_argument("--engine", default="processes:1", help="here has no time limit.")
    parser.add_argument("--timeout", type=float, default=900, help="Seconds for a cell.")
    parser.add_argument("--models", type=int, help="Only the first so many.")
    words = parser.parse_args()
    config = read_config(HERE / "survey.toml")
    models = list(config.models)[: words.models]
    shared = StudySettings(**config.shared)
    how = {"engine": words.engine, "timeout": words.timeout if words.engine != "here" else None}
    failed = 0
    with Display() as show:
        for outcome in studies(models, config.analyses, shared, words.out, show=show, **how):
            failed += outcome.failed
            show(f"{outcome.model} {outcome.analysis}: {outcome.state}")
    sys.exit(5 if failed else 0)


def studies(models: Sequence[str], analyses: Any, shared: StudySettings, out: Path, **how: Any) -> Iterator[Any]:
    """The outcomes of both studies, a model at a time where that is possible."""
    yield from run_study(models, analyses, shared, out, **how)
    yield from run_study(models, {"erf": {}}, replace(shared, limit=ERF_IMAGES, batch_size=ERF_IMAGES), out, **how)


if __name__ == "__main__":
    main()
