"""Paths of training: on their plane, in polar coordinates, and their loss, each a second way."""

import copy

import numpy as np
import pytest
import torch
from known_models import unchanged
from scipy.stats import beta, binomtest
from test_landscape import CLASSES, data, small
from torch import nn

from backlight.analyses.landscape import landscape
from backlight.analyses.trajectory import trajectory
from backlight.curvature.loss import soft_cross_entropy
from backlight.errors import UserError
from backlight.numerics.bootstrap import mean_interval


def trained(steps=6):
    """A trained model, and its state dicts before each step."""
    torch.manual_seed(0)
    model, batches, states = small().train(), data(), []
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(steps):
        states.append(copy.deepcopy(model.state_dict()))
        for images, labels in batches:
            optimiser.zero_grad()
            soft_cross_entropy(model(images), labels).mean().backward()
            optimiser.step()
    return model.eval(), states


@pytest.fixture(scope="module")
def run():
    return trained()


def measured(model, states, batches=None, **settings):
    return trajectory(model, batches or data(), snapshots=states, **({"resamples": 50, "decay_all": True} | settings))


def loaded(state):
    model = small()
    model.load_state_dict(state)
    return model.eval()


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def jeffreys(right, images):
    """Accuracy with Jeffreys' interval, and Clopper & Pearson's end where all or none are correct."""
    ends = beta(right + 0.5, images - right + 0.5).ppf([0.025, 0.975])
    exact = binomtest(right, images).proportion_ci(0.95, method="exact")
    return right / images, *(exact if right in (0, images) else ends)


def test_each_row_is_a_snapshot_and_the_last_is_the_model(run):
    model, states = run
    result = measured(model, states, weight_decay=0.2)
    points = [*map(loaded, states), model]
    assert len(result.table) == len(points)
    for row, point in zip(result.table, points, strict=True):
        losses = torch.cat([soft_cross_entropy(point(x), y) for x, y in data()]).detach().numpy()
        right = torch.cat([point(x).argmax(1) == y for x, y in data()]).double().numpy()
        accuracy = jeffreys(int(right.sum()), len(right))
        for name, interval in (("nll", mean_interval(losses, resamples=50)), ("accuracy", accuracy)):
            assert [row[name + end] for end in ("", "_low", "_high")] == pytest.approx(list(map(float, interval)), rel=1e-9)
        assert row["decay"] == pytest.approx(0.1 * np.square(flat(point)).sum())
        assert row["loss"] == pytest.approx(row["nll"] + row["decay"])


def test_coordinates_and_variance_equal_a_singular_value_decomposition(run):
    model, states = run
    result = measured(model, states)
    points = np.stack([flat(point) for point in (*map(loaded, states), model)])
    _, singular, right = np.linalg.svd(points - points.mean(0), full_matrices=False)
    for axis, name in enumerate("xy"):
        coordinates = np.array([row[name] for row in result.table])
        expected = (points - points[-1]) @ right[axis]
        np.testing.assert_allclose(coordinates * np.sign(coordinates[0]), expected * np.sign(expected[0]), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(result.provenance["explained"], singular[:2] ** 2 / (singular**2).sum())
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    np.testing.assert_allclose(result.arrays["distances"], distances, atol=1e-7)
    assert [row["distance"] for row in result.table] == pytest.approx(distances[-1].tolist(), abs=1e-9)


def test_polar_coordinates_follow_the_authors_formulas_and_come_with_a_warning(run):
    model, states = run
    result = measured(model, states)
    points = np.stack([flat(point) for point in (*map(loaded, states), model)])
    first = points[0] - points[-1]
    for row, point in zip(result.table[:-1], points, strict=False):
        step = point - points[-1]
        assert row["radius"] == pytest.approx(np.linalg.norm(step) / np.linalg.norm(first))
        cosine = step @ first / (np.linalg.norm(step) * np.linalg.norm(first))
        assert np.cos(row["angle"]) == pytest.approx(cosine)
    assert np.isnan(result.table[-1]["angle"])
    assert "withdrew" in result.provenance["polar_warning"]


def test_buffers_change_the_loss_but_not_the_path(run):
    model, states = run
    other = copy.deepcopy(states)
    other[1]["norm.running_mean"] += 100
    one, two = measured(model, states), measured(model, other)
    for column in ("x", "y", "radius", "distance", "decay"):
        assert [row[column] for row in one.table] == [row[column] for row in two.table]
    assert one.table[1]["nll"] != two.table[1]["nll"]
    assert one.table[0]["nll"] == two.table[0]["nll"]


def test_snapshots_may_be_models_and_end_with_the_model_itself(run):
    model, states = run
    as_states = measured(model, states)
    as_models = measured(model, [*map(loaded, states), copy.deepcopy(model)])
    assert str(as_models.table) == str(as_states.table)  # an angle is NaN
    prefixed = [{f"_orig_mod.{name}": tensor for name, tensor in state.items()} for state in states]
    assert str(measured(model, prefixed).table) == str(as_states.table)


def test_only_what_decays_is_in_the_decay(run):
    model, states = run
    row = measured(model, states, weight_decay=0.4, decayed=lambda _, p: p.ndim > 1).table[-1]
    assert row["decay"] == pytest.approx(0.2 * sum(p.square().sum().item() for p in model.parameters() if p.ndim > 1))


def test_the_surface_over_the_plane_is_a_landscape_in_the_tables_units(run):
    model, states = run
    result = measured(model, states, grid=5)
    surface, x, y = (result.arrays[name] for name in ("surface", "surface_x", "surface_y"))
    assert surface.shape == (5, 5)
    assert surface[2, 2] == pytest.approx(result.table[-1]["nll"])
    assert (x[2], y[2]) == (0, 0)
    assert x[-1] == pytest.approx(1.2 * max(abs(row[axis]) for row in result.table for axis in "xy"))
    result.figure()


def test_a_landscape_along_the_path_reaches_the_farthest_snapshot(run):
    model, states = run
    result = landscape(model, data(), directions="path", snapshots=states, grid=3, resamples=10)
    assert np.abs(result.arrays["path"]).max() == pytest.approx(1)
    assert result.arrays["path"][-1] == pytest.approx([0, 0])
    table = measured(model, states).table
    scale = max(abs(row[axis]) for row in table for axis in "xy")
    np.testing.assert_allclose(result.arrays["path"] * scale, [[row["x"], row["y"]] for row in table], atol=1e-9)
    filtered = landscape(model, data(), directions="path", snapshots=states, grid=3, resamples=10, normalise="filter")
    assert filtered.provenance["plane"]["left_alone"] == ["conv.bias", "norm.weight", "norm.bias", "head.bias"]
    figure = result.figure()
    assert figure.axes[0].get_xlabel() == "Principal axis 1"


def test_coordinates_of_three_snapshots_give_back_their_weights():
    """Three points lie in one plane, so directions and coordinates give back the weights."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(108, CLASSES, bias=False)

        def forward(self, x):
            return self.head(x.flatten(1))

    torch.manual_seed(0)
    models = [Linear().double() for _ in range(3)]
    result = landscape(models[2], data(), directions="path", snapshots=models[:2], grid=3, resamples=10)
    assert sum(result.provenance["plane"]["explained"]) == pytest.approx(1)
    first, second = torch.from_numpy(result.arrays["directions"])
    for model, (x, y) in zip(models, result.arrays["path"], strict=True):
        weights = models[2].head.weight.detach().flatten() + x * first + y * second
        torch.testing.assert_close(weights, model.head.weight.detach().flatten())


def test_the_claim_is_that_training_lowered_the_loss(run):
    model, states = run
    (claim,) = measured(model, states).claims
    assert claim.verdict == "holds"
    (claim,) = measured(loaded(states[0]), [model, *map(loaded, states[3:1:-1])]).claims
    assert claim.verdict == "does not hold"


def test_model_and_snapshots_are_not_changed(run):
    model, states = copy.deepcopy(run[0]).train(), run[1]
    before = copy.deepcopy(states)
    with unchanged(model):
        measured(model, states, grid=3)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(before, states, strict=True) for name in a)


def test_progress_counts_snapshots_then_rows(run):
    model, states = run
    sizes = []
    measured(model, states, track=lambda steps: sizes.append(len(steps)) or steps)
    assert sizes == [len(states) + 1]
    measured(model, states, grid=3, track=lambda steps: sizes.append(len(steps)) or steps)
    assert sizes == [len(states) + 1] * 2 + [3]


@pytest.mark.parametrize("grid", [1, 4])
def test_a_grid_is_odd_or_none(run, grid):
    with pytest.raises(UserError, match=f"grid is {grid}; it must be odd, at least 3, or 0"):
        measured(*run, grid=grid)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda states: [], "in a point"),
        (lambda states: states[:1], "on a line"),
        (lambda states: [states[0]] * 3, "on a line"),
        (lambda states: [states[0], {k: v for k, v in states[1].items() if k != "head.bias"}], "snapshot 1 has no head.bias"),
        (lambda states: [states[0], {k: v for k, v in states[1].items() if "running" not in k}], "buffers too"),
        (lambda states: [states[0], states[1] | {"head.bias": torch.zeros(9)}], "of shape"),
        (lambda states: [states[0], states[1] | {"head.bias": torch.full((CLASSES,), torch.inf)}], "not finite"),
        (lambda states: [states[0], states[1] | {"norm.running_mean": torch.zeros(9)}], "not one of this model"),
    ],
)
def test_refuses_in_one_sentence(run, change, says):
    model, states = run
    with pytest.raises(UserError, match=says) as refusal:
        measured(model, change(states))
    assert "\n" not in str(refusal.value)
