"""Several Hessians at once are each what it is alone, and so are their eigenvalues."""

import copy

import pytest
import torch
from known_models import noise, unchanged
from test_curvature import CLASSES, DECAY, ViT, alternet, cnn, made
from torch import nn

from backlight import draw_batches, load_model
from backlight.curvature import Hessian, lanczos, of_module
from backlight.errors import UserError
from backlight.hessians import Hessians
from backlight.numerics.lanczos import lanczos_each
from backlight.objective import Objective, weights_only


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


def agree(each, tol=1e-12):
    together = Hessians(each)
    for seed in range(2):  # the second by the kept graph
        v = vectors(together, seed)
        expected = torch.stack([hessian @ one for hessian, one in zip(each, v, strict=True)])
        assert expected.norm() > 0
        assert (together.matvec(v) - expected).norm() <= tol * expected.norm()


@pytest.mark.parametrize("make", [cnn, ViT, alternet])
@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_products_are_those_of_each_alone(make, statistics):
    model = made(make)
    with unchanged(model):
        agree(alone(model, drawn(3), Objective(weight_decay=DECAY, decayed=weights_only, statistics=statistics)))


def test_labels_and_another_loss():
    batches = [(images, torch.arange(len(images)) % CLASSES) for images, _ in drawn(2)]
    agree(alone(made(ViT), batches))
    agree(alone(made(cnn), batches, Objective(loss=lambda logits, labels: (logits.square().sum(1) - labels) ** 2)))


def test_a_block_and_frozen_parameters():
    model = made(ViT)
    agree(alone(model, drawn(2), params=of_module("qkv", "norm1")))
    model.patches.requires_grad_(False)
    agree(alone(model, drawn(2)))


def test_tied_and_unused_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b, self.unused = self.a, nn.Linear(2, 2)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x.mean((2, 3)))))

    agree(alone(made(Tied), drawn(2)))


@pytest.mark.parametrize("name", ["demo-cnn", "demo-vit", "demo-alternet"])
def test_the_shipped_models_in_float32(name):
    model = load_model(name)
    batches = list(draw_batches("fashion", model=model, images=12, batch_size=4))
    agree(alone(model, batches), tol=2e-5)


def test_eigenvalues_are_those_of_each_alone_though_some_finish_sooner():
    each = alone(made(ViT), drawn(3))
    expected = [lanczos(hessian, 2, tol=1e-8, seed=seed) for seed, hessian in enumerate(each)]
    found = lanczos_each(Hessians(each), 2, tol=1e-8, seeds=range(3))
    assert len({pairs.matvecs for pairs in expected}) > 1
    for one, other in zip(found, expected, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-9)
        assert one.matvecs == other.matvecs
        assert one.converged.all()
        assert (one.vectors.T @ other.vectors).abs().diagonal().tolist() == pytest.approx([1, 1])


class Choosing(nn.Sequential):
    def forward(self, x):
        return super().forward(x) if x.mean().item() > 0 else super().forward(-x)


def test_gradients_and_starts_are_those_of_each_alone():
    each = alone(made(cnn), drawn(2))
    together = Hessians(each)
    expected = torch.stack([hessian.loss_gradient for hessian in each])
    assert (together.loss_gradient - expected).abs().max() <= 1e-12
    found = lanczos_each(together, 2, starts=together.loss_gradient, distinct=True, seeds=[3, 4])
    for seed, hessian, pairs in zip((3, 4), each, found, strict=True):
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
    for each, says in cases:
        with pytest.raises(UserError, match=says):
            Hessians(each)
    together = Hessians(alone(model, [*one, *other]))
    with pytest.raises(UserError, match=r"vectors of shape \(3, 2\) do not fit 2 Hessians"):
        together.matvec(torch.zeros(3, 2))
    with pytest.raises(UserError, match="2 operators need as many seeds, got 1"):
        lanczos_each(together, seeds=[0])
    choosing = Hessians(alone(Choosing(made(ViT)), [*one, *other]))
    with pytest.raises(UserError, match="cannot run Choosing on 2 batches at once, so take one at a time"):
        choosing.matvec(vectors(choosing))


def test_weights_that_change_afterwards_are_noticed():
    model = made(ViT)
    together = Hessians(alone(model, drawn(2)))
    v = vectors(together)
    together.matvec(v)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(UserError, match="weights have changed"):
        together.matvec(v)
