"""Calibration: the metrics against netcal and slow loops, then the analysis on models with known results."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_models import batches, decisive, labelled_images, noise, stem, tower, unchanged
from torch import nn

from backlight import calibration, load
from backlight.analyses.calibration.measure import halves
from backlight.errors import UserError
from backlight.numerics.bootstrap import counts, statistic_interval
from backlight.numerics.calibration import (
    Scores,
    debiased_ece,
    ece_of_points,
    reliability,
    scores,
    summary,
    temperature,
    temperature_interval,
)


def classified(n, classes, seed=0, sharpness=2.0):
    """Logits and labels: more accurate than chance, and over-confident."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = sharpness * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(n), labels] += sharpness
    return logits, labels


def measured(logits, labels, bins=10):
    return summary(scores(logits, labels), np.ones(len(labels)), bins=bins)


def with_confidence(confidence, right):
    """Scores of images of which only the confidence and the correctness are known."""
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    zeros = np.zeros(len(confidence))
    return Scores(zeros, 1 - right, confidence, zeros, zeros, zeros)


# --- against others


@pytest.mark.parametrize(("classes", "bins"), [(2, 10), (10, 10), (10, 15), (1000, 10)])
def test_ece_equals_netcals(classes, bins):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies' deprecations
        from netcal.metrics import ECE
    logits, labels = classified(500, classes)
    probabilities = logits.softmax(1)
    confidence, prediction = probabilities.max(1)
    theirs = ECE(bins).measure(confidence.numpy(), (prediction == labels).long().numpy())
    if classes > 2:  # for two classes netcal takes the second probability, not the larger one
        assert ECE(bins).measure(probabilities.numpy(), labels.numpy()) == pytest.approx(theirs)
    assert measured(logits, labels, bins=bins)["ece"] == pytest.approx(theirs, abs=1e-12)


# --- the definitions, written as loops over images


def slowly(logits, labels):
    """Every metric of the paper's ``ops/tests.py``, image by image."""
    n, classes = logits.shape
    right = certain = certain_right = wrong = wrong_uncertain = top5 = nll = brier = 0
    pairs = []
    for row, label in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True):
        guess = row.index(max(row))
        pairs.append((label, guess, row[guess] > 0.9))
        right += guess == label
        certain += row[guess] > 0.9
        certain_right += row[guess] > 0.9 and guess == label
        wrong += guess != label
        wrong_uncertain += guess != label and row[guess] <= 0.9
        top5 += sum(p > row[label] for p in row) < 5
        nll -= math.log(row[label])
        brier += sum((p - (k == label)) ** 2 for k, p in enumerate(row))

    def iou(pairs):
        shares = []
        for k in range(classes):
            hit = sum(label == guess == k for label, guess, _ in pairs)
            either = sum(k in (label, guess) for label, guess, _ in pairs)
            shares += [hit / either] if either else []
        return sum(shares) / len(shares)

    return {
        "accuracy": right / n, "top5": top5 / n, "nll": nll / n, "brier": brier / n,
        "acc_90": certain_right / certain, "freq_90": certain / n, "unc_90": wrong_uncertain / wrong,
        "iou": iou(pairs), "iou_90": iou([pair for pair in pairs if pair[2]]),
    }  # fmt: skip


@pytest.mark.parametrize("classes", [2, 7, 40])
def test_the_other_metrics_equal_their_definitions(classes):
    logits, labels = classified(300, classes, seed=classes)
    metrics = measured(logits, labels)
    for metric, value in slowly(logits, labels).items():
        assert metrics[metric] == pytest.approx(value, abs=1e-12), metric


def slow_bins(confidence, right, edges):
    """Images put into bins (a, b] one by one; the first bin includes 0.  -> [(share, confidence, accuracy)]"""
    rows = []
    for j, (a, b) in enumerate(pairwise(edges)):
        inside = [i for i, c in enumerate(confidence) if a < c <= b or (j == 0 and c == 0)]
        mean = [sum(values[i] for i in inside) / len(inside) if inside else math.nan for values in (confidence, right)]
        rows.append((len(inside) / len(confidence), *mean))
    return rows


def slow_ece(confidence, right, edges):
    return sum(
        share * abs(mean_confidence - accuracy)
        for share, mean_confidence, accuracy in slow_bins(confidence, right, edges)
        if share
    )


def slow_adaptive_edges(confidence, bins):
    """Bins end at the image at each k / bins of the sorted images."""
    ordered, n = sorted(confidence), len(confidence)
    ends = {ordered[math.ceil(n * k / bins) - 1] for k in range(1, bins)}
    return sorted({0.0, 1.0} | ends)


shares = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]))
images = st.lists(st.tuples(shares, st.booleans()), min_size=1, max_size=30)


@given(scored=images, bins=st.sampled_from([1, 2, 10, 15]))
@settings(deadline=None)
def test_binned_metrics_equal_their_definitions(scored, bins):
    confidence, right = (list(map(float, column)) for column in zip(*scored, strict=True))
    metrics = summary(with_confidence(confidence, right), np.ones(len(scored)), bins=bins)
    edges = np.linspace(0, 1, bins + 1)
    assert metrics["ece"] == pytest.approx(slow_ece(confidence, right, edges), abs=1e-12)
    adaptive = slow_ece(confidence, right, slow_adaptive_edges(confidence, bins))
    assert metrics["adaptive_ece"] == pytest.approx(adaptive, abs=1e-12)
    signed = sum(confidence) / len(scored) - sum(right) / len(scored)  # a signed sum does not depend on bins
    assert metrics["signed_ece"] == pytest.approx(signed, abs=1e-12)
    assert metrics["ece"] >= abs(signed) - 1e-12


@given(scored=images, bins=st.sampled_from([1, 10, 100]))
@settings(deadline=None)
def test_the_reliability_diagram_equals_its_definition_and_sums_to_ece(scored, bins):
    confidence, right = (list(map(float, column)) for column in zip(*scored, strict=True))
    diagram = reliability(with_confidence(confidence, right), np.ones(len(scored)), bins=bins)
    slow = np.array(slow_bins(confidence, right, np.linspace(0, 1, bins + 1)))
    np.testing.assert_allclose(diagram.share, slow[:, 0], atol=1e-12)
    np.testing.assert_allclose(diagram.confidence, slow[:, 1], atol=1e-12)
    np.testing.assert_allclose(diagram.accuracy, slow[:, 2], atol=1e-12)
    ece = np.nansum(diagram.share * np.abs(diagram.accuracy - diagram.confidence))
    assert summary(with_confidence(confidence, right), np.ones(len(scored)), bins=bins)["ece"] == pytest.approx(ece, abs=1e-12)


@given(n=st.integers(1, 12), data=st.data())
@settings(deadline=None)
def test_a_weight_of_k_equals_k_copies_of_the_image(n, data):
    counts = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(any))
    s = scores(*classified(n, 4, seed=n))
    weighted = np.array(counts, float)
    repeated = Scores(*(np.repeat(column, counts) for column in s))
    once = np.ones(len(repeated.label))
    for bins in (3, 10):
        left, right = summary(s, weighted, bins=bins), summary(repeated, once, bins=bins)
        np.testing.assert_allclose(list(left.values()), list(right.values()), atol=1e-12)
        np.testing.assert_allclose(reliability(s, weighted, bins=bins), reliability(repeated, once, bins=bins), atol=1e-12)


# --- edges


@pytest.mark.parametrize("classes", [100, 1000])
def test_a_predictor_of_confidence_one_and_accuracy_one_percent(classes):
    """The authors' code omits confidences of exactly 1.0 and returns 0.01."""
    labels = torch.arange(100) % classes
    logits = torch.zeros(100, classes)
    logits[:, 7] = 1e4
    metrics = measured(logits, labels)
    assert metrics["accuracy"] == 0.01
    assert metrics["ece"] == metrics["signed_ece"] == metrics["adaptive_ece"] == pytest.approx(0.99)
    assert metrics["freq_90"] == 1
    assert metrics["unc_90"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_extreme_logits_have_a_finite_nll(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=dtype)
    metrics = measured(logits, torch.tensor([1, 1]))
    assert metrics["nll"] == pytest.approx(1e4, rel=1e-3)
    assert metrics["brier"] == 1


def test_uniform_guessing():
    metrics = measured(torch.zeros(1000, 1000), torch.arange(1000))
    assert metrics["nll"] == pytest.approx(math.log(1000))
    assert metrics["brier"] == pytest.approx(1 - 1 / 1000)
    assert metrics["accuracy"] == pytest.approx(1 / 1000)
    assert metrics["ece"] == pytest.approx(0)


def test_top_5_of_3_classes_is_always_correct():
    assert measured(*classified(20, 3))["top5"] == 1


def test_a_ratio_with_denominator_0_is_nan():
    metrics = measured(
        torch.zeros(4, 10), torch.zeros(4, dtype=torch.long)
    )  # no image is certain, and all predictions are class 0
    assert math.isnan(metrics["acc_90"])
    assert math.isnan(metrics["iou_90"])
    assert math.isnan(metrics["unc_90"])
    assert metrics["iou"] == 1


@given(n=st.integers(2, 60), classes=st.sampled_from([2, 10]), bins=st.sampled_from([5, 10, 40]), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_the_interval_of_ece_includes_the_estimate(n, classes, bins, seed):
    """Resampling inflates ECE, so a percentile interval can be entirely above the estimate."""
    s = scores(*classified(n, classes, seed=seed))
    interval = statistic_interval(
        lambda w: np.array(list(summary(s, w, bins=bins).values())[4:7]), n, resamples=60, within=([0, -1, 0], 1)
    )
    assert (interval.low <= interval.value).all()
    assert (interval.value <= interval.high).all()
    assert (interval.low[[0, 2]] >= 0).all()


def simulated(n, excess, simulations=60):
    """Confidences and correctness of a model that is right ``excess`` less often than it says."""
    generator = np.random.default_rng(1)
    confidence = generator.uniform(0.4, 1, (simulations, n))
    return confidence, (generator.random((simulations, n)) < confidence - excess).astype(float)


@pytest.mark.parametrize(("n", "excess"), [(200, 0), (200, 0.03), (500, 0.05)])
def test_the_debiased_ece_is_nearer_to_the_true_one(n, excess):
    """The true ECE is the excess, as it is the same in every bin."""
    confidence, correct = simulated(n, excess)
    plain = ece_of_points(confidence, correct, 15, 2, 0).value
    value, low, high = np.transpose([debiased_ece(c, y, 15, 200, 0) for c, y in zip(confidence, correct, strict=True)])
    assert abs(value.mean() - excess) < abs(plain.mean() - excess)
    assert ((low <= excess) & (excess <= high)).mean() > (0.92 if excess == 0 else 0.8)
    assert ((low <= value) & (value <= high)).all()


def test_the_debiased_ece_of_a_calibrated_model_may_be_zero_and_of_another_may_not():
    confidence = np.full(100, 0.75)
    assert debiased_ece(confidence, np.arange(100) % 4 != 0, 10, 100, 0).low == 0
    assert debiased_ece(confidence, np.arange(100) % 4 == 0, 10, 100, 0).low > 0.35
    assert np.isnan(debiased_ece(confidence[:1], confidence[:1], 10, 100, 0)).all()


def test_proportions_have_the_intervals_of_proportions():
    """20 of 20 correct and certain: the bootstrap would say 100% to 100%.  Unc-90 counts no image."""
    logits, labels = 50 * torch.eye(10, dtype=torch.float64)[torch.arange(20) % 10], torch.arange(20) % 10
    result = calibration(Echo(), [(logits[..., None, None], labels)])
    rows = {row["metric"]: row for row in result.rows()}
    for metric in ("accuracy", "top5", "acc_90", "freq_90"):
        assert [rows[metric][end] for end in ("value", "low", "high")] == pytest.approx([1, 0.025 ** (1 / 20), 1])
    assert math.isnan(rows["unc_90"]["low"])
    _, accuracy, share = result.arrays["reliability"][:, :, -1].T
    assert accuracy == pytest.approx([1, 0.025 ** (1 / 20), 1])
    assert share == pytest.approx([1, 0.025 ** (1 / 20), 1])


@pytest.mark.parametrize("entries", [1, 10**6])
def test_ece_of_many_points_equals_that_of_each_point(monkeypatch, entries):
    monkeypatch.setattr("backlight.numerics.calibration.ENTRIES_AT_ONCE", entries)
    several = [scores(*classified(50, 10, seed=seed)) for seed in range(3)]
    confidence, correct = (
        np.stack(column) for column in zip(*((s.confidence, s.prediction == s.label) for s in several), strict=True)
    )
    together = ece_of_points(confidence, correct.astype(float), 7, 60, 3)
    for p, s in enumerate(several):
        alone = statistic_interval(
            lambda w, s=s: np.array(summary(s, w, bins=7)["ece"]), 50, resamples=60, seed=3, within=(0, 1)
        )
        assert [ends[p] for ends in together] == pytest.approx(list(map(float, alone)), abs=1e-12)
    assert [ends.shape for ends in ece_of_points(np.zeros((0, 5)), np.zeros((0, 5)), 7, 60, 3)] == [(0,)] * 3
    assert np.isnan(ece_of_points(confidence[:, :1], correct[:, :1].astype(float), 7, 60, 3).low).all()


# --- the analysis


def metrics_of(model, data, **settings):
    return {row["metric"]: row for row in calibration(model, data, **settings).rows()}


class Echo(nn.Module):
    """Returns its input: images (B, K, 1, 1) are its logits."""

    def forward(self, images):
        return images.flatten(1)


def test_the_analysis_returns_the_metrics():
    logits, labels = classified(60, 10)
    result = calibration(Echo(), batches(logits[:, :, None, None].float(), 16, labels), resamples=50)
    known = measured(logits.float(), labels)
    rows = {row["metric"]: row["value"] for row in result.rows()}
    assert 0 <= rows.pop("ece_debiased") < rows["ece"]
    assert rows == pytest.approx(known)
    assert result.provenance["images"] == 60
    assert result.arrays["reliability"].shape == (3, 3, 10)
    diagram = reliability(scores(logits.float(), labels), np.ones(60), bins=10)
    np.testing.assert_allclose(result.arrays["reliability"][0], diagram, atol=1e-12)


@pytest.mark.parametrize("wrong", [1, 15])
def test_every_value_is_in_its_interval_and_every_interval_in_its_range(wrong):
    """With 39 of 40 correct the reflection of the resamples exceeds 1."""
    logits, labels = classified(40, 9, sharpness=3.0)
    logits[torch.arange(40), labels] = 20
    logits[:wrong] = logits[:wrong].roll(1, 1)
    result = calibration(Echo(), batches(logits[:, :, None, None].float(), 40, labels))
    for row in result.rows():
        metric = row["metric"]
        assert row["low"] <= row["value"] <= row["high"], metric
        assert row["low"] >= (-1 if metric == "signed_ece" else 0), metric
        assert row["high"] <= {"nll": math.inf, "brier": 2}.get(metric, 1), metric
    diagram = result.arrays["reliability"]
    assert 0 <= np.nanmin(diagram) <= np.nanmax(diagram) <= 1


def test_the_interval_of_accuracy_is_about_the_normal_one():
    labels = torch.arange(400) % 2
    logits = 9.0 * torch.stack([labels == 0, labels == 1], dim=1)
    logits[:80] = logits[:80].flip(1)  # 80% correct
    row = metrics_of(Echo(), batches(logits[:, :, None, None], 100, labels), resamples=2000)["accuracy"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert row["value"] == pytest.approx(0.8)
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=0.08)


def test_batches_do_not_matter():
    images, labels = labelled_images(12)
    model = decisive(strength=1.0)
    one, three = (calibration(model, batches(images, size, labels), resamples=50) for size in (12, 4))
    for a, b in zip(one.rows(), three.rows(), strict=True):
        assert list(a.values())[2:] == pytest.approx(list(b.values())[2:], abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(("strength", "verdict"), [(0.1, "holds"), (50.0, "does not hold")])
def test_the_claim_is_decided_by_the_sign_of_confidence_minus_accuracy(strength, verdict):
    """A model that is always correct with low confidence is under-confident; a confident one that is often wrong is not."""
    images, labels = labelled_images(40)
    if verdict == "does not hold":
        labels = labels.roll(1)
    (claim,) = calibration(decisive(strength=strength), batches(images, 20, labels), resamples=100).claims
    assert claim.verdict == verdict
    assert claim.low <= claim.value <= claim.high


def test_a_calibrated_model_leaves_the_claim_undecided():
    logits, labels = torch.zeros(40, 2, 1, 1), torch.arange(40) % 2  # confidence and accuracy of one half
    (claim,) = calibration(Echo(), batches(logits, 40, labels), resamples=100).claims
    assert claim.verdict == "undecided"


def test_models_without_units_are_measured_too():
    images, labels = noise(8, 3, 8, 8), torch.arange(8) % 4
    model = nn.Sequential(stem(3), nn.Flatten(), nn.Linear(192, 4))
    with unchanged(model.train()):
        assert calibration(model, batches(images, 4, labels), resamples=10).provenance["images"] == 8


@pytest.mark.parametrize(
    ("model", "labels", "says"),
    [
        (tower(classes=4), torch.tensor([0, 1, 2, 4]), "label 4 .* classes are 0 to 3"),
        (tower(classes=4), torch.tensor([0, 1, -1, 3]), "label -1 "),
        (tower(classes=4), None, "no tensor of labels"),
        (tower(classes=4), torch.eye(4), r"labels of shape \(4, 4\)"),
        (tower(classes=4), torch.tensor([0.0, 1, 2, 3]), "type float32"),
        (tower(classes=4), torch.tensor([0, 1]), r"each of 4 images.*shape \(2,\)"),
        (stem(3), torch.tensor([0, 1, 2, 3]), r"returns \(4, 3, 8, 8\)"),
        (nn.Sequential(tower(classes=4), nn.Softmax(1)), torch.tensor([0, 1, 2, 3]), "probabilities"),
    ],
)
def test_refuses_in_one_sentence(model, labels, says):
    images = noise(4, 3, 8, 8)
    with unchanged(model.train()), pytest.raises(UserError, match=says) as refusal:
        calibration(model, [images if labels is None else (images, labels)])
    assert "\n" not in str(refusal.value)


def test_integers_of_any_width_are_labels():
    images, labels = labelled_images(8)
    for dtype in (torch.int16, torch.int32, torch.uint8):
        row = metrics_of(decisive(), batches(images, 8, labels.to(dtype)), resamples=10)["accuracy"]
        assert row["value"] == 1


def test_needs_at_least_one_bin():
    with pytest.raises(UserError, match="bins is 0; it must be at least 1"):
        calibration(tower(), [noise(2, 3, 8, 8)], bins=0)


def test_needs_images():
    with pytest.raises(UserError, match="no images"):
        calibration(tower(), [])


# --- temperature


@pytest.mark.parametrize(("margin", "right"), [(3.0, 0.8), (0.4, 0.7), (11.0, 0.51), (1.7, 0.95)])
def test_the_temperature_of_two_logits_in_closed_form(margin, right):
    """All images have one confidence: scaling makes it the accuracy, sigmoid(margin / T)."""
    labels = (torch.arange(100) < 100 * right).long()
    logits = torch.tensor([[0.0, margin]], dtype=torch.float64).repeat(100, 1)
    assert temperature(logits, labels) == pytest.approx(margin / math.log(right / (1 - right)), rel=1e-9)


@pytest.mark.parametrize("sharpness", [0.2, 2.0, 30.0])
def test_the_temperature_has_the_smallest_nll_of_a_fine_grid(sharpness):
    logits, labels = classified(300, 10, seed=4)
    logits = sharpness * logits
    best = temperature(logits, labels)
    nll = [nn.functional.cross_entropy(logits / t, labels).item() for t in best * np.linspace(0.9, 1.1, 2001)]
    assert int(np.argmin(nll)) == 1000
    far = [nn.functional.cross_entropy(logits / t, labels).item() for t in np.geomspace(0.01, 100, 400)]
    assert nll[1000] <= min(far)
    assert temperature(5 * logits + 7, labels) == pytest.approx(5 * best, rel=1e-9)


def test_without_a_minimum_of_the_nll_the_temperature_is_a_bound_of_the_search():
    logits, labels = classified(20, 3)
    right, wrong = nn.functional.one_hot(labels, 3).double(), nn.functional.one_hot((labels + 1) % 3, 3).double()
    for logits, bound in ((right, 0.001), (wrong, 1000)):
        value, low, high = temperature_interval(logits, labels, resamples=10)
        assert value == bound
        assert math.isnan(low)
        assert math.isnan(high)


@pytest.mark.parametrize(("n", "classes"), [(30, 2), (300, 10)])
def test_the_interval_of_the_temperature_equals_that_of_refitting(n, classes):
    logits, labels = classified(n, classes, sharpness=1.0)
    value, low, high = temperature_interval(logits, labels, resamples=60, seed=5)
    refitted = []
    for counted in counts(n, 60, 5):
        for weights in counted.astype(int):
            drawn = np.repeat(np.arange(n), weights)
            refitted.append(temperature(logits[drawn], labels[drawn]))
    assert [low, high] == pytest.approx(np.quantile(refitted, [0.025, 0.975]), rel=1e-6)
    assert low < value < high


def test_the_interval_of_the_temperature_does_not_depend_on_chunks(monkeypatch):
    logits, labels = classified(50, 7)
    unsplit = temperature_interval(logits, labels, resamples=20)
    monkeypatch.setattr("backlight.numerics.calibration.SLOPES_AT_ONCE", 7 * 8)
    assert temperature_interval(logits, labels, resamples=20) == pytest.approx(unsplit, rel=1e-12)


def test_scaling_is_fitted_on_one_half_and_measured_on_the_other():
    logits, labels = classified(200, 10, sharpness=3.0)
    logits = logits.float()  # as the model returns them
    data = batches(logits[:, :, None, None], 64, labels)
    result = calibration(Echo(), data, temperature=True, resamples=40, seed=2)
    half, tested = halves(200, 2)
    assert sorted([*half.tolist(), *tested.tolist()]) == list(range(200))
    t = temperature(logits[half], labels[half])
    rows = {row["metric"]: row for row in result.rows()}
    assert rows["temperature"]["value"] == pytest.approx(t, rel=1e-9)
    before, after = measured(logits[tested], labels[tested]), measured(logits[tested] / t, labels[tested])
    for metric in ("nll", "brier", "ece", "signed_ece", "adaptive_ece"):
        assert rows[f"{metric}_unscaled"]["value"] == pytest.approx(before[metric])
        assert rows[f"{metric}_scaled"]["value"] == pytest.approx(after[metric])
        assert rows[f"{metric}_scaled_change"]["value"] == pytest.approx(after[metric] - before[metric])
    for row in rows.values():
        assert row["low"] <= row["value"] <= row["high"]
    assert after["accuracy"] == before["accuracy"]
    diagram = reliability(scores(logits[tested] / t, labels[tested]), np.ones(100), bins=10)
    np.testing.assert_allclose(result.arrays["reliability_scaled"][0], diagram, atol=1e-12)
    assert result.provenance["temperature"]["images"] == 100
    assert result.provenance["temperature"]["on"] == "half"


def test_scaling_corrects_an_over_confident_model():
    logits, labels = classified(400, 10, sharpness=1.0)
    true = logits.softmax(1)
    labels = torch.multinomial(true, 1, generator=torch.Generator().manual_seed(0))[:, 0]  # now the logits are calibrated
    rows = metrics_of(Echo(), batches(3 * logits[:, :, None, None], 100, labels), temperature=True, resamples=100)
    assert rows["temperature"]["low"] < 3 < rows["temperature"]["high"]
    assert rows["nll_scaled_change"]["high"] < 0
    assert rows["ece_scaled_change"]["high"] < 0


def test_without_a_temperature_there_are_no_scaled_metrics():
    logits, labels = classified(40, 5)
    data = batches(logits[:, :, None, None], 8, labels)
    plain, scaled = (calibration(Echo(), data, temperature=t, resamples=10) for t in (False, True))
    assert scaled.table[: len(plain.table)] == plain.table
    assert not any("scaled" in row["metric"] for row in plain.table)
    assert list(plain.arrays) == ["reliability", "per_image/correct", "per_image/scores"]


def test_a_temperature_can_be_fitted_on_other_data(tmp_path):
    logits, labels = classified(60, 10, seed=1)
    others, theirs = classified(90, 10, seed=2)
    data, held_out = batches(logits[:, :, None, None], 16, labels), batches(others[:, :, None, None], 32, theirs)
    model = Echo().train()
    with unchanged(model):
        result = calibration(model, data, held_out=held_out, resamples=20)
    rows = {row["metric"]: row["value"] for row in result.rows()}
    assert rows["temperature"] == pytest.approx(temperature(others, theirs))
    assert rows["nll_unscaled"] == pytest.approx(rows["nll"])  # all images are tested
    assert rows["nll_scaled"] == pytest.approx(measured(logits / rows["temperature"], labels)["nll"])
    assert load(result.save(tmp_path / "calibration")).provenance["settings"]["temperature"]["on"] == "held_out"


def test_scaling_needs_images():
    logits, labels = classified(3, 4)
    with pytest.raises(UserError, match="there are 3: give 4 or more"):
        calibration(Echo(), batches(logits[:, :, None, None], 3, labels), temperature=True)
    with pytest.raises(UserError, match="the held-out data are empty"):
        calibration(Echo(), batches(logits[:, :, None, None], 3, labels), held_out=[])


def test_the_page_shows_scaling_in_a_tab():
    from backlight.report.sections.calibration import SECTION

    logits, labels = classified(60, 10)
    data = batches(logits[:, :, None, None], 16, labels)
    plain, scaled = (calibration(Echo(), data, temperature=t, resamples=10) for t in (False, True))
    assert [chart.tab for chart in SECTION.figures([plain])[0]] == [""]
    assert [chart.tab for chart in SECTION.figures([plain, scaled])[0]] == ["As trained", "After temperature scaling"]
    assert SECTION.derived["calibration/scaled"](plain) == []
    assert len(SECTION.derived["calibration/scaled"](scaled)) > 3
    rows = {name: cells for name, _, cells in SECTION.metrics([plain, scaled]).rows}
    assert rows["Temperature"][0] == "–"
    assert "[" in rows["Temperature"][1]


def test_the_excess_of_ece_is_what_resampling_adds():
    """The closed form against the mean ECE of many resamples."""
    confidence, correct = (x[0] for x in simulated(300, 0.05, 1))
    plain = ece_of_points(confidence[None], correct[None], 10, 2, 0).value[0]
    gaps = np.where(np.ceil(10 * confidence)[:, None] == np.arange(1, 11), (confidence - correct)[:, None], 0)
    resampled = np.concatenate([np.abs(w @ gaps).sum(1) / 300 for w in counts(300, 5000, 1)])
    assert debiased_ece(confidence, correct, 10, 20, 0).value == pytest.approx(2 * plain - resampled.mean(), abs=1e-3)
