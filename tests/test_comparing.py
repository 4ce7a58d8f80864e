"""Differences of two models: paired over the same images, unit by unit or over depth, and refused where images differ."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, TINY_ALTERNATING
from numpy.typing import NDArray

from backlight.analyses.calibration.measure import Calibration
from backlight.analyses.catalog import CATALOG
from backlight.analyses.erf.measure import Erf
from backlight.analyses.hessian.measure import HessianSpectrum
from backlight.analyses.lesion.measure import Lesion
from backlight.analyses.variance.measure import Variance
from backlight.claims.comparisons import share_difference, student_difference
from backlight.comparing.compare import Comparison, compare, models_in
from backlight.comparing.differences import Difference, NotComparable, differences
from backlight.comparing.pairing import aligned, part_weights
from backlight.comparing.readers import READERS, read, scalars
from backlight.errors import UserError
from backlight.numerics.bootstrap import counts, mean_interval
from backlight.numerics.calibration import Scores, summary
from backlight.numerics.independent import difference_interval
from backlight.numerics.multiple import holm
from backlight.results.result import Result
from backlight.study.cells import folder_name, load
from backlight.study.folder import Model
from backlight.study.run import run_study
from backlight.study.settings import StudySettings

Array = NDArray[np.float64]
IMAGES = 60
ANALYSES = ("fourier", "variance", "lesion", "calibration", "similarity", "attention")
DATA = {"data": "noise", "split": "test", "limit": None, "seed": 0, "ids_sha256": "abc"}
LETTERS = {"a": "attention", "c": "conv", "m": "mlp"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two untrained models."""
    folder = tmp_path_factory.mktemp("runs")
    settings = StudySettings(limit=IMAGES, resamples=100, batch_size=20, pretrained=False)
    list(run_study([TINY, TINY_ALTERNATING], {name: {} for name in ANALYSES}, settings, folder))
    return folder


@pytest.fixture(scope="module")
def two(runs: Path) -> list[Model]:
    return models_in(runs)


def by_id(each: list[Difference]) -> dict[str, Difference]:
    return {one.id: one for one in each}


def about(**settings: Any) -> dict[str, Any]:
    return {"images": IMAGES, "data": DATA, "settings": {"seed": 0, **settings}}


def rows_of(word: str) -> list[dict[str, Any]]:
    kinds = ["stem", *(LETTERS[letter] for letter in word)]
    return [{"unit": i - 1, "kind": kind, "stage": 0, "module": str(i)} for i, kind in enumerate(kinds)]


def variance(word: str, logs: Array, name: str = "x", **provenance: Any) -> Variance:
    """A variance result whose logarithm after each row, of each image, is given.  Shapes: (rows, n)."""
    values = np.exp(logs)
    ends = [{"variance": float(v), "variance_low": 0.9 * float(v), "variance_high": 1.1 * float(v)} for v in values.mean(1)]
    table = [row | more for row, more in zip(rows_of(word), ends, strict=True)]
    return Variance(name, table, [], about() | provenance, {"per_image/variance": values})


def lines(depths: Array, slopes: Array) -> Array:
    """A straight line over depth for each image.  Shapes: (rows,), (n,) -> (rows, n)."""
    return 0.5 + depths[:, None] * slopes


SLOPES = np.random.default_rng(0).normal(2, 1, IMAGES)


# --- over depth


@pytest.mark.parametrize("places", [[0, 1], [0, 0.3, 0.35, 1], [0.2, 0.5], [0.4]])
def test_the_weights_of_a_part_integrate_the_line_through_the_places(places: list[float]) -> None:
    at, edges = np.array(places), np.array([0.0, 0.25, 0.6, 1.0])
    values = np.random.default_rng(1).normal(size=len(at))
    fine = np.linspace(0, 1, 200_001)
    line = np.interp(fine, at, values)
    slow = [line[(fine > low) & (fine < high)].mean() for low, high in pairwise(edges)]
    np.testing.assert_allclose(part_weights(at, edges) @ values, slow, atol=1e-4)
    np.testing.assert_allclose(part_weights(at, edges).sum(1), 1)


def test_models_of_other_words_are_compared_over_depth() -> None:
    """The line of each image is straight, so its mean over a fifth of the depth is its value in the middle."""
    first, second = variance("ccc", lines(np.arange(4) / 3, SLOPES)), variance("amamama", lines(np.arange(8) / 7, 2 * SLOPES))
    five = differences(first, second)
    assert [each.number.depth for each in five] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert [each.number.unit for each in five] == [None] * 5
    for each in five:
        middle = each.number.depth or 0
        assert each.value == pytest.approx(middle * SLOPES.mean(), abs=1e-6)
        expected = mean_interval(middle * SLOPES)
        assert (each.low, each.high) == pytest.approx((float(expected.low), float(expected.high)), abs=1e-6)


def test_models_of_one_word_are_compared_unit_by_unit() -> None:
    first, second = (variance("acm", lines(np.arange(4) / 3, k * SLOPES)) for k in (1, 3))
    each = differences(first, second)
    assert [one.number.place for one in each] == ["stem", "unit 0 (attention)", "unit 1 (conv)", "unit 2 (mlp)"]
    assert [one.number.depth for one in each] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert each[-1].value == pytest.approx(2 * SLOPES.mean())


def test_the_same_letters_in_other_stages_are_another_word() -> None:
    logs = lines(np.arange(4) / 3, SLOPES)
    second = variance("ccc", logs)
    moved = replace(second, table=[row | {"stage": int(row["unit"] > 0)} for row in second.table])
    assert all(each.number.unit is None for each in differences(variance("ccc", logs), moved))


def test_units_of_some_kinds_only_are_not_placed_in_the_depth(two: list[Model]) -> None:
    series = read(two[1].results["attention"])[0]
    other = replace(series, numbers=tuple(n._replace(unit=(n.unit or 0) + 7) for n in series.numbers))
    assert series.by_unit
    assert aligned(series, other) is None


# --- the interval is over the same images


def test_a_difference_is_that_of_each_image() -> None:
    """Images differ by orders of magnitude more than the models do."""
    own = np.random.default_rng(2).normal(0, 5, (2, IMAGES))
    shift = np.random.default_rng(3).normal(0.1, 0.1, IMAGES)
    (_, last) = differences(variance("c", own), variance("c", own + shift))
    expected = mean_interval(shift)
    assert (last.value, last.low, last.high) == pytest.approx([float(x) for x in expected], abs=1e-6)
    assert last.paired
    assert last.high - last.low < 0.1


def test_without_numbers_per_image_both_intervals_are_added() -> None:
    results = [replace(variance("c", lines(np.arange(2.0), k * SLOPES)), arrays={}) for k in (1, 2)]
    (_, last) = differences(*results)
    a, b = (result.table[-1]["variance"] for result in results)
    assert not last.paired
    assert last.value == pytest.approx(math.log(b / a))
    assert last.value - last.low == pytest.approx(math.hypot(math.log(1 / 0.9), math.log(1.1)))


def test_an_image_whose_map_is_constant_counts_in_no_place() -> None:
    logs = lines(np.arange(3) / 2, SLOPES)
    blank = logs.copy()
    blank[1, 7] = -np.inf
    (_, middle, last) = differences(variance("cc", logs), variance("cc", np.where(np.isinf(blank), blank, blank + 1)))
    assert middle.value == pytest.approx(1, abs=1e-6)
    assert middle.count == last.count == IMAGES - 1


@pytest.mark.parametrize("analysis", ANALYSES[:-1])
def test_a_model_does_not_differ_from_itself(two: list[Model], analysis: str) -> None:
    result = two[0].results[analysis]
    every = differences(result, result)
    assert every
    assert not [each for each in every if each.value or each.verdict != "undecided"]


@pytest.mark.parametrize("analysis", ANALYSES[:-1])
def test_the_other_way_round_is_the_negative(two: list[Model], analysis: str) -> None:
    first, second = (model.results[analysis] for model in two)
    there, back = (by_id(differences(*pair)) for pair in ((first, second), (second, first)))
    assert there.keys() == back.keys()
    for id, each in there.items():
        if each.number.quantity in ("nll", "brier", "nll_change", "mean_nll_change"):
            continue  # a bootstrap-t has scores of its own
        other = back[id]
        assert (each.first, each.second) == pytest.approx((other.second, other.first))
        assert (each.value, each.low, each.high) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-9)


def test_the_values_are_those_of_the_tables(two: list[Model]) -> None:
    """A number that both a table and a difference have is the same; accuracies are in percentage points."""
    metrics = [{row["metric"]: row["value"] for row in model.results["calibration"].table} for model in two]
    every = by_id(differences(*(model.results["calibration"] for model in two)))
    compared = {each.number.quantity: each for each in every.values()}
    assert {name for name, value in metrics[0].items() if math.isfinite(value)} <= compared.keys()
    for name, value in metrics[0].items():
        if name not in compared:  # neither is ever confident
            assert math.isnan(value)
            continue
        scale = 100 if compared[name].unit == "percentage points" else 1
        assert compared[name].first == pytest.approx(scale * value)
        assert compared[name].second == pytest.approx(scale * metrics[1][name])
        assert compared[name].value == pytest.approx(scale * (metrics[1][name] - value))


def test_ece_is_resampled_for_both_models_alike(two: list[Model]) -> None:
    """A slow loop over the resamples."""
    scores = [Scores(*model.results["calibration"].arrays["per_image/scores"]) for model in two]
    drawn = [weights for chunk in counts(IMAGES, 1000, 0) for weights in chunk]
    gaps = [summary(scores[1], w, bins=10)["ece"] - summary(scores[0], w, bins=10)["ece"] for w in drawn]
    each = by_id(differences(*(model.results["calibration"] for model in two)))["calibration/ece"]
    low, high = 2 * each.value - np.quantile(gaps, [0.975, 0.025])
    assert (each.low, each.high) == pytest.approx((min(low, each.value), max(high, each.value)))


def test_accuracies_have_tangos_interval(two: list[Model]) -> None:
    results = [model.results["calibration"] for model in two]
    each = by_id(differences(*results))["calibration/accuracy"]
    right = [np.asarray(result.arrays["per_image/correct"], np.float64) for result in results]
    expected = [100 * end for end in share_difference(right[1], right[0])]
    assert (each.value, each.low, each.high) == pytest.approx(expected)


def test_a_lesion_is_compared_by_the_changes_that_it_makes() -> None:
    """The intact accuracies of both models do not matter: only how many answers the lesion changes."""
    rng = np.random.default_rng(4)
    correct = (rng.random((2, 2, IMAGES)) < [[[0.9], [0.4]], [[0.8], [0.7]]]).astype(np.uint8)
    rows = [{"unit": u, "kind": "conv", "stage": 0, "module": "", "lesion": "unit"} for u in (-1, 0)]
    ends = {f"{name}{end}": 0.0 for name in ("accuracy_change", "nll_change") for end in ("", "_low", "_high")}
    first, second = (
        Lesion("x", [row | ends for row in rows], [], about(), {"per_image/correct": c, "per_image/nll": 2.0 - 2 * c})
        for c in correct
    )
    each = by_id(differences(first, second))
    of_accuracy, of_nll = each["lesion/accuracy_change/unit-0"], each["lesion/nll_change/unit-0"]
    change = correct[:, 1].astype(float) - correct[:, 0]
    assert of_accuracy.value == pytest.approx(100 * (change[1] - change[0]).mean())
    assert of_accuracy.low < of_accuracy.value < of_accuracy.high
    assert of_nll.value == pytest.approx(-2 * (change[1] - change[0]).mean())


def test_eigenvalues_are_paired_by_mini_batch() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.lognormal(3, 1, (2, 12))
    results = [
        HessianSpectrum("x", [{"batch": i, "block": "all", "rank": 1, "eigenvalue": float(v)} for i, v in enumerate(own)], [],
                        about())
        for own in sizes
    ]  # fmt: skip
    each = by_id(differences(*results))["hessian/log_largest_eigenvalue"]
    assert (each.value, each.low, each.high) == pytest.approx(student_difference(*np.log(sizes[::-1])))
    assert (each.count, each.over) == (12, "mini-batches")


@pytest.mark.parametrize("analysis", ANALYSES)
def test_the_numbers_of_a_model_have_the_names_of_its_differences(two: list[Model], analysis: str) -> None:
    result = two[1].results[analysis]
    numbers = scalars(result)
    entire = {each.id: each for each in differences(result, result) if not each.number.place}
    assert numbers.keys() == entire.keys()
    for id, number in numbers.items():
        assert number * (100 if entire[id].unit == "percentage points" else 1) == pytest.approx(entire[id].first)


def test_two_intervals_add_in_quadrature() -> None:
    interval = difference_interval((0.2, 0.1, 0.5), (0.3, 0.29, 0.31))
    assert [float(x) for x in interval] == pytest.approx([0.1, 0.1 - math.hypot(0.01, 0.3), 0.1 + math.hypot(0.01, 0.1)])


def test_few_images_decide_nothing() -> None:
    own = lines(np.arange(2.0), SLOPES[:10])
    each = differences(variance("c", own), variance("c", own + 3))
    assert {one.verdict for one in each} == {"undecided"}
    assert math.isnan(each[0].p_value)


# --- every analysis


def test_an_analysis_without_a_reader_gives_the_intervals_of_its_rows() -> None:
    """Such as a receptive field, with a row for each unit and share."""

    def erf(sides: dict[float, float]) -> Erf:
        table = [
            row | {"share": share, "side": side, "side_low": side - 1, "side_high": side + 1}
            for row in rows_of("cc")
            for share, side in sides.items()
        ]
        return Erf("x", table, [], about())

    each = by_id(differences(erf({0.5: 4.0, 0.99: 9.0}), erf({0.5: 7.0, 0.99: 9.5})))
    assert each["erf/side at share 0.5/unit-1"].value == pytest.approx(3)
    assert each["erf/side at share 0.99/stem"].value == pytest.approx(0.5)
    assert each["erf/side at share 0.5/unit-1"].high == pytest.approx(3 + math.sqrt(2))


def test_every_reader_is_of_an_analysis() -> None:
    assert READERS.keys() <= CATALOG.keys()


@pytest.mark.parametrize("analysis", ANALYSES)
def test_each_difference_has_an_id_and_a_title_of_its_own(two: list[Model], analysis: str) -> None:
    second = two[1].results[analysis]
    every = differences(two[0].results.get(analysis, second), second)
    assert len({each.id for each in every}) == len(every)
    assert all(each.title and each.id.startswith(f"{analysis}/") for each in every)


# --- not comparable


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": DATA | {"ids_sha256": "x", "limit": 60}}, "images of noise test (all) and 60 images of noise test (limit 60"),
        ({"images": 50}, "make them the same with the same --data, --split, --limit and --seed"),
        ({"settings": {"seed": 0, "normalise": True}}, "different settings: normalise; measure both with the same settings"),
        ({"data": {}}, "not recorded which images were used; load both with backlight.load_data, or say same_images=True"),
    ],
)  # fmt: skip
def test_models_that_were_not_measured_alike_are_refused(change: dict[str, Any], says: str) -> None:
    logs = lines(np.arange(2.0), SLOPES)
    with pytest.raises(NotComparable, match="x and y, variance: not comparable") as refusal:
        differences(variance("c", logs), variance("c", logs, "y", **change))
    assert says in str(refusal.value)


def test_images_that_are_not_recorded_can_be_vouched_for() -> None:
    logs = lines(np.arange(2.0), SLOPES)
    own, other = variance("c", logs, data={}), variance("c", logs + 1, "y", data={})
    assert len(differences(own, other, same_images=True)) == 2
    with pytest.raises(NotComparable, match="the numbers of images, or the settings, differ"):
        differences(own, replace(other, provenance=other.provenance | {"images": 7}), same_images=True)
    with pytest.raises(NotComparable, match="different images"):  # nobody can vouch against a record
        differences(variance("c", logs), variance("c", logs, "y", data=DATA | {"ids_sha256": "other"}), same_images=True)


# --- results, folders, seeds


def test_a_comparison_of_results_is_that_of_their_folders(runs: Path, two: list[Model]) -> None:
    folders = [runs / folder_name(model.name) / "variance" for model in two]
    of_folders, of_results = compare(*folders), compare(*map(load, folders))
    assert of_folders == of_results
    assert {each.analysis for each in of_folders.differences} == {"variance"}
    assert {each["models"] for each in of_folders.rows()} == {f"{two[0].name} -> {two[1].name}"}


def test_holms_correction_is_over_all_differences(two: list[Model]) -> None:
    whole = compare(*two)
    assert {each.analysis for each in whole.differences} == set(ANALYSES) - {"attention"}
    np.testing.assert_allclose([d.adjusted for d in whole.differences], holm([d.p_value for d in whole.differences]))
    weak = [each for each in whole.differences if each.p_value < 0.05 <= each.adjusted]
    assert {each.id for each in whole.differences if each.verdict.endswith("*")} == {each.id for each in weak}
    assert {each.id for each in whole.decided()} == {each.id for each in whole.differences if each.adjusted < 0.05}


def test_an_analysis_that_is_not_comparable_is_left_out_and_named(two: list[Model]) -> None:
    changed = two[1].results["variance"]
    changed = replace(changed, provenance=changed.provenance | {"images": 1})
    other = replace(two[1], results={**two[1].results, "variance": changed})
    comparison = compare(two[0], other)
    assert "variance" not in {each.analysis for each in comparison.differences}
    assert list(comparison.refused) == ["variance"]
    with pytest.raises(NotComparable, match="variance: not comparable"):
        compare(two[0].results["variance"], changed)


def test_nothing_in_common(two: list[Model]) -> None:
    with pytest.raises(UserError, match="no analysis in common: run the same analyses of both"):
        compare(two[0].results["variance"], two[1].results["fourier"])


def test_a_folder_of_two_models_is_refused(runs: Path) -> None:
    with pytest.raises(UserError, match=r"results of 2 models .* give the folder of one of them"):
        compare(runs, runs)


def test_seeds_are_compared_by_their_means() -> None:
    """Three seeds on each side: Welch's interval over seeds, whatever the images say."""
    logs = lines(np.arange(2.0), SLOPES)
    shifts = [[0.0, 0.1, -0.1], [1.0, 1.2, 0.8]]
    sides = [[variance("c", logs + shift, f"{k}{s}") for s, shift in enumerate(own)] for k, own in enumerate(shifts)]
    comparison: Comparison = compare(*sides)
    last = comparison.differences[-1]
    half = 4.302653 * math.sqrt((0.01 + 0.04) / 3)  # Student's quantile with 2 degrees of freedom
    assert (last.value, last.low, last.high) == pytest.approx((1, 1 - half, 1 + half), abs=1e-5)
    assert (last.over, last.count, comparison.first) == ("models", 3, "00 + 01 + 02")
    with pytest.raises(UserError, match="at least two models on each side"):
        compare(sides[0], sides[1][0])


def test_a_caution_stays(two: list[Model]) -> None:
    assert any("untrained" in caution for caution in compare(*two).cautions)


def test_a_result_of_scores_of_another_time_still_has_its_rows() -> None:
    """Without the scores of each image the metrics are compared by their intervals."""
    table = [{"metric": "ece", "value": v, "low": v - 0.01, "high": v + 0.01} for v in (0.1,)]
    results: list[Result] = [Calibration("x", table, [], about(bins=10)) for _ in range(2)]
    (each,) = differences(*results)
    assert (each.id, each.paired, each.value) == ("calibration/ece", False, 0)


def test_a_comparison_is_a_line_and_in_a_notebook_a_table(two: list[Model]) -> None:
    comparison = compare(replace(two[0], name="<b>x</b>"), two[1])
    assert repr(comparison) == (
        f"<{two[1].name} against <b>x</b>: {len(comparison.decided())} of {len(comparison.differences)} numbers differ>"
    )
    html = comparison._repr_html_()
    shown = [each for each in comparison.differences if not each.number.place or each.decided]
    assert html.count("<tr>") == len(shown) + 1
    assert "<b>" not in html
    assert comparison["calibration/nll"].title == "NLL"
