"""Writes the tables of the documentation that the code knows: `make tables`.

Between `<!-- settings -->` and `<!-- /settings -->` stand the settings of the page's analysis; outside docs/analyses the first
line says whose, `<!-- settings: study -->`.  Between `<!-- analyses -->` and `<!-- /analyses -->` stand all analyses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import MISSING
from pathlib import Path

from backlight.analyses.catalog import CATALOG
from backlight.analyses.entry import AugmentationSettings, BatchSettings, ObjectiveSettings
from backlight.buildup.settings import SearchSettings
from backlight.recipes import Recipe
from backlight.settings import Option, options
from backlight.study.settings import StudySettings
from backlight.training.settings import Execution, TrainingData, TrainingRun

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
GROUPS = {
    "study": (StudySettings,),
    "training data": (TrainingData,),
    "training run": (TrainingRun, Execution),
    "recipe": (Recipe,),
    "search": (SearchSettings,),
    "objective": (ObjectiveSettings, BatchSettings, AugmentationSettings),
}
LISTED = re.compile(r"(<!-- analyses -->\n).*?(<!-- /analyses -->)", re.DOTALL)
MARKED = re.compile(r"(<!-- settings(?:: ([\w ]+))? -->\n).*?(<!-- /settings -->)", re.DOTALL)


def table(settings: Iterable[Option]) -> str:
    """A Markdown table, a row a setting."""
    rows = [
        f"| `{option.name}` | {_default(option)} | {_cell(option.allowed())} | {_cell(option.about['help'])} |"
        for option in settings
    ]
    if not rows:
        return "It has no settings of its own.\n"
    return "\n".join(["| setting | default | allowed | what |", "|---|---|---|---|", *rows]) + "\n"


def _default(option: Option) -> str:
    value = option.default
    if value in (None, MISSING, ()):
        return ""
    text = str(value).lower() if isinstance(value, bool) else ",".join(map(str, value)) if isinstance(value, tuple) else value
    return f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def written(page: Path) -> str:
    """The text of a page with its tables as they should be."""
    own = CATALOG[page.stem].options() if page.parent.name == "analyses" and page.stem in CATALOG else ()

    def filled(match: re.Match[str]) -> str:
        settings = [option for kind in GROUPS[match[2]] for option in options(kind)] if match[2] else own
        return f"{match[1]}{table(settings)}{match[3]}"

    text = MARKED.sub(filled, page.read_text(encoding="utf-8"))
    return LISTED.sub(lambda match: f"{match[1]}{catalogue(page)}{match[2]}", text)


def catalogue(page: Path) -> str:
    """All analyses, with links that are right on this page."""
    folder = (ROOT / "docs" / "analyses").relative_to(page.parent).as_posix()
    rows = [f"| [`{name}`]({folder}/{name}.md) | {each.question} | {each.paper} |" for name, each in CATALOG.items()]
    return "\n".join(["| analysis | question | paper |", "|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(written(path), encoding="utf-8")
