"""The numbers of a page: compressed parts by name, which its script unpacks when it needs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from backlight.claims.findings import Finding
from backlight.report import absences, packing, samples, statements
from backlight.report.drawn import KIND_SIGN, models_of
from backlight.report.flips import Pictures
from backlight.report.packing import Packed
from backlight.report.sections import section_of
from backlight.report.sections.section import Chart
from backlight.report.survey import MANY
from backlight.results.result import Result, Row
from backlight.study.folder import Study


def chunks_of(
    study: Study, decided: Sequence[Finding], charts: Mapping[str, Chart], tables: Mapping[str, Packed], shots: Pictures
) -> list[tuple[str, str]]:
    """Each part under all its names."""
    chunks = {
        "page": packing.compressed(page_data(study, charts)),
        "claims": packing.compressed(statements.rows(study, decided)),
        **{name: each.text for name, each in tables.items()},
    }
    if shots.addresses:
        chunks |= {"pictures": packing.compressed(shots.addresses), "lesion/pictures": packing.table(shots.rows)}
    if len(study.models) > MANY:
        chunks["metrics"] = packing.compressed(metrics_of(study))
    return once(chunks.items())


def once(chunks: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Equal chunks once, under all their names."""
    names: dict[str, list[str]] = {}
    for name, text in chunks:
        names.setdefault(text, []).append(name)
    return [(" ".join(each), text) for text, each in names.items()]


def tables_of(study: Study) -> dict[str, list[list[Row] | None]]:
    """Every table by name, for each model."""
    tables: dict[str, list[list[Row] | None]] = {}
    for analysis in study.analyses:
        results = study.results(analysis)
        for name, rows_of in {analysis: _rows, **section_of(analysis).derived}.items():
            tables[name] = [rows_of(result) if result is not None else None for result in results]
    return tables


def _rows(result: Result) -> list[Row]:
    return result.table


def page_data(study: Study, charts: Mapping[str, Chart]) -> dict[str, Any]:
    """What the script knows beside tables: models with their units, charts, signs, what stands in the panel of a unit."""
    told = ("name", "colour", "dash", "family", "kind", "word", "stages", "sentence", "accuracy")
    return {
        "models": [{key: model[key] for key in told} for model in models_of(study)],
        "signs": {kind: {"letter": letter, "symbol": symbol} for kind, (letter, symbol, _) in KIND_SIGN.items()},
        "charts": {name: asdict(chart) for name, chart in charts.items()},
        "analyses": {name: section_of(name).title or name.capitalize() for name in study.analyses},
        "states": [
            {name: state for name, (state, _) in zip(study.analyses, row, strict=True)} for row in absences.states(study)
        ],
        "facts": [asdict(fact) for name in study.analyses for fact in section_of(name).of_unit],
        "many": len(study.models) > MANY,
    }


def metrics_of(study: Study) -> dict[str, Any]:
    """The tables of metrics, which a survey shows with a row a model."""
    made = {name: section_of(name).metrics(study.results(name)) for name in study.analyses}
    over = {name: samples.over(study.results(name)) for name in study.analyses}
    return {name: asdict(m) | {"caption": f"{m.caption}: {over[name]}"} for name, m in made.items() if m is not None}
