"""Does Backlight find the units of any vision model?  Tested on one architecture of each of timm's model modules.

    python benchmarks/coverage.py [--only resnet swin_transformer ...] [--limit-s 300] [--out docs/coverage.md]

The architecture is the one with the fewest parameters among those for images of at most 256 px (of any size if there is
none), without tagless duplicates and timm's small `test_*` models.  Weights are random.  For each:

- *units*: the number of residual sums, spelled as a word;
- *read*: after how many of them the stream can be read as a map of the image;
- *removable*: of how many the branch can be set to zero;
- *proven*: of the units whose skip is the identity, for how many the stream after the unit without its branch equals the
  stream before it, bit for bit (`backlight.check`); a model passes if this holds for at least one unit, fails for none,
  and the model gives the same output afterwards;
- *timm agrees*: how many of timm's own maps (`forward_intermediates`, NCHW) equal a map that Backlight reads, bit for bit.
  A map with the same numbers at other positions is a contradiction, and a failure.

Each model runs in its own process with a time limit.  The page is docs/coverage.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from timm.models._registry import _module_to_models
from torch import Tensor, nn

from backlight.tracing.find import units
from backlight.tracing.hooks import check, reading
from backlight.tracing.layout import grid
from backlight.tracing.tap import spell, stream_taps
from backlight.tracing.trace import evaluating

LARGEST = 256
T, U = TypeVar("T"), TypeVar("U")


@dataclass(frozen=True)
class Row:
    """The results for one architecture."""

    module: str
    architecture: str
    pixels: int = 0
    word: str = ""
    units: int = 0
    read: int = 0
    removable: int = 0
    identity: int = 0
    proven: int = 0
    refuted: int = 0
    timm: int = -1  # number of maps that timm gives; -1: the model has no forward_intermediates
    agreed: int = 0
    contradicted: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def passed(self) -> bool:
        return self.proven > 0 and not (self.refuted or self.contradicted or self.error)

    @property
    def why(self) -> str:
        """Why the model did not pass."""
        if self.passed or self.error:
            return self.error
        if not self.units:
            return "no residual sums: name modules with --at"
        if self.refuted or self.contradicted:
            return f"WRONG: {self.refuted} units refuted, {self.contradicted} maps contradict timm's"
        if not self.identity:
            return "no skip is the identity: nothing to prove"
        return "no module returns the stream: name modules with --at"


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    rows = []
    for module, names in sorted(_module_to_models.items()):
        if arguments.only and module not in arguments.only:
            continue
        architecture = within(arguments.limit_s, smallest, sorted(names))
        row = within(arguments.limit_s, examine, Row(module, architecture))
        rows.append(row if isinstance(row, Row) else Row(module, architecture, error=row))
        print(markdown(rows[-1]), file=sys.stderr, flush=True)
    if arguments.out:
        command = " ".join(["python", *sys.argv])
        Path(arguments.out).write_text(page(rows, command))
    print(f"{sum(row.passed for row in rows)} of {len(rows)} pass", file=sys.stderr)


def within(limit_s: float, function: Callable[[T], U], argument: T) -> U | str:
    """What the function returns in a new process; a sentence if it does not return in time.

    This process must not compute anything itself: a child that is forked after OpenMP started its threads waits for them.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(argument)))
    process.start()
    sender.close()
    try:
        answer = receiver.recv() if receiver.poll(limit_s) else f"not done within {limit_s:.0f} s"
    except EOFError:
        answer = "the process ended early"
    process.kill()
    process.join()
    return answer


def smallest(names: list[str]) -> str:
    """The architecture with the fewest parameters, among those for images of at most LARGEST px if there are any."""
    ranked = [(rank, name) for name in names if (rank := _rank(name))]
    return min(ranked)[1]


def _rank(name: str) -> tuple[bool, int] | None:
    """(larger than LARGEST, parameters); None for test models and for aliases without a configuration."""
    config = timm.get_pretrained_cfg(name)
    if name.startswith("test_") or config is None:
        return None
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = timm.create_model(name)
    return max(config.input_size) > LARGEST, sum(p.numel() for p in model.parameters())


def examine(row: Row) -> Row:
    """The row with its results; an exception becomes its error."""
    warnings.simplefilter("ignore")
    try:
        torch.manual_seed(0)
        model = timm.create_model(row.architecture)
        images = fitting(model)
        row = replace(row, pixels=images.shape[-1])
        start = time.perf_counter()
        residual = units(model, images)
        proofs = list(check(model, images, residual))
        seconds = time.perf_counter() - start
        row = replace(
            row,
            word=spell(residual),
            units=len(residual),
            read=sum(bool(unit.after and unit.after.layout) for unit in residual),
            removable=sum(bool(unit.branch) for unit in residual),
            identity=sum(unit.identity for unit in residual),
            proven=sum(proof is True for _, proof in proofs),
            refuted=sum(proof is False for _, proof in proofs),
            seconds=seconds,
        )
        return replace(row, **compared(model, images, residual))
    except Exception as error:
        return replace(row, error=f"{type(error).__name__}: {error}"[:160])


def fitting(model: nn.Module) -> Tensor:
    """An image of the size that the model was made for, or a smaller one if that is large and the model accepts it."""
    own = model.default_cfg["input_size"]
    sides = [own[-1]] if own[-1] <= LARGEST else [256, 224, own[-1]]
    for side in sides:
        images = torch.randn(1, own[0], side, side, generator=torch.Generator().manual_seed(1))
        try:
            with evaluating(model), torch.no_grad():
                model(images)
        except Exception:
            if side == sides[-1]:
                raise
            continue
        return images
    raise AssertionError


def compared(model: nn.Module, images: Tensor, residual: list[Any]) -> dict[str, int]:
    """How many maps that timm gives equal a map that Backlight reads."""
    if not hasattr(model, "forward_intermediates"):
        return {}
    taps, ours = stream_taps(residual), {}

    def keep(i: int, activation: Tensor) -> None:
        ours[i] = grid(activation, taps[i].layout).clone()

    with evaluating(model), torch.no_grad():
        with reading(model, taps, keep):
            model(images)
        try:
            theirs = model.forward_intermediates(images, norm=False, output_fmt="NCHW", intermediates_only=True)
        except Exception:
            return {}
    same = [any(torch.equal(our, their) for our in ours.values()) for their in theirs]
    moved = [any(_same_numbers(our, their) for our in ours.values()) for their in theirs]
    return {
        "timm": len(theirs),
        "agreed": sum(same),
        "contradicted": sum(b and not a for a, b in zip(same, moved, strict=True)),
    }


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and torch.equal(a.flatten().sort().values, b.flatten().sort().values)


def page(rows: list[Row], command: str) -> str:
    """The text of docs/coverage.md."""
    passing = sum(row.passed for row in rows)
    reasons = Counter(row.why for row in rows if not row.passed)
    return "\n".join(
        [
            "# Coverage",
            "",
            f"Of timm's {len(rows)} model modules **{passing} pass the check**, with one architecture of each: the smallest,",
            "with random weights.  [benchmarks/coverage.py](../benchmarks/coverage.py) writes this page and defines the",
            "columns; [units.md](units.md) defines a unit.",
            "",
            f"torch {torch.__version__}, timm {timm.__version__}, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPU cores:",
            f"`{command}`",
            "",
            *(f"- {count} × {reason}" for reason, count in reasons.most_common()),
            "",
            "| module | architecture | px | word | units | read | removable | proven | timm agrees | s | |",
            "|---|---|--:|---|--:|--:|--:|--:|--:|--:|---|",
            *map(markdown, rows),
            "",
        ]
    )


def markdown(row: Row) -> str:
    agreed = "" if row.timm < 0 else f"{row.agreed}/{row.timm}"
    cells = [
        row.module,
        row.architecture,
        row.pixels,
        f"`{shortened(row.word)}`" if row.word else "",
        row.units,
        row.read,
        row.removable,
        f"{row.proven}/{row.identity}",
        agreed,
        f"{row.seconds:.1f}",
        "pass" if row.passed else row.why,
    ]
    return f"| {' | '.join(map(str, cells))} |"


def shortened(word: str) -> str:
    """The word with repeats as numbers.

    >>> shortened("amamamam cc")
    '(am)4 cc'
    """
    return " ".join(_folded(stage) for stage in word.split(" "))


def _folded(stage: str) -> str:
    for length in range(1, 9):
        for start in range(len(stage) - 2 * length + 1):
            part = stage[start : start + length]
            times = 1
            while stage[start + times * length :].startswith(part):
                times += 1
            if times > 1 and times * length > 5:
                once = part if length == 1 else f"({part})"
                after = stage[start + times * length :]
                return _folded(stage[:start]) + f"{once}{times}" + _folded(after)
    return stage


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="MODULE")
    parser.add_argument("--limit-s", type=float, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="write the page here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
