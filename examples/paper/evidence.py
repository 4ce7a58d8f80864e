"""The statements of `statements.toml`, decided by the stored results of the trainings.

A statement has an effect with an interval within each seed, over images or mini-batches, and one between seeds.  From three
seeds on the interval between seeds decides; with fewer, all seeds have to agree, and the verdict names how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analyse import training_of, with_results
from measures import MEASURES, Summary
from series import read

from backlight.claims.comparable import why_not
from backlight.claims.comparisons import Comparison, difference_of_means
from backlight.claims.findings import over_models, pair
from backlight.numerics.multiple import ALPHA, holm
from backlight.numerics.student import student
from backlight.results.claim import LEAST, Claim
from backlight.study.folder import Model, read_study

#: Moment of training -> training, as MODEL/SEED -> its results.
Stored = Mapping[str, Mapping[str, Model]]
WORDS = {"holds": "held", "does not hold": "did not hold", "undecided": "undecided", "not comparable": "undecided"}
UNKNOWN = {"value": math.nan, "low": math.nan, "high": math.nan}
END, WARMUP = "end", "warmup"
#: Moment -> the study of the same models as the official code measures them.
PUBLISHED = {END: "published", WARMUP: "published-warmup"}


@dataclass(frozen=True)
class Decided:
    """A statement, and what the trainings say about it."""

    item: Mapping[str, Any]
    row: Mapping[str, Any]
    seeds: Mapping[str, Claim]  # seed -> effect, over images or mini-batches
    between: Claim | None = None  # the same over seeds
    adjusted: float = math.nan  # the p-value after Holm's correction
    absent: tuple[str, ...] = ()  # the models that are not trained yet

    @property
    def untested(self) -> bool:
        """Whether it is not measured at any seed, by intention."""
        return "needs" in self.row

    @property
    def models(self) -> list[str]:
        """The models that it is about."""
        return [self.row[key] for key in ("first", "second", "of") if key in self.row]

    @property
    def analysis(self) -> str:
        """The analysis that decides it; empty if none does."""
        if "measure" in self.row:
            return MEASURES[self.row["measure"]].analysis
        return self.row.get("claim", "").partition("/")[0]

    @property
    def quantity(self) -> str:
        """What is measured, in words."""
        return quantity_of(self.row) if "measure" in self.row else next((c.quantity for c in self.seeds.values()), "")

    @property
    def over_seeds(self) -> bool:
        """Whether there are seeds enough for the interval between them to decide."""
        return self.between is not None and len(self.seeds) >= LEAST["seeds"]

    @property
    def effect(self) -> Claim | None:
        """What decides: the effect between seeds, or that of the one seed whose p-value is largest."""
        if self.over_seeds:
            return self.between
        return max(self.seeds.values(), key=lambda claim: (math.isnan(claim.p_value), claim.p_value), default=None)

    @property
    def p_value(self) -> float:
        """Of the effect that decides.  NaN: not tested."""
        return self.effect.p_value if self.effect else math.nan

    @property
    def verdict(self) -> str:
        """Held, did not hold or undecided; or why there is none."""
        if self.untested:
            return "not measured"
        if not self.seeds:
            return "not trained yet"
        verdicts = [self.between.verdict] if self.over_seeds and self.between else [c.verdict for c in self.seeds.values()]
        word = WORDS[verdicts[0]] if len(set(verdicts)) == 1 else "undecided"
        count = "" if self.over_seeds else f" ({len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''})"
        mark = ", not after Holm" if self.p_value < ALPHA <= self.adjusted else ""
        return word + count + mark


def stored_results(folder: Path) -> Stored:
    """The results of the studies in a folder; what is absent is left out."""
    studies = {name: read_study(path) for name, path in with_results(folder).items()}
    moments: dict[str, dict[str, Model]] = {moment: {} for moment in (*PUBLISHED, *PUBLISHED.values())}
    for name, study in studies.items():
        moment = moments.get(name, moments[END])
        for model in study.models:
            key = training_of(model.name)
            moment[key] = replace(model, results={**(moment[key].results if key in moment else {}), **model.results})
    for ours, published in PUBLISHED.items():  # accuracies say which models are comparable
        for key, model in moments[published].items():
            known = moments[ours][key].results.get("calibration") if key in moments[ours] else None
            moments[published][key] = replace(model, results={**model.results, **({"calibration": known} if known else {})})
    return moments


def decided(stored: Stored, *, published: bool = False) -> list[Decided]:
    """Every statement, with Holm's correction over those that are tested; ``published``: as the official code measures."""
    rows = [(item, row) for item in read("statements.toml")["item"] for row in item["row"]]
    moments = PUBLISHED if published else {moment: moment for moment in PUBLISHED}
    uncorrected = [of_row(item, row, stored[moments[row.get("moment", END)]]) for item, row in rows]
    adjusted = holm([each.p_value for each in uncorrected])
    return [replace(each, adjusted=float(p)) for each, p in zip(uncorrected, adjusted, strict=True)]


def of_row(item: Mapping[str, Any], row: Mapping[str, Any], trainings: Mapping[str, Model]) -> Decided:
    """One statement by these trainings."""
    each = Decided(item, row, {})
    if not each.untested:
        each = (_of_claim if "claim" in row else _of_measure)(item, row, trainings)
    return each if each.seeds or each.untested else replace(each, absent=_absent(each, trainings))


def _absent(each: Decided, trainings: Mapping[str, Model]) -> tuple[str, ...]:
    """The models of which no training was measured; all if each was, and no two with the same seed."""
    measured = {name for name in each.models for m in _seeds(trainings, name).values() if each.analysis in m.results}
    return tuple(name for name in each.models if name not in measured) or tuple(each.models)


# --- a claim about each training


def _of_claim(item: Mapping[str, Any], row: Mapping[str, Any], trainings: Mapping[str, Model]) -> Decided:
    claims = {
        seed: claim
        for seed, model in _seeds(trainings, row["of"]).items()
        for result in model.results.values()
        for claim in result.claims
        if claim.id == row["claim"]
    }
    if len(claims) < 2:
        return Decided(item, row, claims)
    one = next(iter(claims.values()))
    return Decided(item, row, claims, _between(row, one, student([claim.value for claim in claims.values()]), len(claims)))


def _between(row: Mapping[str, Any], one: Claim, interval: Iterable[float], seeds: int) -> Claim:
    about = {"id": one.id, "statement": one.statement, "source": one.source, "quantity": one.quantity}
    return Claim.of_sign(row["sign"], interval, count=seeds, over="seeds", rounding=one.rounding, **about)


def _seeds(trainings: Mapping[str, Model], name: str) -> dict[str, Model]:
    """Seed -> training, of the trainings of this name."""
    parts = ((key.partition("/"), model) for key, model in sorted(trainings.items()))
    return {seed: model for (model_name, _, seed), model in parts if model_name == name}


# --- a difference of two trainings of the same seed


def _of_measure(item: Mapping[str, Any], row: Mapping[str, Any], trainings: Mapping[str, Model]) -> Decided:
    measure = MEASURES[row["measure"]]
    first, second = (
        {seed: model for seed, model in _seeds(trainings, row[side]).items() if measure.analysis in model.results}
        for side in ("first", "second")
    )
    seeds = sorted(first.keys() & second.keys())
    pairs = [(first[seed], second[seed]) for seed in seeds]
    if isinstance(measure, Summary):
        claims = [_summary_claim(row, measure, *models) for models in pairs]
        between = _summary_between(row, measure, pairs) if len(pairs) > 1 else None
    else:
        comparison = _comparison(item, row)
        claims = [pair(comparison, *models).claim for models in pairs]
        between = over_models(comparison, *zip(*pairs, strict=True)).claim if len(pairs) > 1 else None  # type: ignore[arg-type]
    return Decided(item, row, dict(zip(seeds, claims, strict=True)), between)


def _comparison(item: Mapping[str, Any], row: Mapping[str, Any]) -> Comparison:
    measure = MEASURES[row["measure"]]
    assert not isinstance(measure, Summary)
    return Comparison(
        row["measure"], measure.analysis, ("other", "other"), row["says"], item["figure"], quantity_of(row), row["sign"],
        measure.numbers, measure.interval, measure.over, measure.scale, measure.of_the_loss,
    )  # fmt: skip


def quantity_of(row: Mapping[str, Any]) -> str:
    """What is measured, in words."""
    return f"{MEASURES[row['measure']].quantity}: {row['first']} less {row['second']}"


def _summary_claim(row: Mapping[str, Any], measure: Summary, first: Model, second: Model) -> Claim:
    results = first.results[measure.analysis], second.results[measure.analysis]
    if reason := why_not(*results):
        return Claim(**_about(row), **UNKNOWN, verdict="not comparable", count=0, over="images", reason=reason)
    count = int(results[0].provenance["images"])
    return Claim.of_sign(row["sign"], measure.difference(*results), count=count, **_about(row))


def _summary_between(row: Mapping[str, Any], measure: Summary, pairs: Sequence[tuple[Model, Model]]) -> Claim:
    sides = zip(*pairs, strict=True)
    values = [[measure.scale * measure.interval(model.results[measure.analysis])[0] for model in side] for side in sides]
    return Claim.of_sign(row["sign"], difference_of_means(*values), count=len(pairs), over="seeds", **_about(row))


def _about(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": row["measure"], "statement": row["says"], "source": "", "quantity": quantity_of(row)}


# --- in words


def in_words(claim: Claim) -> str:
    """An effect with its interval; why there is none."""
    if math.isnan(claim.value):
        return claim.reason
    if not (math.isfinite(claim.low) and math.isfinite(claim.high)):
        return f"{number(claim.value)} (no interval: {claim.reason})"
    return f"{number(claim.value)} [{number(claim.low)}, {number(claim.high)}]"


def number(value: float) -> str:
    """A number with its sign and three digits.

    >>> number(12.345), number(-0.012345), number(0.0)
    ('+12.3', '-0.0123', '0')
    """
    return f"{value:+.3g}" if value else "0"
