"""The series of the paper: statements that are complete, decided as they should be, and a page that fits the stored rows."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file
from scipy.stats import t

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "paper"))

import analyse  # noqa: E402
import defects  # noqa: E402
import evidence  # noqa: E402
import gallery  # noqa: E402
import pack  # noqa: E402
import parts  # noqa: E402
import series  # noqa: E402
import write  # noqa: E402
from measures import MEASURES, Summary  # noqa: E402

from backlight.data.sampling import stratified  # noqa: E402
from backlight.figures.catalog import FIGURES  # noqa: E402
from backlight.models.sources.load import load_model  # noqa: E402
from backlight.results.claim import Claim  # noqa: E402
from backlight.results.result import Result  # noqa: E402
from backlight.study.cells import load  # noqa: E402
from backlight.study.config import read_config  # noqa: E402
from backlight.study.folder import Model  # noqa: E402
from backlight.study.plan import plan  # noqa: E402
from backlight.study.settings import StudySettings  # noqa: E402

STORED = ROOT / "examples" / "paper" / "results" / "small"
PAGE, GALLERY = ROOT / "docs" / "claims.md", ROOT / "docs" / "gallery"
ITEMS = tomllib.loads((ROOT / "examples" / "paper" / "statements.toml").read_text())["item"]
TRAININGS = tomllib.loads((ROOT / "examples" / "paper" / "trainings.toml").read_text())
ROWS = [(item, row) for item in ITEMS for row in item["row"]]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts run from the root of the repository."""
    monkeypatch.chdir(ROOT)


# --- the statements


def test_there_are_23_items_and_none_is_empty() -> None:
    assert [item["number"] for item in ITEMS] == list(range(1, 24))
    for item in ITEMS:
        assert all(item[key].strip() for key in ("title", "figure", "paper", "scale"))
        assert item["row"]


@pytest.mark.parametrize(("item", "row"), ROWS, ids=[f"{item['number']}-{row['says'][:30]}" for item, row in ROWS])
def test_a_statement_is_measured_or_says_what_it_needs(item: dict[str, Any], row: dict[str, Any]) -> None:
    kinds = [{"measure", "first", "second", "sign"}, {"claim", "of", "sign"}, {"needs", "command"}]
    assert row.keys() - {"says", "moment"} in kinds
    assert row.get("sign", "positive") in ("positive", "negative")
    assert row.get("moment", "warmup") == "warmup"
    for name in (row[key] for key in ("first", "second", "of") if key in row):
        assert name in TRAININGS["small"]["models"], name
    if "measure" in row:
        assert row["measure"] in MEASURES
    if "claim" in row:
        assert f"`{row['claim']}`" in (ROOT / "docs" / "claims_list.md").read_text()


def test_every_study_has_what_the_statements_need() -> None:
    """Each model of a statement is among the models of the study that measures it."""
    models = tomllib.loads((ROOT / "examples" / "paper" / "studies.toml").read_text())["models"]
    from commands import study_of

    for item, row in ROWS:
        statement = evidence.Decided(item, row, {})
        if statement.analysis:
            assert set(statement.models) <= set(models[study_of(statement)]), row["says"]


# --- how they are decided


def training(name: str, correct: np.ndarray, claims: list[Claim] | None = None, ece: float = 0.1) -> Model:
    """A training with these answers."""
    table = [{"metric": "accuracy", "value": correct.mean(), "low": 0.0, "high": 1.0}]
    table += [{"metric": "ece_debiased", "value": ece, "low": ece - 0.03, "high": ece + 0.04}]
    about = {"images": len(correct), "data": {"ids_sha256": "x"}, "settings": {}}
    result = load_calibration()(name, table, claims or [], about, {"per_image/correct": correct})
    return Model(name, [], None, {"calibration": result})


def load_calibration() -> type[Result]:
    from backlight.analyses.calibration.measure import Calibration

    return Calibration


def answers(right: int, n: int = 200) -> np.ndarray:
    return (np.arange(n) < right).astype(np.float64)


ACCURACY = {"says": "", "measure": "accuracy", "first": "a", "second": "b", "sign": "positive"}


def test_three_seeds_are_decided_by_welchs_interval_between_them() -> None:
    first, second = [120, 130, 125], [100, 90, 101]
    trainings = {f"a/{s}": training(f"a{s}", answers(k)) for s, k in enumerate(first)}
    trainings |= {f"b/{s}": training(f"b{s}", answers(k)) for s, k in enumerate(second)}
    decided = evidence.of_row(ITEMS[0], ACCURACY, trainings)
    a, b = np.array(first) / 2, np.array(second) / 2
    half = t.ppf(0.975, 2) * math.sqrt(a.var(ddof=1) / 3 + b.var(ddof=1) / 3)
    assert decided.between is not None
    np.testing.assert_allclose((decided.between.value, decided.between.low), (a.mean() - b.mean(), a.mean() - b.mean() - half))
    assert decided.verdict == "held"
    assert {seed: claim.value for seed, claim in decided.seeds.items()} == {"0": 10.0, "1": 20.0, "2": 12.0}


def test_seeds_that_differ_too_much_are_undecided_though_each_is_decided_within() -> None:
    trainings = {f"a/{s}": training(f"a{s}", answers(k)) for s, k in enumerate((190, 20, 180))}
    trainings |= {f"b/{s}": training(f"b{s}", answers(100)) for s in range(3)}
    decided = evidence.of_row(ITEMS[0], ACCURACY, trainings)
    assert [claim.verdict for claim in decided.seeds.values()] == ["holds", "does not hold", "holds"]
    assert decided.verdict == "undecided"


@pytest.mark.parametrize(
    ("rights", "verdict"),
    [
        ([150], "held (1 seed)"),
        ([50], "did not hold (1 seed)"),
        ([100], "undecided (1 seed)"),
        ([150, 50], "undecided (2 seeds)"),
    ],
)
def test_fewer_seeds_have_to_agree_and_are_counted(rights: list[int], verdict: str) -> None:
    trainings = {f"a/{s}": training(f"a{s}", answers(k)) for s, k in enumerate(rights)}
    trainings |= {f"b/{s}": training(f"b{s}", answers(100)) for s in range(2)}
    assert evidence.of_row(ITEMS[0], ACCURACY, trainings).verdict == verdict


def test_only_trainings_of_the_same_seed_are_compared() -> None:
    trainings = {"a/0": training("a", answers(150)), "b/1": training("b", answers(100))}
    decided = evidence.of_row(ITEMS[0], ACCURACY, trainings)
    assert (decided.verdict, decided.absent) == ("not trained yet", ("a", "b"))


def test_a_statement_names_the_model_that_is_not_trained() -> None:
    assert evidence.of_row(ITEMS[0], ACCURACY, {"a/0": training("a", answers(150))}).absent == ("b",)


def test_a_summary_without_numbers_per_image_adds_both_intervals_in_quadrature() -> None:
    row = ACCURACY | {"measure": "ece", "sign": "negative"}
    trainings = {"a/0": training("a", answers(150), ece=0.1), "b/0": training("b", answers(100), ece=0.3)}
    (claim,) = evidence.of_row(ITEMS[0], row, trainings).seeds.values()
    np.testing.assert_allclose((claim.value, claim.low, claim.high), (-20, -25, -15))
    assert isinstance(MEASURES["ece"], Summary)


def test_holm_marks_what_it_does_not_leave_standing() -> None:
    claim = Claim.of_sign("positive", (1.0, 0.01, 1.99), id="x", statement="", source="", quantity="", count=100)
    one = evidence.Decided({}, {}, {"0": claim}, adjusted=0.2)
    assert one.verdict == "held (1 seed), not after Holm"


def test_a_tenth_of_the_images_begins_with_the_same_images_for_every_size() -> None:
    """So the loss of a model trained on 6% or 10% is measured on images that it was trained on, if the seed is the same."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 500))
    trained = set(stratified(labels, 3000, 0))
    for images in (64, 160, 256, 512):
        assert set(stratified(labels, images, 0)) <= trained


# --- the defects


def test_the_rise_is_the_mean_over_the_points_next_to_the_circle() -> None:
    """Of a bowl x^2 + y^2, and a decay three times as large, on a grid of 5: next to radius 0.5 lie the 8 inner points."""
    from backlight.analyses.landscape.result import Landscape

    axis = np.linspace(-1, 1, 5)
    table = [{"x": x, "y": y, "nll": x * x + y * y, "decay": 3 * (x * x + y * y)} for y in axis for x in axis]
    nll, decay = defects.rises(Landscape("x", table, [], {}), 0.5)
    assert nll == pytest.approx((4 * 0.25 + 4 * 0.5) / 8)
    assert decay == pytest.approx(3 * nll)


def test_the_steps_of_the_mean_and_of_the_highest_frequency_give_that_of_delta() -> None:
    """Of every stored training: both claims of a kind, which come from the images, against the table, which has the means."""
    for training, model in evidence.stored_results(STORED.relative_to(ROOT))[evidence.END].items():
        fourier = model.results.get("fourier")
        for claim in fourier.claims if fourier else ():
            kind, _, reading = claim.id.removeprefix("fourier/").partition("-")
            if reading == "relative":
                absolute = next(c for c in fourier.claims if c.id == f"fourier/{kind}-absolute")
                assert parts.mean_step(fourier.table, kind) == pytest.approx(absolute.value - claim.value, abs=1e-4), training


# --- the studies


@pytest.mark.parametrize("study", analyse.STUDIES)
@pytest.mark.parametrize("size", ["small", "quick", "paper"])
def test_a_study_of_every_size_is_a_study(study: str, size: str) -> None:
    """Settings that an analysis does not have, or that are out of bounds, would be refused here."""
    about = series.read("studies.toml")
    before = read_config(ROOT / "examples" / "paper" / "studies" / f"{study}.toml")
    config = analyse.resized(before, about["sizes"].get(size, {}))
    cells = plan(["demo-cnn"], config.analyses, StudySettings(**config.shared))
    assert [cell.analysis for cell in cells] == list(config.analyses) == list(before.analyses)
    if size != "small" and "hessian" in config.analyses:
        assert {"quick": 2, "paper": 312}[size] == next(c for c in cells if c.analysis == "hessian").settings["batches"]


def test_a_study_names_all_seeds_of_a_model_or_one() -> None:
    options = argparse.Namespace(
        scale="small", out=Path("out"), quick=False, trained=None, only=None, epochs=None, limit=None, data="x", stage="plan"
    )
    studies = {s.name: s for s in analyse.planned_studies(list(series.planned(TRAININGS["small"], options)), options)}
    folders = {name: [analyse.training_of(str(folder)) for folder in study.folders] for name, study in studies.items()}
    assert folders["published"] == folders["published-warmup"] == ["resnet/0", "vit/0"]
    assert folders["warmup"][:6] == ["resnet/0", "resnet/1", "resnet/2", "vit/0", "vit/1", "vit/2"]
    assert sorted(folders["units"]) == sorted(TRAININGS["small"]["order"])


def test_the_plan_lists_every_training(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import run as script

    monkeypatch.setattr(sys, "argv", ["run.py", "--stage", "plan"])
    assert script.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TRAININGS["small"]["order"]) + 1
    hours = [float(line.split()[0]) for line in lines]
    assert hours[-1] == pytest.approx(sum(hours[:-1]), abs=0.06)


def test_an_analysis_of_what_is_trained_stores_it_and_names_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "src" / "backlight" / "assets" / "models" / "demo-cnn", tmp_path / "trained" / "resnet" / "seed-0")
    monkeypatch.setattr(analyse, "STUDIES", ("accuracy", "units"))
    options = argparse.Namespace(
        scale="small", out=tmp_path / "out", quick=True, trained=tmp_path / "trained", data_root=None, device="cpu",
        only=["resnet/0", "vit/0"], epochs=None, limit=None, data="fashion", stage="analyse",
    )  # fmt: skip
    lines: list[str] = []
    planned = list(series.planned(TRAININGS["small"], options))
    assert analyse.analyse(planned, options, "fashion", lines.append) == 0
    assert sum("resnet" in line and line.endswith("done") for line in lines) == 5
    assert "not trained yet: python examples/paper/run.py --stage train" in lines[-1]
    lines.clear()
    analyse.analyse(planned, options, "fashion", lines.append)
    assert sum(line.endswith("there already") for line in lines) == 5
    stored = evidence.stored_results(tmp_path / "out" / "small" / "quick")
    decided = {each.row["says"]: each.verdict for each in evidence.decided(stored)}
    assert "seed" in decided["The ResNet, trained with strong augmentation, is under-confident."]
    assert decided["The ViT has the higher test error."] == "not trained yet"


# --- shipped weights


def test_a_packed_model_is_half_the_size_and_answers_as_the_original(tmp_path: Path) -> None:
    source = ROOT / "src" / "backlight" / "assets" / "models" / "demo-cnn"
    size = pack.pack_model(source, tmp_path / "packed")
    assert size < 0.53 * (source / "model.safetensors").stat().st_size
    original, packed = load_model(str(source)), load_model(str(tmp_path / "packed"))
    images = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, other = original(images), packed(images)
    assert {p.dtype for p in packed.parameters()} == {torch.float32}
    assert 0 < float((one - other).abs().max()) < 1e-2 * float(one.abs().max())
    assert (one.argmax(1) == other.argmax(1)).float().mean() > 0.95


def test_norms_and_their_statistics_stay_exact(tmp_path: Path) -> None:
    source = ROOT / "src" / "backlight" / "assets" / "models" / "demo-cnn"
    pack.pack_model(source, tmp_path)
    before, after = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (source, tmp_path))
    flat = [name for name, tensor in before.items() if tensor.ndim < 2]
    assert any("running_var" in name for name in flat)
    assert all(torch.equal(before[name], after[name]) for name in flat)


def test_shipped_weights_load_and_are_a_few_megabytes() -> None:
    folders = [path.parent for path in (ROOT / "examples" / "paper" / "weights").rglob("model.json")]
    for folder in folders:
        images = torch.zeros(1, 3, 32, 32)
        assert load_model(str(folder))(images).shape == (1, 100), folder
    assert sum((folder / "model.safetensors").stat().st_size for folder in folders) < 12e6


# --- the page and the gallery, against the stored rows


def test_the_page_is_what_the_stored_rows_give() -> None:
    assert PAGE.read_text() == write.page("small", STORED.relative_to(ROOT)), "run examples/paper/run.py --stage write"


def stored(study: str, entry: str, analysis: str, moment: str = "") -> Path:
    """The folder of a result, found by the name of its model and not by the code that wrote the page."""
    name, _, seed = entry.partition("/")
    wanted = f"/{name}/seed-{seed}{moment}"
    for document in STORED.glob(f"{study}/*/{analysis}/result.json"):
        if load(document.parent).model.endswith(wanted):
            return document.parent
    pytest.skip(f"{entry} is not trained yet")


def numbers_of(statement: str) -> list[float]:
    """The effect in the overview of the page."""
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith("| ") and f"| {statement} |" in line)
    return [float(number) for number in re.findall(r"[-+]?\d+\.?\d*(?:e-?\d+)?", line.split("|")[4])]


def test_the_accuracies_of_the_page_are_those_of_the_stored_answers() -> None:
    shown = re.findall(r"^\| (\S+/\d) \| `.*?\| [\d,]+ \| ([\d.]+) \[", PAGE.read_text(), re.MULTILINE)
    for entry, accuracy in shown:
        correct = load_file(stored("accuracy", entry, "calibration") / "arrays.safetensors")["per_image/correct"]
        assert float(accuracy) == pytest.approx(100 * correct.mean(), abs=0.051)


@pytest.mark.parametrize("seed", [0])
def test_a_difference_of_accuracies_of_the_page_is_that_of_the_stored_answers(seed: int) -> None:
    first, second = (
        load_file(stored("accuracy", f"{name}/{seed}", "calibration") / "arrays.safetensors")["per_image/correct"]
        for name in ("alternet", "resnet")
    )
    value, low, high = numbers_of("AlterNet is more accurate than the ResNet.")
    if len(list(STORED.glob("accuracy/alternet-[12]"))) == 0:
        assert value == pytest.approx(100 * (first.mean() - second.mean()), rel=5e-3)
    assert low <= value <= high


def test_a_share_of_negative_eigenvalues_of_the_page_is_that_of_the_stored_rows() -> None:
    rows = pq.read_table(stored("warmup", "vit/0", "hessian", "/snapshots/warmup") / "rows.parquet").to_pylist()
    share = np.mean([row["eigenvalue"] < 0 for row in rows])
    statement = "Some of the largest eigenvalues of the ViT are negative at the end of warm-up."
    item = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {statement}"))
    value = float(re.search(r"0: \+?([\d.]+)", item)[1])  # type: ignore[index]
    assert value == pytest.approx(share, abs=5e-3)


def test_the_gallery_has_every_figure_and_no_other_picture() -> None:
    page = (GALLERY / "README.md").read_text()
    named = set(re.findall(r"\]\((\S+\.png)\)", page))
    assert {path.name for path in GALLERY.glob("*.png")} == named
    entries = tomllib.loads((ROOT / "examples" / "paper" / "gallery.toml").read_text())["figure"]
    assert {entry["number"] for entry in entries} == FIGURES.keys()
    for entry in entries:
        assert f"## Figure {entry.get('file', entry['number'])}. {entry['title']}" in page


def test_the_gallery_is_what_the_stored_rows_give(tmp_path: Path) -> None:
    results = STORED.relative_to(ROOT)
    page = gallery.write_gallery(tmp_path, results, evidence.decided(evidence.stored_results(results)))
    assert (GALLERY / "README.md").read_text() == page, "run examples/paper/run.py --stage write"
    assert {path.name for path in tmp_path.glob("*.png")} == {path.name for path in GALLERY.glob("*.png")}


def test_links_of_the_gallery_lead_to_items_of_the_page() -> None:
    headings = [line.removeprefix("### ") for line in PAGE.read_text().splitlines() if line.startswith("### ")]
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"claims\.md#(\S+?)\)", (GALLERY / "README.md").read_text()))
    assert links <= anchors
    assert len(links) > 10


def commands() -> list[str]:
    """Every command of the two pages."""
    text = PAGE.read_text() + (GALLERY / "README.md").read_text()
    return sorted({line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.strip().splitlines()})


def test_commands_of_the_pages_have_options_that_exist(run) -> None:
    options: dict[str, str] = {}
    for line in commands():
        words = shlex.split(line.replace("torchrun --nproc-per-node 8 -m ", ""))
        if words[0] == "backlight":
            if words[1] not in options:
                options[words[1]] = run(words[1], "--help")[1]
            for word in words:
                assert not word.startswith("--") or f"{word} " in options[words[1]] or f"{word}\n" in options[words[1]], line


def test_anchors_are_those_of_markdown() -> None:
    each = evidence.Decided({"number": 20, "title": "Attention at the ends of stages raises accuracy"}, {}, {})
    assert gallery.anchor(each) == "20-attention-at-the-ends-of-stages-raises-accuracy"
