"""Images per second that the recipe `cifar` augments: in batches, and one by one as timm and Pillow do.

    python benchmarks/augmentation.py --out benchmarks/results/augmentation.json
    python benchmarks/augmentation.py --device cuda --batch-size 1024

Both turn 32 x 32 colour pixels in memory into a mixed, normalised batch with soft targets: crop, flip, RandAugment
m9 n2 mstd1.0, mixup and CutMix.  They alternate in one process, timm on one core, the batches on ``--threads`` cores or the
device; the numbers are medians over the rounds, with their range.  `parts` are the single steps of the batched version.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2

from backlight.data.augmentation import (
    CROP_DRAWS,
    ERASE_DRAWS,
    FLIP_DRAWS,
    crop,
    draw_mixing,
    erase,
    flip,
    mixed,
    mixed_targets,
)
from backlight.data.rand_augment import Policy, rand_augment
from backlight.results.provenance import versions

SPELLING, CLASSES, GREY = "rand-m9-n2-mstd1.0", 100, (129, 124, 112)
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def one_by_one(images: Tensor, labels: Tensor) -> Callable[[], object]:
    """timm's pipeline, from PIL images to a mixed batch."""
    augment = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            rand_augment_transform(SPELLING, {"img_mean": GREY}),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    mix = Mixup(1.0, 0.8, num_classes=CLASSES)
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    return lambda: mix(torch.stack([augment(picture) for picture in pictures]), labels)


def in_batches(images: Tensor, labels: Tensor, device: str) -> dict[str, Callable[[], object]]:
    """Ours, complete and in parts; the pixels are on the device, as in training."""
    policy, generator, count = Policy.named(SPELLING), np.random.default_rng(0), len(images)
    pixels, classes = images.to(device), labels.to(device)
    mean, std = (255 * torch.tensor(numbers, device=device).view(-1, 1, 1) for numbers in (MEAN, STD))

    def u(columns: int) -> Tensor:
        return torch.from_numpy(generator.random((count, columns)))

    def normalised(images: Tensor) -> Tensor:
        return (images - mean) / std

    def mix(real: Tensor) -> tuple[Tensor, Tensor]:
        lam, box = draw_mixing(generator, 32, 32, 1.0, 0.8)
        return mixed(real, real.flip(0), lam, box), mixed_targets(classes, classes.flip(0), CLASSES, lam, 0.1)

    def augmented(images: Tensor) -> Tensor:
        return rand_augment(images, u(policy.draws), **asdict(policy), fill=GREY)

    real = normalised(pixels)
    return {
        "all": lambda: mix(normalised(augmented(flip(crop(pixels, u(CROP_DRAWS), 4), u(FLIP_DRAWS))))),
        "crop": lambda: crop(pixels, u(CROP_DRAWS), 4),
        "flip": lambda: flip(pixels, u(FLIP_DRAWS)),
        "rand_augment": lambda: augmented(pixels),
        "normalise": lambda: normalised(pixels),
        "mix": lambda: mix(real),
        "erase a quarter": lambda: erase(real, u(ERASE_DRAWS), 0.25),  # not in the recipe
    }


def seconds(run: Callable[[], object], repeats: int, device: str) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def rate(times: list[float], images: int) -> dict[str, float]:
    """Images per second."""
    return summary([images / t for t in times])


def summary(numbers: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(numbers), 2), "low": round(min(numbers), 2), "high": round(max(numbers), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=20, help="batches in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = vars(parser.parse_args())
    out, device, count = options.pop("out"), options["device"], options["batch_size"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    runs = {"timm": one_by_one(images, labels), **in_batches(images, labels, device)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options["rounds"] + 1):
        for name, run in runs.items():
            torch.set_num_threads(1 if name == "timm" else options["threads"])
            duration = seconds(run, options["repeats"] if turn else 1, device)
            if turn:  # the first round warms up
                times[name].append(duration)
    timms, *parts = ((name, rate(each, count)) for name, each in times.items())
    ratios = [theirs / ours for theirs, ours in zip(times["timm"], times["all"], strict=True)]
    machine = torch.cuda.get_device_name() if device != "cpu" else platform.processor() or platform.machine()
    document = {
        **{"hardware": machine, "cores": os.cpu_count(), "versions": dict(versions())},
        **options,
        **{"timm_images_per_second": timms[1], "images_per_second": parts[0][1], "parts": dict(parts[1:])},
        "times_timm": summary(ratios),
    }
    text = json.dumps(document, indent=1)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
