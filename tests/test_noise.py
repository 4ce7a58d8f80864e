"""Noise by frequency on models that respond to some frequencies only, and against a loop written with NumPy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from known_models import averaging, batches, identity, unchanged
from torch import nn

from backlight.analyses.noise import noise
from backlight.errors import UserError
from backlight.numerics.bootstrap import skewed_mean_interval
from backlight.numerics.frequency_bands import band, confined, signs
from backlight.numerics.proportions import paired_difference_interval, share_interval

GREY = {"mean": (0.0,), "std": (1.0,)}
MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)


class Detector(nn.Module):
    """Answers 1 if the image has amplitude within a band of frequencies, else 0."""

    def __init__(self, low, high, *units):
        super().__init__()
        self.low, self.high = low, high
        self.units = nn.Sequential(*units)

    def forward(self, images):
        images = self.units(images)
        amplitude = confined(images, band(images.shape[-2:], self.low, self.high)).square().mean((1, 2, 3)).sqrt()
        return torch.stack([torch.full_like(amplitude, 2.0), 1000 * amplitude], 1)


class Linear(nn.Module):
    """Random class scores of the pixels."""

    def __init__(self, channels, size, classes=4):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(classes, channels * math.prod(size), generator=generator).double())

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def grey(n=24, side=24, channels=1):
    """Flat images of label 0, which a detector answers correctly until it detects something."""
    return [(torch.full((n, channels, side, side), 0.5), torch.zeros(n, dtype=torch.long))]


def coloured(n=20, size=(9, 14), batch=7):
    """Random pixels, normalised, in float64, with labels that a random model answers correctly by chance."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(n, 3, *size, generator=generator, dtype=torch.float64)
    mean, std = (torch.tensor(statistic, dtype=torch.float64).view(3, 1, 1) for statistic in (MEAN, STD))
    images = (pixels - mean) / std
    parts = list(zip(images.split(batch), (torch.arange(n) % 4).split(batch), strict=True))
    return pixels, parts


WIDE = {"frequencies": (0.25, 0.75), "width": 0.5}


# --- accuracy and NLL


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.45), (0.55, 1.0)])
def test_noise_costs_accuracy_at_the_frequencies_that_the_model_detects_and_nowhere_else(low, high):
    rows = noise(Detector(low, high, identity_of(1)), grey(), **GREY).rows()
    assert len(rows) == 9 * 3
    for row in rows:
        detected = low < row["frequency"] < high
        assert row["accuracy_change"] == (-1 if detected else 0), row["frequency"]
        assert row["accuracy_change_low"] == pytest.approx(-1 if detected else -(1.96**2) / (24 + 1.96**2), rel=1e-4)  # Tango's
        assert (row["nll_change"] > 1) == detected


def identity_of(channels):
    """A convolutional unit that adds nothing."""
    unit = identity()
    return unit if channels == 3 else _one(unit)


def _one(unit):
    unit.branch = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.zeros_(unit.branch.weight)
    return unit


@pytest.mark.parametrize("paper", [False, True])
def test_equals_a_loop_in_numpy(paper):
    """Odd sides, three channels, a normalisation, in float64: masks over the whole plane, image by image."""
    pixels, data = coloured()
    model, size = Linear(3, (9, 14)), (9, 14)
    result = noise(model, data, **WIDE, severities=(0.1, 0.3), paper=paper, mean=MEAN, std=STD, resamples=100, seed=5)
    weight, labels = model.weight.detach().numpy(), np.arange(len(pixels)) % 4
    ring = np.array([[max(2 * min(y, 9 - y) / 9, 2 * min(x, 14 - x) / 14) for x in range(14)] for y in range(9)])

    def answers(images):
        normal = (images - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
        scores = normal.reshape(len(images), -1) @ weight.T
        nll = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(images)), labels]
        return np.stack([scores.argmax(1) == labels, nll])

    clean = answers(pixels.numpy())
    for row in result.rows():
        mask = (ring >= row["from"]) & ((ring < row["to"]) | (row["to"] == 1))
        assert row["bins"] == mask.sum()
        noisy, size = [], []
        for position, image in enumerate(pixels.numpy()):
            white = signs(torch.tensor([position]), (3, 9, 14), seed=5)[0].double().numpy()
            field = np.fft.ifft2(np.fft.fft2(white) * mask)
            assert np.abs(field.imag).max() < 1e-12
            if not paper:
                field = field / np.sqrt((field.real**2).mean())
            noisy.append(np.clip(image + row["severity"] * field.real, 0, 1))
            size.append(np.sqrt(((noisy[-1] - image) ** 2).mean()))
        noisy_scores = answers(np.stack(noisy))
        for values, column in ((noisy_scores[0], "accuracy"), (noisy_scores[1], "nll"), (np.array(size), "rms")):
            expected = share_interval(values) if column == "accuracy" else skewed_mean_interval(values, resamples=100, seed=5)
            assert [row[column + end] for end in ("", "_low", "_high")] == pytest.approx(list(map(float, expected)), abs=1e-9)
        nll_change = skewed_mean_interval(noisy_scores[1] - clean[1], resamples=100, seed=5)
        changes = {"accuracy_change": paired_difference_interval(noisy_scores[0], clean[0]), "nll_change": nll_change}
        for column, expected in changes.items():
            assert [row[column + end] for end in ("", "_low", "_high")] == pytest.approx(list(map(float, expected)), abs=1e-9)
    for values, score in zip(clean, ("accuracy", "nll"), strict=True):
        expected = share_interval(values) if score == "accuracy" else skewed_mean_interval(values, resamples=100, seed=5)
        assert result.provenance["clean"][score] == pytest.approx(list(map(float, expected)))


# --- the noise


def test_every_band_has_the_same_energy_unless_it_is_clipped():
    images = [(torch.rand(6, 1, 28, 28, dtype=torch.float64), torch.zeros(6, dtype=torch.long))]
    model = Detector(0.4, 0.6)
    for row in noise(model, images, **GREY, clip=False).rows():
        assert [row["rms"], row["rms_low"], row["rms_high"]] == pytest.approx([row["severity"]] * 3)
    clipped = noise(model, images, **GREY, severities=(0.5,)).rows()
    assert all(0.1 < row["rms"] < 0.45 for row in clipped)


def test_with_the_papers_noise_every_frequency_has_the_same_amplitude():
    """Parseval: the energies of the bands add up to that of the white noise, exactly."""
    image = [(torch.rand(1, 8, 32, 32, dtype=torch.float64), torch.zeros(1, dtype=torch.long))]
    tenths = {"frequencies": [k / 10 + 0.05 for k in range(10)], "width": 0.1}
    rows = noise(Detector(0, 1), image, mean=[0] * 8, std=[1] * 8, **tenths, severities=(0.2,), paper=True, clip=False).rows()
    assert sum(row["rms"] ** 2 for row in rows) == pytest.approx(0.2**2)
    for row in rows:
        independent = row["bins"] * 8 / 2  # a bin and its conjugate are one complex number, independent of the others
        assert row["rms"] ** 2 == pytest.approx(0.2**2 * row["bins"] / 32**2, rel=4 / math.sqrt(independent))


@pytest.mark.parametrize("clip", [True, False])
def test_pixels_stay_valid_with_clipping_only(clip):
    ranges = []

    class Recording(Linear):
        def forward(self, images):
            ranges.append((images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)).aminmax())
            return super().forward(images)

    noise(Recording(3, (9, 14)), coloured()[1], **WIDE, severities=(0.3,), clip=clip, mean=MEAN, std=STD)
    within = all(low > -1e-6 and high < 1 + 1e-6 for low, high in ranges)
    assert within == clip


def test_noise_depends_only_on_the_seed_and_the_position_of_an_image():
    results = {
        (batch, seed): noise(Linear(3, (9, 14)), coloured(batch=batch)[1], **WIDE, basis=3, mean=MEAN, std=STD, seed=seed)
        for batch, seed in ((7, 0), (3, 0), (20, 0), (20, 1))
    }
    for row, other, third in zip(*(results[batch, 0].rows() for batch in (7, 3, 20)), strict=True):
        for column in row.keys() - {"model"}:
            assert row[column] == pytest.approx(other[column], rel=1e-12)
            assert row[column] == pytest.approx(third[column], rel=1e-12)
    assert (results[7, 0].arrays["basis"] == results[20, 0].arrays["basis"]).all()
    assert results[20, 0].rows()[0]["nll"] != results[20, 1].rows()[0]["nll"]


# --- the heat map


def test_the_heat_map_shows_the_one_wave_that_a_model_detects():
    class WaveDetector(nn.Module):
        def forward(self, images):
            # 3 cycles down, 2 across; on 20 rows 3 cycles are 0.3π
            amplitude = torch.fft.fft2(images)[:, :, 3, 2].abs().mean(1)
            return torch.stack([torch.full_like(amplitude, 2.0), 1000 * amplitude], 1)

    data = [(torch.full((4, 2, 20, 24), 0.5), torch.zeros(4, dtype=torch.long))]
    result = noise(WaveDetector(), data, mean=(0, 0), std=(1, 1), basis=21)
    value, low, high = result.arrays["basis"]
    assert value.shape == (21, 21)
    y, x = result.arrays["basis_frequencies"]
    assert y[0] == x[0] == -1
    assert y[10] == x[10] == 0
    wrong = {(round(10 * y[i]), round(12 * x[j])) for i, j in zip(*np.nonzero(value), strict=True)}
    assert wrong == {(3, 2), (-3, -2)}
    assert set(value[value > 0]) == {1}
    least = 0.025 ** (1 / 4)  # of four images all or none: the end of Clopper & Pearson
    np.testing.assert_allclose(low, np.where(value == 1, least, 0))
    np.testing.assert_allclose(high, np.where(value == 1, 1, 1 - least))


def test_the_heat_map_of_the_centre_is_a_change_of_brightness():
    model = Detector(0, 0.05)  # the answer is replaced below and depends on the mean only
    model.forward = lambda images: torch.stack([torch.zeros(len(images)), (images.mean((1, 2, 3)) - 0.5).abs() - 0.01], 1)
    value = noise(model, grey(), **GREY, basis=5).arrays["basis"][0]
    assert value[2, 2] == value.sum() == 1


# --- the paper's claim


@pytest.mark.parametrize(
    ("unit", "low", "high", "verdicts"),
    [
        (identity_of(3), 0.55, 1.0, ["holds"]),
        (identity_of(3), 0.05, 0.45, ["does not hold"]),
        (averaging(0.0), 0.05, 0.45, ["holds"]),
        (averaging(0.0), 0.55, 1.0, ["does not hold"]),
        (nn.Sequential(identity_of(3), averaging(0.0)), 0.05, 0.45, ["holds", "does not hold"]),
        (nn.Sequential(identity_of(3), averaging(0.0)), 0.55, 1.0, ["does not hold", "holds"]),
        (nn.Sequential(identity_of(3), averaging(0.0)), 2.0, 3.0, ["undecided", "undecided"]),
        (nn.Identity(), 0.55, 1.0, []),
    ],
)
def test_claims_depend_on_the_kinds_of_the_units(unit, low, high, verdicts):
    result = noise(Detector(low, high, unit), grey(channels=3), mean=[0] * 3, std=[1] * 3)
    assert [claim.verdict for claim in result.claims] == verdicts
    value = {0.55: -100, 0.05: 100, 2.0: 0}[low]
    assert [claim.value for claim in result.claims] == pytest.approx([value] * len(verdicts))
    measured, least, most = (100 * x for x in result.provenance["high_less_low"]["accuracy"])
    assert measured == pytest.approx(value)
    assert least <= value <= most
    for claim in result.claims:
        assert claim.statement.split()[0] in {"Attention", "Convolutions"}


def test_the_middle_band_is_neither_high_nor_low():
    result = noise(Detector(0.45, 0.55, identity_of(1)), grey(), **GREY)
    assert sum(row["accuracy_change"] for row in result.rows()) == -3  # one band of three severities
    value, least, most = result.provenance["high_less_low"]["accuracy"]
    assert value == 0
    assert -0.3 < least == -most  # 12 images of which none changes
    assert not noise(Detector(0, 1, identity_of(1)), grey(), **GREY, frequencies=(0.5, 0.7)).claims


# --- side effects, figures, errors


def test_nothing_stays_on_the_model():
    model = Detector(0.05, 0.45, identity_of(1)).train()
    with unchanged(model):
        noise(model, grey(), **GREY, basis=3)


def test_half_precision_models_get_noise_in_full_precision():
    result = noise(Linear(1, (24, 24)).bfloat16(), grey(), **GREY, clip=False)
    assert result.provenance["dtype"] == "bfloat16"
    assert all(row["rms"] == pytest.approx(row["severity"], rel=1e-5) for row in result.rows())


def test_the_heat_map_is_drawn_where_there_is_one():
    mapped = noise(Detector(0.05, 0.45, identity_of(1)), grey(), **GREY, basis=5)
    figure = mapped.figure()
    titles = [ax.get_ylabel() for ax in figure.axes]
    assert titles == ["Change in accuracy (points)", "Change in NLL (nats)", "Vertical frequency", "Error (%)"]
    plain = replace(mapped, arrays={})
    with pytest.raises(UserError, match="no heat map over waves; run noise with basis"):
        plain.draw(figure.axes[0], "basis")
    assert len(plain.figure().axes) == 2


RAMP = torch.linspace(0, 1, 64).view(1, 1, 8, 8).expand(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width is 0.0; it must be above 0"),
        ({"frequencies": ()}, "frequencies is empty"),
        ({"frequencies": (0.02,)}, "width 0.1π around 0.02π reaches outside 0 to 1π"),
        ({"frequencies": (1.0,)}, "width 0.1π around 1π reaches outside 0 to 1π"),
        ({"frequencies": (-0.2,)}, "frequencies is -0.2; it must be at least 0, at most 1"),
        ({"severities": (0.1, -0.1)}, "severities is -0.1; it must be above 0"),
        ({"severities": (math.nan,)}, "severities is nan; it must be above 0"),
        ({"basis": 4}, "basis is 4; it must be odd, at least 3"),
        ({"basis": 1}, "basis is 1; it must be odd, at least 3"),
        ({}, "images of 8 x 8 have no frequency in the band 0.05π to 0.15π around 0.1π; give a width of 0.25"),
        ({**WIDE, "basis": 11}, "fewer than 11 frequencies along a side; give a basis of 9 or less"),
        ({**WIDE, "mean": (0.5,), "std": (2.0,)}, "the pixels run from 0.5 to 2.5, not from 0 to 1"),
        ({**WIDE, "mean": (0, 0, 0), "std": (1, 1, 1)}, "3 and 3 numbers, and the images have 1 channels"),
        ({**WIDE, "mean": None}, "do not say how their images were normalised"),
    ],
)
def test_refuses_in_one_sentence(settings, message):
    model = Detector(0.05, 0.45, identity_of(1)).train()
    with unchanged(model), pytest.raises(UserError, match=message) as refusal:
        noise(model, [(RAMP, torch.zeros(2, dtype=torch.long))], **{**GREY, **settings})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no images"),
        ([RAMP], "no tensor of labels"),
        ([(RAMP, torch.tensor([0, 7]))], "label 7 "),
        ([(RAMP, torch.tensor([0, 1])), (torch.rand(2, 1, 8, 9), torch.tensor([0, 1]))], "images of 8 x 8 and 8 x 9"),
    ],
)
def test_refuses_data_in_one_sentence(data, message):
    with pytest.raises(UserError, match=message):
        noise(Detector(0.05, 0.45), data, **GREY, **WIDE)


def test_one_image_has_no_interval():
    data = batches(torch.full((1, 1, 24, 24), 0.5), 1, torch.tensor([0]))
    result = noise(Detector(0.05, 0.45, identity_of(1)), data, **GREY)
    assert math.isnan(result.rows()[0]["accuracy_change_low"])
    assert {claim.verdict for claim in result.claims} == {"undecided"}
