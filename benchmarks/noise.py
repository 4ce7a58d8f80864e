"""What noise by frequency costs an image beside the bare forward pass.

    python benchmarks/noise.py --out benchmarks/results/noise.json

Bare passes and the analysis run in turns over the same batches in memory, in one process.  The analysis makes bands x
severities forward passes and one clean pass a batch; as many bare passes are timed beside it.  ``share`` is the analysis's
images a second over theirs: medians over the rounds with their range.  ``whole`` is the call from model and data to result,
``making`` the noise alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backlight.analyses.noise import noise
from backlight.analyses.noise.measure import ImageNoise
from backlight.analyses.noise.settings import FREQUENCIES, SEVERITIES, NoiseSettings
from backlight.models.sources.load import load_model
from backlight.results.provenance import versions

MODELS = ("resnet50", "vit_tiny_patch16_224")
Batches = list[tuple[Tensor, Tensor]]


def seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def spread(numbers: list[float]) -> dict[str, float]:
    return {"median": statistics.median(numbers), "low": min(numbers), "high": max(numbers)}


def measured(
    name: str, *, batches: int, batch_size: int, rounds: int, bands: int, severities: int, size: int, device: str
) -> dict[str, Any]:
    model = load_model(name, pretrained=False).to(device)
    data: Batches = [
        (torch.rand(batch_size, 3, size, size).to(device), torch.randint(0, 1000, (batch_size,)).to(device))
        for _ in range(batches)
    ]
    settings = {"frequencies": FREQUENCIES[:: max(1, len(FREQUENCIES) // bands)][:bands], "severities": SEVERITIES[:severities]}
    passes = 1 + len(settings["frequencies"]) * len(settings["severities"])
    images = batches * batch_size * passes

    def bare() -> None:
        with torch.inference_mode():
            for pixels, _ in data:
                for _ in range(passes):
                    model(pixels)

    def whole() -> None:
        noise(model, data, **settings, mean=(0, 0, 0), std=(1, 1, 1))  # type: ignore[arg-type]

    def making() -> None:
        field = ImageNoise(NoiseSettings(**settings), (size, size), data[0][0].device, 0)
        with torch.inference_mode():
            for pixels, _ in data:
                for _ in field.with_bands(pixels, torch.arange(len(pixels), device=pixels.device)):
                    pass

    runs = {"bare": bare, "whole": whole, "making": making}
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {what: [] for what in runs}
    for _ in range(rounds):
        for what, run in runs.items():
            times[what].append(seconds(run))
    return {
        "model": name,
        "passes": passes,
        "images": images,
        "bare_images_a_second": spread([images / t for t in times["bare"]]),
        "whole_images_a_second": spread([images / t for t in times["whole"]]),
        "share": spread([b / w for b, w in zip(times["bare"], times["whole"], strict=True)]),
        "making_ms_per_image": spread([1000 * t / images for t in times["making"]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bands", type=int, default=3)
    parser.add_argument("--severities", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = vars(parser.parse_args())
    out, names = options.pop("out"), options.pop("models")
    found = [measured(name, **options) for name in names]
    on_gpu = options["device"] != "cpu"
    machine = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    facts = {"hardware": machine, "threads": torch.get_num_threads(), "versions": dict(versions())}
    text = json.dumps({**facts, **options, "results": found}, indent=1)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
