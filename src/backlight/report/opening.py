"""What a page says first: three to six sentences made from its claims and its largest effects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from backlight.claims.findings import Finding, summary
from backlight.report import samples, words
from backlight.results.claim import Claim, Verdict
from backlight.results.over import counted, series
from backlight.results.result import Result, Row
from backlight.study.folder import Study

#: Sentences about comparisons of models, and about each model; with those about accuracy, lesions and counts, six.
COMPARED, STATEMENTS = 1, 3
#: Names in a clause; more models are counted.
NAMED = 3
SAYING: dict[Verdict, str] = {"holds": "holds in", "does not hold": "does not hold in", "undecided": "undecided in"}


@dataclass(frozen=True)
class Sentence:
    """A sentence and the place on the page that has more about it."""

    text: str
    link: str


def opening(study: Study, decided: Sequence[Finding]) -> list[Sentence]:
    """The sentences, the numbers of each with their interval and what they are over."""
    compared = _strongest(_by_statement(f for f in decided if len(f.models) > 1), COMPARED)
    of_models = _strongest(_by_statement(f for f in decided if len(f.models) == 1), STATEMENTS - len(compared))
    told = [_accuracy(study), *(_statement(study, group) for group in [*compared, *of_models]), _most_needed(study)]
    return [*(sentence for sentence in told if sentence is not None), Sentence(_counts(decided), "claims")]


def strength(claim: Claim) -> float:
    """The distance of a claim's number from what decides it, in half widths of its interval; 0 if nothing was tested."""
    half = (claim.high - claim.low) / 2
    untested = claim.reason or not math.isfinite(half) or half <= 0
    return 0.0 if untested else abs(claim.value - claim.decided_at) / half


# --- sentences about statements


def _by_statement(findings: Iterable[Finding]) -> list[list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.claim.id, []).append(finding)
    return list(groups.values())


def _strongest(groups: list[list[Finding]], most: int) -> list[list[Finding]]:
    """The groups with a decided finding: first those in which models differ, then by strength, one an analysis."""
    decided = [group for group in groups if any(_counts_as_decided(finding) for finding in group)]
    ordered = sorted(
        decided, key=lambda group: (-_contrast(group), -_of_the_paper(group), -max(strength(f.claim) for f in group))
    )
    return list({group[0].analysis: group for group in reversed(ordered)}.values())[::-1][:most]


def _counts_as_decided(finding: Finding) -> bool:
    return finding.claim.verdict in ("holds", "does not hold") and not finding.corrected_away and not finding.caution


def _contrast(group: Sequence[Finding]) -> bool:
    """Whether a verdict is one about some of the models only."""
    return len({finding.claim.verdict for finding in group}) > 1


def _of_the_paper(group: Sequence[Finding]) -> bool:
    return group[0].claim.source.startswith("Figure")


def _statement(study: Study, group: Sequence[Finding]) -> Sentence:
    """What is said, and in which models it holds."""
    statement, unit = group[0].claim.statement.rstrip("."), words.unit_of(group[0].claim.quantity)
    clauses = [clause for verdict in SAYING if (clause := _clause(verdict, group))]
    results = {model.name: model.results for model in study.models}
    sizes = dict.fromkeys(samples.of_claim(f.claim, results[f.models[0]].get(f.analysis)) for f in group)
    known = [size for size in sizes if size]
    over = "; ".join(filter(None, [unit, series(known) if 0 < len(known) < 3 else ""]))
    return Sentence(f"{statement}: {', '.join(clauses)}{f' ({over})' if over else ''}.", group[0].analysis)


def _clause(verdict: Verdict, group: Sequence[Finding]) -> str:
    """The models with a verdict: by name with the effect, or how many with the median effect."""
    those = [finding for finding in group if finding.claim.verdict == verdict]
    if not those:
        return ""
    if len(group) <= NAMED:
        named = series(f"{_names(finding)} ({words.measured(finding.claim)})" for finding in those)
        return f"{SAYING[verdict]} {named}"
    values = [finding.claim.value for finding in those]
    spread = f"median {words.number(median(values))}, {words.number(min(values))} to {words.number(max(values))}"
    of = "models" if len(group[0].models) == 1 else "comparisons"
    return f"{SAYING[verdict]} {len(those)} of {len(group)} {of} ({spread})"


def _names(finding: Finding) -> str:
    if len(finding.models) < 3:
        return " against ".join(finding.models)
    return f"{len(finding.models)} models"


def _counts(decided: Sequence[Finding]) -> str:
    """How the statements come out; what is undecided or not comparable is said too."""
    apart = sum(finding.claim.verdict == "not comparable" for finding in decided)
    text = summary(decided)
    more = f"; {counted(apart, 'comparison')} not possible, with the reason beside each" if apart else ""
    return f"{text[0].upper()}{text[1:]}{more}."


# --- sentences about the largest effects


def _accuracy(study: Study) -> Sentence | None:
    """The accuracy of each model, or the range of many."""
    rows = [
        (model.name, result, row) for model in study.models for result, row in _accuracies(model.results.get("calibration"))
    ]
    if not rows:
        return None
    over = samples.over([result for _, result, _ in rows])
    best = sorted(rows, key=lambda entry: -entry[2]["value"])
    if len(best) <= NAMED:
        named = series(f"{name} {_percent(row)}" for name, _, row in best)
        return Sentence(f"Accuracy: {named} ({over}).", "calibration")
    ends = " to ".join(f"{_percent(row)} ({name})" for name, _, row in (best[-1], best[0]))
    return Sentence(f"Accuracy of {len(best)} models: {ends} ({over}).", "calibration")


def _accuracies(result: Result | None) -> list[tuple[Result, Row]]:
    return [(result, row) for row in result.table if row["metric"] == "accuracy"] if result is not None else []


def _percent(row: Row) -> str:
    return f"{words.interval(row['value'], row['low'], row['high'], scale=100)}%"


def _most_needed(study: Study) -> Sentence | None:
    """The unit without which a model loses most accuracy."""
    losses = [
        (row, model.name, result)
        for model in study.models
        if (result := model.results.get("lesion")) is not None
        for row in result.table
        if row["lesion"] == "unit" and row.get("accuracy_change") is not None
    ]
    if not losses:
        return None
    row, name, result = min(losses, key=lambda loss: loss[0]["accuracy_change"])
    if row["accuracy_change_high"] >= 0:
        return None
    change = words.interval(row["accuracy_change"], row["accuracy_change_low"], row["accuracy_change_high"], scale=100)
    unit = f"unit {row['unit']} ({row['kind']}) of {name}"
    return Sentence(
        f"The most needed unit is {unit}: without it accuracy changes by {change} points ({result.over}).",
        "lesion",
    )
