"""`backlight compare` says the finding first; `backlight diff` fails where a model is worse by more than a threshold."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, TINY_ALTERNATING

from backlight.analyses.calibration.measure import Calibration
from backlight.cli.diff import escaped
from backlight.comparing.compare import Comparison
from backlight.comparing.differences import Difference, NotComparable
from backlight.comparing.gates import check, threshold
from backlight.comparing.series import Number
from backlight.comparing.sides import holds_results, pairs
from backlight.errors import UserError
from backlight.numerics.calibration import Scores

N = 200
DATA = {"data": "noise", "split": "test", "limit": N, "seed": 0, "ids_sha256": "abc"}
SMALL = ["--no-pretrained", "--limit", 40, "--resamples", 50, "--batch-size", 20, "--quiet"]


def measured(name: str, right: int, confidence: float, **data: Any) -> Calibration:
    """The calibration of a model that answers the first ``right`` of 200 images correctly, each with this confidence."""
    label = np.arange(N) % 10
    correct = np.arange(N) < right
    scores = Scores(
        label, np.where(correct, label, (label + 1) % 10), np.full(N, confidence), np.full(N, 0.5), np.full(N, 0.2), correct
    )
    ece = abs(confidence - correct.mean())
    table = [{"metric": metric, "value": v, "low": v, "high": v} for metric, v in (
        ("accuracy", correct.mean()), *[(m, 0.5) for m in ("top5", "nll", "brier")], ("ece", ece), ("signed_ece", ece),
        ("adaptive_ece", ece), *[(m, 0.5) for m in ("acc_90", "freq_90", "unc_90", "iou", "iou_90")], ("ece_debiased", ece),
    )]  # fmt: skip
    arrays = {
        "reliability": np.zeros((3, 3, 10)),
        "per_image/correct": correct,
        "per_image/scores": np.stack(scores).astype(float),
    }
    return Calibration(name, table, [], {"images": N, "data": DATA | data, "settings": {"bins": 10}}, arrays)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a base, of a worse model, of one on other images, and of two seeds of each of two models."""
    root = tmp_path_factory.mktemp("stored")
    measured("base", 180, 0.85).save(root / "base" / "calibration")
    measured("worse", 150, 0.85).save(root / "worse" / "calibration")
    measured("elsewhere", 150, 0.85, ids_sha256="other", limit=100).save(root / "elsewhere" / "calibration")
    for folder, right in (("before", 180), ("after", 170)):
        for name in ("x", "y"):
            measured(name, right, 0.85).save(root / folder / name / "calibration")
    for name, right in (("p", 150), ("q", 152)):
        measured(name, right, 0.85).save(root / "others" / name / "calibration")
    return root


# --- compare


def test_two_models_by_name_are_measured_and_compared(run, tmp_path: Path) -> None:
    code, out, err = run("compare", TINY, TINY_ALTERNATING, *SMALL, "--out", tmp_path / "runs")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert {row["models"] for row in rows} == {f"{TINY} -> {TINY_ALTERNATING}"}
    assert {row["id"].partition("/")[0] for row in rows} == {"fourier", "variance", "similarity", "lesion", "calibration"}
    assert err.startswith(f"{TINY_ALTERNATING} against {TINY}: ")
    assert f" of {len(rows)} numbers differ" in err
    of_folder = run("compare", tmp_path / "runs")
    assert of_folder[1] == out  # the stored results give the same differences


def test_a_snapshot_is_compared_with_the_trained_model(run, tmp_path: Path) -> None:
    words = [TINY, "--data", "fashion", "--limit", 200, "--epochs", 1, "--snapshots", "init", "--out", tmp_path / "run"]
    assert run("train", *words)[0] == 0
    places = tmp_path / "run" / "snapshots" / "init", tmp_path / "run"
    code, out, _ = run("compare", *places, "--limit", 20, "--analyses", "variance", "-q")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert any(float(row["difference"]) for row in rows)
    assert all(row["interval"] == "paired" for row in rows)


def test_json_holds_the_same_rows(run, folders: Path) -> None:
    code, out, _ = run("compare", folders / "base", folders / "worse", "--json")
    rows = {row["id"]: row for row in json.loads(out)}
    assert code == 0
    accuracy = rows["calibration/accuracy"]
    assert (accuracy["first"], accuracy["second"], accuracy["difference"]) == pytest.approx((90, 75, -15))
    assert (accuracy["unit"], accuracy["verdict"], accuracy["interval"], accuracy["count"]) == (
        "percentage points", "lower", "paired", N,
    )  # fmt: skip


def test_on_a_terminal_the_finding_comes_first(run, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    code, out, err = run("compare", folders / "base", folders / "worse")
    assert (code, err) == (0, "")
    first, *rest = out.splitlines()
    assert first.startswith("worse against base: ")
    assert max(map(len, out.splitlines())) <= 60
    words = " ".join(out.split())
    assert "lower: accuracy, 90.0 to 75.0: −15.0 [−20.6, −10.7] percentage points" in words
    assert "95% intervals over the same 200 images" in words
    assert "undecided: " in words
    assert "calibration" in rest
    every = run("compare", folders / "base", folders / "worse", "--rows")[1]
    assert "calibration/top5" in every
    assert "calibration/top5" not in out
    assert run("compare", folders / "base", folders / "worse", "--csv")[1].startswith("models,id,verdict,")


def test_models_of_one_name_are_told_apart_by_their_folders(run, folders: Path) -> None:
    code, out, _ = run("compare", folders / "before", folders / "after")
    models = {row["models"] for row in csv.DictReader(io.StringIO(out))}
    assert code == 0
    assert models == {f"{n} ({folders / 'before'}) -> {n} ({folders / 'after'})" for n in ("x", "y")}


def test_each_of_several_is_compared_with_the_first(folders: Path) -> None:
    three = pairs([str(folders / name) for name in ("base", "worse", "elsewhere")])
    assert [(a.name, b.name) for a, b in three] == [("base", "worse"), ("base", "elsewhere")]
    assert [(a.name, b.name) for a, b in pairs([str(folders / "before")])] == [("x", "y")]


def test_seeds_are_compared_by_their_means(run, folders: Path) -> None:
    code, out, err = run("compare", "--seeds", folders / "before", folders / "others", "--json")
    accuracy = next(row for row in json.loads(out) if row["id"] == "calibration/accuracy")
    assert code == 0
    assert err.startswith("p + q against x + y")
    assert (accuracy["first"], accuracy["second"], accuracy["over"], accuracy["count"]) == (90, 75.5, "models", 2)
    assert accuracy["verdict"] == "undecided"  # two seeds decide nothing


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["base"], "holds results of one model, base: give a second folder"),
        (["base", "demo-cnn"], "is a folder of results and demo-cnn is not"),
        (["base", "elsewhere"], "make them the same with the same --data, --split, --limit and --seed"),
        (["before", "others"], "no model is in all folders"),
        (["base", "worse", "--limit", "20"], "compared as they are: leave out the options"),
        (["demo-cnn"], "two different models, or folders of results"),
        (["demo-cnn", "demo-cnn"], "two different models, or folders of results"),
        (["demo-cnn", "demo-vit", "--seeds"], "--seeds compares folders of results"),
    ],
)
def test_a_mistake_gets_one_sentence(run, folders: Path, words: list[str], says: str) -> None:
    places = [folders / word if (folders / word).exists() else word for word in words]
    code, out, err = run("compare", *places)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


def test_what_holds_results(folders: Path, tmp_path: Path) -> None:
    assert holds_results(str(folders / "base" / "calibration"))
    assert holds_results(str(folders / "base"))
    assert holds_results(str(folders / "before"))
    assert not holds_results("demo-cnn")
    assert not holds_results(str(tmp_path))


# --- diff


def difference(value: float, low: float, high: float) -> Difference:
    return Difference("calibration", Number("ece"), "ECE", "", 0.1, 0.1 + value, value, low, high, N, "images", True)


@pytest.mark.parametrize(
    ("text", "ends", "failed", "failed_by_point"),
    [
        ("ece>+0.01", (0.03, 0.011, 0.05), True, True),
        ("ece>+0.01", (0.03, 0.009, 0.05), False, True),  # the near end is not beyond
        ("ece>0.01", (0.005, -0.02, 0.05), False, False),
        ("ece<-0.01", (-0.03, -0.05, -0.011), True, True),
        ("ece<-0.01", (-0.03, -0.05, -0.009), False, True),
        ("ece > 1e-2", (0.01, 0.01, 0.01), False, False),  # at the limit is not beyond it
        ("calibration/ece<0.5", (-0.03, -0.05, -0.01), True, True),
    ],
)
def test_the_near_end_is_compared_and_with_point_the_estimate(
    text: str, ends: tuple[float, float, float], failed: bool, failed_by_point: bool
) -> None:
    comparison = Comparison("a", "b", [difference(*ends)])
    assert check(comparison, threshold(text)).failed is failed
    assert check(comparison, threshold(text), point=True).failed is failed_by_point


@pytest.mark.parametrize("text", ["ece", "ece>", ">0.1", "ece=0.1", "ece>0.1.2", "ece>.", "ece>>0.1", "ece>nan"])
def test_what_is_no_threshold(text: str) -> None:
    with pytest.raises(UserError, match="is no threshold: give NAME>CHANGE"):
        threshold(text)


def test_an_interval_that_is_not_known_decides_nothing() -> None:
    comparison = Comparison("a", "b", [difference(0.3, math.nan, math.nan)])
    with pytest.raises(UserError, match="has no interval over 200 images: use more, or --point"):
        check(comparison, threshold("ece>0.1"))
    assert check(comparison, threshold("ece>0.1"), point=True).failed


def test_a_name_of_several_numbers_is_refused() -> None:
    both = [difference(0.1, 0, 0.2), replace(difference(0.1, 0, 0.2), analysis="corruption")]
    with pytest.raises(UserError, match="is the name of several: calibration/ece, corruption/ece"):
        check(Comparison("a", "b", both), threshold("ece>0"))
    assert check(Comparison("a", "b", both), threshold("corruption/ece>0")).difference.analysis == "corruption"


def test_a_threshold_on_what_was_not_measured_alike_is_refused() -> None:
    comparison = Comparison("a", "b", [difference(0.1, 0, 0.2)], {"noise": "noise: not comparable: the images differ"})
    with pytest.raises(NotComparable, match="the images differ"):
        check(comparison, threshold("noise/accuracy<0"))


def test_a_worse_model_fails(run, folders: Path) -> None:
    words = ["diff", folders / "base", folders / "worse", "--fail-on", "ece>+0.2", "--fail-on", "accuracy<-0.5"]
    code, out, err = run(*words)
    assert (code, err) == (3, "")
    ok, failed = out.splitlines()
    assert ok.startswith("ok     ece>+0.2: calibration/ece of worse against base: ")
    assert failed.startswith("FAILED accuracy<-0.5: calibration/accuracy of worse against base: −15.0 [−20.6, −10.7]")
    assert run(*words[:-1], "accuracy<-11")[0] == 0
    assert run(*words[:-1], "accuracy<-11", "--point")[0] == 3
    assert run("diff", folders / "worse", folders / "base", "--fail-on", "accuracy<-0.5")[0] == 0


def test_annotations_for_github(run, folders: Path) -> None:
    words = ["diff", folders / "base", folders / "worse", "--format", "github"]
    code, out, _ = run(*words, "--fail-on", "accuracy<-0.5", "--fail-on", "calibration/nll>1")
    error, notice = out.splitlines()
    assert code == 3
    assert error.startswith("::error title=accuracy<-0.5::accuracy<-0.5: ")
    assert notice.startswith("::notice title=calibration/nll>1::")


def test_a_workflow_command_is_one_line() -> None:
    assert escaped("a\nb%") == "a%0Ab%25"
    assert escaped("a:b,c", ",:") == "a%3Ab%2Cc"


@pytest.mark.parametrize(
    ("second", "limits", "says"),
    [
        ("worse", [], "a diff needs a threshold"),
        ("worse", ["briar>0.5"], "did you mean brier?; there are calibration/accuracy, "),
        ("worse", ["accuracy"], "is no threshold"),
        ("elsewhere", ["accuracy<-0.5"], "measured on different images"),
    ],
)
def test_what_cannot_be_decided_exits_with_2(run, folders: Path, second: str, limits: list[str], says: str) -> None:
    options = [word for limit in limits for word in ("--fail-on", limit)]
    code, out, err = run("diff", folders / "base", folders / second, *options)
    assert (code, out) == (2, "")
    assert says in err


def test_a_diff_of_folders_of_models_checks_each(run, folders: Path) -> None:
    code, out, _ = run("diff", folders / "before", folders / "after", "--fail-on", "accuracy<-0.5")
    assert code == 3
    assert [line.split()[0] for line in out.splitlines()] == ["FAILED", "FAILED"]


def test_the_examples_of_the_documentation_run(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, with fewer images."""
    text = (Path(__file__).parents[1] / "docs" / "compare.md").read_text()
    monkeypatch.chdir(tmp_path)
    shell, python = (re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1] for language in ("sh", "python"))  # type: ignore[index]
    for line in shell.splitlines():
        _, *words = shlex.split(line)
        code, _, err = run(*["20" if word == "100" else word for word in words])
        assert code == 0, err
    exec(compile(python.replace("limit=100", "limit=20"), "compare.md", "exec"), {})
