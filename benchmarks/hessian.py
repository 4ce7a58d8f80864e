"""What Hessian products, top-5 spectra and densities cost, beside the peers, and how right each is.

    python benchmarks/hessian.py --part product --model resnet --state init --rounds 5
    python benchmarks/hessian.py --part top5 --model vit --state trained --batches 20
    python benchmarks/hessian.py --part top5 --model demo-vit --batches 17 --peers pyhessian curvlinops
    python benchmarks/hessian.py --part density --model resnet --state init --steps 30
    python benchmarks/hessian.py --part loader --model vit --state init --batches 20
    python benchmarks/hessian.py --part equal --folder examples/paper/weights/small/vit/seed-0 --data cifar100 --batches 6
    python benchmarks/hessian.py --part together --model vit --state trained --batches 16 --device cuda

Everything runs in one process with 2 threads, ours and the peers' in turns on the same batches of 16 augmented images, so that
ratios hold where absolute times drift; each is a median with its range.  Models: ResNet-18 with a CIFAR stem and ViT-Ti with
patches of 4, both at 32 x 32; ``trained`` takes some steps of AdamW on the same data, or ``--checkpoint`` a state dict.
Peers: PyHessian 0.1, curvlinops with scipy's eigsh, hessian-eigenthings.  All run within the math attention kernel, without
which they refuse.  Errors of top-5 are against Lanczos run for 15 pairs to 1e-4; PyHessian counts no products, so its
calls are counted.  Parts write ``hessian_PART_MODEL_STATE.json`` into ``--out``.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from backlight.analyses.hessian.measure import power_iteration
from backlight.curvature.batched_hessian import Hessians
from backlight.curvature.batches import draw_batches
from backlight.curvature.hessian import Hessian
from backlight.curvature.loss import Objective
from backlight.models.sources.load import load_model
from backlight.numerics.lanczos import lanczos, lanczos_each
from backlight.numerics.quadrature import density
from backlight.results.provenance import versions

Batch = tuple[Tensor, Tensor]
OBJECTIVE, CRITERION = Objective(), nn.CrossEntropyLoss()


# --- models and data


def resnet() -> nn.Module:
    model = timm.create_model("resnet18", num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10)


class Small(nn.Module):
    """For a smoke run."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.GELU())
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


DEMOS = ("demo-cnn", "demo-vit", "demo-alternet")  # trained, in the package
MODELS: dict[str, Callable[[], nn.Module]] = {"resnet": resnet, "vit": vit, "small": Small}
MODELS |= {name: partial(load_model, name) for name in DEMOS}


def drawn(images: int, batch_size: int, seed: int, root: str | None, name: str) -> list[Batch]:
    """Batches as in a training with the paper's recipe, three channels at 32 x 32."""
    settings = {"images": images, "batch_size": batch_size, "seed": seed, "root": root}
    batches = draw_batches(name, model=Expecting(), recipe="cifar", **settings)
    return [(batch.expand(-1, 3, -1, -1).contiguous(), targets) for batch, targets in batches]


class Expecting(nn.Module):
    """Tells the data what the models here want."""

    def __init__(self) -> None:
        super().__init__()
        size, mean, std = (3, 32, 32), (0.5,) * 3, (0.25,) * 3
        self.pretrained_cfg = {"input_size": size, "mean": mean, "std": std, "interpolation": "bilinear", "crop_pct": 1.0}


def prepared(options: argparse.Namespace) -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(options.seed)
    model = load_model(str(options.folder)) if options.folder else MODELS[options.model]()
    if options.checkpoint:
        model.load_state_dict(torch.load(options.checkpoint, weights_only=True))
    elif options.state == "trained":
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
        model.train()
        for images, targets in drawn(64 * options.train_steps, 64, options.seed + 1, options.data_root, options.data):
            optimiser.zero_grad()
            CRITERION(model(images), targets).backward()
            optimiser.step()
        optimiser.zero_grad()
    images = options.batch_size * options.batches
    if options.folder:  # clean images
        clean: dict[str, Any] = {"recipe": "cifar_noaug", "crop_pad": 0, "flip": False, "root": options.data_root}
        batches = draw_batches(options.data, model=model, images=images, batch_size=options.batch_size, **clean)
        return model.eval(), list(batches)
    if options.model in DEMOS:
        batches = draw_batches(options.data, model=model, images=images, batch_size=options.batch_size, recipe="cifar")
        return model.eval(), list(batches)
    return model.eval(), drawn(images, options.batch_size, options.seed, options.data_root, options.data)


# --- measuring


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(times: Mapping[str, Sequence[float]], base: str) -> dict[str, Any]:
    """Each time over the base's of the same turn."""
    return {
        name: spread([a / b for a, b in zip(taken, times[base], strict=True)]) for name, taken in times.items() if name != base
    }


def interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run)[0])
    return times


class Counted:
    """Counts PyHessian's products, which go through a function of its module."""

    def __enter__(self) -> Counted:
        module: Any = import_module("pyhessian.hessian")  # the package's attribute of this name is the class
        self.module, self.original, self.products = module, module.hessian_vector_product, 0

        def product(*arguments: Any) -> Any:
            self.products += 1
            return self.original(*arguments)

        module.hessian_vector_product = product
        return self

    def __exit__(self, *_: Any) -> None:
        self.module.hessian_vector_product = self.original


def of_curvlinops(model: nn.Module, data: Sequence[Batch]) -> Any:
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(model, CRITERION, list(model.parameters()), data, check_deterministic=False)


def of_eigenthings(model: nn.Module, data: Sequence[Batch]) -> Any:
    from hessian_eigenthings import HessianOperator

    return HessianOperator(model, list(data), lambda net, batch: CRITERION(net(batch[0]), batch[1]))


def of_pyhessian(model: nn.Module, batch: Batch | None = None, loader: Sequence[Batch] | None = None) -> Any:
    from pyhessian import hessian

    return hessian(copy.deepcopy(model), CRITERION, data=batch, dataloader=loader, cuda=False)


# --- the parts


def product(model: nn.Module, data: list[Batch], options: argparse.Namespace) -> dict[str, Any]:
    """One product on one batch, as a multiple of forward and backward, and of each peer's."""
    from pyhessian.hessian import hessian_vector_product

    batch, parameters = data[0], list(model.parameters())
    ours, theirs = Hessian(model, OBJECTIVE, [batch], check=False), of_pyhessian(model, batch)
    rebuilt = Hessian(model, OBJECTIVE, [batch], check=False, keep_graph=False)
    linear, things = of_curvlinops(model, [batch]), of_eigenthings(model, [batch])
    v = torch.randn(ours.size)
    parts = list(ours.named(v).values())
    exact = Hessian(model, OBJECTIVE, [batch], check=False, dtype=torch.float64) @ v.double()
    wrong = {
        "ours": ours @ v,
        "curvlinops": linear @ v,
        "eigenthings": things.matvec(v),
        "pyhessian": torch.cat([part.reshape(-1) for part in hessian_vector_product(theirs.gradsH, theirs.params, parts)]),
    }
    runs: dict[str, Callable[[], Any]] = {
        "forward + backward": lambda: torch.autograd.grad(CRITERION(model(batch[0]), batch[1]), parameters),
        "ours": lambda: ours @ v,
        "ours, graph rebuilt": lambda: rebuilt @ v,
        "pyhessian": lambda: hessian_vector_product(theirs.gradsH, theirs.params, parts),
        "curvlinops": lambda: linear @ v,
        "eigenthings": lambda: things.matvec(v),
    }
    for run in runs.values():
        run()
    times = interleaved(runs, options.rounds)
    return {
        "parameters": ours.size,
        "seconds": {name: spread(taken) for name, taken in times.items()},
        "over_forward_backward": ratios(times, "forward + backward"),
        "over_ours": ratios({name: taken for name, taken in times.items() if name != "forward + backward"}, "ours"),
        "relative_error": {name: float((u.double() - exact).norm() / exact.norm()) for name, u in wrong.items()},
    }


def error(found: Sequence[float], right: np.ndarray) -> float:
    """The largest error of a set of eigenvalues, rank by rank in magnitude, relative; a wrong sign is an error of about 2."""
    ordered = np.array(sorted(map(float, found), key=abs, reverse=True))
    return float((abs(ordered - right) / abs(right)).max())


def top5(model: nn.Module, data: list[Batch], options: argparse.Namespace) -> dict[str, Any]:
    """The five largest of each batch: products, seconds and errors."""
    from scipy.sparse.linalg import eigsh

    kinds = ["ours", *options.peers]
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    products: dict[str, list[int]] = {kind: [] for kind in kinds}
    errors: dict[str, list[float]] = {kind: [] for kind in kinds}
    values: list[dict[str, list[float]]] = []

    def ours(batch: Batch) -> tuple[Sequence[float], int]:
        operator = Hessian(model, OBJECTIVE, [batch], check=False)
        found = lanczos(operator, 5, start=operator.loss_gradient, distinct=True)
        return list(found.values), found.matvecs

    def pyhessian(batch: Batch) -> tuple[Sequence[float], int]:
        with Counted() as counted:
            return of_pyhessian(model, batch).eigenvalues(top_n=5)[0], counted.products

    def curvlinops(batch: Batch) -> tuple[Sequence[float], int]:
        operator = of_curvlinops(model, [batch])
        count = 0

        def matvec(v: np.ndarray) -> np.ndarray:
            nonlocal count
            count += 1
            return (operator @ torch.from_numpy(v.astype(np.float32, copy=False)).reshape(-1)).numpy()

        from scipy.sparse.linalg import LinearOperator

        size = sum(p.numel() for p in model.parameters())
        wrapped = LinearOperator((size, size), matvec=matvec, dtype=np.float32)
        return list(eigsh(wrapped, 5, which="LM", tol=1e-3, return_eigenvectors=False)), count

    def eigenthings(batch: Batch) -> tuple[Sequence[float], int]:
        from hessian_eigenthings import lanczos as theirs

        found = theirs(of_eigenthings(model, [batch]), k=5, max_iter=30, tol=1e-3, seed=0)
        return found.eigenvalues.tolist(), 30

    solvers = {"ours": ours, "pyhessian": pyhessian, "curvlinops": curvlinops, "eigenthings": eigenthings}
    for i, batch in enumerate(data):
        reference = lanczos(Hessian(model, OBJECTIVE, [batch], check=False), 15, tol=1e-4, seed=1000 + i).values[:5]
        values.append({"reference": reference.tolist()})
        for kind in kinds:
            taken, (found, count) = seconds(lambda kind=kind, batch=batch: solvers[kind](batch))
            times[kind].append(taken)
            products[kind].append(count)
            errors[kind].append(error(found, reference))
            values[-1][kind] = [float(x) for x in found]
        print(
            i, {kind: (products[kind][-1], round(times[kind][-1], 1), f"{errors[kind][-1]:.1e}") for kind in kinds}, flush=True
        )
    return {
        "seconds": {kind: spread(taken) | {"mean": statistics.mean(taken)} for kind, taken in times.items()},
        "products": {kind: spread(count) | {"mean": statistics.mean(count)} for kind, count in products.items()},
        "error": {kind: spread(wrong) | {"mean": statistics.mean(wrong)} for kind, wrong in errors.items()},
        "missed": {kind: sum(wrong > 2e-3 for wrong in of) for kind, of in errors.items()},
        "over_ours": ratios(times, "ours"),
        "mean_over_ours": {kind: statistics.mean(taken) / statistics.mean(times["ours"]) for kind, taken in times.items()},
        "values": values,
    }


def equal(model: nn.Module, data: list[Batch], options: argparse.Namespace) -> dict[str, Any]:
    """Products until all five are right to 1e-3: ours, and PyHessian's power iteration with the tolerance that this takes.

    A product costs both the same, so products are compared, which a busy machine does not disturb.  The tolerance is lowered
    tenfold, with at most 300 steps for an eigenvalue, until the five are right; from 1e-6 on it counts as failed.
    """
    rows = []
    for i, batch in enumerate(data):
        operator = Hessian(model, OBJECTIVE, [batch], check=False)
        reference = lanczos(operator, 8, tol=1e-5, start=operator.loss_gradient, seed=1000 + i).values[:5]
        pairs = lanczos(operator, 5, start=operator.loss_gradient, distinct=True, seed=i)
        row: dict[str, Any] = {"reference": reference.tolist(), "ours": pairs.matvecs, "error": error(pairs.values, reference)}
        for tol in (1e-3, 1e-4, 1e-5, 1e-6):
            values, _, row["pyhessian"], _ = power_iteration(operator, 5, steps=100 if tol == 1e-3 else 300, tol=tol, seed=i)
            row["pyhessian_error"] = error(values, reference)
            if tol == 1e-3:
                row |= {"default": row["pyhessian"], "default_error": row["pyhessian_error"]}
            if row["pyhessian_error"] <= 1e-3:
                break
        rows.append(row | {"tol": tol})
        print(i, {key: value for key, value in rows[-1].items() if key != "reference"}, flush=True)
    over = {name: [row[name] / row["ours"] for row in rows] for name in ("default", "pyhessian")}
    return {"over_ours": {name: spread(of) | {"mean": statistics.mean(of)} for name, of in over.items()}, "rows": rows}


def densities(model: nn.Module, data: list[Batch], options: argparse.Namespace) -> dict[str, Any]:
    """The spectral density of one batch, one probe."""
    from curvlinops.papyan2020traces.spectrum import fast_lanczos
    from hessian_eigenthings import spectral_density

    batch, steps = data[0], options.steps

    def pyhessian() -> Any:
        return of_pyhessian(model, batch).density(iter=steps, n_v=1)

    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: density(Hessian(model, OBJECTIVE, [batch], check=False), probes=1, steps=steps),
        "curvlinops": lambda: fast_lanczos(of_curvlinops(model, [batch]), steps),
        "eigenthings": lambda: spectral_density(of_eigenthings(model, [batch]), num_runs=1, lanczos_steps=steps, seed=0),
    }
    refused = {}
    try:
        pyhessian()
        runs["pyhessian"] = pyhessian
    except Exception as failure:  # 0.1 calls torch.eig, which is gone
        refused["pyhessian"] = f"{type(failure).__name__}: {failure}".splitlines()[0][:160]
    times = interleaved(runs, options.rounds)
    return {
        "steps": steps,
        "seconds": {name: spread(taken) for name, taken in times.items()},
        "over_ours": ratios(times, "ours"),
        "refused": refused,
    }


def loader(model: nn.Module, data: list[Batch], options: argparse.Namespace) -> dict[str, Any]:
    """The five largest over all batches together: PyHessian's path by data loader rebuilds each graph each time."""
    reference = lanczos(Hessian(model, OBJECTIVE, data, check=False), 15, tol=1e-4, seed=1000).values[:5]
    taken, found = seconds(lambda: lanczos(Hessian(model, OBJECTIVE, data, check=False, memory=options.memory * 2**30), 5))
    theirs_taken, theirs = seconds(lambda: of_pyhessian(model, loader=data).eigenvalues(top_n=5)[0])
    return {
        "reference": reference.tolist(),
        "ours": {
            "seconds": taken,
            "products": found.matvecs,
            "error": error(found.values, reference),
            "values": found.values.tolist(),
        },
        "pyhessian": {"seconds": theirs_taken, "error": error(theirs, reference), "values": [float(x) for x in theirs]},
        "pyhessian_over_ours": theirs_taken / taken,
    }


def together(model: nn.Module, data: list[Batch], options: argparse.Namespace) -> dict[str, Any]:
    """The five largest of each batch: one batch after another, and all at once."""

    def operators() -> list[Hessian]:
        return [Hessian(model, OBJECTIVE, [batch], check=False) for batch in data]

    def one_by_one() -> list[Any]:
        return [lanczos(h, 5, start=h.loss_gradient, distinct=True, seed=i) for i, h in enumerate(operators())]

    def at_once() -> list[Any]:
        many = Hessians(operators())
        return lanczos_each(many, 5, starts=many.loss_gradient, distinct=True, seeds=range(len(data)))

    runs = {"at once": at_once, "one by one": one_by_one}
    found = {name: [pairs.values for pairs in run()] for name, run in runs.items()}
    times = interleaved(runs, options.rounds)
    differences = [error(a, b) for a, b in zip(found["at once"], found["one by one"], strict=True)]
    return {
        "batches": len(data),
        "seconds": {name: spread(taken) for name, taken in times.items()},
        "over_at_once": ratios(times, "at once"),
        "largest_difference": max(differences),
    }


PARTS = {"product": product, "top5": top5, "equal": equal, "density": densities, "loader": loader, "together": together}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--model", choices=MODELS, default="resnet")
    parser.add_argument("--state", choices=("init", "trained"), default="init")
    parser.add_argument("--checkpoint", type=Path, help="a state dict, in place of training here")
    parser.add_argument("--folder", type=Path, help="a saved model, in place of --model; its batches are clean images")
    parser.add_argument("--train-steps", type=int, default=150)
    parser.add_argument("--data", default="fashion")
    parser.add_argument("--data-root")
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--memory", type=int, default=16, help="GiB for kept graphs (loader)")
    parser.add_argument("--peers", nargs="*", default=["pyhessian", "curvlinops", "eigenthings"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, data = prepared(options)
    model, data = model.to(options.device), [(x.to(options.device), y.to(options.device)) for x, y in data]
    with sdpa_kernel(SDPBackend.MATH):
        found = PARTS[options.part](model, data, options)
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items() if key != "out"}
    document = {**asked, "hardware": platform.machine(), "versions": dict(versions()), **found}
    text = json.dumps(document, indent=1)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    state = "checkpoint" if options.checkpoint else options.state
    of = f"{options.folder.parent.name}_{options.folder.name}" if options.folder else f"{options.model}_{state}"
    (options.out / f"hessian_{options.part}_{of}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
