"""What the analyses that share a forward pass cost on top of it: fourier, variance, similarity, attention and calibration.

    python benchmarks/single_pass.py --out benchmarks/results/single_pass.json

Bare pass and analyses run in turns over the same batches in memory, in one process; the numbers are medians over the
rounds with their range.  ``reading`` is the pass with all reducers attached, as a study runs it; ``whole`` is the
call from model and data to results: it adds finding the units and 1,000 bootstrap resamples, a cost for each study and not
for each image.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from backlight.analyses.attention.measure import Heads
from backlight.analyses.calibration.measure import Confidence
from backlight.analyses.calibration.settings import CalibrationSettings
from backlight.analyses.entry import NoSettings
from backlight.analyses.fourier.measure import Spectra
from backlight.analyses.fourier.settings import FourierSettings
from backlight.analyses.similarity.measure import Grams
from backlight.analyses.similarity.settings import SimilaritySettings
from backlight.analyses.single_pass import readable_of, reading_all, single_pass
from backlight.analyses.variance.measure import Variances
from backlight.analyses.variance.settings import VarianceSettings
from backlight.models.sources.load import load_model
from backlight.results.provenance import versions

REDUCERS = {
    Spectra: FourierSettings(),
    Variances: VarianceSettings(),
    Grams: SimilaritySettings(),
    Heads: NoSettings(),
    Confidence: CalibrationSettings(),
}


def bare(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    with torch.inference_mode():
        for images, _ in batches:
            model(images)


def reading(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
    """The pass with the reducers attached that this model has an answer to, its units and attention known already."""
    readable = readable_of(model, batches[0][0][:2], {kind.reads for kind in REDUCERS}, None, ())

    def run() -> None:
        begun = [
            kind(readable[kind.reads], own) for kind, own in REDUCERS.items() if not isinstance(readable[kind.reads], Exception)
        ]
        with torch.inference_mode(), reading_all(model, readable, begun):
            for images, labels in batches:
                logits = model(images)
                for reducer in begun:
                    reducer.finish(logits, labels)

    return run


def seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(name: str, *, batches: int, rounds: int, batch_size: int, device: str) -> dict[str, object]:
    model = load_model(name, pretrained=False).to(device)
    data = [
        (torch.randn(batch_size, 3, 224, 224).to(device), torch.randint(0, 1000, (batch_size,)).to(device))
        for _ in range(batches)
    ]
    runs = {
        "bare": lambda: bare(model, data),
        "reading": reading(model, data),
        "whole": lambda: single_pass(model, data, REDUCERS),
    }
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {what: [] for what in runs}
    for _ in range(rounds):
        for what, run in runs.items():
            times[what].append(seconds(run))
    ratios = {what: sorted(a / b for a, b in zip(times[what], times["bare"], strict=True)) for what in ("reading", "whole")}
    return {
        "model": name,
        "images": batches * batch_size,
        "bare_ms_per_image": 1000 * statistics.median(times["bare"]) / (batches * batch_size),
        **{f"{what}_over_bare": {"median": statistics.median(r), "low": r[0], "high": r[-1]} for what, r in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = vars(parser.parse_args())
    out = options.pop("out")
    found = [measured(name, **options) for name in ("resnet50", "vit_tiny_patch16_224")]
    machine = torch.cuda.get_device_name() if options["device"] != "cpu" else f"{platform.processor() or platform.machine()}"
    facts = {"hardware": machine, "threads": torch.get_num_threads(), "versions": dict(versions())}
    document = {**facts, **options, "results": found}
    text = json.dumps(document, indent=1)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
