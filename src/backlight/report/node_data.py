"""Numbers of units as node data of Model Explorer: files that colour the nodes of a model's graph.

A file holds one number of each unit: graph -> ``results``: key -> ``value``, and a gradient of colours.  The key is the name of
the unit's module, which a graph must have as the id of a node, or as the name of its output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backlight.errors import UserError
from backlight.files import write_atomic
from backlight.report.packing import last_of_units
from backlight.report.sections import section_of
from backlight.results.result import Row
from backlight.study.cells import folder_name
from backlight.study.folder import Model, Study

GRADIENT = [{"stop": 0, "bgColor": "#2b6cb0"}, {"stop": 0.5, "bgColor": "#f7f7f7"}, {"stop": 1, "bgColor": "#c05621"}]


def node_data(model: Model) -> dict[str, dict[str, Any]]:
    """The files of a model: name -> content; of each number that the panel of a unit shows."""
    files = {}
    for analysis, result in model.results.items():
        section = section_of(analysis)
        for fact in section.of_unit:
            rows = section.derived[fact.table](result) if fact.table in section.derived else result.table
            if values := _values(last_of_units(rows), fact.column, fact.scale):
                name = f"{analysis}-{fact.column}.json"
                files[name] = {model.name: {"results": values, "gradient": GRADIENT}}
    return files


def _values(rows: Sequence[Row], column: str, scale: float) -> dict[str, dict[str, float]]:
    """Of each unit's module its number, where there is one."""
    known = [(row["module"], row.get(column)) for row in rows if row["module"]]
    return {module: {"value": scale * value} for module, value in known if value is not None and math.isfinite(value)}


def write_node_data(study: Study, folder: Path) -> list[Path]:
    """Write FOLDER/MODEL/ANALYSIS-NUMBER.json; returns the files.  Errors: UserError if a file cannot be written."""
    written = []
    for model in study.models:
        for name, content in node_data(model).items():
            path = folder / folder_name(model.name) / name
            try:
                write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode())
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror}; choose another --node-data") from error
            written.append(path)
    return written
