"""Imports point one way, and names load on first use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import backlight
from backlight.analyses import ANALYSES

ROOT = Path(backlight.__file__).parent
#: Each part of the package and how far from the ground it stands; a module may import its own level and those below.
LEVEL = {
    "errors": 0, "whole": 0, "setup": 0, "numerics": 0, "recipes": 0,
    "layout": 1, "trace": 2, "evidence": 2, "result": 2, "drawing": 3, "anatomy": 3, "image_sets": 3, "progress": 1,
    "models": 4, "data": 4, "augmentation": 1, "pieces": 1, "objective": 4, "curvature": 4, "hessians": 4,
    "batches": 5, "surfaces": 4, "vtp": 4, "pixels": 1, "corruptions": 1, "shapes": 4, "attending": 4,
    "analyses": 5,
    "rand_augment": 2, "chance": 3, "training_images": 5, "training": 6, "checkpoints": 1, "trackers": 3,
    "study": 6, "runs": 7, "buildup": 8, "buildup_rule": 4, "report": 7, "doctor": 7,
    "cli": 9, "__main__": 10, "__init__": 0,
}  # fmt: skip


def imported(file: Path) -> set[str]:
    """The parts of the package that a file imports when it is loaded (not those inside functions)."""
    package = file.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            place = package[: len(package) - node.level + 1] + tuple((node.module or "").split("."))
            names = [*place, *(alias.name for alias in node.names)]
            found.add(next(name for name in names if name))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("backlight"):
            found.add([*node.module.split("."), *(a.name for a in node.names)][1])
    return found


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    part = file.relative_to(ROOT).parts[0].removesuffix(".py")
    for other in imported(file) & LEVEL.keys():
        assert other == part or LEVEL[other] <= LEVEL[part], f"{part} imports {other}"


def test_the_package_and_its_help_load_without_torch() -> None:
    code = "import sys, backlight, backlight.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_loads() -> None:
    for name in backlight.__all__:
        assert getattr(backlight, name)
    with pytest.raises(AttributeError, match="no attribute 'furier'"):
        backlight.furier  # noqa: B018


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_is_one_word_in_five_places(name: str) -> None:
    from backlight.analyses import result_type
    from backlight.cli import app

    docs = ROOT.parent.parent / "docs" / "analyses" / f"{name}.md"
    assert callable(getattr(backlight, name))
    assert name in {command.name for command in app.registered_commands}
    assert result_type(name).analysis == name
    assert (ROOT / "analyses" / f"{name}.py").exists()
    assert docs.read_text().startswith("# "), "the page has a title"
