"""What a point of a loss landscape costs beside bare forward passes and the peers, and what bfloat16 costs in digits.

    python benchmarks/landscape.py --model resnet18 vit_tiny --images 1000 --rounds 5 --out benchmarks/results

In one process and in turns, 2 threads: bare forward passes over the same batches, ours in float32 and in bfloat16, a plain
transcription of how Li et al. do it (weights set through ``.data``, a ``DataLoader``, sums by ``.item()``), and
``loss_landscapes.random_plane``, which passes all images at once.  Ratios are to the bare passes of the same round.  Weights
are trained on Fashion-MNIST for ``--steps`` steps (0: untrained), because far from trained weights is where digits may be lost;
values are compared at the centre and at the four corners of the plane.  The models are those of CIFAR: ResNet-18 with a 3 x 3
stem, ViT-Ti with patches of 4 pixels, 32 x 32 px.
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

import loss_landscapes
import timm
import torch
from loss_landscapes.metrics import Loss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from backlight.analyses.landscape.settings import IGNORED
from backlight.curvature.directions import random_plane
from backlight.curvature.loss import Objective
from backlight.curvature.perturbed import (
    Batch,
    BFloat16PerturbedModel,
    PerturbedModel,
    channels_last,
    fixed_batches,
    image_scores,
)
from backlight.data.loading import load_data
from backlight.results.provenance import versions

Points = list[tuple[float, float]]

SIDE, CLASSES = 32, 10


def build(name: str) -> nn.Module:
    """A model of CIFAR's size."""
    torch.manual_seed(0)
    if name == "resnet18":
        model = timm.create_model("resnet18", num_classes=CLASSES)
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        return model
    return timm.create_model("vit_tiny_patch16_224", img_size=SIDE, patch_size=4, num_classes=CLASSES)


def drawn(images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Training images of Fashion-MNIST as 32 x 32 px in three channels."""
    data = load_data("fashion", split="train", limit=images, seed=seed, batch_size=256)
    pixels, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return interpolate((pixels[shuffled] - 0.286) / 0.353, SIDE).expand(-1, 3, -1, -1).contiguous(), labels[shuffled]


def train(model: nn.Module, steps: int, batch: int = 64) -> nn.Module:
    """AdamW for so many steps."""
    if steps:
        images, labels = drawn(min(60_000, steps * batch), seed=1)
        optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
        model.train()
        for i in range(steps):
            chosen = torch.arange(i * batch, (i + 1) * batch) % len(labels)
            optimiser.zero_grad()
            cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimiser.step()
    return model.eval()


# --- what is compared: each evaluates so many points


def bare(model: nn.Module, batches: list[Batch]) -> Callable[[Points], Any]:
    def run(points: Points) -> None:
        with torch.inference_mode():
            for _ in points:
                for batch, _ in batches:
                    model(batch)

    return run


def ours(model: PerturbedModel | BFloat16PerturbedModel, batches: list[Batch]) -> Callable[[Points], list[float]]:
    """As a row of ``landscape`` is computed: moved weights, NLL, correctness and confidence of each image."""

    def run(points: Points) -> list[float]:
        with torch.inference_mode():
            return [image_scores(model.at(*point), batches, Objective())[0].mean() for point in points]

    return run


def plainly(model: nn.Module, directions: Any, data: tuple[Tensor, Tensor]) -> Callable[[Points], list[float]]:
    """New weights for each point by way of ``.data``, and a test loop over a loader."""
    weights = [p.data for p in model.parameters()]
    both = [[d[name] for name, _ in model.named_parameters()] for d in directions]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=128)

    def loss() -> float:
        total, right = 0.0, 0
        with torch.no_grad():
            for images, labels in loader:
                logits = model(images)
                total += cross_entropy(logits, labels).item() * len(labels)
                right += logits.max(1)[1].eq(labels).sum().item()
        return total / len(data[1])

    def run(points: Points) -> list[float]:
        found = []
        for x, y in points:
            for p, w, d, e in zip(model.parameters(), weights, *both, strict=True):
                p.data = w + (d * x + e * y)
            found.append(loss())
        for p, w in zip(model.parameters(), weights, strict=True):
            p.data = w
        return found

    return run


def peer(model: nn.Module, data: tuple[Tensor, Tensor]) -> Callable[[Points], Any]:
    """Of its own making is the plane, so the points asked for only say how many: a square of at least so many."""

    def run(points: Points) -> None:
        steps = round(len(points) ** 0.5)
        metric = Loss(cross_entropy, *data)
        loss_landscapes.random_plane(model, metric, distance=1, steps=steps, normalization="filter", deepcopy_model=True)

    return run


# --- measuring


def seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measured(name: str, *, images: int, points: int, rounds: int, steps: int) -> dict[str, Any]:
    model = train(build(name), steps)
    data = drawn(images)
    held = fixed_batches(model, [data], Objective())
    plane = random_plane(model, 2, seed=0, normalise="filter", ignore=IGNORED)
    perturbed = PerturbedModel(model, plane.directions)
    ways = [(x / 2, y / 2) for x in (-1, 1) for y in (-1, 1)][: points**2] * (-(-(points**2) // 4))
    ways = ways[: points**2]
    rounded, rough = BFloat16PerturbedModel(perturbed, held), channels_last(held)
    runs = {
        "bare": bare(model, held),
        "ours_float32": ours(perturbed, held),
        "ours_bfloat16": ours(rounded, rough),
        "plain_transcription": plainly(model, plane.directions, data),
        "loss_landscapes": peer(model, data),
    }
    times: dict[str, list[float]] = {what: [] for what in runs}
    for warm in (True, *[False] * rounds):
        for what, run in runs.items():
            spent = seconds(lambda run=run: run(ways)) / len(ways)  # type: ignore[misc]
            if not warm:
                times[what].append(spent)
    at = {"centre": (0.0, 0.0), **{f"corner {x:+d} {y:+d}": (float(x), float(y)) for x in (-1, 1) for y in (-1, 1)}}
    values = {what: runs[what](list(at.values())) for what in ("ours_float32", "ours_bfloat16", "plain_transcription")}
    compared = {
        place: {what: found[i] for what, found in values.items()}
        | {"relative_difference_bfloat16": abs(values["ours_bfloat16"][i] / values["ours_float32"][i] - 1)}
        for i, place in enumerate(at)
    }
    ratios = {what: sorted(a / b for a, b in zip(spent, times["bare"], strict=True)) for what, spent in times.items()}
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "images": images,
        "points_a_round": len(ways),
        "training_steps": steps,
        "bare_seconds_a_point": statistics.median(times["bare"]),
        "over_bare": {what: {"median": statistics.median(r), "low": r[0], "high": r[-1]} for what, r in ratios.items()},
        "float32_over_bfloat16": statistics.median(
            a / b for a, b in zip(times["ours_float32"], times["ours_bfloat16"], strict=True)
        ),
        "values": compared,
    }


def flags() -> list[str]:
    """What the processor has for bfloat16."""
    try:
        told = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return []
    return [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in told]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["resnet18", "vit_tiny"], choices=["resnet18", "vit_tiny"])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--points", type=int, default=2, help="points along each axis in a round; squared in all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for landscape_MODEL.json")
    options = vars(parser.parse_args())
    torch.set_num_threads(options.pop("threads"))
    out, names = options.pop("out"), options.pop("model")
    facts = {"hardware": platform.processor() or platform.machine(), "flags": flags(), "threads": torch.get_num_threads()}
    for name in names:
        document = {**facts, "versions": dict(versions()), **options, **measured(name, **options)}
        text = json.dumps(document, indent=1)
        print(text)
        if out:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"landscape_{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
