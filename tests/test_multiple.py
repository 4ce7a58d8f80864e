"""The p-value that an interval implies, and Holm's correction."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from backlight.numerics.multiple import holm, implied_p_value
from backlight.numerics.student import student
from backlight.results.claim import Claim


def claim(value: float, low: float, high: float, **about) -> Claim:
    texts = {"id": "a/b", "statement": "s", "source": "Figure 1", "quantity": "q", "count": 50}
    return Claim.of_sign("positive", (value, low, high), **texts | about)


def by_closed_testing(p: list[float]) -> list[float]:
    """Holm's procedure is the closed test whose test of an intersection is Bonferroni's: the definition, in 2^m steps."""
    every = range(len(p))
    subsets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(every, size)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in every]


def test_holm_as_r_has_it() -> None:
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_the_closed_test(seed: int) -> None:
    p = np.random.default_rng(seed).beta(0.4, 1.5, 7).round(2 if seed % 2 else 6).tolist()  # with ties and without
    assert holm(p) == pytest.approx(by_closed_testing(p))


def test_what_is_not_tested_does_not_count() -> None:
    adjusted = holm([0.02, math.nan, 0.04])
    assert adjusted[[0, 2]] == pytest.approx([0.04, 0.04])
    assert math.isnan(adjusted[1])
    assert len(holm([])) == 0


def test_holm_keeps_the_chance_of_any_false_decision() -> None:
    p = np.random.default_rng(0).uniform(size=(4000, 10))
    rejected = np.array([(holm(row) < 0.05).any() for row in p]).mean()
    assert rejected == pytest.approx(0.05, abs=0.01)
    assert (p < 0.05).any(1).mean() > 0.35


@pytest.mark.parametrize("seed", range(10))
def test_of_students_interval_it_is_the_p_value_of_the_t_test(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.4, 1, 12)
    implied = implied_p_value(*student(values.tolist()), at=0.0, freedom=11)
    assert implied == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_below_5_percent_exactly_if_the_interval_excludes_the_value() -> None:
    drawn = np.random.default_rng(0).normal(size=(3000, 4))
    low, value, high = np.sort(drawn[:, :3], axis=1).T
    for v, a, b, at in zip(value, low, high, drawn[:, 3], strict=True):
        assert (implied_p_value(v, a, b, at=at, freedom=30) < 0.05) == (at < a or at > b)


@pytest.mark.parametrize(
    ("interval", "below"),
    [
        ((1.0, 0.0, 2.0), False),  # touches the deciding value
        ((1.0, 1.0, 2.0), True),  # no length on that side
        ((0.0, 0.0, 0.3), False),
        ((0.5, 0.6, 0.9), True),  # a bootstrap interval need not hold its estimate
        ((-0.1, 0.2, 0.9), True),
    ],
)
def test_intervals_with_an_end_at_the_estimate(interval: tuple[float, ...], below: bool) -> None:
    p = implied_p_value(*interval, at=0.0, freedom=30)
    assert (p < 0.05) == below
    assert p > 0.04  # so it says no more than "below 0.05"


@pytest.mark.parametrize("ends", [(1, 0.5, 1.5), (-1, -1.5, -0.5), (1, -0.1, 2.1), (0, 0, 0), (1e-7, 1e-8, 2e-7), (2, 1e-7, 4)])
def test_a_claim_is_decided_exactly_if_its_p_value_is_below_5_percent(ends: tuple[float, ...]) -> None:
    decided = claim(*ends)
    assert (decided.verdict != "undecided") == (decided.p_value < 0.05)


def test_a_claim_about_another_number_than_zero() -> None:
    about = ("s", "Figure 4", "NEP")
    refuted = Claim(
        "hessian/negative-eigenvalues", *about, 0.02, 0.0, 0.08, "does not hold", 50, "mini-batches", decided_at=0.1
    )
    assert refuted.p_value < 0.05
    assert Claim("a/b", *about, 0.02, 0.0, 0.12, "undecided", 50, "mini-batches", decided_at=0.1).p_value >= 0.05


def test_what_has_no_interval_or_too_few_is_not_tested() -> None:
    assert math.isnan(claim(1, -math.inf, math.inf).p_value)
    assert math.isnan(claim(1, 0.9, 1.1, count=3).p_value)
