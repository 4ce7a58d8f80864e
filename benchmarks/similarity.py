"""What similarity costs on top of the bare forward pass, beside pytorch-cka, and in one pass with its companions.

    python benchmarks/similarity.py --out benchmarks/results/similarity.json

``pytorch-cka`` reads the modules whose outputs Backlight reads.  All runs take turns over the same batches in memory, in one
process; a cost is a run's time less the bare pass's of the same round, and the numbers are medians over the rounds with their
range.  ``precision`` is the largest difference of each from CKA of the same features in float64.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from backlight.analyses.calibration.measure import Confidence
from backlight.analyses.calibration.settings import CalibrationSettings
from backlight.analyses.fourier.measure import Spectra
from backlight.analyses.fourier.settings import FourierSettings
from backlight.analyses.similarity.measure import Grams
from backlight.analyses.similarity.settings import SimilaritySettings
from backlight.analyses.single_pass import Streams, find_streams, reading_streams
from backlight.analyses.variance.measure import Variances
from backlight.analyses.variance.settings import VarianceSettings
from backlight.models.sources.load import load_model
from backlight.numerics.cka import cka, hsic
from backlight.results.provenance import versions
from backlight.tracing.hooks import reading

#: Reducer -> its settings.
REDUCERS: dict[type, object] = {
    Grams: SimilaritySettings(),
    Spectra: FourierSettings(),
    Variances: VarianceSettings(),
    Confidence: CalibrationSettings(),
}
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def bare(model: nn.Module, batches: Batches) -> None:
    with torch.inference_mode():
        for images, _ in batches:
            model(images)


def watched(model: nn.Module, batches: Batches, streams: Streams, kinds: tuple[type, ...]) -> list:
    """The pass with these reducers attached, the units known already."""
    running = [kind(streams, REDUCERS[kind]) for kind in kinds]
    with torch.inference_mode(), reading_streams(model, streams, running):
        for images, labels in batches:
            logits = model(images)
            for reducer in running:
                reducer.finish(logits, labels)
    return running


def theirs(model: nn.Module, batches: Batches, layers: list[str], device: str) -> torch.Tensor:
    from cka import compute_cka

    return compute_cka(model, model, [batches], layers=layers, device=device, progress=False)[0]


def in_float64(model: nn.Module, batches: Batches, streams: Streams) -> np.ndarray:
    """CKA of the streams with all that follows the features in float64."""
    total: float | np.ndarray = 0.0
    for images, _ in batches:
        grams: dict[int, torch.Tensor] = {}

        def keep(i: int, activation: torch.Tensor, grams: dict[int, torch.Tensor] = grams) -> None:
            x = activation[:, streams.taps[i].layout.prefix :] if activation.ndim == 3 else activation
            x = x.flatten(1).double()
            grams[i] = ((x - x.mean(0)) @ (x - x.mean(0)).T).cpu()

        with torch.inference_mode(), reading(model, streams.taps, keep):
            model(images)
        total = total + len(images) * hsic(np.stack([grams[i].numpy() for i in sorted(grams)]))
    return cka(np.asarray(total))


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(name: str, *, batches: int, rounds: int, batch_size: int, device: str, size: int) -> dict[str, object]:
    model = load_model(name, pretrained=False).to(device)
    shape = (batch_size, 3, size, size)
    data = [(torch.randn(shape).to(device), torch.randint(0, 10, (batch_size,)).to(device)) for _ in range(batches)]
    streams = find_streams(model, data[0][0][:2], None)
    layers = [tap.module for tap in streams.taps if tap.side == "output"]
    same = Streams(streams.units, [tap for tap in streams.taps if tap.side == "output"])
    companions = (Spectra, Variances, Confidence)
    runs: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(model, data),
        "similarity": lambda: watched(model, data, same, (Grams,)),
        "pytorch_cka": lambda: theirs(model, data, layers, device),
        "three_companions": lambda: watched(model, data, streams, companions),
        "all_four": lambda: watched(model, data, streams, (Grams, *companions)),
    }
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {what: [] for what in runs}
    for _ in range(rounds):
        for what, run in runs.items():
            times[what].append(seconds(run))
    images = batches * batch_size
    over = {what: sorted(a / b for a, b in zip(times[what], times["bare"], strict=True)) for what in runs if what != "bare"}
    costs = {what: [a - b for a, b in zip(times[what], times["bare"], strict=True)] for what in ("similarity", "pytorch_cka")}
    known = in_float64(model, data, same)
    (ours,) = watched(model, data, same, (Grams,))
    order = {place: i for i, place in enumerate(ours.order)}
    found = cka(ours.dependence.by_group().sum(0))[np.ix_(*[[order[i] for i in range(len(layers)) if i in order]] * 2)]
    kept = [i for i in range(len(layers)) if i in order]
    expected = known[np.ix_(kept, kept)]
    # theirs flattens class tokens in; its difference says something where there are none
    library = theirs(model, data, layers, device).double().cpu().numpy()[np.ix_(kept, kept)]
    return {
        "model": name,
        "images": images,
        "layers": len(layers),
        "bare_ms_per_image": 1000 * statistics.median(times["bare"]) / images,
        "cost_ms_per_image": {what: 1000 * statistics.median(cost) / images for what, cost in costs.items()},
        "over_bare": {what: {"median": statistics.median(r), "low": r[0], "high": r[-1]} for what, r in over.items()},
        "precision": {
            "similarity": float(np.abs(found - expected).max()),
            "pytorch_cka": float(np.abs(library - expected).max()),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vit_tiny_patch16_224"])
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = vars(parser.parse_args())
    out, models = options.pop("out"), options.pop("models")
    found = [measured(name, **options) for name in models]
    machine = torch.cuda.get_device_name() if options["device"] != "cpu" else f"{platform.processor() or platform.machine()}"
    facts = {"hardware": machine, "threads": torch.get_num_threads(), "versions": dict(versions())}
    text = json.dumps({**facts, **options, "results": found}, indent=1)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
