"""Results on disk: what is loaded is what was saved, and a folder is whole or not there."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from known_models import averaging, batches, blur, noise, sharpen, tower
from matplotlib.figure import Figure

from backlight import calibration, fourier, lesion, load, variance
from backlight.errors import UserError
from backlight.files import atomic_folder
from backlight.records import Damaged, plain
from backlight.results.claim import Claim

ANALYSES = [fourier, variance, lesion, calibration]


@pytest.fixture(scope="module")
def results():
    """One of each analysis, of a model whose name needs care."""
    model = tower(blur(), averaging(1.0), sharpen())
    data = batches(noise(12, 3, 8, 8), 6, torch.arange(12) % 10)
    return {analysis.__name__: analysis(model, data, resamples=20, name="ours/Δ <b>net</b>") for analysis in ANALYSES}


@pytest.fixture(params=[analysis.__name__ for analysis in ANALYSES])
def result(request, results):
    return results[request.param]


@pytest.fixture
def small(results):
    """The one that is quickest to draw."""
    return results["variance"]


@pytest.fixture(scope="module")
def saved(results, tmp_path_factory):
    """Where each of them was saved: figures take their time.  Not to be written to."""
    return {name: result.save(tmp_path_factory.mktemp("saved") / name) for name, result in results.items()}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- saved and loaded


def test_what_is_loaded_is_what_was_saved(result, saved):
    again = load(saved[result.analysis])
    assert type(again) is type(result)
    assert again.model == result.model
    np.testing.assert_equal(again.rows(), result.rows())  # NaN equals NaN
    assert again.claims == result.claims
    assert again.provenance == result.provenance
    assert again.arrays.keys() == result.arrays.keys()
    for name, array in result.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


def test_the_folder_holds_what_other_tools_read(result, saved):
    folder = saved[result.analysis]
    np.testing.assert_equal(pq.read_table(folder / "rows.parquet").to_pylist(), result.rows())
    names = {path.name for path in folder.iterdir()}
    expected = {"rows.parquet", "result.json", f"{result.analysis}.png", f"{result.analysis}.pdf"}
    assert names == expected | ({"arrays.safetensors"} if result.arrays else set())
    assert (folder / f"{result.analysis}.png").read_bytes().startswith(b"\x89PNG")
    pdf = (folder / f"{result.analysis}.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Type3" not in pdf  # its letters are letters: publishers refuse bitmaps and outlines


def test_saved_again_it_is_the_same(saved, tmp_path):
    again = load(saved["variance"]).save(tmp_path / "there")
    for file in ("result.json", "rows.parquet"):
        assert (again / file).read_bytes() == (saved["variance"] / file).read_bytes()


def test_the_json_is_strict(small, tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    claim = Claim("", "", "", "", math.nan, -math.inf, math.inf, "undecided", 50, "images")
    provenance = {**small.provenance, "odd": [math.nan, np.float32(0.5), np.int64(3), (1, {"x": np.nan})]}
    folder = replace(small, claims=[claim], provenance=provenance).save(tmp_path / "there")
    document = json.loads((folder / "result.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert document["provenance"]["odd"] == [None, 0.5, 3, [1, {"x": None}]]
    assert document["model"] == "ours/Δ <b>net</b>"
    (again,) = load(folder).claims
    assert all(math.isnan(x) for x in (again.value, again.low, again.high))


def test_rows_are_plain_python(result):
    assert {type(value) for row in result.rows() for value in row.values()} <= {str, int, float}
    assert len({tuple(row) for row in result.rows()}) == 1
    assert next(iter(result.rows()[0].items())) == ("model", result.model)
    rows = result.rows()
    rows[0]["model"] = "changed"
    assert result.rows()[0]["model"] == result.model


def test_evidence_names_what_the_numbers_stand_on(result):
    provenance = result.provenance
    assert provenance["images"] == 12
    assert provenance["settings"]["resamples"] == 20
    assert provenance["settings"]["seed"] == 0
    assert {"python", "torch", "backlight"} <= set(provenance["versions"])
    assert len(provenance["model"]["weights_sha256"]) == 64
    assert provenance["seconds"] >= 0


def test_the_hash_is_of_the_weights():
    from backlight.results.provenance import weights_sha256

    one, same, other = tower(blur()), tower(blur()), tower(sharpen())
    assert weights_sha256(one) == weights_sha256(same) != weights_sha256(other)
    with torch.no_grad():
        same[0].weight[0, 0] += 1e-6
    assert weights_sha256(one) != weights_sha256(same)
    assert weights_sha256(one) != weights_sha256(tower(blur()).double())
    assert len(weights_sha256(tower(blur()).bfloat16())) == 64


# --- whole or not at all


def half_way(draft):
    (draft / "result.json").write_text("half")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(small, tmp_path, monkeypatch, error):
    def failing(self):
        raise error

    monkeypatch.setattr(type(small), "figure", failing)  # the last thing that save does
    with pytest.raises(error):
        small.save(tmp_path / "there")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_older_result(small, saved, tmp_path, monkeypatch):
    folder = shutil.copytree(saved["variance"], tmp_path / "there")
    before = contents(folder)
    monkeypatch.setattr(type(small), "figure", half_way)
    with pytest.raises(TypeError):
        small.save(folder)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_newer_result_takes_the_place_of_the_older_one(small, saved, tmp_path):
    folder = shutil.copytree(saved["variance"], tmp_path / "there")
    (folder / "left.over").touch()
    replace(small, model="newer").save(folder)
    assert load(folder).model == "newer"
    assert not (folder / "left.over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_old_folder_stands_until_the_new_one_is_whole(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "result.json").write_text("old")
    with atomic_folder(tmp_path / "there") as draft:
        (draft / "result.json").write_text("new")
        assert (tmp_path / "there" / "result.json").read_text() == "old"
        assert draft.parent == tmp_path  # on the same disk, or a rename is a copy
    assert (tmp_path / "there" / "result.json").read_text() == "new"


@pytest.mark.parametrize("survived", range(6))
def test_killed_at_any_step_the_folder_is_whole_or_not_there(tmp_path, monkeypatch, survived):
    """The process dies in the middle of its n-th step; of a folder that it was deleting one file is gone."""

    class Killed(BaseException):
        pass

    steps = iter(range(survived))

    def dying(step):
        def do(place, *more, **settings):
            if next(steps, None) is None:
                if step is rmtree and Path(place).exists():
                    next(Path(place).iterdir()).unlink(missing_ok=True)
                raise Killed
            return step(place, *more, **settings)

        return do

    def write(text):
        with atomic_folder(tmp_path / "there") as draft:
            for file in ("a", "b", "result.json"):
                (draft / file).write_text(text)

    write("old")
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", dying(rmtree))
    monkeypatch.setattr(os, "replace", dying(os.replace))
    if survived < 4:
        with pytest.raises(Killed):
            write("new")
    else:
        write("new")
    found = {path.name: path.read_text() for path in (tmp_path / "there").glob("*")}
    assert found in ({}, dict.fromkeys(["a", "b", "result.json"], "old"), dict.fromkeys(["a", "b", "result.json"], "new"))
    assert survived == 1 or found  # only between the two renames is there neither


# --- refusals


def one_sentence(refusal):
    assert "\n" not in str(refusal.value)
    assert "None" not in str(refusal.value)


def test_a_place_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file" / "there", tmp_path / "file"):
        with pytest.raises(UserError, match=r"cannot write .*: a file is in the way; choose another --out") as refusal:
            small.save(folder)
        one_sentence(refusal)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(small, tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="Permission denied"):
        small.save(tmp_path / "there")


def test_a_full_disk(small, tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(small), "figure", full)
    with pytest.raises(UserError, match="No space left on device; nothing was left behind") as refusal:
        small.save(tmp_path / "there")
    one_sentence(refusal)
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_folder_is_not_replaced(small, tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="did not write; choose another") as refusal:
        small.save(tmp_path)
    one_sentence(refusal)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_an_empty_folder_is_taken(small, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load(small.save("there")).model == small.model


@pytest.mark.parametrize("file", ["result.json", "rows.parquet", "arrays.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut"])
def test_a_damaged_folder_is_no_result(saved, tmp_path, file, damage):
    folder = shutil.copytree(saved["calibration"], tmp_path / "there")
    whole = (folder / file).read_bytes()
    if damage == "gone":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(b"" if damage == "empty" else whole[: len(whole) // 2])
    with pytest.raises(UserError) as refusal:
        load(folder)
    one_sentence(refusal)
    assert str(folder / file) in str(refusal.value) or (damage, file) == ("gone", "result.json")
    assert isinstance(refusal.value, Damaged) or (damage, file) == ("gone", "result.json")


def test_other_json_is_no_result(saved, tmp_path):
    folder = shutil.copytree(saved["variance"], tmp_path / "there")
    for document in ("[]", "{}", '{"analysis": "furier", "model": "x", "claims": [], "provenance": {}}', "3"):
        (folder / "result.json").write_text(document)
        with pytest.raises(UserError, match=r"result\.json (is damaged: it holds|was not written by Backlight)"):
            load(folder)
    with pytest.raises(UserError, match="holds no result of Backlight"):
        load(tmp_path / "nowhere")


# --- figures


def drawn(ax):
    return ax.lines or ax.patches or ax.collections


def test_every_panel_is_drawn(result):
    for panel in (*result.panels, None):
        ax = Figure().add_subplot()
        result.draw(ax, panel)
        assert drawn(ax)
        assert ax.get_xlabel()
        assert ax.get_ylabel()
    figure = result.figure()
    assert len([ax for ax in figure.axes if ax.get_xlabel()]) == len(result.panels)
    assert figure.get_suptitle() == result.model


def test_the_first_panel_is_the_default(result):
    def points(panel):
        ax = Figure().add_subplot()
        result.draw(ax, panel)
        return [line.get_xydata() for line in ax.lines], [patch.get_verts() for patch in ax.patches]

    np.testing.assert_equal(points(None), points(result.panels[0]))


def test_an_unknown_panel_is_refused(result):
    with pytest.raises(UserError, match=f"no panel 'spectra'.*{result.panels[0]}"):
        result.draw(Figure().add_subplot(), "spectra")


def test_drawing_changes_no_ones_settings(result):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    result.figure()
    assert dict(mpl.rcParams) == before


# --- claims and plain values


@pytest.mark.parametrize(
    ("interval", "sign", "verdict"),
    [
        ((2, 1, 3), "positive", "holds"), ((2, 1, 3), "negative", "does not hold"),
        ((-2, -3, -1), "positive", "does not hold"), ((-2, -3, -1), "negative", "holds"),
        ((1, -1, 3), "positive", "undecided"), ((0, 0, 0), "negative", "undecided"), ((1, 0, 2), "positive", "undecided"),
        ((1, math.nan, math.nan), "positive", "undecided"),
    ],
)  # fmt: skip
def test_a_claim_holds_if_its_whole_interval_has_the_sign(interval, sign, verdict):
    assert Claim.of_sign(sign, interval, id="", statement="", source="", quantity="", count=50).verdict == verdict


def test_plain_values_are_what_json_holds():
    document = {
        "a": (1, math.inf),
        "b": Claim("i", "s", "f", "q", math.nan, 0.0, 1.0, "undecided", 50, "images"),
        "c": np.bool_(True),
    }
    assert json.dumps(plain(document), allow_nan=False)
    assert plain(document)["b"]["value"] is None
    assert plain(document)["c"] is True


def test_what_a_killed_run_left_behind_is_cleared_away(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here, name = socket.gethostname(), ".variance.draft-{}@{}@x"
    left = [name.format(ended.pid, here), name.format(1, "elsewhere")]
    mine, young = name.format(os.getpid(), here), name.format(ended.pid, "elsewhere")
    stays = [mine, young, left[0].replace("variance", "lesion"), ".variance-x"]
    for draft in (*left, *stays):
        (tmp_path / draft).mkdir()
    os.utime(tmp_path / left[1], (0, 0))
    with atomic_folder(tmp_path / "variance") as draft:
        (draft / "result.json").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"variance", *stays}
