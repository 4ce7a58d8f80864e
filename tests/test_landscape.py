"""Landscapes with known values: the centre, quadratic losses, eigenvectors; and what must not change them."""

import copy

import numpy as np
import pytest
import torch
from known_models import unchanged
from torch import nn

from backlight.analyses.landscape import landscape
from backlight.analyses.landscape.measure import plan
from backlight.analyses.landscape.settings import LandscapeSettings
from backlight.curvature.hessian import Hessian
from backlight.curvature.loss import Objective, soft_cross_entropy
from backlight.curvature.perturbed import BFloat16PerturbedModel, PerturbedModel, image_scores
from backlight.data.loading import load_data
from backlight.errors import UserError
from backlight.files import PartialResults
from backlight.models.sources.load import load_model
from backlight.numerics.bootstrap import mean_interval, statistic_interval
from backlight.numerics.calibration import calibration_gaps
from backlight.numerics.lanczos import lanczos
from backlight.results.surface_figures import figure

CLASSES = 4


class Small(nn.Module):
    """A convolution, a norm with a bias, a linear layer."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = norm(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))


def small(dtype=torch.float64, norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    model = Small(norm).to(dtype)
    if norm is nn.BatchNorm2d:
        model.norm.running_var.fill_(1.7)
    return model.eval()


def data(n=24, size=8, dtype=torch.float64, soft=False):
    draw = torch.Generator().manual_seed(1)
    images, labels = torch.randn(n, 3, 6, 6, generator=draw, dtype=torch.float64).to(dtype), torch.arange(n) % CLASSES
    targets = torch.softmax(torch.randn(n, CLASSES, generator=draw, dtype=torch.float64), 1).to(dtype) if soft else labels
    return list(zip(images.split(size), targets.split(size), strict=True))


def measured(model=None, batches=None, **settings):
    settings = {"grid": 5, "resamples": 50, "decay_all": True} | settings
    return landscape(model or small(), batches or data(), **settings)


def row_at(result, x=0.0, y=0.0):
    (row,) = (row for row in result.table if (row["x"], row["y"]) == (x, y))
    return row


def without_seconds(result):
    return {key: value for key, value in result.provenance.items() if key != "seconds"}


# --- the loss itself


@pytest.mark.parametrize("soft", [False, True])
def test_the_centre_is_the_loss_of_the_model(soft):
    model, batches = small(), data(soft=soft)
    objective = Objective(weight_decay=0.1)
    losses = torch.cat([objective.losses(model, *batch) for batch in batches]).detach().numpy()
    centre = row_at(measured(model, batches, weight_decay=0.1, seed=4))
    interval = mean_interval(losses, resamples=50, seed=4)
    assert [centre[f"nll{end}"] for end in ("", "_low", "_high")] == pytest.approx(list(map(float, interval)), rel=1e-12)
    assert centre["decay"] == pytest.approx(objective.decay(dict(model.named_parameters())), rel=1e-12)
    assert centre["loss"] == pytest.approx(centre["nll"] + centre["decay"])
    labels = torch.cat([y.argmax(1) if soft else y for _, y in batches])
    right = torch.cat([model(x).argmax(1) for x, _ in batches]) == labels
    assert centre["accuracy"] == pytest.approx(right.double().mean().item())


def test_another_point_is_the_loss_of_the_model_moved_there():
    """A second way: the stored directions added to a copy by hand."""
    model, batches = small(), data()
    result = measured(model, batches, weight_decay=0.3, radius=0.8)
    first, second = torch.from_numpy(result.arrays["directions"])
    for x, y in ((0.8, -0.4), (0.0, 0.8), (-0.8, -0.8)):
        moved = copy.deepcopy(model)
        vector = nn.utils.parameters_to_vector(moved.parameters()) + x * first + y * second
        nn.utils.vector_to_parameters(vector, moved.parameters())
        row = row_at(result, x, y)
        losses = torch.cat([soft_cross_entropy(moved(images), labels) for images, labels in batches])
        assert row["nll"] == pytest.approx(losses.mean().item(), rel=1e-10)
        assert row["decay"] == pytest.approx(0.15 * vector.square().sum().item(), rel=1e-10)


def test_only_what_decays_is_in_the_decay_and_only_what_is_trained_moves():
    model = small()
    model.head.requires_grad_(False)
    result = measured(model, weight_decay=0.2, decayed=lambda _, p: p.ndim > 1)
    first, second = torch.from_numpy(result.arrays["directions"])
    conv = model.conv.weight.detach().flatten()
    expected = 0.1 * (conv + first[: len(conv)] - second[: len(conv)]).square().sum()
    assert row_at(result, 1, -1)["decay"] == pytest.approx(expected.item())
    assert len(first) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert result.provenance["plane"]["parameters_moved"] == conv.numel()
    assert result.provenance["plane"]["left_alone"] == ["conv.bias", "norm.weight", "norm.bias"]


def test_random_directions_move_filters_as_far_as_they_are_long():
    model = small()
    (first,) = measured(model, dimensions=1).arrays["directions"]
    moved = torch.from_numpy(first[: model.conv.weight.numel()]).view_as(model.conv.weight)
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), model.conv.weight.detach().flatten(1).norm(dim=1))


def test_the_loss_can_be_any_function():
    def squares(logits, targets):
        return (logits - nn.functional.one_hot(targets, CLASSES)).square().sum(1)

    model, batches = small(), data()
    losses = torch.cat([squares(model(images), labels) for images, labels in batches])
    assert row_at(measured(model, batches, loss=squares))["nll"] == pytest.approx(losses.mean().item())


# --- curvature


def test_a_linear_regression_is_a_parabola_in_every_direction():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, CLASSES, bias=False)).double()
    batches = data()

    def squares(logits, targets):
        return (logits - nn.functional.one_hot(targets, CLASSES)).square().sum(1)

    result = measured(model, batches, loss=squares, dimensions=1, grid=9, weight_decay=0.5)
    surface = result.surface()
    parabola = np.polyfit(surface.x, surface.z[0], 2)
    np.testing.assert_allclose(np.polyval(parabola, surface.x), surface.z[0], rtol=1e-10)
    (direction,) = torch.from_numpy(result.arrays["directions"])
    changes = [images.flatten(1) @ direction.view(CLASSES, -1).T for images, _ in batches]
    exact = 2 * torch.cat(changes).square().sum(1).mean().item()  # the second derivative of a sum of squares
    assert result.provenance["flatness"]["curvature"][0][0] == pytest.approx(exact, rel=1e-8)
    assert result.provenance["flatness"]["curvature_of_decay"][0] == pytest.approx(0.5 * direction.square().sum().item())
    assert 2 * parabola[0] == pytest.approx(exact, rel=1e-8)


def test_second_differences_along_an_eigenvector_are_its_eigenvalue():
    model, batches = small(), data()
    result = measured(model, batches, directions="eigenvectors", grid=3, weight_decay=0.0)
    pairs = lanczos(Hessian(model, Objective(), batches), k=2, which="largest", tol=1e-8)
    curvatures = result.provenance["flatness"]["curvature"]
    for (value, low, high), eigenvalue in zip(curvatures, pairs.values, strict=True):
        assert value == pytest.approx(eigenvalue, rel=2e-4)
        assert low <= value <= high
    assert result.provenance["plane"]["lengths"] == pytest.approx([1, 1])
    assert result.provenance["plane"]["eigenvalues"] == pytest.approx(pairs.values, rel=1e-3)
    assert result.axes[0] == "Eigenvector 1"


def test_curvature_has_the_interval_of_its_images():
    result = measured(resamples=200)
    (value, low, high), _ = result.provenance["flatness"]["curvature"]
    step = result.provenance["flatness"]["curvature_step"]
    model, batches = small(), data()
    (direction, _) = torch.from_numpy(result.arrays["directions"])
    losses = []
    for side in (-step, 0, step):
        moved = copy.deepcopy(model)
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(moved.parameters()) + side * direction, moved.parameters())
        losses.append(torch.cat([soft_cross_entropy(moved(x), y) for x, y in batches]).detach().numpy())
    slow = mean_interval((losses[0] - 2 * losses[1] + losses[2]) / step**2, resamples=200)
    assert [value, low, high] == pytest.approx(list(map(float, slow)), rel=1e-6)


# --- intervals


def test_ece_and_its_interval_equal_a_loop_over_resamples():
    model, batches = small(), data()
    probabilities = torch.cat([model(images).softmax(1) for images, _ in batches]).detach()
    confidence = probabilities.max(1).values.numpy()
    correct = (probabilities.argmax(1) == torch.cat([labels for _, labels in batches])).double().numpy()

    def ece(weights):
        gaps, mass = calibration_gaps(confidence, correct, weights, np.linspace(0, 1, 8))
        return np.array(mass @ np.abs(gaps))

    interval = statistic_interval(ece, len(correct), resamples=60, seed=3, within=(0, 1))
    centre = row_at(measured(model, batches, bins=7, resamples=60, seed=3))
    assert [centre[f"ece{end}"] for end in ("", "_low", "_high")] == pytest.approx([float(end) for end in interval])


def test_one_image_has_no_interval():
    row = row_at(measured(batches=data(1, 1)))
    columns = ("nll", "loss", "accuracy", "ece")
    assert np.isnan([row[f"{column}_{end}"] for column in columns for end in ("low", "high")]).all()
    assert np.isfinite([row["nll"], row["ece"]]).all()


# --- one function of the weights


def test_a_point_measured_twice_gives_the_same_numbers():
    """Dropout is off, and no new image is drawn."""
    model = nn.Sequential(small(), nn.Dropout(0.5)).double().train()
    assert measured(model).table == measured(model).table


def test_seeds_make_directions():
    model = small()
    assert measured(model, seed=1).table == measured(model, seed=1).table
    assert measured(model, seed=1).provenance["plane"]["sha256"] != measured(model, seed=2).provenance["plane"]["sha256"]


@pytest.mark.parametrize("size", [1, 5, 24])
def test_the_size_of_batches_does_not_matter(size):
    model = small()
    results = measured(model, data(size=size)), measured(model, data(size=12))
    for column in ("nll", "nll_low", "accuracy", "ece_high"):
        np.testing.assert_allclose(*([row[column] for row in result.table] for result in results), rtol=1e-12)


@pytest.mark.parametrize("statistics", ["running", "batch", "re-estimated"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_model_is_not_changed(statistics, precision):
    model = small(torch.float32).train()
    model.conv.weight.requires_grad_(True).grad = torch.ones_like(model.conv.weight)
    with unchanged(model):
        measured(model, data(dtype=torch.float32), statistics=statistics, precision=precision, grid=3)
    assert model.conv.weight.grad.sum() == model.conv.weight.numel()
    assert all(p.requires_grad for p in model.parameters())


def test_batch_norms_use_the_requested_statistics():
    model, batches = small(), data()
    batch = copy.deepcopy(model).train()
    expected = torch.cat([soft_cross_entropy(batch(x), y) for x, y in batches]).mean().item()
    assert row_at(measured(model, batches, statistics="batch"))["nll"] == pytest.approx(expected)
    again = copy.deepcopy(model)
    again.norm.reset_running_stats()
    again.norm.momentum = None
    again.train()
    with torch.no_grad():
        for images, _ in batches:
            again(images)
        again.eval()
        expected = torch.cat([soft_cross_entropy(again(x), y) for x, y in batches]).mean().item()
    assert row_at(measured(model, batches, statistics="re-estimated"))["nll"] == pytest.approx(expected)
    assert row_at(measured(model, batches))["nll"] != pytest.approx(expected, rel=1e-3)


# --- precision


def test_bfloat16_is_checked_against_float32_at_nine_points():
    model, batches = small(torch.float32), data(dtype=torch.float32)
    exact, rounded = measured(model, batches), measured(model, batches, precision="bfloat16")
    agreement = rounded.provenance["agreement"]
    assert agreement["points"] == 9
    points = [(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    assert agreement["float32"] == pytest.approx([row_at(exact, *point)["nll"] for point in points], rel=1e-6)
    assert agreement["bfloat16"] == pytest.approx([row_at(rounded, *point)["nll"] for point in points], rel=1e-6)
    largest = max(abs(a / b - 1) for a, b in zip(agreement["bfloat16"], agreement["float32"], strict=True))
    assert agreement["largest_relative_difference"] == pytest.approx(largest)
    assert 0 < largest < 0.02
    assert ("warning" in agreement) == (largest > 1e-3)
    assert "agreement" not in exact.provenance


def test_bfloat16_leaves_batch_norms_and_the_first_and_last_layer_exact():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.LayerNorm(2), nn.Flatten(), nn.Linear(16, CLASSES)
    model, batches = nn.Sequential(*layers, nn.Identity()).eval(), data(dtype=torch.float32)
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    rounded = BFloat16PerturbedModel(PerturbedModel(model, [ones]), batches).at(0.1)
    exact = {name.partition(".")[0] for name, p in rounded.named_parameters() if p.dtype == torch.float32}
    assert exact == {"0", "1", "5"}
    for name, p in model.named_parameters():
        moved = (p + 0.1).to(dict(rounded.named_parameters())[name].dtype).float()
        assert torch.equal(dict(rounded.named_parameters())[name].float(), moved)
    with torch.inference_mode():
        assert rounded(batches[0][0]).dtype == torch.float32


@pytest.mark.parametrize("name", ["demo-cnn", "demo-vit", "demo-alternet"])
def test_bfloat16_of_the_shipped_models_is_near_float32_at_the_centre(name):
    model = load_model(name)
    batches = list(load_data("fashion", model=model, limit=8, batch_size=8))
    models = PerturbedModel(model, []), BFloat16PerturbedModel(PerturbedModel(model, []), batches)
    with torch.inference_mode():
        exact, rounded = (image_scores(each.at(), batches, Objective())[0] for each in models)
    assert abs(rounded - exact).max() > 0
    assert rounded == pytest.approx(exact, abs=0.05)


def test_bfloat16_of_a_model_of_one_layer_is_exact():
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Flatten(), nn.Linear(108, CLASSES)), data(dtype=torch.float32)
    assert measured(model, batches, precision="bfloat16", grid=3).table == measured(model, batches, grid=3).table


# --- the authors' landscape


def test_paper_follows_the_authors_formulas():
    model, batches = small(), data()
    result = measured(model, batches, paper=True, weight_decay=0.05, seed=2)
    draw = torch.Generator().manual_seed(2)
    bases = []
    for _ in range(2):
        basis = {}
        for name, p in model.named_parameters():
            d = torch.randn(p.shape, generator=draw).double()
            w = p.detach()
            d = d * w.norm(dim=0, keepdim=True) / (d.norm(dim=0, keepdim=True) + 1e-7)
            basis[name] = d if w.ndim > 1 else torch.zeros_like(w)
        bases.append(basis)
    for x, y in ((0.5, -1.0), (0.0, 0.0)):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p += x * bases[0][name] + y * bases[1][name]
        l2 = sum(p.norm().item() for p in moved.parameters())
        nll = torch.cat([soft_cross_entropy(moved(images), labels) for images, labels in batches]).mean().item()
        row = row_at(result, x, y)
        assert row["nll"] == pytest.approx(nll, rel=1e-6)
        assert row["loss"] == pytest.approx(nll + 0.05 * l2, rel=1e-6)
    assert result.height == "loss"
    assert np.isnan(result.provenance["flatness"]["curvature_of_decay"]).all()


# --- stopped and shared computations


def resumed(folder, model, **settings):
    """A landscape that uses the partial results in a folder, and the rows that it computes."""
    rows = []
    partial_results = PartialResults(folder, {})
    result = measured(model, partial_results=partial_results, track=lambda todo: rows.extend(todo) or todo, **settings)
    return result, rows


def test_a_killed_run_resumes(tmp_path):
    model, uninterrupted = small(), measured()
    finished = []

    def until_third(rows):
        for row in rows:
            if len(finished) == 3:
                raise KeyboardInterrupt
            yield row
            finished.append(row)

    with pytest.raises(KeyboardInterrupt):
        measured(model, partial_results=PartialResults(tmp_path, {}), track=until_third)
    result, rows = resumed(tmp_path, model)
    assert rows == [3, 4]
    assert result.table == uninterrupted.table
    assert str(without_seconds(result)) == str(without_seconds(uninterrupted))
    for file in list(tmp_path.rglob("*row*"))[::2]:
        file.unlink()
    assert measured(model, partial_results=PartialResults(tmp_path, {})).table == uninterrupted.table


def test_partial_results_of_another_surface_are_not_used(tmp_path):
    model = small()
    measured(model, partial_results=PartialResults(tmp_path, {}))
    for change in ({"seed": 1}, {"radius": 0.5}, {"batches": data(16)}, {"statistics": "batch"}):
        _, rows = resumed(tmp_path, model, **change)
        assert rows == [0, 1, 2, 3, 4], change


def test_processes_share_the_rows(tmp_path):
    model, uninterrupted = small(), measured()
    first = measured(model, partial_results=PartialResults(tmp_path, {}), shard=(0, 2))
    assert {row["y"] for row in first.table} == {-1.0, 0.0, 1.0}
    assert first.provenance["missing_rows"] == [1, 3]
    assert first.claims == []
    assert first.provenance["flatness"] == {}
    second = measured(model, partial_results=PartialResults(tmp_path, {}), shard=(1, 2))
    assert second.table == uninterrupted.table
    result, rows = resumed(tmp_path, model)
    assert result.table == uninterrupted.table
    assert rows == []


# --- infinite values and NaN


def test_infinite_values_stay_and_are_counted():
    model = small(norm=lambda _: nn.Identity())

    def steep(logits, targets):
        return torch.exp(1e3 * (soft_cross_entropy(logits, targets) - 1.3))

    result = measured(model, loss=steep, radius=40.0)
    values = np.array([row["nll"] for row in result.table])
    assert np.isinf(values).any()
    assert result.provenance["not_finite"] == (~np.isfinite(values)).sum()
    infinite = next(row for row in result.table if np.isinf(row["nll"]))
    assert np.isinf(infinite["loss"])
    assert np.isnan(infinite["nll_low"])
    figure([result.surface()], result.panels)


def test_where_a_model_overflows_its_accuracy_is_nan():
    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(108, CLASSES)

        def forward(self, x):
            y = self.head(x.flatten(1))
            return y + 0 * torch.exp(1e3 * (self.head.weight.norm() - 1.5 * 1.2))  # 0 times infinity, far from the centre

    torch.manual_seed(0)
    result = measured(Overflowing().double(), radius=4.0)
    far, centre = row_at(result, 4.0, 4.0), row_at(result)
    assert np.isnan([far["nll"], far["accuracy"], far["ece"]]).all()
    assert np.isfinite([centre["nll"], centre["accuracy"]]).all()


# --- claims


class Bowl(nn.Module):
    """A model whose logits are its weights, for any image."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x):
        return self.weight.flatten().expand(len(x), -1) + 0 * x.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize(("sign", "verdicts"), [(1, ["holds", "holds"]), (-1, ["does not hold", "does not hold"])])
def test_the_claims_of_a_bowl_and_of_a_dome(sign, verdicts):
    start = [[1.0, 2.0], [2.0, -1.0]]

    def bowl(logits, targets):
        return sign * (logits - torch.tensor(start, dtype=torch.float64).flatten()).square().sum(1) * (1 + 0.1 * targets)

    result = measured(Bowl(start), loss=bowl, grid=7)
    assert [claim.verdict for claim in result.claims] == verdicts
    assert result.provenance["flatness"]["nll"]["share_of_rays_never_falling"] == [(sign + 1) / 2] * 3
    if sign > 0:  # the loss is 1.15 times the squared distance, mean over targets 0..3; a step is as long as its direction
        lengths = result.provenance["plane"]["lengths"]
        value, low, high = result.provenance["flatness"]["nll"]["nearest_rise"]
        assert low <= value <= high
        assert result.provenance["flatness"]["curvature"][0][0] == pytest.approx(2 * 1.15 * lengths[0] ** 2, rel=1e-6)


def test_a_flat_loss_decides_nothing():
    result = measured(Bowl([[1.0, 2.0], [3.0, 4.0]]), loss=lambda logits, targets: 0 * logits.sum(1) + targets)
    assert [claim.verdict for claim in result.claims] == ["undecided", "undecided"]
    settings = result.provenance["settings"]
    value, least, most = result.provenance["flatness"]["nll"]["radius_of_rise"]
    assert (value, most) == (np.inf, np.inf)
    assert settings["radius"] <= least < 1.5 * settings["radius"], "the rays end there"


# --- a plan


def test_a_plan_counts_points_and_images():
    expected = plan(small(), data(), LandscapeSettings(grid=5, weight_decay=0.1, radius=2.0))
    assert (expected.points, expected.images) == (25, 24)
    assert expected.seconds > 0
    assert str(expected).startswith("25 points x 24 images: about ")
    assert plan(small(), data(), LandscapeSettings(dimensions=1)).points == 21
    rounded = LandscapeSettings(grid=3, precision="bfloat16")
    assert plan(small(torch.float32), data(dtype=torch.float32), rounded).seconds > 0


# --- figures


def test_figures_of_several_models_share_one_scale():
    surfaces = [measured(name="a").surface(), measured(radius=0.5, seed=1, name="b").surface()]
    drawn = figure(surfaces, ("contour", "surface", "line"))
    axes = [ax for ax in drawn.axes if ax.get_label() != "<colorbar>"]
    for first, second in zip(axes[:3], axes[3:], strict=True):
        assert first.get_xlim() == second.get_xlim()
        assert first.get_ylim() == second.get_ylim()
    assert axes[1].get_zlim() == axes[4].get_zlim()


def test_the_surface_is_the_table_as_a_grid():
    result = measured(radius=0.5)
    row_at(result, -0.5, 0.25)["nll"] = float("nan")
    for column in ("nll", "loss", "accuracy"):
        surface = result.surface(column)
        for i, j in np.ndindex(5, 5):
            row = row_at(result, surface.x[j], surface.y[i])
            ends = [row[f"{column}{end}"] for end in ("", "_low", "_high")]
            np.testing.assert_array_equal([surface.z[i, j], surface.low[i, j], surface.high[i, j]], ends)
    assert np.isnan(result.surface("nll").z[3, 0])
    assert np.isnan(result.surface("decay").low).all()
    with pytest.raises(UserError, match="no column 'height'"):
        result.surface("height")


def test_a_surface_needs_3d_axes_and_a_line_has_no_contours():
    from matplotlib.figure import Figure

    flat = Figure().add_subplot()
    with pytest.raises(UserError, match="projection='3d'"):
        measured(grid=3).draw(flat, "surface")
    with pytest.raises(UserError, match="panel 'line'"):
        measured(grid=3, dimensions=1).draw(flat, "contour")
    measured(grid=3, dimensions=1).figure()


# --- refusals


@pytest.mark.parametrize(
    ("model", "batches", "settings", "says"),
    [
        (small(), data(), {"grid": 4}, "grid is 4; it must be odd"),
        (small(), data(), {"grid": 1}, "at least 3"),
        (small(), data(), {"radius": 0}, "radius is 0"),
        (small(), data(), {"dimensions": 3}, "dimensions is 3"),
        (small(), data(), {"directions": "radnom"}, "did you mean random"),
        (small(), data(), {"normalise": "layer"}, "normalise is 'layer'"),
        (small(), data(), {"precision": "float16"}, "precision is 'float16'"),
        (small(), data(), {"statistics": "mean"}, "statistics is 'mean'"),
        (small(), data(), {"weight_decay": -1}, "weight_decay is -1"),
        (small(), data(), {"bins": 0}, "bins is 0; it must be at least 1"),
        (small(), data(), {"shard": (2, 2)}, r"shard is \(2, 2\)"),
        (small(), data(), {"paper": True, "directions": "path"}, "with paper it must be random"),
        (small(), [], {}, "the data are empty"),
        (small(), [torch.zeros(2, 3, 6, 6)], {}, "no labels"),
        (small(), [(torch.zeros(2, 3, 6, 6), torch.tensor([0, 9]))], {}, "a label is 9"),
        (small(), [(torch.zeros(2, 3, 6, 6), torch.zeros(2, 7))], {}, "4 outputs and the targets have 7 classes"),
        (small().requires_grad_(False), data(), {}, "nothing to move"),
        (small().half(), data(), {}, "the model is in float16"),
        (nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()), [(torch.zeros(4, 4, 2, 2), torch.arange(4))],
         {}, "nothing but biases and norms"),
        (small(), data(), {"directions": "path"}, "two snapshots before the model"),
        (small(), data(), {"loss": lambda logits, targets: logits.sum()}, "reduction='none'"),
    ],
)  # fmt: skip
def test_refuses_in_one_sentence(model, batches, settings, says):
    with unchanged(model), pytest.raises(UserError, match=says) as refusal:
        landscape(model, batches, **({"grid": 3, "resamples": 10} | settings))
    assert "\n" not in str(refusal.value)


def test_names_the_weight_that_is_not_finite():
    model = small()
    model.head.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"head.weight holds values that are not finite"):
        measured(model)


def test_a_compiled_model_is_measured_uncompiled():
    """With a wrapper like that of ``torch.compile``, whose import takes longer than all of these tests."""
    model, compiled = small(), nn.Module()
    compiled._orig_mod = model
    assert measured(compiled, grid=3).table == measured(model, grid=3).table


def test_a_result_can_be_saved(tmp_path):
    result = measured(grid=3)
    folder = result.save(tmp_path / "landscape")
    assert {path.name for path in folder.iterdir()} >= {"rows.parquet", "result.json", "landscape.png"}
