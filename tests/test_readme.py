"""The README's examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_shell_example_runs(tmp_path: Path) -> None:
    script = "\n".join(blocks("sh"))
    assert script.count("backlight ") >= 4
    script = script.replace("backlight ", f"{sys.executable} -m backlight ").replace("--limit 100", "--limit 20")
    process = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "runs" / "report.html").stat().st_size < 10_000_000
    assert "bit-identical" in process.stderr


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = blocks("python")
    exec(compile(script, "README.md", "exec"), {})
    word, *claims = capsys.readouterr().out.splitlines()
    assert set(word) <= set("acmb ")
    assert claims
    assert (tmp_path / "runs" / "in-python" / "fourier" / "fourier.pdf").exists()


def test_what_the_readme_links_is_there() -> None:
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (Path(__file__).parent.parent / link).exists(), link


def test_the_accuracies_are_those_of_the_shipped_models() -> None:
    import json

    import backlight

    for description in (Path(backlight.__file__).parent / "assets" / "models").glob("*/model.json"):
        saved = json.loads(description.read_text())
        value, low, high = (f"{100 * x:.1f}" for x in saved["test"]["accuracy"])
        row = next(line for line in README.splitlines() if line.startswith(f"| `{description.parent.name}`"))
        assert f"{value}% [{low}, {high}]" in row
        assert saved["model"] in row
