"""The parts of a page: its first sentences, the states of a result, what numbers are over, and how many models it holds."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import EVIDENCE, NASTY, Reader, make_study, results_of, save, save_results, with_spectra, word
from PIL import Image

from backlight.analyses.fourier.measure import Fourier
from backlight.analyses.landscape.measure import Landscape
from backlight.claims.findings import findings
from backlight.comparing.compare import compare_models
from backlight.data.opening import open_data, source_record
from backlight.errors import UserError
from backlight.records import encoded
from backlight.report import packing, samples, words, write_report
from backlight.report.absences import states
from backlight.report.compared import compared, pairs_of
from backlight.report.families import families
from backlight.report.flips import counts
from backlight.report.node_data import node_data, write_node_data
from backlight.report.opening import opening, strength
from backlight.report.page import html
from backlight.report.sections import section_of
from backlight.report.survey import MANY, tally
from backlight.results.claim import Claim
from backlight.results.result import Result
from backlight.study.cells import Reason
from backlight.study.folder import Model, Study, StudyRequest, read_study


def claim(value: float, half: float, **about: Any) -> Claim:
    facts = {"id": "fourier/attention", "statement": "Attention smooths.", "source": "Figure 8", "quantity": "step (nepers)"}
    return Claim.of_sign("negative", (value, value - half, value + half), count=50, **{**facts, **about})


def with_claims(model: str, kinds: str, claims: list[Claim], *more: Result, **about: Any) -> Model:
    first, *others = results_of(model, kinds)
    result = Fourier(model, first.table, claims, EVIDENCE | about)
    return Model(model, word(kinds), None, {each.analysis: each for each in (*others, result, *more)})


def said(*models: Model) -> list[str]:
    study = Study(list(models), {}, [])
    return [sentence.text for sentence in opening(study, findings(study))]


# --- the opening


def test_the_opening_says_which_models_and_how_much() -> None:
    sentences = said(with_claims("vit", "am", [claim(-0.16, 0.04)]), with_claims("alternet", "ca", [claim(0.01, 0.05)]))
    assert 3 <= len(sentences) <= 6
    assert (
        "Attention smooths: holds in vit (−0.160 [−0.200, −0.120]), undecided in alternet (0.010 [−0.040, 0.060])"
        in sentences[1]
    )
    assert sentences[1].endswith("(nepers; 50 test images).")
    assert sentences[0] == "Accuracy: vit 50 [40, 60]% and alternet 50 [40, 60]% (48 test images)."
    assert sentences[-1].startswith("Statements tested: 2 (1 hold, 0 do not hold, 1 undecided)")


def test_the_opening_takes_what_differs_between_models_then_the_strongest() -> None:
    strong = {"id": "fourier/strong", "statement": "Strong."}
    alike, apart = claim(-9, 0.1, **strong), claim(-0.5, 0.1)
    assert strength(alike) > strength(apart)
    both = said(with_claims("a", "am", [alike, apart]), with_claims("b", "am", [alike, replace(apart, verdict="undecided")]))
    assert both[1].startswith("Attention smooths:")
    assert said(with_claims("a", "am", [apart, alike]))[1].startswith("Strong:")


@pytest.mark.parametrize("change", [{"caution": "random weights"}, {}])
def test_the_opening_takes_no_claim_with_a_caution_or_undecided(change: dict[str, str]) -> None:
    weak = claim(-0.16, 0.04) if change else claim(-0.01, 0.04)
    assert not [text for text in said(with_claims("vit", "am", [weak], **change)) if "smooths" in text]


def test_the_opening_counts_many_models() -> None:
    models = [with_claims(f"vit{i}", "am", [claim(-0.1 - i / 100, 0.04)]) for i in range(9)]
    sentences = said(*models, with_claims("other", "am", [claim(0.3, 0.04)]))
    assert "holds in 9 of 10 models (median −0.140, −0.180 to −0.100), does not hold in 1 of 10 models" in sentences[1]
    assert sentences[0].startswith("Accuracy of 10 models: ")


def test_the_most_needed_unit_is_one_whose_interval_excludes_zero() -> None:
    lesions = results_of("vit", "amamamamamamam")[2]
    sure = [row | {"accuracy_change_high": row["accuracy_change"] + 0.01} for row in lesions.table]
    model = with_claims("vit", "am", [], replace(lesions, table=sure))
    (sentence,) = [text for text in said(model) if "most needed" in text]
    assert "unit 13 (mlp) of vit: without it accuracy changes by −14.0 [−24.0, −13.0] points (48 test images)" in sentence
    assert not [text for text in said(with_claims("vit", "am", [])) if "most needed" in text]  # each interval holds zero


# --- over what


def test_numbers_say_over_which_images(tmp_path: Path) -> None:
    test, train = (
        Result("m", [], [], {"images": n, "data": {"split": split}}) for n, split in ((2000, "test"), (320, "train"))
    )
    assert [samples.over([test, test, None]), samples.over([train])] == ["2,000 test images", "320 training images"]
    assert samples.over([test, test, train]) == "2,000 test images (2 models) and 320 training images (1 model)"
    text = " ".join(Reader(write_report(make_study(tmp_path))).text.split())
    assert "Metrics with 95% intervals over images: 48 test images" in text
    assert "Over 48 test images." in text


# --- states


def test_states_do_not_look_alike(tmp_path: Path) -> None:
    save(tmp_path, (("a", "a", "am"), ("b", "b", "am"), ("c", "c", "am")))
    for name in ("b", "c"):
        for path in (tmp_path / name / "lesion").iterdir():
            path.unlink()
        (tmp_path / name / "lesion").rmdir()
    (tmp_path / "b" / "lesion.reason.json").write_bytes(encoded(Reason("b", "lesion", "it has <i>no</i> unit", False, {})))
    (tmp_path / "c" / "variance" / "rows.parquet").write_bytes(b"broken")
    (tmp_path / "study.json").write_bytes(encoded(StudyRequest({name: ["lesion"] for name in "abc"}, {})))
    study = read_study(tmp_path)
    by_name = [dict(zip(study.analyses, [state for state, _ in row], strict=True)) for row in states(study)]
    assert [row["lesion"] for row in by_name] == ["done", "not applicable", "not run"]
    assert by_name[2]["variance"] == "failed"
    page = Reader(write_report(tmp_path))
    classes = Counter(a.get("class") for _, a in page.elements)
    for name in ("not-applicable", "not-run", "failed"):
        assert classes[f"state {name}"] >= 2, name  # in the table of what was measured, and in its section
    assert "∅ not applicable it has <i>no</i> unit" in " ".join(page.text.split())
    rules = [page.styles.split(f".state.{name} {{")[1].split("}")[0] for name in ("not-applicable", "not-run", "failed")]
    assert len(set(rules)) == 3


# --- many models


def table(rows: int, units: int = 3) -> list[dict[str, Any]]:
    noise = np.random.default_rng(0).normal(size=(units, rows, 3))
    return [
        {"unit": u, "kind": "conv", "x": float(a), "x_low": float(b), "x_high": float(c)}
        for u, unit in enumerate(noise) for a, b, c in unit
    ]  # fmt: skip


def unpacked(each: packing.Packed) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(each.text)))


def test_tables_within_the_budget_are_complete() -> None:
    tables = {"a": [table(4), None]}
    packed = packing.packed(tables, {"a"})["a"]
    assert packed.level == 0
    first, second = unpacked(packed)
    assert second is None
    assert first["x"] == [pytest.approx(row["x"], rel=1e-7) for row in tables["a"][0]]
    assert packing.reductions({"a": packed}) == []


def test_the_largest_tables_are_reduced_until_the_page_is_small_enough() -> None:
    tables = {"large": [table(400)], "small": [table(4)], "spare": [table(40)]}
    sizes = {name: len(each.text) for name, each in packing.packed(tables, set(tables)).items()}
    budgets = [sum(sizes.values()), sizes["large"] + sizes["small"] + 200, sizes["large"] * 3 // 4, sizes["large"] // 3, 900]
    levels = []
    for budget in budgets:
        packed = packing.packed(tables, {"large", "small"}, budget)
        assert sum(len(each.text) for each in packed.values()) <= budget
        levels.append([packed[name].level for name in tables])
    assert levels[0] == [0, 0, 0]
    assert levels[1] == [0, 0, packing.LAST]  # what no chart draws goes first
    assert [level[0] for level in levels] == sorted(level[0] for level in levels)
    (rows,) = unpacked(packing.packed(tables, set(tables), sizes["large"] // 3)["large"])
    assert "x_low" not in rows
    (rows,) = unpacked(packing.packed(tables, set(tables), 900)["large"])
    assert rows["unit"] == [0, 1, 2]  # the last row of each unit
    assert rows["x"] == [pytest.approx(tables["large"][0][400 * (u + 1) - 1]["x"], rel=1e-3) for u in range(3)]


def test_what_is_not_on_the_page_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_study(tmp_path)
    assert "cannot hold" not in Reader(write_report(tmp_path)).text
    monkeypatch.setattr(packing.packed, "__defaults__", (300,))
    text = " ".join(Reader(write_report(tmp_path)).text.split())
    assert "A page of 2 models cannot hold every row." in text
    assert "MODEL/ANALYSIS/rows.parquet" in text
    assert "no rows of" in text


def test_families_are_first_words_of_names_where_enough_models_share_them() -> None:
    models = [Model(f"vit_{i}", word("am"), None, {}) for i in range(3)] + [Model("hf:x/resnet50", word("cc"), None, {})]
    assert families(models) == ["vit", "vit", "vit", "other CNNs"]


def test_verdicts_are_counted_by_family() -> None:
    models = [{"family": "vit"}, {"family": "vit"}, {"family": "resnet"}]
    entries = [{"models": [i], "verdict": verdict} for i, verdict in enumerate(("holds", "holds", "undecided"))]
    assert tally(entries, models) == {"holds": [("vit", 2)], "undecided": [("resnet", 1)]}


def survey_folder(folder: Path) -> Path:
    """A study of more models than a reader compares."""
    names = [f"{family}_{i}" for i in range(MANY // 2 + 1) for family in ("vit", "resnet")]
    save(folder, [(name, name, "amam" if name.startswith("vit") else "cc cc") for name in names])
    return folder


def test_a_survey_has_a_table_of_models_and_aggregates(tmp_path: Path) -> None:
    page = Reader(write_report(survey_folder(tmp_path)))
    text = " ".join(page.text.split())
    assert "How 14 vision models work" in text
    assert [a["data-row"] for _, a in page.elements if "data-row" in a] == [str(i) for i in range(14)]
    assert "✓ holds 14 resnet 7, vit 7" in text
    assert not [a for _, a in page.elements if "data-switch" in a]
    assert page.chunk("page")["many"]
    assert sum(len(row["models"]) == 1 for row in page.chunk("claims")) == 14
    metrics = page.chunk("metrics")["calibration"]
    assert metrics["rows"][0][2] == ["50 [40, 60]"] * 14
    assert metrics["caption"].endswith("over images: 48 test images")


def test_plotly_in_space_only_for_a_surface(tmp_path: Path) -> None:
    flat = write_report(make_study(tmp_path)).stat().st_size
    losses = [f"{name}{end}" for name in ("nll", "loss") for end in ("", "_low", "_high")]
    rows = [
        {"x": x, "y": y, "decay": 0.0, **{column: float(x * x + y * y) for column in losses}}
        for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)
    ]  # fmt: skip
    save_results(tmp_path, [("resnet", Landscape("resnet18", rows, [], EVIDENCE))])
    assert flat < 1_000_000
    assert 2_000_000 < write_report(tmp_path).stat().st_size < 3_000_000


# --- models compared


def test_models_of_one_word_are_compared_with_the_first_of_it() -> None:
    named = [Model(name, word(kinds), None, {}) for name, kinds in (("a", "am"), ("b", "cc"), ("c", "am"), ("d", "am"))]
    assert pairs_of(named) == [(0, 2), (0, 3)]
    assert pairs_of(named[:2]) == [(0, 1)]
    assert pairs_of([*named[1:3], Model("e", word("c"), None, {})]) == []
    assert pairs_of([named[0]] * (MANY + 1)) == []


def test_the_page_shows_the_differences_of_compare(tmp_path: Path) -> None:
    facts = EVIDENCE | {"data": {"data": "noise", "split": "test", "ids_sha256": "abc"}}
    noise = np.random.default_rng(0).normal(size=(2, 50))
    for name, shift in (("before", 0.0), ("after", 2.0)):
        first = results_of(name, "amam")[0]
        arrays = {"per_image/delta": np.stack([np.zeros(50), shift + noise[int(shift > 0)]]).astype(np.float32)}
        save_results(tmp_path, [(name, Fourier(name, first.table, [], facts | {"images": 50}, arrays))])
    study = read_study(tmp_path)
    (difference,) = [each for each in compare_models(*study.models).differences if each.number.quantity == "delta_change"]
    text = " ".join(Reader(write_report(tmp_path)).text.split())
    assert "before less after" in text
    assert difference.verdict.rstrip("*") in ("lower", "higher")
    shown = words.interval(difference.value, difference.low, difference.high)
    assert f"{shown}{difference.verdict}50 images" in text  # a cell each


def test_snapshots_make_a_trend() -> None:
    models = [with_claims(f"vit-epoch{step}", "am", []) for step in (1, 10, 100)]
    seeds = [with_claims(f"vit-seed{seed}", "am", []) for seed in range(3)]
    assert "compare/trend" not in compared(Study(seeds, {}, [])).tables
    table = compared(Study(models, {}, [])).tables["compare/trend"]
    assert [{row["at"] for row in rows or []} for rows in table] == [{1.0}, {10.0}, {100.0}]
    accuracy = next(row for row in table[0] or [] if row["quantity"] == "calibration/accuracy")
    assert (accuracy["value"], accuracy["over"]) == (pytest.approx(50), "48 test images")
    assert "compare/trend" not in compared(Study(models[:2], {}, [])).tables


# --- node data


def test_node_data_is_what_the_rows_say(tmp_path: Path) -> None:
    study = read_study(make_study(tmp_path / "study"))
    files = node_data(study.models[1])
    lesions = study.models[1].results["lesion"].table[1:]
    assert files["lesion-accuracy_change.json"][NASTY]["results"] == {
        row["module"]: {"value": pytest.approx(100 * row["accuracy_change"])} for row in lesions
    }
    spectrum = [row for row in study.models[1].results["fourier"].table if row["cycles"] == 4]
    assert files["fourier-delta.json"][NASTY]["results"] == {row["module"]: {"value": row["delta"]} for row in spectrum}
    assert all(set(of) <= {"results", "thresholds", "gradient"} for content in files.values() for of in content.values())
    written = write_node_data(study, tmp_path / "out")
    assert len(written) == len(set(written)) == len(node_data(study.models[0])) + len(files)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--node-data"):
        write_node_data(study, tmp_path / "file")


def test_facts_of_units_are_columns_of_their_tables(tmp_path: Path) -> None:
    """A name in a section that no table has would show nothing, silently."""
    model = read_study(make_study(tmp_path)).models[1]
    for analysis, result in model.results.items():
        section = section_of(analysis)
        for fact in section.of_unit:
            rows = section.derived[fact.table](result) if fact.table in section.derived else result.table
            assert rows, fact
    columns = {*model.results["fourier"].table[0], "high_step", "mean_step"}
    assert {fact.column for fact in section_of("fourier").of_unit} <= columns


def test_names_are_text_in_a_survey_too(tmp_path: Path) -> None:
    """A name is hostile in every form that the page has it in."""
    save(tmp_path, [(f"m{i}", f"{NASTY}{i}", "am") for i in range(MANY + 1)])
    page = Reader(write_report(with_spectra(tmp_path)))
    assert not [tag for tag, attributes in page.elements if tag == "img" or "onerror" in attributes]
    assert f"{NASTY}3" in page.text


# --- flipped images


def with_flips(data: dict[str, Any]) -> Result:
    """A lesion study of two units: without the first, image 1 becomes wrong; without the second, image 0 becomes right."""
    lesions = results_of("m", "am")[2]
    correct = np.array([[0, 1, 1], [0, 0, 1], [1, 1, 1]], np.uint8)
    return replace(lesions, arrays={"per_image/correct": correct}, provenance=EVIDENCE | {"images": 3, "data": data})


def test_flipped_images_are_counted() -> None:
    assert [(row["unit"], row["wronged"], row["righted"]) for row in counts(with_flips({}))] == [(0, 1, 0), (1, 0, 1)]
    assert counts(replace(with_flips({}), arrays={})) == []  # without numbers per image


def test_pictures_are_those_of_the_data_set_and_only_on_request(tmp_path: Path) -> None:
    images = open_data("shapes", "test", root=None, download=False, limit=3, seed=0)
    facts = source_record(images, 3, 0)
    save_results(tmp_path, [("m", with_flips(facts))])
    assert "pictures" not in Reader(write_report(tmp_path)).chunks
    page = Reader(write_report(tmp_path, images=True))
    (rows,) = page.chunk("lesion/pictures")
    assert [rows[name] for name in ("unit", "image", "now")] == [[0, 1], [1, 0], ["wrong", "right"]]
    for i, number in zip(rows["image"], rows["picture"], strict=True):
        content = base64.b64decode(page.chunk("pictures")[number].removeprefix("data:image/png;base64,"))
        small = images[i][0].convert("RGB")
        small.thumbnail((40, 40))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), np.asarray(small))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ids_sha256": "other"}, "holds other images"),
        ({"data": "nowhere"}, "no data called"),
        ({"ids_sha256": None}, "not record"),
    ],
)
def test_why_there_are_no_pictures_is_said(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    facts = source_record(open_data("shapes", "test", root=None, download=False, limit=3, seed=0), 3, 0) | change
    save_results(tmp_path, [("m", with_flips(facts))])
    assert reason in Reader(write_report(tmp_path, images=True)).text


# --- sizes and commands


def large(name: str, units: int = 50, frequencies: int = 16) -> Model:
    """A model of so many units with spectra, each number drawn anew: none compresses better than in a true study."""
    generator = np.random.default_rng(list(name.encode()))
    kinds = "am" * (units // 2)
    columns = [f"{column}{end}" for column in ("delta", "transfer") for end in ("", "_low", "_high")]
    rows = [
        unit | {"height": 56, "width": 56, "cycles": k, "frequency": k / (frequencies - 1)}
        | dict(zip(columns, generator.normal(size=6).tolist(), strict=True))
        for unit in word(kinds) for k in range(frequencies)
    ]  # fmt: skip
    claims = [claim(-0.16, 0.04, id=f"fourier/{i}", statement=f"Statement {i}.") for i in range(12)]
    return Model(name, word(kinds), 1_000_000, {"fourier": Fourier(name, rows, claims, EVIDENCE)})


@pytest.mark.parametrize(("count", "megabytes"), [(5, 5), (100, 10)])
def test_a_page_of_so_many_models_of_fifty_units_is_smaller(count: int, megabytes: int) -> None:
    page = html(Study([large(f"{'vit' if i % 2 else 'deit'}_{i}") for i in range(count)], {}, []))
    assert len(page.encode()) < megabytes * 1e6


def test_commands(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_study(tmp_path / "study")
    code, out, _ = run("report", folder, "--node-data", tmp_path / "nodes")
    assert code == 0
    assert {Path(line) for line in out.splitlines()} == set((tmp_path / "nodes").glob("*/*.json"))
    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", lambda *_, **__: None)
    code, _, said_to_user = run("report", folder, "--serve")
    assert code == 0
    assert "http://127.0.0.1:" in said_to_user
    assert run("report", tmp_path / "nothing", "--serve")[0] == 2
