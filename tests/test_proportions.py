"""Intervals of proportions and of paired differences: closed forms, published examples, and coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from backlight.numerics.bootstrap import mean_interval, skewed_mean_interval
from backlight.numerics.proportions import (
    paired_difference_interval,
    proportion_interval,
    ratio_interval,
    score_intervals,
    share_interval,
    tango_ends,
)

SIZES = (20, 50, 200)
PROPORTIONS = (0.5, 0.9, 0.98, 1.0)
Z = stats.norm.ppf(0.975)


def images_of(both, first, second, neither):
    """Paired 0s and 1s with these counts."""
    pairs = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, first, second, neither], axis=0)
    return pairs[:, 0], pairs[:, 1]


# --- closed forms and published examples


@pytest.mark.parametrize("n", [1, 20, 333])
def test_the_interval_of_a_proportion_is_that_of_the_beta_distribution(n):
    """Jeffreys' prior and k of n give a beta distribution; at 0 and n the end is that of an exact binomial test."""
    k = np.arange(n + 1)
    value, low, high = proportion_interval(k, n)
    np.testing.assert_allclose(value, k / n)
    np.testing.assert_allclose(stats.beta.cdf(low[1:-1], k[1:-1] + 0.5, n - k[1:-1] + 0.5), 0.025)
    np.testing.assert_allclose(stats.beta.sf(high[1:-1], k[1:-1] + 0.5, n - k[1:-1] + 0.5), 0.025)
    assert (low[0], high[-1]) == (0, 1)
    assert low[-1] == pytest.approx(stats.binomtest(n, n).proportion_ci(0.95).low)
    assert high[0] == pytest.approx(stats.binomtest(0, n).proportion_ci(0.95).high)


def test_in_the_middle_it_is_wilsons():
    """Wilson's formula, written out, differs by less than 3% of the width where neither end is near 0 or 1."""
    for n in (50, 200):
        k = np.arange(n // 4, 3 * n // 4)
        _, low, high = proportion_interval(k, n)
        centre, half = (k + Z**2 / 2) / (n + Z**2), Z / (n + Z**2) * np.sqrt(k * (n - k) / n + Z**2 / 4)
        np.testing.assert_allclose(low, centre - half, atol=0.03 * (high - low).max())
        np.testing.assert_allclose(high, centre + half, atol=0.03 * (high - low).max())


def test_twenty_of_twenty_are_not_certainly_all():
    samples = np.ones(20)
    assert mean_interval(samples).low == 1  # the bootstrap
    assert list(share_interval(samples)) == pytest.approx([1, 0.025 ** (1 / 20), 1])


def test_a_published_example_of_tangos_interval():
    """Fagerland, Lydersen & Laake (2014), airway hyper-responsiveness: 1, 1, 7 and 12 pairs give -0.517 to -0.026."""
    value, low, high = paired_difference_interval(*images_of(1, 1, 7, 12))
    assert [value, low, high] == pytest.approx([-6 / 21, -0.517, -0.026], abs=5e-4)


def test_without_discordant_images_tangos_interval_has_a_closed_form():
    value, low, high = paired_difference_interval(*images_of(13, 0, 0, 7))
    assert [value, low, high] == pytest.approx([0, -(Z**2) / (20 + Z**2), Z**2 / (20 + Z**2)])


@given(b=st.integers(0, 30), c=st.integers(0, 30), more=st.integers(1, 60))
@settings(deadline=None)
def test_at_the_ends_the_likelihood_score_is_the_quantile(b, c, more):
    """The nuisance parameter is found by maximising the likelihood on a grid, not by Tango's root of a quadratic."""
    n = b + c + more
    for end in tango_ends(b, c, n):
        if abs(end) > 1 - 1e-6:
            continue
        lost = np.linspace(max(0.0, -end), (1 - end) / 2, 200_001)  # probability that only the second is correct
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = sum(k * np.log(p) if k else 0 for k, p in ((b, lost + end), (c, lost), (more, 1 - 2 * lost - end)))
        q = lost[np.nanargmax(likelihood)]
        assert abs(b - c - n * end) == pytest.approx(Z * np.sqrt(n * (2 * q + end - end**2)), rel=2e-2, abs=2e-2)


# --- laws


def test_each_column_has_its_own_interval():
    generator = np.random.default_rng(0)
    first, second = generator.random((2, 30, 2, 3)) < 0.8
    share, paired = share_interval(first), paired_difference_interval(first, second)
    assert share.value.shape == share.low.shape == paired.high.shape == (2, 3)
    for index in np.ndindex(2, 3):
        column = (slice(None), *index)
        np.testing.assert_allclose(np.array(share)[column], share_interval(first[column]))
        np.testing.assert_allclose(np.array(share)[column], proportion_interval(first[column].sum(), 30))
        np.testing.assert_allclose(np.array(paired)[column], paired_difference_interval(first[column], second[column]))


def test_exchanging_the_two_changes_the_sign():
    first, second = images_of(30, 9, 2, 11)
    value, low, high = paired_difference_interval(first, second)
    assert list(paired_difference_interval(second, first)) == pytest.approx([-value, -high, -low])
    assert low < value < high


def test_no_images_and_one_image():
    assert np.isnan(proportion_interval(0, 0)).all()
    for interval in (share_interval([1.0]), paired_difference_interval([1.0], [0.0]), ratio_interval([1.0], [2.0])):
        assert np.isfinite(interval.value)
        assert np.isnan(interval[1:]).all()


def test_shares_equal_to_0_or_1_are_counted_and_others_are_narrower():
    """Twenty images, each with 15 independent answers, say nearly as much as 300 images; 15 equal answers say no more."""
    generator = np.random.default_rng(1)
    answers = generator.random((400, 15)) < 0.8
    width = np.diff(share_interval(answers.mean(1))[1:])
    assert width == pytest.approx(np.diff(share_interval(answers.ravel())[1:]), rel=0.1)
    same = np.repeat(answers[:, :1], 15, axis=1)
    np.testing.assert_allclose(share_interval(same.mean(1)), share_interval(same[:, 0]))
    np.testing.assert_allclose(ratio_interval(same.sum(1), np.full(400, 15)), share_interval(same[:, 0]))


def test_the_first_score_is_a_proportion_and_the_others_are_means():
    generator = np.random.default_rng(2)
    scores = np.stack([generator.random((3, 25)) < 0.9, generator.exponential(size=(3, 25))], axis=1)  # (K, S, n)
    accuracy, nll = score_intervals(scores, resamples=50, seed=4)
    np.testing.assert_allclose(accuracy, share_interval(scores[:, 0].T))
    np.testing.assert_allclose(nll, skewed_mean_interval(scores[:, 1].T, resamples=50, seed=4))
    accuracy, nll = score_intervals(scores, scores[:1], resamples=50, seed=4)
    np.testing.assert_allclose(accuracy, paired_difference_interval(scores[:, 0].T, scores[:1, 0].T))
    np.testing.assert_allclose(nll, skewed_mean_interval((scores[:, 1] - scores[:1, 1]).T, resamples=50, seed=4))


# --- coverage


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("p", PROPORTIONS)
def test_the_interval_of_a_proportion_covers_it(n, p):
    """Exactly, as a sum over the binomial distribution.  At p = 1 every sample is all 1, and every interval ends at 1."""
    k = np.arange(n + 1)
    _, low, high = proportion_interval(k, n)
    coverage = stats.binom.pmf(k, n, p)[(low <= p) & (p <= high)].sum()
    assert coverage == pytest.approx(1) if p == 1 else 0.93 <= coverage <= 0.985


def paired_coverage(n, p, change, simulations=4000):
    """How often the interval contains the true change, if ``p`` of the images are correct before.

    The share ``change`` of all images becomes wrong; a quarter of it, or all images that are wrong before, becomes correct.
    """
    gained, lost = min(change / 4, 1 - p), change
    samples = np.random.default_rng(0).multinomial(n, [gained, lost, 1 - gained - lost], size=simulations)
    low, high = tango_ends(samples[:, 0], samples[:, 1], n)
    return ((low <= gained - lost) & (gained - lost <= high)).mean()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("p", PROPORTIONS)
def test_the_interval_of_a_paired_difference_covers_it(n, p):
    """93% to 98.5% if about six or more images are expected to change; with fewer it is conservative."""
    assert 0.93 <= paired_coverage(n, p, 0.3) <= 0.985
    assert paired_coverage(n, p, 1 / n) >= 0.93


def test_the_interval_of_shares_covers_them():
    """Means over 15 answers for each image, which has a rate of its own."""
    generator = np.random.default_rng(5)
    for n in SIZES:
        for mean in (0.5, 0.9, 0.98):
            rates = generator.beta(2 * mean, 2 * (1 - mean), (n, 4000))
            _, low, high = share_interval(generator.binomial(15, rates) / 15)
            coverage = ((low <= mean) & (mean <= high)).mean()
            assert 0.93 <= coverage <= 0.99, (n, mean, coverage)
