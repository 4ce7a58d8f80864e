"""The page of the survey is what the shipped table gives, and its counts are those of the rows."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def summary() -> ModuleType:
    """examples/survey/summary.py, which is no package."""
    spec = importlib.util.spec_from_file_location("survey_summary", ROOT / "examples/survey/summary.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step(model: str, value: float | None, low: float = 0.0, high: float = 0.0) -> dict[str, object]:
    """A row of fourier."""
    names = ("model", "analysis", "high_step", "high_step_low", "high_step_high", "mean_step")
    return dict(zip(names, (model, "fourier", value, low, high, 0.0), strict=True))


def pair(unit: int, other: int | None, cka: float | None) -> dict[str, object]:
    """A row of similarity."""
    return {"model": "a", "analysis": "similarity", "unit": unit, "other_unit": other, "cka": cka}


def test_the_page_is_what_the_shipped_table_gives(summary: ModuleType) -> None:
    page = summary.PAGE.read_text()
    first, last = summary.MARKS
    assert page.split(first)[1].split(last)[0].strip() == summary.table(pq.read_table(summary.TABLE).to_pylist())


def test_every_model_of_the_shipped_table_is_in_the_study(summary: ModuleType) -> None:
    models = tomllib.loads((ROOT / "examples/survey/survey.toml").read_text())["models"]
    assert set(pq.read_table(summary.TABLE, columns=["model"])["model"].to_pylist()) <= set(models)


@pytest.mark.parametrize(
    ("row", "effect"),
    [
        (step("a", -0.5, -0.6, -0.4), "lower"),
        (step("a", 0.5, 0.4, 0.6), "raise"),
        (step("a", 0.5, -0.1, 1.0), "undecided"),
        (step("a", -0.5, -1.0, 0.1), "undecided"),
        (step("a", -4e-16, -5e-16, -3e-16), "leave"),  # rounding whose interval excludes 0
    ],
)
def test_effect(summary: ModuleType, row: dict[str, object], effect: str) -> None:
    assert summary.effect(row) == effect


def test_rows_without_a_step_are_not_counted(summary: ModuleType) -> None:
    rows = [step("a", -0.5, -0.6, -0.4), step("a", float("nan")), step("a", None), pair(-1, 0, 0.9), pair(-1, 1, 0.25)]
    rows += [pair(0, 1, 0.8), pair(-1, None, None)]
    assert summary.line("a", rows) == "| a | 1 | 1 | 0 | 0 | 0 | -0.50 | -0.50 | 0.25 |"


def test_the_summary_reads_the_table_without_torch() -> None:
    code = (
        "import runpy, sys; m = runpy.run_path(sys.argv[1]); import pyarrow.parquet as pq; "
        "m['table'](pq.read_table(m['TABLE']).to_pylist()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(ROOT / "examples/survey/summary.py")], check=False).returncode == 0
