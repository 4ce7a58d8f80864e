"""The shape of surfaces over a grid, against cones, ridges and parabolas."""

import math

import numpy as np
import pytest

from backlight.numerics.surface_shape import never_falling, outward_steps, rays, rise_radii, second_differences


def grid(size=9):
    axis = np.linspace(-1, 1, size)
    return np.meshgrid(axis, axis)


def test_rays_are_straight_lines_of_grid_points():
    x, y = (a.ravel() for a in grid())
    lines = rays(9, 9)
    assert len(lines) == 16
    assert len(rays(1, 9)) == 2
    assert len(rays(3, 3)) == 8  # too small for knight's moves
    for ray in lines:
        assert (x[ray.at[0]], y[ray.at[0]]) == (0, 0)
        np.testing.assert_allclose(np.hypot(x, y)[ray.at], ray.distance / 4, atol=1e-12)
        angle = np.arctan2(y[ray.at[1:]], x[ray.at[1:]])
        np.testing.assert_allclose(angle, angle[0])
    assert len({round(math.degrees(math.atan2(y[ray.at[1]], x[ray.at[1]])), 3) for ray in lines}) == 16


def test_a_cone_rises_by_one_at_its_radius_and_never_falls():
    x, y = (a.ravel() for a in grid())
    cone = 4 * np.hypot(x, y)
    lines = rays(9, 9)
    np.testing.assert_allclose(rise_radii(cone**2, lines, 1.0).value, 1.0)  # a quarter of the half side: one step of four
    _, low, high = rise_radii(cone, lines, 1.0)
    assert np.all((low <= 1) & (high >= 1))
    assert never_falling(cone, lines) == 1
    assert outward_steps(cone, lines).min() > 0
    flat = rise_radii(0.1 * cone, lines, 1.0)
    assert np.isinf([flat.value, flat.high]).all()
    np.testing.assert_allclose(flat.low, [ray.distance[-1] for ray in lines])


def test_a_ridge_makes_some_rays_fall():
    x, y = (a.ravel() for a in grid())
    surface = 4 * np.hypot(x, y)
    surface[(x == 1) & (y == 0)] = 0
    lines = rays(9, 9)
    assert never_falling(surface, lines) == 15 / 16
    assert outward_steps(surface, lines).min() == -3
    several = np.stack([surface, 4 * np.hypot(x, y)])
    np.testing.assert_allclose(never_falling(several, lines), [15 / 16, 1])


def test_infinite_heights_rise_and_unknown_ones_are_ignored():
    heights = np.array([np.inf, 3, 1, 0, 0.5, np.nan, 2.0])
    lines = rays(1, 7)
    value, low, high = rise_radii(heights, lines, 1.0)
    assert value[0] == low[0] + 1 == high[0] == 1  # exactly at the first point
    assert (low[1], high[1]) == (1, 3)  # on either side of the unknown point
    assert low[1] < value[1] < high[1]
    assert never_falling(heights, lines) == 1
    assert np.isnan(rise_radii(np.full(7, np.nan), lines, 1.0)).all()


def test_second_differences_of_a_parabola_are_its_curvature():
    def parabola(t):
        return 3 * t**2 - 2 * t + 7

    curvature = second_differences(*(np.array([parabola(t)]) for t in (-0.1, 0, 0.1)), 0.1)
    np.testing.assert_allclose(curvature, 6, rtol=1e-10)


@pytest.mark.parametrize("coarse", [5, 7, 9, 11])
@pytest.mark.parametrize(
    "surface",
    [
        lambda x, y: 7.1 * (x**2 + y**2),
        lambda x, y: 2 * x**2 + 40 * y**2,
        lambda x, y: np.maximum(0.3 * np.hypot(x, y), 60 * (np.hypot(x, y) - 0.37)),  # a kink
        lambda x, y: np.expm1(9 * (x**2 + 2 * y**2)),  # the loss at a distance is far above its second order
        lambda x, y: 1.2 * np.hypot(x, y) ** 2,  # rises by one near the edge; some rays of a coarse grid end before
        lambda x, y: -np.exp(-30 * (x**2 + y**2)) + 3 * np.maximum(0, np.hypot(x, y) - 0.6),
    ],
)
def test_the_interval_of_a_coarse_grid_holds_the_radius_of_a_fine_one(surface, coarse):
    def radii(size):
        in_steps = rise_radii(surface(*grid(size)).ravel(), rays(size, size), 1.0)
        return [end / (size // 2) for end in in_steps]

    truth, least, most = radii(2 * 5 * 7 * 9 * 2 + 1)  # every ray reaches the edge
    assert (most - least).max() < 0.01
    _, low, high = radii(coarse)
    assert np.all((low <= truth + 1e-9) & (truth <= high + 1e-9))
    assert np.median(low) <= np.median(truth) <= np.median(high)


def test_the_radius_of_a_quadratic_needs_two_points():
    x, y = grid(5)
    np.testing.assert_allclose(rise_radii((6 * (x**2 + y**2)).ravel(), rays(5, 5), 1.0).value / 2, 1 / np.sqrt(6))
