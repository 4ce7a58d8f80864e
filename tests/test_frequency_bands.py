"""Bands and band noise, against transforms written as sums and random numbers computed with Python's integers."""

import cmath
import itertools
import math

import numpy as np
import pytest
import torch

from backlight.numerics.frequency_bands import (
    band,
    bins,
    confined,
    frequencies,
    of_spectrum,
    root_mean_square,
    signs,
    uniform,
    wave,
)

SIZES = [(8, 8), (7, 7), (8, 11), (9, 6), (5, 12)]
TENTHS = [(k / 10 - 0.05, k / 10 + 0.05) for k in range(1, 10)]


def folded(k, n):
    """The frequency of bin k of n in units of pi: the smaller of k and n - k cycles."""
    return 2 * min(k, n - k) / n


def full_mask(size, low, high):
    """The band bin by bin over the full plane."""
    h, w = size
    ring = [[max(folded(y, h), folded(x, w)) for x in range(w)] for y in range(h)]
    return np.array([[low - 1e-12 <= f and (f < high - 1e-12 or high >= 1) for f in row] for row in ring])


def spectrum(field):
    """The transform as a sum over pixels."""
    h, w = field.shape
    pixels = list(itertools.product(range(h), range(w)))
    return np.array(
        [
            [sum(field[y, x] * cmath.exp(-2j * math.pi * (i * y / h + j * x / w)) for y, x in pixels) for j in range(w)]
            for i in range(h)
        ]
    )


def white(size, *, images=1, channels=1, seed=0):
    return torch.randn(images, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- bands


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("low", "high"), [(0, 0.3), (0.25, 0.5), (0.3, 0.8), (0.75, 1), (0, 1)])
def test_a_band_equals_its_definition_bin_by_bin(size, low, high):
    full = full_mask(size, low, high)
    assert (band(size, low, high).numpy() == full[:, : size[1] // 2 + 1]).all()
    assert bins(band(size, low, high), size[1]) == full.sum()


@pytest.mark.parametrize("size", SIZES)
def test_noise_within_a_band_has_energy_there_only_and_no_imaginary_part(size):
    """The authors' mask fails this: it is not its own mirror image."""
    low, high = 0.3, 0.8
    field = white(size)[0, 0]
    full = full_mask(size, low, high)
    mirrored = np.roll(full[::-1, ::-1], (1, 1), (0, 1))
    assert (mirrored == full).all()
    filtered = np.fft.ifft2(np.fft.fft2(field.numpy()) * full)
    assert np.abs(filtered.imag).max() < 1e-15
    within_band = confined(field, band(size, low, high))
    np.testing.assert_allclose(within_band, filtered.real, atol=1e-14)
    amplitude = np.abs(spectrum(within_band.numpy()))
    assert amplitude[~full].max() < 1e-12
    assert amplitude[full].min() > 1e-3


def test_the_authors_mask_fails_this():
    """One of their squares on 32 pixels: rows 12 to 19 around a centre at 16 lack the mirror image of row 12."""
    rows = np.zeros(32, bool)
    rows[12:20] = True
    mask = np.fft.ifftshift(rows[:, None] & rows)
    filtered = np.fft.ifft2(np.fft.fft2(white((32, 32))[0, 0].numpy()) * mask)
    assert np.linalg.norm(filtered.imag) > 0.1 * np.linalg.norm(filtered.real)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (33, 40), (224, 224)])
def test_adjacent_bands_divide_the_plane(size):
    edges = np.arange(11) / 10
    masks = [band(size, low, high) for low, high in itertools.pairwise(edges)]
    assert (torch.stack(masks).sum(0) == 1).all()
    assert sum(bins(mask, size[1]) for mask in masks) == math.prod(size)
    field = white(size)
    torch.testing.assert_close(sum(confined(field, mask) for mask in masks), field)


def test_edges_are_decimal_numbers():
    """0.3 - 0.05 and 0.2 + 0.05 are both 0.25, a frequency of 32 pixels."""
    (_, below), (above, _) = TENTHS[1], TENTHS[2]
    quarter = frequencies((32, 32)) == 0.25
    assert not band((32, 32), 0.15, below)[quarter].any()
    assert band((32, 32), above, 0.35)[quarter].all()


def test_confined_is_an_orthogonal_projection():
    a, b = white((9, 10), seed=1), white((9, 10), seed=2)
    mask = band((9, 10), 0.2, 0.6)
    once = confined(a, mask)
    torch.testing.assert_close(confined(once, mask), once)
    assert float((once * b).sum()) == pytest.approx(float((a * confined(b, mask)).sum()))
    assert once.square().sum() < a.square().sum()


def test_an_empty_mask_gives_a_field_of_zeros():
    assert not of_spectrum(torch.fft.rfft2(white((6, 6))), torch.zeros(6, 4, dtype=torch.bool), 6).any()


def test_root_mean_square_is_over_channels_and_pixels():
    fields = white((4, 5), images=3, channels=2)
    expected = [math.sqrt(sum(float(x) ** 2 for x in field.flatten()) / 40) for field in fields]
    assert root_mean_square(fields).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("size", [(6, 6), (5, 8)])
def test_a_wave_has_one_frequency_and_root_mean_square_one(size):
    for cycles in itertools.product(range(-(size[0] // 2), size[0] // 2 + 1), range(-(size[1] // 2), size[1] // 2 + 1)):
        field = wave(size, cycles)
        assert float(field.square().mean()) == pytest.approx(1)
        amplitude = np.abs(spectrum(field.numpy()))
        expected = {tuple(int(s * k) % n for k, n in zip(cycles, size, strict=True)) for s in (1, -1)}
        assert set(zip(*map(list, np.nonzero(amplitude > 1e-9)), strict=True)) == expected


# --- random numbers


def splitmix(seed, count):
    """SplitMix64 as published, with Python's integers."""
    numbers, mask = [], 2**64 - 1
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        numbers.append(z ^ (z >> 31))
    return numbers


def hashed(z):
    """The output of the generator in state z."""
    return splitmix((z - 0x9E3779B97F4A7C15) % 2**64, 1)[0]


def test_the_generator_of_this_test_is_splitmix():
    """The published numbers for this seed."""
    assert splitmix(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (7, 3), (2**40, 1)])
def test_each_image_has_its_own_stream_of_splitmix(seed, stream):
    images = [0, 1, 12345]
    noise = signs(torch.tensor(images), (2, 5, 10), seed=seed, stream=stream)
    flat = uniform(torch.tensor(images), (24,), seed=seed, stream=stream)
    for k, image in enumerate(images):
        start = hashed((image * 0x9E3779B97F4A7C15 + hashed((hashed(seed) + stream) % 2**64)) % 2**64)
        numbers = splitmix(start, 24)
        bits = [(z >> b) & 1 for z in numbers[:2] for b in range(64)]
        assert noise[k].flatten().tolist() == [2 * bit - 1 for bit in bits[:100]]
        twos_complement = [z - 2**64 if z >= 2**63 else z for z in numbers]
        assert flat[k].tolist() == [(z >> 40) / 2**23 for z in twos_complement]


def test_noise_of_an_image_does_not_depend_on_its_batch():
    together = signs(torch.arange(10), (1, 5, 5), seed=3)
    parts = [signs(torch.arange(a, b), (1, 5, 5), seed=3) for a, b in ((0, 4), (4, 9), (9, 10))]
    assert torch.equal(torch.cat(parts), together)


def test_noise_is_white():
    """Mean 0, flat spectrum, no correlation between images, seeds or streams, each within a few standard errors."""
    n, shape = 64, (3, 16, 16)
    fields = signs(torch.arange(n), shape, seed=0).double()
    assert fields.abs().eq(1).all()
    numbers = fields.numel()
    assert abs(float(fields.mean())) < 4 / math.sqrt(numbers)
    power = torch.fft.fft2(fields).abs().square().mean((0, 1)) / 256  # expectation 1 in each bin
    assert (power - 1).abs().max() < 6 * math.sqrt(2 / (3 * n))
    for others in (
        fields.roll(1, 0),
        *(signs(torch.arange(n), shape, **k).double() for k in ({"seed": 1}, {"seed": 0, "stream": 1})),
    ):
        assert abs(float((fields * others).mean())) < 4 / math.sqrt(numbers)
    even = uniform(torch.arange(n), shape, seed=0).double()
    assert float(even.square().mean()) == pytest.approx(1 / 3, rel=0.02)
    assert abs(float(even.mean())) < 4 / math.sqrt(3 * numbers)
