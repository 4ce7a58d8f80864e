"""A CNN, a ViT and an AlterNet of about equal size, trained in the same way: accuracy, NLL and ECE over seeds.

    python benchmarks/trainings.py --data fashion --recipe fashion --epochs 8 --runs runs/fashion --out benchmarks/results
    python benchmarks/trainings.py --data ../shared/data/cifar100 --recipe cifar_fast --fraction 0.2 --epochs 4 --seeds 0 ...

A second call resumes: complete trainings are not repeated.  Each training uses one thread.  Intervals of a mean over seeds are
Student's, those of one seed are over test images.  CIFAR-100 is not part of the project; the second command needs it there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from backlight.model_names.saved import describe
from backlight.numerics.student import student
from backlight.progress import Display
from backlight.recipes import recipe
from backlight.results.provenance import versions
from backlight.training.run import Run
from backlight.training.run_folder import over_seeds

MODELS = {
    "resnet": "word:ccc ccc ccc?block=basic&dim=16",
    "vit": "vit_tiny_patch16_224?patch_size=4&embed_dim=64&depth=6&num_heads=4&class_token=false&global_pool=avg",
    "alternet": "word:ccc ccca ccca?block=basic&dim=16&heads=(1, 2, 4)&dim_head=16",
}


def summary(folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Accuracy, NLL and ECE of each seed with intervals over test images, and their means with intervals over seeds."""
    models = [describe(folder / f"seed-{seed}") for seed in seeds]
    tests = [{name: model.test[name] for name in ("accuracy", "nll", "ece")} for model in models]
    means = {name: student([test[name][0] for test in tests]) for name in tests[0]} if len(seeds) > 1 else {}
    return {
        "model": models[0].model,
        "test_images": models[0].facts["test_images"],
        "seeds": dict(zip(seeds, tests, strict=True)),
        "mean": means,
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
    options = parser.parse_args()
    selected = recipe(options.recipe, epochs=options.epochs, **({} if options.recipe == "fashion" else {"drop_path": 0.0}))
    summaries = {}
    for name, model in MODELS.items():
        run = Run(model, selected, data=options.data, fraction=options.fraction)
        with Display() as show:
            for event in over_seeds(run, options.runs / name, options.seeds, resume=True, threads=1, device="cpu"):
                show(event)
        summaries[name] = summary(options.runs / name, options.seeds)
    facts = {key: value for key, value in vars(options).items() if key not in ("out", "runs")} | {
        "data": Path(options.data).name
    }
    document = {
        **facts,
        "hardware": platform.machine(),
        "cores": os.cpu_count(),
        "versions": dict(versions()),
        "models": summaries,
    }
    text = json.dumps(document, indent=1)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"trainings_{facts['data']}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
