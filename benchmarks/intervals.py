"""How often do 95% intervals contain the true value?  The table of docs/statistics.md.

    python benchmarks/intervals.py [--simulations 20000] [--out benchmarks/results/intervals.json] [--page docs/statistics.md]

- *proportion*: n images, each correct with probability p; exact, as a sum over the binomial distribution.
- *paired difference*: a share of the images becomes wrong, a quarter of it (at most all that were wrong) becomes correct.
- *skewed mean*: NLL of a two-class model, log(1 + exp(-margin)), the margin normal with mean 3 and standard deviation 3; the
  four bootstrap intervals of the same simulations.

Runs in about a minute on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from backlight.numerics.bootstrap import counts, mean_interval, skewed_mean_interval
from backlight.numerics.proportions import proportion_interval, tango_ends

SIZES = (20, 50, 200)
PROPORTIONS = (0.5, 0.9, 0.98, 1.0)
#: Shares of the images that become wrong.
LOST = (0.02, 0.1, 0.3)
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
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    page = options.page.read_text()
    before, rest = page.split(BEGIN)
    options.page.write_text(f"{before}{BEGIN}\n{tables(results)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
