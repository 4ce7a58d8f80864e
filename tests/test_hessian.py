"""The Hessian max-eigenvalue spectrum against dense Hessians and known spectra."""

import numpy as np
import pytest
import scipy.stats
import torch
from known_models import noise, unchanged
from matplotlib.figure import Figure
from torch import nn

from backlight.analyses.hessian import hessian
from backlight.analyses.hessian.measure import HessianSpectrum, density, negative_claim, nep_and_ape, power_iteration
from backlight.curvature.hessian import Hessian, of_module
from backlight.curvature.loss import Objective
from backlight.errors import UserError
from backlight.files import PartialResults
from backlight.numerics.bootstrap import mean_interval
from backlight.numerics.lanczos import ORDER
from backlight.report.sections import lacks, section_of
from backlight.study.cells import load

CLASSES, DECAY = 3, 0.05


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, CLASSES)).double()


def batches(n=4, size=4):
    images, targets = noise(n * size, 3, 2, 2).double(), (3 * noise(n * size, CLASSES, seed=1)).softmax(1).double()
    return list(zip(images.split(size), targets.split(size), strict=True))


def exact(net, batch, top=5):
    """The outermost eigenvalues of the dense Hessian of one batch."""
    operator = Hessian(net, Objective(), [batch])
    eigenvalues = np.linalg.eigvalsh((operator @ torch.eye(operator.size, dtype=torch.float64)).numpy()) + DECAY
    return eigenvalues[ORDER["magnitude"](eigenvalues)[:top]]


# --- the eigenvalues of each batch


def test_every_batch_has_its_outermost_eigenvalues_by_magnitude():
    net = model().train()
    with unchanged(net):
        result = hessian(net, batches(), tol=1e-9, decay_all=True)
    assert [(row["batch"], row["rank"]) for row in result.table] == [(b, r) for b in range(4) for r in range(1, 6)]
    for i, batch in enumerate(batches()):
        eigenvalues = [row["eigenvalue"] for row in result.table if row["batch"] == i]
        assert eigenvalues == pytest.approx(exact(net, batch), abs=1e-8)
    assert all(row["converged"] and row["residual"] < 1e-3 and row["matvecs"] <= 88 for row in result.table)


def test_eigenvalues_that_occur_twice_are_returned_twice_in_every_batch():
    """The Hessian of softmax regression with three classes at weights of zero is a Kronecker product with I/3 - 11'/9."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES)).double()
    nn.init.zeros_(net[1].weight), nn.init.zeros_(net[1].bias)
    result = hessian(net, batches(), tol=1e-9, decay_all=True)
    for i, batch in enumerate(batches()):
        eigenvalues = [row["eigenvalue"] for row in result.table if row["batch"] == i]
        assert eigenvalues == pytest.approx(exact(net, batch), abs=1e-8)
        assert eigenvalues[0] == pytest.approx(eigenvalues[1], rel=1e-8)


def test_provenance():
    net, data = model(), batches()
    facts = hessian(net, data, seed=3).provenance
    losses = [nn.functional.cross_entropy(net.eval()(images), targets).item() for images, targets in data]
    weights = sum(float(p.detach().square().sum()) for p in net.parameters() if p.ndim > 1)
    assert facts["loss"] == pytest.approx(np.mean(losses))
    assert facts["weight_decay_loss"] == pytest.approx(DECAY / 2 * weights)
    assert (facts["images"], facts["settings"]["seed"], facts["settings"]["weight_decay"]) == (16, 3, DECAY)
    assert facts["recipe"] == {"name": "cifar", "chosen": "the default, because none is saved with the model", "replaced": []}
    assert facts["settings"]["decay_all"] is False
    assert max(facts["probes"].values()) < 1e-10
    assert facts["products"]["max"] >= facts["products"]["mean"] > 0
    assert facts["not_converged"] == 0


def test_blocks_by_kind_of_unit():
    from backlight.models.architectures.alternet import AlterNet
    from backlight.tracing.find import units

    torch.manual_seed(0)
    net = AlterNet("ca", dim=2, heads=1, dim_head=2, window=2, stem="cifar", num_classes=CLASSES).double()
    data = [(noise(4, 3, 8, 8).double(), torch.arange(4) % CLASSES)]
    result = hessian(net, data, by="kind", top=2, decay_all=True)
    assert list(dict.fromkeys(row["block"] for row in result.table)) == ["all", "conv", "attention"]
    attention = next(unit for unit in units(net, data[0][0]) if unit.kind == "attention")
    alone = Hessian(net, Objective(weight_decay=DECAY), data, params=of_module(attention.module))
    eigenvalues = np.linalg.eigvalsh((alone @ torch.eye(alone.size, dtype=torch.float64)).numpy())
    block = [row["eigenvalue"] for row in result.table if row["block"] == "attention"]
    assert block == pytest.approx(eigenvalues[ORDER["magnitude"](eigenvalues)[:2]], rel=2e-3)
    assert set(result.provenance["summary"]) == {"all", "conv", "attention"}


def test_resumes_after_the_last_finished_batch(tmp_path):
    """Killed at the third batch, then run again: the same rows, and finished batches are not computed again."""
    net, data = model(), batches()

    def killed(batches):
        for i, batch in enumerate(batches):
            if i == 2:
                raise KeyboardInterrupt
            yield batch

    partial_results = PartialResults(tmp_path, {"seed": 0})
    with pytest.raises(KeyboardInterrupt):
        hessian(net, data, partial_results=partial_results, track=killed)
    assert len(list(tmp_path.rglob("batch-*"))) == 2
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("batch-*")}
    resumed = hessian(net, data, partial_results=PartialResults(tmp_path, {"seed": 0}))
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())
    assert resumed.table == hessian(net, data).table


def test_several_batches_at_once_give_the_same_rows(tmp_path):
    net, data = model(), [*batches(5), *batches(1, size=3)]
    alone = hessian(net, data, tol=1e-9)
    with unchanged(net):
        result = hessian(net, data, tol=1e-9, together=2, partial_results=PartialResults(tmp_path, {}))
    assert len(list(tmp_path.rglob("batch-*"))) == 6
    assert result.provenance["settings"]["together"] == 2
    assert result.provenance["images"] == 23
    for row, other in zip(result.table, alone.table, strict=True):
        assert row["eigenvalue"] == pytest.approx(other["eigenvalue"], rel=1e-7)
        assert [row[key] for key in ("batch", "block", "rank", "converged")] == [
            other[key] for key in ("batch", "block", "rank", "converged")
        ]
    assert result.provenance["loss"] == pytest.approx(alone.provenance["loss"])
    assert result.provenance["probes"] == alone.provenance["probes"]
    sorted(tmp_path.rglob("batch-*"))[3].unlink()
    assert hessian(net, data, tol=1e-9, together=2, partial_results=PartialResults(tmp_path, {})).table == result.table


# --- NEP and APE


def test_nep_is_the_share_of_negatives_and_ape_the_mean_of_positives():
    eigenvalues = np.array([[9, 8, -7, 6, -5], [4, 3, 2, 1, 0.5], [10, -1, 2, 3, 4], [1, 1, 1, 1, -1.0]])
    summary = nep_and_ape(eigenvalues, resamples=2000)
    assert summary["nep"].value == 4 / 20
    assert summary["ape"].value == pytest.approx(eigenvalues[eigenvalues > 0].mean())
    assert summary["nep"].low < 0.2 < summary["nep"].high
    rng = np.random.default_rng(1)
    redrawn = [eigenvalues[rng.integers(0, 4, 4)] for _ in range(4000)]
    value = eigenvalues[eigenvalues > 0].mean()
    high, low = 2 * value - np.quantile([e[e > 0].mean() for e in redrawn], [0.025, 0.975])
    assert [float(x) for x in summary["ape"]] == pytest.approx([value, low, high], rel=0.1)


def test_the_interval_of_nep_is_that_of_its_batches_when_all_eigenvalues_of_a_batch_have_one_sign():
    """Then a batch is one observation: Jeffreys' interval of 3 in 12, however many eigenvalues each batch has."""
    eigenvalues = np.repeat(np.where(np.arange(12) < 3, -1.0, 1.0)[:, None], 5, axis=1)
    value, low, high = nep_and_ape(eigenvalues)["nep"]
    posterior = scipy.stats.beta(3.5, 9.5)
    assert (value, low, high) == pytest.approx((0.25, posterior.ppf(0.025), posterior.ppf(0.975)), rel=0.02)


def test_without_a_negative_eigenvalue_the_interval_of_nep_does_not_end_at_zero():
    """If a share p of batches has one, n batches have none with probability (1 - p)^n; 2.5% at the end of the interval."""
    (value, low, high), ape = nep_and_ape(np.ones((10, 5)))["nep"], nep_and_ape(-np.ones((10, 5)))["ape"]
    assert (value, low) == (0, 0)
    assert (1 - high) ** 10 == pytest.approx(0.025)
    assert np.isnan(ape.value)
    assert nep_and_ape(-np.ones((10, 5)))["nep"].low == pytest.approx(0.025 ** (1 / 10))


@pytest.mark.parametrize(("shift", "verdict"), [(0, "holds"), (50, "undecided")])
def test_the_claim_that_some_are_negative(shift, verdict):
    """Strong weight decay makes any loss convex, but twelve batches are too few to conclude that none is negative."""
    claim = hessian(model(), batches(12), weight_decay=0.0 + shift, top=10).claims[0]
    assert claim.verdict == verdict
    assert claim.source == "Figures 1b and 4"


@pytest.mark.parametrize(("count", "verdict"), [(35, "undecided"), (36, "does not hold")])
def test_36_batches_without_a_negative_eigenvalue_decide_the_claim(count, verdict):
    """If one batch in ten has one, 35 batches have none with probability 0.9^35 = 2.50%, and 36 with 0.9^36 = 2.25%."""
    assert negative_claim(nep_and_ape(np.ones((count, 5)))["nep"], 5, count).verdict == verdict


def test_few_negative_ones_among_the_largest_do_not_mean_convex():
    """The largest eigenvalue of all 36 batches is positive, and each dense Hessian has negative ones: not convex."""
    data = batches(36)
    (claim,) = hessian(model(), data, top=1).claims
    assert (claim.value, claim.verdict) == (0, "does not hold")
    assert all(exact(model(), batch, top=93).min() < -0.4 for batch in data)
    assert "convex" not in claim.statement
    assert "smaller ones are not measured" in claim.quantity


# --- the density


def test_both_sides_of_the_density_integrate_to_one():
    eigenvalues = np.random.default_rng(0).normal(20, 30, (40, 5))
    for side in ("negative", "positive"):
        grid, value, low, high = density(eigenvalues, side)
        share = ((eigenvalues < 0) == (side == "negative")).mean()
        assert np.trapezoid(value, grid) == pytest.approx(share, abs=1e-3)
        assert (np.diff(grid) > 0).all()
        assert (np.sign(grid[[0, -1]]) == {"negative": (-1, 0), "positive": (0, 1)}[side]).all()
        assert (low <= value + 1e-12).all()
        assert (value <= high + 1e-12).all()
    assert density(abs(eigenvalues), "negative").size == 0


def test_the_density_is_a_sum_of_mirrored_normal_curves():
    from scipy.stats import norm

    eigenvalues = np.array([[1.0, 2, -3], [4, 5, 6]])
    grid, value, *_ = density(eigenvalues, "positive", resamples=300, seed=5)
    positive = eigenvalues[eigenvalues > 0]
    spread = min(positive.std(), np.subtract(*np.quantile(positive, [0.75, 0.25])) / 1.34)
    width = 0.9 * spread * len(positive) ** -0.2
    curves = [
        [norm.pdf(x, e, width) + norm.pdf(x, -e, width) if e > 0 else 0 for e in row] for row in eigenvalues for x in grid
    ]
    per_batch = np.sum(curves, 1).reshape(2, -1) / 3
    assert value == pytest.approx(per_batch.mean(0))
    assert density(eigenvalues, "positive", resamples=300, seed=5)[2] == pytest.approx(
        mean_interval(per_batch, resamples=300, seed=5).low
    )


# --- the paper's power iteration


class Diagonal:
    def __init__(self, values):
        self.values = torch.as_tensor(values, dtype=torch.float64)
        self.size, self.dtype, self.device = len(self.values), torch.float64, torch.device("cpu")

    def matvec(self, v):
        return self.values * v


def test_power_iteration_is_right_if_eigenvalues_are_far_apart():
    values, _, matvecs, stopped = power_iteration(Diagonal([100.0, 20, -4, 0.1, 0.01]), 3)
    assert values == pytest.approx([100, 20, -4], rel=1e-2)
    assert stopped.all()
    assert matvecs < 60


def test_power_iteration_is_wrong_for_opposite_eigenvalues_and_its_residual_shows_it():
    """For 10 and -10 it returns the quotient of the start vector."""
    for seed in range(5):
        values, residuals, _, stopped = power_iteration(Diagonal([10.0, -10]), 2, seed=seed)
        assert stopped.all()
        assert abs(abs(values) - 10).max() > 0.01
        assert residuals.max() > 0.1


def test_power_iteration_equals_pyhessians():
    pyhessian = pytest.importorskip("pyhessian")
    net, batch = model().eval(), batches()[0]
    theirs = pyhessian.hessian(net, nn.CrossEntropyLoss(), data=batch, cuda=False)
    operator = Hessian(net, Objective(), [batch])
    ours = power_iteration(operator, 1, tol=1e-12, steps=3000)[0]
    assert ours == pytest.approx(theirs.eigenvalues(maxIter=3000, tol=1e-12, top_n=1)[0], rel=1e-4)


def test_provenance_states_the_paper_mode():
    result = hessian(model(), batches(2), paper=True)
    assert result.provenance["solver"] == "power iteration as in PyHessian"
    assert result.provenance["settings"]["paper"] is True
    assert max(row["residual"] for row in result.table) > 1e-3


# --- the result


def test_saves_draws_and_has_a_section(tmp_path):
    result = hessian(model(), batches(3), name="mine")
    again = load(result.save(tmp_path / "hessian"))
    assert isinstance(again, HessianSpectrum)
    assert again.table == result.table
    assert again.claims == result.claims
    assert not lacks(result)
    section = section_of("hessian")
    assert section.title == "Hessian spectrum"
    for charts in section.figures([result, None]):
        assert all(chart.alt for chart in charts)
    assert "mine" in str(section.figures([result, None]))
    assert section.metrics([result, None]).rows


@pytest.mark.parametrize("shift", [0, 100])
@pytest.mark.parametrize("panel", HessianSpectrum.panels)
def test_draws_with_and_without_negative_eigenvalues(panel, shift):
    ax = Figure().add_subplot()
    hessian(model(), batches(2), weight_decay=float(shift)).draw(ax, panel)
    assert ax.get_xlabel()


@pytest.mark.parametrize(
    ("data", "settings", "says"),
    [
        ([], {}, "no images"),
        (batches(1), {"top": 0}, "top is 0; it must be at least 1"),
        (batches(1), {"together": 0}, "together is 0; it must be at least 1"),
        (batches(1), {"together": 2, "paper": True}, "together is 2; the paper's power iteration takes 1"),
        (batches(1), {"by": "depth"}, "by is 'depth'; it must be kind"),
        (batches(1), {"tol": -1}, r"tol is -1\.0; it must be above 0"),
        (batches(1), {"weight_decay": -1}, r"weight_decay is -1\.0; it must be at least 0"),
    ],
)
def test_refuses_in_one_sentence(data, settings, says):
    with pytest.raises(UserError, match=says):
        hessian(model(), data, **settings)


def test_one_batch_of_one_image_works_without_an_interval():
    result = hessian(model(), batches(1, 1))
    assert np.isnan(result.provenance["summary"]["all"]["ape"][1])
    assert len(result.table) == 5
