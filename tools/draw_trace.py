"""Draws the recorded forward pass of demo-alternet with its units into docs/explanation/trace.png."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import backlight
from backlight.results.figures import KIND_COLOUR
from backlight.tracing.tap import Tap, Unit
from backlight.tracing.trace import Trace, record_calls

FILE = Path(__file__).parents[1] / "docs" / "explanation" / "trace.png"
#: Heights of the stream and of branches; colours of calls outside of units, and of the stream.
STREAM, BRANCH = 0.0, 1.0
GREY, STREAM_COLOUR = "#8A8A8A", "#444444"


def made(trace: Trace, tap: Tap | None) -> int:
    """The call that a tap reads; the streams of this model all have one."""
    assert tap
    point = (tap.module, tap.call)
    return next(i for i, call in enumerate(trace.calls) if point in (call.returned if tap.side == "output" else call.received))


def bodies(trace: Trace, units: list[Unit]) -> dict[int, set[int]]:
    """The calls of each unit's branch, by the index of its sum."""
    return {
        made(trace, unit.after): set().union(
            *(trace.between(made(trace, unit.before), made(trace, tap)) for tap in unit.branch)
        )
        for unit in units
    }


def rows(trace: Trace, units: list[Unit]) -> list[range]:
    """The calls of each stage; the stem is drawn before the first and the head after the last."""
    ends = [made(trace, unit.after) for unit, later in pairwise(units) if unit.stage != later.stage]
    starts = [0, *(end + 1 for end in ends)]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(trace.calls)], strict=True)]


def edge(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """A line from a call to one that reads it: thick along the stream, bent around calls between the two on a branch."""
    along = start[1] == end[1] == STREAM
    style = {
        "arrowstyle": "-",
        "color": STREAM_COLOUR if along else colour,
        "lw": 1.8 if along else 0.8,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    if start[1] == end[1] == BRANCH and end[0] - start[0] > 1:
        style["connectionstyle"] = "arc3,rad=0.5"
    ax.annotate("", end, start, arrowprops=style, zorder=1)


def draw(ax: Axes, trace: Trace, units: list[Unit], calls: range) -> None:
    """One stage: the stream below, the branches above, the calls from left to right in their order."""
    branches = bodies(trace, units)
    unit_of = {i: unit for unit, body in zip(units, branches.values(), strict=True) for i in body}
    sums = dict(zip(branches, units, strict=True))
    place = {i: (float(i - calls.start), BRANCH if i in unit_of else STREAM) for i in range(calls.start - 1, calls.stop)}
    for i in calls:
        unit = sums.get(i) or unit_of.get(i)
        colour = KIND_COLOUR[unit.kind] if unit else GREY
        for parent in trace.calls[i].parents:
            edge(ax, place[parent], place[i], KIND_COLOUR[unit_of[parent].kind] if parent in unit_of else colour)
        node(ax, place[i], colour, trace.calls[i].name.strip("_"), sums.get(i))
    last = max(i for i in sums if i in calls)
    height, width = trace.calls[last].shape[2:]
    ax.text(-1.3, 3.6, f"stage {sums[last].stage}: maps of {height} × {width}", fontsize=7, fontweight="bold")


def node(ax: Axes, place: tuple[float, float], colour: str, name: str, unit: Unit | None) -> None:
    """A call with its name, or the sum that ends a unit with the unit's."""
    x, y = place
    ax.plot(x, y, "o", color=colour, markersize=9 if unit else 4.5, zorder=2)
    if unit:
        ax.text(x, y, "+", color="white", ha="center", va="center_baseline", fontsize=8, fontweight="bold", zorder=3)
        ax.text(x + 0.5, y - 0.4, f"unit {unit.index}\n{unit.kind}", color=colour, ha="right", va="top", fontsize=6)
    else:
        up = y == BRANCH
        ax.text(x, y + (0.2 if up else -0.25), name, rotation=90, ha="center", va="bottom" if up else "top", fontsize=5)


def figure(trace: Trace, units: list[Unit]) -> Figure:
    """A row for each stage."""
    stages = rows(trace, units)
    fig = Figure(figsize=(8.6, 5.4), facecolor="white", layout="constrained")
    for ax, calls in zip(fig.subplots(len(stages)), stages, strict=True):
        draw(ax, trace, units, calls)
        ax.set(xlim=(-1.6, max(map(len, stages)) - 0.4), ylim=(-1.75, 4.0))
        ax.axis("off")
    return fig


def write(file: Path) -> None:
    """The picture, in few colours so that it is small."""
    model, images = backlight.load_model("demo-alternet").eval(), torch.zeros(1, 1, 28, 28)
    buffer = io.BytesIO()
    figure(record_calls(model, images), backlight.units(model, images)).savefig(buffer, dpi=170)
    Image.open(buffer).convert("RGB").quantize(48).save(file, optimize=True)


if __name__ == "__main__":
    write(FILE)
