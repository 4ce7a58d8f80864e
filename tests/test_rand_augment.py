"""RandAugment of a batch: equal to timm's on Pillow's images, operation by operation, as a whole, and in distribution."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.stats import chi2_contingency, chisquare, ks_2samp, kstest
from timm.data import auto_augment
from torch import Tensor

from backlight.data.rand_augment import (
    COLOUR_FUNCTIONS,
    DRAWS_PER_LAYER,
    GEOMETRIC,
    OPERATIONS,
    Policy,
    applied,
    argument_of,
    drawn_choice,
    rand_augment,
)
from backlight.errors import UserError

GREYS = (124, 116, 104)
LEVELS = (*np.linspace(0, 10, 21), 8.37, 9.999)


def uniform(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((rows, columns)))


def pictures(channels: int, height: int = 24, width: int = 35) -> np.ndarray:
    """Noise, a ramp of low contrast, one colour, two colours, dark and light blocks, a smooth picture, noise on white.

    They are large enough for equalization to change them.  Shapes: (7, H, W, C) uint8.
    """
    generator = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width]
    noise = generator.integers(0, 256, (height, width, channels))
    ramp = 60 + 2 * x[..., None] + 3 * y[..., None] + np.arange(channels)
    flat = np.full((height, width, channels), 77) + np.arange(channels)
    two = np.where(x[..., None] < 2, 13, 240) + np.arange(channels)
    blocks = 255 * ((x // 4 + y // 4) % 2)[..., None] * np.ones(channels)
    smooth = 127 + 100 * np.sin(x / 3)[..., None] * np.cos(y[..., None] / 4 + np.arange(channels))
    white = np.where(generator.random((height, width, channels)) < 0.6, 255, noise)
    return np.stack([noise, ramp, flat, two, blocks, smooth, white]).astype(np.uint8)


def picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def values(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def batch(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def fill_of(channels: int) -> Any:
    return GREYS if channels == 3 else GREYS[0]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("increasing", [False, True])
def test_an_operation_is_timms_at_every_level(
    name: str, channels: int, increasing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal pixel by pixel, at both signs, in both interpolations."""
    theirs = name + "Increasing" if increasing and name + "Increasing" in auto_augment.NAME_TO_OP else name
    images = pictures(channels)
    fill = torch.tensor(GREYS[:channels], dtype=torch.uint8).view(1, -1, 1, 1)
    for cubic in (False, True) if name in GEOMETRIC else (False,):
        mode = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
        for sign in (-1.0, 1.0):
            monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value, sign=sign: sign * value)
            for level in LEVELS:
                hparams = {"img_mean": fill_of(channels), "interpolation": mode}
                operation = auto_augment.AugmentOp(theirs, prob=1.0, magnitude=level, hparams=hparams)
                argument = argument_of(name, *torch.tensor([[level], [sign]], dtype=torch.float64), increasing).expand(7)
                choice = torch.full((7,), OPERATIONS.index(name)), argument, torch.full((7,), cubic)
                ours = applied(batch(images), *choice, fill).permute(0, 2, 3, 1).numpy()
                if name == "Posterize" and argument[0] == 0:  # new versions of Pillow refuse it
                    assert not ours.any()
                    continue
                expected = np.stack([values(operation(picture(image))) for image in images])
                assert np.array_equal(ours, expected), (level, sign, cubic)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_timms_on_tiny_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: value)
    fill = torch.tensor(GREYS, dtype=torch.uint8).view(1, -1, 1, 1)
    for height, width in ((1, 1), (2, 5), (3, 3)):
        images = pictures(3, height, width)
        hparams = {"img_mean": GREYS, "interpolation": Image.Resampling.BICUBIC}
        operation = auto_augment.AugmentOp(name, prob=1.0, magnitude=8, hparams=hparams)
        argument = argument_of(name, *torch.tensor([[8.0], [1.0]], dtype=torch.float64), False).expand(7)
        ours = applied(batch(images), torch.full((7,), OPERATIONS.index(name)), argument, torch.ones(7).bool(), fill)
        expected = np.stack([values(operation(picture(image))) for image in images])
        assert np.array_equal(ours.permute(0, 2, 3, 1).numpy(), expected)


def test_contrast_is_stretched_as_pillow_does_between_any_two_values() -> None:
    """Pillow's arithmetic in double precision is off by one at some values; ours is off by one at the same values."""
    between = [(low, high) for low in range(0, 255, 6) for high in range(low + 1, 256)]
    ramps = torch.stack([torch.arange(256).clamp(*ends) for ends in between]).to(torch.uint8)
    ours = COLOUR_FUNCTIONS["AutoContrast"](ramps[:, None, None], torch.zeros(len(ramps)))[:, 0, 0]
    theirs = [np.asarray(ImageOps.autocontrast(Image.fromarray(ramp[None]))) for ramp in ramps.numpy()]
    assert np.array_equal(ours.numpy(), np.concatenate(theirs))


class Row:
    """Replaces the modules ``random`` and NumPy in timm's RandAugment: it returns the numbers of one row."""

    def __init__(self, row: list[float]) -> None:
        self.layers = [row[i : i + DRAWS_PER_LAYER] for i in range(0, len(row), DRAWS_PER_LAYER)]
        self.layer, self.calls = -1, 0

    def operations(self, ops: list[Any], *_: object, **__: object) -> list[Any]:
        named = {op.name.removesuffix("Increasing"): op for op in ops}
        return [self.starting(layer, named[OPERATIONS[int(15 * row[0])]]) for layer, row in enumerate(self.layers)]

    def starting(self, layer: int, operation: Any) -> Any:
        def apply(image: Image.Image) -> Image.Image:
            self.layer, self.calls = layer, 0
            return operation(image)

        return apply

    def random(self) -> float:
        """Whether the operation is applied, then its sign, which timm makes negative above 1/2."""
        self.calls += 1
        return self.layers[self.layer][1] if self.calls == 1 else 1 - self.layers[self.layer][3]

    def gauss(self, mean: float, deviation: float) -> float:
        return NormalDist(mean, deviation).inv_cdf(self.layers[self.layer][2])

    def choice(self, options: tuple[Any, Any]) -> Any:
        return options[int(self.layers[self.layer][4] < 0.5)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spelling", ["rand-m9-n2-mstd1.0", "rand-m7-n3-mstd0.5-inc1", "rand-m6-mstd3", "rand-m8-n1"])
def test_all_layers_are_timms_for_the_same_numbers(channels: int, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy.named(spelling)
    theirs = auto_augment.rand_augment_transform(spelling, {"img_mean": fill_of(channels)})
    images = np.concatenate([pictures(channels)[[0, 1, 5]]] * 60)
    u = uniform(len(images), policy.draws)
    settings: Any = vars(policy)
    ours = rand_augment(batch(images), u, **settings, fill=fill_of(channels)).permute(0, 2, 3, 1).numpy()
    monkeypatch.setattr(auto_augment.ImageOps, "posterize", partial(posterized, auto_augment.ImageOps.posterize))
    for image, row, after in zip(images, u.tolist(), ours, strict=True):
        numbers = Row(row)
        monkeypatch.setattr(auto_augment, "random", numbers)
        monkeypatch.setattr(auto_augment.np.random, "choice", numbers.operations)
        assert np.array_equal(values(theirs(picture(image))), after)
    assert not np.array_equal(ours, images)


def posterized(by_pillow: Any, image: Image.Image, bits: int) -> Image.Image:
    """As Pillow did before it refused 0 bits."""
    return by_pillow(image, bits) if bits else image.point([0] * 256 * len(image.getbands()))


def choices_of_timm(spelling: str, times: int) -> list[list[tuple[str, float | None]]]:
    """The operations that timm applies, layer by layer, with their arguments; None where it applies none."""
    theirs = auto_augment.rand_augment_transform(spelling, {"img_mean": GREYS})
    choices: list[list[tuple[str, float | None]]] = []

    def note(name: str, image: object, *arguments: float, **_: object) -> object:
        choices[-1].append((name, arguments[0] if arguments else 0.0))
        return image

    class Noting:
        def __init__(self, operation: Any) -> None:
            self.operation, self.name = operation, operation.name.removesuffix("Increasing")
            operation.aug_fn = partial(note, self.name)

        def __call__(self, image: object) -> object:
            before = len(choices[-1])
            self.operation(image)
            if len(choices[-1]) == before:
                choices[-1].append(("none", None))
            return image

    theirs.ops = [Noting(operation) for operation in theirs.ops]
    random.seed(0)
    np.random.seed(0)
    for _ in range(times):
        choices.append([])
        theirs(object())
    return choices


@pytest.mark.parametrize("spelling", ["rand-m9-n2-mstd1.0", "rand-m5-n2-mstd2.5-inc1"])
def test_operations_and_magnitudes_are_distributed_as_timms(spelling: str) -> None:
    policy, times = Policy.named(spelling), 12000
    theirs = choices_of_timm(spelling, times)
    settings: Any = {key: value for key, value in vars(policy).items() if key != "layers"}
    layers = [drawn_choice(row, **settings) for row in uniform(times, policy.draws).split(DRAWS_PER_LAYER, dim=1)]
    names = np.array([*OPERATIONS, "none"])
    ours = np.stack([names[layer.operation] for layer in layers], 1)
    for layer in range(2):
        counts = Counter(ours[:, layer].tolist())
        expected = [times / 30] * 15 + [times / 2]
        assert chisquare([counts[name] for name in names], expected).pvalue > 1e-3
        assert same_distribution([choices[layer][0] for choices in theirs], ours[:, layer])
    family = {name: name if name == "none" else name[0] for name in names}
    assert same_distribution(
        *([family[a] + family[b] for a, b in pairs] for pairs in ([(a[0], b[0]) for a, b in theirs], ours.tolist()))
    )
    for name in OPERATIONS:
        mine = np.concatenate([layer.argument[layer.operation == OPERATIONS.index(name)].numpy() for layer in layers])
        timms = np.array([argument for choices in theirs for other, argument in choices if other == name])
        if name in ("Posterize", "Solarize", "SolarizeAdd", "AutoContrast", "Equalize", "Invert"):
            assert same_distribution(timms.tolist(), mine.tolist())
        else:
            assert ks_2samp(timms, mine).pvalue > 1e-3
            assert same_distribution(np.sign(timms), np.sign(mine))  # for symmetric operations, half of each sign
    cubic = torch.cat([layer.cubic for layer in layers]).double()
    assert abs(cubic.mean().item() - 0.5) < 4 * 0.5 / len(cubic) ** 0.5


@pytest.mark.parametrize(("magnitude", "deviation"), [(9, 1.0), (5, 2.5)])
def test_levels_are_normal_around_the_magnitude_and_clamped_to_0_and_10(magnitude: int, deviation: float) -> None:
    choice = drawn_choice(uniform(150000, DRAWS_PER_LAYER), magnitude=magnitude, deviation=deviation, increasing=False)
    turned = choice.argument[choice.operation == OPERATIONS.index("Rotate")].abs().numpy() / 3
    shifted = choice.argument[choice.operation == OPERATIONS.index("TranslateXRel")].abs().numpy() / 0.045
    levels, law = np.concatenate([turned, shifted]), NormalDist(magnitude, deviation)
    low, high = law.cdf(0), law.cdf(10)
    inside = levels[(levels > 1e-9) & (levels < 10 - 1e-9)]
    assert kstest(inside, lambda x: (np.vectorize(law.cdf)(x) - low) / (high - low)).pvalue > 1e-3
    for share, expected in (((levels > 10 - 1e-9).mean(), 1 - high), ((levels < 1e-9).mean(), low)):
        assert abs(share - expected) < 4 * (expected * (1 - expected) / len(levels)) ** 0.5 + 1e-9


def same_distribution(one: Any, other: Any) -> bool:
    """Whether two samples of names or integers may come from one distribution (chi-square; rare values are pooled)."""
    counts = [Counter(sample if isinstance(sample, list) else list(sample)) for sample in (one, other)]
    frequent = [key for key in counts[0] | counts[1] if counts[0][key] + counts[1][key] >= 20]
    table = [[count[key] for key in frequent] + [sum(count.values()) - sum(count[key] for key in frequent)] for count in counts]
    nonempty = np.array(table)[:, np.sum(table, axis=0) > 0]
    return nonempty.shape[1] < 2 or bool(chi2_contingency(nonempty).pvalue > 1e-3)


def test_many_augmented_images_have_timms_statistics() -> None:
    """Nothing is patched here: means over 3,000 images each, which differ by less than 4 standard errors."""
    image, times = pictures(3, 20, 24)[5], 3000
    theirs = auto_augment.rand_augment_transform("rand-m9-n2-mstd1.0", {"img_mean": GREYS})
    random.seed(1)
    np.random.seed(1)
    timms = np.stack([values(theirs(picture(image))) for _ in range(times)])
    many = batch(np.stack([image] * times))
    ours = rand_augment(many, uniform(times, Policy().draws), fill=GREYS).permute(0, 2, 3, 1).numpy()
    for one, other in zip(statistics(timms), statistics(ours), strict=True):
        error = np.sqrt((one.var() + other.var()) / times)
        assert abs(one.mean() - other.mean()) < 4 * error
        assert ks_2samp(one, other).pvalue > 1e-4


def statistics(images: np.ndarray) -> list[np.ndarray]:
    """Mean, deviation, slope across, slope down, roughness, colourfulness, corner.  Shapes: (B, H, W, C) -> (B,) each."""
    real = np.ascontiguousarray(images).astype(float)  # one order of summation, because many images are bit-identical
    across, down = np.diff(real, axis=2), np.diff(real, axis=1)
    return [
        real.mean((1, 2, 3)),
        real.std((1, 2, 3)),
        across.mean((1, 2, 3)),
        down.mean((1, 2, 3)),
        np.abs(np.diff(across, axis=2)).mean((1, 2, 3)),
        real.std(3).mean((1, 2)),
        real[:, 0, 0, 0],
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_the_same_however_the_batch_is_split(channels: int) -> None:
    images, u = batch(np.concatenate([pictures(channels, 17, 22)] * 20)), uniform(140, Policy().draws)
    before, expected = images.clone(), rand_augment(images, u)
    assert expected.dtype == torch.uint8
    assert expected.shape == images.shape
    for size in (1, 9, 70):
        parts = [rand_augment(*part) for part in zip(images.split(size), u.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), expected)
    assert torch.equal(rand_augment(images.flip(0), u.flip(0)).flip(0), expected)
    assert torch.equal(images, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_makes_the_same_images_without_a_synchronisation() -> None:
    images, u = batch(np.concatenate([pictures(3, 32, 32)] * 50)), uniform(350, Policy().draws)
    on_gpu = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        augmented = rand_augment(on_gpu, u)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(augmented.cpu(), rand_augment(images, u))


def test_grey_images_in_colour_are_augmented_as_grey_ones() -> None:
    grey = batch(np.concatenate([pictures(1)] * 30))
    u = uniform(210, Policy().draws)
    coloured = rand_augment(grey.expand(-1, 3, -1, -1), u, fill=90)
    assert torch.equal(coloured, rand_augment(grey, u, fill=90).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_interpolation_can_be_set(mode: str) -> None:
    images, u = batch(np.concatenate([pictures(3)] * 20)), uniform(140, Policy().draws)
    fixed = u.clone()
    fixed[:, 4::DRAWS_PER_LAYER] = 0.1 if mode == "bicubic" else 0.9
    assert torch.equal(rand_augment(images, u, interpolation=mode), rand_augment(images, fixed))
    assert not torch.equal(rand_augment(images, u, interpolation=mode), rand_augment(images, u))


def test_the_smallest_and_largest_numbers_are_levels_too() -> None:
    for number in (0.0, float(np.nextafter(1.0, 0.0))):
        u = torch.full((1, DRAWS_PER_LAYER), number, dtype=torch.float64)
        for deviation in (0.0, 1.0):
            choice = drawn_choice(u, magnitude=9, deviation=deviation, increasing=False)
            assert choice.argument.isfinite().all()
            assert choice.operation.item() in (0, 15)


@pytest.mark.parametrize("spelling", ["rand-m9-n2-mstd1.0", "rand-m9-mstd0.5-inc1", "rand-n3", "rand-mstd0.25-m0", "rand"])
def test_a_spelling_gives_timms_settings(spelling: str) -> None:
    policy, theirs = Policy.named(spelling), auto_augment.rand_augment_transform(spelling)
    assert policy.layers == theirs.num_layers
    assert {policy.magnitude} == {op.magnitude for op in theirs.ops}
    assert {policy.deviation} == {op.magnitude_std for op in theirs.ops}
    assert policy.increasing == ("ColorIncreasing" in {op.name for op in theirs.ops})
    assert sorted(OPERATIONS) == sorted(op.name.removesuffix("Increasing") for op in theirs.ops)


@pytest.mark.parametrize(
    "spelling",
    [
        "augmix-m5",
        "rand-m9-p0.3",
        "rand-tweights",
        "rand-mmax15",
        "rand-m9-m8",
        "rand-m9.5",
        "rand-m",
        "",
        "m9",
        "rand-m9-",
        "rand-x",
    ],
)
def test_another_spelling_is_refused(spelling: str) -> None:
    with pytest.raises(UserError, match=r"spelled like rand-m9-n2-mstd1\.0"):
        Policy.named(spelling)


@pytest.mark.parametrize("spelling", ["rand-m11", "rand-n0", "rand-mstd101", "rand-inc2"])
def test_numbers_out_of_range_are_refused(spelling: str) -> None:
    with pytest.raises(UserError, match="m up to 10, n from 1, mstd up to 100 and inc 0 or 1"):
        Policy.named(spelling)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(2, 3, 4, 4), {}, "uint8 images of 1 or 3 channels, not 3 channels of torch.float32"),
        (torch.zeros(2, 2, 4, 4, dtype=torch.uint8), {}, "not 2 channels"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), {"layers": 3}, r"shape \(2, 15\).*\(2, 10\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), {"fill": (1, 2)}, "fill of 2 numbers does not fit images of 3 channels"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), {"interpolation": "nearest"}, "not 'nearest'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(images: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rand_augment(images, uniform(2, 10), **options)
