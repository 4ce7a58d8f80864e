"""A CNN, a ViT and an AlterNet of about equal size, trained alike: accuracy, NLL and ECE over seeds.

    python benchmarks/trainings.py --data fashion --recipe fashion --epochs 8 --runs runs/fashion --out benchmarks/results
    python benchmarks/trainings.py --data ../shared/data/cifar100 --recipe cifar_fast --fraction 0.2 --epochs 4 --seeds 0 ...

What was stopped goes on: trainings that are complete are not repeated.  Each is on one thread; intervals of a mean over seeds
are Student's, those of one seed the test's own over images.  CIFAR-100 lies outside the project; the second wants it there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from backlight.evidence import versions
from backlight.models.saved import describe
from backlight.numerics.student import student
from backlight.progress import followed
from backlight.recipes import recipe
from backlight.runs import Run, over_seeds

MODELS = {
    "resnet": "word:ccc ccc ccc?block=basic&dim=16",
    "vit": "vit_tiny_patch16_224?patch_size=4&embed_dim=64&depth=6&num_heads=4&class_token=false&global_pool=avg",
    "alternet": "word:ccc ccca ccca?block=basic&dim=16&heads=(1, 2, 4)&dim_head=16",
}


def summary(folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Accuracy, NLL and ECE of each seed with its interval over test images, and their means with theirs over seeds."""
    told = [describe(folder / f"seed-{seed}") for seed in seeds]
    tests = [{name: each["test"][name] for name in ("accuracy", "nll", "ece")} for each in told]
    over = {name: student([test[name][0] for test in tests]) for name in tests[0]} if len(seeds) > 1 else {}
    return {
        "model": told[0]["model"],
        "test_images": told[0]["test_images"],
        "seeds": dict(zip(seeds, tests, strict=True)),
        "mean": over,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion")
    parser.add_argument("--recipe", default="fashion")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    chosen = recipe(asked.recipe, epochs=asked.epochs, **({} if asked.recipe == "fashion" else {"drop_path": 0.0}))
    found = {}
    for name, model in MODELS.items():
        run = Run(model, asked.data, chosen, fraction=asked.fraction)
        settings = {"resume": True, "threads": 1, "device": "cpu"}
        followed(over_seeds(run, asked.runs / name, asked.seeds, **settings), name, quiet=False)
        found[name] = summary(asked.runs / name, asked.seeds)
    facts = {key: value for key, value in vars(asked).items() if key not in ("out", "runs")} | {"data": Path(asked.data).name}
    document = {**facts, "hardware": platform.machine(), "cores": os.cpu_count(), "versions": dict(versions()), "found": found}
    text = json.dumps(document, indent=1)
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / f"trainings_{facts['data']}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
