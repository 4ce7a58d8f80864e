"""The shape of surfaces over a grid, against cones, ridges and parabolas."""

import math

import numpy as np

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
    np.testing.assert_allclose(rise_radii(cone, lines, 1.0), 1.0)  # a quarter of the half side: one step of four
    assert never_falling(cone, lines) == 1
    assert outward_steps(cone, lines).min() > 0
    assert np.isinf(rise_radii(0.1 * cone, lines, 1.0)).all()


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
    left, right = rise_radii(heights, lines, 1.0)
    assert left == 1  # exactly at the first point
    assert right == 3  # after the unknown point
    assert never_falling(heights, lines) == 1
    assert np.isnan(rise_radii(np.full(7, np.nan), lines, 1.0)).all()


def test_second_differences_of_a_parabola_are_its_curvature():
    def parabola(t):
        return 3 * t**2 - 2 * t + 7

    curvature = second_differences(*(np.array([parabola(t)]) for t in (-0.1, 0, 0.1)), 0.1)
    np.testing.assert_allclose(curvature, 6, rtol=1e-10)
