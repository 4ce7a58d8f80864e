"""Models as a page shows them: a word of units, a line of a colour and dash, a sentence, an accuracy."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from backlight.claims.kinds import NAMES, kind_of
from backlight.report import words
from backlight.report.families import families
from backlight.results.result import Row
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
    return f"{words.interval(row['value'], row['low'], row['high'], scale=100)}%", f"({result.over})"


def legend(study: Study) -> dict[str, tuple[str, str, str, str]]:
    """The signs and the name of each kind of unit that the study has."""
    present = kinds_in(study)
    return {kind: (*sign, words.SINGULAR.get(kind, kind)) for kind, sign in KIND_SIGN.items() if kind in present}


def kinds_in(study: Study) -> set[str]:
    """The kinds of units that results are about."""
    rows = (row for model in study.models for result in model.results.values() for row in result.table)
    return {_known(kind) for row in rows if (kind := row.get("kind", "whole")) != "whole"}
