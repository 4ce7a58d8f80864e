"""Bootstrap intervals against SciPy, the normal formula, and their coverage of the true value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from backlight.numerics.bootstrap import CHUNK, counts, mean_interval, skewed_mean_interval, statistic_interval
from backlight.numerics.student import jackknife_interval, student


def sample(n, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape))


def mean_of(values):
    return lambda weights: weights @ values / weights.sum()


# --- against others


@pytest.mark.parametrize(("ours", "theirs"), [("mean", "percentile"), ("statistic", "basic")])
def test_the_interval_of_a_mean_is_scipys(ours, theirs):
    values = np.random.default_rng(1).exponential(size=80)  # skewed, so that the two kinds of interval differ
    if ours == "mean":
        interval = mean_interval(values, resamples=20_000)
    else:
        interval = statistic_interval(mean_of(values), 80, resamples=20_000)
    scipys = stats.bootstrap((values,), np.mean, method=theirs, n_resamples=20_000, rng=2).confidence_interval
    assert interval.value == pytest.approx(values.mean(), abs=1e-12)
    width = scipys.high - scipys.low
    assert interval.low == pytest.approx(scipys.low, abs=0.03 * width)
    assert interval.high == pytest.approx(scipys.high, abs=0.03 * width)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_of_many_normal_numbers_is_the_normal_one(level):
    values = sample(2000)
    interval = mean_interval(values, resamples=5000, level=level)
    half = stats.norm.ppf((1 + level) / 2) * values.std(ddof=1) / np.sqrt(2000)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.05)


def test_it_covers_the_true_value_in_95_of_100_cases():
    covered = 0
    for seed in range(500):
        interval = mean_interval(3 + sample(50, seed=seed), resamples=400, seed=seed)
        covered += bool(interval.low < 3 < interval.high)
    assert 0.92 * 500 <= covered <= 0.98 * 500


def nlls(n, simulations, seed=0):
    """Most images have a loss near 0, a few a large one."""
    return np.log1p(np.exp(-np.random.default_rng(seed).normal(3, 3, (n, simulations))))


@pytest.mark.parametrize("n", [20, 50, 200])
def test_the_interval_of_a_skewed_mean_covers_it(n):
    """All simulations share their resamples.  The percentile interval covers 83% at n = 20."""
    true = nlls(10_000, 200, seed=1).mean()
    values = nlls(n, 3000)
    _, low, high = skewed_mean_interval(values, resamples=600)
    covered = ((low <= true) & (true <= high)).mean()
    assert 0.92 <= covered <= 0.97
    _, low, high = mean_interval(values, resamples=600)
    assert covered > ((low <= true) & (true <= high)).mean()


def test_the_interval_of_a_skewed_mean_by_a_slow_loop():
    values = np.random.default_rng(3).exponential(size=(30, 2))
    value, low, high = skewed_mean_interval(values, resamples=100, seed=7)
    drawn = np.concatenate(list(counts(30, 100, seed=7))).astype(int)
    scores = []
    for times in drawn:
        resample = np.repeat(values, times, axis=0)
        scores.append((resample.mean(0) - values.mean(0)) / resample.std(0))
    least, most = np.quantile(scores, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(low, value - values.std(0) * most)
    np.testing.assert_allclose(high, value - values.std(0) * least)


def test_a_skewed_mean_of_equal_images_has_an_interval_of_width_zero():
    value, low, high = skewed_mean_interval(np.full((9, 2), 0.25))
    assert (low == value).all()
    assert (high == value).all()
    assert np.isfinite(skewed_mean_interval(np.eye(9)[0])).all()  # a resample without the only other image


# --- laws


def test_the_interval_of_a_statistic_is_that_of_the_mean_reflected_about_the_estimate():
    values = np.random.default_rng(3).exponential(size=40)
    percentile = mean_interval(values, resamples=300, seed=5)
    basic = statistic_interval(mean_of(values), 40, resamples=300, seed=5)
    assert basic.value == pytest.approx(percentile.value)
    assert basic.low == pytest.approx(2 * percentile.value - percentile.high)
    assert basic.high == pytest.approx(2 * percentile.value - percentile.low)


def test_an_interval_depends_on_the_seed():
    values = sample(30)
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4)
    assert mean_interval(values, seed=4).low != mean_interval(values, seed=5).low
    statistic = mean_of(values)
    assert statistic_interval(statistic, 30, seed=4) == statistic_interval(statistic, 30, seed=4)


def test_the_same_seed_pairs_two_measurements():
    """Two columns resampled together: their difference has the interval of the column of differences."""
    before, noise = sample(60, seed=1), 0.01 * sample(60, seed=2)
    paired = mean_interval((before + noise) - before)
    assert paired.high - paired.low < 0.01
    together = mean_interval(np.stack([before, before + noise], axis=1))
    alone = mean_interval(before + noise)
    assert together.low[1] == pytest.approx(alone.low)
    assert together.high[1] == pytest.approx(alone.high)


@given(shape=st.lists(st.integers(1, 3), max_size=2), n=st.integers(2, 12), seed=st.integers(0, 99))
@settings(deadline=None)
def test_each_column_has_its_own_interval(shape, n, seed):
    values = sample(n, *shape, seed=seed)
    interval = mean_interval(values, resamples=50)
    assert interval.value.shape == interval.low.shape == interval.high.shape == tuple(shape)
    np.testing.assert_allclose(interval.value, values.mean(0))
    assert (interval.low <= interval.high).all()
    for index in np.ndindex(*shape):
        column = mean_interval(values[(slice(None), *index)], resamples=50)
        np.testing.assert_allclose(np.array(interval)[(slice(None), *index)], column)


@pytest.mark.parametrize("resamples", [1, CHUNK - 1, CHUNK, CHUNK + 1, 100])
def test_a_resample_draws_as_many_images_as_there_are(resamples):
    drawn = np.concatenate(list(counts(7, resamples, seed=0)))
    assert drawn.shape == (resamples, 7)
    assert (drawn.sum(1) == 7).all()


def test_images_are_drawn_uniformly_and_independently():
    drawn = np.concatenate(list(counts(20, 4000, seed=0)))
    np.testing.assert_allclose(drawn.mean(0), 1, atol=0.08)
    np.testing.assert_allclose(drawn.var(), 1 - 1 / 20, atol=0.03)  # binomial: n draws with probability 1 / n


# --- edges


def test_one_image_has_no_interval():
    for interval in (mean_interval(np.ones((1, 3))), statistic_interval(lambda w: w.sum() * np.ones(3), 1)):
        assert (interval.value == 1).all()
        assert np.isnan(interval.low).all()
        assert np.isnan(interval.high).all()


@pytest.mark.parametrize("far", [0.1, 1e8, -1e15])
def test_a_constant_far_from_zero_has_an_interval_of_width_zero(far):
    interval = mean_interval(np.full(37, far))
    assert [interval.low, interval.value, interval.high] == pytest.approx([far, far, far], rel=1e-15)


def test_a_small_spread_far_from_zero_keeps_its_digits():
    values = 1e6 + 1e-6 * sample(50)
    near, far = mean_interval(values - 1e6), mean_interval(values)
    assert far.high - far.low == pytest.approx(near.high - near.low, rel=1e-3)


def test_resamples_that_are_nan_are_omitted():
    """A resample of images of two classes can draw one class only: its statistic is NaN, and the others are used."""
    values, kind = np.array([1.0, 2.0, 5.0]), np.array([0.0, 1.0, 1.0])

    def mean_of_the_second_class(weights):
        second = weights * kind
        return np.array([weights @ values / 3, second @ values / second.sum() if second.any() else np.nan, np.nan])

    interval = statistic_interval(mean_of_the_second_class, 3, resamples=500)
    assert interval.value[1] == 3.5
    assert interval.low[1] == pytest.approx(2)
    assert interval.high[1] == pytest.approx(5)
    assert np.isnan([interval.value[2], interval.low[2], interval.high[2]]).all()


def test_an_interval_stays_within_the_range_and_around_the_estimate():
    """A share of 9 in 10: the reflection exceeds 1.  A distance of 0: every resample is at least as large."""
    right = np.repeat([1.0, 0.0], [9, 1])
    reflected = statistic_interval(mean_of(right), 10)
    assert reflected.high > 1
    share = statistic_interval(mean_of(right), 10, within=(0, 1))
    assert share.high == 1
    assert share.low == reflected.low
    distance = statistic_interval(lambda w: abs(w @ np.array([1.0, -1.0] * 20)) / 40, 40, within=(0, 1))
    assert distance.low == distance.value == 0
    inflated = statistic_interval(lambda w: (w**2).sum() / 40, 40)  # 1 for the images, about 2 for a resample
    assert inflated.low < inflated.value == inflated.high == 1
    deflated = statistic_interval(lambda w: np.count_nonzero(w) / 40, 40)  # 1, about 0.63 for a resample
    assert deflated.high > deflated.value == deflated.low == 1


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).exponential(size=(9, 3))
    without = np.stack([np.delete(values, i, axis=0).mean(0) for i in range(9)])
    value, low, high = jackknife_interval(values.mean(0), without)
    for k in range(3):
        assert (value[k], low[k], high[k]) == pytest.approx(student(values[:, k].tolist()))
        expected = stats.ttest_1samp(values[:, k], 0).confidence_interval(0.95)
        assert (low[k], high[k]) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_the_jackknife_of_a_ratio_has_the_error_of_the_delta_method():
    up, down = np.random.default_rng(0).normal((2, 3), 0.1, size=(400, 2)).T
    ratio = up.sum() / down.sum()
    _, low, high = jackknife_interval(np.array(ratio), (up.sum() - up) / (down.sum() - down))
    error = np.std(up - ratio * down, ddof=1) / np.sqrt(400) / down.mean()
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 399) * error, rel=0.01)
    assert np.isnan(jackknife_interval(np.array(ratio), np.full(1, np.nan))[1:]).all()
