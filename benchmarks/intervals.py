"""How often do 95% intervals contain the true value?  The table of docs/statistics.md.

    python benchmarks/intervals.py [--simulations 20000] [--out benchmarks/results/intervals.json] [--page docs/statistics.md]

- *proportion*: n images, each correct with probability p; exact, as a sum over the binomial distribution.
- *paired difference*: a share of the images becomes wrong, a quarter of it (at most all that were wrong) becomes correct.
- *skewed mean*: NLL of a two-class model, log(1 + exp(-margin)), the margin normal with mean 3 and standard deviation 3; the
  four bootstrap intervals of the same simulations.
- *block structure*: CKA of the streams of demo-cnn; mini-batches are drawn from 4,000 mini-batches of 32 fashion images, whose
  CKA is the truth.
- *NEP*: the share of negative ones of 5 eigenvalues of each mini-batch, with a mean of p and, between mini-batches, a beta
  distribution of variance p (1 - p) / 5 (overdispersed) or no variance (binomial).
- *difference of ECE*: two models on the same images, whose confidences, 0.3 + 0.7 Beta(3, 1), differ by noise of 0.05 and whose
  answers are right or wrong together where they can be; each is as much less accurate than confident as its ECE says.

Runs in about three minutes on one core; ``--simulations 100`` in half a minute.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from backlight.analyses.similarity.measure import Grams, _contrast
from backlight.analyses.similarity.settings import SimilaritySettings
from backlight.analyses.single_pass import find_streams, reading_streams
from backlight.data.loading import load_data
from backlight.models.sources.load import load_model
from backlight.numerics.bootstrap import basic_interval, counts, mean_interval, skewed_mean_interval, statistic_interval
from backlight.numerics.cka import cka, hsic
from backlight.numerics.independent import difference_interval
from backlight.numerics.proportions import proportion_interval, share_interval, tango_ends
from backlight.numerics.student import jackknife_interval

SIZES = (20, 50, 200)
PROPORTIONS = (0.5, 0.9, 0.98, 1.0)
#: Shares of the images that become wrong.
LOST = (0.02, 0.1, 0.3)
MINI_BATCHES = (4, 8, 10, 16, 30)
SHARES = (0.02, 0.1, 0.3, 0.5)
RESAMPLES = 600
Z = stats.norm.ppf(0.975)
BEGIN, END = "<!-- coverage -->", "<!-- /coverage -->"


def wilson(k: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval, the alternative to Jeffreys'."""
    centre, half = (k + Z**2 / 2) / (n + Z**2), Z / (n + Z**2) * np.sqrt(k * (n - k) / n + Z**2 / 4)
    return centre - half, centre + half


def percentile(k: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The limit of the percentile bootstrap for infinitely many resamples."""
    return stats.binom.ppf(0.025, n, k / n) / n, stats.binom.ppf(0.975, n, k / n) / n


def newcombe(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newcombe's method 10, the alternative to Tango's.  Shapes: (simulations, 4), both, first, second, neither."""
    a, b, c, d = cells.T.astype(float)
    n = int(cells[0].sum())
    (l1, u1), (l2, u2) = wilson(a + b, n), wilson(a + c, n)
    p1, p2 = (a + b) / n, (a + c) / n
    excess = a * d - b * c
    excess = np.where(excess > n / 2, excess - n / 2, np.minimum(excess, 0))
    product = np.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    phi = np.divide(excess, product, out=np.zeros_like(excess), where=product > 0)

    def reach(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(x**2 - 2 * phi * x * y + y**2, 0))

    return p1 - p2 - reach(p1 - l1, u2 - p2), p1 - p2 + reach(u1 - p1, p2 - l2)


def proportions() -> list[dict[str, Any]]:
    """Exact coverage of a proportion by three intervals."""
    rows = []
    for n in SIZES:
        k = np.arange(n + 1)
        _, *jeffreys = proportion_interval(k, n)
        for p in PROPORTIONS:
            weight = stats.binom.pmf(k, n, p)
            ends = {"used": jeffreys, "wilson": wilson(k, n), "percentile": percentile(k, n)}
            covered = {
                name: float(weight[(low <= p + 1e-12) & (p <= high + 1e-12)].sum()) for name, (low, high) in ends.items()
            }
            rows.append({"n": n, "p": p, **covered})
    return rows


def paired(simulations: int) -> list[dict[str, Any]]:
    """Coverage of a paired difference of proportions."""
    rows = []
    for n in SIZES:
        for p in PROPORTIONS:
            for lost in LOST:
                gained = min(lost / 4, 1 - p)
                shares = [p - lost, gained, lost, max(1 - p - gained, 0)]
                cells = np.random.default_rng(0).multinomial(n, shares, size=simulations)
                true = gained - lost
                ends = {"used": tango_ends(cells[:, 1], cells[:, 2], n), "newcombe": newcombe(cells)}
                covered = {
                    name: float(((low <= true + 1e-12) & (true <= high + 1e-12)).mean()) for name, (low, high) in ends.items()
                }
                rows.append({"n": n, "p": p, "lost": lost, "gained": gained, **covered})
    return rows


def means(simulations: int) -> list[dict[str, Any]]:
    """Coverage of a skewed mean by four bootstrap intervals."""
    margins = np.linspace(-40, 46, 2_000_001)
    true = float(np.trapezoid(np.logaddexp(0, -margins) * stats.norm.pdf(margins, 3, 3), margins))
    rows = []
    for n in SIZES:
        values = np.logaddexp(0, -np.random.default_rng(0).normal(3, 3, (n, simulations)))
        value, low, high = mean_interval(values, resamples=RESAMPLES)
        ends = {
            "used": skewed_mean_interval(values, resamples=RESAMPLES)[1:],
            "percentile": (low, high),
            "basic": (2 * value - high, 2 * value - low),
            "bias_corrected": bias_corrected(values),
        }
        rows.append({"n": n} | {name: float(((a <= true) & (true <= b)).mean()) for name, (a, b) in ends.items()})
    return rows


def bias_corrected(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Efron's BCa interval of the mean, with the resamples of `mean_interval`.  Shapes: (n, simulations)."""
    n = len(values)
    centred = values - values.mean(0)
    resampled = np.concatenate([w @ centred for w in counts(n, RESAMPLES, 0)]) / n
    bias = stats.norm.ppf((resampled < 0).mean(0))
    acceleration = (centred**3).sum(0) / (6 * (centred**2).sum(0) ** 1.5)
    ordered = np.sort(resampled, axis=0)
    ends = []
    for z in (-Z, Z):
        at = stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        rank = np.clip(np.round(at * (RESAMPLES - 1)).astype(int), 0, RESAMPLES - 1)
        ends.append(values.mean(0) + np.take_along_axis(ordered, rank[None], 0)[0])
    return ends[0], ends[1]


def inside(interval: Iterable[np.ndarray], true: float) -> float:
    """The share of simulations whose interval contains the truth, up to rounding."""
    low, high = interval
    return float(((low <= true + 1e-12) & (true <= high + 1e-12)).mean())


def grams_and_stages(images: int) -> tuple[np.ndarray, list[int]]:
    """Inner products of the streams of demo-cnn, and the stage of each; -1 for the stem.  Shapes: -> (U, images, images)."""
    model = load_model("demo-cnn")
    ((batch, _),) = load_data("fashion", model=model, limit=images, batch_size=images)
    streams = find_streams(model, batch[:2], None)
    reader = Grams(streams, SimilaritySettings())
    with torch.inference_mode(), reading_streams(model, streams, [reader]):
        model(batch)
    stages = [unit["stage"] if unit["unit"] >= 0 else -1 for unit in reader.units]
    return np.stack([reader.batch[tap].numpy() for tap in reader.order]), stages


def blocks(simulations: int, size: int = 32, population: int = 4000) -> list[dict[str, Any]]:
    """Coverage of both numbers of block structure over few mini-batches."""
    grams, stages = grams_and_stages(2000)
    contrasts = np.stack([_contrast(stages, matched) for matched in (False, True)])
    random = np.random.default_rng(0)
    drawn = (random.choice(grams.shape[1], size, replace=False) for _ in range(population))
    pool = np.stack([hsic(grams[:, at[:, None], at]) for at in drawn])

    def structure(dependence: np.ndarray) -> np.ndarray:
        """Shapes: (..., U, U) -> (..., 2)."""
        return np.tensordot(cka(dependence), contrasts, ((-2, -1), (1, 2)))

    truth, rows = structure(pool.sum(0)), []
    for n in MINI_BATCHES:
        weights = np.concatenate(list(counts(n, RESAMPLES, 0)))
        ends: dict[str, list[np.ndarray]] = {"used": [], "percentile": []}
        for _ in range(simulations):
            batches = pool[random.integers(0, population, n)]
            total = batches.sum(0)
            ends["used"].append(np.stack(jackknife_interval(structure(total), structure(total - batches))[1:]))
            resampled = structure(np.tensordot(weights, batches, 1))
            ends["percentile"].append(np.quantile(resampled, [0.025, 0.975], axis=0))
        row: dict[str, Any] = {"n": n}
        for name, intervals in ends.items():
            low, high = np.stack(intervals, 1)  # (simulations, 2) each
            for k, number in enumerate(("plain", "matched")):
                row[f"{name}_{number}"] = inside((low[:, k], high[:, k]), float(truth[k]))
        rows.append(row)
    return rows


def negative_shares(simulations: int) -> list[dict[str, Any]]:
    """Coverage of NEP by its interval, that of a mean of mini-batches' shares, and by the basic bootstrap."""
    random, top, rows = np.random.default_rng(0), 5, []
    for n in (10, 20, 30):
        for p in SHARES:
            row: dict[str, Any] = {"n": n, "p": p}
            for spread in ("binomial", "overdispersed"):
                share = p if spread == "binomial" else random.beta(4 * p, 4 * (1 - p), (simulations, n, 1))
                negative = random.random((simulations, n, top)) < share
                shares = negative.mean(2).T  # (n, simulations)
                row[f"used_{spread}"] = inside(share_interval(shares)[1:], p)
                own = [statistic_interval(each.__matmul__, n, resamples=300, within=(0, 1))[1:] for each in shares.T / n]
                row[f"bootstrap_{spread}"] = inside(np.array(own, float).T, p)
            rows.append(row)
    return rows


def ece_differences(simulations: int) -> list[dict[str, Any]]:
    """The paired interval that `backlight compare` uses, and the one from both models' own intervals."""
    cases = [
        (n, first, second) for n in (200, 1000) for first, second in ((0, 0), (0.05, 0.05), (0.05, 0.1), (0, 0.1), (0.1, 0.2))
    ]
    return [{"n": n, "first": a, "second": b} | _ece_difference(n, a, b, simulations) for n, a, b in cases]


def _ece_difference(n: int, first: float, second: float, simulations: int, bins: int = 10) -> dict[str, float]:
    rng, resamples = np.random.default_rng(0), np.concatenate(list(counts(n, RESAMPLES, 0)))
    rows = []
    for _ in range(simulations):
        confidence = 0.3 + 0.7 * rng.beta(3, 1, n)
        confidences = np.stack([confidence, np.clip(confidence + rng.normal(0, 0.05, n), 0.3, 1)])
        correct = rng.random(n) < np.clip(confidences - [[first], [second]], 0, 1)
        gaps = [
            (np.eye(bins)[np.ceil(c * bins).astype(int) - 1].T * (c - k)).T for c, k in zip(confidences, correct, strict=True)
        ]
        plain, resampled = ([np.abs(w @ gap).sum(-1) / n for gap in gaps] for w in (np.ones(n), resamples))
        value = plain[1] - plain[0]
        low, high = basic_interval(value, resampled[1] - resampled[0])
        own = [np.stack([v, *np.clip(basic_interval(v, r), 0, 1)]) for v, r in zip(plain, resampled, strict=True)]
        for each in own:
            each[1:] = min(each[1], each[0]), max(each[2], each[0])
        rows.append([value, min(low, value), max(high, value), *difference_interval(*own)])
    paired, unpaired = np.array(rows).T.reshape(2, 3, -1)
    true = second - first
    return {
        "used": inside(paired[1:], true), "width": float(np.diff(paired[1:], axis=0).mean()),
        "bias": float((paired[0] - true).mean()),
        "unpaired": inside(unpaired[1:], true), "unpaired_width": float(np.diff(unpaired[1:], axis=0).mean()),
    }  # fmt: skip


def tables(results: dict[str, list[dict[str, Any]]]) -> str:
    """The results as Markdown."""

    def table(title: str, keys: dict[str, str], rows: list[dict[str, Any]]) -> str:
        def cell(key: str, value: float) -> str:
            return f"{value:g}" if key in ("n", "p", "lost", "gained") else f"{100 * value:.1f}"

        head = f"| {' | '.join(keys.values())} |\n|{'--:|' * len(keys)}"
        return "\n".join([f"{title}\n", head, *(f"| {' | '.join(cell(k, row[k]) for k in keys)} |" for row in rows)])

    return "\n\n".join(
        [
            table(
                "Coverage of a proportion, %, exact:",
                {"n": "images", "p": "p", "used": "Jeffreys (used)", "wilson": "Wilson", "percentile": "percentile bootstrap"},
                results["proportions"],
            ),
            table(
                "Coverage of a paired difference, %:",
                {"n": "images", "p": "p before", "lost": "become wrong", "gained": "become correct", "used": "Tango (used)",
                 "newcombe": "Newcombe 10"},
                results["paired"],
            ),
            table(
                "Coverage of the mean of a skewed number (NLL), %:",
                {"n": "images", "used": "bootstrap-t (used)", "percentile": "percentile", "basic": "basic",
                 "bias_corrected": "BCa"},
                results["means"],
            ),
            table(
                "Coverage of the block structure of `similarity` (plain, and at equal distance), %:",
                {"n": "mini-batches", "used_plain": "jackknife-t (used), plain", "used_matched": "equal distance",
                 "percentile_plain": "percentile, plain", "percentile_matched": "equal distance"},
                results["blocks"],
            ),
            table(
                "Coverage of NEP of `hessian`, the share of negative ones of 5 eigenvalues of each mini-batch, %:",
                {"n": "mini-batches", "p": "NEP", "used_binomial": "mean of shares (used), binomial",
                 "used_overdispersed": "overdispersed", "bootstrap_binomial": "basic bootstrap, binomial",
                 "bootstrap_overdispersed": "overdispersed"},
                results["negative_shares"],
            ),
            table(
                "Coverage of a difference of ECE of two models on the same images, %; widths and bias in percentage points:",
                {"n": "images", "first": "ECE of the first", "second": "of the second", "used": "paired (used)",
                 "width": "its mean width", "bias": "bias of the difference", "unpaired": "both intervals added",
                 "unpaired_width": "their mean width"},
                results["ece_differences"],
            ),
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/intervals.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/statistics.md"))
    options = parser.parse_args()
    results = {
        "proportions": proportions(),
        "paired": paired(options.simulations),
        "means": means(min(options.simulations, 5000)),
        "blocks": blocks(min(options.simulations, 1000)),
        "negative_shares": negative_shares(min(options.simulations, 1000)),
        "ece_differences": ece_differences(min(options.simulations, 1000)),
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    page = options.page.read_text()
    before, rest = page.split(BEGIN)
    options.page.write_text(f"{before}{BEGIN}\n{tables(results)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
