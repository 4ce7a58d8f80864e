"""A study as HTML: the words and tables of the template, and the one JSON that the charts are drawn from."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from backlight.analyses.catalog import CATALOG
from backlight.claims.findings import Finding, findings, summary
from backlight.report import statements, words
from backlight.report.sections import section_of
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


def html(study: Study) -> str:
    """The page of a study."""
    environment = Environment(
        loader=PackageLoader("backlight.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    scripts = [plotly(), _own("page.js")]
    decided = findings(study)
    return environment.get_template("page.html").render(
        title=title(study),
        lead=lead(study),
        models=[drawn(i, model) for i, model in enumerate(study.models)],
        untrained=study.settings.get("pretrained") is False,
        outcome=summary(decided),
        compared=statements.compared(study, decided),
        of_the_paper=statements.of_the_paper(study, decided),
        sections=[section(study, analysis, decided) for analysis in study.analyses],
        absent=study.absent,
        kinds={kind: (*sign, words.SINGULAR.get(kind, kind)) for kind, sign in KIND_SIGN.items() if kind in _kinds(study)},
        kind_colour=KIND_COLOUR,
        chips=CHIPS,
        css=Markup(_own("page.css")),  # ours, as are the scripts: no word of a user's is in them
        scripts=[Markup(script) for script in scripts],
        policy=policy(scripts),
        data=Markup(embedded(numbers(study))),
    )


def policy(scripts: Iterable[str]) -> str:
    """A content security policy: nothing is fetched from anywhere, and no other script than these runs."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    closed = "default-src 'none'; base-uri 'none'; form-action 'none'"
    return f"{closed}; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def embedded(document: Any) -> str:
    """JSON that may stand inside a script element: no ``<`` can end it, no line separator can break it."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


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
    questions = "; ".join(_lower_case(CATALOG[name].question) for name in study.analyses)
    names = [model.name for model in study.models]
    who = words.series(names) if len(names) <= 4 else f"{len(names)} models"
    return f"{who} on {_images(results)} {_data(study, results)}. The questions: {questions}?"


def _lower_case(question: str) -> str:
    return question[0].lower() + question[1:].rstrip("?")


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
        "sentence": words.anatomy(model.units, model.parameters),
        "accuracy": _accuracy(model),
        "stages": [[{"kind": _known(u["kind"]), "letter": _letter(u["kind"]), "name": _named(u)} for u in s] for s in stages],
        "word": " ".join("".join(_letter(unit["kind"]) for unit in stage) for stage in stages),
    }


def _named(unit: Row) -> str:
    shape = f" · {' × '.join(map(str, unit['shape']))}" if unit.get("shape") else ""
    return f"unit {unit['unit']} · {unit['kind']} · {unit['module']}{shape}"


def _letter(kind: str) -> str:
    return KIND_SIGN[_known(kind)][0]


def _known(kind: str) -> str:
    return kind if kind in KIND_SIGN else "other"


def _accuracy(model: Model) -> str:
    result = model.results.get("calibration")
    row = next((row for row in result.table if row["metric"] == "accuracy"), None) if result is not None else None
    return f"{words.interval(row['value'], row['low'], row['high'], scale=100)}%" if row is not None else ""


def _kinds(study: Study) -> set[str]:
    rows = (row for model in study.models for result in model.results.values() for row in result.table)
    return {_known(kind) for row in rows if (kind := row.get("kind", "whole")) != "whole"}


# --- the sections


def section(study: Study, analysis: str, decided: Sequence[Finding]) -> dict[str, Any]:
    """A section in the words of the template."""
    results, content = study.results(analysis), section_of(analysis)
    return {
        "name": analysis,
        "title": content.title or analysis.capitalize(),
        "question": CATALOG[analysis].question,
        "reading": content.reading,
        "figures": charts(analysis, results),
        "metrics": content.metrics(results),
        "rows": _plain_table(results) if content.rows else None,
        "statements": statements.of_models(study, decided, analysis),
        "notes": [*_left_out(study, analysis), *_measured_differently(results)],
        "provenance": _evidence(results),
    }


def charts(analysis: str, results: Sequence[Result | None]) -> list[list[dict[str, Any]]]:
    """The charts of a section; those of one list share a place."""
    places = section_of(analysis).figures(results)
    return [[{"id": f"{analysis}-{i}-{k}", "chart": chart} for k, chart in enumerate(each)] for i, each in enumerate(places)]


def _plain_table(results: Sequence[Result | None]) -> dict[str, Any]:
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


def _measured_differently(results: Sequence[Result | None]) -> list[str]:
    """A warning for each setting in which the models of one chart differ."""
    settings: dict[str, set[str]] = {}
    for result in results:
        if result is not None:
            data = {key: result.provenance.get("data", {}).get(key) for key in ("data", "split", "ids_sha256")}
            facts = {"images": result.provenance.get("images"), **data, **result.provenance.get("settings", {})}
            for key, value in facts.items():
                settings.setdefault(key, set()).add(json.dumps(value, sort_keys=True, default=str))
    different = [key for key, values in settings.items() if len(values) > 1]
    return (
        [f"The models were not measured alike, so compare them with care: they differ in {words.series(different)}."]
        if different
        else []
    )


def _evidence(results: Sequence[Result | None]) -> list[tuple[str, list[str]]]:
    """What each result stands on: rows of (setting, a value a model)."""
    flat = [_flat(result.provenance) if result is not None else {} for result in results]
    keys = dict.fromkeys(key for facts in flat for key in facts)
    return [(key, [facts.get(key, "–") for facts in flat]) for key in keys]


def _flat(document: Mapping[str, Any], within: str = "") -> dict[str, str]:
    """Nested mappings as one, with the path as the key.

    >>> _flat({"images": 48, "data": {"split": "test"}, "left_out": []})
    {'images': '48', 'data · split': 'test', 'left_out': '–'}
    """
    flat: dict[str, str] = {}
    for key, value in document.items():
        name = f"{within} · {key}" if within else str(key)
        if isinstance(value, Mapping):
            flat |= _flat(value, name)
        else:
            flat[name] = _plain(value)
    return flat


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "–"
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


# --- the numbers


def numbers(study: Study) -> dict[str, Any]:
    """Everything that ``page.js`` draws from: models, tables by column, charts."""
    tables: dict[str, list[Any]] = {}
    drawings: dict[str, dict[str, Any]] = {}
    for analysis in study.analyses:
        results = study.results(analysis)
        tables[analysis] = [_columns(result.table) if result is not None else None for result in results]
        for name, make in section_of(analysis).derived.items():
            tables[name] = [_columns(make(result)) if result is not None else None for result in results]
        for places in charts(analysis, results):
            drawings |= {place["id"]: asdict(place["chart"]) for place in places}
    return {
        "models": [{key: drawn(i, m)[key] for key in ("name", "colour", "dash")} for i, m in enumerate(study.models)],
        "signs": {kind: {"letter": letter, "symbol": symbol} for kind, (letter, symbol, _) in KIND_SIGN.items()},
        "tables": tables,
        "charts": drawings,
    }


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """A table by column: a third of its size by row."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [_brief(row.get(name)) for row in rows] for name in names}


def _brief(value: Any) -> Any:
    """Eight figures are more than any interval leaves; JSON has no NaN."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    try:
        return float(f"{value:.8g}") if math.isfinite(value) else None
    except TypeError:
        return str(value)


# --- what is packaged


def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


@cache
def plotly() -> str:
    """Plotly's script, from its Python package."""
    return files("plotly").joinpath("package_data", "plotly.min.js").read_text("utf-8")
