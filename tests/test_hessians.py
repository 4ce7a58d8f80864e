"""Several Hessians at once equal each of them alone, and so do their eigenvalues."""

import copy

import pytest
import torch
from known_models import noise, unchanged
from test_curvature import CLASSES, DECAY, ViT, alternet, cnn, made
from torch import nn

from backlight import draw_batches, load_model
from backlight.curvature.batched_hessian import Hessians
from backlight.curvature.hessian import Hessian, of_module
from backlight.curvature.loss import Objective
from backlight.errors import UserError
from backlight.models.weight_decay import decays
from backlight.numerics.lanczos import lanczos, lanczos_each


def drawn(count, n=4, dtype=torch.float64):
    return [
        (noise(n, 3, 8, 8, seed=10 + i).to(dtype), noise(n, CLASSES, seed=20 + i).to(dtype).softmax(1)) for i in range(count)
    ]


def alone(model, batches, objective=None, **settings):
    objective = objective or Objective(weight_decay=DECAY)
    return [Hessian(model, objective, [batch], check=False, **settings) for batch in batches]


def vectors(operators, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(operators.count, operators.size, generator=generator, dtype=torch.float64).to(operators.dtype)


def assert_equal_products(hessians, tol=1e-12):
    together = Hessians(hessians)
    for seed in range(2):  # the second uses the stored graph
        v = vectors(together, seed)
        expected = torch.stack([hessian @ one for hessian, one in zip(hessians, v, strict=True)])
        assert expected.norm() > 0
        assert (together.matvec(v) - expected).norm() <= tol * expected.norm()


@pytest.mark.parametrize("make", [cnn, ViT, alternet])
@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_products_equal_those_of_each_hessian_alone(make, statistics):
    model = made(make)
    with unchanged(model):
        assert_equal_products(
            alone(model, drawn(3), Objective(weight_decay=DECAY, decayed=decays(model), statistics=statistics))
        )


def test_labels_and_another_loss():
    batches = [(images, torch.arange(len(images)) % CLASSES) for images, _ in drawn(2)]
    assert_equal_products(alone(made(ViT), batches))
    assert_equal_products(
        alone(made(cnn), batches, Objective(loss=lambda logits, labels: (logits.square().sum(1) - labels) ** 2))
    )


def test_a_block_and_frozen_parameters():
    model = made(ViT)
    assert_equal_products(alone(model, drawn(2), params=of_module("qkv", "norm1")))
    model.patches.requires_grad_(False)
    assert_equal_products(alone(model, drawn(2)))


def test_tied_and_unused_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b, self.unused = self.a, nn.Linear(2, 2)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x.mean((2, 3)))))

    assert_equal_products(alone(made(Tied), drawn(2)))


@pytest.mark.parametrize("name", ["demo-cnn", "demo-vit", "demo-alternet"])
def test_the_shipped_models_in_float32(name):
    model = load_model(name)
    batches = list(draw_batches("fashion", model=model, images=12, batch_size=4))
    assert_equal_products(alone(model, batches), tol=2e-5)


def test_eigenvalues_equal_those_of_each_alone_if_some_converge_earlier():
    hessians = alone(made(ViT), drawn(3))
    expected = [lanczos(hessian, 2, tol=1e-8, seed=seed) for seed, hessian in enumerate(hessians)]
    together = lanczos_each(Hessians(hessians), 2, tol=1e-8, seeds=range(3))
    assert len({pairs.matvecs for pairs in expected}) > 1
    for one, other in zip(together, expected, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-9)
        assert one.matvecs == other.matvecs
        assert one.converged.all()
        assert (one.vectors.T @ other.vectors).abs().diagonal().tolist() == pytest.approx([1, 1])


class Branching(nn.Sequential):
    """Its computation depends on the values of the images."""

    def forward(self, x):
        return super().forward(x) if x.mean().item() > 0 else super().forward(-x)


def test_gradients_and_starts_equal_those_of_each_alone():
    hessians = alone(made(cnn), drawn(2))
    together = Hessians(hessians)
    expected = torch.stack([hessian.loss_gradient for hessian in hessians])
    assert (together.loss_gradient - expected).abs().max() <= 1e-12
    pairs_of_each = lanczos_each(together, 2, starts=together.loss_gradient, distinct=True, seeds=[3, 4])
    for seed, hessian, pairs in zip((3, 4), hessians, pairs_of_each, strict=True):
        assert pairs.values == pytest.approx(lanczos(hessian, 2, start=hessian.loss_gradient, distinct=True, seed=seed).values)


def test_refuses_in_one_sentence():
    model, objective = made(ViT), Objective()
    one, other = ([batch] for batch in drawn(2))
    images, targets = other[0]
    cases = [
        ([*alone(model, one), *alone(model, [(images[:3], targets[:3])])], "of one shape"),
        ([Hessian(model, objective, [*one, *other], check=False)], "of one batch each"),
        ([*alone(model, one), *alone(copy.deepcopy(model), other)], "of one model"),
        ([*alone(model, one), *alone(model, other, params=lambda name, _: "weight" in name)], "the same parameters"),
    ]
    for hessians, says in cases:
        with pytest.raises(UserError, match=says):
            Hessians(hessians)
    together = Hessians(alone(model, [*one, *other]))
    with pytest.raises(UserError, match=r"vectors of shape \(3, 2\) do not fit 2 Hessians"):
        together.matvec(torch.zeros(3, 2))
    with pytest.raises(UserError, match="1 seeds for 2 operators"):
        lanczos_each(together, seeds=[0])
    branching = Hessians(alone(Branching(made(ViT)), [*one, *other]))
    with pytest.raises(UserError, match="cannot run Branching on 2 batches at once, so take one at a time"):
        branching.matvec(vectors(branching))


def test_refuses_weights_that_have_changed():
    model = made(ViT)
    together = Hessians(alone(model, drawn(2)))
    v = vectors(together)
    together.matvec(v)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(UserError, match="weights have changed"):
        together.matvec(v)
