"""The documentation follows the code: examples run, what is public has its place, links resolve (`make docs` runs recipes)."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY_ALTERNATING

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


def test_every_analysis_has_a_page_and_every_page_an_analysis() -> None:
    assert {page.stem for page in (DOCS / "analyses").glob("*")} == set(CATALOG)


#: The headings of the page of an analysis, in order.
PARTS = ["Formula", "How to read it", "What can fool you", "Settings", "Cost", "Run", "Other tools", "Source"]


def parts(name: str) -> dict[str, str]:
    """The text under each heading of the page of an analysis; under the empty heading what is before the first."""
    text = (DOCS / "analyses" / f"{name}.md").read_text()
    before, *rest = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return {"": before, **dict(zip(rest[::2], rest[1::2], strict=True))}


@pytest.mark.parametrize("name", CATALOG)
def test_the_page_of_an_analysis_has_its_parts(name: str) -> None:
    """The question first, then the same headings in the same order on every page, each with text under it."""
    page = parts(name)
    assert page[""].startswith(f"# {name}\n\n**{CATALOG[name].question}**\n")
    assert list(page) == ["", *PARTS]
    assert all(text.strip() for text in page.values())
    assert "<!-- settings -->\n" in page["Settings"]
    assert re.search(r"^    passes over the images: .*\bF\b", page["Cost"], re.MULTILINE)
    assert "memory" in page["Cost"].lower()
    assert "```sh\n" in page["Run"]
    assert "```python\n" in page["Run"]
    assert len(re.findall(r"[.?!](?:\s|$)", page["Other tools"])) <= 4


# --- the cost that a page names, counted


def counted(name: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Forward and backward passes over eight images that an analysis of a tiny model takes.

    Batches have four images; what finds the units takes two at most and is no pass over the images.
    """
    classes = 8 if name == "shape_bias" else 10
    model = backlight.load_model(TINY_ALTERNATING.replace("num_classes=10", f"num_classes={classes}"), pretrained=False)
    if CATALOG[name].training_loss:
        data = backlight.draw_batches("fashion", model=model, images=8, batch_size=4)
    else:
        source, split = CATALOG[name].data
        data = backlight.load_data(source, split=split, model=model, limit=8, batch_size=4)
    forward, backward = [], []
    grad = torch.autograd.grad

    def recorded(outputs: torch.Tensor, inputs: torch.Tensor, **options: object) -> tuple[torch.Tensor, ...]:
        backward.append(len(inputs))
        return grad(outputs, inputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", recorded)
    handle = model.register_forward_hook(lambda _, inputs, output: forward.append(len(inputs[0])))
    CATALOG[name].function(model, data, resamples=20, **settings)
    handle.remove()
    return tuple(sum(images for images in passes if images > 2) / 8 for passes in (forward, backward))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fourier", {}),
        ("variance", {}),
        ("similarity", {}),
        ("attention", {}),
        ("calibration", {"temperature": True}),
        ("shape_bias", {}),
        ("noise", {"frequencies": (0.3, 0.7), "severities": (0.05, 0.1, 0.2)}),
        ("corruption", {"corruptions": ("fog", "contrast", "pixelate"), "severities": (1, 3)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_catalogue_says_how_many_forward_passes_an_analysis_takes(
    name: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its number is exact; about others, see below."""
    entry = CATALOG[name]
    assert counted(name, settings, monkeypatch) == (entry.passes_of(entry.checked(settings), units=3), 0)


@pytest.mark.parametrize(
    ("name", "formula", "settings", "passes"),
    [
        ("noise", "+ (N² + 1)/2 F", {"frequencies": (0.5,), "severities": (0.1,), "basis": 3}, (2 + 5, 0)),
        ("adversarial", "2 F + 1 B + E · ((steps + 4) F + steps B)", {"epsilons": (2, 8), "steps": 3}, (2 + 2 * 7, 1 + 2 * 3)),
        ("adversarial", "one F and one B less", {"epsilons": (2,), "steps": 3, "random_start": False}, (2 + 6, 1 + 2)),
        ("landscape", "(grid^d + 2 d + 1) F", {"grid": 3}, (9 + 4 + 1, 0)),
        ("landscape", "(grid^d + 2 d + 1) F", {"grid": 5, "dimensions": 1}, (5 + 2 + 1, 0)),
        ("landscape", "takes twice as many", {"grid": 3, "statistics": "re-estimated", "dimensions": 1}, (2 * (3 + 2 + 1), 0)),
        ("trajectory", "(T + 1) F", {"snapshots": 2}, (3, 0)),
        ("trajectory", "+ (grid² + 5) F", {"snapshots": 2, "grid": 3}, (3 + 9 + 5, 0)),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else "",
)
def test_the_cost_on_the_page_is_that_of_the_code(
    name: str, formula: str, settings: dict[str, object], passes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number is the formula on the page with these settings."""
    assert formula in parts(name)["Cost"]
    if "snapshots" in settings:
        models = [backlight.load_model(TINY_ALTERNATING, pretrained=False) for _ in range(int(str(settings["snapshots"])))]
        for t, model in enumerate(models):
            list(model.parameters())[t].data += 1  # in a direction of its own: a plane needs two
        settings = settings | {"snapshots": models}
    assert counted(name, settings, monkeypatch) == passes
