"""Unbiased HSIC and CKA against the formula as loops, a law of unbiased estimates, and another library."""

import itertools
import math

import numpy as np
import pytest
import torch
from known_models import noise

from backlight.numerics import cka as module
from backlight.numerics.cka import cka, gram, hsic, u_centred


def features(n, p, seed=0):
    return noise(n, p, seed=seed).double()


def grams(*several):
    return np.stack([(x @ x.T).numpy() for x in several])


def as_loops(k, l):
    """HSIC_1 of two Gram matrices, Song et al. (2012), equation 5, with loops for the sums."""
    n = len(k)
    k, l = ([[0.0 if i == j else float(g[i][j]) for j in range(n)] for i in range(n)] for g in (k, l))
    every = range(n)
    trace = sum(k[i][j] * l[j][i] for i in every for j in every)
    sums = sum(map(sum, k)) * sum(map(sum, l))
    chain = sum(k[i][j] * l[j][m] for i in every for j in every for m in every)
    return (trace + sums / ((n - 1) * (n - 2)) - 2 * chain / (n - 2)) / (n * (n - 3))


@pytest.mark.parametrize("n", [4, 5, 9])
def test_hsic_is_the_formula(n):
    several = grams(features(n, 3), features(n, 7, seed=1), features(n, 2, seed=2))
    estimates = hsic(several)
    for i, j in itertools.product(range(3), repeat=2):
        assert estimates[i, j] == pytest.approx(as_loops(several[i], several[j]), rel=1e-10, abs=1e-12)


def test_the_mean_over_all_small_batches_is_the_estimate_of_all_images():
    """Which makes it unbiased: no batch size has a systematic error."""
    x, y = features(8, 5), features(8, 3, seed=1) + 1
    of_all = hsic(grams(x, y))
    for size in (4, 6):
        parts = [hsic(grams(x[list(batch)], y[list(batch)])) for batch in itertools.combinations(range(8), size)]
        assert np.mean(parts, axis=0) == pytest.approx(of_all, rel=1e-10)


def test_u_centring_removes_row_sums_diagonal_and_common_features():
    x = features(6, 4)
    plain, moved = u_centred(grams(x, x + features(1, 4, seed=3)))
    assert np.abs(plain.sum(0)).max() < 1e-12
    assert np.diagonal(plain).tolist() == [0] * 6
    assert moved == pytest.approx(plain, abs=1e-12)


def test_cka_is_invariant_to_rotation_scale_and_shift():
    x, y = features(10, 6), features(10, 4, seed=1)
    rotation = torch.linalg.qr(features(6, 6, seed=2)).Q
    similarity = cka(hsic(grams(x, 3 * x @ rotation + 5, y)))
    assert np.diagonal(similarity) == pytest.approx([1, 1, 1])
    assert similarity[0, 1] == pytest.approx(1)
    assert similarity[0, 2] == pytest.approx(similarity[1, 2])
    assert 0 < abs(similarity[0, 2]) < 1


def test_cka_of_independent_features_is_zero_on_average_and_often_negative():
    estimates = [cka(hsic(grams(features(4, 50, seed=2 * s), features(4, 50, seed=2 * s + 1))))[0, 1] for s in range(300)]
    assert abs(np.mean(estimates)) < 4 * np.std(estimates) / math.sqrt(300)
    assert 0.3 < np.mean(np.array(estimates) < 0) < 0.7


def test_another_library_agrees():
    oracle = pytest.importorskip("cka", reason="pytorch-cka is not installed")
    several = [features(12, p, seed=p) + 0.5 for p in (3, 20, 7)]
    several.append(several[0] + 0.1 * features(12, 3, seed=9))
    known = oracle.cka_from_features(several, several)  # clipped to 0 and 1
    assert np.clip(cka(hsic(grams(*several))), 0, 1) == pytest.approx(known.numpy(), abs=1e-9)


# --- the product of the features


def test_a_gram_matrix_is_the_inner_products_of_centred_features():
    x = features(7, 30)
    centred = x - x.mean(0)
    assert gram(x).numpy() == pytest.approx((centred @ centred.T).numpy(), abs=1e-12)


def test_features_common_to_all_images_cost_no_digits():
    """As position embeddings and channels of large mean: the error of a plain float32 product is far above 1e-6."""
    x, y = noise(16, 4000) + 300 * noise(1, 4000, seed=1), noise(16, 3000, seed=2)
    known = cka(hsic(grams(x.double(), y.double())))
    exact = cka(hsic(np.stack([gram(t).numpy() for t in (x, y)])))
    plain = cka(hsic(np.stack([(t @ t.T).double().numpy() for t in (x, y)])))
    assert exact == pytest.approx(known, abs=1e-6)
    assert np.abs(plain - known).max() > 1e-4


def test_chunks_and_memory_layout_do_not_matter(monkeypatch):
    maps = features(5, 3 * 4 * 6).unflatten(1, (3, 4, 6))
    expected = gram(maps).numpy()
    tokens = torch.cat([features(5, 3, seed=4)[:, None], maps.flatten(2).transpose(1, 2)], dim=1)
    behind_a_class_token = tokens[:, 1:].unflatten(1, (4, 6)).permute(0, 3, 1, 2)
    monkeypatch.setattr(module, "CHUNK", 5 * 7)
    for same in (maps, maps.to(memory_format=torch.channels_last), behind_a_class_token):
        assert gram(same).numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_features_that_are_equal_for_all_images_have_no_cka(dtype):
    same = noise(1, 500).expand(6, -1).to(dtype)
    rounded = same * (1 + torch.finfo(torch.float32).eps * torch.arange(6)[:, None] / 6) if dtype == torch.float32 else same
    for constant in (same, rounded, torch.zeros(6, 500, dtype=dtype)):
        assert gram(constant).abs().max() == 0
        similarity = cka(hsic(np.stack([gram(constant).numpy(), gram(noise(6, 9)).numpy()])))
        assert np.isnan(similarity[0]).all()
        assert similarity[1, 1] == pytest.approx(1)
    assert gram(same + 1e-2 * noise(6, 500)).trace() > 0
