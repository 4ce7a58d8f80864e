"""AlterNet against a plain transcription of the official attention, and against other hybrids, in one process.

    python benchmarks/alternet.py --out benchmarks/results/alternet.json

``plain`` is AlterNet with the attention as the authors wrote it: unfolded windows, 1x1 convolutions, explicit softmax, NCHW,
not compiled.  ``eager`` is ours, channels last; ``compiled`` is the same with ``torch.compile``; ``frozen`` also has weights as
constants, for inference.  All variants run in turn on the same images; the numbers are medians, over rounds, of the ratio
within a round, with their range.  The floor is the time that the model's multiply-accumulates would take at the speed of a
large matrix product on this machine.  Peak memory is measured in a separate process: on a CPU the growth of its resident set
during one training step, on a GPU the memory that torch allocates.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import backlight.models  # noqa: F401
from backlight.models.architectures.window_attention import WindowAttention
from backlight.models.cost import macs, parameters
from backlight.results.provenance import versions

OURS = {"alternet_50_cifar": 32, "alternet_50": 224}
PEERS = (
    "alternet_50",
    "preact_resnet_50",
    "resnet50",
    "swin_tiny_patch4_window7_224",
    "coatnet_0_rw_224",
    "maxvit_tiny_rw_224",
)


class PlainAttention(nn.Module):
    """Window attention as the authors' einops code computes it, with the weights of a `WindowAttention`."""

    def __init__(self, ours: WindowAttention) -> None:
        super().__init__()
        inner = ours.heads * ours.dim_head
        self.heads, self.window, self.scale = ours.heads, ours.window, ours.dim_head**-0.5
        self.to_q = nn.Conv2d(ours.qkv.in_features, inner, 1, bias=False)
        self.to_kv = nn.Conv2d(ours.qkv.in_features, 2 * inner, 1, bias=False)
        self.to_out = nn.Conv2d(inner, ours.out.out_features, 1)
        with torch.no_grad():
            q, kv = ours.qkv.weight[..., None, None].tensor_split([inner])
            self.to_q.weight.copy_(q)
            self.to_kv.weight.copy_(kv)
            self.to_out.weight.copy_(ours.out.weight[..., None, None])
            self.to_out.bias.copy_(ours.out.bias)
        self.pos_embedding = nn.Parameter(ours.bias_table.detach()[0].clone())
        pixels = torch.tensor([[row, column] for row in range(self.window) for column in range(self.window)])
        self.rel_index = pixels[None] - pixels[:, None] + self.window - 1

    def forward(self, x: Tensor) -> Tensor:
        (b, c, h, w), p = x.shape, self.window
        x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, p, p)
        q, (k, v) = self.to_q(x), self.to_kv(x).chunk(2, dim=1)
        q, k, v = (t.reshape(len(t), self.heads, -1, p * p).transpose(2, 3) for t in (q, k, v))
        logits = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        logits = logits + self.pos_embedding[self.rel_index[..., 0], self.rel_index[..., 1]]
        out = torch.einsum("bhij,bhjd->bhid", logits.softmax(-1), v).transpose(2, 3).reshape(len(q), -1, p, p)
        out = self.to_out(out).reshape(b, h // p, w // p, -1, p, p).permute(0, 3, 1, 4, 2, 5)
        return out.reshape(b, -1, h, w)


def plain(model: nn.Module) -> nn.Module:
    """A copy of the model with the official attention instead of ours."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(getattr(module, "attn", None), WindowAttention):
            module.attn = PlainAttention(module.attn)
    return model


def forward(model: nn.Module, images: Tensor) -> None:
    """One forward pass in evaluation mode."""
    with torch.no_grad():
        model.eval()(images)
    finish(images)


def training(model: nn.Module, images: Tensor) -> None:
    """One forward and backward pass in training mode."""
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    nn.functional.cross_entropy(model.train()(images).float(), labels).backward()
    model.zero_grad(set_to_none=True)
    finish(images)


STEPS: dict[str, Callable[[nn.Module, Tensor], None]] = {"forward": forward, "training": training}


def finish(images: Tensor) -> None:
    """Wait until the GPU is done."""
    if images.is_cuda:
        torch.cuda.synchronize()


def prepared(name: str, variant: str, size: int, batch: int, dtype: torch.dtype, device: str) -> tuple[nn.Module, Tensor]:
    """A variant of a model, and images for it."""
    torch.manual_seed(0)
    model = timm.create_model(name)
    model = (plain(model) if variant == "plain" else model).to(device, dtype)
    images = torch.randn(batch, 3, size, size, device=device, dtype=dtype)
    if variant != "plain":
        model, images = model.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    if variant == "compiled":
        model = torch.compile(model, fullgraph=True)
    if variant == "frozen":  # weights as constants: batch norms fold into the convolutions before them; for inference only
        model = torch.compile(model.eval(), fullgraph=True, options={"freezing": True})
    return model, images


def turns(runs: dict[str, tuple[nn.Module, Tensor]], step: str, rounds: int, base: str) -> dict[str, Any]:
    """For each variant the images per second, and the median and range over rounds of its speed divided by that of ``base``."""
    for run in runs.values():
        STEPS[step](*run)
        STEPS[step](*run)
    seconds: dict[str, list[float]] = {variant: [] for variant in runs}
    for _ in range(rounds):
        for variant, run in runs.items():
            started = time.perf_counter()
            STEPS[step](*run)
            seconds[variant].append(time.perf_counter() - started)
    speeds = {}
    for variant, times in seconds.items():
        ratios = sorted(b / a for a, b in zip(times, seconds[base], strict=True))
        speeds[variant] = {
            "images_per_second": round(len(runs[variant][1]) / statistics.median(times), 3),
            f"times_{base}": round(statistics.median(ratios), 3),
            "range": [round(ratios[0], 3), round(ratios[-1], 3)],
        }
    return speeds


def matrix_product_speed(dtype: torch.dtype, device: str, side: int) -> float:
    """Multiply-accumulates per second of a large square matrix product."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        finish(a)
        best = min(best, time.perf_counter() - started)
    return side**3 / best


def peak_of(name: str, variant: str, size: int, batch: int, dtype: str, device: str) -> float:
    """Peak memory of one training step in MB, in a separate process."""
    command = [sys.executable, __file__, "--peak", name, variant, str(size), str(batch), dtype, device]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_here(name: str, variant: str, size: int, batch: int, dtype: torch.dtype, device: str) -> float:
    """Peak memory of one training step in MB, in this process."""
    model, images = prepared(name, variant, size, batch, dtype, device)
    if device == "cuda":
        training(model, images)
        torch.cuda.reset_peak_memory_stats()
        training(model, images)
        return torch.cuda.max_memory_allocated() / 2**20
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    training(model, images)
    return (resident("VmHWM") - before) / 2**10


def resident(field: str) -> int:
    """The memory of this process in kB, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    """Measure all models and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(OURS))
    parser.add_argument("--variants", nargs="+", default=["plain", "eager", "compiled", "frozen"])
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="at 32 px; on a CPU an eighth of it at 224 px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        name, variant, size, batch, dtype, device = options.peak
        print(peak_here(name, variant, int(size), int(batch), getattr(torch, dtype), device))
        return
    dtype, device = getattr(torch, options.dtype), options.device
    speed = matrix_product_speed(dtype, device, 8192 if device == "cuda" else 2048)
    report: dict[str, Any] = {
        "versions": versions(),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {options.threads} threads",
        "dtype": options.dtype,
        "rounds": options.rounds,
        "giga_macs_per_second_of_a_matrix_product": round(speed / 1e9, 1),
    }
    for name in options.models:
        size = OURS[name]
        batch = options.batch if size == 32 or device == "cuda" else max(1, options.batch // 8)
        runs = {variant: prepared(name, variant, size, batch, dtype, device) for variant in options.variants}
        cost = macs(timm.create_model(name), (3, size, size))
        entry: dict[str, Any] = {"batch": batch, "size": size, "giga_macs": round(cost / 1e9, 3)}
        for step, times in (("forward", 1), ("training", 3)):  # the backward pass has two products for each of the forward's
            selected = {variant: run for variant, run in runs.items() if (variant, step) != ("frozen", "training")}
            entry[step] = turns(selected, step, options.rounds, "plain")
            for variant, speeds in entry[step].items():
                speeds["times_the_floor"] = round(speed / (times * cost) / speeds["images_per_second"], 2)
                print(name, step, variant, speeds, flush=True)
        entry["peak_training_mb"] = {
            variant: round(peak_of(name, variant, size, batch, options.dtype, device))
            for variant in options.variants
            if variant in ("plain", "eager")
        }
        print(name, "peak MB", entry["peak_training_mb"], flush=True)
        report[name] = entry

        torch.compiler.reset()
    if options.peers:
        batch = options.batch if device == "cuda" else max(1, options.batch // 8)
        runs = {name: prepared(name, "eager", 224, batch, dtype, device) for name in options.peers}
        peers: dict[str, Any] = {step: turns(runs, step, options.rounds, options.peers[0]) for step in STEPS}
        for name in options.peers:
            model = timm.create_model(name)
            cost = macs(model, (3, 224, 224))
            peers[name] = {
                "parameters": parameters(model),
                "giga_macs": round(cost / 1e9, 3),
                "times_the_floor": round(speed / cost / peers["forward"][name]["images_per_second"], 2),
                "peak_training_mb": round(peak_of(name, "eager", 224, batch, options.dtype, device)),
            }
            print(name, peers["forward"][name], peers["training"][name], peers[name], flush=True)
        report["peers"] = {"batch": batch, "size": 224, **peers}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
