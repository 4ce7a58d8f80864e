"""The README's examples run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
MODELS = (Path(__file__).parent.parent / "docs" / "models.md").read_text()


QUICK = {"study": ["--analyses", "calibration", "variance", "--resamples", "20"]}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_shell_example_runs(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command as it stands, with fewer images; in one process, because each start of torch takes seconds."""
    monkeypatch.chdir(tmp_path)
    file, *_ = blocks("python")
    Path("mymodels.py").write_text(file)
    commands = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) >= 5
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
    _, script = blocks("python")
    exec(compile(script, "README.md", "exec"), {})
    word, *claims = capsys.readouterr().out.splitlines()
    assert set(word) <= set("acmb ")
    assert claims
    assert (tmp_path / "runs" / "in-python" / "fourier" / "fourier.pdf").exists()


def test_the_file_that_init_writes_runs_and_is_not_overwritten(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("init", "mymodels.py")
    assert (code, out) == (0, "mymodels.py\n")
    examples = re.findall(r"^    backlight (.*)$", Path("mymodels.py").read_text(), re.MULTILINE)
    assert len(examples) == 3
    for words in examples:
        code, _, err = run(*["20" if word == "500" else word for word in shlex.split(words)], *QUICK.get(words.split()[0], []))
        assert code == 0, err
    code, out, err = run("init", "mymodels.py")
    assert code == 2
    assert "mymodels.py exists already" in err
    assert run("init", "here.txt")[0] == 2
    assert run("init", "none/there.py")[0] == 2


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 120


def test_what_the_readme_links_is_there() -> None:
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (Path(__file__).parent.parent / link).exists(), link


def test_the_accuracies_are_those_of_the_shipped_models() -> None:
    import json

    import backlight

    for description in (Path(backlight.__file__).parent / "assets" / "models").glob("*/model.json"):
        saved = json.loads(description.read_text())
        value, low, high = (f"{100 * x:.1f}" for x in saved["test"]["accuracy"])
        row = next(line for line in MODELS.splitlines() if line.startswith(f"| `{description.parent.name}`"))
        assert f"{value}% [{low}, {high}]" in row
        assert saved["model"] in row
