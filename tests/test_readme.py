"""The README's examples run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_shell_example_runs(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command as it stands, with fewer images; in one process, because each start of torch takes seconds."""
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) >= 6
    said = ""
    for program, *words in commands:
        assert program == "backlight"
        code, _, err = run(*["20" if word == "100" else word for word in words])
        assert code == 0, err
        said += err
    assert (tmp_path / "runs" / "report.html").stat().st_size < 10_000_000
    assert "bit-identical" in said


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
