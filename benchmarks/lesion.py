"""What the lesions of all units cost, in multiply-accumulates and in seconds, with finished modules handed back and without.

    python benchmarks/lesion.py [--models demo-cnn vit_tiny_patch16_224 ...] [--images 8] [--rounds 3]

The first number is a share of U + 1 forward passes from the start; the second is the time without over the time with, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from backlight import lesion, load_data, load_model
from backlight.tracing import replay

MODELS = ["demo-cnn", "demo-vit", "demo-alternet", "vit_tiny_patch16_224", "resnet50"]


def main() -> None:
    """Print a line a model, and write benchmarks/results/lesion.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["demo-cnn", "demo-vit", "demo-alternet", "vit_tiny_patch16_224", "resnet50"]
    )
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    words = parser.parse_args()
    results = {}
    for name in words.models:
        about: dict[str, Any] = {} if name.startswith("demo") else {"pretrained": False, "num_classes": 10}
        model = load_model(name, **about).eval()
        data = load_data("fashion", model=model, limit=words.images, batch_size=words.images)
        ((images, _),) = data
        with FlopCounterMode(display=False) as one, torch.inference_mode():
            model(images)
        with FlopCounterMode(display=False) as counter:
            units = len(lesion(model, data).table) - 1
        share = counter.get_total_flops() / one.get_total_flops() / (units + 1)
        ratios = [timed(model, data, plain=True) / timed(model, data, plain=False) for _ in range(words.rounds)]
        results[name] = {"units": units, "share_of_passes": share, "ratios": ratios}
        print(
            f"{name}: {units} units, {share:.2f} of {units + 1} passes, {statistics.median(ratios):.2f} times as fast {ratios}"
        )
    out = Path(__file__).parent / "results" / "lesion.json"
    out.write_text(json.dumps({"threads": torch.get_num_threads(), "models": results}, indent=1) + "\n")


def timed(model: Any, data: Any, *, plain: bool) -> float:
    """Seconds of the analysis."""
    before = replay.tried
    replay.tried = (lambda *_: {}) if plain else before  # type: ignore[assignment]
    started = time.perf_counter()
    lesion(model, data)
    seconds = time.perf_counter() - started
    replay.tried = before
    return seconds


if __name__ == "__main__":
    main()
