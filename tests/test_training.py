"""Training: the same seed gives the same weights, nothing of the caller's changes, and what is saved is what was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

from backlight.augmentation import crop, erase, flip
from backlight.cli import main
from backlight.data import as_arrays, dataset
from backlight.errors import UserError
from backlight.models.zoo import load_model
from backlight.recipes import FASHION
from backlight.training import TrainingSet, learning_rate, train

QUICK = replace(FASHION, epochs=2, batch_size=16, warmup_epochs=1)


@pytest.fixture(scope="module")
def images() -> TrainingSet:
    return TrainingSet.of(*as_arrays(dataset("fashion", "train", limit=80)), 10)


def trained(images: TrainingSet, seed: int = 0, **changes: object) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = load_model(TINY, pretrained=False)
    losses = [step.loss for step in train(model, images, replace(QUICK, **changes), seed=seed)]
    return losses, model.state_dict()


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.5, "cutmix": 0.5}])
def test_the_same_seed_gives_the_same_weights(images: TrainingSet, changes: dict[str, float]) -> None:
    (losses, one), (again, two), (other, _) = (trained(images, seed, **changes) for seed in (0, 0, 1))
    assert losses == again != other
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_callers_random_numbers_are_their_own(images: TrainingSet) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    for _ in train(load_model(TINY + "&drop_path_rate=0.5", pretrained=False), images, replace(QUICK, mixup=0.5)):
        pass
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


def test_it_learns_what_it_sees(images: TrainingSet) -> None:
    losses, _ = trained(images, epochs=20, crop_pad=0, flip=False, erase=0.0, label_smoothing=0.0, lr=1e-2)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_the_first_loss_is_the_cross_entropy_of_the_first_batch(images: TrainingSet) -> None:
    plain = replace(QUICK, crop_pad=0, flip=False, erase=0.0)
    model = load_model(TINY, pretrained=False)
    chosen = torch.randperm(80, generator=torch.Generator().manual_seed(0))[:16]
    pixels = (images.images[chosen] / 255 - images.mean[0]) / images.std[0]
    logs = model.train()(pixels).log_softmax(1)
    targets = torch.full((16, 10), 0.01).scatter(1, images.labels[chosen][:, None], 0.91)  # smoothing 0.1 over 10 classes
    expected = -(targets * logs).sum(1).mean().item()
    first = next(train(load_model(TINY, pretrained=False), images, plain))
    assert first.loss == pytest.approx(expected, rel=1e-5)


def test_the_training_set_is_normalised_by_its_own_pixels(images: TrainingSet) -> None:
    pixels = images.images.double() / 255
    assert images.mean == (pytest.approx(pixels.mean().item(), abs=1e-4),)
    assert images.std == (pytest.approx(pixels.std().item(), abs=1e-4),)


def test_decay_leaves_norms_and_biases_alone(images: TrainingSet) -> None:
    _, decayed = trained(images, weight_decay=50.0, lr=1e-3)
    _, free = trained(images, weight_decay=0.0, lr=1e-3)
    assert (
        decayed["stem.0.weight" if "stem.0.weight" in decayed else "stem.conv.weight"].norm()
        < 0.9 * free["stem.0.weight" if "stem.0.weight" in free else "stem.conv.weight"].norm()
    )
    assert torch.allclose(decayed["norm.bn.weight"], free["norm.bn.weight"], atol=0.02)


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(replace(FASHION, epochs=10, warmup_epochs=2, lr=0.5), step, 7) for step in range(70)]
    assert rates[13] == rates[14] == 0.5
    assert np.allclose(np.diff(rates[:14]), 0.5 / 14)
    assert rates[-1] == pytest.approx(0.25 * (1 + np.cos(np.pi * 55 / 56)))
    assert all(a >= b for a, b in pairwise(rates[14:]))


def test_a_crop_is_a_shift_of_the_reflected_image() -> None:
    images = torch.randn(20, 2, 9, 7)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    cropped = crop(images, 2, torch.Generator().manual_seed(0)).numpy()
    shifts = set()
    for before, after in zip(padded, cropped, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if np.array_equal(before[:, y : y + 9, x : x + 7], after)]
        assert found
        shifts.add(found[0])
    assert len(shifts) > 5
    assert torch.equal(crop(images, 0, torch.Generator()), images)


def test_half_the_images_are_mirrored() -> None:
    images = torch.randn(400, 1, 3, 4)
    flipped = flip(images, torch.Generator().manual_seed(0))
    mirrored = sum(torch.equal(a.flip(2), b) for a, b in zip(images, flipped, strict=True))
    kept = sum(torch.equal(a, b) for a, b in zip(images, flipped, strict=True))
    assert kept + mirrored == 400
    assert 150 < mirrored < 250


def test_a_share_of_the_images_loses_a_rectangle() -> None:
    images = torch.zeros(600, 1, 20, 16)
    changed = erase(images, 0.4, torch.Generator().manual_seed(0)) != 0
    touched = changed.flatten(1).any(1)
    assert 0.33 < touched.float().mean() < 0.47
    for mask in changed[touched, 0]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert mask.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert changed[touched].float().mean() < 0.33


def test_a_loss_that_is_no_number_stops_with_a_sentence(images: TrainingSet) -> None:
    model = load_model(TINY, pretrained=False)
    torch.nn.init.constant_(model.get_classifier().weight, float("nan"))
    with pytest.raises(UserError, match="lower the learning rate"):
        next(train(model, images, QUICK))


def test_a_trained_model_is_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "mine")
    with pytest.raises(SystemExit) as stop:
        main(["train", TINY, "--epochs", "1", "--limit", "80", "--out", out, "--threads", "1"])
    assert not stop.value.code
    assert "test images" in capsys.readouterr().err
    saved = json.loads((tmp_path / "mine" / "model.json").read_text())
    assert saved["recipe"]["epochs"] == 1
    assert 0 <= saved["test"]["accuracy"][0] <= 1
    assert load_model(out).pretrained_cfg["mean"] == tuple(saved["preprocessing"]["mean"])
    with pytest.raises(SystemExit) as stop:
        main(["train", TINY, "--out", out])
    assert stop.value.code == 2
    assert "holds a model already" in capsys.readouterr().err
