"""A study as HTML: the words and tables of the template, and compressed tables that the charts are drawn from."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup

from backlight.analyses.catalog import CATALOG
from backlight.claims.findings import Finding, findings, summary
from backlight.comparing.compare import Comparison
from backlight.report import absences, plotly, samples, statements, words
from backlight.report.chunks import chunks_of, tables_of
from backlight.report.compared import compared, table_of
from backlight.report.drawn import legend, models_of
from backlight.report.flips import Pictures, pictures
from backlight.report.opening import opening
from backlight.report.packing import packed, reductions
from backlight.report.provenance import measured_differently, settings_of
from backlight.report.sections import section_of
from backlight.report.sections.section import Chart, Results
from backlight.report.survey import MANY, survey, tally
from backlight.results.charts import CHARTS, caption
from backlight.results.figures import KIND_COLOUR
from backlight.results.over import counted, measured_on, series
from backlight.results.result import Result
from backlight.study.folder import Study

#: Signs of verdicts.
CHIPS = {"holds": "✓", "does not hold": "✗", "undecided": "?", "not comparable": "–"}
#: Rows of a table on the page; the download has all of them.
ROWS_SHOWN = 100
#: Characters of the text that describes a chart to those who do not see it.
ALT = 700
#: The parts of the page's script, in this order.
SCRIPTS = (
    "data", "words", "charts", "surfaces", "compared", "families", "drawing", "units", "models", "export", "state", "start",
)  # fmt: skip


def html(study: Study, *, live: str = "", images: bool = False) -> str:
    """The page of a study.

    ``live``: its version, if it is served and loads itself again when the server has another one.  ``images``: with pictures of
    the images that lesions flip.
    """
    decided, pairs = findings(study), compared(study)
    shots = pictures(study) if images and len(study.models) <= MANY else Pictures()
    places = {name: all_charts(study, name) for name in study.analyses} | {"compare": numbered("compare", pairs.charts)}
    charts = {place["id"]: place["chart"] for figures in places.values() for each in figures for place in each}
    tables = packed(tables_of(study) | pairs.tables, {chart.table for chart in charts.values()})
    return template().render(
        **about(study, decided),
        **of_models(study, decided),
        sections=[section(study, analysis, places[analysis], decided) for analysis in study.analyses],
        compared_pairs=[_pair(*pair) for pair in pairs.pairs],
        compared_refused=pairs.refused,
        compared_charts=places["compare"],
        absent=[*study.absent, *shots.missing],
        reductions=reductions(tables),
        chunks=[(name, Markup(text)) for name, text in chunks_of(study, decided, charts, tables, shots)],
        **packaged(plotly.script(plotly.needs_space(chart.kind for chart in charts.values())), live),
    )


def template() -> Template:
    """The words around everything, which escapes what it is given."""
    loader = PackageLoader("backlight.report", "web")
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template("page.html")


def about(study: Study, decided: Sequence[Finding]) -> dict[str, Any]:
    """What is said of the entire study: title, first sentences, claims."""
    return {
        "title": title(study),
        "lead": lead(study),
        "opening": opening(study, decided),
        "untrained": study.settings.get("pretrained") is False,
        "outcome": summary(decided),
        "compared": statements.compared(study, decided),
        "of_the_paper": statements.of_the_paper(study, decided),
        "chips": CHIPS,
    }


def of_models(study: Study, decided: Sequence[Finding]) -> dict[str, Any]:
    """The models, what was measured of each, and of many their table."""
    models = models_of(study)
    return {
        "models": models,
        "survey": survey(study, models, decided) if len(models) > MANY else None,
        "tally": tally,
        "states": absences.states(study),
        "state_signs": absences.SIGNS,
        "kinds": legend(study),
        "kind_colour": KIND_COLOUR,
    }


def packaged(bundle: bytes, live: str) -> dict[str, Any]:
    """Styles and scripts, and the policy that allows no others.  They are ours: no word of a user's is in them."""
    script = own_script()
    return {
        "css": Markup(_own("page.css")),
        "script": Markup(script),
        "plotly": Markup(base64.b64encode(bundle).decode()),
        "policy": policy([script, gzip.decompress(bundle).decode()], live=bool(live)),
        "live": live,
    }


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

    >>> from backlight.study.folder import Model
    >>> title(Study([Model("resnet18", [], None, {})], {}, []))
    'How resnet18 works'
    """
    names = [model.name for model in study.models]
    return f"How {names[0]} works" if len(names) == 1 else f"How {len(names)} vision models work"


def lead(study: Study) -> str:
    """What was measured."""
    results = [result for model in study.models for result in model.results.values()]
    names = [model.name for model in study.models]
    who = series(names) if len(names) <= 4 else f"{len(names)} models"
    return f"{who} on {_images(results)} {_data(study, results)}: {counted(len(study.analyses), 'analysis', 'analyses')}."


def _images(results: Sequence[Result]) -> str:
    counts = sorted({int(result.provenance.get("images") or 0) for result in results} - {0})
    if not counts:
        return "images"
    return counted(counts[0], "image") if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} images"


def _data(study: Study, results: Sequence[Result]) -> str:
    """Of which set and split, as far as that is known."""
    requested = study.settings.get("data") or ""
    requested = requested.get("data") or requested.get("name") or "" if isinstance(requested, Mapping) else requested
    facts = [result.provenance.get("data", {}) for result in results]
    names = dict.fromkeys(str(fact["data"]) for fact in facts if fact.get("data")) or (
        {str(requested): None} if requested else {}
    )
    splits = dict.fromkeys(str(fact["split"]) for fact in facts if fact.get("split"))
    of = f"of {series(names)}" if names else "whose set has no name"
    return f"{of} (split {series(splits)})" if splits else of


# --- the sections


def section(study: Study, analysis: str, figures: list[list[dict[str, Any]]], decided: Sequence[Finding]) -> dict[str, Any]:
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
    measured = measured_on([result.measured for result in results if result is not None])
    return replace(chart, alt=alt, caption=caption([CHARTS[chart.name]], measured, marks=False) if chart.name else "")


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
        f"{model.name}: {series(units)} left out, because the stream there is no feature map."
        for model, result in zip(study.models, study.results(analysis), strict=True)
        if result is not None and (units := result.provenance.get("left_out"))
    ]
