"""What the training loop costs beside its bare steps, and what a second process brings.

    python benchmarks/training.py --part overhead --rounds 7 --steps 20 --out benchmarks/results
    python benchmarks/training.py --part inside --rounds 5 --steps 5 --out benchmarks/results
    python benchmarks/training.py --part processes --rounds 3 --steps 40 --out benchmarks/results
    python benchmarks/training.py --part speed --model alternet_50_cifar --precision bf16 --compile   # on a GPU

overhead: `backlight.train` with its recipe's augmentation, schedule, clipping and checks, against forward, backward, clipping
and the same optimizer's step on batches that lie ready; in turns in one process, ratios within a round.  inside: the same from
within, a whole step over what it spends in these, which neither drift nor neighbours disturb (on a CPU).  processes: images a
second of ``torchrun --nproc-per-node 2`` with a thread each against one process with one thread, from the run's own metrics of
the last epoch.  speed: images a second of `train`, and the share of the card's peak that its products use.
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
from backlight.chance import parts
from backlight.evidence import versions
from backlight.models.cost import macs
from backlight.recipes import Recipe, recipe
from backlight.training import Training, optimizer, train
from backlight.training_images import TrainingSet

MODELS = {
    "resnet": "word:ccc ccc ccc?block=basic&dim=16&stem=cifar",
    "alternet": "word:ccc ccca ccca?block=basic&dim=16&stem=cifar&heads=2&dim_head=16",
    "vit": "vit_tiny_patch16_224?img_size=32&patch_size=4&embed_dim=96&depth=6&num_heads=3",
}
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense operations a second, from NVIDIA's data sheets


def images(number: int = 2000) -> TrainingSet:
    """Noise of CIFAR's size: what is in the pixels costs nothing."""
    drawn = np.random.default_rng(0)
    return TrainingSet.of(drawn.integers(0, 256, (number, 32, 32, 3), np.uint8), drawn.integers(0, 100, number), 100)


def made(name: str, device: str) -> nn.Module:
    return backlight.load_model(MODELS.get(name, name), pretrained=False, num_classes=100).to(device)


def bare(training: Training, chosen: Recipe) -> Iterator[None]:
    """Forward, backward, clipping and the optimizer's step, on batches made before."""
    model, device = training.model.train(), training.device
    stepping = optimizer(model, chosen)
    ready = []
    for step in range(4):
        (part,) = parts(chosen, 2000, (32, 32), step=step, cropped=False, seed=0)
        ready.append(training._batch(part, training.images.images[part.images.to(device)]))  # type: ignore[attr-defined]
    while True:
        for seen, targets in ready:
            stepping.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=chosen.precision == "bf16"):
                loss = nn.functional.cross_entropy(training.network(seen), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), chosen.clip)
            stepping.step()
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


def overhead(asked: argparse.Namespace) -> dict[str, Any]:
    """Ours over bare, a model and a recipe."""
    found: dict[str, Any] = {}
    for name in asked.model or MODELS:
        for recipe_name in ("cifar_noaug", "cifar"):
            chosen = recipe(
                recipe_name, epochs=1000, batch_size=asked.batch, drop_path=0.0, precision=asked.precision, clip=5.0
            )
            training = train(made(name, asked.device), images(), chosen, compile=asked.compile)
            ours, plain = iter(training), bare(train(made(name, asked.device), images(), chosen, compile=asked.compile), chosen)
            seconds(ours, 2), seconds(plain, 2)
            rounds = [(seconds(ours, asked.steps), seconds(plain, asked.steps)) for _ in range(asked.rounds)]
            ratios = sorted(a / b for a, b in rounds)
            found[f"{name} {recipe_name}"] = {
                "ratio": statistics.median(ratios),
                "range": [ratios[0], ratios[-1]],
                "ms_a_step": 1000 * statistics.median(b for _, b in rounds) / asked.steps,
            }
            print(name, recipe_name, found[f"{name} {recipe_name}"], flush=True)
    return found


class Timed:
    """A function that adds up the seconds that it takes."""

    def __init__(self, function: Any) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.function(*args, **settings)
        finally:
            self.seconds += time.perf_counter() - started


def inside(asked: argparse.Namespace) -> dict[str, Any]:
    """The whole step over what it spends in forward, backward, clipping and the optimizer, in the same steps."""
    found: dict[str, Any] = {}
    for name in asked.model or MODELS:
        for recipe_name in ("cifar_noaug", "cifar"):
            chosen = recipe(recipe_name, epochs=1000, batch_size=asked.batch, drop_path=0.0, clip=5.0)
            training = train(made(name, asked.device), images(), chosen)
            steps = iter(training)
            seconds(steps, 2)
            parts_of = {"network": training, "backward": training.accelerator, "clip_grad_norm_": training.accelerator}
            timed = []
            for attribute, owner in [*parts_of.items(), ("step", training.optimizer), ("zero_grad", training.optimizer)]:
                timed.append(Timed(getattr(owner, attribute)))
                setattr(owner, attribute, timed[-1])
            ratios = []
            for _ in range(asked.rounds):
                before = sum(each.seconds for each in timed)
                taken = seconds(steps, asked.steps)
                ratios.append(taken / (sum(each.seconds for each in timed) - before))
            ratios.sort()
            found[f"{name} {recipe_name}"] = {"ratio": statistics.median(ratios), "range": [ratios[0], ratios[-1]]}
            print(name, recipe_name, found[f"{name} {recipe_name}"], flush=True)
    return found


def processes(asked: argparse.Namespace) -> dict[str, Any]:
    """Images a second of two processes over those of one, a thread each."""
    found: dict[str, Any] = {}
    for name in asked.model or ["resnet", "vit"]:
        rates: list[tuple[float, float]] = []
        for _ in range(asked.rounds):
            rates.append((rate(name, 1, asked), rate(name, 2, asked)))
            print(name, rates[-1], flush=True)
        ratios = sorted(two / one for one, two in rates)
        found[name] = {"ratio": statistics.median(ratios), "range": [ratios[0], ratios[-1]], "one": [one for one, _ in rates]}
    return found


def rate(name: str, number: int, asked: argparse.Namespace) -> float:
    """Images a second in the run's own metrics; its evaluations and start are not counted there."""
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)] if number > 1 else []
        spec = MODELS.get(name, name).replace("img_size=32", "img_size=28")
        flags = [
            "--epochs",
            "2",
            "--limit",
            str(asked.steps * asked.batch // 2),
            "--batch-size",
            str(asked.batch),
            "--held-out",
            "0.01",
        ]
        command = [
            sys.executable,
            *launch,
            "-m",
            "backlight",
            "train",
            spec,
            "--out",
            f"{folder}/out",
            "--device",
            "cpu",
            *flags,
        ]
        subprocess.run([*command, "--quiet"], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
        with open(f"{folder}/out/metrics.csv") as file:
            return float(list(csv.DictReader(file))[-1]["images_per_second"])


def speed(asked: argparse.Namespace) -> dict[str, Any]:
    """Images a second, and the share of the peak: 3 x 2 operations a multiply-add of the forward pass."""
    found: dict[str, Any] = {}
    for name in asked.model or ["alternet_50_cifar", "preact_resnet_50_cifar", "vit_ti_cifar"]:
        chosen = recipe("cifar", epochs=1000, batch_size=asked.batch, drop_path=0.0, precision=asked.precision)
        model = made(name, asked.device)
        operations = (
            6 * macs(model.to("meta"), (3, 32, 32)) if asked.device == "cpu" else 6 * macs(made(name, "cpu"), (3, 32, 32))
        )
        steps = iter(train(made(name, asked.device), images(20_000), chosen, compile=asked.compile))
        seconds(steps, 5)
        rates = sorted(asked.steps * asked.batch / seconds(steps, asked.steps) for _ in range(asked.rounds))
        found[name] = {"images_per_second": statistics.median(rates), "range": [rates[0], rates[-1]]}
        card = torch.cuda.get_device_name() if asked.device != "cpu" else ""
        peak = next((flops for kind, flops in PEAK_BF16.items() if kind in card), None)
        if peak:
            found[name]["share_of_bf16_peak"] = statistics.median(rates) * operations / peak
        print(name, found[name], flush=True)
    return found


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
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found = {"overhead": overhead, "inside": inside, "processes": processes, "speed": speed}[asked.part](asked)
    machine = torch.cuda.get_device_name() if asked.device != "cpu" else platform.machine()
    facts = {key: value for key, value in vars(asked).items() if key != "out"} | {"hardware": machine, "cores": os.cpu_count()}
    document = {**facts, "versions": dict(versions()), "found": found}
    text = json.dumps(document, indent=1)
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / f"training_{asked.part}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
