"""Imports go one way, names load on first use, and each analysis is one word in five places."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import backlight
from backlight.analyses.catalog import CATALOG

ROOT = Path(backlight.__file__).parent

#: The public API beside the analyses.  A change here is a change for users: the changelog says so.
PUBLIC = {
    "BuildupRun", "Hessian", "Monitor", "Objective", "Result", "Run", "StudySettings", "__version__", "buildup_to_folder",
    "compare", "correct", "dataset", "density", "draw_batches", "drop_original", "feature_maps", "gates", "grid", "hybridize",
    "lanczos", "load", "load_data", "load_model", "of_module", "of_units", "recipe", "run_study", "scalars", "set_gates",
    "smooth", "spell", "trace", "train", "train_to_folder", "units", "without", "write_report",
}  # fmt: skip


def test_imports_go_one_way_without_circles() -> None:
    """The contracts of pyproject.toml; imports inside functions and those for types count."""
    process = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize("words", ["", "backlight.cli.main", "backlight.study.config, backlight.study.plan"])
def test_the_package_its_help_and_its_plans_load_without_torch(words: str) -> None:
    code = f"import sys, backlight{', ' if words else ''}{words}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_names() -> None:
    assert set(backlight.__all__) == PUBLIC | set(CATALOG)
    assert set(dir(backlight)) == set(backlight.__all__)
    for name in backlight.__all__:
        assert getattr(backlight, name)
    with pytest.raises(AttributeError, match="no attribute 'furier'"):
        backlight.furier  # noqa: B018


def test_no_public_name_is_a_submodule() -> None:
    submodules = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not submodules & set(backlight.__all__)


def test_type_checkers_see_the_public_names(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    names = ["fourier", "hessian", "load_model", "units", "write_report"]
    script.write_text("import backlight\n" + "".join(f"reveal_type(backlight.{name})\n" for name in names))
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT.parents[1] / "pyproject.toml"), str(script)]
    process = subprocess.run(command, cwd=ROOT.parents[1], capture_output=True, text=True, check=False)
    revealed = [line for line in process.stdout.splitlines() if "Revealed type" in line]
    assert process.returncode == 0, process.stdout
    assert len(revealed) == len(names)
    for line, result in zip(revealed, ["Fourier", "HessianSpectrum", "Module", "Unit", "Path"], strict=True):
        assert result in line.rpartition("->")[2]
        assert "Any" not in line.rpartition("->")[2]


@pytest.mark.parametrize("name", CATALOG)
def test_an_analysis_is_one_word_in_five_places(name: str) -> None:
    from backlight.cli.app import app

    docs = ROOT.parents[1] / "docs" / "analyses" / f"{name}.md"
    assert getattr(backlight, name) is CATALOG[name].function
    assert name in {command.name for command in app.registered_commands}
    assert CATALOG[name].result_type().analysis == name
    assert docs.read_text().startswith("# ")
    assert (ROOT.parents[1] / "tests" / f"test_{name}.py").exists()
