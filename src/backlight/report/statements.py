"""The claims of a study in the words of the page: each statement, with an entry for each model or comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from backlight.claims.findings import Finding
from backlight.report import samples, words
from backlight.results.result import Result, Row
from backlight.study.folder import Study

Statement = dict[str, Any]


def of_models(study: Study, findings: Iterable[Finding], analysis: str) -> list[Statement]:
    """The statements of an analysis about one model."""
    return grouped(study, [finding for finding in findings if finding.analysis == analysis and len(finding.models) == 1])


def compared(study: Study, findings: Iterable[Finding]) -> list[Statement]:
    """The statements that compare models."""
    return grouped(study, [finding for finding in findings if len(finding.models) > 1])


def of_the_paper(study: Study, findings: Iterable[Finding]) -> list[Statement]:
    """The paper's own statements about one model, which name its figures, in the order of the sections."""
    every = [statement for analysis in study.analyses for statement in of_models(study, findings, analysis)]
    return [statement for statement in every if statement["source"].startswith(("Figure", "Version"))]


def grouped(study: Study, findings: Sequence[Finding]) -> list[Statement]:
    """The findings about each statement, in the order of the first."""
    numbers = {model.name: i for i, model in enumerate(study.models)}
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.claim.id, finding.claim.statement), []).append(finding)
    return [
        {
            "id": id,
            "statement": statement,
            "analysis": group[0].analysis,
            "source": group[0].claim.source,
            "docs": group[0].docs,
            "quantity": words.merged([finding.claim.quantity for finding in group]),
            "entries": [entry(finding, numbers, study.models[numbers[finding.models[0]]].results) for finding in group],
        }
        for (id, statement), group in groups.items()
    ]


def entry(finding: Finding, numbers: Mapping[str, int], results: Mapping[str, Result]) -> dict[str, Any]:
    """A finding: its models by number, verdict, effect, what it rests on, and what to know beside it."""
    claim = finding.claim
    correction = finding.verdict.removeprefix(claim.verdict).strip(" ()")
    return {
        "models": [numbers[name] for name in finding.models],
        "verdict": claim.verdict,
        "correction": correction,
        "caution": finding.caution,
        "measured": words.measured(claim),
        "rests_on": samples.of_claim(claim, results.get(finding.analysis)),
        "remarks": [remark for remark in (claim.reason, finding.unknown) if remark],
    }


def rows(study: Study, findings: Iterable[Finding]) -> list[Row]:
    """Every finding as a row, with its models by number and its numbers in words: what the page downloads and lists."""
    numbers = {model.name: i for i, model in enumerate(study.models)}
    return [
        {
            **finding.row(),
            **entry(finding, numbers, study.models[numbers[finding.models[0]]].results),
            "verdict": finding.claim.verdict,
        }
        for finding in findings
    ]
