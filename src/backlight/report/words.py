"""Numbers and models in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, pairwise

from backlight.results.claim import Claim, Sample
from backlight.results.over import counted, series
from backlight.results.result import Row

SINGULAR = {"attention": "attention", "conv": "convolution", "mlp": "MLP", "blur": "blur"} | {
    kind: f"{kind} unit" for kind in ("parallel", "other")
}
PLURAL = {kind: f"{word}s" for kind, word in SINGULAR.items()}
ONE_OF: dict[Sample, str] = {"images": "image", "mini-batches": "mini-batch", "seeds": "seed", "models": "model"}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(x: float | None, decimals: int | None = None) -> str:
    """A number with a true minus sign, three figures by default; a dash for none.

    >>> number(-0.2494), number(28160.4), number(float("nan"))
    ('−0.249', '28,160', '–')
    """
    if x is None or not math.isfinite(x):
        return "–"
    if decimals is None:
        decimals = max(0, 2 - _exponent(x))
    return f"{round(x, decimals) + 0.0:,.{decimals}f}".replace("-", "−")


def interval(value: float | None, low: float | None, high: float | None, scale: float = 1) -> str:
    """A number with its interval, to as many decimals as give half the interval's width two figures.

    >>> interval(-0.2494, -0.2642, -0.2329)
    '−0.249 [−0.264, −0.233]'
    >>> interval(-5.01e-06, -8.12e-06, -1.32e-06)
    '−5.0 [−8.1, −1.3] × 10⁻⁶'
    """
    ends = [math.nan if x is None else scale * x for x in (value, low, high)]
    if not all(map(math.isfinite, ends)):
        return number(ends[0])
    half = (ends[2] - ends[1]) / 2
    decimals = max(0, 1 - _exponent(half)) if half > 0 else max(0, 2 - _exponent(ends[0]))
    power = 0
    if decimals > 5:  # more zeros than one can count: a power of ten instead
        power = _exponent(max(map(abs, ends)))
        decimals += power
    middle, lowest, highest = (number(x / 10.0**power, decimals) for x in ends)
    return f"{middle} [{lowest}, {highest}]" + (f" × 10{str(power).translate(_RAISED)}" if power else "")


def _exponent(x: float) -> int:
    return math.floor(math.log10(abs(x))) if x else 0


def measured(claim: Claim) -> str:
    """The number that decides a claim, with its interval; empty if there is none."""
    return interval(claim.value, claim.low, claim.high) if math.isfinite(claim.value) else ""


def rests_on(claim: Claim, split: str = "") -> str:
    """What the interval of a claim is over, images with their split; empty if over nothing."""
    before = f"{split} " if split and claim.over == "images" else ""
    return counted(claim.count, before + ONE_OF[claim.over], before + claim.over) if claim.count else ""


def unit_of(quantity: str) -> str:
    """The unit at the end of what a claim measures.

    >>> unit_of("accuracy, ViT less CNN (percentage points)"), unit_of("signed ECE, confidence minus accuracy")
    ('percentage points', '')
    """
    return quantity[quantity.rindex("(") + 1 : -1] if quantity.endswith(")") else ""


def merged(sentences: Sequence[str]) -> str:
    """One sentence for several that differ in a word here and there, each of them for several that differ in more.

    >>> merged(["mean of 6 units (nepers)", "mean of 8 units (nepers)"])
    'mean of 6 or 8 units (nepers)'
    """
    split = [sentence.split() for sentence in sentences]
    if len({len(words) for words in split}) > 1:
        return "; ".join(dict.fromkeys(sentences))
    return " ".join(_either(variants) for variants in zip(*split, strict=True))


def _either(variants: Sequence[str]) -> str:
    """The variants of one word of a sentence.

    >>> _either(["6", "8", "6"]), _either(["16", "4", "48"])
    ('6 or 8', '4 to 48')
    """
    different = list(dict.fromkeys(variants))
    if len(different) > 2 and all(variant.isdecimal() for variant in different):
        return f"{min(different, key=int)} to {max(different, key=int)}"
    return " or ".join(different)


def anatomy(units: Sequence[Row], parameters: int | None) -> str:
    """A model in a sentence: its units, their order, its size.

    >>> vit = [{"kind": kind, "stage": 0} for kind in ["attention", "mlp"] * 12]
    >>> anatomy(vit, 5_700_000)
    '24 units in 1 stage: attention and MLP take turns; 5.7 M parameters.'
    """
    parts = []
    if units:
        stages = [[unit["kind"] for unit in group] for _, group in groupby(units, key=lambda unit: unit["stage"])]
        parts.append(f"{counted(len(units), 'unit')} in {counted(len(stages), 'stage')}: {_order(stages)}")
    if parameters:
        parts.append(f"{_size(parameters)} parameters")
    return "; ".join(parts) + "." if parts else "Its units are not known."


def _order(stages: Sequence[Sequence[str]]) -> str:
    kinds = [kind for stage in stages for kind in stage]
    often = Counter(kinds)
    first, *others = often
    if not others:
        return f"all {PLURAL.get(first, first)}" if len(kinds) > 1 else SINGULAR.get(first, first)
    if len(others) == 1 and all(a != b for a, b in pairwise(kinds)):
        return f"{SINGULAR.get(first, first)} and {SINGULAR.get(others[0], others[0])} take turns"
    counts = series(counted(n, SINGULAR.get(kind, kind), PLURAL.get(kind, kind)) for kind, n in often.items())
    ends = sum(stage[-1] == "attention" for stage in stages)
    return f"{counts}, an attention at the end of {ends} of the {len(stages)}" if ends and len(stages) > 1 else counts


def _size(parameters: int) -> str:
    """A number of parameters, rounded.

    >>> _size(28_160_000), _size(9_400), _size(380_000)
    ('28 M', '9,400', '380 k')
    """
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if parameters >= 10_000 and parameters >= unit:
            return f"{parameters / unit:.1f}{name}" if parameters < 10 * unit else f"{parameters / unit:,.0f}{name}"
    return f"{parameters:,}"
