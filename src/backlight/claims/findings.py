"""All claims that the results of a study decide, first those that compare models, with Holm's correction over all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from backlight.claims.comparable import accuracy_of, caution_of, why_no_shape, why_not
from backlight.claims.comparisons import (
    ACCURACY_APART,
    COMPARISONS,
    OF_KINDS,
    Comparison,
    NoNumbers,
    OfKind,
    difference_of_means,
)
from backlight.claims.kinds import Kind, kind_of
from backlight.numerics.bootstrap import mean_interval
from backlight.numerics.multiple import ALPHA, holm
from backlight.results.claim import LEAST, Claim, Sample, Verdict
from backlight.study.folder import Model, Study

#: The page of the documentation that lists every claim.
DOCS = "docs/claims_list.md"
#: What every comparison of two models has to say.
PAIR = "two models are no sample of two kinds"


@dataclass(frozen=True)
class Finding:
    """A claim, the models that it is about, and how much it counts among all statements that were tested."""

    models: tuple[str, ...]
    analysis: str
    claim: Claim
    caution: str = ""  # why a verdict about these models says little, such as random weights
    unknown: str = ""  # what is not known of the models that a comparison should know
    adjusted: float = math.nan  # the p-value after Holm's correction
    tested: int = 0  # statements that the correction is over

    @property
    def corrected_away(self) -> bool:
        """Whether the verdict rests on an interval that excludes the deciding value, and does not after Holm's correction."""
        return self.claim.p_value < ALPHA <= self.adjusted

    @property
    def verdict(self) -> str:
        """The verdict in words, with what Holm's correction makes of it."""
        mark = f" (not after Holm's correction for {self.tested} statements)" if self.corrected_away else ""
        return f"{self.claim.verdict}{mark}"

    @property
    def note(self) -> str:
        """What a comparison does not show."""
        pair = [PAIR] if len(self.models) == 2 else []
        return "; ".join(filter(None, [self.unknown, *pair]))

    @property
    def docs(self) -> str:
        """Where the documentation has the claim."""
        return f"{DOCS}#{anchor(self.claim.id)}"

    def row(self) -> dict[str, Any]:
        """The finding as a row of a table."""
        claim = self.claim
        numbers = {"value": claim.value, "low": claim.low, "high": claim.high, "p": claim.p_value, "p_holm": self.adjusted}
        return {
            "verdict": self.verdict,
            "id": claim.id,
            "models": ", ".join(self.models),
            "statement": claim.statement,
            **{name: number if math.isfinite(number) else None for name, number in numbers.items()},
            "quantity": claim.quantity,
            "count": claim.count,
            "over": claim.over,
            "source": claim.source,
            "docs": self.docs,
            "reason": claim.reason,
            "caution": self.caution,
            "note": self.note,
        }


def anchor(id: str) -> str:
    """The place of a claim on its page of the documentation.

    >>> anchor("compare/flatter")
    'compare-flatter'
    """
    return id.replace("/", "-")


def findings(study: Study, kinds: Mapping[str, Kind] | None = None) -> list[Finding]:
    """Every claim about a study.  ``kinds``: of models whose kind does not follow from their units."""
    by_kind = {model.name: (kinds or {}).get(model.name) or kind_of(model.units) for model in study.models}
    compared = [finding for comparison in COMPARISONS for finding in _compared(comparison, study.models, by_kind)]
    of_kinds = [finding for about in OF_KINDS for finding in _of_kind(about, study.models, by_kind)]
    of_models = [
        Finding((model.name,), analysis, claim, caution_of(model.results[analysis]))
        for model in study.models
        for analysis in model.results
        for claim in model.results[analysis].claims
    ]
    return _corrected([*compared, *of_kinds, *of_models])


def summary(of_study: Sequence[Finding]) -> str:
    """How many statements were tested, and with which outcome, in a sentence."""
    tested = [finding for finding in of_study if math.isfinite(finding.claim.p_value)]
    if not tested:
        return "no statement could be tested"
    verdicts = [finding.claim.verdict for finding in tested]
    outcomes: dict[Verdict, str] = {"holds": "hold", "does not hold": "do not hold", "undecided": "undecided"}
    counts = ", ".join(f"{verdicts.count(verdict)} {words}" for verdict, words in outcomes.items())
    weak = sum(finding.corrected_away for finding in tested)
    marked = f"; {weak} of these verdicts are undecided after Holm's correction for {len(tested)} statements" if weak else ""
    return f"statements tested: {len(tested)} ({counts}){marked}"


def _corrected(uncorrected: Sequence[Finding]) -> list[Finding]:
    adjusted = holm([finding.claim.p_value for finding in uncorrected])
    tested = int(np.isfinite(adjusted).sum())
    return [replace(f, adjusted=float(p), tested=tested) for f, p in zip(uncorrected, adjusted, strict=True)]


# --- statements about kinds


def _of_kind(about: OfKind, models: Iterable[Model], kinds: Mapping[str, Kind]) -> Iterable[Finding]:
    for model in models:
        result = model.results.get(about.analysis)
        if result is None or kinds[model.name] != about.kind:
            continue
        try:
            numbers = about.numbers(result)
        except NoNumbers:
            continue
        claim = Claim.of_sign(
            about.sign, mean_interval(numbers), id=f"kind/{about.name}", statement=about.statement, source=about.source,
            quantity=about.quantity, count=len(numbers),
        )  # fmt: skip
        yield Finding((model.name,), about.analysis, claim, caution_of(result))


def _compared(comparison: Comparison, models: Iterable[Model], kinds: Mapping[str, Kind]) -> list[Finding]:
    """A finding for each pair of models; one for all if there are enough of each kind, and they were measured alike."""
    first, second = (
        [model for model in models if kinds[model.name] == kind and comparison.analysis in model.results]
        for kind in comparison.kinds
    )
    if not first or not second:
        return []
    enough = min(len(first), len(second)) >= LEAST["models"]
    if comparison.over == "models" or enough:
        finding = over_models(comparison, first, second)
        if comparison.over == "models" or finding.claim.verdict != "not comparable":
            return [finding]
    return [pair(comparison, a, b) for a, b in itertools.product(first, second)]


def pair(comparison: Comparison, first: Model, second: Model) -> Finding:
    """The comparison of two models on the same images or mini-batches."""

    def claim() -> Claim:
        one, other = (comparison.numbers(model.results[comparison.analysis]) for model in (first, second))
        ends = [comparison.scale * end for end in comparison.interval(one, other)]
        return _claim(comparison, ends, len(one), comparison.over)

    return _finding(comparison, [first, second], claim, comparison.over)


def over_models(comparison: Comparison, first: Sequence[Model], second: Sequence[Model]) -> Finding:
    """The comparison of the means of several models of each kind, with an interval over models."""
    models = [*first, *second]

    def claim() -> Claim:
        means = [[float(comparison.numbers(m.results[comparison.analysis]).mean()) for m in side] for side in (first, second)]
        ends = [comparison.scale * end for end in difference_of_means(*means)]
        return _claim(comparison, ends, min(map(len, means)), "models")

    return _finding(comparison, models, claim, "models")


def _finding(comparison: Comparison, models: Sequence[Model], claim: Callable[[], Claim], over: Sample) -> Finding:
    """The finding of a claim, or why there is none."""
    names = tuple(model.name for model in models)
    cautions = [f"{m.name}: {caution}" for m in models if (caution := caution_of(m.results[comparison.analysis]))]
    reason = _why_not(comparison, models)
    try:
        decided = _not_comparable(comparison, reason, over) if reason else claim()
    except NoNumbers as error:
        decided = _not_comparable(comparison, str(error), over)
    not_known = comparison.of_the_loss and any(accuracy_of(model) is None for model in models)
    unknown = "their accuracies are not known here, so they may not be alike" if not_known else ""
    return Finding(names, comparison.analysis, decided, "; ".join(cautions), unknown)


def _claim(comparison: Comparison, ends: Sequence[float], count: int, over: Sample) -> Claim:
    return Claim.of_sign(
        comparison.sign, ends, id=f"compare/{comparison.name}", statement=comparison.statement, source=comparison.source,
        quantity=comparison.quantity, count=count, over=over,
    )  # fmt: skip


def _not_comparable(comparison: Comparison, reason: str, over: Sample) -> Claim:
    unknown = math.nan, math.nan, math.nan
    about = comparison.statement, comparison.source, comparison.quantity
    return Claim(f"compare/{comparison.name}", *about, *unknown, "not comparable", 0, over, reason)


def _why_not(comparison: Comparison, models: Sequence[Model]) -> str:
    """Why two of these models are not comparable, the first such pair; empty if all are.

    Equal images and settings with the first model mean equal ones with each other; like accuracies do not.
    """
    for one, other in itertools.chain(((models[0], other) for other in models[1:]), _apart(comparison, models)):
        reason = why_not(one.results[comparison.analysis], other.results[comparison.analysis])
        if comparison.of_the_loss:
            reason = reason or why_no_shape(one, other, comparison.analysis)
        if reason:
            return reason if len(models) == 2 else f"{one.name} and {other.name}: {reason}"
    return ""


def _apart(comparison: Comparison, models: Sequence[Model]) -> Iterator[tuple[Model, Model]]:
    """The pairs of models whose accuracies are too unlike to compare the shape of their losses."""
    if comparison.of_the_loss:
        known = [(model, accuracy) for model in models if (accuracy := accuracy_of(model)) is not None]
        for (one, first), (other, second) in itertools.combinations(known, 2):
            if abs(first - second) > ACCURACY_APART:
                yield one, other
