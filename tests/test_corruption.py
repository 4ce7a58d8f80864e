"""Corruptions against a library, a slow loop or their definition; the analysis on models whose scores are known."""

import importlib.util
import random
import tomllib
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_models import noise, unchanged
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import nn

from backlight.analyses.calibration import calibration
from backlight.analyses.corruption import corruption
from backlight.analyses.corruption.corrupted_images import computed_ahead
from backlight.analyses.corruption.measure import ALEXNET, reference_of
from backlight.analyses.corruption.settings import CorruptionSettings
from backlight.cli import doctor
from backlight.data.corruption_names import COMMON, EXTRA, NAMES, SEVERITIES
from backlight.data.corruption_strengths import STRENGTHS
from backlight.data.corruptions import CORRUPTIONS, corrupted, elastic_transform, frost, frost_photo, glass_blur
from backlight.data.loading import load_data
from backlight.data.sampling import stratified
from backlight.errors import Unavailable, UserError
from backlight.files import PartialResults
from backlight.numerics.calibration import scores, summary


def photo(height=64, width=64, channels=3, seed=0):
    """A smooth picture with edges, from dark to bright.  Shapes: -> (C, H, W) uint8."""
    rng = np.random.default_rng(seed)
    rough = rng.random((channels, height // 4, width // 4)).repeat(4, 1).repeat(4, 2)
    smooth = gaussian_filter(rough, (0, 2, 2)) * 1.6 - 0.3
    smooth[:, : height // 3, : width // 4] = [[[0.0]], [[0.9]], [[0.2]]][:channels]
    return (smooth.clip(0, 1) * 255).round().astype(np.uint8)


class Replay:
    """Random numbers as NumPy's old generator gives them for images with channels last."""

    def __init__(self, seed):
        self.old = np.random.RandomState(seed)

    def last(self, shape):
        return (*shape[1:], shape[0]) if len(shape) == 3 else shape

    def first(self, drawn):
        return np.moveaxis(drawn, -1, 0) if drawn.ndim == 3 else drawn

    def normal(self, loc=0.0, scale=1.0, size=None):
        return self.first(self.old.normal(loc, scale, self.last(size)))

    def poisson(self, lam):
        return self.first(self.old.poisson(np.moveaxis(lam.astype(float), 0, -1)))

    def uniform(self, low=0.0, high=1.0, size=None):
        return self.old.uniform(low, high, size)


def ours(image, name, severity, rng, strengths="imagenet"):
    strength = STRENGTHS[name][strengths][severity - 1]
    return CORRUPTIONS[name](image.astype(np.float32) / 255, strength, rng).clip(0, 1) * 255.0


# --- against the library


@pytest.fixture(scope="module")
def library():
    module = pytest.importorskip("imagecorruptions.corruptions")
    untrimmed = module.clipped_zoom

    def trimmed(image, factor):  # the authors take the middle of the enlarged image, the library its corner
        large = untrimmed(image, factor)
        top, left = ((larger - side) // 2 for larger, side in zip(large.shape, image.shape[:2], strict=False))
        return large[top : top + image.shape[0], left : left + image.shape[1]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "clipped_zoom", trimmed)
        yield module


#: Not in it: corruptions that the library seeds differently (glass, impulse) or has changed (elastic, pixelate, frost).
SAME = sorted(set(NAMES) - {"glass_blur", "impulse_noise", "elastic_transform", "pixelate", "frost"})


@pytest.mark.parametrize("name", SAME)
def test_equals_the_library_at_imagenets_strengths(name, library):
    image = photo(48, 64)
    for severity in SEVERITIES:
        state = np.random.get_state()
        np.random.seed(severity)
        expected = np.array(getattr(library, name)(Image.fromarray(image.transpose(1, 2, 0)), severity), float)
        np.random.set_state(state)
        result = ours(image, name, severity, Replay(severity))
        difference = np.abs(result - expected.transpose(2, 0, 1))
        # Snow and spatter round in between, where an error of float32 can change a level.
        assert difference.max() < 1.01, f"severity {severity}"
        assert (difference < 0.01).mean() > 0.99, f"severity {severity}"
        assert (np.abs(result - image) > 1).mean() > 0.01


# --- the others against a second implementation


def test_glass_equals_the_authors_loop():
    """Both sides of their swap are views, so it copies."""
    draws = np.random.default_rng(3).uniform(-1, 1, (3, 2, 12, 14))

    class FixedDraws:
        def __init__(self):
            self.round = iter(draws)

        def uniform(self, low, high, shape):
            return np.floor(next(self.round) * high) if shape == (2, 12, 14) else None

    image = photo(12, 16)[:, :, :14].astype(np.float32) / 255
    for sigma, reach, rounds in ((0.7, 1, 2), (1, 2, 3), (1.5, 4, 2)):
        slow = np.uint8(gaussian_filter(image.astype(float), (0, sigma, sigma), mode="nearest") * 255 + 1e-3).transpose(1, 2, 0)
        for r in range(rounds):
            moves = np.floor(draws[r] * reach).astype(int)
            for h in range(12 - reach, reach, -1):
                for w in range(14 - reach, reach, -1):
                    dy, dx = moves[:, h, w]
                    slow[h, w], slow[h + dy, w + dx] = slow[h + dy, w + dx], slow[h, w]
        slow = gaussian_filter(slow / 255.0, (sigma, sigma, 0), mode="nearest").transpose(2, 0, 1)
        result = glass_blur(image, (sigma, reach, rounds), FixedDraws())
        np.testing.assert_allclose(result, slow, atol=1e-5)


@pytest.mark.parametrize("strengths", ["imagenet", "cifar"])
@pytest.mark.parametrize("severity", [1, 2, 5])
def test_elastic_equals_its_definition(strengths, severity):
    """The source of each pixel, from the affine map that moves the three points."""
    height, width = 33, 40
    image = photo(36, 40)[:, :height].astype(np.float32) / 255
    push, sigma, jitter = (33 * part for part in STRENGTHS["elastic_transform"][strengths][severity - 1])
    result = elastic_transform(image, STRENGTHS["elastic_transform"][strengths][severity - 1], Replay(5))
    old = np.random.RandomState(5)
    points = np.array([[16 + 11, 20 + 11], [16 + 11, 20 - 11], [16 - 11, 20 - 11]], float)  # as the authors, (row, column)
    moved = points + old.uniform(-jitter, jitter, (3, 2))
    forward = np.linalg.solve(np.column_stack([points, np.ones(3)]), moved)  # [x, y, 1] @ forward: the new (x, y)
    linear, shift = forward[:2].T, forward[2]
    y, x = np.mgrid[:height, :width].astype(float)
    back = np.linalg.inv(linear) @ (np.stack([x.ravel(), y.ravel()]) - shift[:, None])
    dx, dy = (push * gaussian_filter(old.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3) for _ in range(2))
    for channel, out in zip(image, result, strict=True):
        warped = map_coordinates(channel, [back[1], back[0]], order=1, mode="mirror").reshape(height, width)
        expected = map_coordinates(warped, [y + dy, x + dx], order=1, mode="reflect")
        np.testing.assert_allclose(out, expected, atol=2e-4)


def test_impulses_are_black_and_white_in_the_published_share():
    image = np.full((1, 400, 400), 128, np.uint8)
    for severity, share in enumerate(STRENGTHS["impulse_noise"]["imagenet"], start=1):
        result = corrupted(image, "impulse_noise", severity, seed=(0,), strengths="imagenet")
        for level in (0, 255):
            assert (result == level).mean() == pytest.approx(share / 2, abs=4 * np.sqrt(share / 2 / 160_000))
        assert np.isin(result, [0, 128, 255]).all()


def test_pixelate_takes_the_means_of_blocks():
    image = photo(64, 64, 1)
    result = ours(image, "pixelate", 2, None)  # half the size
    blocks = image.reshape(32, 2, 32, 2).mean((1, 3))
    np.testing.assert_allclose(result[0], blocks.repeat(2, 0).repeat(2, 1), atol=1)


def test_frost_adds_a_part_of_one_of_five_photographs():
    pytest.importorskip("imagecorruptions")
    image = photo(40, 48)
    keep, cover, _ = STRENGTHS["frost"]["imagenet"][2]
    result = frost(image.astype(np.float32) / 255, (keep, cover, 1.0), np.random.default_rng(2))
    frosty = (result - keep * image / 255) / cover
    windows = (
        np.lib.stride_tricks.sliding_window_view(frost_photo(k, 1.0, (40, 48)), (3, 40, 48))[0][:, :, :, ::20, ::20]
        for k in range(5)
    )
    difference = min(np.abs(window - frosty[:, ::20, ::20]).max((2, 3, 4)).min() for window in windows)
    assert difference < 1e-5
    large = frost_photo(3, 0.2, (100, 90))  # scaled down, then up until it is larger than the image
    assert large.shape[1] > 100
    assert large.shape[2] > 90


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strengths", ["imagenet", "cifar"])
def test_every_corruption_accepts_every_size_and_colour(name, strengths):
    for shape in ((3, 28, 28), (1, 28, 28), (3, 8, 12), (1, 33, 21)):
        image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        for severity in (1, 5):
            result = corrupted(image, name, severity, seed=(0, 1), strengths=strengths)
            assert result.shape == shape
            assert result.dtype == np.uint8
        for flat in (0, 255):
            corrupted(np.full(shape, flat, np.uint8), name, 4, seed=(0, 1), strengths=strengths)


@pytest.mark.parametrize("name", ["brightness", "contrast", "zoom_blur", "defocus_blur", "gaussian_blur", "jpeg_compression"])
def test_a_grey_image_gets_the_same_in_one_channel_and_in_three(name):
    image = photo(32, 32, 1)
    colour = corrupted(image.repeat(3, 0), name, 3, seed=(0,), strengths="cifar")
    assert np.abs(corrupted(image, name, 3, seed=(0,), strengths="cifar").astype(int) - colour).max() <= 1


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"elastic_transform", "frost", "spatter", "saturate"}))
def test_severity_5_changes_more_than_1(name):
    for strengths in ("imagenet", "cifar"):
        one, five = (
            np.mean([np.abs(corrupted(photo(seed=k), name, s, seed=(0, k), strengths=strengths) - photo(seed=k) / 1.0).mean()
                     for k in range(4)])
            for s in (1, 5)
        )  # fmt: skip
        assert five > one


def test_cifars_strengths_are_milder():
    for name in ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "fog", "contrast", "pixelate"):
        mild, strong = (
            np.abs(corrupted(photo(), name, 3, seed=(0,), strengths=s).astype(float) - photo()).mean()
            for s in ("cifar", "imagenet")
        )
        assert mild < 0.8 * strong, name


# --- seeds


@given(name=st.sampled_from(NAMES), severity=st.integers(1, 5), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_corruption_depends_on_its_seed_only(name, severity, seed):
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    python_state = random.getstate()
    first, second = (corrupted(photo(32, 32), name, severity, seed=(seed, 4), strengths="cifar") for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


@pytest.mark.parametrize("name", ["gaussian_noise", "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform"])
def test_images_get_different_random_numbers(name):
    images = [corrupted(photo(32, 32), name, 3, seed=(0, k), strengths="cifar") for k in range(3)]
    assert all((a != b).any() for a, b in pairwise(images))


# --- the analysis


class Data(list):
    """Batches with the record that `load_data` gives."""

    def __init__(self, pixels, labels, size, *, name="", classes=(), mean=(0.5,), std=(0.25,), limit=None):
        images = (torch.from_numpy(pixels).float() / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        super().__init__(zip(images.split(size), labels.split(size), strict=True))
        self.classes, self.images = classes, len(images)
        record = {"input_size": list(images.shape[1:]), "mean": list(mean), "std": list(std), "interpolation": "bilinear"}
        self.provenance = {"data": name, "limit": limit, "seed": 0, "preprocessing": record}


class Brightness(nn.Module):
    """The brighter the image, the more likely class 1; further classes are never likely."""

    def __init__(self, classes=2, gain=6.0):
        super().__init__()
        self.classes, self.gain = classes, gain

    def forward(self, images):
        level = self.gain * images.mean((1, 2, 3))
        rest = torch.full((len(images), self.classes - 2), -9.0)
        return torch.cat([torch.stack([-level, level], 1), rest], 1)


def dark_and_bright(n=24, side=16, channels=1):
    rng = np.random.default_rng(1)
    levels = rng.uniform(0.25, 0.75, n)
    pixels = (levels[:, None, None, None] + 0.1 * rng.standard_normal((n, channels, side, side))).clip(0, 1)
    return (255 * pixels).round().astype(np.uint8), torch.from_numpy((levels + 0.1 * rng.standard_normal(n) > 0.5).astype(int))


def by_condition(result):
    return {(row["corruption"], row["severity"]): row for row in result.table}


def test_equals_a_loop_over_images():
    pixels, labels = dark_and_bright()
    names, severities = ("brightness", "gaussian_noise", "fog"), (1, 4)
    model = Brightness()
    result = corruption(model, Data(pixels, labels, 7), corruptions=names, severities=severities, resamples=20, seed=3)
    rows = by_condition(result)

    def slowly(condition):
        changed = pixels if condition == ("clean", 0) else np.stack(
            [corrupted(image, *condition, seed=(3, k), strengths="cifar") for k, image in enumerate(pixels)]
        )  # fmt: skip
        logits = model((torch.from_numpy(changed).float() / 255 - 0.5) / 0.25)
        return summary(scores(logits, labels), np.ones(len(labels)), bins=10)

    expected = {condition: slowly(condition) for condition in [("clean", 0), *((n, s) for n in names for s in severities)]}
    for condition, metrics in expected.items():
        for metric in ("accuracy", "nll", "ece"):
            assert rows[condition][metric] == pytest.approx(metrics[metric], abs=1e-6), (condition, metric)
            change = metrics[metric] - expected["clean", 0][metric]
            assert rows[condition][f"{metric}_change"] == pytest.approx(change, abs=1e-6)
    for metric in ("accuracy", "nll", "ece"):
        everything = [expected[n, s][metric] for n in names for s in severities]
        assert rows["mean", None][metric] == pytest.approx(np.mean(everything), abs=1e-6)
        assert rows["mean", 4][metric] == pytest.approx(np.mean([expected[n, 4][metric] for n in names]), abs=1e-6)
        assert rows["fog", None][metric] == pytest.approx(np.mean([expected["fog", s][metric] for s in severities]), abs=1e-6)
    assert next(iter(rows)) == ("clean", 0)
    assert list(rows)[-1] == ("mean", None)
    assert len(rows) == len(result.table) == 1 + 6 + 3 + 2 + 1
    assert result.provenance["images"] == 24
    assert result.provenance["summary"]["accuracy"][0] == rows["mean", None]["accuracy"]


def test_clean_scores_equal_those_of_calibration():
    pixels, labels = dark_and_bright()
    data = Data(pixels, labels, 5)
    clean = corruption(Brightness(), data, corruptions=["fog"], severities=[2], resamples=50)
    reference = calibration(Brightness(), data, resamples=50)
    for row in reference.table:
        if row["metric"] in ("nll", "ece", "accuracy"):
            assert clean.table[0][row["metric"]] == pytest.approx(row["value"], abs=1e-9)
    ece = next(row for row in reference.table if row["metric"] == "ece")
    assert [clean.table[0][f"ece{end}"] for end in ("_low", "_high")] == pytest.approx([ece["low"], ece["high"]], abs=1e-9)
    np.testing.assert_allclose(clean.arrays["reliability"][0], reference.arrays["reliability"], atol=1e-9)


def test_reliability_at_a_severity_counts_all_corruptions_together():
    pixels, labels = dark_and_bright()
    names = ("brightness", "contrast")
    model = Brightness(gain=2.0)
    result = corruption(model, Data(pixels, labels, 24), corruptions=names, severities=[1, 5], resamples=2)
    for s, severity in enumerate((1, 5), start=1):
        changed = np.concatenate(
            [
                corrupted(image, name, severity, seed=(0, k), strengths="cifar")[None]
                for name in names
                for k, image in enumerate(pixels)
            ]
        )
        sure, guess = model((torch.from_numpy(changed).float() / 255 - 0.5) / 0.25).double().softmax(1).max(1)
        right = (guess == labels.repeat(2)).numpy()
        confidence, accuracy, share = result.arrays["reliability"][s, 0]
        for b in range(10):
            inside = ((sure > b / 10) & (sure <= (b + 1) / 10)).numpy()
            assert share[b] == pytest.approx(inside.mean())
            if inside.any():
                assert accuracy[b] == pytest.approx(right[inside].mean())
                assert confidence[b] == pytest.approx(sure.numpy()[inside].mean())


def test_changes_are_paired_over_images():
    """Of 40 images 20 are always right: the interval of the change is far narrower than that of either accuracy."""
    pixels = np.full((40, 1, 8, 8), 200, np.uint8)
    labels = torch.arange(40) % 2
    rows = by_condition(corruption(Brightness(), Data(pixels, labels, 40), corruptions=["gaussian_noise"], severities=[1]))
    row = rows["gaussian_noise", 1]
    assert row["accuracy_high"] - row["accuracy_low"] > 0.2
    assert row["accuracy_change"] == 0
    assert row["accuracy_change_high"] == pytest.approx(1.96**2 / (40 + 1.96**2), rel=1e-4)  # Tango's; no image changes
    assert row["accuracy_change_low"] == -row["accuracy_change_high"]
    for row in rows.values():
        for metric in ("accuracy", "nll", "ece", "accuracy_change", "nll_change", "ece_change"):
            assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]


@pytest.mark.parametrize("limit", [1, 5, 24])
def test_results_do_not_depend_on_batches_and_threads(limit):
    pixels, labels = dark_and_bright(6)
    settings = {"corruptions": ["glass_blur", "snow"], "severities": [3], "resamples": 5}
    one_batch, several_batches = (corruption(Brightness(), Data(pixels, labels, size), **settings) for size in (6, limit))
    for a, b in zip(one_batch.table, several_batches.table, strict=True):
        assert list(a.values())[2:] == pytest.approx(list(b.values())[2:], abs=1e-6, nan_ok=True)


def test_three_processes_make_the_result_of_one(tmp_path):
    """To the bit, with each condition computed once; a part alone says what is missing, and has no mCE."""
    pixels, labels = dark_and_bright(12, channels=3)
    data = Data(pixels, labels, 5, name="cifar10", mean=(0.5,) * 3, std=(0.25,) * 3)
    settings = {"corruptions": ["fog", "shot_noise", "glass_blur"], "resamples": 5, "seed": 2}
    passes = []
    model = Brightness()
    model.register_forward_hook(lambda *_: passes.append(1))
    expected = corruption(model, data, **settings)
    assert expected.provenance["missing_rows"] == []
    of_one = len(passes)
    parts = []
    for rank in (2, 0, 1):
        parts.append(corruption(model, data, **settings, shard=(rank, 3), partial_results=PartialResults(tmp_path, {})))
    assert [len(part.provenance["missing_rows"]) for part in parts] == [10, 5, 0]
    batches = 3
    assert len(passes) - of_one == of_one + 2 * batches, "the clean images are everybody's"
    assert str(parts[-1].table) == str(expected.table)
    for key, array in expected.arrays.items():
        np.testing.assert_array_equal(parts[-1].arrays[key], array)
    for part in parts[:-1]:
        assert part.provenance["mce"] == "no mCE: parts are missing"
        assert "per_image/correct" not in part.arrays
        part.figure()


def test_a_part_without_work_has_the_clean_images():
    pixels, labels = dark_and_bright(6)
    settings = {"corruptions": ["fog"], "severities": [1], "resamples": 5}
    part = corruption(Brightness(), Data(pixels, labels, 6), **settings, shard=(2, 3))
    assert [(row["corruption"], row["severity"]) for row in part.table] == [("clean", 0)]
    assert part.provenance["missing_rows"] == [1]


def test_normalisation_is_undone_and_applied_again():
    """The same pixels with another normalisation, for a model that expects that one, give the same numbers."""
    pixels, labels = dark_and_bright(8, channels=3)

    class Other(Brightness):
        def forward(self, images):
            mean, std = torch.tensor([0.1, 0.4, 0.6]).view(-1, 1, 1), torch.tensor([0.2, 0.3, 1.5]).view(-1, 1, 1)
            return super().forward((images * std + mean - 0.5) / 0.25)

    settings = {"corruptions": ["fog", "shot_noise"], "severities": [2], "resamples": 5}
    half = Data(pixels, labels, 4, mean=(0.5,) * 3, std=(0.25,) * 3)
    other = Data(pixels, labels, 4, mean=(0.1, 0.4, 0.6), std=(0.2, 0.3, 1.5))
    one, two = corruption(Brightness(), half, **settings), corruption(Other(), other, **settings)
    assert one.table[-1]["nll"] == pytest.approx(two.table[-1]["nll"], abs=1e-5)
    explicit = corruption(Other(), list(other), mean=(0.1, 0.4, 0.6), std=(0.2, 0.3, 1.5), **settings)
    assert explicit.table[-1]["nll"] == two.table[-1]["nll"]


# --- mCE


def test_alexnets_errors_have_the_means_of_the_paper():
    for whose, mean in (("imagenet", 80.54), ("cifar100", 58.99), ("cifar10", 23.86)):
        assert np.mean(ALEXNET["paper"][whose]) == pytest.approx(mean, abs=0.006)
        assert len(ALEXNET["paper"][whose]) == 15
    difference = np.subtract(ALEXNET["paper"]["imagenet"], ALEXNET["published"]["imagenet"])
    assert np.abs(difference).max() < 4.5  # two AlexNets, in the same order
    assert np.corrcoef(ALEXNET["paper"]["imagenet"], ALEXNET["published"]["imagenet"])[0, 1] > 0.98


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100), ("imagenet", 1000)])
def test_mce_of_a_model_that_answers_one_class_of_four(name, classes):
    """It ignores the image, so its error is 3/4 under every corruption."""

    class Same(nn.Module):
        def forward(self, images):
            return 3 * torch.eye(classes)[0].repeat(len(images), 1)

    pixels, labels = np.full((4, 1, 4, 4), 99, np.uint8), torch.tensor([0, 1, 2, 3])
    rows = by_condition(corruption(Same(), Data(pixels, labels, 4, name=name, classes=range(classes)), resamples=20))
    references = {"ce_paper": ALEXNET["paper"][name], "ce_published": ALEXNET["published"].get(name)}
    for column, errors in references.items():
        if errors is None:
            assert np.isnan(rows["mean", None][column])
            continue
        for corruption_name, error in zip(COMMON, errors, strict=True):
            assert rows[corruption_name, None][column] == pytest.approx(75 / error)
        assert rows["mean", None][column] == pytest.approx(np.mean([75 / error for error in errors]))
        assert rows["mean", None][f"{column}_low"] < rows["mean", None][column] < rows["mean", None][f"{column}_high"]
        assert np.isnan(rows["fog", 3][column])


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({}, "fashion", "AlexNet's errors are known of"),
        ({"severities": [1, 2]}, "cifar10", "all five severities"),
    ],
)
def test_no_mce_without_a_reference(settings, name, message):
    pixels, labels = dark_and_bright(4, 8)
    data = Data(pixels, labels, 4, name=name, classes=range(10))
    result = corruption(Brightness(10), data, corruptions=["contrast"], resamples=5, **settings)
    assert message in result.provenance["mce"]
    assert all(np.isnan(row["ce_paper"]) for row in result.table)


def test_no_mce_of_some_corruptions_only():
    pixels, labels = dark_and_bright(4, 8)
    data = Data(pixels, labels, 4, name="cifar10", classes=range(10))
    result = corruption(Brightness(10), data, corruptions=["contrast", "saturate"], resamples=5)
    rows = by_condition(result)
    sentence = "no mCE: means are over 2 corruptions, without 14 of ImageNet-C's, and not comparable with a published mCE"
    assert sentence in result.provenance["mce"]
    assert np.isfinite(rows["contrast", None]["ce_paper"])
    assert np.isnan(rows["saturate", None]["ce_paper"])
    assert np.isnan(rows["mean", None]["ce_paper"])


@pytest.mark.parametrize("installed", [True, False])
def test_fourteen_corruptions_are_not_comparable_with_an_mce_over_fifteen(monkeypatch, installed):
    data = Data(*dark_and_bright(4, 8), 4, name="cifar10", classes=range(10))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    settings = CorruptionSettings()
    assert len(settings.corruptions) == (15 if installed else 14)
    _, sentence = reference_of(data, settings)
    said = "means are over 14 corruptions, without frost, and not comparable with a published mCE, which is over 15"
    assert (said in sentence) is not installed
    assert ("other 14 corruptions, and not comparable with a published mCE" in settings.left_out) is not installed


# --- the official folders


def cifar_c(folder, labels, names):
    """Image i under corruption c at severity s has the grey level 40 c + 8 s + i / 4."""
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    for c, name in enumerate(names):
        level = 40 * c + 8 * np.arange(1, 6)[:, None] + np.arange(len(labels)) // 4
        images = np.broadcast_to(level.reshape(-1, 1, 1, 1), (5 * len(labels), 32, 32, 3)).astype(np.uint8)
        np.save(folder / f"{name}.npy", images)
    return folder


class Level(nn.Module):
    """The grey level as the logit of class 1."""

    def forward(self, images):
        level = (images * 0.25 + 0.5).mean((1, 2, 3)) * 255
        return torch.cat([torch.zeros(len(images), 1), level[:, None] / 10, torch.full((len(images), 8), -99.0)], 1)


@pytest.mark.parametrize("limit", [None, 9])
@pytest.mark.parametrize("side", [32, 16])
def test_cifar_c_is_read_row_by_row(tmp_path, limit, side):
    labels = np.arange(20) % 10
    folder = cifar_c(tmp_path / "CIFAR-10-C", labels, ["fog", "contrast"])
    rows_drawn = stratified(labels, limit, 0) if limit else np.arange(20)
    pixels = np.zeros((len(rows_drawn), 3, side, side), np.uint8)
    data = Data(pixels, torch.from_numpy(labels[rows_drawn]), 6, name="cifar10", classes=range(10),
                mean=(0.5,) * 3, std=(0.25,) * 3, limit=limit)  # fmt: skip
    result = corruption(Level(), data, corruptions=["contrast", "fog"], folder=folder, resamples=5)
    rows = by_condition(result)
    for c, name in enumerate(["fog", "contrast"]):
        for severity in SEVERITIES:
            level = torch.from_numpy((40 * c + 8 * severity + rows_drawn // 4) / 10)
            logits = torch.cat([torch.zeros(len(level), 1), level[:, None], torch.full((len(level), 8), -99.0)], 1)
            nll = nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows_drawn])).item()
            assert rows[name, severity]["nll"] == pytest.approx(nll, rel=1e-5)
    assert "official" not in result.provenance["mce"]
    assert result.provenance["settings"]["strengths"] == "as in the official files"


def imagenet_c(folder, names, between=""):
    for c, name in enumerate(names):
        for severity in (1, 2):
            for k, wnid in enumerate(("n01", "n02")):
                path = folder / between / name / str(severity) / wnid
                path.mkdir(parents=True)
                for i in range(3):
                    grey = np.full((20, 20, 3), 60 * c + 20 * severity + 5 * k + i, np.uint8)
                    Image.fromarray(grey).save(path / f"ILSVRC2012_val_{i:08d}.JPEG", quality=100)
    return folder


@pytest.mark.parametrize("between", ["", "blur"])
def test_imagenet_c_is_read_file_by_file(tmp_path, between):
    for k, wnid in enumerate(("n01", "n02")):
        (tmp_path / "clean" / "val" / wnid).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((20, 20, 3), 200 + k, np.uint8)).save(tmp_path / "clean" / "val" / wnid / f"{i}.png")
    folder = imagenet_c(tmp_path / "ImageNet-C", ["fog", "snow"], between)
    data = load_data(str(tmp_path / "clean"), batch_size=4, split="val")

    class Raw(nn.Module):
        def forward(self, images):
            return torch.stack([torch.zeros(len(images)), images.mean((1, 2, 3)) * 25.5], 1)

    result = corruption(Raw(), data, corruptions=["snow", "fog"], severities=[2, 1], folder=folder, resamples=5)
    rows = by_condition(result)
    for c, name in enumerate(["fog", "snow"]):
        for severity in (1, 2):
            level = torch.tensor([60.0 * c + 20 * severity + 5 * k + i for k in range(2) for i in range(3)]) / 10
            nll = nn.functional.cross_entropy(torch.stack([0 * level, level], 1), torch.tensor([0, 0, 0, 1, 1, 1])).item()
            assert rows[name, severity]["nll"] == pytest.approx(nll, rel=1e-4)
    assert "no mCE" in result.provenance["mce"]


# --- errors, threads, figures


def test_nothing_stays_on_the_model():
    pixels, labels = dark_and_bright(4, 8)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(2, 1, 8, 8))
    with unchanged(model.train()):
        corruption(model, Data(pixels, labels, 4), corruptions=["fog"], severities=[1], resamples=2)
    with unchanged(model), pytest.raises(UserError):
        corruption(model, Data(pixels, labels + 5, 4), corruptions=["fog"], severities=[1], resamples=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruptions": ["fogg"]}, "corruptions has 'fogg', which is not a corruption; did you mean fog"),
        ({"corruptions": ["qqq"]}, "corruptions has 'qqq', which is not a corruption; there are gaussian_noise, "),
        ({"corruptions": []}, "corruptions is empty"),
        ({"corruptions": "fog"}, "corruptions is 'fog'; it must be a list"),
        ({"severities": [0, 1]}, "severities is 0; it must be at least 1, at most 5"),
        ({"severities": [6]}, "severities is 6; it must be at least 1, at most 5"),
        ({"severities": []}, "severities is empty"),
        ({"strengths": "weak"}, "strengths is 'weak'; it must be auto or imagenet or cifar"),
        ({"bins": 0}, "bins is 0; it must be at least 1"),
        ({"mean": (0.0,), "std": (1.0,)}, "the pixels run from .* not from 0 to 1"),
        ({"mean": (0.0,) * 3, "std": (1.0,) * 3}, "3 and 3 numbers, and the images have 1 channels"),
        ({"folder": "nowhere"}, "no folder at nowhere"),
        ({"shard": (3, 3)}, r"shard is \(3, 3\); it must be"),
    ],
)
def test_refuses_in_one_sentence(settings, message):
    pixels, labels = dark_and_bright(4, 8)
    with pytest.raises(UserError, match=message) as refusal:
        corruption(Brightness(), Data(pixels, labels, 4), resamples=2, **settings)
    assert "\n" not in str(refusal.value)


def test_refuses_data_that_cannot_be_corrupted():
    pixels, labels = dark_and_bright(4, 8)
    few = {"corruptions": ["fog"], "severities": [1], "resamples": 2}
    with pytest.raises(UserError, match="do not say how their images were normalised"):
        corruption(Brightness(), list(Data(pixels, labels, 4)), **few)
    with pytest.raises(UserError, match="have 2 channels"):
        corruption(Brightness(), [(noise(2, 2, 8, 8), labels[:2])], mean=(0, 0), std=(1, 1), **few)
    with pytest.raises(UserError, match="no tensor of labels"):
        corruption(Brightness(), [images for images, _ in Data(pixels, labels, 4)], mean=(0.5,), std=(0.25,), **few)
    with pytest.raises(UserError, match="no images"):
        corruption(Brightness(), [], mean=(0.5,), std=(0.25,), **few)


def test_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    pixels, labels = dark_and_bright(4, 8)
    with pytest.raises(Unavailable, match=r"frost needs the library imagecorruptions.*backlight\[corruptions\]"):
        corruption(Brightness(), Data(pixels, labels, 4), corruptions=["fog", "frost"])
    with pytest.raises(Unavailable, match="spatter needs the library cv2"):
        corruption(Brightness(), Data(pixels, labels, 4), corruptions=["spatter"])
    corruption(Brightness(), Data(pixels, labels, 4), corruptions=["fog"], severities=[1], resamples=2)


def test_without_the_extra_the_default_is_the_other_fourteen(monkeypatch):
    pixels, labels = dark_and_bright(4, 8)
    settings = {"severities": [1], "resamples": 2}
    fourteen = [name for name in COMMON if name != "frost"]
    named = corruption(Brightness(), Data(pixels, labels, 4), corruptions=fourteen, **settings)
    assert named.provenance["settings"]["left_out"] == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"left out: frost: its photographs need pip install 'backlight\[corruptions\]'"):
        default = corruption(Brightness(), Data(pixels, labels, 4), **settings)
    assert str(default.table) == str(named.table)
    assert default.provenance["settings"]["corruptions"] == named.provenance["settings"]["corruptions"]
    assert default.provenance["settings"]["left_out"].startswith("frost")


def test_the_doctor_says_what_each_extra_is_for_and_how_to_get_it(monkeypatch):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = doctor.findings()
    assert said["imagecorruptions"] == "the corruptions frost and spatter: missing, pip install 'backlight[corruptions]'"
    assert {extra for extra, _ in doctor.EXTRAS.values()} == set(project["optional-dependencies"])
    assert all(extra in said[package] and purpose in said[package] for package, (extra, purpose) in doctor.EXTRAS.items())


def test_a_wrong_folder_is_one_sentence(tmp_path):
    pixels, labels = dark_and_bright(20, 32, 3)
    folder = cifar_c(tmp_path / "CIFAR-10-C", labels.numpy(), ["fog"])

    def measured(labels=labels, pixels=pixels, names=("fog",), folder=folder, classes=()):
        data = Data(pixels, labels, 7, mean=(0.5,) * 3, std=(0.25,) * 3, classes=classes)
        return corruption(Brightness(), data, corruptions=names, folder=folder, resamples=2)

    measured()
    for message, changed in {
        "snow.npy is missing": {"names": ["snow"]},
        "holds other images than the data": {"labels": 1 - labels},
        "has 20 images at each severity and the data have 12": {"labels": labels[:12], "pixels": pixels[:12]},
    }.items():
        with pytest.raises(UserError, match=message):
            measured(**changed)
    np.save(folder / "fog.npy", np.zeros((7, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match=r"fog.npy holds uint8 of shape \(7, 32, 32, 3\)"):
        measured()
    (folder / "fog.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"fog.npy: it is incomplete"):
        measured()
    imagenet_folder = imagenet_c(tmp_path / "ImageNet-C", ["fog"])
    with pytest.raises(UserError, match=r"the 2 class folders of .* are not the 2 classes of the data"):
        measured(folder=imagenet_folder, classes=("n01", "n03"))
    with pytest.raises(Unavailable, match="3 is missing"):
        measured(folder=imagenet_folder, classes=("n01", "n02"))
    with pytest.raises(Unavailable, match=r"snow.1 is missing"):
        measured(folder=imagenet_folder, names=["snow"], classes=("n01", "n02"))


def test_threads_stop_when_the_caller_stops():
    started = []
    results = computed_ahead(lambda k: started.append(k) or 10 * k, ((k,) for k in range(1000)))
    assert [next(results), next(results)] == [((0,), 0), ((1,), 10)]
    results.close()
    assert len(started) < 100
    with pytest.raises(ZeroDivisionError):
        list(computed_ahead(lambda k: 1 / k, iter([(1,), (0,)])))


def test_figures_are_drawn():
    pixels, labels = dark_and_bright(6, 8)
    result = corruption(Brightness(), Data(pixels, labels, 6), corruptions=["fog", *EXTRA[:1]], severities=[1, 3], resamples=5)
    figure = result.figure()
    assert [ax.get_xlabel() for ax in figure.axes] == ["Severity", "Severity", "Confidence"]
    (mean,) = (line for line in figure.axes[0].lines if line.get_label() == "mean")
    assert mean.get_ydata()[0] == pytest.approx(100 * result.table[0]["accuracy"])
    assert SimpleNamespace(**result.table[-1]).severity is None


def test_the_page_shows_severities_and_mce():
    from backlight.report.sections.corruption import SECTION

    pixels, labels = dark_and_bright(6, 8)
    few = {"resamples": 5, "corruptions": ["fog", "contrast"]}
    plain = corruption(Brightness(), Data(pixels, labels, 6), **few)
    (tabs,) = SECTION.figures([plain, None])
    assert [chart.tab for chart in tabs] == ["Accuracy", "NLL", "ECE"]
    rows = SECTION.derived["corruption/severities"](plain)
    assert [row["at"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows[3]["nll"] == next(r["nll"] for r in plain.table if (r["corruption"], r["severity"]) == ("mean", 3))
    cells_of = {name: cells for name, _, cells in SECTION.metrics([plain, None]).rows}
    assert list(cells_of) == ["Clean", "Fog", "Contrast", "Mean"]
    assert cells_of["Mean"][1] == "–"
    every = corruption(Brightness(10), Data(pixels, labels, 6, name="cifar10", classes=range(10)), resamples=5)
    assert [name for name, _, _ in SECTION.metrics([every]).rows][-1] == "mCE, Park & Kim's AlexNet"
    assert not set(SECTION.needs) - set(plain.table[0])
