"""The training loss is one fixed function of the weights: closed forms, sums by hand, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backlight.curvature.loss import Objective, differentiable, reestimated, soft_cross_entropy
from backlight.errors import UserError
from backlight.files import PartialResults
from backlight.models.weight_decay import decays


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 36, 3)
    ).double()


def images(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_soft_cross_entropy_is_the_sum_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]], dtype=torch.float64)
    targets = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    z = logits.numpy()
    logs = z - np.log(np.exp(z).sum(1, keepdims=True))
    assert np.allclose(soft_cross_entropy(logits, targets).numpy(), -(targets.numpy() * logs).sum(1), rtol=1e-14)
    hard = torch.tensor([2, 0])
    assert torch.equal(soft_cross_entropy(logits, hard), soft_cross_entropy(logits, F.one_hot(hard, 3).double()))


def test_weight_decay_is_half_its_rate_times_the_squared_norm() -> None:
    model = small()
    named = dict(model.named_parameters())
    every = Objective(weight_decay=0.1).decay(named)
    assert every == pytest.approx(0.05 * sum((p**2).sum().item() for p in named.values()), rel=1e-12)
    kernels = Objective(weight_decay=0.1, decayed=decays(model)).decay(named)
    assert kernels == pytest.approx(0.05 * sum((p**2).sum().item() for p in (model[0].weight, model[5].weight)), rel=1e-12)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_the_model_is_a_fixed_function_and_is_not_changed(statistics: str) -> None:
    model = small().train()
    model[4].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    x = images()
    with differentiable(model, statistics):
        first, second = model(x), model(x)
        stream = model[0](x)
        mean, var = (stream.mean((0, 2, 3)), stream.var((0, 2, 3), unbiased=False))
        if statistics == "running":
            mean, var = model[1].running_mean, model[1].running_var
        expected = F.batch_norm(stream, mean.detach(), var.detach(), model[1].weight, model[1].bias)
    assert torch.equal(first, second), "no dropout"
    assert torch.allclose(first, model[5](expected.relu().flatten(1)), atol=1e-12)
    assert [module.training for module in model.modules()] == modes
    assert model[1].track_running_stats
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_running_statistics_are_averaged_over_the_batches_and_restored() -> None:
    model, first, second = small(), images(6), 2 * images(6) + 1
    model[1].running_mean += 7
    before = model[1].running_mean.clone()
    with reestimated(model, [(first, None), (second, None)]), torch.no_grad():
        means = [model[0](x).mean((0, 2, 3)) for x in (first, second)]
        assert torch.allclose(model[1].running_mean, (means[0] + means[1]) / 2)
    assert torch.equal(model[1].running_mean, before)
    assert model[1].momentum == 0.1


@pytest.mark.parametrize(
    ("objective", "targets", "sentence"),
    [
        (Objective(loss=F.cross_entropy), torch.tensor([0, 1, 2, 0, 1, 2]), "reduction='none'"),
        (Objective(), torch.full((6, 4), 0.25, dtype=torch.float64), "3 outputs and the targets have 4 classes"),
        (Objective(), torch.tensor([0, 1, 2, 0, 1, 3]), "a label is 3"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(objective: Objective, targets: torch.Tensor, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        objective.losses(small(), images(), targets)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean running"):
        Objective(statistics="runing")
    with pytest.raises(UserError, match="weight_decay is -1"):
        Objective(weight_decay=-1)


# --- partial results


def test_partial_results_belong_to_one_request(tmp_path) -> None:
    partial_results = PartialResults(tmp_path / "p", {"seed": 0})
    assert partial_results.get("a") is None
    partial_results.put("a", {"x": np.arange(3.0)})
    assert np.array_equal(PartialResults(tmp_path / "p", {"seed": 0}).get("a")["x"], np.arange(3.0))
    (next((tmp_path / "p").glob("*/a.part"))).write_bytes(b"half")
    assert PartialResults(tmp_path / "p", {"seed": 0}).get("a") is None, "a damaged file is computed again"
    assert PartialResults(tmp_path / "p", {"seed": 1}).get("a") is None
    assert not list((tmp_path / "p").glob("*/a.part"))
    without_folder = PartialResults(None, {})
    without_folder.put("a", {"x": np.arange(3.0)})
    assert without_folder.get("a") is None
