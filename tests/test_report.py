"""The page of a study: one file, nothing from outside, no name of a user's run, and the same numbers as the results."""

from __future__ import annotations

import base64
import csv
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from backlight import report
from backlight.analyses.calibration.measure import Calibration
from backlight.analyses.catalog import CATALOG, calibration, fourier, lesion, variance
from backlight.analyses.fourier.measure import Fourier
from backlight.analyses.lesion.measure import Lesion
from backlight.analyses.variance.measure import Variance
from backlight.errors import UserError
from backlight.records import encoded, read_record
from backlight.report import page as page_module
from backlight.report import write_report
from backlight.report.sections import DEFAULT
from backlight.results.claim import Claim
from backlight.results.result import Result, ResultFile
from backlight.study.cells import Reason
from backlight.study.folder import ModelUnits, StudyRequest, UnitRow

NASTY = "<img src=x onerror=alert(1)></script>"
MODULE = "blocks.<b>2</b>"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
EVIDENCE = {
    "images": 48,
    "settings": {"seed": 0},
    "data": {"data": "noise", "split": "test"},
    "model": {"parameters": 2721226},
}


# --- results made by hand


def word(kinds: str) -> list[dict[str, Any]]:
    """Rows of units from a model's word."""
    names = {"a": "attention", "c": "conv", "m": "mlp"}
    units = [(stage, letter) for stage, letters in enumerate(kinds.split()) for letter in letters]
    return [
        {"unit": i, "kind": names[letter], "stage": stage, "module": MODULE if i == 2 else f"blocks.{i}"}
        for i, (stage, letter) in enumerate(units)
    ]


def ends(column: str, value: float) -> dict[str, float]:
    return {column: value, f"{column}_low": value - 0.1, f"{column}_high": value + 0.1}


def results_of(model: str, kinds: str) -> list[Result]:
    units = word(kinds)
    stem = {"unit": -1, "kind": "stem", "stage": 0, "module": "stem"}
    claim = Claim.of_sign(
        "negative", (-2, -3, -1), id="fourier/attention-relative", statement="Attention is a low-pass filter.",
        source="Figure 8", quantity=f"mean of {len(units)} units (nepers)", count=50,
    )  # fmt: skip
    spectrum = [
        unit | {"height": 8, "width": 8, "cycles": k, "frequency": k / 4} | ends("delta", -0.1 * k * (i + 1))
        | (ends("transfer", 0.05 * k) if i else dict.fromkeys(["transfer", "transfer_low", "transfer_high"], np.nan))
        for i, unit in enumerate([stem, *units]) for k in range(5)
    ]  # fmt: skip
    spread = [unit | ends("variance", 10.0 ** (i / 2)) for i, unit in enumerate([stem, *units])]
    whole = {"unit": -1, "kind": "whole", "stage": 0, "module": ""}
    lesions = [
        unit | {"accuracy": 0.5, "nll": 2.0} | ends("accuracy_change", -0.01 * i) | ends("nll_change", 0.1 * i)
        for i, unit in enumerate([whole, *units])
    ]
    metrics = [
        {"metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6},
        {"metric": "ece", "value": 0.1, "low": 0.0, "high": 0.2},
    ]
    bins = np.linspace(0.05, 0.95, 10)
    diagram = np.stack([np.stack([bins, bins**2 + shift, np.full(10, 0.1)]) for shift in (0, -0.05, 0.05)])
    return [
        Fourier(model, spectrum, [claim], EVIDENCE),
        Variance(model, spread, [], EVIDENCE),
        Lesion(model, lesions, [], EVIDENCE | {"whole": {"accuracy": [0.5, 0.4, 0.6], "nll": [2.0, 1.9, 2.1]}}),
        Calibration(model, metrics, [], EVIDENCE, {"reliability": diagram}),
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two models, one with a nasty name; figures left out, for they take seconds and the page shows none."""
    from matplotlib.figure import Figure

    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Result, "figure", lambda self: Figure(figsize=(1, 1)))
        for slug, name, kinds in (("resnet", "resnet18", "cc cc"), ("nasty", NASTY, "amamam")):
            for result in results_of(name, kinds):
                result.save(folder / slug / result.analysis)
    request = StudyRequest({name: [*CATALOG] for name in ("resnet18", NASTY)}, {"data": {"name": "noise"}})
    (folder / "study.json").write_bytes(encoded(request))
    rows = [UnitRow(**unit, shape=[65, 192], identity=True, removable=True) for unit in word("amamam")]
    (folder / "nasty" / "units.json").write_bytes(encoded(ModelUnits(NASTY, "amamam", 2721226, rows)))
    failed = Reason(NASTY, "hessian", "out of memory <b>today</b>", True, {})
    (folder / "nasty" / "hessian.reason.json").write_bytes(encoded(failed))
    return folder


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    """The study again, to break."""
    return Path(shutil.copytree(made, tmp_path / "study"))


class Reader(HTMLParser):
    """A page as a browser sees it: its elements, its text outside scripts and styles, its scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.styles, self.within = "", "", ""
        self.scripts: list[tuple[str | None, str]] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.within = tag

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within == "script":
            self.scripts.append((self.elements[-1][1].get("type"), data))
        elif self.within == "style":
            self.styles += data
        else:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(next(text for kind, text in self.scripts if kind == "application/json"))


# --- the file


def test_one_small_file(study: Path) -> None:
    before = set(study.rglob("*"))
    path = write_report(study)
    assert path == study / "report.html"
    assert set(study.rglob("*")) - before == {path}
    assert 4e6 < path.stat().st_size < 10e6  # Plotly is inside, once
    assert path.read_text().count("window.Plotly = Plotly") == 1


def test_nothing_is_fetched(study: Path) -> None:
    page = Reader(write_report(study))
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith(("#", "data:")), tag
    assert not re.search(r"@import|url\(|https?:", page.styles)
    assert "http" not in "".join(text for _, text in page.scripts if "Plotly, Inc" not in text)
    policy = next(a["content"] or "" for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for kind, text in page.scripts:
        if kind is None:  # only scripts of these hashes may run, so a name that slipped through could not
            assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


def test_names_are_text(study: Path) -> None:
    path = write_report(study)
    page = Reader(path)
    assert NASTY in page.text
    assert MODULE in json.dumps(page.data)
    assert not [tag for tag, _ in page.elements if tag in ("img", "b") and "onerror" in _]
    assert "<img" not in path.read_text().replace(page_module.plotly(), "")
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


def test_refuses_a_page_too_large_to_open(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "LARGEST", 1_000_000)
    with pytest.raises(UserError, match="fewer models"):
        write_report(study)


# --- what is on it


def test_numbers_are_those_of_the_results(study: Path) -> None:
    data = Reader(write_report(study)).data
    assert [model["name"] for model in data["models"]] == ["resnet18", NASTY]
    for i, (name, kinds) in enumerate((("resnet18", "cc cc"), (NASTY, "amamam"))):
        for result in results_of(name, kinds):
            columns = data["tables"][result.analysis][i]
            for k, row in enumerate(result.table):
                for column, value in row.items():
                    shown = columns[column][k]
                    same = shown == value if isinstance(value, str) else shown == pytest.approx(value, rel=1e-7)
                    assert same or (shown is None and np.isnan(value)), (result.analysis, column, k)


def test_words(study: Path) -> None:
    text = " ".join(Reader(write_report(study)).text.split())
    assert "48 images of noise (split test)" in text
    assert "4 units in 2 stages: all convolutions; 2.7 M parameters. Accuracy 50 [40, 60]%." in text
    assert "6 units in 1 stage: attention and MLP take turns" in text
    assert "mean of 4 or 6 units (nepers)" in text
    assert "Statements tested: 2 (2 hold, 0 do not hold, 0 undecided)" in text
    for name in ("fourier", "variance", "lesion", "calibration"):
        assert CATALOG[name].question in text


def spectra(caution: str = "") -> Iterator[tuple[str, Fourier]]:
    """For the page's claims: a CNN and a ViT with numbers per image, and with claims decided by a narrow margin."""
    noise = np.random.default_rng(0).normal(size=(2, 50))
    facts = EVIDENCE | {"data": EVIDENCE["data"] | {"ids_sha256": "abc"}, "caution": caution}  # type: ignore[operator]
    for i, (slug, name, kinds) in enumerate((("resnet", "resnet18", "cc cc"), ("nasty", NASTY, "amamam"))):
        result = results_of(name, kinds)[0]
        weak = replace(result.claims[0], value=-1.0, low=-1.9, high=-0.05)
        arrays = {"per_image/delta": np.stack([np.zeros(50), 2 - 3 * i + noise[i]])}
        yield slug, Fourier(name, result.table, [weak], facts, arrays)


def with_spectra(study: Path, caution: str = "") -> Path:
    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Result, "figure", lambda self: Figure(figsize=(1, 1)))
        for slug, result in spectra(caution):
            result.save(study / slug / "fourier")
    return study


def test_the_page_opens_with_the_claims_those_that_compare_first(study: Path) -> None:
    text = " ".join(Reader(write_report(with_spectra(study))).text.split())
    marks = [
        "What the paper says",
        "in the ViT than in the CNN.",
        "the CNN raises the share",
        "Attention is a low-pass",
        "The models Each",
    ]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    compared = text[places[1] : places[2]]
    assert "docs/claims_list.md#compare-high-frequencies" in compared
    assert NASTY in compared
    assert "resnet18" in compared
    assert "holds" in compared
    assert "50 images" in compared
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
    assert page.data["tables"]["fourier"][0] is None


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
    assert [m["name"] for m in Reader(write_report(study)).data["models"]] == [NASTY, "resnet18 (1)", "resnet18 (2)"]


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


# --- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no chromium and no google-chrome is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def visit(browser: Any, made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[str]]:
    """The page, opened once for all tests, and everything that it complains about or asks the network for."""
    folder = with_spectra(Path(shutil.copytree(made, tmp_path_factory.mktemp("page") / "study")))
    address = write_report(folder).as_uri()
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on(
        "request",
        lambda asked: complaints.append(asked.url) if not asked.url.startswith((address, "blob:", "data:")) else None,
    )
    tab.goto(address)
    return tab, complaints


#: Every chart that shows is drawn, in the plane or in space.
DRAWN = (
    "[...document.querySelectorAll('.chart')].every(c => !c.clientWidth || c.querySelector('.cartesianlayer, .gl-container'))"
)


@pytest.fixture
def opened(visit: tuple[Any, list[str]]) -> Iterator[Any]:
    """The page at 1280 pixels, as it is when opened."""
    tab, complaints = visit
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.emulate_media(color_scheme="light", media="screen")
    until(
        tab,
        DRAWN,
    )
    yield tab
    assert complaints == []


def until(tab: Any, condition: str) -> None:
    """Return when a condition holds in the page.  Playwright's own waiting evaluates a string: forbidden."""
    for _ in range(100):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(f"never came true: {condition}")


def texts(tab: Any) -> list[str]:
    """Every hover text of every chart in sight, and every panel's name."""
    told = tab.evaluate("""
        [...document.querySelectorAll('.js-plotly-plot')].filter(chart => chart.clientWidth).map(chart =>
            chart.data.map(trace => trace.text ?? []).concat(chart.layout.annotations.map(note => note.text)))
    """)
    return list(itertools.chain.from_iterable(text if isinstance(text, list) else [text] for chart in told for text in chart))


@pytest.mark.browser
def test_charts_are_drawn_and_name_the_unit(opened: Any) -> None:
    for name, marks in (("fourier-0-0", 12), ("variance-0-0", 12), ("lesion-0-0", 10), ("calibration-0-0", 20)):
        assert opened.locator(f"[data-chart={name}] .points path.point").count() >= marks, name
    assert opened.locator("[data-chart=fourier-1-0] path.js-line").count() == 12
    assert opened.locator("[data-chart=fourier-1-1]").is_hidden()  # behind its tab
    opened.get_by_role("tab", name="Transfer function").click()
    until(opened, "document.querySelector('[data-chart=fourier-1-1] path.js-line')")
    assert opened.locator("[data-chart=fourier-1-1] path.js-line").count() == 10  # the stem has no transfer function

    mark = opened.locator("[data-chart=fourier-0-0] .scatterlayer .trace:last-child .points path.point").nth(3)
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = opened.locator("[data-chart=fourier-0-0] .hoverlayer .hovertext")
    label.wait_for()
    told = label.text_content()
    assert "unit 2 · attention" in told
    assert MODULE in told  # as text: were it read as HTML, its tags would be gone
    assert NASTY in told


@pytest.mark.browser
def test_switches_hide_a_model_everywhere(opened: Any) -> None:
    assert any("resnet18" in text for text in texts(opened))
    box = opened.get_by_role("checkbox", name="resnet18")
    box.focus()
    opened.keyboard.press("Space")
    assert not box.is_checked()
    for tab in opened.get_by_role("tab").all():
        tab.click()
        until(
            opened,
            DRAWN,
        )
        assert not any("resnet18" in text for text in texts(opened))
        assert any("img" in text for text in texts(opened))
    assert not [e for e in opened.locator("[data-model='0']").all() if e.is_visible()]
    assert [e for e in opened.locator("[data-model='1']").all() if e.is_visible()]
    assert opened.locator("[data-about]").count() == 1
    assert opened.locator("[data-about]").is_hidden()  # a comparison with the hidden model
    opened.locator("[data-switch='1']").uncheck()
    assert "No model" in opened.locator("[data-chart=fourier-0-0]").text_content()
    box.check()
    assert any("resnet18" in text for text in texts(opened))
    assert opened.locator("[data-chart=fourier-0-0] path.point").count() == 5
    opened.locator("[data-switch='1']").check()
    assert opened.locator("[data-chart=fourier-0-0] path.point").count() == 12
    assert opened.locator("[data-about]").is_visible()


@pytest.mark.browser
def test_dark_and_on_paper(opened: Any) -> None:
    ink = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"
    brightness = f"({ink}).match(/\\d+/g).slice(0, 3).reduce((sum, x) => sum + Number(x), 0)"
    assert opened.evaluate(brightness) < 380
    opened.emulate_media(color_scheme="dark")
    until(opened, f"{brightness} > 380")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    opened.emulate_media(color_scheme="dark", media="print")
    until(opened, f"{brightness} < 380")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.locator(".switches").is_hidden()
    assert opened.locator("[data-chart=fourier-1-0]").is_visible()  # everything is open
    assert opened.locator("[data-chart=fourier-1-1]").is_visible()
    assert opened.locator("details[open]").count() == opened.locator("details").count()
    opened.emulate_media(color_scheme="dark", media="screen")
    until(opened, f"{brightness} > 380")
    assert not opened.locator("details[open]").count()


@pytest.mark.browser
def test_on_a_phone(opened: Any) -> None:
    opened.set_viewport_size({"width": 380, "height": 800})
    until(opened, "[...document.querySelectorAll('.chart svg.main-svg')].every(s => s.clientWidth <= 380)")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 380


@pytest.mark.browser
def test_units_by_keyboard_and_rows_to_take_away(opened: Any, tmp_path: Path) -> None:
    units = opened.locator(".word").nth(1).locator(".unit")
    units.first.focus()
    opened.keyboard.press("ArrowRight")
    assert opened.locator(".unit-name").nth(1).text_content() == "unit 1 · mlp · blocks.1 · 65 × 192"
    with opened.expect_download() as download:
        opened.locator("[data-csv=lesion]").click()
    download.value.save_as(tmp_path / "lesion.csv")
    with (tmp_path / "lesion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    made = [row for name, kinds in (("resnet18", "cc cc"), (NASTY, "amamam")) for row in results_of(name, kinds)[2].rows()]
    assert [row["model"] for row in rows] == [row["model"] for row in made]
    assert [float(row["nll_change"]) for row in rows] == pytest.approx([row["nll_change"] for row in made])
