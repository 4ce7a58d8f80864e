"""The Fourier analysis of models whose transfer function is known in closed form."""

import json
import math
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from known_models import (
    BINOMIAL,
    Residual,
    averaging,
    batches,
    binomial,
    blur,
    delta_kernel,
    filtering,
    identity,
    noise,
    pointwise,
    sharpen,
    stem,
    tower,
)
from torch import nn

from backlight import fourier, load_data, load_model
from backlight.errors import UserError
from backlight.numerics.frequency import radial_log_amplitude
from backlight.report.sections import lacks, section_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "analyses.json").read_text())
CYCLES = range(5)  # of a map of 8 x 8


def formula(shape, i):
    j = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.618 * j * j + i).reshape(shape)


def curves(result, column="delta"):
    """A list of values by frequency for each unit."""
    return {unit: [row[column] for row in rows] for unit, rows in groupby(result.rows(), key=lambda row: row["unit"])}


def data(n=24, side=8, size=6):
    return batches(noise(n, 3, side, side).double(), size)


def measured(*units, **settings):
    return fourier(tower(*units).double(), data(), **settings)


# --- the authors' numbers


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["shape"]))
@pytest.mark.parametrize("paper", [False, True])
def test_the_authors_numbers(case, paper):
    maps = formula(case["shape"], case["i"])
    model = nn.Sequential(stem(maps.shape[1]), nn.Flatten()).double()
    result = fourier(model, [maps], at=["0"], paper=paper)
    known = case["paper_delta_log_amplitude" if paper else "delta_log_amplitude_to_pi"]
    assert curves(result)[0] == pytest.approx(known, abs=1e-9)
    side = case["shape"][-1]
    axis = np.linspace(0, 1, len(known)) if paper else 2 * np.arange(len(known)) / side
    assert curves(result, "frequency")[0] == pytest.approx(list(axis))


class Tokens(nn.Module):
    """An image as tokens after a class token, and one unit."""

    def __init__(self, class_token):
        super().__init__()
        self.class_token = nn.Parameter(class_token)
        self.embed, self.unit, self.norm, self.head = nn.Identity(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.embed(torch.cat([self.class_token, x.flatten(2).transpose(1, 2)], dim=1))
        return self.head(self.norm(x + self.unit(x))[:, 0])


def test_the_authors_numbers_of_tokens_behind_a_class_token():
    case = GOLDEN["tokens"]
    tokens = formula(case["shape"], case["i"])
    images = tokens[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    result = fourier(Tokens(tokens[:, :1]).double(), [images], paper=True)
    assert curves(result)[-1] == pytest.approx(case["paper_delta_log_amplitude"], abs=1e-9)


# --- closed forms: the gain of a unit for each wave


@pytest.mark.parametrize(
    ("unit", "gain"),
    [
        (blur, lambda k: 1 + binomial(k)),
        (sharpen, lambda k: 2 - binomial(k)),
        (identity, lambda k: 1),
        (lambda: averaging(1.0), lambda k: 2 if k == 0 else 1),
        (lambda: averaging(-0.5), lambda k: 0.5 if k == 0 else 1),
        (lambda: pointwise(torch.eye(3)), lambda k: 2),
    ],
)
def test_the_transfer_function_is_that_of_the_filter(unit, gain):
    result = measured(unit())
    known = [math.log(gain(k)) for k in CYCLES]
    assert curves(result, "transfer")[0] == pytest.approx(known, abs=1e-4)
    before, after = curves(result).values()
    assert np.subtract(after, before) == pytest.approx(np.subtract(known, known[0]), abs=1e-4)
    for row in result.rows()[5:]:  # the filter is the same for every image
        assert [row["transfer_low"], row["transfer_high"]] == pytest.approx([row["transfer"]] * 2, abs=1e-4)


def test_a_pure_blur_reaches_log_zero_at_pi():
    """The stream after the binomial kernel alone: (1 + cos w)^2 / 4 on the diagonal, 0 at π."""
    minus = BINOMIAL.clone()
    minus[1, 1] -= 1
    transfer = curves(measured(filtering(minus)), "transfer")[0]
    assert transfer[:4] == pytest.approx([math.log(binomial(k)) for k in range(4)], abs=1e-3)
    assert transfer[4] < -10


def test_transfers_of_units_in_a_row_add_up():
    both = curves(measured(blur(), sharpen(), averaging(2.0)), "transfer")
    logs = curves(measured(blur(), sharpen(), averaging(2.0)), "log_amplitude")
    total = np.sum([both[0], both[1], both[2]], axis=0)
    assert total == pytest.approx(np.subtract(logs[2], logs[-1]), abs=1e-9)


def band_limited(n, side, limit):
    """Noise whose spectrum decreases with frequency and is 0 at ``limit`` cycles or more."""
    cycles = (torch.fft.fftfreq(side) * side).abs()
    falling = torch.exp(-cycles / 3) * (cycles < limit)
    return torch.fft.ifft2(torch.fft.fft2(noise(n, 3, side, side).double()) * falling[:, None] * falling).real


def subsampling():
    """Every second pixel, no filter: a convolution of one weight with stride 2."""
    module = stem(3)
    module.stride = (2, 2)
    return module


def test_subsampling_is_not_a_filter():
    """The transfer is 0 for every wave of the small map, although Δ changes."""
    images = band_limited(6, 32, limit=8)
    model = nn.Sequential(stem(3), subsampling(), nn.Flatten(), nn.Linear(3 * 16 * 16, 2)).double()
    result = fourier(model, [images], at=["1"])
    transfer = curves(result, "transfer")[0]
    assert len(transfer) == 9
    assert transfer[:8] == pytest.approx([0] * 8, abs=1e-3)
    delta = curves(result)
    assert delta[0][7] > delta[-1][14] + 5  # near π of each: the authors' measure calls subsampling a high-pass filter


class Shrinking(nn.Module):
    """A unit that halves the map: the skip connection subsamples, the branch subsamples with gain 2."""

    def __init__(self):
        super().__init__()
        self.skip, self.branch = subsampling(), subsampling()
        with torch.no_grad():
            self.branch.weight *= 2
        self.out = nn.Identity()

    def forward(self, x):
        return self.out(self.skip(x) + self.branch(x))


def test_the_transfer_of_a_unit_that_halves_the_map():
    images = band_limited(6, 32, limit=8)
    result = fourier(tower(Shrinking(), blur()).double(), [images])
    transfer = curves(result, "transfer")
    assert transfer[0][:8] == pytest.approx([math.log(3)] * 8, abs=1e-3)
    assert transfer[1][:8] == pytest.approx([math.log(1 + binomial(k, 16)) for k in range(8)], abs=1e-3)
    assert next(row["stage"] for row in result.rows() if row["unit"] == 1) == 0
    assert {(row["height"], row["cycles"]) for row in result.rows() if row["frequency"] == 1} == {(32, 16), (16, 8)}
    assert result.claims  # of the blur: units that change the resolution do not count


def test_transfer_is_nan_beyond_the_smaller_of_two_maps():
    model = nn.Sequential(stem(3), nn.Upsample(scale_factor=2), nn.Flatten(), nn.Linear(3 * 256, 2)).double()
    transfer = curves(fourier(model, data(), at=["1"]), "transfer")
    assert np.isfinite(transfer[0][:5]).all()
    assert np.isnan(transfer[0][5:]).all()
    assert np.isnan(transfer[-1]).all()  # the stem has nothing before it


# --- rows


def test_rows_are_tidy():
    result = measured(blur(), averaging(1.0))
    rows = result.rows()
    assert len(rows) == 3 * 5
    assert len({tuple(row) for row in rows}) == 1
    assert [row["unit"] for row in rows[::5]] == [-1, 0, 1]
    assert [row["kind"] for row in rows[::5]] == ["stem", "conv", "attention"]
    assert [row["frequency"] for row in rows[:5]] == [0, 0.25, 0.5, 0.75, 1]
    for row in rows:
        assert row["delta_low"] <= row["delta"] <= row["delta_high"]
        if row["cycles"] == 0:
            assert row["delta"] == row["delta_low"] == row["delta_high"] == 0


def test_log_amplitude_is_per_pixel():
    """A map of ones of any size has amplitude 1 at frequency zero."""
    for side in (8, 16):
        result = fourier(tower(blur()), [torch.ones(2, 3, side, side)])
        assert result.rows()[0]["log_amplitude"] == pytest.approx(0, abs=1e-5)


def test_delta_is_the_difference_of_log_amplitudes():
    for rows in map(list, (g for _, g in groupby(measured(blur()).rows(), key=lambda row: row["unit"]))):
        assert [row["delta"] for row in rows] == pytest.approx(
            [row["log_amplitude"] - rows[0]["log_amplitude"] for row in rows]
        )


def test_radial_averages_over_directions():
    result = fourier(tower(identity()).double(), data(), radial=True)
    logs = radial_log_amplitude(torch.cat(data())).mean(0)
    assert curves(result)[-1] == pytest.approx((logs - logs[0]).tolist(), abs=1e-9)
    assert curves(result)[-1] != pytest.approx(curves(measured(identity()))[-1], abs=1e-3)


def test_the_interval_shrinks_with_the_root_of_the_images():
    def width(n):
        row = fourier(tower(identity()), batches(noise(n, 3, 8, 8), 50)).rows()[3]
        return row["delta_high"] - row["delta_low"]

    assert width(400) == pytest.approx(width(100) / 2, rel=0.25)


def test_one_image_has_no_interval():
    result = fourier(tower(blur()), [noise(1, 3, 8, 8)])
    assert all(math.isnan(row["delta_low"]) for row in result.rows())
    assert {claim.verdict for claim in result.claims} == {"undecided"}


def test_maps_that_are_not_square():
    result = fourier(tower(blur()).double(), [noise(4, 3, 8, 16).double()])
    known = [math.log(1 + binomial(k)) for k in CYCLES]  # (k, 2k): the same frequency along both sides
    assert curves(result, "transfer")[0] == pytest.approx(known, abs=1e-4)
    assert (result.rows()[0]["height"], result.rows()[0]["width"]) == (8, 16)


# --- named modules


def vgg():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


def test_at_reads_a_model_without_units():
    result = fourier(vgg(), [noise(4, 3, 16, 16)], at=["0", "2", "3"])
    assert [(unit, len(delta)) for unit, delta in curves(result).items()] == [(-1, 9), (0, 9), (1, 5), (2, 5)]
    assert list(dict.fromkeys((row["kind"], row["stage"]) for row in result.rows()))[1:] == [
        ("conv", 0), ("blur", 1), ("conv", 1),
    ]  # fmt: skip
    assert result.provenance["settings"]["at"] == ["0", "2", "3"]


def test_at_takes_a_single_module_and_reads_its_transfer_function():
    model = nn.Sequential(stem(3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(768, 2)).double()
    transfer = curves(fourier(model, [band_limited(6, 32, limit=8)], at=["1"]), "transfer")[0]
    means_of_two = [2 * math.log(math.cos(math.pi * k / 32)) for k in range(8)]  # of neighbours, along both sides
    assert transfer[:8] == pytest.approx(means_of_two, abs=1e-3)
    transfer = curves(fourier(tower(blur()).double(), data(), at=["1.branch"]), "transfer")[0]
    assert transfer[:4] == pytest.approx([math.log(binomial(k)) for k in range(4)], abs=1e-3)
    attention = tower(averaging(1.0)).double()
    transfer = curves(fourier(attention, data(), at=["1.branch"]), "transfer")[0]
    assert transfer[0] == pytest.approx(0, abs=1e-6)
    assert max(transfer[1:]) < -10  # the mean alone is left


def test_the_input_of_the_first_named_module_is_the_stem():
    result = fourier(vgg(), [noise(4, 3, 16, 16)], at=["3"])
    assert result.rows()[0]["unit"] == -1
    assert result.rows()[0]["module"] == "3"
    assert (result.rows()[0]["height"], result.rows()[-1]["height"]) == (8, 8)


def test_at_a_module_that_returns_no_map():
    with pytest.raises(UserError, match="no feature map at 7"):
        fourier(vgg(), [noise(4, 3, 16, 16)], at=["7"])
    result = fourier(vgg(), [noise(4, 3, 16, 16)], at=["3", "5", "7"])
    assert result.provenance["left_out"] == ["unit 1 (5)", "unit 2 (7)"]
    assert {row["unit"] for row in result.rows()} == {-1, 0}


# --- the two parts of a step


def highest(result):
    """The row of the highest frequency of each unit, the stem first."""
    return [list(rows)[-1] for _, rows in groupby(result.rows(), key=lambda row: row["unit"])]


def logs_before_and_after(unit, images):
    """(n,) each: the log amplitude of the highest frequency and of the mean, before and after a unit; computed by hand."""
    parts = []
    for maps in (images, unit.double()(images).detach()):
        amplitude = torch.fft.fft2(maps).abs()
        high, mean = amplitude[..., maps.shape[-1] // 2, maps.shape[-1] // 2], amplitude[..., 0, 0]
        parts.append((high.log().mean(1), mean.log().mean(1)))
    return parts


@pytest.mark.parametrize(
    ("unit", "high", "mean"),
    [
        (blur, 0, math.log(2)),  # 1 + H is 1 at π: it removes nothing, although Δ falls by log 2
        (sharpen, math.log(2), 0),
        (lambda: averaging(1.0), 0, math.log(2)),
        (lambda: averaging(-0.5), 0, -math.log(2)),
        (lambda: pointwise(torch.eye(3)), math.log(2), math.log(2)),
        (lambda: pointwise(-0.5 * torch.eye(3)), -math.log(2), -math.log(2)),
    ],
)
def test_a_step_has_two_parts(unit, high, mean):
    stem, row = highest(measured(unit()))
    for part, known in (("high_step", high), ("mean_step", mean)):
        assert [row[part], row[f"{part}_low"], row[f"{part}_high"]] == pytest.approx([known] * 3, abs=1e-5)
        assert math.isnan(stem[part])


@pytest.mark.parametrize("settings", [{}, {"radial": True}, {"paper": True}])
def test_the_parts_differ_by_the_step_of_delta(settings):
    before, *after = highest(measured(blur(), averaging(1.0), sharpen(), pointwise(noise(3, 3)), **settings))
    for row in after:
        assert row["high_step"] - row["mean_step"] == pytest.approx(row["delta"] - before["delta"], abs=1e-12)
        before = row


def test_the_parts_are_means_over_images_with_intervals():
    """Against the discrete Fourier transform of the images and of the unit's output; the interval is that of their means."""
    images, unit = torch.cat(data(n=40)), pointwise(0.3 * noise(3, 3, seed=4))
    before, after = logs_before_and_after(unit, images)
    row = highest(fourier(tower(unit).double(), [images]))[1]
    for part, old, new in zip(("high_step", "mean_step"), before, after, strict=True):
        change = (new - old).numpy()
        assert row[part] == pytest.approx(change.mean(), abs=1e-5)  # 1e-6 is added to amplitudes
        half = 1.96 * change.std() / math.sqrt(len(change))  # the central limit theorem; the bootstrap is close to it
        assert [row[f"{part}_low"] - row[part], row[f"{part}_high"] - row[part]] == pytest.approx([-half, half], rel=0.2)


def test_only_the_highest_frequency_of_a_unit_that_keeps_the_resolution_has_a_step():
    result = fourier(tower(Shrinking(), blur()).double(), [band_limited(6, 32, limit=8)])
    stepping = [(row["unit"], row["frequency"]) for row in result.rows() if not math.isnan(row["high_step"])]
    assert stepping == [(1, 1)]
    assert len({tuple(row) for row in result.rows()}) == 1


def test_the_step_figure_draws_both_parts_of_each_unit():
    from matplotlib.figure import Figure

    result = measured(blur(), averaging(1.0), sharpen())
    ax = Figure().add_subplot()
    result.draw(ax, "steps")
    marks = [line for line in ax.lines if line.get_marker() == "o"]
    rows = highest(result)[1:]
    assert [mark.get_ydata()[0] for mark in marks] == [row[part] for row in rows for part in ("mean_step", "high_step")]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["conv", "attention"]
    none = fourier(tower(Shrinking()), [noise(2, 3, 16, 16)])
    none.draw(Figure().add_subplot(), "steps")  # no unit keeps the resolution


def test_the_page_has_a_chart_of_each_part():
    charts = section_of("fourier").figures([measured(blur(), averaging(1.0))])
    assert [chart.y for chart in charts[-1]] == ["high_step", "mean_step"]
    assert [row["unit"] for row in section_of("fourier").derived["fourier/steps"](measured(blur(), sharpen()))] == [0, 1]
    old = measured(blur())
    old = replace(old, table=[{key: row[key] for key in row if "step" not in key} for row in old.table])
    assert len(section_of("fourier").figures([old])) == 2
    assert lacks(old) == []


# --- the paper's claims


def in_reading(result, source):
    return [claim for claim in result.claims if claim.source.startswith(source)]


def as_the_paper(result):
    return in_reading(result, "Figure 8")


@pytest.mark.parametrize(
    ("unit", "relative", "absolute", "change"),
    [
        (blur, "does not hold", "undecided", 0),  # the mean doubles and nothing is removed
        (sharpen, "holds", "holds", math.log(2)),
        (lambda: filtering(-0.5 * delta_kernel()), "undecided", "does not hold", -math.log(2)),
        (lambda: averaging(1.0), "holds", "undecided", 0),  # perfect averaging raises the mean only
        (lambda: averaging(-0.5), "does not hold", "undecided", 0),
    ],
)
def test_a_claim_is_decided_in_both_readings(unit, relative, absolute, change):
    result = measured(unit(), unit())
    (paper,), (second,) = as_the_paper(result), in_reading(result, "A second reading of figure 8")
    # a step that is zero in theory is a rounding error with a sign
    signs = ["undecided" if abs(claim.value) < 1e-6 else claim.verdict for claim in (paper, second)]
    assert signs == [relative, absolute]
    assert second.value == pytest.approx(change, abs=1e-5)
    assert second.quantity.startswith("absolute")
    assert paper.statement != second.statement


def test_the_page_counts_only_the_reading_of_the_paper():
    result = measured(blur())
    assert [claim.source.startswith(("Figure", "Version")) for claim in result.claims] == [True, False]


@pytest.mark.parametrize("name", ["demo-vit", "demo-cnn"])
def test_the_table_of_the_docs_is_what_is_measured(name):
    page = (Path(__file__).parents[1] / "docs" / "analyses" / "fourier.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(f"| {name} |")]
    model = load_model(name)
    result = fourier(model, load_data("fashion", model=model, limit=200))
    for _, kind, *numbers in rows:
        units = [row for row in highest(result) if row["kind"] == kind and not math.isnan(row["high_step"])]
        high, mean = (np.mean([row[part] for row in units]) for part in ("high_step", "mean_step"))
        assert [float(number.replace("−", "-")) for number in numbers] == pytest.approx([high - mean, high, mean], abs=1e-3)
        relative, absolute = (claim.value for claim in result.claims if f" {kind} units" in claim.quantity)
        assert [relative, absolute] == pytest.approx([high - mean, high], abs=1e-6)
    assert rows


@pytest.mark.parametrize(
    ("unit", "says", "verdict", "change"),
    [
        (lambda: averaging(1.0), "Attention", "holds", -math.log(2)),
        (lambda: averaging(-0.5), "Attention", "does not hold", math.log(2)),
        (sharpen, "Convolutions", "holds", math.log(2)),
        (blur, "Convolutions", "does not hold", -math.log(2)),
        (identity, "Convolutions", "undecided", 0),
        (lambda: pointwise(torch.zeros(3, 3)), "MLPs", "undecided", 0),
    ],
)
def test_claims_are_decided_by_the_sign_of_the_change(unit, says, verdict, change):
    (claim,) = as_the_paper(measured(unit(), unit()))
    assert claim.quantity.startswith("relative to the mean")
    assert claim.statement.startswith(says)
    assert claim.verdict == verdict
    assert claim.value == pytest.approx(change, abs=1e-5)
    assert "mean of 2 " in claim.quantity


def test_the_claim_uses_the_authors_bins_too():
    relative, absolute = measured(blur(), paper=True).claims
    assert relative.value == pytest.approx(math.log((1 + binomial(3)) / 2), abs=1e-4)  # their last bin of 8 x 8
    assert absolute.value == pytest.approx(math.log(1 + binomial(3)), abs=1e-4)


def test_a_claim_averages_over_units_and_names_each_kind():
    claims = as_the_paper(measured(blur(), averaging(1.0), sharpen(), sharpen()))
    assert [claim.verdict for claim in claims] == ["holds", "holds"]
    assert claims[1].value == pytest.approx(math.log(2) / 3, abs=1e-4)


def test_units_that_change_the_resolution_do_not_count_in_claims():
    assert fourier(tower(Residual(nn.Identity()), Shrinking()), [noise(4, 3, 8, 8)]).claims == []
