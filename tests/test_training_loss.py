"""The analyses measure the loss that training minimises: its batches, its value and its gradient, for every recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from backlight import draw_batches, hessian, landscape, load_model, run_study, trajectory
from backlight.curvature.batches import Batches
from backlight.curvature.hessian import Hessian
from backlight.curvature.loss import Objective
from backlight.data.loading import dataset
from backlight.data.preprocessing import with_pretrained_cfg
from backlight.data.training_images import ImagesInFiles, TrainingImages, training_images
from backlight.errors import UserError
from backlight.models.sources.saved import saved_recipe
from backlight.models.weight_decay import decays
from backlight.recipes import AUGMENTATION, CIFAR, FASHION, RECIPES, Recipe
from backlight.training.loop import Training, optimizer, train
from backlight.training.run import Run
from backlight.training.run_folder import train_to_folder

MODEL = "word:cc ca?dim=4&heads=1&stem=cifar&in_chans=1&img_size=28"
SMALLER = MODEL.replace("img_size=28", "img_size=24")
COUNT, BATCH, SEED = 48, 16, 3
#: All that the recipes with names leave out.
MORE = {
    "all decay": replace(CIFAR, decay_all=True, weight_decay=0.2),
    "SAM": replace(CIFAR, sam=0.05),
    "micro-batches": replace(CIFAR, accumulate=2),
    "other crops, no flips": replace(FASHION, crop_mode="reflect", crop_pad=3, flip=False, erase=0.5, cutmix=1.0, sam=0.1),
}


def source(limit: int = COUNT) -> Any:
    return dataset("fashion", "train", limit=limit, seed=SEED)


def started(recipe: Recipe, images: TrainingImages, spec: str = MODEL) -> Training:
    """A training in double precision, so that the order of sums does not matter; its batches are those of single precision."""
    model = with_pretrained_cfg(load_model(spec, pretrained=False, num_classes=10), images.preprocessing).double()
    training = train(model, images, replace(recipe, batch_size=BATCH), seed=SEED)
    batch = training._batch

    def doubled(*args: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = batch(*args)
        return inputs.double(), targets.double() if targets.is_floating_point() else targets

    training._batch = doubled  # type: ignore[method-assign]
    return training


def flat(tensors: Iterator[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def assert_near(tensor: Tensor, expected: Tensor) -> None:
    assert expected.norm() > 0
    assert (tensor - expected).norm() <= 1e-10 * expected.norm()


def compare(training: Training, batches: Batches, steps: int) -> list[Tensor]:
    """Run some steps.  Each time the loop computes a gradient, the objective has this value and this gradient at these weights.

    Returns the weights of each gradient.
    """
    compute, model, drawn, visited = training._gradient, training.model, list(batches), []
    rates = {id(p): group["weight_decay"] for group in training.optimizer.param_groups for p in group["params"]}
    objective = Objective.of(batches.recipe.recipe, model, statistics="batch")

    def checked(own: Any) -> Tensor:
        loss = compute(own)
        images, targets = (torch.cat(parts) for parts in zip(*own, strict=True))
        assert torch.equal(images, drawn[training.step][0].double())
        assert torch.equal(targets, drawn[training.step][1].to(targets.dtype))
        measured, parameters = Hessian(model, objective, own, check=False), list(model.parameters())
        gradient = flat(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
        decay = sum(rates[id(p)] / 2 * p.detach().square().sum().item() for p in parameters)
        value = measured.loss()
        assert value["loss"] == pytest.approx(loss.item(), rel=1e-6), "the loop rounds its loss to single precision"
        assert value["weight_decay"] == pytest.approx(decay, rel=1e-12)
        assert sum(value.values()) == pytest.approx(loss.item() + decay, rel=1e-6)
        assert_near(measured.loss_gradient, gradient)
        assert_near(measured.gradient, gradient + flat(rates[id(p)] * p for p in parameters))
        visited.append(measured.weights)
        return loss

    training._gradient = checked  # type: ignore[method-assign]
    assert len(list(islice(training, steps))) == steps
    return visited


# --- the law


@pytest.mark.parametrize("name", [*RECIPES, *MORE])
def test_value_and_gradient_are_those_of_the_training_loop(name: str) -> None:
    recipe = (RECIPES | MORE)[name]
    training = started(recipe, training_images(source(), (28, 28), 1))
    settings = {"images": COUNT, "batch_size": BATCH, "seed": SEED}
    batches = draw_batches("fashion", model=training.model, recipe=recipe, **settings)
    weights = compare(training, batches, 2)
    assert len(weights) == (4 if recipe.sam else 2)
    if recipe.sam:
        assert (weights[1] - weights[0]).norm().item() == pytest.approx(recipe.sam), "the second is SAM's, uphill"


@pytest.mark.parametrize("name", ["imagenet", "weak_imagenet"])
def test_images_of_another_size_are_cropped_as_training_crops_large_ones(name: str) -> None:
    recipe = replace(RECIPES[name], crop_scale=0.3)
    training = started(recipe, ImagesInFiles(source(), (24, 24), 1, 0, (0.3,), (0.35,)), SMALLER)
    batches = draw_batches("fashion", model=training.model, recipe=recipe, images=COUNT, batch_size=BATCH, seed=SEED)
    compare(training, batches, 2)


@pytest.mark.parametrize("spec", [MODEL, "test_vit", "test_resnet"])
@pytest.mark.parametrize("decay_all", [False, True])
def test_what_decays_is_what_the_optimizer_decays(spec: str, decay_all: bool) -> None:
    model = load_model(spec, pretrained=False)
    next(model.parameters()).requires_grad_(False)
    recipe = replace(CIFAR, decay_all=decay_all, weight_decay=0.3)
    objective, groups = Objective.of(recipe, model), optimizer(model, recipe).param_groups
    rates = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in trainable.values()} == set(rates)
    assert {name: 0.3 if objective.decayed(name, p) else 0.0 for name, p in trainable.items()} == {
        name: rates[id(p)] for name, p in trainable.items()
    }
    if not decay_all:
        skipped = getattr(model, "no_weight_decay", set)()
        theirs = param_groups_weight_decay(model, 0.3, no_weight_decay_list=skipped)
        assert {id(p): group["weight_decay"] for group in theirs for p in group["params"]} == rates


def test_not_only_biases_and_norms_are_spared() -> None:
    model = load_model(MODEL, pretrained=False)
    spared = [name for name, p in model.named_parameters() if p.ndim > 1 and not decays(model)(name, p)]
    assert spared
    assert all("bias_table" in name for name in spared)


# --- which recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mine"
    recipe = replace(FASHION, epochs=1, warmup_epochs=0, batch_size=16, mixup=0.3, weight_decay=0.07, decay_all=True)
    run = Run(MODEL, recipe, data="fashion", limit=32, seed=SEED, snapshots=("init",))
    assert list(train_to_folder(run, out, device="cpu"))
    return out


def test_the_recipe_of_a_trained_model_is_the_default(trained: Path) -> None:
    for folder in (trained, trained / "snapshots" / "init"):
        model = load_model(str(folder))
        batches = draw_batches("fashion", model=model, images=32, batch_size=16, seed=SEED)
        assert batches.recipe.record() == {"name": None, "chosen": "saved with the model", "replaced": []}
        assert batches.provenance["augmentation"] == {name: getattr(saved_recipe(model), name) for name in AUGMENTATION}
        assert batches.provenance["augmentation"]["mixup"] == 0.3
        facts = hessian(model, batches, top=1).provenance
        assert (facts["settings"]["weight_decay"], facts["settings"]["decay_all"]) == (0.07, True)
        assert facts["recipe"]["chosen"] == "saved with the model"


def test_a_trained_model_is_measured_on_the_batches_of_its_first_epoch(trained: Path) -> None:
    model = load_model(str(trained))
    recipe = saved_recipe(model)
    assert recipe is not None
    images = training_images(source(32), (28, 28), 1)
    fresh = train(load_model(MODEL, pretrained=False, num_classes=10), images, recipe, seed=SEED)
    fetched = fresh.images.fetch(fresh._micro_batches(), recipe.crop_scale)
    batches = draw_batches("fashion", model=model, images=32, batch_size=16, seed=SEED)
    for (inputs, targets), fetch in zip(batches, fetched, strict=True):
        expected = fresh._batch(*fetch)
        assert torch.equal(inputs, expected[0])
        assert torch.equal(targets, expected[1])


@pytest.mark.parametrize("name", ["demo-cnn", "demo-vit", "demo-alternet"])
def test_the_demo_models_have_their_recipe(name: str) -> None:
    model = load_model(name)
    recipe = saved_recipe(model)
    assert recipe is not None
    assert (recipe.crop_pad, recipe.crop_mode, recipe.rand_augment, recipe.mixup) == (2, "reflect", "", 0.0)
    assert draw_batches("fashion", model=model, images=2, batch_size=2).recipe.recipe == recipe


@pytest.mark.parametrize("given", ["weak_cifar", RECIPES["weak_cifar"]])
def test_a_given_recipe_comes_first_and_single_fields_before_it(given: Recipe | str) -> None:
    model = load_model("demo-cnn")
    batches = draw_batches("fashion", model=model, images=8, batch_size=4, recipe=given, label_smoothing=0.2, mixup=None)
    name = given if isinstance(given, str) else None
    assert batches.recipe.record() == {"name": name, "chosen": "given", "replaced": ["label_smoothing"]}
    assert batches.recipe.recipe == replace(RECIPES["weak_cifar"], label_smoothing=0.2)
    assert batches.batches[0][1].max(1).values == pytest.approx([0.82] * 4)
    facts = hessian(model, batches, top=1, weight_decay=0.2).provenance
    assert facts["recipe"] == {"name": name, "chosen": "given", "replaced": ["label_smoothing", "weight_decay"]}
    assert (facts["settings"]["weight_decay"], facts["settings"]["decay_all"]) == (0.2, True)


def test_batches_of_another_source_have_the_weight_decay_of_the_models_recipe(trained: Path) -> None:
    model = load_model(str(trained))
    batches = list(draw_batches("fashion", model=model, images=8, batch_size=8))
    everywhere = 0.07 / 2 * flat(model.parameters()).double().square().sum().item()
    snapshots = [
        {name: change(t) for name, t in model.state_dict().items()} for change in (lambda t: t + 0.01, lambda t: 1.01 * t)
    ]
    plain = landscape(model, batches, grid=3, dimensions=1, resamples=10)
    path = trajectory(model, batches, snapshots=snapshots, resamples=10, grid=3)
    for row in (plain.table[1], path.table[-1]):
        assert row["decay"] == pytest.approx(everywhere, rel=1e-5)
    some = trajectory(model, batches, snapshots=snapshots, resamples=10, decay_all=False)
    kernels = [p for name, p in model.named_parameters() if decays(model)(name, p)]
    assert some.table[-1]["decay"] == pytest.approx(0.035 * flat(iter(kernels)).double().square().sum().item(), rel=1e-5)
    chosen = landscape(model, batches, grid=3, dimensions=1, resamples=10, decayed=lambda name, _: name == "stem.conv.weight")
    assert chosen.provenance["settings"]["decay_all"] is None
    assert chosen.table[1]["decay"] == pytest.approx(0.035 * model.stem.conv.weight.square().sum().item(), rel=1e-5)  # type: ignore


def test_a_study_passes_recipe_and_fields_on(tmp_path: Path) -> None:
    own = {"batches": 1, "top": 1, "recipe": "cifar", "mixup": 0.0, "cutmix": 0.0, "decay_all": True, "weight_decay": 0.3}
    (outcome,) = run_study(["demo-cnn"], {"hessian": own}, out=tmp_path)
    assert outcome.result is not None
    facts = outcome.result.provenance
    assert facts["recipe"] == {
        "name": "cifar", "chosen": "given", "replaced": ["mixup", "cutmix", "weight_decay", "decay_all"],
    }  # fmt: skip
    expected = asdict(replace(RECIPES["cifar"], mixup=0.0, cutmix=0.0))
    assert facts["data"]["augmentation"] == {name: expected[name] for name in AUGMENTATION}
    squares = flat(load_model("demo-cnn").parameters()).double().square().sum().item()
    assert facts["weight_decay_loss"] == pytest.approx(0.15 * squares, rel=1e-6)


# --- the batches


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load_model(MODEL, pretrained=False, num_classes=10)


def test_batches_depend_on_the_seed_and_do_not_change_the_generators(model: nn.Module) -> None:
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    one, same, other = (draw_batches("fashion", model=model, images=48, batch_size=16, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]
    assert (len(one), one.images) == (3, 48)
    for (x, y), (x2, y2), (x3, _) in zip(one, same, other, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
        assert not torch.equal(x, x3)
        assert x.shape == (16, 1, 28, 28)
        assert torch.allclose(y.sum(1), torch.ones(16)), "soft targets are probabilities"
    assert list(one) == list(one), "a second pass gives the same tensors"


def test_without_augmentation_images_are_prepared_as_test_images_are(model: nn.Module) -> None:
    from backlight import load_data

    none = {"crop_pad": 0, "flip": False}
    settings: dict[str, Any] = {"images": 20, "batch_size": 10, "recipe": "cifar_noaug", "split": "test", **none}
    batches = draw_batches("fashion", model=model, **settings)
    ((expected, labels),) = list(load_data("fashion", model=model, split="test", limit=20, batch_size=20))
    images = torch.cat([x for x, _ in batches])
    order = [next(i for i in range(20) if torch.allclose(x, expected[i], atol=1e-6)) for x in images]
    assert sorted(order) == list(range(20))
    assert order != sorted(order), "shuffled"
    assert labels is not None
    assert torch.equal(torch.cat([y for _, y in batches]), labels[order])


def test_images_have_the_models_colours() -> None:
    coloured = load_model("word:cc?dim=4&stem=cifar&img_size=28", pretrained=False, num_classes=10)
    for network in (coloured, load_model("word:cc?dim=4&stem=cifar&img_size=24", pretrained=False, num_classes=10)):
        network.pretrained_cfg = {**network.pretrained_cfg, "mean": (0.5,) * 3, "std": (0.25,) * 3}
        ((x, _),) = draw_batches("fashion", model=network, images=4, batch_size=4, recipe="cifar_noaug")
        assert x.shape == (4, 3, *network.pretrained_cfg["input_size"][1:])
        assert torch.equal(x[:, 0], x[:, 2]), "grey in three colours"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"images": 0}, "images must be at least 1"),
        ({"images": 8, "batch_size": 4, "recipe": "ciffar"}, "did you mean cifar"),
        ({"images": 8, "batch_size": 4, "mixupp": 1.0}, "no setting 'mixupp'; did you mean mixup"),
        ({"images": 8, "batch_size": 4, "lr": 1.0}, "no setting 'lr'"),
        ({"images": 8, "batch_size": 4, "mixup": -1.0}, "mixup is -1.0; it must be at least 0"),
        ({"images": 2, "batch_size": 4}, "fewer than a batch of 4"),
    ],
)
def test_wrong_requests_for_batches_are_refused(model: nn.Module, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        draw_batches("fashion", model=model, **settings)


def test_a_saved_recipe_that_is_none_is_refused() -> None:
    model = load_model("demo-cnn")
    model.__dict__["saved_recipe"] = {"epochs": 1, "lr": 1.0, "batch_size": 1, "mixupp": 1.0}
    with pytest.raises(UserError, match="the recipe saved with the model: there is no setting 'mixupp'"):
        draw_batches("fashion", model=model, images=2, batch_size=2)
