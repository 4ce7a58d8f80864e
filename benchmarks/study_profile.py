"""Where the time of a study of several models goes: in the models, in reading them, in images, in results with intervals.

    python benchmarks/study_profile.py --out benchmarks/results/study_profile.json

One process runs the study under cProfile and counts processor seconds, so that other work on the machine changes little.
``models`` is what the modules take without what their hooks read, ``reading`` what the reducers take of each batch, ``images``
decoding and preparation, ``results`` tables, claims and intervals (1,000 resamples), ``storing`` files and figures, ``loading``
models, ``units`` finding them, ``start`` the imports before the study, and ``rest`` everything else, such as later imports.
"""

from __future__ import annotations

import time

STARTED = time.process_time()

import argparse  # noqa: E402
import cProfile  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import pstats  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

from backlight.results.provenance import versions  # noqa: E402
from backlight.study.run import run_study  # noqa: E402
from backlight.study.settings import StudySettings  # noqa: E402

MODELS = (
    "resnet18", "resnet50", "convnext_atto", "mobilenetv3_small_100", "vit_tiny_patch16_224", "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224", "pit_ti_224",
)  # fmt: skip
ANALYSES = ("fourier", "variance", "similarity", "attention", "calibration")
#: (a part, how the file of a function ends, its name): cumulative seconds of the outermost call.
PARTS = (
    ("modules", "nn/modules/module.py", "_wrapped_call_impl"),
    ("reading", "analyses/single_pass.py", "visit"),
    ("images", "backlight/inputs.py", "image_batches"),
    ("loading", "study/loaded.py", "model_of"),
    ("units", "analyses/single_pass.py", "readable_of"),
    ("results", "/measure.py", "result"),
    ("storing", "results/result.py", "save"),
)


def cumulative(stats: pstats.Stats, ending: str, name: str) -> float:
    """Seconds in the functions of this name, with what they call."""
    rows = stats.stats.items()  # type: ignore[attr-defined]
    return sum(row[3] for (file, _, function), row in rows if function == name and file.endswith(ending))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start = time.process_time() - STARTED
    settings = StudySettings(data="fashion", limit=options.images, pretrained=False, batch_size=32)
    profile = cProfile.Profile(time.process_time)
    with tempfile.TemporaryDirectory() as folder:
        profile.enable()
        outcomes = list(run_study(list(options.models), {name: {} for name in ANALYSES}, settings, Path(folder)))
        profile.disable()
    stats = pstats.Stats(profile)
    seconds = {part: cumulative(stats, ending, name) for part, ending, name in PARTS}
    total = stats.total_tt + start  # type: ignore[attr-defined]
    inside = seconds.pop("modules") - seconds["reading"]
    shares = {"models": inside, **seconds, "start": start}
    shares["rest"] = total - sum(shares.values())
    document = {
        "hardware": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": dict(versions()),
        "models": list(options.models),
        "images": options.images,
        "cells": sum(outcome.measured is not None for outcome in outcomes),
        "processor_seconds": round(total, 1),
        "shares": {part: round(value / total, 4) for part, value in shares.items()},
    }
    text = json.dumps(document, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
