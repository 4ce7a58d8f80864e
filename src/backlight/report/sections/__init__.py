"""The sections of the page, a file an analysis: what its figure shows and how to read it.

To give an analysis its own section, add ``sections/ANALYSIS.py`` with a ``SECTION``.  A chart is described, not drawn: it
names its table and the columns to show, and ``page.js`` draws it.  An analysis without a file gets the default section: if its
rows are about units, a chart over depth of the first column with an interval; and the table itself.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

from backlight.report.sections.section import Chart, Results, Section
from backlight.results.result import Result
from backlight.study.folder import Study, incomplete


def over_depth(results: Results) -> list[list[Chart]]:
    """The first column with an interval, over depth; nothing if the rows are not about units."""
    result = next((result for result in results if result is not None), None)
    columns = set(result.table[0]) if result is not None else set()
    measured = [name for name in (result.table[0] if result else ()) if {f"{name}_low", f"{name}_high"} <= columns]
    if result is None or not measured or not {"unit", "kind", "stage", "module"} <= columns:
        return []
    label = measured[0].replace("_", " ").capitalize()
    return [[Chart("depth", result.analysis, label, f"{label} over normalised depth.", y=measured[0])]]


DEFAULT = Section(title="", reading="", figures=over_depth, rows=True)


def section_of(analysis: str) -> Section:
    """The section of an analysis."""
    if find_spec(f"{__name__}.{analysis}") is None:
        return DEFAULT
    return import_module(f".{analysis}", __name__).SECTION


def checked(study: Study) -> Study:
    """The study without the results that their sections cannot show, and a sentence for each of them."""
    absent = list(study.absent)
    models = []
    for model in study.models:
        wrong = {
            name: ValueError(f"it lacks {', '.join(lacking)}") for name, r in model.results.items() if (lacking := lacks(r))
        }
        absent += [incomplete(model.name, name, error) for name, error in wrong.items()]
        models.append(replace(model, results={name: r for name, r in model.results.items() if name not in wrong}))
    return replace(study, models=models, absent=absent)


def lacks(result: Result) -> list[str]:
    """The columns and arrays that the section needs and the result does not have."""
    return sorted(set(section_of(result.analysis).needs) - set(result.table[0]) - set(result.arrays))
