"""The command line is a contract: what it prints, where, and how it exits."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, TINY_ALTERNATING

from backlight.cli.app import app

COMMANDS = sorted(command.name for command in app.registered_commands)
SMALL = ["--no-pretrained", "--limit", "20", "--quiet", "--resamples", "50"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(run, name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"Example: backlight {name}" in " ".join(out.split())


def test_rows_are_csv_on_standard_output_and_progress_is_not(run) -> None:
    code, out, err = run("variance", TINY, TINY_ALTERNATING, "--no-pretrained", "--limit", 20, "--resamples", 50)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["kind"] for row in rows] == ["stem", "conv", "conv", "conv", "stem", "conv", "conv", "attention"]
    assert {row["model"] for row in rows} == {TINY, TINY_ALTERNATING}
    assert all(float(row["variance_low"]) <= float(row["variance"]) <= float(row["variance_high"]) for row in rows)
    assert "batches" in err


def test_json_holds_rows_claims_and_evidence(run) -> None:
    code, out, _ = run("fourier", TINY, *SMALL, "--json")
    (result,) = json.loads(out)
    assert code == 0
    assert set(result) == {"model", "analysis", "claims", "provenance", "rows"}
    assert result["provenance"]["data"]["preprocessing"]["input_size"] == [1, 28, 28]
    assert {row["frequency"] for row in result["rows"]} >= {0.0, 1.0}


def test_settings_reach_the_analysis(run) -> None:
    _, out, _ = run("fourier", TINY, *SMALL, "--paper")
    assert max(int(row["cycles"]) for row in csv.DictReader(io.StringIO(out))) == 13  # 28 px: one bin short of 14
    _, out, _ = run("fourier", TINY, *SMALL, "--at", "stem")
    assert {row["module"] for row in csv.DictReader(io.StringIO(out))} == {"stem"}


def test_units_prints_the_word_and_proves_it(run) -> None:
    code, out, err = run("units", TINY_ALTERNATING, "--no-pretrained", "--check")
    assert code == 0
    assert out.splitlines()[0] == f"{TINY_ALTERNATING}: c ca"
    assert "bit-identical" in err
    _, out, _ = run("units", TINY_ALTERNATING, "--no-pretrained", "--json")
    assert json.loads(out)["word"] == "c ca"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["fourier", "resnet5", "--no-pretrained"], 2, "did you mean resnet50"),
        (["furier", "resnet50"], 2, "Did you mean 'fourier'"),
        (["study", "--models", "resnet50", "--analyses", "furier", "--out", "x"], 2, "did you mean fourier"),
        (["study", "--out", "x"], 2, "a study needs models"),
        (["study", "--models", "resnet50"], 2, "--out DIR"),
        (["fourier", TINY, "--no-pretrained", "--data", "no/such/folder"], 2, "no folder at no/such/folder"),
        (["fourier", TINY, "--no-pretrained", "--data", "fashon"], 2, "did you mean fashion"),
        (["fourier", TINY, "--no-pretrained", "--limit", "0"], 2, "--limit"),
        (["fourier", TINY, "--no-pretrained", "--limit", "few"], 2, "--limit"),
        (["fourier", TINY, "--no-pretrained", "--dtype", "int8"], 2, "float32"),
        (["fourier", TINY, "--no-pretrained", "--device", "toaster"], 2, "toaster"),
        (["fourier", TINY, "--limit", "20"], 4, "--no-pretrained"),
        (["fourier", TINY, *SMALL, "--at", "stm"], 2, "did you mean stem"),
        (["fourier", "vgg11", "--no-pretrained", "--limit", "2", "--quiet"], 2, "--at features."),
        (["calibration", "resnet18?num_classes=1000", "--no-pretrained", "--limit", "2", "--quiet"], 2, "1000 outputs"),
        (["variance", TINY, *SMALL, "--over", "time"], 2, "space or samples"),
        (["report", "no/such/folder"], 2, "no/such/folder"),
        (["train", TINY, "--recipe", "fasion", "--out", "x"], 2, "did you mean fashion"),
        (["units", "no_such_file.py:model"], 4, "no_such_file"),
        ([], 2, "Commands:"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_a_mistake_gets_one_sentence(run, words: list[str], code: int, sentence: str) -> None:
    exit_code, out, err = run(*words)
    assert exit_code == code
    assert sentence in err
    assert "Traceback" not in err
    assert out == ""
    assert words == [] or len(err.strip().splitlines()) == 1


def test_an_image_that_is_a_text_file_is_named(run, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_text("not an image")
    code, _, err = run("fourier", TINY, "--no-pretrained", "--data", tmp_path, "--quiet")
    assert code == 2
    assert "1.png" in err
    assert len(err.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_written_gets_one_sentence(run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, out, err = run("variance", TINY, *SMALL, "--out", tmp_path / "file" / "runs")
    assert (code, out) == (2, "")
    assert "cannot write" in err
    assert "--out" in err


def test_what_there_is(run) -> None:
    assert "alternet_50_cifar" in run("models", "alternet*")[1]
    assert "fashion" in run("data")[1]
    assert run("analyses")[1].splitlines()[1].startswith("fourier")
    assert {"cifar", "imagenet", "fashion"} <= {row["recipe"] for row in json.loads(run("recipes", "--json")[1])}
    assert json.loads(run("doctor", "--json")[1])["torch"]


def test_a_pipe_that_closes_early_is_no_error() -> None:
    process = subprocess.run(f"{sys.executable} -m backlight models | head -1", shell=True, capture_output=True, check=False)
    assert process.stderr == b""


def test_commands_that_make_models_take_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NAME=MODEL: the name stands in the table, and the folder records the MODEL, which loads again."""
    tiny = "word:cc?block=basic&dim=8&stem=cifar"
    training = ["--data", "fashion", "--limit", "32", "--epochs", "1", "--batch-size", "16", "--quiet"]
    app(["train", f"mine={tiny}", *training, "--out", str(tmp_path / "m")], standalone_mode=False)
    app(["hybridize", f"short={tmp_path / 'm'}", "--units", "1", "--out", str(tmp_path / "h")], standalone_mode=False)
    assert "short " in capsys.readouterr().out
    for folder in ("m", "h"):
        recorded = (tmp_path / folder / "model.json").read_text()
        assert tiny in recorded
        assert "mine=" not in recorded
        assert "short=" not in recorded
    app(["units", str(tmp_path / "h")], standalone_mode=False)
