"""Landscapes where they are known: the centre, quadratic losses, eigenvectors; and what must not change them."""

import base64
import copy
import struct
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from known_models import unchanged
from torch import nn

from backlight.analyses import landscape as module
from backlight.analyses.landscape import eces, landscape, plan
from backlight.analyses.moving import Images, Mover, Rounded
from backlight.curvature import Hessian, lanczos
from backlight.data import load_data
from backlight.errors import UserError
from backlight.models.zoo import load_model
from backlight.numerics.bootstrap import mean_interval, statistic_interval
from backlight.numerics.calibration import calibration_gaps
from backlight.objective import Objective, soft_cross_entropy, weights_only
from backlight.pieces import Pieces
from backlight.surfaces import figure
from backlight.vtp import write_vtp

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


def looked(model=None, batches=None, **settings):
    settings = {"grid": 5, "resamples": 50} | settings
    return landscape(model or small(), batches or data(), **settings)


def at(result, x=0.0, y=0.0):
    (row,) = (row for row in result.table if (row["x"], row["y"]) == (x, y))
    return row


def without_times(result):
    return {key: value for key, value in result.evidence.items() if key != "seconds"}


# --- the loss itself


@pytest.mark.parametrize("soft", [False, True])
def test_the_centre_is_the_loss_of_the_model(soft):
    model, batches = small(), data(soft=soft)
    objective = Objective(weight_decay=0.1)
    losses = torch.cat([objective.losses(model, *batch) for batch in batches]).detach().numpy()
    centre = at(looked(model, batches, weight_decay=0.1, seed=4))
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
    result = looked(model, batches, weight_decay=0.3, radius=0.8)
    first, second = torch.from_numpy(result.arrays["directions"])
    for x, y in ((0.8, -0.4), (0.0, 0.8), (-0.8, -0.8)):
        moved = copy.deepcopy(model)
        vector = nn.utils.parameters_to_vector(moved.parameters()) + x * first + y * second
        nn.utils.vector_to_parameters(vector, moved.parameters())
        row = at(result, x, y)
        losses = torch.cat([soft_cross_entropy(moved(images), labels) for images, labels in batches])
        assert row["nll"] == pytest.approx(losses.mean().item(), rel=1e-10)
        assert row["decay"] == pytest.approx(0.15 * vector.square().sum().item(), rel=1e-10)


def test_only_what_decays_is_in_the_decay_and_only_what_is_trained_moves():
    model = small()
    model.head.requires_grad_(False)
    result = looked(model, weight_decay=0.2, decayed=weights_only)
    first, second = torch.from_numpy(result.arrays["directions"])
    conv = model.conv.weight.detach().flatten()
    expected = 0.1 * (conv + first[: len(conv)] - second[: len(conv)]).square().sum()
    assert at(result, 1, -1)["decay"] == pytest.approx(expected.item())
    assert len(first) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert result.evidence["plane"]["parameters_moved"] == conv.numel()
    assert result.evidence["plane"]["left_alone"] == ["conv.bias", "norm.weight", "norm.bias"]


def test_random_directions_move_filters_as_far_as_they_are_long():
    model = small()
    (first,) = looked(model, dimensions=1).arrays["directions"]
    moved = torch.from_numpy(first[: model.conv.weight.numel()]).view_as(model.conv.weight)
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), model.conv.weight.detach().flatten(1).norm(dim=1))


def test_any_loss_may_be_looked_at():
    def squares(logits, targets):
        return (logits - nn.functional.one_hot(targets, CLASSES)).square().sum(1)

    model, batches = small(), data()
    losses = torch.cat([squares(model(images), labels) for images, labels in batches])
    assert at(looked(model, batches, loss=squares))["nll"] == pytest.approx(losses.mean().item())


# --- curvature


def test_a_linear_regression_is_a_parabola_in_every_direction():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, CLASSES, bias=False)).double()
    batches = data()

    def squares(logits, targets):
        return (logits - nn.functional.one_hot(targets, CLASSES)).square().sum(1)

    result = looked(model, batches, loss=squares, dimensions=1, grid=9, weight_decay=0.5)
    x, _, nll = result.surface()
    line = np.polyfit(x, nll[0], 2)
    np.testing.assert_allclose(np.polyval(line, x), nll[0], rtol=1e-10)
    (direction,) = torch.from_numpy(result.arrays["directions"])
    away = [images.flatten(1) @ direction.view(CLASSES, -1).T for images, _ in batches]
    exact = 2 * torch.cat(away).square().sum(1).mean().item()  # of a sum of squares, twice the squared change
    assert result.evidence["flatness"]["curvature"][0][0] == pytest.approx(exact, rel=1e-8)
    assert result.evidence["flatness"]["curvature_of_decay"][0] == pytest.approx(0.5 * direction.square().sum().item())
    assert 2 * line[0] == pytest.approx(exact, rel=1e-8)


def test_second_differences_along_an_eigenvector_are_its_eigenvalue():
    model, batches = small(), data()
    result = looked(model, batches, directions="eigenvectors", grid=3, weight_decay=0.0)
    pairs = lanczos(Hessian(model, Objective(), batches), k=2, which="largest", tol=1e-8)
    found = result.evidence["flatness"]["curvature"]
    for (value, low, high), eigenvalue in zip(found, pairs.values, strict=True):
        assert value == pytest.approx(eigenvalue, rel=2e-4)
        assert low <= value <= high
    assert result.evidence["plane"]["lengths"] == pytest.approx([1, 1])
    assert result.evidence["plane"]["eigenvalues"] == pytest.approx(pairs.values, rel=1e-3)
    assert result.axes[0] == "Eigenvector 1"


def test_curvature_has_the_interval_of_its_images():
    result = looked(resamples=200)
    (value, low, high), _ = result.evidence["flatness"]["curvature"]
    step = result.evidence["flatness"]["curvature_step"]
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


def test_the_interval_of_an_ece_is_that_of_a_resample_after_the_other():
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0, 1, (3, 40))
    confidence[0, 0] = 1.0
    correct = (draw.uniform(size=(3, 40)) < confidence).astype(float)
    found = eces(confidence, correct, 10, resamples=60, seed=3)
    for p in range(3):

        def ece(weights, p=p):
            gaps, mass = calibration_gaps(confidence[p], correct[p], weights, np.linspace(0, 1, 11))
            return np.array(mass @ np.abs(gaps))

        slow = statistic_interval(ece, 40, resamples=60, seed=3, within=(0, 1))
        assert [end[p] for end in found] == pytest.approx([float(end) for end in slow])


def test_points_done_a_few_at_a_time_have_the_same_ece(monkeypatch):
    draw = np.random.default_rng(0)
    confidence, correct = draw.uniform(0, 1, (7, 30)), draw.integers(0, 2, (7, 30)).astype(float)
    whole = eces(confidence, correct, 10, resamples=20, seed=0)
    monkeypatch.setattr(module, "HELD", 600)
    np.testing.assert_allclose(whole, eces(confidence, correct, 10, resamples=20, seed=0))


def test_one_image_has_no_interval():
    row = at(looked(batches=data(1, 1)))
    assert np.isnan([row[f"{what}_{end}"] for what in ("nll", "loss", "accuracy", "ece") for end in ("low", "high")]).all()
    assert np.isfinite([row["nll"], row["ece"]]).all()


# --- one function of the weights


def test_a_point_asked_for_twice_gives_the_same_numbers():
    """Dropout is off, and no image is drawn anew."""
    model = nn.Sequential(small(), nn.Dropout(0.5)).double().train()
    assert looked(model).table == looked(model).table


def test_seeds_make_directions():
    model = small()
    assert looked(model, seed=1).table == looked(model, seed=1).table
    assert looked(model, seed=1).evidence["plane"]["sha256"] != looked(model, seed=2).evidence["plane"]["sha256"]


@pytest.mark.parametrize("size", [1, 5, 24])
def test_how_the_images_come_in_batches_does_not_matter(size):
    model = small()
    found, whole = looked(model, data(size=size)), looked(model, data(size=12))
    for column in ("nll", "nll_low", "accuracy", "ece_high"):
        np.testing.assert_allclose(*([row[column] for row in result.table] for result in (found, whole)), rtol=1e-12)


@pytest.mark.parametrize("statistics", ["running", "batch", "re-estimated"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_stays_on_the_model(statistics, precision):
    model = small(torch.float32).train()
    model.conv.weight.requires_grad_(True).grad = torch.ones_like(model.conv.weight)
    with unchanged(model):
        looked(model, data(dtype=torch.float32), statistics=statistics, precision=precision, grid=3)
    assert model.conv.weight.grad.sum() == model.conv.weight.numel()
    assert all(p.requires_grad for p in model.parameters())


def test_batch_norms_follow_the_statistics_asked_for():
    model, batches = small(), data()
    batch = copy.deepcopy(model).train()
    expected = torch.cat([soft_cross_entropy(batch(x), y) for x, y in batches]).mean().item()
    assert at(looked(model, batches, statistics="batch"))["nll"] == pytest.approx(expected)
    again = copy.deepcopy(model)
    again.norm.reset_running_stats()
    again.norm.momentum = None
    again.train()
    with torch.no_grad():
        for images, _ in batches:
            again(images)
        again.eval()
        expected = torch.cat([soft_cross_entropy(again(x), y) for x, y in batches]).mean().item()
    assert at(looked(model, batches, statistics="re-estimated"))["nll"] == pytest.approx(expected)
    assert at(looked(model, batches))["nll"] != pytest.approx(expected, rel=1e-3)


# --- precision


def test_bfloat16_is_checked_against_float32_at_nine_points():
    model, batches = small(torch.float32), data(dtype=torch.float32)
    exact, rough = looked(model, batches), looked(model, batches, precision="bfloat16")
    told = rough.evidence["agreement"]
    assert told["points"] == 9
    places = [(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    assert told["float32"] == pytest.approx([at(exact, *place)["nll"] for place in places], rel=1e-6)
    assert told["bfloat16"] == pytest.approx([at(rough, *place)["nll"] for place in places], rel=1e-6)
    worst = max(abs(a / b - 1) for a, b in zip(told["bfloat16"], told["float32"], strict=True))
    assert told["largest_relative_difference"] == pytest.approx(worst)
    assert 0 < worst < 0.02
    assert ("warning" in told) == (worst > 1e-3)
    assert "agreement" not in exact.evidence


def test_bfloat16_leaves_batch_norms_and_the_first_and_last_layer_exact():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.LayerNorm(2), nn.Flatten(), nn.Linear(16, CLASSES)
    model, images = nn.Sequential(*layers, nn.Identity()).eval(), Images(data(dtype=torch.float32))
    rounded = Rounded(Mover(model, [{name: torch.ones_like(p) for name, p in model.named_parameters()}]), images).at(0.1)
    kept = {name.partition(".")[0] for name, p in rounded.named_parameters() if p.dtype == torch.float32}
    assert kept == {"0", "1", "5"}
    for name, p in model.named_parameters():
        moved = (p + 0.1).to(dict(rounded.named_parameters())[name].dtype).float()
        assert torch.equal(dict(rounded.named_parameters())[name].float(), moved)
    with torch.inference_mode():
        assert rounded(images.batches[0][0]).dtype == torch.float32


@pytest.mark.parametrize("name", ["demo-cnn", "demo-vit", "demo-alternet"])
def test_bfloat16_of_the_shipped_models_is_near_float32_at_the_centre(name):
    model = load_model(name)
    images = Images(list(load_data("fashion", model=model, limit=8, batch_size=8)))
    mover, rounded = Mover(model, []), Rounded(Mover(model, []), images)
    with torch.inference_mode():
        exact, rough = (images.scores(m.at(), Objective())[0] for m in (mover, rounded))
    assert abs(rough - exact).max() > 0
    assert rough == pytest.approx(exact, abs=0.05)


def test_bfloat16_of_a_model_of_one_layer_is_exact():
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Flatten(), nn.Linear(108, CLASSES)), data(dtype=torch.float32)
    assert looked(model, batches, precision="bfloat16", grid=3).table == looked(model, batches, grid=3).table


# --- the authors' way


def test_paper_follows_the_authors_formulas():
    model, batches = small(), data()
    result = looked(model, batches, paper=True, weight_decay=0.05, seed=2)
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
        row = at(result, x, y)
        assert row["nll"] == pytest.approx(nll, rel=1e-6)
        assert row["loss"] == pytest.approx(nll + 0.05 * l2, rel=1e-6)
    assert result.height == "loss"
    assert np.isnan(result.evidence["flatness"]["curvature_of_decay"]).all()


# --- stopping and going on


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    model, whole = small(), looked()
    done = []

    def until_third(rows):
        for row in rows:
            if len(done) == 3:
                raise KeyboardInterrupt
            yield row
            done.append(row)

    with pytest.raises(KeyboardInterrupt):
        looked(model, pieces=Pieces(tmp_path, {}), watch=until_third)
    again = []
    result = looked(model, pieces=Pieces(tmp_path, {}), watch=lambda rows: again.extend(rows) or rows)
    assert again == [3, 4]
    assert result.table == whole.table
    assert str(without_times(result)) == str(without_times(whole))
    for file in list(tmp_path.rglob("*row*"))[::2]:
        file.unlink()
    assert looked(model, pieces=Pieces(tmp_path, {})).table == whole.table


def test_pieces_of_another_surface_are_not_taken_for_this_one(tmp_path):
    model = small()
    looked(model, pieces=Pieces(tmp_path, {}))
    for change in ({"seed": 1}, {"radius": 0.5}, {"batches": data(16)}, {"statistics": "batch"}):
        again = []
        looked(model, pieces=Pieces(tmp_path, {}), watch=lambda rows, again=again: again.extend(rows) or rows, **change)
        assert again == [0, 1, 2, 3, 4], change


def test_processes_share_the_rows(tmp_path):
    model, whole = small(), looked()
    first = looked(model, pieces=Pieces(tmp_path, {}), shard=(0, 2))
    assert {row["y"] for row in first.table} == {-1.0, 0.0, 1.0}
    assert first.evidence["missing_rows"] == [1, 3]
    assert first.claims == []
    assert first.evidence["flatness"] == {}
    second = looked(model, pieces=Pieces(tmp_path, {}), shard=(1, 2))
    assert second.table == whole.table
    again = []
    assert looked(model, pieces=Pieces(tmp_path, {}), watch=lambda rows: again.extend(rows) or rows).table == whole.table
    assert again == []


# --- what is not a number


def test_infinities_stay_and_are_counted():
    model = small(norm=lambda _: nn.Identity())

    def steep(logits, targets):
        return torch.exp(1e3 * (soft_cross_entropy(logits, targets) - 1.3))

    result = looked(model, loss=steep, radius=40.0)
    values = np.array([row["nll"] for row in result.table])
    assert np.isinf(values).any()
    assert result.evidence["not_finite"] == (~np.isfinite(values)).sum()
    lost = next(row for row in result.table if np.isinf(row["nll"]))
    assert np.isinf(lost["loss"])
    assert np.isnan(lost["nll_low"])
    figure([result], result.panels)


def test_a_model_that_overflows_has_no_accuracy_there():
    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(108, CLASSES)

        def forward(self, x):
            y = self.head(x.flatten(1))
            return y + 0 * torch.exp(1e3 * (self.head.weight.norm() - 1.5 * 1.2))  # 0 times infinity, far out

    torch.manual_seed(0)
    result = looked(Overflowing().double(), radius=4.0)
    far, centre = at(result, 4.0, 4.0), at(result)
    assert np.isnan([far["nll"], far["accuracy"], far["ece"]]).all()
    assert np.isfinite([centre["nll"], centre["accuracy"]]).all()


# --- findings


class Bowl(nn.Module):
    """Logits whose loss is known: the weights themselves, whatever the image."""

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

    result = looked(Bowl(start), loss=bowl, grid=7)
    assert [claim.verdict for claim in result.claims] == verdicts
    assert result.evidence["flatness"]["nll"]["share_of_rays_never_falling"] == [(sign + 1) / 2] * 3
    if sign > 0:  # mean over targets 0..3 of 1.15 times the squared distance; across: the directions' own lengths
        lengths = result.evidence["plane"]["lengths"]
        value, low, high = result.evidence["flatness"]["nll"]["nearest_rise"]
        assert low <= value <= high
        assert result.evidence["flatness"]["curvature"][0][0] == pytest.approx(2 * 1.15 * lengths[0] ** 2, rel=1e-6)


def test_a_flat_loss_decides_nothing():
    result = looked(Bowl([[1.0, 2.0], [3.0, 4.0]]), loss=lambda logits, targets: 0 * logits.sum(1) + targets)
    assert [claim.verdict for claim in result.claims] == ["undecided", "undecided"]
    assert result.evidence["flatness"]["nll"]["radius_of_rise"] == [np.inf] * 3


# --- a plan


def test_a_plan_counts_points_and_images():
    told = plan(small(), data(), grid=5, weight_decay=0.1, radius=2.0)
    assert (told.points, told.images) == (25, 24)
    assert told.seconds > 0
    assert str(told).startswith("25 points x 24 images: about ")
    assert plan(small(), data(), dimensions=1).points == 21


# --- figures and files


def test_figures_of_several_models_share_one_scale():
    results = [looked(name="a"), looked(radius=0.5, seed=1, name="b")]
    drawn = figure(results, ("contour", "surface", "line"))
    axes = [ax for ax in drawn.axes if ax.get_label() != "<colorbar>"]
    for first, second in zip(axes[:3], axes[3:], strict=True):
        assert first.get_xlim() == second.get_xlim()
        assert first.get_ylim() == second.get_ylim()
    assert axes[1].get_zlim() == axes[4].get_zlim()


def test_a_surface_needs_axes_in_space_and_a_line_has_none():
    from matplotlib.figure import Figure

    flat = Figure().add_subplot()
    with pytest.raises(UserError, match="projection='3d'"):
        looked(grid=3).draw(flat, "surface")
    with pytest.raises(UserError, match="panel 'line'"):
        looked(grid=3, dimensions=1).draw(flat, "contour")
    looked(grid=3, dimensions=1).figure()


def test_a_file_for_paraview_holds_the_surface(tmp_path):
    result = looked()
    lost = at(result, -1.0, -1.0)
    lost["nll"] = float("nan")
    root = ElementTree.parse(write_vtp(result, tmp_path / "there" / "surface", scale=2.0)).getroot()
    assert root.attrib == {"type": "PolyData", "version": "1.0", "byte_order": "LittleEndian", "header_type": "UInt64"}
    piece = root.find("PolyData/Piece")

    def numbers(path, kind):
        content = base64.b64decode(piece.find(path).text)
        (length,) = struct.unpack("<Q", content[:8])
        assert length == len(content) - 8
        return np.frombuffer(content[8:], kind)

    points = numbers("Points/DataArray", "<f4").reshape(-1, 3)
    corners = numbers("Polys/DataArray[@Name='connectivity']", "<i8").reshape(-1, 4)
    assert (int(piece.get("NumberOfPoints")), int(piece.get("NumberOfPolys"))) == (25, 15) == (len(points), len(corners))
    np.testing.assert_array_equal(numbers("Polys/DataArray[@Name='offsets']", "<i8"), 4 * np.arange(1, 16))
    heights = numbers("PointData/DataArray[@Name='nll']", "<f8")
    assert np.isnan(heights[0])
    np.testing.assert_allclose(points[1:, 2], 2 * heights[1:], rtol=1e-6)
    assert np.isfinite(points).all()
    assert 0 not in corners
    sides = points[corners][:, [1, 2, 3, 0]] - points[corners]
    assert (np.abs(sides[..., :2]).sum(-1) == 0.5).all()  # squares, each a step of the grid wide


def test_a_file_is_not_written_for_what_is_no_surface(tmp_path):
    with pytest.raises(UserError, match="two directions"):
        write_vtp(looked(dimensions=1), tmp_path / "a")
    with pytest.raises(UserError, match="no column 'height'"):
        write_vtp(looked(grid=3), tmp_path / "a", column="height")


# --- refusals


@pytest.mark.parametrize(
    ("model", "batches", "settings", "says"),
    [
        (small(), data(), {"grid": 4}, "grid=4: it must be odd"),
        (small(), data(), {"grid": 1}, "at least 3"),
        (small(), data(), {"radius": 0}, "radius=0"),
        (small(), data(), {"dimensions": 3}, "dimensions=3"),
        (small(), data(), {"directions": "radnom"}, "did you mean random"),
        (small(), data(), {"normalise": "layer"}, "normalise='layer'"),
        (small(), data(), {"precision": "float16"}, "precision='float16'"),
        (small(), data(), {"statistics": "mean"}, "statistics='mean'"),
        (small(), data(), {"weight_decay": -1}, "weight_decay=-1"),
        (small(), data(), {"bins": 0}, "at least 1 bin"),
        (small(), data(), {"shard": (2, 2)}, "shard="),
        (small(), data(), {"paper": True, "directions": "path"}, "the authors' directions are random"),
        (small(), [], {}, "the data are empty"),
        (small(), [torch.zeros(2, 3, 6, 6)], {}, "no labels"),
        (small(), [(torch.zeros(2, 3, 6, 6), torch.tensor([0, 9]))], {}, "a label is 9"),
        (small(), [(torch.zeros(2, 3, 6, 6), torch.zeros(2, 7))], {}, "the targets are of 7"),
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
        looked(model)


def test_a_compiled_model_is_looked_at_inside():
    """As ``torch.compile`` wraps one, whose import takes longer than all of these tests."""
    model, compiled = small(), nn.Module()
    compiled._orig_mod = model
    assert looked(compiled, grid=3).table == looked(model, grid=3).table


def test_a_result_can_be_saved(tmp_path):
    result = looked(grid=3)
    folder = result.save(tmp_path / "landscape")
    assert {path.name for path in folder.iterdir()} >= {"rows.parquet", "result.json", "landscape.png"}
