"""A study: whole cells or none, nothing done twice, and what fails does not stop the rest."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, TINY_ALTERNATING

from backlight.analyses.catalog import CATALOG
from backlight.cli.analyses import DEMO
from backlight.errors import UserError
from backlight.settings import options
from backlight.study.budget import Budgeted
from backlight.study.cells import folder_name, load
from backlight.study.config import read_config
from backlight.study.estimate import SAVING, Probe, estimate, images_of
from backlight.study.folder import read_study
from backlight.study.model_list import expanded, models_in
from backlight.study.plan import plan
from backlight.study.run import run_study
from backlight.study.settings import StudySettings

SMALL_WORDS = ["--no-pretrained", "--limit", "20", "--quiet"]
SMALL = StudySettings(limit=20, resamples=50, pretrained=False)
ANALYSES: dict[str, dict[str, object]] = {"fourier": {}, "variance": {}, "lesion": {}, "calibration": {}}


def test_a_study_is_a_folder_of_results(tmp_path: Path) -> None:
    cells = list(run_study([TINY, TINY_ALTERNATING], ANALYSES, SMALL, tmp_path))
    assert [(cell.model, cell.error, cell.skipped) for cell in cells] == [
        (m, "", False) for m in (TINY, TINY_ALTERNATING) for _ in ANALYSES
    ]
    for cell in cells:
        saved = load(tmp_path / folder_name(cell.model) / cell.analysis)
        assert str(saved.rows()) == str(cell.result.rows())
    assert json.loads((tmp_path / folder_name(TINY_ALTERNATING) / "units.json").read_text())["word"] == "c ca"
    assert json.loads((tmp_path / "study.json").read_text())["cells"] == {m: [*ANALYSES] for m in (TINY, TINY_ALTERNATING)}


def test_together_or_alone_the_numbers_are_the_same(tmp_path: Path) -> None:
    together = {cell.analysis: cell.result for cell in run_study([TINY], ANALYSES, SMALL)}
    for name in ANALYSES:
        (alone,) = run_study([TINY], {name: {}}, SMALL)
        assert str(alone.result.rows()) == str(together[name].rows())


def test_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    list(run_study([TINY], {"variance": {}}, SMALL, tmp_path))
    before = (tmp_path / folder_name(TINY) / "variance" / "result.json").stat().st_mtime_ns
    cells = list(run_study([TINY], ANALYSES, SMALL, tmp_path))
    assert [cell.analysis for cell in cells if cell.skipped] == ["variance"]
    assert len(cells) == 4
    assert (tmp_path / folder_name(TINY) / "variance" / "result.json").stat().st_mtime_ns == before


def test_results_made_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    list(run_study([TINY], {"variance": {}}, SMALL, tmp_path))
    other = StudySettings(limit=30, resamples=50, pretrained=False)
    with pytest.raises(UserError, match="limit 20, not 30: choose another --out, or --overwrite"):
        list(run_study([TINY], {"variance": {}}, other, tmp_path))
    (cell,) = run_study([TINY], {"variance": {}}, other, tmp_path, overwrite=True)
    assert cell.result.provenance["images"] == 30


def test_a_cell_that_fails_does_not_stop_the_rest(tmp_path: Path) -> None:
    cells = list(run_study(["resnet5", "vgg11?img_size=32", TINY], {"variance": {}, "lesion": {}}, SMALL, tmp_path))
    errors = {(cell.model, cell.analysis): cell.error for cell in cells}
    assert "did you mean" in errors["resnet5", "variance"]
    assert errors[TINY, "variance"] == errors[TINY, "lesion"] == ""
    assert "there is no model" in json.loads((tmp_path / "resnet5" / "lesion.reason.json").read_text())["reason"]
    assert not list(tmp_path.rglob(".*"))  # nothing half-written


def test_a_single_command_does_not_go_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model"):
        list(run_study(["resnet5", TINY], {"variance": {}}, SMALL, tmp_path, keep_going=False))


def test_the_same_seed_gives_the_same_numbers() -> None:
    (one,), (two,) = (run_study([TINY], {"lesion": {}}, SMALL) for _ in range(2))
    assert str(one.result.rows()) == str(two.result.rows())
    assert one.result.provenance["data"]["ids_sha256"] == two.result.provenance["data"]["ids_sha256"]
    (three,) = run_study([TINY], {"lesion": {}}, StudySettings(limit=20, resamples=50, pretrained=False, seed=1))
    assert three.result.provenance["data"]["ids_sha256"] != one.result.provenance["data"]["ids_sha256"]


def study_process(out: Path) -> subprocess.Popen[bytes]:
    analyses = ["--analyses", "variance", "lesion", "calibration"]
    words = ["--models", TINY, TINY_ALTERNATING, *analyses, "--out", out, "--no-pretrained", "--limit", 400, "--batch-size", 8]
    command = [sys.executable, "-m", "backlight", "study", *map(str, words)]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  (nohup and & make children ignore it)
    return subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed)  # noqa: PLW1509


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_study_that_is_stopped_goes_on(tmp_path: Path, how: signal.Signals, code: int) -> None:
    process = study_process(tmp_path)
    first = tmp_path / folder_name(TINY) / "variance" / "result.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(how)
    _, said = process.communicate()
    assert process.returncode == code
    assert b"Traceback" not in said
    there = {
        path.parent: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json") if not path.parent.name.startswith(".")
    }
    assert 0 < len(there) < 6
    for folder in there:
        load(folder)  # whole
    assert study_process(tmp_path).wait() == 0
    assert len([path for path in tmp_path.glob("*/*/result.json") if not path.parent.name.startswith(".")]) == 6
    assert all((folder / "result.json").stat().st_mtime_ns == when for folder, when in there.items())


def test_failed_cells_exit_with_5(run, tmp_path: Path) -> None:
    words = ["--analyses", "variance", "--out", tmp_path, "--no-pretrained", "--limit", 4]
    code, _, err = run("study", "--models", TINY, "resnet5", *words)
    assert code == 5
    assert "1 of 2 cells failed" in err


def test_what_has_no_answer_is_no_failure(run, tmp_path: Path) -> None:
    """A CNN has no attention: not a failure, not tried again, and the other analyses of a shared pass run."""
    words = ["--models", TINY, TINY_ALTERNATING, "--analyses", "attention", "variance", "--out", tmp_path, "--no-pretrained"]
    code, _, err = run("study", *words, "--limit", 20)
    assert code == 0
    assert f"{TINY} attention: not applicable: " in err
    assert f"{TINY_ALTERNATING} attention: done" in err
    reason = tmp_path / folder_name(TINY) / "attention.reason.json"
    before = reason.stat().st_mtime_ns
    code, _, err = run("study", *words, "--limit", 20)
    assert (code, reason.stat().st_mtime_ns) == (0, before)
    assert f"{TINY} attention: not applicable: " in err
    (absent,) = read_study(tmp_path).absent
    assert absent.startswith(f"{TINY}, attention: not applicable: ")
    code, _, err = run("attention", TINY, *SMALL_WORDS)
    assert code == 2


def test_a_model_without_units_is_measured_where_it_can_be(tmp_path: Path) -> None:
    outcomes = {o.analysis: o for o in run_study(["vgg11?img_size=32"], ANALYSES, SMALL, tmp_path)}
    assert {name: o.applicable for name, o in outcomes.items()} == {
        "fourier": False, "variance": False, "lesion": False, "calibration": True,
    }  # fmt: skip
    assert outcomes["calibration"].result is not None
    assert "has no residual units" in outcomes["fourier"].error


def planned(run, *words: object) -> list[tuple[str, str, str]]:
    code, out, _ = run("study", *words, "--plan")
    assert code == 0
    return [(row["model"], row["analysis"], row["out"]) for row in csv.DictReader(out.splitlines())]


def test_a_plan_says_what_cells_will_take_and_the_study_how_good_that_was(run, tmp_path: Path) -> None:
    words = ["--models", TINY, "resnet5", "--analyses", "variance", "calibration", "lesion", "landscape", "--no-pretrained"]
    words += ["--limit", "40", "--out", str(tmp_path / "runs")]
    code, out, err = run("study", *words, "--plan")
    assert code == 0
    assert "resnet5 variance: cannot be tried: there is no model 'resnet5'" in err
    assert "nothing was run" in err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["estimates.json"]
    rows = {(row["model"], row["analysis"]): row for row in csv.DictReader(out.splitlines())}
    assert {row["images"] for (model, _), row in rows.items() if model == TINY} == {"40"}
    assert {a: rows[TINY, a]["passes"] for a in ("variance", "lesion", "landscape")} == {
        "variance": "1", "lesion": "2.5", "landscape": "446",  # three units; a grid of 21 by 21, and 5 around the centre
    }  # fmt: skip
    assert rows["resnet5", "lesion"]["minutes"] == ""
    assert 100 < float(rows[TINY, "lesion"]["memory_mb"]) < 8000
    code, _, err = run("study", *words[:1], TINY, *words[3:])
    assert code == 0
    assert re.search(r"4 cells took \d.* s, estimated were .* s; half of the cells took", err)


def test_the_estimate_grows_with_images_settings_and_units() -> None:
    probe = Probe(seconds=0.5, megabytes=10.0, units=7)

    def minutes(analysis: str, limit: int = 100, **settings: Any) -> float:
        (cell,) = plan([TINY], {analysis: settings}, replace(SMALL, limit=limit))
        return estimate(cell, probe).minutes - SAVING / 60

    assert minutes("variance") == pytest.approx(100 * 0.5 / 60)
    assert minutes("variance", limit=200) == pytest.approx(2 * minutes("variance"))
    assert minutes("lesion") == pytest.approx(4.5 * minutes("variance"))
    assert minutes("noise", frequencies=(0.1, 0.5), severities=(0.1,)) == pytest.approx(3 * minutes("variance"))
    assert minutes("landscape", grid=5) == pytest.approx(30 * minutes("variance"))  # 5 by 5, and 5 around the centre
    (cell,) = plan([TINY], {"hessian": {"batches": 2}}, SMALL)
    assert images_of(cell) == 2 * 16


def test_a_plan_runs_nothing_and_a_file_says_the_same_as_flags(run, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(f'models = ["{TINY}"]\nanalyses = ["variance"]\nlimit = 4\npretrained = false\nout = "{tmp_path}/runs"\n')
    out = f"{tmp_path}/runs"
    assert planned(run, file) == [(TINY, "variance", out)]
    assert planned(run, "--models", TINY, "--analyses", "variance", "--no-pretrained", "--out", out) == planned(run, file)
    assert planned(run, file, "--models", "a", "b", "--analyses", "lesion") == [("a", "lesion", out), ("b", "lesion", out)]
    assert not (tmp_path / "runs" / "study.json").exists()


def test_a_file_sets_every_option_of_every_analysis(tmp_path: Path) -> None:
    """All defaults, written out in a file and read again, are the settings of a study without a file."""

    def toml(value: object) -> str:
        return json.dumps(list(value) if isinstance(value, tuple) else value)

    lines = [f"{o.name} = {toml(o.default)}" for o in options(StudySettings) if o.default is not None]
    for name, about in CATALOG.items():
        lines += [f"[{name}]", *(f"{o.name} = {toml(o.default)}" for o in about.options() if o.default is not None)]
    (tmp_path / "study.toml").write_text("\n".join(lines))
    config = read_config(tmp_path / "study.toml")
    assert StudySettings(**config.shared) == StudySettings()
    assert [*config.analyses] == [*CATALOG]
    for name, values in config.analyses.items():
        assert CATALOG[name].checked(values) == CATALOG[name].checked({})


def test_settings_of_a_file_reach_the_analysis_and_flags_win_also_with_the_default(run, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(
        f'models = ["{TINY}"]\nlimit = 20\nseed = 7\nresamples = 50\npretrained = false\n'
        'analyses = ["variance", "calibration"]\n'
        "[variance]\nnormalise = true\n[calibration]\nbins = 4\n"
    )
    code, _, err = run("study", tmp_path / "study.toml", "--seed", 0, "--out", tmp_path / "runs", "--quiet")
    assert (code, err.count("failed")) == (0, 0)
    variance, calibration = (load(tmp_path / "runs" / folder_name(TINY) / name) for name in ("variance", "calibration"))
    assert variance.provenance["settings"]["seed"] == 0
    assert variance.provenance["settings"]["normalise"] is True
    assert variance.provenance["images"] == 20
    assert calibration.provenance["settings"]["bins"] == 4
    assert calibration.arrays["reliability"].shape[-1] == 4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("modles = []", "there is no setting 'modles'; did you mean models?"),
        ("limit = 'few'", "limit is 'few'; it must be a whole number, at least 1"),
        ("limit = 0", "limit is 0; it must be at least 1"),
        ("batch_size = 0", "batch_size is 0; it must be at least 1"),
        ("batch_size = true", "batch_size is True; it must be a whole number, at least 1"),
        ("pretrained = 'no'", "pretrained is 'no'; it must be true or false"),
        (f"seed = 1{'0' * 30}", "seed is too large a number; it must be below 2^63"),
        ("[fourier]\nmodels = 'demo-cnn'", "[fourier] models is 'demo-cnn'; it must be a list of names"),
        ("models = [3]", "models is [3]; it must be a list of names"),
        (f"at = {'[' * 100_000}", "is not TOML: maximum recursion depth exceeded"),
        (f"limit = {'9' * 5000}", "is not TOML: Exceeds the limit"),
        ("models = 'resnet50'", "models is 'resnet50'; it must be a list of names"),
        ("out = 3", "out is 3; it must be the name of a folder"),
        ("analyses = ['furier']", "no analysis is called 'furier'; did you mean fourier?"),
        ("[hessian]\nbatchs = 3", "[hessian]: there is no setting 'batchs'; did you mean batches?"),
        ("[hessian]\ntop = 0", "[hessian]: top is 0; it must be at least 1"),
        ("[landscape]\ngrid = 4", "[landscape]: grid is 4; it must be odd, at least 3"),
        ("[landscape]\nprecision = 'float23'", "[landscape]: precision is 'float23'; did you mean float32"),
        ("[noise]\nseverities = [0.1, -1]", "[noise]: severities is -1.0; it must be above 0"),
        ("hessian = 3", "hessian is 3; the settings of an analysis are a table: [hessian]"),
        ("analyses = ['fourier']\n[hessian]\ntop = 3", "[hessian] has settings, and analyses does not list hessian"),
        ("models = [", "is not TOML"),
    ],
)
def test_a_mistake_in_a_file_gets_one_sentence_with_file_and_key(run, tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "study.toml"
    file.write_text(text)
    code, out, err = run("study", file, "--models", TINY, "--out", tmp_path / "runs")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert str(file) in err
    assert sentence in err
    assert not (tmp_path / "runs").exists()


def test_an_analysis_can_have_models_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(
        'models = ["a", "b"]\nanalyses = ["fourier", "attention"]\n[attention]\nmodels = ["b"]\n'
    )
    config = read_config(tmp_path / "study.toml")
    cells = plan(config.models, config.analyses, StudySettings())
    assert [(cell.model, cell.analysis) for cell in cells] == [("a", "fourier"), ("b", "fourier"), ("b", "attention")]


def test_the_demo_is_a_study_file() -> None:
    config = read_config(DEMO)
    assert {"models", "grid", "batches"} >= {key for values in config.analyses.values() for key in values}
    assert len(plan(config.models, config.analyses, StudySettings(**config.shared))) == 23
    shown = (Path(__file__).parents[1] / "docs" / "study.md").read_text()
    assert DEMO.read_text() in shown


def test_files_correct_units_in_every_analysis_and_their_content_is_part_of_the_request(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text(f'model = "{TINY}"\n[kinds]\n0 = "blur"\n')
    second.write_text(f'model = "{TINY_ALTERNATING}"\n[stages]\n2 = 4\n')
    models, shared, out = [TINY, TINY_ALTERNATING], shared_of(first, second), tmp_path / "runs"
    done = {(each.model, each.analysis): each.result for each in run_study(models, {"fourier": {}, "lesion": {}}, shared, out)}
    for name in ("fourier", "lesion"):
        assert done[TINY, name].provenance["corrections"] == {"kinds": {"0": "blur"}}
        assert {row["kind"] for row in done[TINY, name].table if row["unit"] == 0} == {"blur"}
        assert {row["stage"] for row in done[TINY_ALTERNATING, name].table if row["unit"] == 2} == {4}
    assert json.loads((out / folder_name(TINY) / "units.json").read_text())["units"][0]["kind"] == "blur"
    assert all(each.skipped for each in run_study(models, {"fourier": {}}, shared, out))
    second.write_text(f'model = "{TINY_ALTERNATING}"\n[stages]\n2 = 5\n')
    assert all(each.skipped for each in run_study([TINY], {"fourier": {"models": [TINY]}, "lesion": {}}, shared_of(first), out))
    with pytest.raises(UserError, match=r"'2': 4.*'2': 5.*--overwrite"):
        list(run_study(models, {"fourier": {}}, shared, out))


def shared_of(*files: Path) -> StudySettings:
    return replace(SMALL, units=tuple(map(str, files)))


def test_the_second_model_of_an_analysis_is_corrected_too(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text(f'model = "{TINY_ALTERNATING}"\n[kinds]\n0 = "blur"\n')
    (cell,) = plan([TINY], {"similarity": {"other": TINY_ALTERNATING}}, shared_of(file))
    assert cell.request()["units"] == {TINY_ALTERNATING: {"kinds": {"0": "blur"}}}
    (alone,) = plan([TINY], {"similarity": {}}, SMALL)
    assert alone.request()["units"] == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[kinds]\n0 = 'conv'", 'names no model: write model = "NAME" above its tables'),
        ("model = 'resnet50'", "model is 'resnet50', which is not measured here"),
        (f"model = '{TINY}'\n[kinds]\n0 = 'cnov'", "kinds: 0 is 'cnov'; a kind is one of"),
        (f"model = '{TINY}'\n[kinds]\n99 = 'conv'", "counted from 0, and no unit 99"),
        (f"model = '{TINY}'\nkinds = {'[' * 100_000}", "nested too deeply"),
    ],
)
def test_a_wrong_file_of_corrections_is_one_sentence(run, tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "units.toml"
    file.write_text(text)
    code, out, err = run("fourier", TINY, *SMALL_WORDS, "--units", file)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert str(file) in err
    assert sentence in err


def test_two_files_do_not_correct_one_model(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    for file in (first, second):
        file.write_text(f'model = "{TINY}"\n')
    with pytest.raises(UserError, match=r"second.toml: model is .*first.toml corrects already"):
        plan([TINY], {"fourier": {}}, shared_of(first, second))


def test_models_come_from_a_file_and_from_patterns(run, tmp_path: Path) -> None:
    file = tmp_path / "models.txt"
    file.write_text(f"# mine\n{TINY}  # the small one\n\ntimm:test_vit*?img_size=32\ntorchvision:resnet*\ndemo-*\n")
    names = [*expanded(["resnet18", *models_in(file)])]
    assert names[:2] == ["resnet18", TINY]
    assert {"test_vit?img_size=32", "test_vit2?img_size=32", "torchvision:resnet50", "demo-cnn"} <= set(names)
    assert not [name for name in names if "*" in name or "segmentation" in name]
    assert len(names) == len(set(names))
    words = ["--analyses", "variance", "--no-pretrained", "--limit", "4", "--out", tmp_path / "runs"]
    file.write_text("demo-c*\n")
    assert [model for model, *_ in planned(run, "--models", TINY, "--models-file", file, *words)] == [TINY, "demo-cnn"]


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ("timm:conwnext*", "no model fits 'timm:conwnext*'"),
        ("tim:convnext*", "a pattern is over timm:, torchvision: or the models of the package; did you mean timm?"),
        ("demo-xxx*", "no model fits 'demo-xxx*'"),
    ],
)
def test_a_pattern_that_fits_nothing_is_one_sentence(run, tmp_path: Path, models: str, sentence: str) -> None:
    code, out, err = run("study", "--models", models, "--out", tmp_path / "runs", "--plan")
    assert (code, out) == (2, "")
    assert sentence in err
    (tmp_path / "empty").write_text("# nothing\n")
    assert run("study", "--models-file", tmp_path / "empty", "--out", tmp_path / "runs", "--plan")[0] == 2


def test_a_model_has_the_name_that_it_is_given(run, tmp_path: Path) -> None:
    """In rows, folders and the study's record.  The same name for another model is measured again."""
    models, out = [f"small={TINY}", f"mixed={TINY_ALTERNATING}", "lesion="], tmp_path / "runs"
    done = list(run_study(models[:2], {"calibration": {}, "lesion": {"models": ["mixed"]}}, SMALL, out))
    assert [(o.model, o.analysis, o.state) for o in done] == [
        ("small", "calibration", "done"), ("mixed", "calibration", "done"), ("mixed", "lesion", "done"),
    ]  # fmt: skip
    assert load(out / "small" / "calibration").rows()[0]["model"] == "small"
    assert [model.name for model in read_study(out).models] == ["small", "mixed"]
    (plain,) = run_study([TINY], {"calibration": {}}, SMALL, tmp_path / "plain")
    assert plain.result is not None
    assert str(plain.result.table) == str(load(out / "small" / "calibration").table)
    assert all(o.skipped for o in run_study(models[:2], {"calibration": {}}, SMALL, out))
    said: list[Any] = []
    (other,) = run_study([f"small={TINY_ALTERNATING}"], {"calibration": {}}, SMALL, out, show=said.append)
    assert other.state == "done"
    assert any("small was measured" in str(line) or "of small: it is measured again" in str(line) for line in said)
    code, _, err = run("calibration", f"a={TINY}", f"a={TINY_ALTERNATING}", *SMALL_WORDS)
    assert code == 2
    assert "a is the name of" in err
    code, out_text, _ = run("calibration", f"a={TINY}", *SMALL_WORDS, "--csv")
    assert code == 0
    assert out_text.splitlines()[1].startswith("a,")


def test_a_budget_ends_an_analysis_with_a_random_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes on by a second a batch: with 3 seconds, three batches of 8 images, the same ones for both analyses."""
    clock = iter(range(10_000))
    monkeypatch.setattr("backlight.study.budget.time.monotonic", lambda: next(clock))
    shared = replace(SMALL, limit=80, batch_size=8, budget="3s")
    done = {
        o.analysis: o.result for o in run_study([TINY], {"variance": {}, "calibration": {}, "lesion": {}}, shared, tmp_path)
    }
    for result in done.values():
        assert result is not None
        assert result.provenance["budget"] == {"seconds": 3.0, "stopped": True, "images": 24}
        assert result.provenance["images"] == 24
    (whole,) = run_study([TINY], {"calibration": {}}, replace(shared, budget="1h"))
    (plain,) = run_study([TINY], {"calibration": {}}, replace(SMALL, limit=80, batch_size=8))
    assert whole.result is not None
    assert plain.result is not None
    assert whole.result.provenance["budget"]["stopped"] is False
    both = [np.sort(o.result.arrays["per_image/scores"], axis=None) for o in (whole, plain)]
    np.testing.assert_allclose(*both, rtol=1e-4)
    assert not np.array_equal(whole.result.arrays["per_image/scores"], plain.result.arrays["per_image/scores"])


def test_a_later_pass_has_the_batches_of_the_first() -> None:
    batches = [(np.zeros((10, 1)), None)] * 9
    limited = Budgeted(batches, 0.0)
    assert [len(list(limited)) for _ in range(3)] == [2, 2, 2]  # 20 images are the least
    assert len(limited) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--budget", "soon"], "budget is 'soon'; it must be a time such as 90s, 30m or 2h"),
        (["--budget", "0s"], "budget is '0s'; it must be a time"),
        (["--budget", "3s", "--analyses", "hessian"], "hessian goes over mini-batches: give it fewer"),
    ],
)
def test_a_wrong_budget_is_one_sentence(run, tmp_path: Path, words: list[str], sentence: str) -> None:
    code, out, err = run("study", "--models", TINY, "--out", tmp_path, "--plan", *words)
    assert (code, out) == (2, "")
    assert sentence in err
