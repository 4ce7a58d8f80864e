"""What a terminal shows of a result, and what a notebook does: the finding first, nothing cut, nothing run as markup."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from conftest import TINY, TINY_ALTERNATING

import backlight
from backlight.analyses.catalog import CATALOG
from backlight.cli.screen import PLAIN
from backlight.results.claim import Claim
from backlight.study.run import run_study
from backlight.study.settings import StudySettings

WORDS = ["--no-pretrained", "--limit", "24", "--resamples", "50", "--quiet"]
SMALL = StudySettings(limit=24, resamples=50, pretrained=False)


@pytest.fixture
def screen(run, monkeypatch: pytest.MonkeyPatch):
    """The screen of a command on a terminal of so many columns."""

    def shown(columns: int, *words: object, colour: bool = False) -> list[str]:
        monkeypatch.setattr("backlight.cli.analyses.is_terminal", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        for name, value in {"NO_COLOR": "" if colour else "1", "FORCE_COLOR": "1" if colour else ""}.items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        code, out, err = run(*words, *WORDS)
        assert (code, err) == (0, "")
        return out.splitlines()

    return shown


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_model_the_verdicts_the_numbers_and_the_place_fit_the_terminal(screen, tmp_path: Path, columns: int) -> None:
    lines = screen(columns, "lesion", f"mixed={TINY_ALTERNATING}", "--out", tmp_path / "runs")
    assert max(map(len, lines)) <= columns
    assert lines[0] == "mixed  c ca"
    text = " ".join(" ".join(lines).split())
    (outcome,) = run_study([f"mixed={TINY_ALTERNATING}"], {"lesion": {}}, SMALL, tmp_path / "runs")
    assert outcome.skipped
    assert outcome.result is not None
    for claim in outcome.result.claims:
        assert claim.statement.rstrip(".") in re.sub(r"\s+", " ", text) or columns < 200
        assert re.search(rf"^{claim.verdict}\b", "\n".join(lines), re.MULTILINE)
    assert re.search(r"change of NLL without a unit, mean over units .*\d \[.*\] nats", text) or columns == 60
    assert "24 images of fashion, test · " in text
    assert f"saved in {tmp_path}" in text or columns < 200
    rows = outcome.result.rows()
    assert f"all {len(rows)} rows: --rows or --csv" in text


def test_rows_csv_and_no_terminal(screen, run, tmp_path: Path) -> None:
    words = ["calibration", f"a={TINY}"]
    every = screen(200, *words, "--rows")
    as_csv = screen(60, *words, "--csv")
    names = next(csv.reader(as_csv[:1]))
    assert [name in " ".join(every) for name in names] == [True] * len(names)
    rows = list(csv.DictReader(as_csv))
    assert len(rows) == len([line for line in every if re.match(r" *(accuracy|nll|\w+) +[-\d.na]+ +[-\d.na]+ ", line)])
    assert len(rows) > 5


def test_colours_only_where_they_are_wanted(screen) -> None:
    assert "\x1b[3" in "\n".join(screen(80, "variance", TINY_ALTERNATING, colour=True))
    assert "\x1b[3" not in "\n".join(screen(80, "variance", TINY_ALTERNATING))


def test_a_terminal_without_utf8_gets_characters_that_it_has(screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console.encoding", "ascii")
    text = "\n".join(screen(80, "fourier", TINY_ALTERNATING))
    assert text.isascii()
    assert "change of log amplitude" in text
    assert "−5.0 [−8.1] × 10⁻⁶ · ≤".translate(PLAIN) == "-5.0 [-8.1] x 10-6 ; <="


def test_a_result_is_one_line_and_a_safe_page_part() -> None:
    (outcome,) = run_study([TINY_ALTERNATING], {"variance": {}}, SMALL)
    result = outcome.result
    assert result is not None
    assert "\n" not in repr(result)
    assert len(repr(result)) < 300
    assert repr(result).startswith(f"<variance of {TINY_ALTERNATING}, 24 images: ")
    claim = Claim.of_sign("positive", (1, 0.5, 2), id="a/b", statement="<script>x</script>", source="", quantity="", count=30)
    hostile = type(result)("<img src=x onerror=alert(1)>", result.table, [claim], result.provenance, result.arrays)
    html = hostile._repr_html_()
    assert "<script" not in html
    assert "<img src=x" not in html
    assert html.count("<img ") == 1
    assert "data:image/png;base64," in html
    assert "holds" in html
    assert html.count("<tr>") == 2 + 1 + min(8, len(result.table))


def test_no_result_prints_as_a_wall_of_text() -> None:
    """Each kind of result has the one line; a dataclass would make its own."""
    kinds = [about.result_type() for about in CATALOG.values()]
    assert {kind.__repr__ for kind in kinds} == {backlight.Result.__repr__}


def test_rows_as_a_data_frame_or_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    (outcome,) = run_study([TINY], {"calibration": {}}, SMALL)
    result = outcome.result
    assert result is not None
    monkeypatch.setattr("backlight.results.result.find_spec", lambda _: None)
    assert str(result.to_pandas().to_pylist()) == str(result.rows())
    monkeypatch.undo()
    pandas = pytest.importorskip("pandas")
    assert isinstance(result.to_pandas(), pandas.DataFrame)
    assert list(result.to_pandas().columns) == list(result.rows()[0])


def test_scalars_have_the_ids_of_claims_and_the_names_of_quantities() -> None:
    outcomes = run_study([TINY_ALTERNATING], {"calibration": {}, "variance": {}, "fourier": {}, "lesion": {}}, SMALL)
    for outcome in outcomes:
        result = outcome.result
        assert result is not None
        numbers = backlight.scalars(result)
        assert all(name.startswith(f"{result.analysis}/") for name in numbers)
        for claim in result.claims:
            assert numbers.get(claim.id, claim.value) == claim.value
        if result.analysis == "calibration":
            assert numbers["calibration/accuracy"] == pytest.approx(result.arrays["per_image/correct"].mean())
