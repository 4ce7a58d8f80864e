"""The documentation follows the code: examples run, what is public has its place, links resolve (`make docs` runs recipes)."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

import backlight
from backlight.analyses.catalog import CATALOG
from backlight.cli.app import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if not {"built", "recipes", "_build"} & set(page.parts))
START = sorted((DOCS / "start").glob("*.md"))
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.py"))

sys.path.insert(0, str(ROOT / "tools"))
from docs_reference import api, cli  # noqa: E402


@pytest.mark.parametrize("page", START, ids=lambda page: page.stem)
def test_the_examples_of_the_first_pages_run(page: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, shell and Python, with fewer images."""
    monkeypatch.chdir(tmp_path)
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", page.read_text(), re.DOTALL):
        if language == "python":
            exec(compile(block, page.name, "exec"), {"__name__": "__main__"})
            continue
        for line in block.splitlines():
            program, *words = shlex.split(line, comments=True)
            assert program == "backlight"
            code, _, err = run(*["24" if word == "100" else word for word in words])
            assert code == 0, err


def test_the_notebook_runs_and_its_last_values_show_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell in turn, as a notebook does: the value of a last expression is shown."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    shown = []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        *body, last = ast.parse("".join(cell["source"]).replace("limit=100", "limit=24")).body
        assert isinstance(last, ast.Expr)
        exec(compile(ast.Module(body, []), "notebook", "exec"), names)
        shown.append(eval(compile(ast.Expression(last.value), "notebook", "eval"), names))
    assert shown[0] == "ccc ccca ccca"
    assert [hasattr(value, "_repr_html_") for value in shown] == [False, True, True, True, True]


def test_there_are_ten_recipes_and_each_says_what_it_answers() -> None:
    assert len(RECIPES) == 10
    for recipe in RECIPES:
        _, title, line, *_ = recipe.read_text().split("\n")
        assert set(line) == {"="}
        assert len(line) == len(title)


def test_every_public_name_and_command_is_in_the_reference() -> None:
    names = set(re.findall(r"auto(?:class|function):: backlight\.(\w+)", api()))
    assert names == {name for name in backlight.__all__ if not name.startswith("__")}
    commands = set(re.findall(r"^## backlight (\S+)$", cli(), re.MULTILINE))
    assert commands == {command.name for command in app.registered_commands}
    for command in commands:
        assert f"## backlight {command}\n" in cli()


def test_links_between_pages_resolve() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(((?!https?:|#)[^)#\s]+)(?:#[^)]*)?\)", text):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set(re.findall(r"^([\w/]+)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    for page in PAGES:
        name = str(page.relative_to(DOCS).with_suffix(""))
        assert name in listed or name == "index" or name.startswith("analyses/"), name


@pytest.mark.parametrize("name", CATALOG)
def test_the_page_of_an_analysis_has_its_parts(name: str) -> None:
    """Question, formula, how to run it, how to read it or what can mislead, source."""
    text = (DOCS / "analyses" / f"{name}.md").read_text()
    assert CATALOG[name].question in text
    assert "<!-- settings" in text or not CATALOG[name].options()
    assert "```sh" in text
    assert "```python" in text
