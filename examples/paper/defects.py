"""The four defects of the official code that reach its figures: each measured both ways, and what that does to the claim."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from evidence import END, PUBLISHED, WARMUP, Decided, Stored, decided, in_words
from series import read

from backlight.results.result import Result
from backlight.study.folder import Model

Both = Sequence[tuple[str, Model, Model]]
UNAFFECTED = ("training-nll",)  # the loss at the trained weights, which no direction or decay changes
HEADING = "## Where the paper's pictures rest on its code\n"


def defects(stored: Stored) -> str:
    """The section of the page."""
    if not any(stored[published] for published in PUBLISHED.values()):
        return HEADING + "\nNot measured yet: `python examples/paper/run.py --stage analyse --data FOLDER`.\n"
    end, warmup = both_ways(stored, END), both_ways(stored, WARMUP)
    parts = [_landscape(end), _frequency(end), _noise(end), _power_iteration(warmup), _verdicts(stored)]
    return "\n".join([HEADING, read("texts.toml")["defects"], *parts])


def both_ways(stored: Stored, moment: str) -> Both:
    """The trainings that were measured in both ways: name, ours, as published."""
    ours, published = stored[moment], stored[PUBLISHED[moment]]
    return [(key, ours[key], model) for key, model in published.items() if key in ours]


def _table(title: str, text: str, columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> str:
    lines = [f"### {title}\n", read("texts.toml")[text], f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""])


# --- the L2 term of the landscape


def _landscape(both: Both) -> str:
    def rows() -> Iterator[Sequence[Any]]:
        for key, ours, published in both:
            if "landscape" not in ours.results or "landscape" not in published.results:
                continue
            for radius in (0.4, 1.0):
                nll, decay = rises(ours.results["landscape"], radius)
                published_nll, term = rises(published.results["landscape"], radius)
                yield key, f"{radius:g}", *(f"{x:.3g}" for x in (nll, decay, published_nll, term))

    return _table(
        "The L2 term of the landscape",
        "landscape",
        ["training", "radius", "NLL", "weight decay", "NLL, `--paper`", "term of figure 1a"],
        rows(),
    )


def rises(landscape: Result, radius: float) -> tuple[float, float]:
    """The mean rise of NLL and of the decay term from the centre to a circle, over the grid points next to it."""
    x, y, nll, decay = (np.array([row[name] for row in landscape.table], float) for name in ("x", "y", "nll", "decay"))
    distance = np.hypot(x, y)
    spacing = np.diff(np.unique(x))[0]
    ring, centre = abs(distance - radius) <= spacing / 2 * (1 + 1e-9), distance == 0
    return tuple(float(z[ring].mean() - z[centre].mean()) for z in (nll, decay))  # type: ignore[return-value]


# --- the frequency axis


def _frequency(both: Both) -> str:
    def rows() -> Iterator[Sequence[Any]]:
        for key, ours, published in both:
            if "fourier" in ours.results and "fourier" in published.results:
                ends = [highest(model.results["fourier"]) for model in (ours, published)]
                yield key, *ends[1][:2], f"{2 * (ends[1][1] - 1) / ends[1][0]:.3g}π", f"{ends[0][2]:+.2f}", f"{ends[1][2]:+.2f}"

    return _table(
        "The frequency axis",
        "frequency",
        [
            "training",
            "side of the last map",
            "bins of the code",
            "true end of its axis",
            "Δ at π, ours",
            "Δ at its end, `--paper`",
        ],
        rows(),
    )


def highest(fourier: Result) -> tuple[int, int, float]:
    """Of the last unit: the side of its map, the number of bins, Δ log amplitude in the last bin."""
    last = max(row["unit"] for row in fourier.table)
    rows = [row for row in fourier.table if row["unit"] == last]
    return rows[-1]["height"], len(rows), rows[-1]["delta"]


# --- the energy of the noise


def _noise(both: Both) -> str:
    def rows() -> Iterator[Sequence[Any]]:
        for key, ours, published in both:
            if "noise" in ours.results and "noise" in published.results:
                for name, model in (("ours", ours), ("`--paper`", published)):
                    low, high = (_ends(model.results["noise"], column) for column in ("rms", "accuracy_change"))
                    yield key, name, *(f"{x:.3f}" for x in low), *(f"{100 * x:+.1f}" for x in high)

    return _table(
        "The energy of the noise",
        "noise",
        ["training", "noise", "size, lowest", "size, highest", "accuracy, lowest", "accuracy, highest"],
        rows(),
    )


def _ends(noise: Result, column: str) -> tuple[float, float]:
    """A column in the lowest and the highest band, the mean over severities."""
    frequencies = sorted({row["frequency"] for row in noise.table})
    low, high = (
        float(np.mean([row[column] for row in noise.table if row["frequency"] == f])) for f in (frequencies[0], frequencies[-1])
    )
    return low, high


# --- power iteration


def _power_iteration(both: Both) -> str:
    def rows() -> Iterator[Sequence[Any]]:
        for key, ours, published in both:
            if "hessian" in ours.results and "hessian" in published.results:
                for name, model in (("Lanczos", ours), ("power iteration", published)):
                    yield key, name, *_spectrum(model.results["hessian"])

    return _table(
        "Power iteration",
        "power",
        ["training", "solver", "NEP, %", "APE", "mean relative residual", "products a mini-batch", "not converged"],
        rows(),
    )


def _spectrum(hessian: Result) -> Iterator[str]:
    summary: Mapping[str, Sequence[float]] = hessian.provenance["summary"]["all"]
    for name, scale in (("nep", 100), ("ape", 1)):
        value, low, high = (scale * float(end) for end in summary[name])
        yield f"{value:.3g} [{low:.3g}, {high:.3g}]"
    yield f"{np.mean([row['residual'] / max(abs(row['eigenvalue']), 1e-12) for row in hessian.table]):.2g}"
    yield f"{hessian.provenance['products']['mean']:g}"
    yield f"{hessian.provenance['not_converged']} of {len(hessian.table)}"


# --- the statements both ways


def _verdicts(stored: Stored) -> str:
    ours, published = decided(stored), decided(stored, published=True)

    def rows() -> Iterator[Sequence[Any]]:
        for one, other in zip(ours, published, strict=True):
            if one.effect and other.effect and one.row.get("measure") not in UNAFFECTED and one.analysis != "calibration":
                yield one.item["number"], one.row["says"], _words(one), _words(other), _change(one, other)

    return _table(
        "What it does to the statements",
        "verdicts",
        ["item", "statement", "ours", "`--paper`", "verdict"],
        rows(),
    )


def _words(each: Decided) -> str:
    assert each.effect is not None
    return in_words(each.effect)


def _change(one: Decided, other: Decided) -> str:
    """Both verdicts, without Holm's correction, which is over fewer statements in the second."""
    first, second = (each.verdict.removesuffix(", not after Holm") for each in (one, other))
    return f"the same: {first}" if first == second else f"{first}; with `--paper` {second}"
