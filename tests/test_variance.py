"""Variance of the stream of models whose units change it by a known factor."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from known_models import averaging, batches, binomial, blur, identity, noise, pointwise, sharpen, stem, tower
from torch import nn

from backlight import variance
from backlight.analyses.variance.measure import sample_variance, spatial_variance
from backlight.errors import UserError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "analyses.json").read_text())


def formula(shape, i):
    j = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.618 * j * j + i).reshape(shape)


def values(result):
    return [row["variance"] for row in result.rows()]


# --- the authors' numbers


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["shape"]))
def test_the_authors_numbers(case):
    maps = formula(case["shape"], case["i"])
    model = nn.Sequential(stem(maps.shape[1]), nn.Flatten()).double()
    _, row = variance(model, [maps], at=["0"]).rows()
    assert row["variance"] == pytest.approx(case["spatial_variance"], abs=1e-9)


class Tokens(nn.Module):
    """An image as tokens after a class token, one unit, and a head on the class token."""

    def __init__(self, class_token):
        super().__init__()
        self.class_token = nn.Parameter(class_token)
        self.embed, self.unit, self.norm, self.head = nn.Identity(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.embed(torch.cat([self.class_token, x.flatten(2).transpose(1, 2)], dim=1))
        return self.head(self.norm(x + self.unit(x))[:, 0])


def test_the_authors_number_of_tokens_after_a_class_token():
    case = GOLDEN["tokens"]
    tokens = formula(case["shape"], case["i"])
    images = tokens[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    before, *_ = variance(Tokens(tokens[:, :1]).double(), [images]).rows()
    assert before["unit"] == -1
    assert before["variance"] == pytest.approx(case["spatial_variance"], abs=1e-9)


# --- closed forms


def by_parseval(images, gain):
    """Spatial variance of images whose wave (ky, kx) is multiplied by a gain: the energy of all waves except the mean."""
    h, w = images.shape[2:]
    energy = (gain * torch.fft.fft2(images.double()).abs()).square()
    energy[..., 0, 0] = 0
    return (energy.sum((2, 3)) / (h * w) / (h * w - 1)).mean().item()


def test_filters_multiply_the_variance_of_each_wave():
    images = noise(6, 3, 8, 8)
    along = torch.tensor([(1 + math.cos(2 * math.pi * k / 8)) / 2 for k in range(8)], dtype=torch.float64)
    low_pass = along[:, None] * along  # the binomial blur in both directions
    assert low_pass[3, 3] == pytest.approx(binomial(3))
    before, after_blur, after_both = values(variance(tower(blur(), sharpen()), batches(images, 3)))
    assert before == pytest.approx(by_parseval(images, torch.ones(8, 8)), rel=1e-5)
    assert after_blur == pytest.approx(by_parseval(images, 1 + low_pass), rel=1e-5)
    assert after_both == pytest.approx(by_parseval(images, (1 + low_pass) * (2 - low_pass)), rel=1e-5)


def test_units_that_add_zero_or_a_constant_keep_the_variance():
    before, *after = values(variance(tower(identity(), averaging(3.0), identity()), batches(noise(6, 3, 8, 8), 3)))
    assert after[0] == before
    assert after == pytest.approx([before] * 3, rel=1e-5)


def test_pointwise_units_multiply_the_variance():
    """x + x is 2 x, with four times the variance; half of x has a quarter."""
    doubling, halving = pointwise(torch.eye(3)), pointwise(-0.5 * torch.eye(3))
    before, *after = values(variance(tower(doubling, halving, halving), batches(noise(6, 3, 8, 8), 3)))
    assert after == pytest.approx([4 * before, before, before / 4])


# --- the two kinds of variance, written as loops


def slow_variance(numbers):
    mean = sum(numbers) / len(numbers)
    return sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)


def test_both_variances_are_their_definitions():
    maps = noise(4, 2, 3, 5).double()
    for image, value in zip(maps, spatial_variance(maps), strict=True):
        slow = sum(slow_variance(channel.flatten().tolist()) for channel in image) / 2
        assert value.item() == pytest.approx(slow)
    pixels = [maps[:, c, y, x].tolist() for c in range(2) for y in range(3) for x in range(5)]
    assert sample_variance(maps).item() == pytest.approx(sum(map(slow_variance, pixels)) / 30)


def test_over_samples_is_the_mean_over_batches():
    images = noise(12, 3, 8, 8)
    stem_row, row = variance(tower(identity()), batches(images, 4), over="samples").rows()
    known = np.mean([batch.numpy().var(axis=0, ddof=1).mean() for batch in images.split(4)])
    assert stem_row["variance"] == row["variance"] == pytest.approx(known, rel=1e-5)
    assert row["variance_low"] < row["variance"] < row["variance_high"]


def test_the_two_variances_differ():
    """Copies of one image vary over space and not over samples; uniform images of several greys the reverse."""
    same = noise(1, 3, 8, 8).expand(6, -1, -1, -1)
    grey = noise(6, 3, 1, 1).expand(-1, -1, 8, 8)
    model = tower(identity())
    assert values(variance(model, [same]))[0] > 0.5
    assert values(variance(model, [same], over="samples"))[0] == pytest.approx(0, abs=1e-12)
    assert values(variance(model, [grey]))[0] == pytest.approx(0, abs=1e-12)
    assert values(variance(model, [grey], over="samples"))[0] > 0.1


def test_a_last_batch_of_one_image_has_no_variance_over_samples():
    images = noise(5, 3, 8, 8)
    uneven, even = (variance(tower(identity()), data, over="samples") for data in (batches(images, 4), [images[:4]]))
    assert values(uneven) == values(even)
    with pytest.raises(UserError, match="batches of at least 2 images"):
        variance(tower(identity()), batches(images, 1), over="samples")


@pytest.mark.parametrize("over", ["space", "samples"])
def test_the_normalised_variance_does_not_depend_on_the_scale(over):
    images = noise(6, 3, 8, 8)
    data = batches(images, 3)
    plain, loud = (variance(tower(blur()), [scale * x for x in data], over=over) for scale in (1, 10))
    assert values(loud) == pytest.approx([100 * x for x in values(plain)], rel=1e-4)
    plain, loud = (variance(tower(blur()), [s * x for x in data], over=over, normalise=True) for s in (1, 10))
    assert values(loud) == pytest.approx(values(plain), rel=1e-4)
    assert values(plain) == pytest.approx([1, 1], abs=0.1)  # white noise: its mean is about 0


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"over is 'channels'.*; it must be space or samples"):
        variance(tower(blur()), [noise(2, 3, 8, 8)], over="channels")


# --- rows, named modules, claims


def test_at_reads_a_model_without_units():
    vgg = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(200, 5))
    images = noise(4, 3, 16, 16)
    rows = variance(vgg, [images], at=["0", "3"]).rows()
    assert [(row["unit"], row["kind"], row["stage"], row["module"]) for row in rows] == [
        (-1, "stem", 0, "0"), (0, "conv", 0, "0"), (1, "conv", 1, "3"),
    ]  # fmt: skip
    with torch.no_grad():
        maps = vgg[0](images)
    assert rows[0]["variance"] == pytest.approx(spatial_variance(images).mean().item(), rel=1e-5)
    assert rows[1]["variance"] == pytest.approx(spatial_variance(maps).mean().item(), rel=1e-5)
    with torch.no_grad():
        maps = vgg[:4](images)
    assert rows[2]["variance"] == pytest.approx(spatial_variance(maps).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("unit", "verdict"), [(sharpen, "holds"), (identity, "undecided"), (lambda: pointwise(-0.5 * torch.eye(3)), None)]
)
def test_the_claim_of_convolutions(unit, verdict):
    claims = variance(tower(unit()), batches(noise(8, 3, 8, 8), 4)).claims
    assert [claim.verdict for claim in claims if "Convolutions" in claim.statement] == ([verdict] if verdict else [])


def test_claims_can_hold_or_not():
    halving, doubling = pointwise(-0.5 * torch.eye(3)), pointwise(torch.eye(3))
    (raised,) = variance(tower(doubling), batches(noise(8, 3, 8, 8), 4)).claims
    (lowered,) = variance(tower(halving), batches(noise(8, 3, 8, 8), 4)).claims
    assert (raised.verdict, lowered.verdict) == ("holds", "does not hold")
    assert raised.value == pytest.approx(math.log(4))
    assert lowered.value == pytest.approx(-math.log(4))
    assert "MLPs" in raised.statement


def test_a_blank_image_does_not_make_claims_nan():
    images = noise(8, 3, 8, 8)
    images[3] = 0  # variance 0 before and after: 0 / 0
    (claim,) = variance(tower(pointwise(torch.eye(3))), batches(images, 4)).claims
    assert claim.value == pytest.approx(math.log(4))
    assert claim.verdict == "holds"
    assert variance(tower(pointwise(torch.eye(3))), [torch.zeros(4, 3, 8, 8)]).claims == []


def test_the_interval_shrinks_with_the_root_of_the_images():
    def width(n):
        row = variance(tower(identity()), batches(noise(n, 3, 8, 8), 50)).rows()[0]
        return row["variance_high"] - row["variance_low"]

    assert width(400) == pytest.approx(width(100) / 2, rel=0.25)
