"""What the training loop costs beside bare steps, and what a second process gains.

    python benchmarks/training.py --part overhead --rounds 7 --steps 20 --out benchmarks/results
    python benchmarks/training.py --part inside --rounds 5 --steps 5 --out benchmarks/results
    python benchmarks/training.py --part processes --rounds 3 --steps 40 --out benchmarks/results
    python benchmarks/training.py --part speed --model alternet_50_cifar --precision bf16 --compile   # on a GPU

overhead: `backlight.train` with its recipe's augmentation, schedule, clipping and checks, against forward, backward, clipping
and the same optimizer's step on batches prepared before; in turns in one process, ratios within a round.  inside: the time of a
step over the time it spends in these calls, which neither drift nor other processes disturb (on a CPU).  processes: images a
second of ``torchrun --nproc-per-node 2`` with one thread each against one process with one thread, in the last epoch of the
run's metrics.  speed: images a second of `train`, and the share of the card's peak that its products use.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import backlight
from backlight.data.training_images import ImagesInMemory
from backlight.data.training_sampling import micro_batches
from backlight.models.cost import macs
from backlight.recipes import recipe
from backlight.results.provenance import versions
from backlight.training.loop import Training, optimizer, train

MODELS = {
    "resnet": "word:ccc ccc ccc?block=basic&dim=16&stem=cifar",
    "alternet": "word:ccc ccca ccca?block=basic&dim=16&stem=cifar&heads=2&dim_head=16",
    "vit": "vit_tiny_patch16_224?img_size=32&patch_size=4&embed_dim=96&depth=6&num_heads=3",
}
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense operations a second, from NVIDIA's data sheets


def noise_images(number: int = 2000) -> ImagesInMemory:
    """Noise of CIFAR's size: the content of the pixels does not change the time."""
    rng = np.random.default_rng(0)
    return ImagesInMemory.of(rng.integers(0, 256, (number, 32, 32, 3), np.uint8), rng.integers(0, 100, number), 100)


def random_model(name: str, device: str) -> nn.Module:
    return backlight.load_model(MODELS.get(name, name), pretrained=False, num_classes=100).to(device)


def bare_steps(training: Training) -> Iterator[None]:
    """Forward, backward, clipping and the optimizer's step, on batches prepared before."""
    model, device, recipe = training.model.train(), training.device, training.recipe
    update = optimizer(model, recipe)
    batches = []
    for step in range(4):
        (drawn,) = micro_batches(recipe, 2000, (32, 32), step=step, cropped=False, seed=0)
        batches.append(training._batch(drawn, training.images.images[drawn.images.to(device)]))  # type: ignore[attr-defined]
    while True:
        for inputs, targets in batches:
            update.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss = nn.functional.cross_entropy(training.network(inputs), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            update.step()
            yield


def seconds(steps: Iterator[Any], number: int) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in islice(steps, number):
        pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Time of our step over a bare step, for each model and recipe."""
    measured: dict[str, Any] = {}
    for name in options.model or MODELS:
        for recipe_name in ("cifar_noaug", "cifar"):
            selected = recipe(
                recipe_name, epochs=1000, batch_size=options.batch, drop_path=0.0, precision=options.precision, clip=5.0
            )
            trainings = [
                train(random_model(name, options.device), noise_images(), selected, compile=options.compile) for _ in range(2)
            ]
            ours, bare = iter(trainings[0]), bare_steps(trainings[1])
            seconds(ours, 2), seconds(bare, 2)
            rounds = [(seconds(ours, options.steps), seconds(bare, options.steps)) for _ in range(options.rounds)]
            ratios = sorted(a / b for a, b in rounds)
            measured[f"{name} {recipe_name}"] = {
                "ratio": statistics.median(ratios),
                "range": [ratios[0], ratios[-1]],
                "ms_a_step": 1000 * statistics.median(b for _, b in rounds) / options.steps,
            }
            print(name, recipe_name, measured[f"{name} {recipe_name}"], flush=True)
    return measured


class Timed:
    """A function with the sum of the seconds that its calls take."""

    def __init__(self, function: Any) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.function(*args, **settings)
        finally:
            self.seconds += time.perf_counter() - started


def inside(options: argparse.Namespace) -> dict[str, Any]:
    """Time of a step over the time it spends in forward, backward, clipping and the optimizer."""
    measured: dict[str, Any] = {}
    for name in options.model or MODELS:
        for recipe_name in ("cifar_noaug", "cifar"):
            selected = recipe(recipe_name, epochs=1000, batch_size=options.batch, drop_path=0.0, clip=5.0)
            training = train(random_model(name, options.device), noise_images(), selected)
            steps = iter(training)
            seconds(steps, 2)
            parts_of = {"network": training, "backward": training.accelerator, "clip_grad_norm_": training.accelerator}
            timed = []
            for attribute, owner in [*parts_of.items(), ("step", training.optimizer), ("zero_grad", training.optimizer)]:
                timed.append(Timed(getattr(owner, attribute)))
                setattr(owner, attribute, timed[-1])
            ratios = []
            for _ in range(options.rounds):
                before = sum(each.seconds for each in timed)
                taken = seconds(steps, options.steps)
                ratios.append(taken / (sum(each.seconds for each in timed) - before))
            ratios.sort()
            measured[f"{name} {recipe_name}"] = {"ratio": statistics.median(ratios), "range": [ratios[0], ratios[-1]]}
            print(name, recipe_name, measured[f"{name} {recipe_name}"], flush=True)
    return measured


def processes(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of two processes over those of one, each with one thread."""
    measured: dict[str, Any] = {}
    for name in options.model or ["resnet", "vit"]:
        rates: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            rates.append((rate(name, 1, options), rate(name, 2, options)))
            print(name, rates[-1], flush=True)
        ratios = sorted(two / one for one, two in rates)
        measured[name] = {
            "ratio": statistics.median(ratios),
            "range": [ratios[0], ratios[-1]],
            "one": [one for one, _ in rates],
        }
    return measured


def rate(name: str, number: int, options: argparse.Namespace) -> float:
    """Images a second by the metrics of the run, which do not count its evaluations and its start."""
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)] if number > 1 else []
        spec = MODELS.get(name, name).replace("img_size=32", "img_size=28")
        images = options.steps * options.batch // 2
        flags = f"--epochs 2 --limit {images} --batch-size {options.batch} --held-out 0.01 --device cpu --quiet".split()
        command = [sys.executable, *launch, "-m", "backlight", "train", spec, "--out", f"{folder}/out", *flags]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
        with open(f"{folder}/out/metrics.csv") as file:
            return float(list(csv.DictReader(file))[-1]["images_per_second"])


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second, and the share of the peak: 3 x 2 operations a multiply-add of the forward pass."""
    measured: dict[str, Any] = {}
    for name in options.model or ["alternet_50_cifar", "preact_resnet_50_cifar", "vit_ti_cifar"]:
        selected = recipe("cifar", epochs=1000, batch_size=options.batch, drop_path=0.0, precision=options.precision)
        operations = 6 * macs(random_model(name, "cpu"), (3, 32, 32))
        steps = iter(train(random_model(name, options.device), noise_images(20_000), selected, compile=options.compile))
        seconds(steps, 5)
        rates = sorted(options.steps * options.batch / seconds(steps, options.steps) for _ in range(options.rounds))
        measured[name] = {"images_per_second": statistics.median(rates), "range": [rates[0], rates[-1]]}
        card = torch.cuda.get_device_name() if options.device != "cpu" else ""
        peak = next((flops for kind, flops in PEAK_BF16.items() if kind in card), None)
        if peak:
            measured[name]["share_of_bf16_peak"] = statistics.median(rates) * operations / peak
        print(name, measured[name], flush=True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["overhead", "inside", "processes", "speed"], required=True)
    parser.add_argument("--model", nargs="*", help="names below, or any MODEL of CIFAR's size")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="no")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured = {"overhead": overhead, "inside": inside, "processes": processes, "speed": speed}[options.part](options)
    machine = torch.cuda.get_device_name() if options.device != "cpu" else platform.machine()
    facts = {key: value for key, value in vars(options).items() if key != "out"} | {
        "hardware": machine,
        "cores": os.cpu_count(),
    }
    document = {**facts, "versions": dict(versions()), "measured": measured}
    text = json.dumps(document, indent=1)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"training_{options.part}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
