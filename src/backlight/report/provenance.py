"""What the results of a section stand on: their settings, and a warning where they differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from backlight.report.sections.section import Results
from backlight.results.over import counted, series

#: Values of a setting that a survey names; of more it says how many there are.
VALUES = 3


def measured_differently(results: Results) -> list[str]:
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
        [f"The models were not measured alike, so compare them with care: they differ in {series(different)}."]
        if different
        else []
    )


def settings_of(results: Results, many: bool) -> list[tuple[str, list[str]]]:
    """Rows of (setting, a value a model); of many models (setting, [its values with how many models have them])."""
    flat = [_flat(result.provenance) if result is not None else {} for result in results]
    keys = dict.fromkeys(key for facts in flat for key in facts)
    rows = [(key, [facts.get(key, "–") for facts in flat]) for key in keys]
    return [(key, [_counted(values)]) for key, values in rows] if many else rows


def _counted(values: list[str]) -> str:
    """Values with how many models have them.

    >>> _counted(["1", "1", "2"]), _counted(["1", "1"])
    ('1 (2 models); 2 (1 model)', '1')
    """
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return counts[0][0]
    if len(counts) > VALUES:
        return f"{len(counts)} different values"
    return "; ".join(f"{value} ({counted(count, 'model')})" for value, count in counts)


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
