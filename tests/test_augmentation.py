"""Crops, flips, erasing and mixing: a row decides about its own image only, and results equal torchvision's and timm's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torch import Tensor

from backlight.data import augmentation
from backlight.data.augmentation import (
    CROP_DRAWS,
    ERASE_DRAWS,
    FLIP_DRAWS,
    RESIZED_CROP_DRAWS,
    crop,
    crop_box,
    draw_mixing,
    erase,
    flip,
    mixed,
    mixed_targets,
    resized_crop,
)
from backlight.errors import UserError


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def uniform(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((rows, columns)))


ROWWISE = {
    "crop": (CROP_DRAWS, lambda images, u: crop(images, u, 3)),
    "crop, reflected": (CROP_DRAWS, lambda images, u: crop(images, u, 3, mode="reflect")),
    "flip": (FLIP_DRAWS, flip),
    "resized crop": (RESIZED_CROP_DRAWS, lambda images, u: resized_crop(images, u, (8, 6))),
    "erase": (ERASE_DRAWS, lambda images, u: erase(images, u, 0.7)),
}


@pytest.mark.parametrize("name", ROWWISE)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_the_same_however_the_batch_is_split(name: str, channels: int) -> None:
    columns, change = ROWWISE[name]
    images, u = pixels(23, channels, 12, 17), uniform(23, columns)
    images = images.float() if name == "erase" else images
    before, expected = images.clone(), change(images, u)
    for size in (1, 7, 12):
        parts = [change(*part) for part in zip(images.split(size), u.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), expected)
    backwards = change(images.flip(0), u.flip(0)).flip(0)
    assert torch.equal(backwards, expected)
    assert torch.equal(images, before)
    assert expected.dtype == (torch.float32 if name == "erase" else torch.uint8)
    assert not torch.equal(expected, change(images, uniform(23, columns, seed=1)))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_a_crop_is_a_window_of_the_padded_image(mode: Any) -> None:
    images, u = pixels(60, 2, 9, 7) // 2 + 1, uniform(60, CROP_DRAWS)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode=mode)
    corners = [(int(5 * y), int(5 * x)) for y, x in u.tolist()]
    assert len(set(corners)) > 20
    expected = [image[:, y : y + 9, x : x + 7] for image, (y, x) in zip(padded, corners, strict=True)]
    assert np.array_equal(crop(images, u, 2, mode=mode).numpy(), np.stack(expected))
    assert torch.equal(crop(images, u, 0, mode=mode), images)


def test_half_the_images_are_mirrored() -> None:
    images, u = pixels(400, 1, 3, 4), uniform(400, FLIP_DRAWS)
    for before, after, (number,) in zip(images, flip(images, u), u.tolist(), strict=True):
        assert torch.equal(after, torch.from_numpy(np.flip(before.numpy(), 2).copy()) if number < 0.5 else before)


@pytest.mark.parametrize("size", [(40, 40), (30, 64), (90, 32)])
def test_a_resized_crop_takes_torchvisions_rectangles(size: tuple[int, int]) -> None:
    """Two samples of 4,000, theirs and ours, compared number by number; for long images many attempts do not fit."""
    from torchvision.transforms import RandomResizedCrop

    settings: Any = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
    image = torch.zeros(1, *size)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, *settings.values()) for _ in range(4000)])
    boxes = np.array([crop_box(row, *size, **settings) for row in uniform(4000, RESIZED_CROP_DRAWS).tolist()])
    top, bottom, left, right = boxes.T
    ours = np.stack([top, left, bottom - top, right - left], 1)
    for summary in (*np.eye(4), (0, 0, 1, -1), (1, 0, 1, 0), (0, 1, 0, 1), (1, -1, 0, 0)):
        assert ks_2samp(theirs @ summary, ours @ summary).pvalue > 1e-3
    assert ks_2samp(theirs[:, 2] * theirs[:, 3], ours[:, 2] * ours[:, 3]).pvalue > 1e-3


@pytest.mark.parametrize("size", [(40, 40), (10, 64), (90, 32), (33, 25)])
def test_if_no_attempt_fits_the_crop_is_torchvisions_central_one(size: tuple[int, int]) -> None:
    from torchvision.transforms import RandomResizedCrop

    settings: Any = {"scale": (5.0, 6.0), "ratio": (3 / 4, 4 / 3)}
    top, left, height, width = RandomResizedCrop.get_params(torch.zeros(1, *size), *settings.values())
    row = uniform(1, RESIZED_CROP_DRAWS)[0].tolist()
    assert crop_box(row, *size, **settings) == (top, top + height, left, left + width)


def test_a_resized_crop_is_antialiased() -> None:
    """Against Pillow's resize of the same rectangle; Pillow computes in integers, so a pixel may differ by one."""
    from PIL import Image

    images, u = pixels(12, 3, 40, 50), uniform(12, RESIZED_CROP_DRAWS)
    resized = resized_crop(images, u, 9, interpolation="bicubic")
    for image, row, after in zip(images, u.tolist(), resized, strict=True):
        top, bottom, left, right = crop_box(row, 40, 50, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        cut = Image.fromarray(image[:, top:bottom, left:right].permute(1, 2, 0).numpy())
        expected = np.asarray(cut.resize((9, 9), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(after.permute(1, 2, 0).numpy() - expected).max() <= 1


class Row:
    """Replaces the module ``random`` in timm's erasing: it returns the numbers of one row."""

    def __init__(self, row: list[float]) -> None:
        self.whether, self.attempts, self.corner = row[0], iter(row[1:-3]), iter(row[-3:-1])

    def random(self) -> float:
        return self.whether

    def uniform(self, low: float, high: float) -> float:
        return low + next(self.attempts) * (high - low)

    def randint(self, low: int, high: int) -> int:
        return low + int(next(self.corner) * (high - low + 1))


@pytest.mark.parametrize("size", [(16, 16), (8, 30), (40, 3)])
def test_the_erased_rectangle_is_timms_for_the_same_numbers(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.data import random_erasing

    share, u = 0.6, uniform(500, ERASE_DRAWS)
    ours = erase(torch.full((500, 2, *size), 9.0), u, share) != 9
    theirs = random_erasing.RandomErasing(share, mode="const", device="cpu")
    for row, erased in zip(u.tolist(), ours, strict=True):
        monkeypatch.setattr(random_erasing, "random", Row(row))
        assert torch.equal(theirs(torch.ones(2, *size)) == 0, erased)
    assert 0.3 < ours.flatten(1).any(1).double().mean() < 0.65


def test_erased_pixels_are_normal_noise_that_differs_between_images() -> None:
    u = uniform(300, ERASE_DRAWS)
    erased = erase(torch.full((300, 1, 12, 12), 9.0, dtype=torch.float64), u, 1.0)
    noise = erased[erased != 9]
    assert kstest(noise.numpy(), "norm").pvalue > 1e-3
    assert len(noise.unique()) > 0.999 * len(noise)
    assert torch.equal(erase(erased, u, 0.0), erased)


class Drawn:
    """Replaces NumPy in timm's mixup: the numbers come from a generator like ours."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.sqrt, self.clip = np.sqrt, np.clip
        integers = lambda low, high, size: generator.integers(low, high, size=size)  # noqa: E731
        self.random = SimpleNamespace(rand=generator.random, beta=generator.beta, randint=integers)


@pytest.mark.parametrize(
    ("mixup", "cutmix", "probability", "switch"),
    [(1.0, 0.8, 1.0, 0.5), (0.8, 1.0, 0.7, 0.2), (0.3, 0.0, 1.0, 0.5), (0.0, 0.5, 0.6, 0.5), (1.0, 0.02, 1.0, 0.9)],
)
def test_mixing_is_timms_for_the_same_numbers(
    mixup: float, cutmix: float, probability: float, switch: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.data import mixup as timms

    images, labels = torch.randn(6, 2, 9, 14, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 2, 2, 1, 3])
    theirs = timms.Mixup(mixup, cutmix, prob=probability, switch_prob=switch, label_smoothing=0.1, num_classes=5)
    generator = np.random.default_rng(3)
    monkeypatch.setattr(timms, "np", Drawn(np.random.default_rng(3)))
    kinds = set()
    for _ in range(200):
        lam, box = draw_mixing(generator, 9, 14, mixup, cutmix, probability, switch)
        kinds.add("none" if lam == 1 else "mixup" if box is None else "cutmix")
        expected, targets = theirs(images.clone(), labels)
        assert torch.equal(mixed(images, images.flip(0), lam, box), expected)
        assert torch.equal(mixed_targets(labels, labels.flip(0), 5, lam, 0.1), targets)
    assert ({"mixup"} if mixup else set()) | ({"cutmix"} if cutmix else set()) <= kinds


def test_without_mixup_and_cutmix_nothing_is_mixed() -> None:
    assert draw_mixing(np.random.default_rng(0), 8, 8, 0.0, 0.0) == (1.0, None)
    images = torch.randn(3, 1, 4, 4)
    assert torch.equal(mixed(images, images.flip(0), 1.0, None), images)
    assert torch.equal(mixed_targets(torch.tensor([1]), torch.tensor([0]), 3, 1.0, 0.0), torch.tensor([[0.0, 1.0, 0.0]]))


def test_an_odd_batch_is_mixed_too() -> None:
    images, labels = torch.randn(5, 1, 4, 4), torch.arange(5)
    halves = mixed(images, images.flip(0), 0.25, None)
    assert torch.allclose(halves[0], 0.25 * images[0] + 0.75 * images[4])
    assert torch.allclose(halves[2], images[2])
    assert torch.allclose(mixed_targets(labels, labels.flip(0), 5, 0.25, 0.2).sum(1), torch.ones(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crop(pixels(4, 1, 6, 6), uniform(4, 3), 2), r"shape \(4, 2\).*\(4, 3\)"),
        (lambda: flip(pixels(4, 1, 6, 6), uniform(4, 1).float()), "float64 on the CPU.*float32"),
        (lambda: erase(torch.zeros(4, 1, 6, 6), uniform(3, ERASE_DRAWS), 0.5), "4 images"),
        (lambda: crop(pixels(4, 1, 6, 6), uniform(4, 2), 6, mode="reflect"), "6 pixels of padding cannot mirror"),
        (lambda: crop(pixels(4, 1, 6, 6), uniform(4, 2), 1, mode="wrap"), "constant or reflect, not 'wrap'"),
        (lambda: mixed(pixels(2, 1, 3, 3), pixels(2, 1, 3, 3), 0.5, None), "after they are normalised.*uint8"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_the_last_uniform_number_stays_inside() -> None:
    last = torch.full((1, RESIZED_CROP_DRAWS), float(np.nextafter(1.0, 0.0)), dtype=torch.float64)
    for height, width in ((7, 8), (33, 16), (224, 300)):
        top, bottom, left, right = crop_box(last[0].tolist(), height, width, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        assert augmentation.placed(3, 3, last[0, 0].item(), last[0, 0].item(), height, width)[1] == height
