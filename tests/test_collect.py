"""All rows of a study in one table: nothing lost, nothing changed, and no torch."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import TINY, TINY_ALTERNATING

from backlight.errors import UserError
from backlight.study.cells import folder_name, load
from backlight.study.collect import collect
from backlight.study.run import run_study
from backlight.study.settings import StudySettings

SMALL = StudySettings(limit=20, resamples=20, pretrained=False)
ANALYSES = ("variance", "calibration", "lesion")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and three analyses, one of them with other settings for one of the models."""
    out = tmp_path_factory.mktemp("study")
    list(run_study([TINY, TINY_ALTERNATING], {"variance": {}, "lesion": {}}, SMALL, out))
    list(run_study([TINY], {"calibration": {}}, SMALL, out))
    list(run_study([TINY_ALTERNATING], {"calibration": {"bins": 4}}, SMALL, out))
    return out


def test_every_row_of_every_result_is_there_with_what_it_is_of(study: Path) -> None:
    collected = collect(study)
    rows = pq.read_table(study / "collected.parquet").to_pylist()
    assert (collected.rows, collected.cells, collected.left_out) == (len(rows), 6, [])
    for model in (TINY, TINY_ALTERNATING):
        for analysis in ANALYSES:
            expected = load(study / folder_name(model) / analysis).rows()
            own = [row for row in rows if (row["model"], row["analysis"]) == (model, analysis)]
            names = [name for name in expected[0] if name != "model"]
            assert str([{name: row[name] for name in names} for row in own]) == str(
                [{n: r[n] for n in names} for r in expected]
            )
            others = set(rows[0]) - {"model", "analysis", "data", "split", "images", "seed", "settings", *names}
            assert {row[name] for row in own for name in others} <= {None}
            assert {(row["data"], row["split"], row["images"], row["seed"]) for row in own} == {("fashion", "test", 20, 0)}


def test_settings_are_written_where_they_differ(study: Path) -> None:
    collect(study)
    rows = pq.read_table(study / "collected.parquet").to_pylist()
    settings = {(row["model"], row["analysis"]): row["settings"] for row in rows}
    assert json.loads(settings[TINY_ALTERNATING, "calibration"]) == {"bins": 4}
    assert json.loads(settings[TINY, "calibration"]) == {"bins": 10}
    assert settings[TINY, "lesion"] is None


def test_csv_holds_the_same_as_parquet(study: Path, tmp_path: Path) -> None:
    collect(study, tmp_path / "rows.csv")
    collect(study, tmp_path / "rows.parquet")
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    with (tmp_path / "rows.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows)
    for text, row in zip(read, rows, strict=True):
        for name, value in row.items():
            same = text[name] == "" if value is None else str(type(value)(text[name])) == str(value)
            assert same or isinstance(value, bool), (name, text[name], value)
    assert not [*tmp_path.glob(".*")]


def test_a_damaged_result_is_left_out_and_named(study: Path, tmp_path: Path, run) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(study), str(copy)], check=True)
    place = copy / folder_name(TINY) / "lesion" / "rows.parquet"
    place.write_bytes(place.read_bytes()[:-1] + b"#")
    code, out, err = run("collect", copy)
    assert code == 0
    assert out.splitlines() == [str(copy / "collected.parquet"), str(copy / "collected.csv")]
    assert f"left out: {place} is damaged" in err
    assert "of 5 results" in err


@pytest.mark.parametrize(("folder", "sentence"), [("none", "there is no folder"), ("", "holds no results of Backlight")])
def test_what_holds_no_results_is_one_sentence(tmp_path: Path, folder: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        collect(tmp_path / folder)
    with pytest.raises(UserError, match="ends neither in"):
        collect(tmp_path, tmp_path / "rows.txt")


def test_no_torch_is_imported(study: Path) -> None:
    code = "import sys; from backlight.study.collect import collect; collect(__import__('pathlib').Path(sys.argv[1])); " \
        "sys.exit('torch' in sys.modules)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code, str(study)], check=False).returncode == 0
