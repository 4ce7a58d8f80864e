"""Directions, planes and paths against slow loops, NumPy's SVD and closed forms."""

import math

import numpy as np
import pytest
import torch

from backlight.evidence import sha256
from backlight.numerics import plane, relief


def weights(seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (5, 3, 3, 2), "conv.bias": (5,), "norm.weight": (5,), "pos_embed": (1, 4, 6), "fc.weight": (4, 7)}
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def flat(point):
    return np.concatenate([t.double().flatten().numpy() for t in point.values()])


# --- directions


def test_each_filter_of_a_random_direction_is_as_long_as_the_models():
    own = weights()
    own["conv.weight"][2] *= 14
    (direction,) = plane.gaussians(own, 1, seed=3)
    found = plane.filter_normalised(direction, own)
    for name in ("conv.weight", "fc.weight", "pos_embed"):
        for filtered, drawn, kept in zip(found[name], direction[name], own[name], strict=True):  # the slow way
            torch.testing.assert_close(filtered, drawn / drawn.norm() * kept.norm())
    assert not found["conv.bias"].any()
    assert not found["norm.weight"].any()


def test_a_direction_leaves_alone_what_it_is_told_to():
    own = weights()
    (direction,) = plane.gaussians(own, 1, seed=0)
    assert not plane.filter_normalised(direction, own, ["pos_embed"])["pos_embed"].any()
    assert plane.filter_normalised(direction, own, ["pos_embed"])["fc.weight"].all()


def test_a_filter_of_zeros_stays_where_it_is():
    own = weights()
    own["fc.weight"][1] = 0
    direction = plane.gaussians(own, 1, seed=0)[0]
    direction["fc.weight"][2] = 0
    found = plane.filter_normalised(direction, own)["fc.weight"]
    assert not found[1:3].any()
    assert torch.isfinite(found).all()


def test_the_authors_normalise_across_filters():
    """A transcription of their formulas, tensor by tensor."""
    own = weights()
    own["conv.weight"][2] *= 14
    (direction,) = plane.gaussians(own, 1, seed=1)
    found = plane.authors_normalised(direction, own, ["pos_embed", "relative_position"])
    for name, d in direction.items():
        w = own[name]
        expected = d * torch.sqrt((w**2).sum(0, keepdim=True)) / (torch.sqrt((d**2).sum(0, keepdim=True)) + 1e-7)
        if w.ndim < 2 or "pos_embed" in name:
            expected = torch.zeros_like(w)
        torch.testing.assert_close(found[name], expected)
    lengths = found["conv.weight"].flatten(1).norm(dim=1)
    assert lengths.max() / lengths.min() < 3  # and so the large filter's direction is no larger
    assert own["conv.weight"].flatten(1).norm(dim=1).max() > 5 * own["conv.weight"].flatten(1).norm(dim=1).median()


def test_a_seed_gives_the_same_directions_and_another_gives_others():
    one, two = plane.gaussians(weights(), 2, seed=5)
    again = plane.gaussians(weights(), 2, seed=5)
    assert sha256(one, two) == sha256(*again)
    assert sha256(one) != sha256(two) != sha256(*plane.gaussians(weights(), 1, seed=6))
    coarse = plane.gaussians(weights(dtype=torch.float32), 1, seed=5)[0]
    np.testing.assert_allclose(flat(coarse), flat(one), rtol=1e-6)
    many = flat(plane.gaussians({"w": torch.zeros(200, 200)}, 1, seed=0)[0])
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02


def test_a_flat_vector_becomes_weights_in_their_order():
    own = weights()
    vector = torch.arange(sum(w.numel() for w in own.values()), dtype=torch.float64)
    np.testing.assert_array_equal(flat(plane.by_name(vector, own)), vector.numpy())


# --- inner products


def test_inner_products_and_sums_are_those_of_the_flat_vectors():
    points = [weights(seed) for seed in range(4)]
    flats = np.stack([flat(point) for point in points])
    np.testing.assert_allclose(plane.gram(points), flats @ flats.T, rtol=1e-12)
    away = flats - flats[-1]
    np.testing.assert_allclose(plane.gram(points, points[-1]), away @ away.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(flat(plane.combination([1, -2, 0, 3], points)), np.array([1, -2, 0, 3]) @ flats, rtol=1e-12)


def test_inner_products_of_many_float32_numbers_are_summed_in_float64():
    draw = torch.Generator().manual_seed(0)
    many = {"w": torch.randn(600_000, generator=draw) + 1}
    exact = many["w"].double().square().sum().item()
    assert plane.gram([many])[0, 0] == pytest.approx(exact, rel=1e-13)


def test_a_squared_norm_on_a_plane_needs_six_inner_products():
    w, d, e = (weights(seed) for seed in range(3))
    x, y = np.array([-1.0, 0, 0.3]), np.array([0.5, 0, -2])
    found = plane.squared_norm(plane.gram([w, d, e]), x, y)
    expected = [np.square(flat(w) + a * flat(d) + b * flat(e)).sum() for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(plane.squared_norm(plane.gram([w, d]), x), [np.square(flat(w) + a * flat(d)).sum() for a in x])
    each = np.stack(list(plane.grams([w, d, e]).values()))
    np.testing.assert_allclose(plane.squared_norm(each, x, y).sum(0), expected, rtol=1e-12)


# --- a path


def path(points=6, seed=0):
    """A winding way with ever smaller steps."""
    found = [weights(seed)]
    for t in range(1, points):
        step = weights(seed + t)
        found.append({name: w + 0.8**t * step[name] for name, w in found[-1].items()})
    return found


def test_principal_axes_are_those_of_the_singular_value_decomposition():
    points = path()
    flats = np.stack([flat(point) for point in points])
    centred = flats - flats.mean(0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    found = plane.principal(plane.gram(points, points[-1]), 2)
    axes = np.stack([flat(plane.combination(c, points)) for c in found.coefficients])
    np.testing.assert_allclose(np.abs((axes * right[:2]).sum(1)), 1, rtol=1e-9)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(found.explained, singular[:2] ** 2 / (singular**2).sum(), rtol=1e-9)
    np.testing.assert_allclose(found.coordinates, (flats - flats[-1]) @ axes.T, rtol=1e-8, atol=1e-9)
    assert (found.coordinates[0] >= 0).all()  # axes point to where the path begins


def test_a_path_on_a_line_has_one_axis():
    start, step = weights(0), weights(1)
    points = [{name: start[name] + t * step[name] for name in start} for t in (0.0, 1.0, 3.0)]
    found = plane.principal(plane.gram(points, points[-1]), 2)
    np.testing.assert_allclose(found.explained, [1, 0], atol=1e-9)
    assert not found.coefficients[1].any()
    length = np.linalg.norm(flat(step))
    np.testing.assert_allclose(found.coordinates[:, 0], [3 * length, 2 * length, 0], atol=1e-9)


def test_places_in_a_plane_of_slanted_axes_are_the_nearest_ones():
    axes, points = [weights(0), weights(1)], [weights(2), weights(3)]
    expected = np.linalg.lstsq(np.stack([flat(a) for a in axes]).T, np.stack([flat(p) for p in points]).T, rcond=None)[0].T
    np.testing.assert_allclose(plane.coordinates(plane.gram([*axes, *points]), 2), expected, rtol=1e-9)


def test_polar_coordinates_are_length_and_angle_about_the_end():
    points = path()
    flats = np.stack([flat(point) for point in points])
    radius, angle = plane.polar(plane.gram(points, points[-1]))
    first = flats[0] - flats[-1]
    for t, point in enumerate(flats[:-1]):
        away = point - flats[-1]
        assert radius[t] == pytest.approx(np.linalg.norm(away) / np.linalg.norm(first))
        cosine = away @ first / np.linalg.norm(away) / np.linalg.norm(first)
        assert angle[t] == pytest.approx(math.acos(min(1, cosine)), abs=1e-7)
    assert (radius[0], angle[0], radius[-1]) == (1, 0, 0)
    assert math.isnan(angle[-1])


# --- a surface


def grid(size=9):
    axis = np.linspace(-1, 1, size)
    return np.meshgrid(axis, axis)


def test_rays_run_outwards_over_points_of_the_grid():
    x, y = (a.ravel() for a in grid())
    ways = relief.rays(9, 9)
    assert len(ways) == 16
    assert len(relief.rays(1, 9)) == 2
    assert len(relief.rays(3, 3)) == 8  # no room for knight's moves
    for way in ways:
        assert (x[way.at[0]], y[way.at[0]]) == (0, 0)
        np.testing.assert_allclose(np.hypot(x, y)[way.at], way.distance / 4, atol=1e-12)
        angle = np.arctan2(y[way.at[1:]], x[way.at[1:]])
        np.testing.assert_allclose(angle, angle[0])
    assert len({round(math.degrees(math.atan2(y[w.at[1]], x[w.at[1]])), 3) for w in ways}) == 16


def test_a_cone_rises_by_one_at_its_radius_and_never_falls():
    x, y = (a.ravel() for a in grid())
    cone = 4 * np.hypot(x, y)
    ways = relief.rays(9, 9)
    np.testing.assert_allclose(relief.rise_radii(cone, ways, 1.0), 1.0)  # a quarter of the half side: one step of four
    assert relief.never_falling(cone, ways) == 1
    assert relief.outward_steps(cone, ways).min() > 0
    assert np.isinf(relief.rise_radii(0.1 * cone, ways, 1.0)).all()


def test_a_ridge_makes_some_rays_fall():
    x, y = (a.ravel() for a in grid())
    surface = 4 * np.hypot(x, y)
    surface[(x == 1) & (y == 0)] = 0
    ways = relief.rays(9, 9)
    assert relief.never_falling(surface, ways) == 15 / 16
    assert relief.outward_steps(surface, ways).min() == -3
    several = np.stack([surface, 4 * np.hypot(x, y)])
    np.testing.assert_allclose(relief.never_falling(several, ways), [15 / 16, 1])


def test_infinite_heights_rise_and_unknown_ones_say_nothing():
    heights = np.array([np.inf, 3, 1, 0, 0.5, np.nan, 2.0])
    ways = relief.rays(1, 7)
    left, right = relief.rise_radii(heights, ways, 1.0)
    assert left == 1  # exactly at the first point
    assert right == 3  # after the hole
    assert relief.never_falling(heights, ways) == 1
    assert np.isnan(relief.rise_radii(np.full(7, np.nan), ways, 1.0)).all()


def test_second_differences_of_a_parabola_are_its_curvature():
    def parabola(t):
        return 3 * t**2 - 2 * t + 7

    found = relief.second_differences(*(np.array([parabola(t)]) for t in (-0.1, 0, 0.1)), 0.1)
    np.testing.assert_allclose(found, 6, rtol=1e-10)
