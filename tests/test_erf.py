"""Effective receptive fields of models where they are known in closed form, and against slower ways to compute them."""

import itertools
import math

import numpy as np
import pytest
import timm
import torch
from conftest import TINY_ALTERNATING
from known_models import Mean, averaging, batches, blur, noise, pointwise, stem, tower, unchanged
from timm.models.swin_transformer import SwinTransformer
from torch import nn

import backlight
from backlight.analyses.catalog import CATALOG
from backlight.analyses.erf import erf
from backlight.analyses.erf.gradients import points_under_centre
from backlight.analyses.erf.settings import ErfSettings
from backlight.analyses.erf.squares import Squares
from backlight.errors import UserError
from backlight.numerics.bootstrap import counts
from backlight.report.sections.erf import SECTION
from backlight.tracing.find import units

ALL = (0.2, 0.5, 1.0)
#: Resamples where intervals are not what is tested.
FEW = {"resamples": 20}


def column(result, name, share=None):
    """A column of the rows of one share, or of all."""
    return [row[name] for row in result.rows() if share in (None, row["share"])]


def fields(result):
    return dict(zip(dict.fromkeys(column(result, "unit")), result.arrays["fields"], strict=True))


def boxes(layers, side=3, channels=1):
    """A stack of convolutions of ones without a bias."""
    convolutions = [nn.Conv2d(channels, channels, side, padding=side // 2, bias=False) for _ in range(layers)]
    for convolution in convolutions:
        nn.init.ones_(convolution.weight)
    return nn.Sequential(*convolutions, Mean(), nn.Linear(channels, 2)).double()


def positive(*shape):
    return noise(*shape).abs().double() + 0.1


def smallest(field, centre, share):
    """The side of the smallest odd square around a pixel that holds a share, by trying all."""
    for radius in range(max(field.shape)):
        y, x = centre
        square = field[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        if square.sum() >= share * field.sum() * (1 - 1e-9):
            return 2 * radius + 1
    raise AssertionError


# --- closed forms


@pytest.mark.parametrize("side", [3, 5])
def test_a_stack_of_box_filters_is_their_convolution(side):
    result = erf(boxes(3, side), [positive(24, 1, 21, 21)], at=["0", "1", "2"], shares=ALL)
    known = np.zeros(21)
    known[10] = 1
    for unit, field in fields(result).items():  # unit -1 is the input of the first convolution: the image
        if unit >= 0:
            known = np.convolve(known, np.ones(side), "same")
        expected = np.outer(known, known)
        assert field == pytest.approx(expected / expected.max(), abs=1e-6)
        for row in result.table:
            if row["unit"] == unit:
                assert row["side"] == row["side_low"] == row["side_high"] == smallest(expected, (10, 10), row["share"])
                assert row["area"] == pytest.approx((row["side"] / 21) ** 2)
                assert (row["centre_y"], row["centre_x"]) == (10.5, 10.5)
    assert column(result, "side", 1.0) == [1, side, 2 * side - 1, 3 * side - 2]


def test_half_of_a_box_is_in_half_its_area_and_a_stack_of_boxes_is_concentrated():
    """Luo et al.'s claim, where the answer is known: one box is uniform, many make a Gaussian."""
    (uniform,) = erf(boxes(1, 11), [positive(24, 1, 21, 21)], at=["0"]).claims
    assert uniform.value == pytest.approx(0, abs=0.01)
    (gaussian,) = erf(boxes(5, 3), [positive(24, 1, 21, 21)], at=["4"]).claims
    assert gaussian.verdict == "holds"
    profile = np.ones(1)
    for _ in range(5):
        profile = np.convolve(profile, np.ones(3))
    held = [0, *(profile[5 - r : 6 + r].sum() ** 2 for r in range(6))]
    areas = [0, *((2 * r + 1) ** 2 for r in range(6))]
    assert gaussian.value == pytest.approx(np.interp(areas[-1] / 2, areas, held) / held[-1] - 0.5, abs=1e-6)


def test_a_channel_that_is_negative_at_the_centre_counts_nothing_and_negative_gradients_neither():
    model = boxes(1)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.tensor([[1.0, -1, 1], [0, 1, 0], [1, 1, -1]])
    images = torch.ones(1, 1, 9, 9).double()
    known = np.zeros((9, 9))
    known[3:6, 3:6] = [[1, 0, 1], [0, 1, 0], [1, 1, 0]]
    assert fields(erf(model, [images], at=["0"]))[0] == pytest.approx(known)
    dark = erf(model, [-images], at=["0"])  # the output is negative everywhere
    assert all(math.isnan(side) for side in column(dark, "side"))
    both = erf(model, [torch.cat([images, -images])], at=["0"], **FEW)
    assert fields(both)[0] == pytest.approx(known)


def test_a_unit_that_mixes_channels_adds_no_pixel_and_one_that_averages_adds_all():
    model = tower(pointwise(torch.eye(3)), blur(), averaging(1.0)).double()
    result = erf(model, [positive(6, 3, 9, 9)], shares=ALL)
    assert column(result, "unit", 1.0) == [-1, 0, 1, 2]
    assert column(result, "side", 1.0) == [1, 1, 3, 9]
    assert column(result, "area", 1.0) == pytest.approx([1 / 81, 1 / 81, 9 / 81, 1])
    assert [claim.statement for claim in result.claims] == [
        "Units see further with depth.", "The centre of a receptive field counts more than its border.",
    ]  # fmt: skip
    assert result.claims[0].value == column(result, "side", 0.5)[-1] - 1


# --- slower ways


class Bent(nn.Module):
    """A small network with everything that makes gradients depend on the image."""

    def __init__(self, colours=2):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(colours, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.second(self.norm(self.first(x).tanh()).relu_()).mean((2, 3)))


def at_centre(model, image):
    """sum_c relu(y_c) in the middle of the last map, by hand.  Shapes: (C, H, W) -> ()."""
    maps = model.second(model.norm(model.first(image[None]).tanh()).relu())
    return maps[0, :, maps.shape[2] // 2, maps.shape[3] // 2].relu().sum()


def test_the_field_is_that_of_finite_differences():
    model, images = Bent().double().eval(), noise(3, 2, 6, 6).double()
    step, known = 1e-6, torch.zeros(6, 6, dtype=torch.float64)
    with torch.no_grad():
        for image, colour, y, x in itertools.product(images, range(2), range(6), range(6)):
            change = torch.zeros_like(image)
            change[colour, y, x] = step
            slope = (at_centre(model, image + change) - at_centre(model, image - change)) / (2 * step)
            known[y, x] += slope.relu()
    field = fields(erf(model, batches(images, 2), at=["second"], **FEW))[0]
    assert field == pytest.approx((known / known.max()).numpy(), abs=1e-6)


def script_by_hand(model, images, shares):
    """What RepLKNet's two scripts do, one image at a time.  Shapes: (n, C, H, W) -> (side, area) for each share."""
    contributions = []
    for image in images:
        leaf = image.clone().requires_grad_()
        (slope,) = torch.autograd.grad(at_centre(model, leaf), leaf)
        contributions.append(slope.clamp(min=0).sum(0).numpy())
    logs = np.log10(np.mean(contributions, axis=0) + 1)
    side = len(logs)
    middle = side // 2
    answers = []
    for share in shares:
        fits = (
            2 * i + 1 for i in range(1, middle)
            if logs[middle - i : middle + 1 + i, middle - i : middle + 1 + i].sum() / logs.sum() > share
        )  # fmt: skip
        answer = next(fits, math.nan)
        answers.append((answer, answer**2 / side**2))
    return answers


@pytest.mark.parametrize("side", [5, 11, 12])
def test_paper_gives_the_numbers_of_replknets_script(side):
    model, images = Bent().double().eval(), noise(5, 2, side, side).double()
    shares = (0.2, 0.3, 0.5, 0.9, 0.99)
    result = erf(model, batches(images, 2), at=["second"], shares=shares, paper=True)
    rows = [row for row in result.table if row["unit"] == 0]
    known = script_by_hand(model, images, shares)
    assert [(row["side"], row["area"]) for row in rows] == [pytest.approx(pair, nan_ok=True) for pair in known]
    assert math.isnan(rows[-1]["side"]) == (side == 5)  # the script tries no square of the side of the image
    assert all(math.isnan(row[f"{name}{end}"]) for row in rows for name in ("side", "area") for end in ("_low", "_high"))
    assert result.claims == []


def test_the_logarithm_makes_large_gradients_wide_and_leaves_small_ones():
    """log10(S + 1) is S / log(10) where S is small, and flat where it is large: the size of the weights decides."""

    def sides(scale, paper):
        model = boxes(4)
        with torch.no_grad():
            model[0].weight *= scale
        return column(erf(model, [positive(3, 1, 21, 21)], at=["3"], shares=(0.5, 0.9), paper=paper, **FEW), "side")[2:]

    assert sides(1e-9, False) == sides(1, False) == sides(1e9, False) == sides(1e-9, True)
    assert all(wide > true for wide, true in zip(sides(1e9, True), sides(1, False), strict=True))


def test_intervals_are_those_of_analyses_of_resampled_images():
    model, images = Bent().double().eval(), noise(6, 2, 15, 15).double()
    images *= torch.linspace(0.2, 3, 6)[:, None, None, None]
    result = erf(model, [images], at=["second"], resamples=16, seed=3)
    drawn = [
        column(erf(model, [images.repeat_interleave(torch.from_numpy(times).long(), 0)], at=["second"], resamples=1), "side")
        for chunk in counts(6, 16, 3) for times in chunk
    ]  # fmt: skip
    value = np.array(column(result, "side"))
    high, low = 2 * value - np.quantile(drawn, [0.025, 0.975], axis=0)
    assert column(result, "side_low") == pytest.approx(np.minimum(value, np.maximum(low, 1)))
    assert column(result, "side_high") == pytest.approx(np.maximum(value, high))
    assert column(result, "area_high") == pytest.approx(np.square(np.maximum(value, high) / 15))


def test_models_that_overwrite_their_images_and_activations():
    class Overwriting(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    torch.manual_seed(0)
    convolution, images = nn.Conv2d(1, 8, 3, padding=1), noise(3, 1, 9, 9)
    plain = nn.Sequential(convolution, nn.ReLU(), Mean(), nn.Linear(8, 2))
    overwriting = nn.Sequential(Overwriting(), convolution, nn.ReLU(inplace=True), Mean(), nn.Linear(8, 2))
    before = images.clone()
    result = erf(overwriting, [images], at=["1"], **FEW)
    assert torch.equal(images, before)
    assert column(result, "side")[4:] == column(erf(plain, [2 * images], at=["0"], **FEW), "side")[4:]


# --- laws of the intervals


def test_one_image_has_no_interval_and_more_images_a_narrower_one():
    model = Bent().double().eval()

    def width(n):
        claim = erf(model, batches(noise(n, 2, 9, 9).double(), 32), at=["second"], resamples=200).claims[0]
        return claim.high - claim.low

    assert math.isnan(width(1))
    assert width(256) == pytest.approx(width(64) / 2, rel=0.3)
    rows = erf(model, [noise(1, 2, 9, 9).double()], at=["second"]).table
    assert all(math.isnan(row[end]) for row in rows for end in ("side_low", "side_high", "area_low", "area_high"))
    assert all(math.isfinite(row["side"]) for row in rows)


def test_batches_do_not_matter():
    model, images = Bent().double().eval(), noise(6, 2, 9, 9).double()
    one, three = (erf(model, batches(images, size), at=["second"], **FEW) for size in (6, 2))
    assert one.table == three.table
    assert one.arrays["fields"] == pytest.approx(three.arrays["fields"])


# --- the point under the centre


def point(*layers, image=(16, 16)):
    torch.manual_seed(0)
    model = nn.Sequential(*layers, Mean(), nn.LazyLinear(2))
    images = noise(2, 1, *image)
    model(images)
    (unit,) = units(model, images, at=[str(len(layers) - 1)])
    return points_under_centre(model, images, [unit.after])[0]


class Gate(nn.Module):
    """A squeeze-and-excitation: every position depends on every pixel, a little."""

    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True).sigmoid()


def strided(kernel, stride, padding=0):
    return nn.LazyConv2d(16, kernel, stride, padding)


@pytest.mark.parametrize(
    ("layers", "image", "known"),
    [
        ([strided(4, 4)], (16, 16), 10),  # a patch embedding: position 2 covers the pixels 8 to 11
        ([strided(3, 2, 1)], (16, 16), 8.5),  # position 4 is the output at pixel 8
        ([nn.ZeroPad2d((0, 1, 0, 1)), strided(3, 2)], (16, 16), 9.5),  # TensorFlow's "same": at pixel 9
        ([strided(3, 2, 1), strided(3, 2, 1), strided(3, 2, 1)], (64, 64), 32.5),  # position 4 of 8 is at pixel 32
        ([strided(7, 2, 3), nn.MaxPool2d(3, 2, 1)], (64, 64), 32.5),  # a ResNet's stem
        ([strided(3, 2, 1), strided(2, 2)], (32, 32), 17.5),  # position 4 of 8 reads 8 and 9 of 16, at pixels 16 and 18
        ([strided(3, 1)], (9, 9), 4.5),  # without padding
        ([strided(3, 1), strided(3, 1)], (11, 11), 5.5),
        ([strided(3, 2, 1)], (13, 13), 6.5),  # position 3 of 7 is at pixel 6
        ([strided(3, 1, 1)], (8, 8), 4.5),
        ([nn.Upsample(scale_factor=2)], (8, 8), 4),  # position 8 of 16 is the front half of pixel 4: at 4.25
        ([strided(3, 2, 1), Gate()], (16, 16), 8.5),
        ([nn.ZeroPad2d((0, 1, 0, 1)), strided(3, 2), Gate()], (16, 16), 9.5),
        ([strided(15, 1, 7)], (8, 8), 4.5),  # reaches across the image
    ],
)
def test_the_point_under_the_centre(layers, image, known):
    y, x = point(*layers, image=image)
    assert (y, x) == (known, known)


def test_maps_that_are_not_square():
    assert point(strided(4, 4), image=(16, 24)) == (10, 14)
    result = erf(boxes(2), [positive(3, 1, 9, 21)], at=["1"], shares=ALL)
    assert (result.table[-1]["centre_y"], result.table[-1]["centre_x"]) == (4.5, 10.5)
    assert result.table[-1]["side"] == 5
    assert result.table[-1]["area"] == pytest.approx(25 / 189)


@pytest.mark.parametrize("centre", [(4.5, 4.5), (5, 5), (3.5, 6), (0.5, 8)])
def test_squares_hold_what_a_loop_counts(centre):
    squares = Squares(centre, (8, 9))
    field = noise(2, 8, 9).abs().double()
    held = squares.held(field)
    assert squares.area(squares.sides[-1]) == 1
    for k, side in enumerate(squares.sides):
        inside = [
            (y, x) for y, x in itertools.product(range(8), range(9))
            if all(c - side / 2 <= p and p + 1 <= c + side / 2 for p, c in zip((y, x), centre, strict=True))
        ]  # fmt: skip
        assert held[:, k] == pytest.approx([sum(float(one[y, x]) for y, x in inside) for one in field])
    ones = squares.held(torch.ones(1, 8, 9, dtype=torch.float64))[0] / 72
    whole = (2 * np.abs(np.subtract(centre, np.round(centre))) == squares.sides[0] % 2).all()
    if whole:  # both axes end at pixels: the area is the number of pixels
        assert ones == pytest.approx(squares.area(squares.sides))


# --- real models


def test_global_attention_sees_the_whole_image_and_its_stem_one_patch():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2)
    result = erf(model, [noise(6, 3, 32, 32)], shares=ALL, **FEW)
    assert column(result, "kind", 1.0) == ["stem", *["attention", "mlp"] * 2]
    assert column(result, "side", 1.0) == [8, 40, 40, 40, 40]  # around (20, 20) the far border is 20 pixels away
    assert column(result, "area", 1.0) == [1 / 16, 1, 1, 1, 1]
    patch = np.zeros((32, 32), bool)
    patch[16:24, 16:24] = True
    stem_field, after_attention = (fields(result)[unit] > 0 for unit in (-1, 0))
    assert stem_field[patch].mean() > 0.8  # the rest has negative gradients in all images and colours
    assert not stem_field[~patch].any()
    assert after_attention.mean() > 0.8


def test_local_attention_sees_its_window_and_a_shifted_one_its_neighbours():
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=32, patch_size=2, embed_dim=16, depths=(2, 2), num_heads=(2, 2), window_size=4, num_classes=3
    )
    result = erf(model, [noise(6, 3, 32, 32)], shares=ALL, **FEW)
    seen = [field > 0 for field in fields(result).values()]
    window = np.zeros((32, 32), bool)
    window[16:24, 16:24] = True  # position 8 of 16 begins the window of 8 to 11, which are the pixels 16 to 23
    for after_attention_and_mlp in seen[1:3]:
        assert after_attention_and_mlp[window].mean() > 0.8
        assert not after_attention_and_mlp[~window].any()
    shifted = np.zeros((32, 32), bool)
    shifted[8:24, 8:24] = True  # the windows of 6 to 9 that meet there read those of 4 to 7 and 8 to 11
    assert seen[3][shifted].mean() > 0.8
    assert not seen[3][~shifted].any()
    assert set(column(result, "height")) == {16, 8}
    assert (result.table[-1]["centre_y"], result.table[0]["centre_y"]) == (18, 17)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: timm.create_model("test_resnet"), (4, 3, 64, 64)),
        (lambda: backlight.load_model(TINY_ALTERNATING, pretrained=False), (4, 1, 28, 28)),
    ],
    ids=["resnet", "alternet"],
)
def test_real_models_are_as_they_were(make, shape):
    torch.manual_seed(0)
    model, images = make().train(), noise(*shape)
    next(model.parameters()).requires_grad_(False)
    model.eval()
    before = model(images)
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).train()
    with unchanged(model):
        result = erf(model, batches(images, 2), **FEW)
    with torch.inference_mode(), unchanged(model):
        again = erf(model, batches(images, 2), **FEW)
    assert again.table == result.table
    model.eval()
    assert torch.equal(model(images), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    for rows in (list(group) for _, group in itertools.groupby(result.table, key=lambda row: row["unit"])):
        sides = [row["side"] for row in rows]
        assert sides == sorted(sides)
        for row in rows:
            assert row["side_low"] <= row["side"] <= row["side_high"]
            assert 0 < row["area_low"] <= row["area"] <= row["area_high"] <= 1
    most = column(result, "side", 0.99)
    assert most[0] < most[-1]


def test_the_cost_is_a_forward_pass_and_a_backward_pass_for_each_unit(monkeypatch):
    model = backlight.load_model(TINY_ALTERNATING, pretrained=False)
    passes, forwards = [], []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: passes.append(1) or grad(*args, **kwargs))
    handle = model.register_forward_hook(lambda *_: forwards.append(1))
    result = erf(model, batches(noise(6, 1, 28, 28), 2), **FEW)
    handle.remove()
    streams, resolutions = len(set(column(result, "unit"))), len(set(column(result, "height")))
    assert len(passes) == 3 * streams + 2 * resolutions
    assert len(forwards) == 3 + 2  # the units are found in one, the points under their centres in another


# --- what is refused, and what is left out


def test_settings_that_make_no_sense():
    for shares, message in [((), "give one share"), ((0.0,), "above 0"), ((1.5,), "at most 1"), (0.5, "list of numbers")]:
        with pytest.raises(UserError, match=message):
            erf(tower(blur()), [noise(2, 3, 8, 8)], shares=shares)
    assert ErfSettings(shares=[0.5, 1]).shares == (0.5, 1.0)


class Detached(nn.Module):
    def forward(self, x):
        return x.detach() * 2


def test_images_and_models_that_cannot_be_measured():
    with pytest.raises(UserError, match="no images"):
        erf(tower(blur()), [])
    with pytest.raises(UserError, match=r"8 x 8 and 9 x 9.*receptive fields"):
        erf(tower(blur()), [noise(2, 3, 8, 8), noise(2, 3, 9, 9)])
    with pytest.raises(UserError, match="no residual units"):
        erf(boxes(2), [noise(2, 1, 8, 8)])
    with pytest.raises(UserError, match=r"no gradient reaches the images from 1\b"):
        erf(nn.Sequential(stem(3), Detached(), Mean(), nn.Linear(3, 2)), [noise(2, 3, 8, 8)], at=["1"])


def test_units_without_a_map_are_left_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    result = erf(model, [noise(4, 3, 16, 16)], at=["0", "2", "4"], **FEW)
    assert result.provenance["left_out"] == ["unit 1 (2)", "unit 2 (4)"]
    assert set(column(result, "unit")) == {-1, 0}
    assert result.provenance["settings"]["at"] == ["0", "2", "4"]
    assert "Units see further with depth." not in [claim.statement for claim in result.claims]


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


def test_images_whose_gradient_is_not_finite_are_counted_and_add_nothing():
    model = nn.Sequential(Root(), *boxes(1)).float()
    images = positive(4, 1, 9, 9).float()
    bad = torch.cat([images, torch.zeros(1, 1, 9, 9)])
    clean, result = erf(model, [images], at=["1"], **FEW), erf(model, [bad], at=["1"], **FEW)
    assert result.arrays["fields"] == pytest.approx(clean.arrays["fields"])
    assert column(result, "side") == column(clean, "side")
    assert result.provenance["gradients_not_finite"] == {"-1": 1, "0": 1}
    paper = [column(erf(model, [data], at=["1"], paper=True), "side") for data in (images, bad)]
    assert paper[0] == pytest.approx(paper[1], nan_ok=True)


# --- the result


def test_large_images_are_stored_in_blocks():
    result = erf(boxes(1), [positive(2, 1, 150, 200)], at=["0"], **FEW)
    assert result.arrays["fields"].shape == (2, 75, 100)
    assert result.arrays["fields"].dtype == np.float32
    assert result.arrays["fields"].max((1, 2)) == pytest.approx([1, 1])


def test_rows_are_tidy_and_the_result_is_saved_and_drawn(tmp_path):
    result = erf(backlight.load_model(TINY_ALTERNATING, pretrained=False), [noise(3, 1, 28, 28)], name="tiny", **FEW)
    rows = result.rows()
    assert len({tuple(row) for row in rows}) == 1
    assert [row["share"] for row in rows[:4]] == [0.2, 0.3, 0.5, 0.99]
    assert len(rows) == 4 * len(result.arrays["fields"])
    folder = result.save(tmp_path / "erf")
    assert {file.name for file in folder.iterdir()} >= {"rows.parquet", "arrays.safetensors", "erf.pdf", "erf.png"}


def test_the_section_shows_half_of_the_field_and_almost_all_of_it():
    result = erf(tower(blur(), blur()), [noise(3, 3, 9, 9).abs()], **FEW)
    assert set(SECTION.needs) <= set(result.table[0])
    ((first, second),) = SECTION.figures([result, None])
    assert (first.tab, second.tab) == ("50%", "99%")
    for chart, share in ((first, 0.5), (second, 0.99)):
        assert SECTION.derived[chart.table](result) == [row for row in result.table if row["share"] == share]
    single = erf(tower(blur()), [noise(3, 3, 9, 9).abs()], shares=(0.4,), **FEW)
    assert [chart.tab for chart in SECTION.figures([single])[0]] == ["40%"]


def test_the_catalogue_can_list_it():
    """The entry is complete, whether the catalogue lists it or not."""
    from backlight.analyses.entry import ENTRIES

    entry = ENTRIES["erf"]
    assert entry.function is erf
    assert entry.runs == "alone"
    assert [option.name for option in entry.options()] == ["shares", "paper"]
    assert entry.result_type().analysis == "erf"
    assert CATALOG.keys() <= ENTRIES.keys()
