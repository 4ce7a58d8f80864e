"""A study as HTML: the words and tables of the template, and compressed tables that the charts are drawn from."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from backlight.analyses.catalog import CATALOG
from backlight.claims.findings import findings, summary
from backlight.claims.kinds import NAMES, kind_of
from backlight.comparing.compare import Comparison
from backlight.report import absences, packing, plotly, samples, statements, words
from backlight.report.compared import compared, table_of
from backlight.report.families import families
from backlight.report.flips import Pictures, pictures
from backlight.report.opening import opening
from backlight.report.provenance import measured_differently, settings_of
from backlight.report.sections import section_of
from backlight.report.sections.section import Chart, Results
from backlight.report.survey import MANY, survey, tally
from backlight.results.figures import KIND_COLOUR
from backlight.results.result import Result, Row
from backlight.study.folder import Model, Study

#: Colour is never the only sign: a letter in a word, a symbol in a chart (Plotly's name, the character of the legend).
KIND_SIGN = {
    "attention": ("a", "circle", "●"),
    "conv": ("c", "square", "■"),
    "mlp": ("m", "diamond", "◆"),
    "blur": ("b", "triangle-up", "▲"),
    "parallel": ("p", "cross", "✚"),
    "other": ("o", "hexagon2", "⬢"),
    "stem": ("", "circle-open", "○"),
}
#: Likewise for models: Plotly's name of a dash, and the same in SVG.
DASHES = (("solid", ""), ("dash", "7 4"), ("dot", "2 3"), ("dashdot", "7 3 2 3"), ("longdash", "12 4"))
#: Number of colours for models in ``page.css``.  Not a multiple of the number of dashes, so that pairs repeat late.
MODEL_COLOURS = 6
CHIPS = {"holds": "✓", "does not hold": "✗", "undecided": "?", "not comparable": "–"}
#: Rows of a table on the page; the download has all of them.
ROWS_SHOWN = 100
#: Characters of the text that describes a chart to those who do not see it.
ALT = 700
#: The parts of the page's script, in this order.
SCRIPTS = (
    "data",
    "words",
    "charts",
    "surfaces",
    "compared",
    "families",
    "drawing",
    "units",
    "models",
    "export",
    "state",
    "start",
)


def html(study: Study, *, live: str = "", images: bool = False) -> str:
    """The page of a study.

    ``live``: its version, if it is served and loads itself again when the server has another one.  ``images``: with pictures of
    the images that lesions flip.
    """
    environment = Environment(
        loader=PackageLoader("backlight.report", "web"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    decided = findings(study)
    drawings = {name: all_charts(study, name) for name in study.analyses}
    pairs = compared(study)
    drawings["compare"] = numbered("compare", pairs.charts)
    every = {place["id"]: place["chart"] for places in drawings.values() for each in places for place in each}
    tables = packing.packed(tables_of(study) | pairs.tables, {chart.table for chart in every.values()})
    bundle = plotly.script(plotly.needs_space(chart.kind for chart in every.values()))
    script = own_script()
    chunks = {
        "page": packing.compressed(page_data(study, every)),
        "claims": packing.compressed(statements.rows(study, decided)),
        **{name: each.text for name, each in tables.items()},
    }
    many, present = len(study.models) > MANY, _kinds(study)
    shots = pictures(study) if images and not many else Pictures()
    if shots.addresses:
        chunks |= {"pictures": packing.compressed(shots.addresses), "lesion/pictures": packing.table(shots.rows)}
    if many:
        chunks["metrics"] = packing.compressed(_metrics(study))
    return environment.get_template("page.html").render(
        title=title(study),
        lead=lead(study),
        opening=opening(study, decided),
        models=(shown := models_of(study)),
        survey=survey(study, shown, decided) if many else None,
        tally=tally,
        untrained=study.settings.get("pretrained") is False,
        outcome=summary(decided),
        compared=statements.compared(study, decided),
        compared_pairs=[_pair(*pair) for pair in pairs.pairs],
        compared_refused=pairs.refused,
        compared_charts=drawings["compare"],
        of_the_paper=statements.of_the_paper(study, decided),
        sections=[section(study, analysis, drawings[analysis], decided) for analysis in study.analyses],
        states=absences.states(study),
        state_signs=absences.SIGNS,
        absent=[*study.absent, *shots.missing],
        reductions=packing.reductions(tables),
        kinds={kind: (*sign, words.SINGULAR.get(kind, kind)) for kind, sign in KIND_SIGN.items() if kind in present},
        kind_colour=KIND_COLOUR,
        chips=CHIPS,
        css=Markup(_own("page.css")),  # ours, as is the script: no word of a user's is in them
        script=Markup(script),
        policy=policy([script, gzip.decompress(bundle).decode()], live=bool(live)),
        chunks=[(name, Markup(text)) for name, text in _once(chunks)],
        plotly=Markup(packing.gzipped(bundle)),
        live=live,
    )


def _once(chunks: Mapping[str, str]) -> list[tuple[str, str]]:
    """Equal chunks once, under all their names."""
    names: dict[str, list[str]] = {}
    for name, text in chunks.items():
        names.setdefault(text, []).append(name)
    return [(" ".join(each), text) for text, each in names.items()]


def policy(scripts: Iterable[str], *, live: bool = False) -> str:
    """A content security policy: nothing is fetched from anywhere, and no other script than these runs.

    ``live``: the page may ask the server that it comes from.
    """
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    closed = "default-src 'none'; base-uri 'none'; form-action 'none'"
    return f"{closed}; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:" + (
        "; connect-src 'self'" if live else ""
    )


def own_script() -> str:
    """The page's own script: its parts in one function, so that they share names and leave none behind."""
    parts = "\n".join(_own(f"js/{name}.js") for name in SCRIPTS)
    return f'"use strict";\n(async () => {{\n{parts}}})();'


def _own(name: str) -> str:
    return files(__package__).joinpath("web", name).read_text("utf-8")


# --- the words


def title(study: Study) -> str:
    """The page's title.

    >>> title(Study([Model("resnet18", [], None, {})], {}, []))
    'How resnet18 works'
    """
    names = [model.name for model in study.models]
    return f"How {names[0]} works" if len(names) == 1 else f"How {len(names)} vision models work"


def lead(study: Study) -> str:
    """What was measured."""
    results = [result for model in study.models for result in model.results.values()]
    names = [model.name for model in study.models]
    who = words.series(names) if len(names) <= 4 else f"{len(names)} models"
    return f"{who} on {_images(results)} {_data(study, results)}: {words.counted(len(study.analyses), 'analysis', 'analyses')}."


def _images(results: Sequence[Result]) -> str:
    counts = sorted({int(result.provenance.get("images") or 0) for result in results} - {0})
    if not counts:
        return "images"
    return words.counted(counts[0], "image") if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} images"


def _data(study: Study, results: Sequence[Result]) -> str:
    """Of which set and split, as far as that is known."""
    requested = study.settings.get("data") or ""
    requested = requested.get("data") or requested.get("name") or "" if isinstance(requested, Mapping) else requested
    facts = [result.provenance.get("data", {}) for result in results]
    names = dict.fromkeys(str(fact["data"]) for fact in facts if fact.get("data")) or (
        {str(requested): None} if requested else {}
    )
    splits = dict.fromkeys(str(fact["split"]) for fact in facts if fact.get("split"))
    of = f"of {words.series(names)}" if names else "whose set has no name"
    return f"{of} (split {words.series(splits)})" if splits else of


# --- the models


def models_of(study: Study) -> list[dict[str, Any]]:
    """The models in the words of the template and of the script."""
    names = families(study.models)
    return [drawn(i, model) | {"family": names[i]} for i, model in enumerate(study.models)]


def drawn(index: int, model: Model) -> dict[str, Any]:
    """A model as its word, a sentence, its accuracy and its line."""
    stages = [list(group) for _, group in groupby(model.units, key=lambda unit: unit["stage"])]
    dash, svg_dash = DASHES[index % len(DASHES)]
    return {
        "index": index,
        "name": model.name,
        "colour": f"var(--model-{index % MODEL_COLOURS})",
        "dash": dash,
        "svg_dash": svg_dash,
        "kind": NAMES[kind_of(model.units)],
        "parameters": model.parameters,
        "sentence": words.anatomy(model.units, model.parameters),
        "accuracy": " ".join(_accuracy(model)),
        "score": _accuracy(model)[0],
        "stages": [[_block(unit) for unit in stage] for stage in stages],
        "word": " ".join("".join(_letter(unit["kind"]) for unit in stage) for stage in stages),
    }


def _block(unit: Row) -> dict[str, Any]:
    shape = f" · {' × '.join(map(str, unit['shape']))}" if unit.get("shape") else ""
    name = f"unit {unit['unit']} · {unit['kind']} · {unit['module']}{shape}"
    return {"unit": unit["unit"], "kind": _known(unit["kind"]), "letter": _letter(unit["kind"]), "name": name}


def _letter(kind: str) -> str:
    return KIND_SIGN[_known(kind)][0]


def _known(kind: str) -> str:
    return kind if kind in KIND_SIGN else "other"


def _accuracy(model: Model) -> tuple[str, str]:
    """The accuracy, and over which images; empty if it is not known."""
    result = model.results.get("calibration")
    row = next((row for row in result.table if row["metric"] == "accuracy"), None) if result is not None else None
    if result is None or row is None:
        return "", ""
    return f"{words.interval(row['value'], row['low'], row['high'], scale=100)}%", f"({samples.images_of(result)})"


def _kinds(study: Study) -> set[str]:
    rows = (row for model in study.models for result in model.results.values() for row in result.table)
    return {_known(kind) for row in rows if (kind := row.get("kind", "whole")) != "whole"}


# --- the sections


def section(study: Study, analysis: str, figures: list[list[dict[str, Any]]], decided: Sequence[Any]) -> dict[str, Any]:
    """A section in the words of the template."""
    results, content = study.results(analysis), section_of(analysis)
    many = len(study.models) > MANY
    return {
        "name": analysis,
        "title": content.title or analysis.capitalize(),
        "question": CATALOG[analysis].question,
        "over": samples.over(results),
        "reading": content.reading,
        "figures": figures,
        "metrics": None if many else content.metrics(results),
        "rows": _plain_table(results) if content.rows else None,
        "statements": statements.of_models(study, decided, analysis),
        "notes": [*_left_out(study, analysis), *measured_differently(results)],
        "absent": absences.absences(study, analysis),
        "provenance": settings_of(results, many),
    }


def all_charts(study: Study, analysis: str) -> list[list[dict[str, Any]]]:
    """The charts of a section; those of one list share a place."""
    results = study.results(analysis)
    places = section_of(analysis).figures(results)
    return numbered(analysis, [[_described(chart, results) for chart in each] for each in places])


def numbered(name: str, places: Sequence[Sequence[Chart]]) -> list[list[dict[str, Any]]]:
    """Charts with names of their own."""
    return [[{"id": f"{name}-{i}-{k}", "chart": chart} for k, chart in enumerate(each)] for i, each in enumerate(places)]


def _pair(first: int, second: int, comparison: Comparison) -> dict[str, Any]:
    """A comparison in the words of the template."""
    return {
        "first": first,
        "second": second,
        "rows": (rows := table_of(comparison)),
        "minor": sum(row["minor"] for row in rows),
        "decided": len(comparison.decided()),
        "count": len(comparison.differences),
        "cautions": comparison.cautions,
        "refused": list(comparison.refused.items()),
    }


def _described(chart: Chart, results: Results) -> Chart:
    """The chart with what it is over, and a description that can be listened to."""
    whole = f"{chart.alt} Over {over}." if (over := samples.over(results)) else chart.alt
    alt = whole if len(whole) <= ALT else f"{whole[: ALT - 60].rsplit(' ', 1)[0]} … The download of the rows has every model."
    return replace(chart, alt=alt)


def _plain_table(results: Results) -> dict[str, Any]:
    """The rows themselves."""
    rows = [(i, row) for i, result in enumerate(results) if result is not None for row in result.rows()]
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    shown = [(i, [_cell(row.get(column)) for column in columns]) for i, row in rows[:ROWS_SHOWN]]
    return {"columns": columns, "rows": shown, "more": max(0, len(rows) - ROWS_SHOWN)}


def _cell(value: Any) -> str:
    return words.number(value) if isinstance(value, float) else "–" if value is None else str(value)


def _left_out(study: Study, analysis: str) -> list[str]:
    """The units whose stream is no map."""
    return [
        f"{model.name}: {words.series(units)} left out, because the stream there is no feature map."
        for model, result in zip(study.models, study.results(analysis), strict=True)
        if result is not None and (units := result.provenance.get("left_out"))
    ]


# --- the numbers


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


def _metrics(study: Study) -> dict[str, Any]:
    """The tables of metrics, which a survey shows with a row a model."""
    made = {name: section_of(name).metrics(study.results(name)) for name in study.analyses}
    over = {name: samples.over(study.results(name)) for name in study.analyses}
    return {name: asdict(m) | {"caption": f"{m.caption}: {over[name]}"} for name, m in made.items() if m is not None}
