"""A survey: more models than a reader compares one by one.  Its page has a table of models and aggregates by family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from backlight.claims.findings import Finding
from backlight.report import samples, words
from backlight.study.folder import Study

#: With more models than this a page is a survey.
MANY = 12
#: Claims whose effect is a column of the table of models.
COLUMNS = 4


def survey(study: Study, models: Sequence[Mapping[str, Any]], decided: Sequence[Finding]) -> dict[str, Any]:
    """The table of models: facts and the effects of the claims that most models have, in the words of the template."""
    about = [finding for finding in decided if len(finding.models) == 1]
    common = [id for id, _ in Counter(finding.claim.id for finding in about).most_common(COLUMNS)]
    by_model = {(finding.models[0], finding.claim.id): finding for finding in about if finding.claim.id in common}
    statement = {finding.claim.id: finding.claim for finding in about}
    return {
        "columns": [
            {"id": id, "title": statement[id].statement.rstrip("."), "unit": words.unit_of(statement[id].quantity)}
            for id in common
        ],
        "rows": [
            {**model, "effects": [_effect(by_model.get((model["name"], id))) for id in common], "absent": _absent(study, i)}
            for i, model in enumerate(models)
        ],
        "over": samples.over(study.results("calibration")),
        "families": Counter(model["family"] for model in models).most_common(),
        "kinds": Counter(model["kind"] for model in models).most_common(),
    }


def _effect(finding: Finding | None) -> dict[str, str]:
    return (
        {"text": words.measured(finding.claim), "verdict": finding.claim.verdict} if finding else {"text": "–", "verdict": ""}
    )


def _absent(study: Study, i: int) -> int:
    """How many of the page's analyses have no result of this model."""
    return sum(name not in study.models[i].results for name in study.analyses)


def tally(entries: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, int]]]:
    """Verdict -> (family, how many of it have that verdict); of comparisons, the families that are compared."""
    counts: dict[str, Counter[str]] = {}
    for entry in entries:
        names = dict.fromkeys(models[index]["family"] for index in entry["models"])
        counts.setdefault(entry["verdict"], Counter())[" against ".join(names)] += 1
    return {verdict: sorted(of.items(), key=lambda item: (-item[1], item[0])) for verdict, of in counts.items()}
