"""Models of one word compared, such as a model before and after fine-tuning, and snapshots of a training as a trend."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from backlight.comparing.compare import Comparison, compare_models
from backlight.comparing.readers import described, read
from backlight.errors import UserError
from backlight.report import words
from backlight.report.sections.section import Chart
from backlight.report.survey import MANY
from backlight.results.over import counted
from backlight.results.result import Result, Row
from backlight.study.folder import Model, Study

#: Numbers of a pair that are shown at first.
SHOWN = 8
#: Pairs on a page, and numbers of units with a chart for each.
PAIRS, CHARTED = 4, ("delta", "log_variance", "accuracy_change", "neighbour_cka")
#: How the name of a snapshot tells its step; `backlight train` saves OUT/snapshots/STEP.
SNAPSHOT = re.compile(r"(?:snapshots?|epochs?|steps?|iter(?:ation)?s?|checkpoints?|ckpt)[-_=/]?(\d+|init)\b", re.IGNORECASE)
#: Snapshots that make a trend, and the numbers with a panel.
LEAST = 3
TRENDS = ("accuracy", "nll", "ece", "delta_change", "mean_accuracy_change", "nmi", "rise", "log_largest_eigenvalue", "nep")
UNITS, TREND = "compare/units", "compare/trend"


@dataclass(frozen=True)
class Compared:
    """What the page says about models of one word."""

    pairs: list[tuple[int, int, Comparison]]  # numbers of the first and the second model
    refused: list[str]  # a sentence for each pair that cannot be compared
    tables: dict[str, list[list[Row] | None]]
    charts: list[list[Chart]]


def compared(study: Study) -> Compared:
    """Each model with the first of its word; two models of different words with each other, over depth."""
    pairs, refused = [], []
    for i, j in pairs_of(study.models):
        try:
            pairs.append((i, j, compare_models(study.models[i], study.models[j])))
        except UserError as error:
            refused.append(f"{study.models[j].name} and {study.models[i].name}: {error}")
    tables = {UNITS: _by_model(study, dict(_unit_rows(pairs))), TREND: _by_model(study, dict(_trend_rows(study.models)))}
    known = {name: table for name, table in tables.items() if any(table)}
    return Compared(pairs, refused, known, [[chart] for chart in _charts(known)])


def pairs_of(models: Sequence[Model]) -> list[tuple[int, int]]:
    """Which models are compared: each with the first of the same word, the only two of a page, none of a survey."""
    if len(models) > MANY:
        return []
    firsts: dict[tuple[str, ...], int] = {}
    same = [(first, j) for j, model in enumerate(models) if (first := firsts.setdefault(_word(model), j)) != j and _word(model)]
    return (same or ([(0, 1)] if len(models) == 2 else []))[:PAIRS]


def _word(model: Model) -> tuple[str, ...]:
    return tuple(f"{unit['stage']} {unit['kind']}" for unit in model.units)


def table_of(comparison: Comparison) -> list[dict[str, Any]]:
    """The differences of the entire models in the words of the template, the decided ones first; minor: not shown at first."""
    ordered = sorted(comparison.of_model(), key=lambda each: (not each.decided, math.isnan(each.adjusted), each.adjusted))
    return [
        {
            "minor": i >= SHOWN,
            "title": each.title, "unit": each.unit, "first": words.number(each.first), "second": words.number(each.second),
            "difference": words.interval(each.value, each.low, each.high), "verdict": each.verdict,
            "over": counted(each.count, words.ONE_OF[each.over], each.over) + ("" if each.paired else ", not paired"),
        }
        for i, each in enumerate(ordered)
    ]  # fmt: skip


# --- charts


def _by_model(study: Study, rows: dict[int, list[Row]]) -> list[list[Row] | None]:
    return [rows.get(i) for i in range(len(study.models))]


def _unit_rows(pairs: Sequence[tuple[int, int, Comparison]]) -> Iterator[tuple[int, list[Row]]]:
    """Of the second model of each pair, the differences of its units or of parts of the depth."""
    for _, j, comparison in pairs:
        yield j, [
            {
                "quantity": each.number.quantity, "title": f"{each.title} ({each.unit})" if each.unit else each.title,
                "unit": -1 if each.number.unit is None else each.number.unit, "kind": each.number.kind or "other",
                "stage": each.number.stage or 0, "module": each.number.place or each.id, "less": comparison.first,
                "difference": each.value, "difference_low": each.low, "difference_high": each.high,
            }
            for each in comparison.differences
            if each.number.quantity in CHARTED and (each.number.unit is not None or each.number.depth is not None)
        ]  # fmt: skip


def snapshot_of(name: str) -> tuple[str, float] | None:
    """The training and the step of a model that is named as a snapshot; None of another one, such as one of several seeds.

    >>> [snapshot_of(name) for name in ("runs/vit/snapshots/50", "vit-epoch10", "vit-seed2")]
    [('runs/vit/#', 50.0), ('vit-#', 10.0), None]
    """
    match = SNAPSHOT.search(name)
    if match is None:
        return None
    return name[: match.start()] + "#" + name[match.end() :], 0.0 if match[1] == "init" else float(match[1])


def _trend_rows(models: Sequence[Model]) -> Iterator[tuple[int, list[Row]]]:
    """The numbers of entire models over the steps of a training, if there are snapshots of one."""
    groups: dict[object, list[tuple[int, float]]] = {}
    for i, model in enumerate(models):
        if (known := snapshot_of(model.name)) is not None:
            groups.setdefault((_word(model), known[0]), []).append((i, known[1]))
    for members in groups.values():
        for i, step in members if len(members) >= LEAST else ():
            yield i, [row | {"at": step} for result in models[i].results.values() for row in _entire(result)]


def _entire(result: Result) -> Iterator[Row]:
    """The numbers of a result that are about the entire model."""
    for series in read(result):
        for k, number in enumerate(series.numbers):
            if number.quantity in TRENDS and not number.place and number.unit is None:
                quantity = described(number.quantity)
                title = series.title or quantity.title
                about = {"quantity": f"{result.analysis}/{number.quantity}", "over": result.over}
                ends = (series.scale * series.ends[:, k]).tolist()
                yield about | {
                    "title": f"{title} ({quantity.unit})" if quantity.unit else title,
                    **dict(zip(("value", "value_low", "value_high"), ends, strict=True)),
                }


def _charts(tables: dict[str, list[list[Row] | None]]) -> Iterator[Chart]:
    if TREND in tables:
        alt = "Numbers of entire models over the steps of training, a panel a number, with 95% intervals."
        yield Chart("trend", TREND, "Over the steps of training", alt, y="value")
    if UNITS in tables:
        alt = (
            "Differences of units, a panel a number and pair of models, with 95% intervals; the table of rows has every number."
        )
        yield Chart("differences", UNITS, "Differences of units, second model less first", alt, y="difference")
