"""Lesions of models in which it is known what each unit contributes."""

import copy
import math

import numpy as np
import pytest
import torch
from known_models import (
    Averaging,
    Residual,
    batches,
    blur,
    deciding,
    decisive,
    identity,
    labelled_images,
    noise,
    pointwise,
    reading_upper_channels,
    sharpen,
    tower,
    unchanged,
)
from torch import nn

from backlight import lesion
from backlight.errors import UserError
from backlight.numerics.bootstrap import mean_interval

CLASSES = 4


def data(n=40, size=20):
    images, labels = labelled_images(n, CLASSES)
    return batches(images, size, labels)


def idle():
    return pointwise(torch.zeros(2 * CLASSES, 2 * CLASSES))


def attending(value):
    return Residual(Averaging(value))


# --- what a lesion costs


def test_without_the_unit_that_decides_the_model_guesses():
    whole, louder, deciding_unit, elsewhere = lesion(decisive(CLASSES), data()).rows()
    assert (whole["unit"], whole["kind"], whole["accuracy"]) == (-1, "whole", 1)
    assert deciding_unit["accuracy"] == 1 / CLASSES
    assert deciding_unit["accuracy_change"] == 1 / CLASSES - 1
    assert deciding_unit["nll"] == pytest.approx(math.log(CLASSES))  # all logits equal
    assert louder["accuracy_change"] == elsewhere["accuracy_change"] == 0
    assert elsewhere["nll_change"] == elsewhere["nll_change_low"] == elsewhere["nll_change_high"] == 0


def test_a_lesion_is_a_branch_whose_weights_are_zero():
    """A second way: the last layer of each branch set to zero in a copy of the model."""
    model = tower(blur(), sharpen(), pointwise(noise(3, 3)), classes=CLASSES).eval()
    images, labels = noise(30, 3, 8, 8), torch.arange(30) % CLASSES
    _, *rows = lesion(model, batches(images, 10, labels)).rows()
    for row in rows:
        other = copy.deepcopy(model)
        nn.init.zeros_(other.get_submodule(row["module"]).weight)
        with torch.no_grad():
            logits = other(images)
        assert row["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        assert row["nll"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_change_is_without_minus_whole_with_a_paired_interval():
    images, labels = noise(30, 3, 8, 8), torch.arange(30) % CLASSES
    model = tower(blur(), sharpen(), classes=CLASSES).eval()
    whole, *rows = lesion(model, batches(images, 30, labels), resamples=200, seed=2).rows()
    for i, row in enumerate(rows):
        other = copy.deepcopy(model)
        nn.init.zeros_(other[i + 1].branch.weight)
        with torch.no_grad():
            nll = nn.functional.cross_entropy(model(images), labels, reduction="none")
            without = nn.functional.cross_entropy(other(images), labels, reduction="none")
        paired = mean_interval((without - nll).double().numpy(), resamples=200, seed=2)
        assert row["nll_change"] == pytest.approx(row["nll"] - whole["nll"])
        assert [row[f"nll_change{end}"] for end in ("", "_low", "_high")] == pytest.approx(list(map(float, paired)), abs=1e-6)
        alone = mean_interval(without.double().numpy(), resamples=200, seed=2)
        assert paired.high - paired.low < 0.7 * (alone.high - alone.low)  # pairing pays


def test_an_idle_unit_costs_nothing():
    _, row, _ = lesion(tower(identity(), blur(), classes=CLASSES), [(noise(8, 3, 8, 8), torch.arange(8) % 4)]).rows()
    assert [row[f"{what}_change{end}"] for what in ("accuracy", "nll") for end in ("", "_low", "_high")] == [0] * 6


def test_the_evidence_holds_the_whole_models_intervals():
    images, labels = labelled_images(40, CLASSES)
    labels[:10] = (labels[:10] + 1) % CLASSES
    value, low, high = lesion(decisive(CLASSES), batches(images, 20, labels)).evidence["whole"]["accuracy"]
    assert value == 0.75
    assert low < 0.75 < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.75 * 0.25 / 40), rel=0.15)


# --- the paper's claims


@pytest.mark.parametrize(
    ("units", "verdict"),
    [
        ([pointwise(deciding(CLASSES)), idle()], "holds"),
        ([idle(), pointwise(deciding(CLASSES))], "does not hold"),
        ([idle(), idle()], "undecided"),
    ],
)
def test_the_first_unit_of_a_stage_against_the_last(units, verdict):
    (claim,) = lesion(reading_upper_channels(*units, classes=CLASSES), data()).claims
    assert claim.statement == "Within a stage, losing the first unit hurts more than losing the last."
    assert claim.verdict == verdict
    if verdict != "undecided":
        assert abs(claim.value) == 75  # percentage points, from 100 to chance


@pytest.mark.parametrize(
    ("attention", "other", "verdict"),
    [(deciding(CLASSES), None, "holds"), (None, deciding(CLASSES), "does not hold"), (None, None, "undecided")],
)
def test_the_last_attention_of_a_stage_against_its_last_other_unit(attention, other, verdict):
    nothing = torch.zeros(2 * CLASSES, 2 * CLASSES)
    model = reading_upper_channels(
        idle(),
        attending(nothing if attention is None else attention),
        pointwise(nothing if other is None else other),
        classes=CLASSES,
    )
    claim = lesion(model, data()).claims[1]
    assert claim.statement == "At the end of a stage, losing an attention hurts more than losing another unit."
    assert claim.verdict == verdict


def test_a_model_of_one_unit_a_stage_has_nothing_to_compare():
    assert lesion(reading_upper_channels(pointwise(deciding(CLASSES)), classes=CLASSES), data()).claims == []


# --- refusals


@pytest.mark.parametrize(
    ("model", "labels", "says"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), torch.tensor([0, 1, 2, 3]), "no residual units"),
        (tower(blur(), classes=4), None, "no tensor of them"),
        (tower(blur(), classes=4), torch.tensor([0, 1, 2, 9]), "label 9 "),
        (tower(blur(), classes=4), torch.tensor([0, 1, 2, -100]), "label -100 "),
    ],
)
def test_refuses_in_one_sentence(model, labels, says):
    images = noise(4, 3, 8, 8)
    with unchanged(model.train()), pytest.raises(UserError, match=says) as refusal:
        lesion(model, [images if labels is None else (images, labels)])
    assert "\n" not in str(refusal.value)


def test_one_image_has_no_interval():
    images, labels = labelled_images(1, CLASSES)
    result = lesion(decisive(CLASSES), [(images, labels)])
    assert np.isnan([result.rows()[2]["accuracy_change_low"], result.rows()[2]["nll_change_high"]]).all()
    assert {claim.verdict for claim in result.claims} == {"undecided"}
