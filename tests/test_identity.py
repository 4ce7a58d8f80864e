"""A stored result is used again only for the same weights, code, images, analysis and settings; nothing shares its folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, TINY_ALTERNATING
from matplotlib.figure import Figure
from PIL import Image

from backlight.analyses.catalog import CATALOG
from backlight.errors import UserError
from backlight.model_names.code import code_sha256
from backlight.models.sources.load import load_model, save_model
from backlight.results.result import Result
from backlight.study import loaded as study_loaded
from backlight.study.cells import LONGEST, folder_name, load
from backlight.study.model_identity import source_sha256
from backlight.study.outcome import Outcome
from backlight.study.plan import plan
from backlight.study.run import run_study
from backlight.study.settings import StudySettings

SMALL = StudySettings(limit=20, resamples=20, pretrained=False)
FACTORY = """
import torch
from helpers import scaled

class Net(torch.nn.Module):
    num_classes = 10
    pretrained_cfg = {{"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)}}

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(28 * 28, 10)

    def forward(self, x):
        return scaled(self.head(x.flatten(1))) * {factor}

def make():
    torch.manual_seed({seed})
    return Net()
"""


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Result, "figure", lambda _: Figure(figsize=(1, 1)))


def measured(model: str, out: Path, shared: StudySettings = SMALL, **analyses: Any) -> tuple[Outcome, str]:
    """The outcome of one cell, and the line that says why an older result is not used."""
    lines: list[Any] = []
    (outcome,) = run_study([model], analyses or {"calibration": {}}, shared, out, show=lines.append)
    assert outcome.error == ""
    return outcome, "\n".join(line for line in lines if isinstance(line, str))


def nll(outcome: Outcome) -> float:
    assert outcome.result is not None
    return next(row["value"] for row in outcome.result.table if row["metric"] == "nll")


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes a factory and its helper into the working directory, or another folder."""
    monkeypatch.chdir(tmp_path)

    def write(folder: str = ".", *, factor: float = 1, seed: int = 0, scale: str = "x") -> None:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "m.py").write_text(FACTORY.format(factor=factor, seed=seed))
        (Path(folder) / "helpers.py").write_text(f"def scaled(x):\n    return {scale}\n")
        for cache in Path(folder).glob("__pycache__"):
            shutil.rmtree(cache)
        monkeypatch.delitem(sys.modules, "helpers", raising=False)

    return write


def test_two_files_of_one_spelling_do_not_share_a_folder(
    tmp_path: Path, factory: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    factory(".", factor=1)
    factory("below", factor=9)
    monkeypatch.chdir(tmp_path / "below")
    out = tmp_path / "out"
    first, _ = measured("./m.py:make", out)
    second, _ = measured("../m.py:make", out)
    assert not second.skipped
    assert nll(first) != nll(second)
    monkeypatch.chdir(tmp_path)
    third, said = measured("./m.py:make", out)  # the spelling of the first, and the file of the second
    assert (said, third.skipped) == ("", False)
    assert nll(third) == nll(second)
    assert len({*out.glob("*/calibration")}) == 3
    monkeypatch.chdir(tmp_path / "below")
    assert measured("./m.py:make", out)[0].skipped


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "with other weights of ./m.py:make"),
        ({"factor": 2}, "with other code of ./m.py:make"),
        ({"scale": "x * 2"}, "with other code of ./m.py:make"),
    ],
)
def test_an_edited_factory_is_measured_again(
    tmp_path: Path, factory: Callable[..., None], change: dict[str, Any], said: str
) -> None:
    out = tmp_path / "out"
    factory()
    before = nll(measured("./m.py:make", out)[0])
    again, quiet = measured("./m.py:make", out)
    assert (again.skipped, quiet) == (True, "")
    factory(**change)
    after, line = measured("./m.py:make", out)
    assert not after.skipped
    assert nll(after) != before
    assert f"calibration was measured {said}: it is measured again" in line
    assert nll(measured("./m.py:make", out)[0]) == nll(after)
    assert measured("./m.py:make", out)[0].skipped


def test_code_is_followed_through_local_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net" / "deep").mkdir(parents=True)
    for name, text in {
        "m.py": "import json\nfrom net import parts\n", "net/__init__.py": "", "net/parts.py": "from .deep.layer import x\n",
        "net/deep/__init__.py": "", "net/deep/layer.py": "x = 1\n", "other.py": "",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    sums = {code_sha256("m.py"), code_sha256("m")}
    assert len(sums) == 1
    (tmp_path / "other.py").write_text("y = 1\n")
    assert {code_sha256("m.py")} == sums
    for name in ("net/deep/layer.py", "net/__init__.py", "net/deep/__init__.py", "m.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "z = 3\n")
        assert code_sha256("m.py") not in sums, name
        sums.add(code_sha256("m.py"))
    assert code_sha256("") == code_sha256("no.such.module")


def saved(folder: Path, seed: int) -> str:
    save_model(load_model(TINY, pretrained=False, seed=seed), folder, spec=TINY, num_classes=10)
    return str(folder)


def test_a_model_trained_again_is_measured_again_and_an_unchanged_one_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, out = StudySettings(limit=20, resamples=20), tmp_path / "out"
    name = saved(tmp_path / "mine", seed=0)
    before = nll(measured(name, out, shared)[0])
    saved(tmp_path / "mine", seed=1)
    after, line = measured(name, out, shared)
    assert nll(after) != before
    assert f"with other weights of {name}: it is measured again" in line
    monkeypatch.setattr(study_loaded, "load_model", None)
    assert measured(name, out, shared)[0].skipped
    content = (tmp_path / "mine" / "model.safetensors").read_bytes()
    (tmp_path / "mine" / "model.safetensors").write_bytes(content[:-4] + b"####")
    (outcome,) = run_study([name], {"calibration": {}}, shared, out)
    assert outcome.failed


def test_a_registered_model_is_not_loaded_to_be_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(TINY, tmp_path)
    monkeypatch.setattr(study_loaded, "load_model", None)
    assert measured(TINY, tmp_path)[0].skipped


def test_other_versions_of_packages_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights are recognised by loading them; other weights under the same name are too."""
    measured(TINY, tmp_path)
    monkeypatch.setattr("backlight.study.identity.versions", lambda: {"torch": "99"})
    assert measured(TINY, tmp_path)[0].skipped
    changed = study_loaded.load_model
    monkeypatch.setattr(study_loaded, "load_model", lambda name, **about: changed(name, **{**about, "seed": 5}))
    outcome, line = measured(TINY, tmp_path)
    assert not outcome.skipped
    assert "with other weights" in line


def test_a_source_without_loading_is_known_only_where_it_says_everything(tmp_path: Path) -> None:
    (cell,) = plan(["demo-cnn"], {"calibration": {}}, StudySettings())
    known = {name: source_sha256(name, cell) for name in ("demo-cnn", "demo-vit", "resnet18", "torchvision:resnet18", TINY)}
    assert len(set(known.values())) == 5
    assert None not in known.values()
    unknown = ("./m.py:make", "hf:org/name", "hf-hub:org/name", f"local-dir:{tmp_path}", "official:none.pth", "no-such-model")
    assert {source_sha256(name, cell) for name in unknown} == {None}
    (random,) = plan(["demo-cnn"], {"calibration": {}}, StudySettings(pretrained=False, seed=1))
    assert source_sha256("resnet18", random) != known["resnet18"]


def images(folder: Path, count: int, most: int = 200) -> str:
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, most, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    return str(folder)


def test_images_that_change_are_measured_again(tmp_path: Path) -> None:
    shared = StudySettings(data=images(tmp_path / "images", 10), resamples=20, pretrained=False)
    out = tmp_path / "out"
    model = TINY.replace("num_classes=10", "num_classes=2")
    assert not measured(model, out, shared)[0].skipped
    assert measured(model, out, shared)[0].skipped
    images(tmp_path / "images", 30)
    grown, line = measured(model, out, shared)
    assert grown.result is not None
    assert grown.result.provenance["images"] == 60
    assert f"was measured on other images of {tmp_path / 'images'}: it is measured again" in line
    images(tmp_path / "images", 30, most=20)
    assert not measured(model, out, shared)[0].skipped
    first = tmp_path / "images" / "a" / "0.png"
    content = first.read_bytes()
    first.write_bytes((tmp_path / "images" / "b" / "0.png").read_bytes())  # equal, so nothing changes
    assert measured(model, out, shared)[0].skipped
    first.write_bytes(content[:-1] + b"#")  # of the same size
    assert "on other images" in measured(model, out, shared)[1]
    os.rename(tmp_path / "images" / "a" / "3.png", tmp_path / "images" / "b" / "99.png")
    assert not measured(model, out, shared)[0].skipped
    assert measured(model, out, shared)[0].skipped


def test_the_images_of_the_training_loss_are_compared_too(tmp_path: Path) -> None:
    shared = StudySettings(data=images(tmp_path / "images", 10), resamples=20, pretrained=False, batch_size=4)
    model = TINY.replace("num_classes=10", "num_classes=2")
    own = {"hessian": {"batches": 1, "top": 1, "tol": 0.5}}
    measured(model, tmp_path / "out", shared, **own)
    assert measured(model, tmp_path / "out", shared, **own)[0].skipped
    images(tmp_path / "images", 10, most=20)
    assert "on other images" in measured(model, tmp_path / "out", shared, **own)[1]


def test_the_second_model_of_a_cell_is_compared_too(tmp_path: Path) -> None:
    shared, other = StudySettings(limit=20, resamples=20), saved(tmp_path / "other", seed=0)
    own = {"similarity": {"other": other}}
    measured("demo-cnn", tmp_path / "out", shared, **own)
    assert measured("demo-cnn", tmp_path / "out", shared, **own)[0].skipped
    saved(tmp_path / "other", seed=1)
    assert f"with other weights of {other}" in measured("demo-cnn", tmp_path / "out", shared, **own)[1]


def test_another_version_of_an_analysis_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(TINY, tmp_path)
    monkeypatch.setitem(CATALOG["calibration"].__dict__, "version", 2)
    outcome, line = measured(TINY, tmp_path)
    assert not outcome.skipped
    assert "was measured with version 1 of calibration, not 2: it is measured again" in line


def test_that_there_is_no_answer_is_forgotten_with_the_model(tmp_path: Path) -> None:
    shared, name = StudySettings(limit=20, resamples=20), saved(tmp_path / "mine", seed=0)
    for skipped in (False, True):
        (outcome,) = run_study([name], {"attention": {}}, shared, tmp_path / "out")
        assert (outcome.applicable, outcome.skipped) == (False, skipped)
    model = load_model(TINY_ALTERNATING, pretrained=False)
    save_model(model, tmp_path / "mine", spec=TINY_ALTERNATING, num_classes=10)
    (outcome,) = run_study([name], {"attention": {}}, shared, tmp_path / "out")
    assert outcome.result is not None


NAMES = [
    "m.py:make", "./m.py:make", "../m.py:make", ".", "..", "...", "../..", "a", "A", ".a", "..a", "a%2Fb", "a/b", "study.json",
    "report.html", "x" * 300, "x" * 300 + "y", "y" + "x" * 300, "word:c?dim=4", "word:c%3Fdim=4", "Study.JSON",
    "", "\udcff", "é", "É",
]  # fmt: skip


def test_each_name_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [folder_name(name) for name in NAMES]
    assert len({name.casefold() for name in folders}) == len(NAMES)
    for name in folders:
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert name not in ("study.json", "report.html")
        assert not name.startswith(".")
        assert len(name) <= LONGEST + 9
    assert folder_name("resnet50.a1_in1k") == "resnet50.a1_in1k"
    assert folder_name("m.py:make").startswith("m.py%3Amake-")


def test_one_request_has_one_address_through_both_commands(run, tmp_path: Path) -> None:
    words = ["--no-pretrained", "--limit", "20", "--resamples", "20", "--out", tmp_path]
    code, first, _ = run("calibration", TINY, *words, "--quiet")
    assert code == 0
    code, _, err = run("study", "--models", TINY, "--analyses", "calibration", *words)
    assert (code, "calibration: there already" in err) == (0, True)
    spelled = ["--bins", "10", "--split", "test", "--data", "fashion", "--batch-size", "32", "--seed", "0", "--quiet"]
    assert run("calibration", TINY, *words, *spelled)[:2] == (0, first)
    code, _, err = run("calibration", TINY, *words, "--bins", "5", "--quiet")
    assert code == 2
    assert "calibration was made with bins 10, not 5: choose another --out, or --overwrite" in err


def test_a_request_that_says_more_is_refused_with_a_reason(tmp_path: Path) -> None:
    outcome, _ = measured(TINY, tmp_path)
    assert outcome.result is not None
    folder = tmp_path / folder_name(TINY) / "calibration"
    result = load(folder)
    about = dict(result.provenance)
    about["request"] = {**about["request"], "colour": "red"}
    type(result)(result.model, result.table, result.claims, about, result.arrays).save(folder)
    with pytest.raises(UserError, match="was made with colour 'red', not None: choose another --out"):
        measured(TINY, tmp_path)


@pytest.mark.parametrize("command", [["study", "--models"], ["calibration"]])
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_is_written_into_the_folder_of_a_model(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], inside: bool
) -> None:
    saved(tmp_path / "mine", seed=0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path / "mine" if inside else tmp_path)
    words = ["--analyses", "calibration"] if command[0] == "study" else []
    code, _, err = run(*command, "." if inside else "mine", *words, "--out", ".", "--limit", "4", "--resamples", "5", "--quiet")
    if inside:
        assert code == 2
        assert "holds a model (model.json), and a study writes into no such folder: choose another --out" in err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    else:
        assert code == 0
        assert {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()} == before
    assert load_model(str(tmp_path / "mine")).num_classes == 10


@pytest.mark.parametrize("name", ["model.json", "run.json", "result.json", "study.json", "notes.txt"])
def test_a_folder_that_holds_something_else_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    home = tmp_path / folder_name(TINY)
    home.mkdir()
    (home / name).write_text("mine")
    with pytest.raises(UserError, match=r"choose another --out"):
        measured(TINY, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == [home.name, name]
