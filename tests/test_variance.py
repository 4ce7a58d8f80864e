"""Variance of the stream of models whose units change it by a known factor."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from known_models import Residual, averaging, batches, binomial, blur, identity, noise, pointwise, sharpen, stem, tower
from torch import nn

from backlight import variance
from backlight.analyses.variance.measure import (
    ACCUMULATES,
    CLAIMS,
    LOWERS_AT_ENDS,
    PEAKS,
    sample_variance,
    spatial_variance,
)
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
    claims = variance(tower(unit()), batches(noise(24, 3, 8, 8), 4)).claims
    assert [claim.verdict for claim in claims if "Convolutions" in claim.statement] == ([verdict] if verdict else [])


# --- claims about depth and stages


def scaling(factor):
    """A unit that multiplies the stream by a factor, so that it adds 2 log(factor) to the log of the variance."""
    return pointwise((factor - 1) * torch.eye(3))


class Halving(nn.Module):
    """A unit of stride 2 whose stream is every second pixel, times a factor."""

    def __init__(self, factor):
        super().__init__()
        self.skip, self.branch = stem(3), stem(3)
        self.skip.stride = self.branch.stride = (2, 2)
        with torch.no_grad():
            self.branch.weight *= factor - 1
        self.out = nn.Identity()

    def forward(self, x):
        return self.out(self.skip(x) + self.branch(x))


class Spread(nn.Module):
    """Attention of each position to itself alone: a branch that is `factor` - 1 times the stream."""

    def __init__(self, factor):
        super().__init__()
        self.query, self.value = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.query.weight.copy_(1e7 * torch.eye(3))  # a softmax of cosines picks the position itself
            self.value.weight.copy_((factor - 1) * torch.eye(3))
        self.project = nn.Identity()

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        directions = nn.functional.normalize(tokens, dim=-1)
        weights = (self.query(directions) @ directions.transpose(1, 2)).softmax(-1)
        return self.project((weights @ self.value(tokens)).transpose(1, 2).reshape(x.shape))


def attending(factor):
    return Residual(Spread(factor))


def smooth(n=24, side=32):
    """Images of which every second pixel has the same variance as all: waves of a few cycles."""
    cycles = (torch.fft.fftfreq(side) * side).abs()
    waves = (cycles < 3)[:, None] & (cycles < 3)
    return torch.fft.ifft2(torch.fft.fft2(noise(n, 3, side, side).double()) * waves).real


def claims_of(*units, **settings):
    result = variance(tower(*units).double(), batches(smooth(), 6), **settings)
    return {claim.statement: claim for claim in result.claims}, values(result)


@pytest.mark.parametrize(("factor", "verdict"), [(2, "holds"), (0.5, "does not hold"), (1, "undecided")])
def test_variance_accumulates_with_depth(factor, verdict):
    claims, after = claims_of(*[scaling(factor)] * 3) if factor != 1 else claims_of(identity(), averaging(1.0))
    claim = claims[ACCUMULATES[1]]
    assert claim.value == pytest.approx(6 * math.log(factor), abs=1e-6)
    assert claim.value == pytest.approx(math.log(after[-1] / after[0]), abs=1e-6)
    assert (claim.verdict if abs(claim.value) > 1e-9 else "undecided") == verdict
    assert claim.source == "Figure 9"


def test_depth_needs_more_than_one_unit_and_stages_more_than_one_stage():
    assert list(claims_of(scaling(2))[0]) == [CLAIMS["mlp"][1]]
    claims, _ = claims_of(attending(2), scaling(2), attending(2))
    assert set(claims) == {CLAIMS["attention"][1], CLAIMS["mlp"][1], ACCUMULATES[1]}


@pytest.mark.parametrize(
    ("units", "verdict", "step"),
    [
        # after the units 4, 16 | 1, 4, 16 | 1: the ends are 16, their largest rivals 4
        ([(scaling, 2), (scaling, 2), (Halving, 0.25), (scaling, 2), (scaling, 2), (Halving, 0.25)], "holds", math.log(4)),
        # 4, 16 | 64, 256: it rises to the end and does not fall afterwards
        ([(scaling, 2), (scaling, 2), (Halving, 2), (scaling, 2)], "does not hold", -math.log(4)),
        # 4, 1 | 1/4, 1: it falls afterwards, but the end is not the largest of its stage
        ([(scaling, 2), (scaling, 0.5), (Halving, 0.5), (scaling, 2)], "does not hold", -math.log(4)),
        # 4 | 1/4, 1 | 64: one end is 16 times its rival, the other 1/64 of it
        ([(scaling, 2), (Halving, 0.25), (scaling, 2), (Halving, 8)], "does not hold", -math.log(2)),
    ],
)
def test_variance_peaks_at_the_end_of_a_stage(units, verdict, step):
    claims, _ = claims_of(*[unit(factor) for unit, factor in units])
    claim = claims[PEAKS[1]]
    assert claim.value == pytest.approx(step, abs=0.02)  # fewer positions: the unbiased variance is larger by 1/n
    assert claim.verdict == verdict
    assert f"mean of {sum(unit is Halving for unit, _ in units)} stages" in claim.quantity


@pytest.mark.parametrize(
    ("units", "ratios"),
    [
        ([(scaling, 3), (attending, 0.5), (Halving, 1), (attending, 0.5)], [1 / 4, 1 / 4]),
        ([(attending, 0.5), (scaling, 3), (Halving, 1), (attending, 3), (scaling, 3)], [1 / 4, 9]),  # MLPs are behind it
        ([(attending, 0.5), (Halving, 1), (blur, None), (attending, 4), (scaling, 2)], [1 / 4, 16]),
        ([(attending, 0.5), (blur, None), (Halving, 1), (attending, 2), (attending, 3)], [9]),  # only the last of a stage
    ],
)
def test_attention_at_the_end_of_a_stage_lowers_the_variance(units, ratios):
    claims, _ = claims_of(*[unit() if factor is None else unit(factor) for unit, factor in units])
    claim, mean = claims[LOWERS_AT_ENDS[1]], np.log(ratios).mean()
    assert claim.value == pytest.approx(mean, abs=1e-3)
    assert claim.verdict == ("holds" if mean < 0 else "does not hold")
    assert f"mean of {len(ratios)} attention" in claim.quantity


def test_only_streams_after_units_are_compared():
    """A stream before the first unit of a stage, which may be an activation beside the stream, ends no stage."""

    class Preactivated(Halving):
        def __init__(self, factor):
            super().__init__(factor)
            self.act = nn.Conv2d(3, 3, 1, bias=False)
            self.act.weight.data = 0.01 * torch.eye(3)[:, :, None, None]

        def forward(self, x):
            return super().forward(self.act(x))

    claims, after = claims_of(scaling(2), scaling(2), Preactivated(1), scaling(2))
    assert claims[PEAKS[1]].value == pytest.approx(math.log(after[2] / after[1]), abs=1e-6)
    assert claims[PEAKS[1]].verdict == "holds"


def test_without_attention_at_an_end_its_claim_is_not_tested():
    claims, _ = claims_of(attending(0.5), blur(), Halving(1), scaling(2))
    assert PEAKS[1] in claims
    assert LOWERS_AT_ENDS[1] not in claims


def test_claims_of_the_normalised_variance_say_so():
    claims, _ = claims_of(scaling(2), scaling(2), normalise=True)
    assert all(claim.quantity.startswith("log of normalised variance") for claim in claims.values())
    assert claims[ACCUMULATES[1]].value == pytest.approx(0, abs=1e-6)


def test_the_interval_of_a_claim_about_depth_is_over_images():
    """A unit that sets each image's contrast back to one: its ratio varies from image to image as 1 / variance does."""
    images = noise(60, 3, 8, 8).double() * (1 + torch.arange(60)[:, None, None, None] / 30)
    result = variance(tower(Standardising(), scaling(2)).double(), batches(images, 20))
    claim = next(claim for claim in result.claims if claim.statement == ACCUMULATES[1])
    logs = math.log(4) - images.var((2, 3)).mean(1).log().numpy()
    assert claim.value == pytest.approx(logs.mean(), abs=1e-6)
    half = 1.96 * logs.std() / math.sqrt(60)
    assert [claim.low - claim.value, claim.high - claim.value] == pytest.approx([-half, half], rel=0.2)


class Standardising(nn.Module):
    """A unit whose stream is the image divided by its standard deviation."""

    def __init__(self):
        super().__init__()
        self.norm = Contrast()

    def forward(self, x):
        return x + self.norm(x)


class Contrast(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 3, 1, bias=False)
        self.weight.data = torch.eye(3)[:, :, None, None]

    def forward(self, x):
        x = super().forward(x)
        return x / x.var((2, 3), keepdim=True).mean(1, keepdim=True).sqrt() - x


# --- claims about kinds


def test_claims_can_hold_or_not():
    halving, doubling = pointwise(-0.5 * torch.eye(3)), pointwise(torch.eye(3))
    (raised,) = variance(tower(doubling), batches(noise(24, 3, 8, 8), 4)).claims
    (lowered,) = variance(tower(halving), batches(noise(24, 3, 8, 8), 4)).claims
    assert (raised.verdict, lowered.verdict) == ("holds", "does not hold")
    assert raised.value == pytest.approx(math.log(4))
    assert lowered.value == pytest.approx(-math.log(4))
    assert "MLPs" in raised.statement


def test_a_blank_image_does_not_make_claims_nan():
    images = noise(24, 3, 8, 8)
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


def test_claims_over_samples_count_mini_batches():
    """One number for each batch: 12 batches are 12, not 48 images, and 8 are too few."""
    images = noise(48, 3, 8, 8)
    enough, few = (variance(tower(blur()), batches(images, size), over="samples").claims[0] for size in (4, 6))
    assert (enough.count, enough.over, enough.verdict) == (12, "mini-batches", "holds")  # 1 + H is at least 1
    assert (few.count, few.verdict) == (8, "undecided")
    assert variance(tower(blur()), batches(images, 4)).claims[0].over == "images"
