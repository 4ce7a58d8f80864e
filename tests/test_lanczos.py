"""Eigenvalues, density and trace of matrices with a known spectrum."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import GOLDEN
from scipy.sparse.linalg import LinearOperator, eigsh

from backlight.errors import UserError
from backlight.numerics import lanczos as module
from backlight.numerics.lanczos import GUARDS, ORDER, Basis, dots, errors, lanczos, repeats
from backlight.numerics.quadrature import density, ritz_pairs, trace


class Matrix:
    """A symmetric matrix as an operator that counts its products."""

    def __init__(self, dense, dtype=torch.float64):
        self.dense = torch.as_tensor(dense, dtype=dtype)
        self.size, self.dtype, self.device = len(self.dense), dtype, torch.device("cpu")
        self.products = 0

    def matvec(self, v):
        self.products += 1
        return self.dense @ v


class Diagonal(Matrix):
    def matvec(self, v):
        self.products += 1
        return self.dense * v


def with_spectrum(values, seed=0, dtype=torch.float64):
    """A dense symmetric matrix with these eigenvalues and random eigenvectors."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))
    return Matrix((q * np.asarray(values)) @ q.T, dtype)


def with_bulk(outer, n=300, width=0.05, seed=1):
    """These eigenvalues and a bulk of many small ones."""
    bulk = width * np.abs(outer).max() * np.random.default_rng(seed).uniform(-1, 1, n - len(outer))
    return np.r_[outer, bulk]


#: Spectra for which power iteration fails (the quotient of lambda and -lambda is constant from the start), and similar ones.
HARD = {
    "one of each sign": [10, -10],
    "cluster": [10, 9.9, 9.8, 9.7, 9.6],
    "edge of both signs": [3, 2.9, 2, 2, -2],
    "near-opposite": [0.888, -0.826, 0.806, -0.774, 0.761],
    "negative": [-9, -7, -5, -3, -2],
    "equal": [10, 10, 10, 9, 9, 5],
    "all equal": [7] * 8,
    "near pairs": [5, 4.99, -4.9, -4.89, 3],
}


def outermost(values, k, which="magnitude"):
    values = np.asarray(values, float)
    return values[ORDER[which](values)[:k]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HARD)
def test_spectra_for_which_power_iteration_is_wrong(name, dtype):
    values = with_bulk(HARD[name])
    for seed in range(3):
        pairs = lanczos(with_spectrum(values, dtype=dtype), 5, seed=seed)
        assert pairs.converged.all()
        assert np.sort(pairs.values) == pytest.approx(
            np.sort(outermost(values, 5)), rel=2e-3, abs=0.01 * (name == "one of each sign")
        )


@pytest.mark.parametrize("scale", [1e-7, 1e-20, 1e6])
def test_the_scale_does_not_matter(scale):
    values = with_bulk([5, -4, 3, 2.5, -2])
    for dtype in (torch.float32, torch.float64):
        one, other = (lanczos(with_spectrum(factor * values, dtype=dtype)) for factor in (1, scale))
        assert other.values == pytest.approx(scale * one.values, rel=1e-3, abs=0)
        assert other.matvecs == one.matvecs


@pytest.mark.parametrize("which", ORDER)
@pytest.mark.parametrize("memory", [0, 2**30])
def test_each_end_of_the_spectrum_equals_that_of_dense_algebra(which, memory):
    operator = with_spectrum(np.random.default_rng(0).standard_normal(200) ** 3)
    dense = np.linalg.eigvalsh(operator.dense.numpy())
    pairs = lanczos(operator, 6, which=which, tol=1e-9, memory=memory)
    assert pairs.converged.all()
    assert pairs.values == pytest.approx(outermost(dense, 6, which), rel=1e-8)
    assert pairs.matvecs == operator.products
    gram = pairs.vectors.T @ pairs.vectors
    assert torch.allclose(gram, torch.eye(6, dtype=torch.float64), atol=1e-10)
    actual = operator.dense @ pairs.vectors - pairs.vectors * torch.from_numpy(pairs.values)
    assert actual.norm(dim=0).numpy() == pytest.approx(pairs.residuals, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize(("which", "theirs"), [("magnitude", "LM"), ("largest", "LA"), ("smallest", "SA"), ("both", "BE")])
def test_agrees_with_arpack(which, theirs):
    operator = with_spectrum(np.random.default_rng(3).standard_t(2, 250))
    dense = operator.dense.numpy()
    arpack = eigsh(
        LinearOperator(dense.shape, matvec=lambda v: dense @ v, dtype=float), 6, which=theirs, return_eigenvectors=False
    )
    assert np.sort(lanczos(operator, 6, which=which, tol=1e-8).values) == pytest.approx(np.sort(arpack), rel=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([-8.0, -5.0, -4.5, -1.0, 1e-8, 0.0, 1.0, 4.5, 5.0, 8.0]), min_size=1, max_size=30),
    st.integers(1, 6),
    st.sampled_from(sorted(ORDER)),
    st.integers(0, 5),
)
def test_small_matrices_with_repeated_eigenvalues(values, k, which, seed):
    """Invariant subspaces, fewer eigenvalues than requested, zeros, and repeated eigenvalues."""
    pairs = lanczos(with_spectrum(values, seed), k, which=which, seed=seed)
    exact = outermost(values, k, which)
    assert len(pairs.values) == min(k, len(values))
    assert np.sort(abs(pairs.values)) == pytest.approx(np.sort(abs(exact)), rel=1e-3, abs=1e-7)
    assert pairs.converged.all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(ORDER)))
def test_random_spectra(seed, which):
    """Outliers of any sign and spacing above a bulk: none of the five is missed, and the error is within the tolerance."""
    rng = np.random.default_rng(seed)
    values = with_bulk(100 * rng.uniform(0.6, 0.95) ** np.arange(20) * rng.choice([-1, 1], 20), n=300, width=0.01, seed=seed)
    pairs = lanczos(with_spectrum(values, seed), 5, which=which, seed=seed)
    assert np.sort(pairs.values) == pytest.approx(np.sort(outermost(values, 5, which)), rel=3e-3)


def test_the_zero_operator_has_eigenvalues_zero():
    for size in (3, 400):
        pairs = lanczos(Diagonal(np.zeros(size)))
        assert (pairs.values == 0).all()
        assert len(pairs.values) == min(5, size)
        assert pairs.converged.all()
        assert pairs.matvecs <= 10


def test_spectra_like_those_of_trained_models_need_25_products_on_average():
    products = []
    for seed in range(10):
        outer = 300 * 0.8 ** np.arange(25) * np.random.default_rng(seed).choice([-1, 1], 25)
        products.append(lanczos(with_spectrum(with_bulk(outer, width=1e-3, seed=seed), seed), seed=seed).matvecs)
    assert np.mean(products) <= 25


def test_the_search_leaves_an_invariant_start():
    """The start is two eigenvectors, whose products add nothing to the basis."""
    operator = Diagonal(np.r_[1.0, 2, 9, 8, -7, 6, np.zeros(50)])
    start = torch.eye(56, dtype=torch.float64)[:, :2]
    assert lanczos(operator, 4, start=start).values == pytest.approx([9, 8, -7, 6], rel=1e-3)


def test_a_start_close_to_the_answer_and_the_guards_saves_products():
    operator = with_spectrum(with_bulk(np.array([100, -80, 60, 50, -45, 30, 20, 10]), n=400))
    cold = lanczos(operator)
    warm = lanczos(operator, start=lanczos(operator, 5 + GUARDS).vectors.sum(1) + 0.01)
    assert warm.values == pytest.approx(cold.values, rel=1e-3)
    assert warm.matvecs < cold.matvecs


@pytest.mark.parametrize("distinct", [True, False])
def test_the_random_start_finds_an_eigenvector_orthogonal_to_the_given_start(distinct):
    """Products alone never reach an eigenvector orthogonal to the start."""
    values = np.r_[50.0, 9, 8, 7, 6, 5, np.linspace(-1, 1, 200)]
    start = torch.ones(206, dtype=torch.float64)
    start[0] = 0
    assert lanczos(Diagonal(values), 3, start=start, distinct=distinct).values == pytest.approx([50, 9, 8], rel=1e-3)


def test_reports_pairs_that_have_not_converged():
    pairs = lanczos(with_spectrum(np.linspace(-1, 1, 400)), 5, limit=12)
    assert pairs.matvecs == 12
    assert not pairs.converged.any()
    assert len(pairs.values) == 5
    assert (pairs.residuals > 1e-3).all()


def test_a_residual_bounds_the_distance_to_an_eigenvalue():
    values = np.random.default_rng(5).standard_normal(200)
    pairs = lanczos(with_spectrum(values), 5, limit=15)
    assert all(abs(values - value).min() <= residual for value, residual in zip(pairs.values, pairs.residuals, strict=True))


def test_the_error_is_quadratic_in_the_residual_if_there_is_a_gap():
    assert errors(np.array([0.0, 1.0, 5.0]), np.array([9, 0.5, 0.1])) == pytest.approx([9, 0.5, 0.01 / 3.9])
    assert errors(np.array([2.0]), np.array([0.3])) == pytest.approx([0.3])


def test_close_eigenvalues_have_one_error_bound():
    """Alone each of the two at 1 has a bound of 0.1, because the gap is smaller than the residual."""
    bounds = errors(np.array([0.0, 1.0, 1.01, 5.0]), np.array([9, 0.1, 0.1, 0.1]))
    assert bounds == pytest.approx([9, *2 * [0.02 / (1 - np.sqrt(0.02))], 0.01 / 3.89])


@pytest.mark.parametrize("seed", range(20))
def test_the_bounds_hold_for_groups(seed):
    """Ritz values of four coordinates, two of them close, coupled to others between 0 and 1."""
    rng = np.random.default_rng(seed)
    values = np.r_[3, 3 + 0.01 * rng.random(), 5, 5.3]
    coupling = 0.1 * rng.standard_normal((20, 4))
    matrix = np.block([[np.diag(values), coupling.T], [coupling, np.diag(rng.random(20))]])
    known = np.r_[1.0, values]  # the nearest of the others
    bounds = errors(np.sort(known), np.r_[9, np.linalg.norm(coupling, axis=0)])[1:]
    assert (abs(np.linalg.eigvalsh(matrix)[-4:] - np.sort(values)) <= bounds).all()


def test_equal_eigenvalues_are_counted_unless_all_are_equal():
    assert repeats(np.array([3.0, -3.0, 2.0]), 1e-3) == 1
    assert repeats(np.array([3.0, 3.001, 2.0]), 1e-3) == 2
    assert repeats(np.array([3.0]), 1e-3) == 0


def test_sums_over_millions_of_entries_keep_their_digits():
    """A plain float32 sum of these squares has a relative error of 3e-4."""
    v = torch.randn(12_000_000, generator=torch.Generator().manual_seed(0))
    exact = float(sum(part.double().square().sum() for part in v.split(10**6)))
    assert float(dots(v[None], v)[0]) == pytest.approx(exact, rel=5e-6)
    huge, small = torch.full((module.CHUNK,), 1e4), torch.full((module.CHUNK,), 1e-4)
    terms = torch.cat([huge, small, -huge])
    assert float(dots(torch.ones(1, len(terms)), terms)[0]) == pytest.approx(1e-4 * module.CHUNK, rel=1e-4)


def test_the_basis_stays_orthogonal_if_a_shift_dominates_each_product():
    """As with weight decay: all eigenvalues near 0.05.  One pass of orthogonalisation loses one digit per step here."""
    values = 0.05 + np.r_[0.02, 0.015, 0.012, 0.011, 0.0105, 1e-3 * np.random.default_rng(0).standard_normal(395)]
    pairs = lanczos(with_spectrum(values, dtype=torch.float32), 5, tol=1e-4)
    assert pairs.values == pytest.approx(outermost(values, 5), rel=1e-4)


# --- density and trace


def test_the_density_of_a_small_matrix_is_that_of_its_eigenvalues():
    """As many steps as eigenvalues: the nodes are the eigenvalues, and the weights are equal on average."""
    values = np.array([-2.0, -1, 0.5, 3, 7])
    estimate = density(with_spectrum(values), probes=150, steps=5, width=0.2, points=2000)
    assert np.sort(estimate.nodes[0]) == pytest.approx(values)
    exact = np.exp(-(((estimate.grid[:, None] - values) / 0.2) ** 2) / 2).mean(1) / (0.2 * np.sqrt(2 * np.pi))
    inside = (estimate.density.low <= exact + 1e-9) & (exact <= estimate.density.high + 1e-9)
    assert inside[exact > 0.01].mean() > 0.8
    assert estimate.density.value == pytest.approx(exact, abs=0.08)
    assert np.trapezoid(estimate.density.value, estimate.grid) == pytest.approx(1, abs=1e-4)
    assert estimate.matvecs == 750


def test_the_moments_of_the_density_are_those_of_the_matrix():
    """A quadrature of k steps is exact up to degree 2k - 1: mean and variance are traces."""
    operator = with_spectrum(np.random.default_rng(2).standard_normal(300))
    estimate = density(operator, probes=60, steps=4)
    eigenvalues = np.linalg.eigvalsh(operator.dense.numpy())
    for power in (1, 2):
        moment = (estimate.weights * estimate.nodes**power).sum(1)
        assert abs(moment.mean() - (eigenvalues**power).mean()) < 4 * moment.std() / np.sqrt(60)


def test_a_density_stops_at_an_invariant_subspace():
    estimate = density(Diagonal([4.0] * 30), probes=2, steps=10)
    assert estimate.matvecs == 2
    assert estimate.nodes[:, 0] == pytest.approx([4, 4])
    assert np.isnan(estimate.nodes[:, 1:]).all()
    assert np.trapezoid(estimate.density.value, estimate.grid) == pytest.approx(1, abs=1e-4)


def test_one_probe_has_no_interval():
    assert np.isnan(density(Diagonal([1.0, 2, 3]), probes=1).density.low).all()
    assert np.isnan(trace(Diagonal([1.0, 2, 3]), probes=1).low)


def test_the_trace_is_exact_for_a_diagonal_and_within_its_interval_otherwise():
    assert np.array(trace(Diagonal(np.arange(50.0)), probes=3)) == pytest.approx(3 * [49 * 25])
    operator = with_spectrum(np.random.default_rng(4).standard_normal(200) + 1)
    hits = [
        low <= float(operator.dense.trace()) <= high for _, low, high in (trace(operator, probes=30, seed=s) for s in range(40))
    ]
    assert 33 <= sum(hits) <= 40


def test_a_start_of_zeros_is_ignored():
    operator = Diagonal(np.arange(40.0))
    one, other = lanczos(operator, 3, start=torch.zeros(40), seed=2), lanczos(operator, 3, seed=2)
    assert (one.matvecs, one.values.tolist()) == (other.matvecs, other.values.tolist())


# --- with known pairs


def test_the_known_part_of_a_density_is_exact_and_the_rest_is_unbiased():
    """Three of eight eigenvalues are known; a step per other one gives those as nodes, with weights of 1/8 on average."""
    values = np.array([-6.0, -1, -0.4, 0.1, 0.3, 0.7, 4, 9])
    operator = with_spectrum(values)
    pairs = lanczos(operator, 3, tol=1e-12)
    estimates = [density(operator, known=pairs, probes=8, steps=5, seed=seed) for seed in range(40)]
    for estimate in estimates:
        assert estimate.nodes[:, :3] == pytest.approx(np.tile([9, -6, 4], (8, 1)), rel=1e-10)
        assert (estimate.weights[:, :3] == 1 / 8).all()
        assert estimate.weights.sum(1) == pytest.approx(np.ones(8))
        assert np.sort(estimate.nodes[0]) == pytest.approx(values, abs=1e-8)
        assert estimate.matvecs == 40
    weights = np.concatenate([estimate.weights[:, 3:] for estimate in estimates])
    assert (abs(weights.mean(0) - 1 / 8) < 4 * weights.std(0) / np.sqrt(len(weights))).all()


def test_pairs_that_have_not_converged_are_not_counted_as_eigenvalues():
    operator = with_spectrum(np.linspace(-1, 1, 60))
    pairs = lanczos(operator, 4, limit=6)
    assert not pairs.converged.any()
    estimate = density(operator, known=pairs, probes=1, steps=6)
    assert estimate.nodes.shape == (1, 6)


@pytest.mark.parametrize("steps", [5, 12])
def test_the_trace_with_known_pairs_is_unbiased_and_exact_if_they_span_the_rest(steps):
    values = np.r_[40.0, -30, 20, 15, *np.linspace(0.5, 1, 8)]
    operator = with_spectrum(values)
    pairs = ritz_pairs(operator, steps)
    assert pairs.matvecs == steps
    assert pairs.converged.all() == (steps == 12)
    actual = operator.dense @ pairs.vectors - pairs.vectors * torch.from_numpy(pairs.values)
    assert actual.norm(dim=0).numpy() == pytest.approx(pairs.residuals, abs=1e-10)
    traces = np.array([trace(operator, known=pairs, probes=2, seed=seed).value for seed in range(300)])
    assert abs(traces.mean() - values.sum()) <= 4 * traces.std() / np.sqrt(300) + 1e-9
    if steps == 12:
        assert traces == pytest.approx(np.full(300, values.sum()))


def test_known_pairs_give_the_same_variance_for_half_the_products():
    """A spectrum like a trained network's: 60 products are 20 for pairs and 40 probes, and compare with 120 probes."""
    outer = 100 * 0.8 ** np.arange(20) * np.random.default_rng(0).choice([-1, 1, 1], 20)
    operator = with_spectrum(with_bulk(outer, n=400, width=0.01), dtype=torch.float32)
    exact = float(operator.dense.double().trace())
    known = [trace(operator, known=ritz_pairs(operator, 20, seed=s), probes=40, seed=s).value - exact for s in range(60)]
    plain = [trace(operator, probes=120, seed=s).value - exact for s in range(60)]
    assert np.mean(np.square(known)) < np.mean(np.square(plain)) / 4


# --- refusals


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda a: lanczos(a, which="largets"), "which is 'largets'; it must be magnitude or largest or smallest or both"),
        (lambda a: lanczos(a, 0), "k >= 1"),
        (lambda a: lanczos(a, tol=0), "tol > 0"),
        (lambda a: lanczos(a, 5, limit=4), "limit >= k"),
        (lambda a: lanczos(a, start=torch.full((10,), torch.inf)), "finite numbers"),
        (lambda a: lanczos(a, start=torch.full((10,), torch.nan)), "finite"),
        (lambda a: lanczos(a, start=torch.ones(9)), "9 entries"),
        (lambda a: density(a, steps=10, memory=100), "1 fit into the memory"),
        (lambda a: density(a, probes=0), "at least 1 probe, 1 step"),
        (lambda a: density(a, known=lanczos(a, 10)), "10 of 10 are known"),
        (lambda a: trace(a, probes=0), "at least 1 probe"),
        (lambda a: lanczos(Diagonal([np.nan, 1])), "not finite"),
    ],
)
def test_refuses_in_one_sentence(call, says):
    with pytest.raises(UserError, match=says) as refusal:
        call(Diagonal(np.arange(10.0)))
    assert "\n" not in str(refusal.value)


def test_an_eigenvalue_that_appears_late_is_not_missed(monkeypatch):
    """A mini-batch of a trained ViT: 19.201, -19.132 and 19.072 are the third to fifth, and -19.132 appears last."""
    recorded = json.loads((GOLDEN / "hessian_of_a_vit_batch.json").read_text())["band"]
    matrix = np.zeros((len(recorded), len(recorded)))
    for r, row in enumerate(recorded):
        for d, entry in enumerate(row[: r + 1]):
            matrix[r, r - d] = matrix[r - d, r] = entry

    monkeypatch.setattr(Basis, "random", lambda basis: torch.eye(len(matrix), dtype=torch.float64)[basis.starts])
    pairs = lanczos(Matrix(torch.from_numpy(matrix)), 5)
    exact = np.array(sorted(np.linalg.eigvalsh(matrix), key=abs, reverse=True)[:5])
    assert exact == pytest.approx([61.373, 21.506, 19.201, -19.132, 19.072], abs=1e-3)
    assert pairs.values == pytest.approx(exact, rel=1e-3)
    assert pairs.converged.all()
    assert pairs.matvecs < 30


def recorded_hessians(name):
    """Hessians of mini-batches of trained models, each projected by 100 products onto a basis that starts with the gradient and
    two random vectors, stored as diagonals: 51 of the demo's models and 5 of a ViT-Ti; and, with more eigenvalues close to the
    largest, 6 clean and 6 augmented ones of the ViT of examples/paper on CIFAR-100."""
    for band in np.load(GOLDEN / f"{name}.npz")["bands"].astype(float):
        yield sum(np.diag(band[: len(band) - d, d], d) + (d > 0) * np.diag(band[: len(band) - d, d], -d) for d in range(4))


@pytest.mark.parametrize(
    ("name", "count", "distinct", "most"),
    [
        ("hessians_of_batches", 56, True, 18.9),
        ("hessians_of_batches", 56, False, 24.3),
        ("hessians_of_dense_batches", 12, True, 23.7),
        ("hessians_of_dense_batches", 12, False, 34.5),
    ],
)
def test_none_is_missed_in_mini_batches_of_trained_models(monkeypatch, name, count, distinct, most):
    products = []
    for matrix in recorded_hessians(name):
        unit = torch.eye(len(matrix), dtype=torch.float64)
        monkeypatch.setattr(Basis, "random", lambda basis, unit=unit: unit[1 + max(0, basis.starts - 1)])
        pairs = lanczos(Matrix(torch.from_numpy(matrix)), 5, start=unit[0], distinct=distinct)
        exact = np.array(sorted(np.linalg.eigvalsh(matrix), key=abs, reverse=True)[:5])
        assert pairs.values == pytest.approx(exact, rel=1e-3)
        assert pairs.converged.all()
        products.append(pairs.matvecs)
    assert len(products) == count
    assert np.mean(products) <= most


def test_distinct_eigenvalues_need_one_start():
    operator = with_spectrum(with_bulk(np.array([100, -80, 60, 50, -45, 30, 20, 10]), n=400))
    two, one = lanczos(operator), lanczos(operator, distinct=True)
    assert one.values == pytest.approx(two.values, rel=1e-3)
    assert one.matvecs < two.matvecs
