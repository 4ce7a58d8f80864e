"""A study of 10,000 cells that is complete: how long its plan, its second run and reading it take, and with how much memory.

    python benchmarks/many_cells.py [--models 2500]

One model is measured; its results are copied under other names, each with the identity that belongs to the name.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ANALYSES = ("fourier", "variance", "lesion", "calibration")
WORD = "word:c ca?block=basic&dim=8&heads=1&stem=cifar&in_chans=1&num_classes=10&img_size=28"
WORDS = ["--no-pretrained", "--limit", "20", "--resamples", "50"]


def main() -> None:
    """Print a line a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=2500)
    parser.add_argument("--keep", type=Path, help="Write the study here and stop.")
    count = parser.parse_args().models
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "runs"
        names = [f"{WORD}&drop_path_rate={number / 1e6}" for number in range(count)]
        made = timed(lambda: make(out, names))
        print(f"{count * len(ANALYSES)} cells made in {made:.1f} s")
        file = Path(folder) / "study.toml"
        quoted = ", ".join(f'"{name}"' for name in names)
        file.write_text(f"models = [{quoted}]\nanalyses = {list(ANALYSES)}\n")
        for title, words in {
            "plan": ["study", str(file), *WORDS, "--out", str(out), "--plan"],
            "second run": ["study", str(file), *WORDS, "--out", str(out), "--quiet"],
        }.items():
            seconds, megabytes = measured([sys.executable, "-m", "backlight", *words])
            print(f"{title}: {seconds:.1f} s, {megabytes:.0f} MB")


def make(out: Path, names: list[str]) -> None:
    """A complete study of these models."""
    from backlight.records import encoded, plain
    from backlight.results.result import DOCUMENT, read_document
    from backlight.study.cells import home_of, result_folder
    from backlight.study.identity import source_digest
    from backlight.study.plan import plan
    from backlight.study.run import run_study
    from backlight.study.settings import StudySettings

    shared = StudySettings(pretrained=False, limit=20, resamples=50)
    requested = {name: {} for name in ANALYSES}
    for outcome in run_study(names[:1], requested, shared, out):
        assert not outcome.error, outcome.error
    first = plan(names[:1], requested, shared)
    home = home_of(out, first[0])
    for figure in [*home.rglob("*.png"), *home.rglob("*.pdf")]:
        figure.unlink()
    documents = {cell.analysis: read_document(result_folder(out, cell))[0] for cell in first}
    for cell in plan(names[1:], requested, shared):
        place = result_folder(out, cell)
        shutil.copytree(home / cell.analysis, place)
        document = documents[cell.analysis]
        (identity,) = document.provenance["identity"]["models"].values()
        own = {cell.model: {**identity, "source": source_digest(cell.model, cell, "")}}
        about = {**document.provenance, "identity": {**document.provenance["identity"], "models": own}}
        (place / DOCUMENT).write_bytes(encoded(replace(document, model=cell.model, provenance=plain(about))))


def timed(work) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory of a command in a process of its own."""
    code = "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); " \
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, r.returncode)"  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    megabytes, returned = done.stdout.split()
    assert returned == "0", done.stderr
    return time.perf_counter() - started, float(megabytes)


if __name__ == "__main__":
    main()
