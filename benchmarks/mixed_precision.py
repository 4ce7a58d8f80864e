"""Whether a search for Hessian eigenvectors in bfloat16, finished by one Rayleigh-Ritz step in float32, costs less.

    python benchmarks/mixed_precision.py --model demo-vit --batches 3
    python benchmarks/mixed_precision.py --model examples/paper/weights/small/resnet/seed-0 --data cifar100 --batches 3

For mini-batches of 16 clean images: the time of a product in bfloat16 over one in float32, both in turns (median and range of
CPU seconds of this process); the products of the float32 search; the steps of the same search in bfloat16 for the five pairs
and three guards to 1e-2; and the errors of the five eigenvalues after the float32 Rayleigh-Ritz step over these eight vectors,
with the bounds that would have to certify them to 1e-3.  ``break_even``: the ratio of times below which the mixed search is
cheaper, if all bounds pass.  Eight products in float32 are always needed, so it cannot pay above (m - 8) / m for a search of m
products.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import grad

from backlight import draw_batches, load_model
from backlight.curvature.hessian import Hessian, flattened
from backlight.curvature.loss import Objective, differentiable
from backlight.numerics.lanczos import Eigenpairs, errors, lanczos

TOP, GUARDS = 5, 3


class Rough:
    """The products of a Hessian in bfloat16: forward pass and both derivatives under autocast, sums in float32."""

    def __init__(self, exact: Hessian) -> None:
        self.exact = exact
        self.size, self.device, self.dtype = exact.size, exact.device, exact.dtype
        self.weights = list(exact.parameters.values())
        images, targets = exact.to_device(*exact.batches[0])
        with differentiable(exact.model), torch.autocast(self.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(exact.model(images).float(), targets)
            self.gradient = grad(loss, self.weights, create_graph=True)

    def matvec(self, v: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            directions = list(self.exact.named(v).values())
            return flattened(grad(self.gradient, self.weights, directions, retain_graph=True, materialize_grads=True))


def refined(exact: Hessian, rough: Eigenpairs) -> tuple[np.ndarray, np.ndarray]:
    """Values and error bounds of one Rayleigh-Ritz step in float32, the largest magnitude first."""
    basis = torch.linalg.qr(rough.vectors.double())[0]
    products = (exact @ basis.float()).double()
    projected = basis.T @ products
    values, coordinates = torch.linalg.eigh((projected + projected.T) / 2)
    residuals = (products @ coordinates - basis @ coordinates * values).norm(dim=0).numpy()
    order = np.argsort(-abs(values.numpy()))
    return values.numpy()[order], errors(values.numpy(), residuals)[order]


def timed(operator: Any, v: Tensor) -> float:
    started = time.process_time()
    operator.matvec(v)
    return time.process_time() - started


def measured(model: nn.Module, batch: Any, seed: int, rounds: int) -> dict[str, Any]:
    exact = Hessian(model, Objective(), [batch], check=False)
    rough, start = Rough(exact), exact.loss_gradient
    v = torch.randn(exact.size, generator=torch.Generator().manual_seed(seed))
    ratios = [timed(rough, v) / timed(exact, v) for _ in range(rounds)]
    right = lanczos(exact, TOP + GUARDS, tol=1e-5, start=start, seed=1000 + seed).values[:TOP]
    alone = lanczos(exact, TOP, start=start, distinct=True, seed=seed).matvecs
    pairs = lanczos(rough, TOP + GUARDS, tol=1e-2, start=start, distinct=True, seed=seed, limit=60)
    values, bounds = (of[:TOP] for of in refined(exact, pairs))
    return {
        "time_over_float32": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        "products_float32": alone,
        "steps_bfloat16": pairs.matvecs,
        "break_even": (alone - TOP - GUARDS) / pairs.matvecs,
        "product_error": float((rough.matvec(v) - exact @ v).norm() / (exact @ v).norm()),
        "value_error": float((abs(values - right) / abs(right)).max()),
        "certified": int((bounds <= 1e-3 * abs(values)).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-vit")
    parser.add_argument("--data", default="fashion")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    clean: dict[str, Any] = {"recipe": "cifar_noaug", "crop_pad": 0, "flip": False}
    for seed, batch in enumerate(draw_batches(options.data, model=model, images=16 * options.batches, **clean)):
        print(json.dumps(measured(model, batch, seed, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
