"""The page of a study: one file, nothing from outside, no name of a user's run, and the same numbers as the results."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import EVIDENCE, MODULE, NASTY, Reader, make_study, results_of, with_spectra
from torch import nn

from backlight.analyses.catalog import CATALOG, calibration, fourier, lesion, variance
from backlight.analyses.fourier.measure import Fourier
from backlight.analyses.variance.measure import Variance
from backlight.errors import UserError
from backlight.records import encoded, read_record
from backlight.report import page as page_module
from backlight.report import write_report
from backlight.report.sections import DEFAULT
from backlight.results.result import Result, ResultFile
from backlight.study.folder import StudyRequest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    """The study again, to break."""
    return Path(shutil.copytree(made, tmp_path / "study"))


# --- the file


def test_one_small_file(study: Path) -> None:
    before = set(study.rglob("*"))
    path = write_report(study)
    assert path == study / "report.html"
    assert set(study.rglob("*")) - before == {path}
    assert 0.6e6 < path.stat().st_size < 1e6  # the Cartesian part of Plotly is inside, compressed
    script = gzip.decompress(base64.b64decode(Reader(path).chunks["plotly.js"])).decode()
    assert "plotly.js (cartesian - minified)" in script[:100]


def test_nothing_is_fetched(study: Path) -> None:
    page = Reader(write_report(study))
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith(("#", "data:")), tag
    assert not re.search(r"@import|url\(|https?:", page.styles)
    assert "http" not in "".join(text for _, text in page.scripts if "Plotly, Inc" not in text)
    policy = next(a["content"] or "" for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    (own,) = [text for kind, text in page.scripts if kind is None]
    plotly = gzip.decompress(base64.b64decode(page.chunks["plotly.js"])).decode()
    for text in (own, plotly):  # only scripts of these hashes may run, so a name that slipped through could not
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert policy.count("sha256-") == 2
    assert "connect-src" not in policy


def test_names_are_text(study: Path) -> None:
    path = write_report(study)
    page = Reader(path)
    assert NASTY in page.text
    assert MODULE in json.dumps(page.chunk("fourier"))
    assert not [tag for tag, _ in page.elements if tag in ("img", "b") and "onerror" in _]
    assert "<img" not in path.read_text()
    assert "out of memory <b>today</b>" in page.text


def test_same_folder_same_bytes(study: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(study, tmp_path / "elsewhere"))
    assert write_report(study).read_bytes() == write_report(again, tmp_path / "deep" / "page.html").read_bytes()
    assert write_report(study).read_bytes() == (tmp_path / "deep" / "page.html").read_bytes()  # its own page is no result


def test_a_failed_write_leaves_the_page_as_it_was(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = study / "report.html"
    path.write_text("before")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="No space left"):
        write_report(study)
    assert path.read_text() == "before"
    assert not list(study.glob(".report*"))


# --- what is on it


def test_numbers_are_those_of_the_results(study: Path) -> None:
    page = Reader(write_report(study))
    assert [model["name"] for model in page.chunk("page")["models"]] == ["resnet18", NASTY]
    for i, (name, kinds) in enumerate((("resnet18", "cc cc"), (NASTY, "amamam"))):
        for result in results_of(name, kinds):
            columns = page.chunk(result.analysis)[i]
            for k, row in enumerate(result.table):
                for column, value in row.items():
                    shown = columns[column][k]
                    same = shown == value if isinstance(value, str) else shown == pytest.approx(value, rel=1e-7)
                    assert same or (shown is None and np.isnan(value)), (result.analysis, column, k)


def test_words(study: Path) -> None:
    text = " ".join(Reader(write_report(study)).text.split())
    assert "48 images of noise (split test)" in text
    assert "4 units in 2 stages: all convolutions; 2.7 M parameters. Accuracy 50 [40, 60]% (48 test images)." in text
    assert "6 units in 1 stage: attention and MLP take turns" in text
    assert "mean of 4 or 6 units (nepers)" in text
    assert "Statements tested: 2 (2 hold, 0 do not hold, 0 undecided)" in text
    for name in ("fourier", "variance", "lesion", "calibration"):
        assert CATALOG[name].question in text


def test_the_page_opens_with_the_claims_those_that_compare_first(study: Path) -> None:
    text = " ".join(Reader(write_report(with_spectra(study))).text.split())
    marks = [
        "The models Each",
        "What the paper says",
        "in the ViT than in the CNN.",
        "the CNN raises the share",
        "Attention is a low-pass",
    ]
    places = [text.index(marks[0])]
    for mark in marks[1:]:
        places.append(text.index(mark, places[-1]))
    compared = text[places[2] : places[3]]
    assert "docs/claims_list.md#compare-high-frequencies" in compared
    assert NASTY in compared
    assert "resnet18" in compared
    assert "holds" in compared
    assert "50 test images" in compared
    assert re.search(r"−\d\.\d+ \[−\d\.\d+, −\d\.\d+\]", compared)  # the effect with its interval
    assert "no sample of two kinds" in text


def test_a_verdict_that_does_not_survive_the_correction_is_marked(study: Path) -> None:
    text = " ".join(Reader(write_report(with_spectra(study))).text.split())
    assert "Statements tested: 5" in text
    assert "2 of these verdicts" in text
    assert "holds not after Holm's correction for 5 statements −1.00 [−1.90, −0.05]" in text
    assert text.count("not after Holm") == 4  # two models, on top and beside the analysis


def test_a_caution_stands_beside_each_verdict(study: Path) -> None:
    assert "Caution" not in Reader(write_report(with_spectra(study))).text
    text = " ".join(Reader(write_report(with_spectra(study, caution="<i>random</i> weights"))).text.split())
    assert "Caution: <i>random</i> weights" in text
    assert f"Caution: resnet18: <i>random</i> weights; {NASTY}: <i>random</i> weights" not in text  # the ViT is the first
    assert f"Caution: {NASTY}: <i>random</i> weights; resnet18: <i>random</i> weights" in text


def test_random_weights_are_said(study: Path) -> None:
    request = read_record(study / "study.json", StudyRequest)
    assert request is not None
    assert "random weights" not in Reader(write_report(study)).text
    random = replace(request, settings={"pretrained": False, "data": "fashion"})
    (study / "study.json").write_bytes(encoded(random))
    assert "random weights" in Reader(write_report(study)).text


def test_a_folder_of_single_commands(study: Path) -> None:
    for name in ("study.json", "nasty/units.json", "nasty/hessian.reason.json"):
        (study / name).unlink()
    shutil.rmtree(study / "resnet" / "lesion")
    text = Reader(write_report(study)).text
    assert "6 units in 1 stage" in text  # the units are in the rows too
    assert "Not on this page" not in text


def test_one_model_has_nothing_to_switch(study: Path) -> None:
    page = Reader(write_report(study / "nasty", study / "one.html"))
    assert not [a for _, a in page.elements if "data-switch" in a]
    assert f"How {NASTY} works" in page.text


def test_what_is_missing_or_broken_is_said(study: Path) -> None:
    shutil.rmtree(study / "resnet" / "lesion")
    (study / "resnet" / "fourier" / "rows.parquet").write_bytes(b"not parquet")
    (study / "nasty" / "calibration" / "arrays.safetensors").write_bytes(b"\x00" * 20)
    (study / "nasty" / "variance" / "result.json").write_text('{"analysis": "variance"}')
    (study / "nasty" / ".lesion-draft").mkdir()
    (study / "nasty" / "units.json").write_text("{")
    page = Reader(write_report(study))
    for sentence in (
        "resnet18, lesion: not run yet",
        "resnet/fourier is not a complete result",
        "nasty/calibration is not a complete result",
        "nasty/variance is not a complete result",
        "hessian: failed: out of memory",
        "nasty/units.json could not be read",
    ):
        assert sentence in page.text
    assert "draft" not in page.text
    assert page.chunk("fourier")[0] is None


def test_a_result_without_its_columns_is_left_out(study: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Result, "save", Result.save)
        patch.setattr(Variance, "figure", Fourier.figure)
        patch.setattr(Variance, "draw", lambda *_: None)
        Variance("resnet18", [{"unit": 0, "kind": "conv"}], [], EVIDENCE).save(study / "resnet" / "variance")
    assert "it lacks module, stage, variance" in Reader(write_report(study)).text


def test_models_measured_unlike_each_other_are_marked(study: Path) -> None:
    path = study / "resnet" / "fourier" / "result.json"
    document = read_record(path, ResultFile)
    assert document is not None
    provenance = {**document.provenance, "images": 500, "settings": {"radial": True}}
    path.write_bytes(encoded(replace(document, provenance=provenance)))
    text = Reader(write_report(study)).text
    assert "they differ in images" in text
    assert "48 to 500 images" in text


def test_two_models_of_one_name_are_told_apart(study: Path) -> None:
    (study / "study.json").unlink()
    shutil.copytree(study / "resnet", study / "resnet-2")
    assert [m["name"] for m in Reader(write_report(study)).chunk("page")["models"]] == [NASTY, "resnet18 (1)", "resnet18 (2)"]


def test_an_analysis_without_a_section_gets_a_table(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = page_module.section_of
    monkeypatch.setattr(page_module, "section_of", lambda name: DEFAULT if name == "variance" else sections(name))
    monkeypatch.setattr(page_module, "ROWS_SHOWN", 3)
    page = Reader(write_report(study))
    assert "variance_low" in page.text
    assert "9 more rows" in page.text


class Toy(nn.Module):
    """A network of two residual convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stream = self.stem(images)
        for block in self.blocks:
            stream = stream + block(stream)
        return self.head(stream.mean((2, 3)))


def test_every_analysis_gives_what_its_section_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    monkeypatch.setattr(Result, "figure", lambda self: Figure(figsize=(1, 1)))
    torch.manual_seed(0)
    model, data = Toy(), [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))]
    for analysis in (fourier, variance, lesion, calibration):
        result = analysis(model, data, resamples=20)
        result.save(tmp_path / "toy" / result.analysis)
    page = Reader(write_report(tmp_path))
    assert "Not on this page" not in page.text
    assert "2 units in 1 stage: all convolutions" in page.text


@pytest.mark.parametrize("make", [lambda f: None, lambda f: f.mkdir(), lambda f: (f / "m" / "fourier").mkdir(parents=True)])
def test_refuses_a_folder_without_results(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "study")
    with pytest.raises(UserError, match="study"):
        write_report(tmp_path / "study")


def test_refuses_a_place_it_cannot_write(study: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_report(study, study / "study.json" / "page.html")
