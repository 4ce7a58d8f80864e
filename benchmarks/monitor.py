"""What a measurement of a monitor costs, in bare forward passes over the same images.

    python benchmarks/monitor.py --out benchmarks/results/monitor.json

Bare passes and measurements take turns over the same batches in memory.  ``ratio`` is a measurement over the bare passes: one
measurement costs as much as this many passes over the monitor's images.  ``inside`` is the share of a measurement that is spent
in forward passes, those that find the units and the hooks that read the stream included.  Medians over the rounds with their
range; ``passes`` and ``passed_images`` are exact.
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
from torch import nn

from backlight.data.preprocessing import preprocessing
from backlight.models.sources.load import load_model
from backlight.monitoring.monitor import BY_DEFAULT, Monitor
from backlight.results.provenance import versions

ANALYSES = {"default": BY_DEFAULT, "with lesion": (*BY_DEFAULT, "lesion")}


def seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


class Passes:
    """The time that a model spends in forward passes, their number, and that of their images."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds, self.calls, self.images, self.started = 0.0, 0, 0, 0.0
        self.handles = [model.register_forward_pre_hook(self.start), model.register_forward_hook(self.end, always_call=True)]

    def start(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.calls, self.images, self.started = self.calls + 1, self.images + len(inputs[0]), time.perf_counter()

    def end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self.started

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def bare(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    model.eval()
    with torch.inference_mode():
        for images, _ in batches:
            model(images)
    model.train()


def measured(name: str, images: int, rounds: int) -> list[dict[str, Any]]:
    model = load_model(name, pretrained=False).train()
    size = preprocessing(model)["input_size"]
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(images, *size, generator=generator), torch.randint(10, (images,), generator=generator)
    rows = []
    for kind, analyses in ANALYSES.items():
        monitor = Monitor(model, data, analyses=analyses)
        monitor.measure()
        times = []
        for _ in range(rounds):
            plain = seconds(lambda: bare(model, monitor.batches))  # type: ignore[arg-type]  # noqa: B023
            passes = Passes(model)
            whole = seconds(monitor.measure)
            passes.remove()
            times.append((plain, whole / plain, passes.seconds / whole))
        about = {"model": name, "analyses": kind, "images": images, "size": list(size)}
        of_rounds = zip(("bare_s", "ratio", "inside"), map(spread, zip(*times, strict=True)), strict=True)
        rows.append(about | dict(of_rounds) | {"passes": passes.calls, "passed_images": passes.images})
    return rows


def spread(values: tuple[float, ...]) -> list[float]:
    """Median, least, most."""
    return [round(x, 4) for x in (statistics.median(values), min(values), max(values))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    models = ["resnet18?num_classes=10", "vit_tiny_patch16_224?num_classes=10", "demo-vit"]
    parser.add_argument("--models", nargs="+", default=models)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [row for name in arguments.models for row in measured(name, arguments.images, arguments.rounds)]
    about = {"machine": platform.machine(), "threads": torch.get_num_threads(), "versions": versions()}
    text = json.dumps(about | {"rows": rows}, indent=1) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
