"""The loop: the same seed gives the same weights, also in several processes or after a stop; and each part of an update."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from conftest import TINY
from torch import nn

from backlight.data.augmentation import mixed_targets
from backlight.data.loading import dataset
from backlight.data.training_images import ImagesInFiles, ImagesInMemory, training_images
from backlight.data.training_sampling import epoch_order, micro_batches
from backlight.errors import UserError
from backlight.models.sources.load import load_model
from backlight.recipes import FASHION, RECIPES, Recipe, recipe
from backlight.training.loop import Training, frozen_statistics, learning_rate, optimizer, sam_ascent, train

QUICK = replace(FASHION, epochs=2, batch_size=16, warmup_epochs=1)
PLAIN = replace(QUICK, crop_pad=0, flip=False, erase=0.0)
FULL = {"rand_augment": "rand-m9-n2-mstd1.0", "mixup": 1.0, "cutmix": 0.8, "ema": 0.9, "sam": 0.05, "accumulate": 2}
DROPS = TINY + "&drop_path_rate=0.5"


@pytest.fixture(scope="module")
def images() -> ImagesInMemory:
    small = training_images(dataset("fashion", "train", limit=80), (28, 28), 1)
    assert isinstance(small, ImagesInMemory)
    return small


def start(images: ImagesInMemory, recipe: Recipe, seed: int = 0, spec: str = DROPS) -> Training:
    return train(load_model(spec, pretrained=False), images, recipe, seed=seed)


def trained(images: ImagesInMemory, seed: int = 0, **changes: object) -> tuple[list[float], dict[str, torch.Tensor]]:
    training = start(images, replace(QUICK, **changes), seed)
    return [step.loss for step in training], training.averaged.state_dict()


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


# Determinism


@pytest.mark.parametrize("changes", [{}, FULL])
def test_the_same_seed_gives_the_same_weights(images: ImagesInMemory, changes: dict[str, float]) -> None:
    (losses, one), (again, two), (other, _) = (trained(images, seed, **changes) for seed in (0, 0, 1))
    assert losses == again != other
    assert same(one, two)


@pytest.mark.parametrize("changes", [{}, FULL])
@pytest.mark.parametrize("stop", [1, 5, 7])
def test_a_training_resumes_bit_for_bit(images: ImagesInMemory, stop: int, changes: dict[str, float]) -> None:
    unstopped = start(images, replace(QUICK, **changes))
    losses = [step.loss for step in unstopped]
    first = start(images, replace(QUICK, **changes))
    before = [step.loss for step in islice(first, stop)]
    state = copy.deepcopy(first.state_dict())
    second = start(images, replace(QUICK, **changes), spec=DROPS)
    nn.init.zeros_(next(second.model.parameters()))  # the initial weights do not matter
    second.load_state_dict(state)
    assert before + [step.loss for step in second] == losses
    assert same(unstopped.averaged.state_dict(), second.averaged.state_dict())
    assert same(unstopped.model.state_dict(), second.model.state_dict())


def test_the_callers_random_numbers_do_not_change(images: ImagesInMemory) -> None:
    def drawn() -> tuple[torch.Tensor, np.ndarray]:
        return torch.rand(3), np.random.rand(3)

    torch.manual_seed(5)
    np.random.seed(5)
    expected = drawn()
    torch.manual_seed(5)
    np.random.seed(5)
    for _ in start(images, replace(QUICK, **FULL)):
        torch.rand(0)
    after = drawn()
    assert torch.equal(after[0], expected[0])
    assert np.array_equal(after[1], expected[1])


def test_an_epoch_has_every_image_once_and_each_epoch_another_order() -> None:
    settings = {"cropped": False, "seed": 3}
    steps = [torch.cat([b.images for b in micro_batches(QUICK, 80, (28, 28), step=s, **settings)]) for s in range(10)]
    epochs = [torch.cat(steps[:5]).tolist(), torch.cat(steps[5:]).tolist()]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(80))
    assert epochs[0] != epochs[1] != epoch_order(80, 4, 1).tolist()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_several_processes_make_the_images_that_one_makes(images: ImagesInMemory, processes: int, accumulate: int) -> None:
    mixing = replace(QUICK, mixup=1.0, cutmix=1.0, rand_augment="rand-m9-n2-mstd1.0", erase=0.5)
    training = start(images, mixing)
    divided = replace(mixing, accumulate=accumulate)
    settings = {"cropped": False, "seed": 0}
    for step in range(4):
        (batch,) = micro_batches(mixing, 80, (28, 28), step=step, **settings)
        expected, targets = training._batch(batch, images.images[batch.images])
        shares = [
            training._batch(share, images.images[share.images])
            for process in range(processes)
            for share in micro_batches(divided, 80, (28, 28), step=step, process=process, processes=processes, **settings)
        ]
        assert torch.equal(torch.cat([inputs for inputs, _ in shares]), expected)
        assert torch.equal(torch.cat([answers for _, answers in shares]), targets)


# One update


def test_the_first_loss_is_the_cross_entropy_of_the_first_batch(images: ImagesInMemory) -> None:
    indices = epoch_order(80, 0, 0)[:16]
    pixels = (images.images[indices] / 255 - images.mean[0]) / images.std[0]
    logs = load_model(TINY, pretrained=False).train()(pixels).log_softmax(1)
    targets = torch.full((16, 10), 0.01).scatter(1, images.labels[indices][:, None], 0.91)  # smoothing 0.1 over 10 classes
    first = next(iter(start(images, PLAIN, spec=TINY)))
    assert first.loss == pytest.approx(-(targets * logs).sum(1).mean().item(), rel=1e-5)


def one_step(images: ImagesInMemory, recipe: Recipe, spec: str = TINY) -> tuple[nn.Module, nn.Module, tuple[torch.Tensor, ...]]:
    """The model before and after the first update, and its batch."""
    training = start(images, recipe, spec=spec)
    before = copy.deepcopy(training.model).train()
    (drawn,) = micro_batches(recipe, 80, (28, 28), step=0, cropped=False, seed=0)
    batch = training._batch(drawn, images.images[drawn.images])
    next(iter(training))
    return before, training.model, batch


def gradients(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    return [g.clone() for g in torch.autograd.grad(loss, list(model.parameters()))]


SGD = replace(PLAIN, optimizer="sgd", weight_decay=0.0, warmup_epochs=0, clip=0.0, lr=0.1)


def test_sgd_moves_against_the_gradient(images: ImagesInMemory) -> None:
    before, after, batch = one_step(images, SGD)
    for old, g, new in zip(before.parameters(), gradients(before, batch), after.parameters(), strict=True):
        assert torch.allclose(new, old - 0.1 * g, atol=1e-6)


def test_clipping_bounds_the_norm_of_the_step(images: ImagesInMemory) -> None:
    before, after, _ = one_step(images, replace(SGD, clip=1e-3))
    moved = torch.cat([(a - b).flatten() for a, b in zip(after.parameters(), before.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(1e-4, rel=1e-3)


def test_sam_uses_the_gradient_uphill_and_batch_norm_ignores_it(images: ImagesInMemory) -> None:
    before, after, batch = one_step(images, replace(SGD, sam=0.3))
    here = gradients(before, batch)
    first = {name: buffer.clone() for name, buffer in before.named_buffers()}  # after one forward pass
    norm = math.sqrt(sum(g.double().square().sum().item() for g in here))
    uphill = copy.deepcopy(before)
    with torch.no_grad():
        for p, g in zip(uphill.parameters(), here, strict=True):
            p += 0.3 * g / norm
    for old, g, new in zip(before.parameters(), gradients(uphill, batch), after.parameters(), strict=True):
        assert torch.allclose(new, old - 0.1 * g, atol=2e-6)
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(here, gradients(uphill, batch), strict=True))
    assert same(first, dict(after.named_buffers()))


def test_sam_restores_the_weights_after_an_error() -> None:
    layer = nn.Linear(3, 2)
    before = copy.deepcopy(layer.state_dict())
    layer(torch.ones(1, 3)).sum().backward()

    def fail() -> None:
        with sam_ascent(list(layer.parameters()), 1.0), frozen_statistics(layer):
            assert not same(before, layer.state_dict())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert same(before, layer.state_dict())


def test_micro_batches_add_up_to_the_gradient_of_the_batch(images: ImagesInMemory) -> None:
    spec = "vit_tiny_patch16_224?img_size=28&patch_size=7&in_chans=1&embed_dim=12&depth=2&num_heads=2&num_classes=10"
    mixing = replace(SGD, mixup=0.5, cutmix=0.5)
    _, at_once, _ = one_step(images, mixing, spec)
    training = start(images, replace(mixing, accumulate=4), spec=spec)
    next(iter(training))
    for a, b in zip(at_once.parameters(), training.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_average_follows_its_rule(images: ImagesInMemory) -> None:
    training = start(images, replace(QUICK, ema=0.8))
    expected = {name: x.clone().double() for name, x in training.model.state_dict().items()}
    for step in training:
        decay = min(0.8, step.step / (9 + step.step))
        for name, now in training.model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * now if now.is_floating_point() else now.clone().double()
    for name, average in training.averaged.state_dict().items():
        assert torch.allclose(average.double(), expected[name], atol=1e-6), name
    assert training.averaged is not training.model
    assert not training.averaged.training


def test_weight_decay_excludes_norms_and_biases_by_default() -> None:
    model = load_model(TINY, pretrained=False)
    some, all_of_them = (optimizer(model, replace(QUICK, decay_all=value)).param_groups for value in (False, True))
    assert {group["weight_decay"] for group in some} == {0.0, 0.05}
    assert all(p.ndim > 1 for group in some if group["weight_decay"] for p in group["params"])
    assert [group["weight_decay"] for group in all_of_them] == [0.05]
    assert sum(len(group["params"]) for group in all_of_them) == sum(len(group["params"]) for group in some)


def test_bfloat16_products_are_near_those_of_float32(images: ImagesInMemory) -> None:
    losses = [next(iter(start(images, replace(PLAIN, precision=precision), spec=TINY))).loss for precision in ("no", "bf16")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_the_loss_on_training_images_falls(images: ImagesInMemory) -> None:
    training = start(images, replace(PLAIN, epochs=20, label_smoothing=0.0, lr=1e-2), spec=TINY)
    losses = [step.loss for step in training]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert not training.model.training


# Schedules and recipes


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(replace(FASHION, epochs=10, warmup_epochs=2, lr=0.5), step, 7) for step in range(70)]
    assert rates[13] == rates[14] == 0.5
    assert np.allclose(np.diff(rates[:14]), 0.5 / 14)
    assert rates[-1] == pytest.approx(0.25 * (1 + np.cos(np.pi * 55 / 56)))
    assert all(a >= b for a, b in pairwise(rates[14:]))


def test_the_weak_recipe_falls_at_its_milestones() -> None:
    rates = [learning_rate(RECIPES["weak_cifar"], step, 10) for step in range(2010)]
    assert rates[0] == pytest.approx(0.01)
    falls = [step for step, (a, b) in enumerate(pairwise(rates), 1) if b < a]
    assert falls == [610, 1210, 1610]
    assert [rates[step] for step in falls] == pytest.approx([0.02, 0.004, 0.0008])


def test_the_papers_recipe() -> None:
    paper = recipe("cifar")
    assert (paper.lr, paper.weight_decay, paper.batch_size, paper.clip) == (1.25e-4, 0.05, 96, 5)
    assert (paper.warmup_epochs, paper.epochs - paper.warmup_epochs) == (5, 300)
    assert (paper.rand_augment, paper.mixup, paper.cutmix) == ("rand-m9-n2-mstd1.0", 1.0, 0.8)
    assert (paper.label_smoothing, paper.drop_path) == (0.1, 0.1)
    assert recipe("cifar_fast").epochs * 10 <= paper.epochs


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"epochz": 3}, "did you mean epochs"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"optimizer": "adam"}, "adamw or sgd"),
        ({"lr": -1.0}, "lr is -1.0; it must be above 0"),
        ({"sam": 0.1, "precision": "fp16"}, "use --precision bf16"),
        ({"warmup_epochs": 99}, "at most the 60 epochs"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], what: str) -> None:
    with pytest.raises(UserError, match=what):
        recipe("fashion", **fields)


def test_labels_are_class_numbers_without_smoothing_and_probabilities_with_it(images: ImagesInMemory) -> None:
    (batch,) = micro_batches(PLAIN, 80, (28, 28), step=0, cropped=False, seed=0)
    _, hard = start(images, replace(PLAIN, label_smoothing=0.0))._batch(batch, images.images[batch.images])
    _, soft = start(images, PLAIN)._batch(batch, images.images[batch.images])
    assert torch.equal(hard, images.labels[batch.images])
    assert torch.allclose(soft, mixed_targets(hard, hard, 10, 1.0, 0.1))


# Images


def test_the_training_set_is_normalised_by_its_own_pixels(images: ImagesInMemory) -> None:
    pixels = images.images.double() / 255
    assert images.mean == (pytest.approx(pixels.mean().item(), abs=1e-4),)
    assert images.std == (pytest.approx(pixels.std().item(), abs=1e-4),)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_from_files_come_in_the_requested_order(workers: int) -> None:
    source = dataset("fashion", "train", limit=40)
    files = ImagesInFiles(source, (20, 24), 1, workers, (0.5,), (0.5,))
    mixing = replace(QUICK, mixup=1.0)
    requested = [b for step in (0, 1, 0) for b in micro_batches(mixing, 40, (20, 24), cropped=True, seed=1, step=step)]
    batches, images = zip(*files.fetch(requested, 0.5), strict=True)
    assert list(batches) == requested
    assert [x.shape for x in images] == [(len(batch.images), 1, 20, 24) for batch in batches]
    assert all(x.dtype == torch.uint8 for x in images)
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])
    losses = [step.loss for step in train(load_model(TINY, pretrained=False), files, replace(QUICK, crop_pad=0, epochs=1))]
    assert len(losses) == 2


# What cannot be trained


def test_a_loss_that_is_not_finite_stops_with_a_sentence(images: ImagesInMemory) -> None:
    training = start(images, QUICK)
    nn.init.constant_(training.model.get_classifier().weight, float("nan"))
    before = copy.deepcopy(training.model.stem.state_dict())
    with pytest.raises(UserError, match=r"at step 1, learning rate 0.0002: lower the highest learning rate, 0.001"):
        next(iter(training))
    assert same(before, training.model.stem.state_dict())


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"batch_size": 81}, "at most the 80 training images"), ({"accumulate": 3}, "cannot be divided evenly")],
)
def test_a_batch_that_does_not_fit_is_refused(images: ImagesInMemory, changes: dict[str, int], what: str) -> None:
    with pytest.raises(UserError, match=what):
        start(images, replace(QUICK, **changes))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, lambda: RuntimeError("DefaultCPUAllocator: not enough memory")])
def test_out_of_memory_says_which_batch_to_try(images: ImagesInMemory, error: Callable[[], Exception]) -> None:
    training = start(images, QUICK)

    def fail(*_: object) -> None:
        raise error()

    training.network = fail
    with pytest.raises(UserError, match=r"16 images at once .* --accumulate 2, which takes 8 at once .* --batch-size 8"):
        next(iter(training))
