"""Directions, planes and paths in weight space, against slow loops, NumPy's SVD and closed forms."""

import math

import numpy as np
import pytest
import torch

from backlight.numerics import weight_space
from backlight.results.provenance import sha256


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
    (direction,) = weight_space.gaussians(own, 1, seed=3)
    normalised = weight_space.filter_normalised(direction, own)
    for name in ("conv.weight", "fc.weight", "pos_embed"):
        for scaled, drawn, weight in zip(normalised[name], direction[name], own[name], strict=True):  # filter by filter
            torch.testing.assert_close(scaled, drawn / drawn.norm() * weight.norm())
    assert not normalised["conv.bias"].any()
    assert not normalised["norm.weight"].any()


def test_a_direction_is_zero_in_ignored_tensors():
    own = weights()
    (direction,) = weight_space.gaussians(own, 1, seed=0)
    assert not weight_space.filter_normalised(direction, own, ["pos_embed"])["pos_embed"].any()
    assert weight_space.filter_normalised(direction, own, ["pos_embed"])["fc.weight"].all()


def test_a_filter_of_zeros_does_not_move():
    own = weights()
    own["fc.weight"][1] = 0
    direction = weight_space.gaussians(own, 1, seed=0)[0]
    direction["fc.weight"][2] = 0
    normalised = weight_space.filter_normalised(direction, own)["fc.weight"]
    assert not normalised[1:3].any()
    assert torch.isfinite(normalised).all()


def test_the_authors_normalise_across_filters():
    """A transcription of their formulas, tensor by tensor."""
    own = weights()
    own["conv.weight"][2] *= 14
    (direction,) = weight_space.gaussians(own, 1, seed=1)
    normalised = weight_space.authors_normalised(direction, own, ["pos_embed", "relative_position"])
    for name, d in direction.items():
        w = own[name]
        expected = d * torch.sqrt((w**2).sum(0, keepdim=True)) / (torch.sqrt((d**2).sum(0, keepdim=True)) + 1e-7)
        if w.ndim < 2 or "pos_embed" in name:
            expected = torch.zeros_like(w)
        torch.testing.assert_close(normalised[name], expected)
    lengths = normalised["conv.weight"].flatten(1).norm(dim=1)
    assert lengths.max() / lengths.min() < 3  # so the large filter's direction is not larger
    assert own["conv.weight"].flatten(1).norm(dim=1).max() > 5 * own["conv.weight"].flatten(1).norm(dim=1).median()


def test_directions_depend_on_the_seed_alone():
    one, two = weight_space.gaussians(weights(), 2, seed=5)
    again = weight_space.gaussians(weights(), 2, seed=5)
    assert sha256(one, two) == sha256(*again)
    assert sha256(one) != sha256(two) != sha256(*weight_space.gaussians(weights(), 1, seed=6))
    coarse = weight_space.gaussians(weights(dtype=torch.float32), 1, seed=5)[0]
    np.testing.assert_allclose(flat(coarse), flat(one), rtol=1e-6)
    many = flat(weight_space.gaussians({"w": torch.zeros(200, 200)}, 1, seed=0)[0])
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02


def test_a_flat_vector_becomes_tensors_in_the_order_of_the_weights():
    own = weights()
    vector = torch.arange(sum(w.numel() for w in own.values()), dtype=torch.float64)
    np.testing.assert_array_equal(flat(weight_space.by_name(vector, own)), vector.numpy())


# --- inner products


def test_inner_products_and_sums_equal_those_of_the_flat_vectors():
    points = [weights(seed) for seed in range(4)]
    flats = np.stack([flat(point) for point in points])
    np.testing.assert_allclose(weight_space.gram(points), flats @ flats.T, rtol=1e-12)
    away = flats - flats[-1]
    np.testing.assert_allclose(weight_space.gram(points, points[-1]), away @ away.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        flat(weight_space.combination([1, -2, 0, 3], points)), np.array([1, -2, 0, 3]) @ flats, rtol=1e-12
    )


def test_inner_products_of_many_float32_numbers_are_summed_in_float64():
    draw = torch.Generator().manual_seed(0)
    many = {"w": torch.randn(600_000, generator=draw) + 1}
    exact = many["w"].double().square().sum().item()
    assert weight_space.gram([many])[0, 0] == pytest.approx(exact, rel=1e-13)


def test_a_squared_norm_on_a_plane_needs_six_inner_products():
    w, d, e = (weights(seed) for seed in range(3))
    x, y = np.array([-1.0, 0, 0.3]), np.array([0.5, 0, -2])
    squares = weight_space.squared_norm(weight_space.gram([w, d, e]), x, y)
    expected = [np.square(flat(w) + a * flat(d) + b * flat(e)).sum() for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(squares, expected, rtol=1e-12)
    np.testing.assert_allclose(
        weight_space.squared_norm(weight_space.gram([w, d]), x), [np.square(flat(w) + a * flat(d)).sum() for a in x]
    )
    per_tensor = np.stack(list(weight_space.grams([w, d, e]).values()))
    np.testing.assert_allclose(weight_space.squared_norm(per_tensor, x, y).sum(0), expected, rtol=1e-12)


# --- a path


def path(points=6, seed=0):
    """A random walk whose steps become smaller."""
    walk = [weights(seed)]
    for t in range(1, points):
        step = weights(seed + t)
        walk.append({name: w + 0.8**t * step[name] for name, w in walk[-1].items()})
    return walk


def test_principal_axes_equal_those_of_the_singular_value_decomposition():
    points = path()
    flats = np.stack([flat(point) for point in points])
    centred = flats - flats.mean(0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    principal = weight_space.principal(weight_space.gram(points, points[-1]), 2)
    axes = np.stack([flat(weight_space.combination(c, points)) for c in principal.coefficients])
    np.testing.assert_allclose(np.abs((axes * right[:2]).sum(1)), 1, rtol=1e-9)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(principal.explained, singular[:2] ** 2 / (singular**2).sum(), rtol=1e-9)
    np.testing.assert_allclose(principal.coordinates, (flats - flats[-1]) @ axes.T, rtol=1e-8, atol=1e-9)
    assert (principal.coordinates[0] >= 0).all()  # axes point towards the start of the path


def test_a_path_on_a_line_has_one_axis():
    start, step = weights(0), weights(1)
    points = [{name: start[name] + t * step[name] for name in start} for t in (0.0, 1.0, 3.0)]
    principal = weight_space.principal(weight_space.gram(points, points[-1]), 2)
    np.testing.assert_allclose(principal.explained, [1, 0], atol=1e-9)
    assert not principal.coefficients[1].any()
    length = np.linalg.norm(flat(step))
    np.testing.assert_allclose(principal.coordinates[:, 0], [3 * length, 2 * length, 0], atol=1e-9)


def test_coordinates_along_oblique_axes_are_those_of_least_squares():
    axes, points = [weights(0), weights(1)], [weights(2), weights(3)]
    expected = np.linalg.lstsq(np.stack([flat(a) for a in axes]).T, np.stack([flat(p) for p in points]).T, rcond=None)[0].T
    np.testing.assert_allclose(weight_space.coordinates(weight_space.gram([*axes, *points]), 2), expected, rtol=1e-9)


def test_polar_coordinates_are_length_and_angle_around_the_end():
    points = path()
    flats = np.stack([flat(point) for point in points])
    radius, angle = weight_space.polar(weight_space.gram(points, points[-1]))
    first = flats[0] - flats[-1]
    for t, point in enumerate(flats[:-1]):
        away = point - flats[-1]
        assert radius[t] == pytest.approx(np.linalg.norm(away) / np.linalg.norm(first))
        cosine = away @ first / np.linalg.norm(away) / np.linalg.norm(first)
        assert angle[t] == pytest.approx(math.acos(min(1, cosine)), abs=1e-7)
    assert (radius[0], angle[0], radius[-1]) == (1, 0, 0)
    assert math.isnan(angle[-1])
