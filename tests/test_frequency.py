"""Log amplitudes against the authors' numbers, against slow loops over the full transform, and against laws."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backlight.numerics.frequency import diagonal_frequencies, log_amplitude, paper_bins, radial_log_amplitude

GOLDEN = json.loads((Path(__file__).parent / "golden" / "analyses.json").read_text())
SPECTRA = [log_amplitude, radial_log_amplitude]
sides = st.integers(2, 17)
seeds = st.integers(0, 999)


def formula(shape, i):
    j = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.618 * j * j + i).reshape(shape)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def delta(maps, spectrum=log_amplitude):
    logs = spectrum(maps)
    return logs - logs[:, :1]


def wave(size, cycles, phase=0.3):
    """A cosine with these cycles along each side.  Shapes: (h, w), (ky, kx) -> (1, 1, h, w)."""
    (h, w), (ky, kx) = size, cycles
    y, x = torch.arange(h, dtype=torch.float64)[:, None] / h, torch.arange(w, dtype=torch.float64) / w
    return torch.cos(2 * math.pi * (ky * y + kx * x) + phase)[None, None]


# --- the authors' numbers


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["shape"]))
def test_the_authors_numbers(case):
    measured = delta(formula(case["shape"], case["i"])).mean(0)
    to_pi = torch.tensor(case["delta_log_amplitude_to_pi"], dtype=torch.float64)
    theirs = torch.tensor(case["paper_delta_log_amplitude"], dtype=torch.float64)
    torch.testing.assert_close(measured, to_pi, rtol=0, atol=1e-9)
    torch.testing.assert_close(measured[: paper_bins(case["shape"][-2:])], theirs, rtol=0, atol=1e-9)


def test_the_authors_numbers_of_tokens_behind_a_class_token():
    case = GOLDEN["tokens"]
    tokens = formula(case["shape"], case["i"])[:, case["prefix_tokens"] :]
    maps = tokens.unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    theirs = torch.tensor(case["paper_delta_log_amplitude"], dtype=torch.float64)
    torch.testing.assert_close(delta(maps).mean(0)[: paper_bins((14, 14))], theirs, rtol=0, atol=1e-9)


# --- the definition, written as loops


def slow_diagonal(maps):
    """Image by image, channel by channel, from the full transform."""
    h, w = maps.shape[-2:]
    n = min(h, w)
    rows = []
    for image in maps:
        row = torch.zeros(n // 2 + 1, dtype=torch.float64)
        for channel in image:
            transform = torch.fft.fft2(channel).abs()
            row += torch.stack([(transform[round(k * h / n), round(k * w / n)] + 1e-6).log() for k in range(n // 2 + 1)])
        rows.append(row / len(image))
    return torch.stack(rows)


def slow_radial(maps):
    """Every bin of the full transform, put into the ring to which its distance from zero rounds."""
    h, w = maps.shape[-2:]
    n = min(h, w)
    logs = (torch.fft.fft2(maps).abs() + 1e-6).log().mean(1)
    rings = [[] for _ in range(n // 2 + 1)]
    for y in range(h):
        for x in range(w):
            fy, fx = min(y, h - y) / h, min(x, w - x) / w
            ring = round(math.hypot(fy, fx) * n)
            if ring < len(rings):
                rings[ring].append(logs[:, y, x])
    return torch.stack([torch.stack(ring).mean(0) for ring in rings], dim=1)


@given(h=sides, w=sides, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_the_diagonal_equals_that_of_the_full_transform(h, w, seed):
    maps = noise(2, 3, h, w, seed=seed)
    torch.testing.assert_close(log_amplitude(maps), slow_diagonal(maps), rtol=0, atol=1e-7)


@given(h=sides, w=sides, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_the_rings_equal_those_of_the_full_transform(h, w, seed):
    maps = noise(2, 3, h, w, seed=seed)
    torch.testing.assert_close(radial_log_amplitude(maps), slow_radial(maps), rtol=0, atol=1e-9)


@given(h=st.integers(1, 40), w=st.integers(1, 40))
def test_there_is_a_frequency_for_each_bin_from_zero_to_at_most_pi(h, w):
    frequencies = diagonal_frequencies((h, w))
    assert len(frequencies) == log_amplitude(noise(1, 1, h, w)).shape[1] == radial_log_amplitude(noise(1, 1, h, w)).shape[1]
    assert frequencies[0] == 0
    assert frequencies[-1] == (1 if min(h, w) % 2 == 0 else (min(h, w) - 1) / min(h, w))


@pytest.mark.parametrize(("size", "last"), [((14, 14), 12 / 14), ((28, 28), 26 / 28), ((56, 56), 54 / 56), ((7, 7), 6 / 7)])
def test_the_authors_last_bin_is_below_pi(size, last):
    """1.0π on their axis is 0.857π at 14 x 14, 0.929π at 28 x 28, 0.964π at 56 x 56."""
    assert diagonal_frequencies(size)[paper_bins(size) - 1].item() == pytest.approx(last)


# --- the memory layout of the map does not matter


def same(maps, otherwise):
    assert torch.equal(maps, otherwise)
    assert maps.stride() != otherwise.stride()
    for spectrum in SPECTRA:
        torch.testing.assert_close(spectrum(otherwise), spectrum(maps), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_do_not_matter(dtype):
    maps = noise(3, 6, 5, 8).to(dtype)
    same(maps, maps.contiguous(memory_format=torch.channels_last))
    tokens = torch.cat([noise(3, 2, 6).to(dtype), maps.flatten(2).transpose(1, 2)], dim=1)  # two tokens in front
    same(maps, tokens[:, 2:].unflatten(1, (5, 8)).permute(0, 3, 1, 2))
    same(maps, torch.cat([maps, maps], dim=1)[:, :6])
    wide = torch.zeros(3, 6, 5, 16, dtype=dtype)
    wide[..., ::2] = maps
    same(maps, wide[..., ::2])


def test_one_channel_in_channels_last():
    maps = noise(2, 1, 6, 6)
    torch.testing.assert_close(log_amplitude(maps.contiguous(memory_format=torch.channels_last)), slow_diagonal(maps))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_half_precision_is_summed_in_single_precision(spectrum, dtype):
    maps = noise(2, 4, 56, 56).to(dtype)
    torch.testing.assert_close(spectrum(maps), spectrum(maps.float()))
    assert spectrum(maps).dtype == torch.float32
    loud = (1000 * torch.ones(1, 1, 56, 56)).to(dtype)  # its sum, 3.1 million, overflows float16
    assert spectrum(loud)[0, 0].item() == pytest.approx(math.log(1000 * 56 * 56), abs=1e-2)


def test_waves_cached_in_inference_mode_allow_gradients_later():
    """The waves are cached between calls; those made within an analysis must not break a gradient later."""
    size = (9, 11)  # used nowhere else, so the waves are made here
    with torch.inference_mode():
        [spectrum(noise(1, 2, *size)) for spectrum in SPECTRA]
    for spectrum in SPECTRA:
        maps = noise(1, 2, *size).requires_grad_()
        spectrum(maps).sum().backward()
        assert maps.grad.abs().sum() > 0


# --- laws


@given(scale=st.floats(1e-2, 1e3), side=sides, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_delta_does_not_depend_on_the_scale(scale, side, seed):
    maps = noise(1, 3, side, side, seed=seed)
    for spectrum in SPECTRA:
        assert (delta(scale * maps, spectrum) - delta(maps, spectrum)).abs().max() < 1e-2  # the 1e-6 in the logarithm
        torch.testing.assert_close(spectrum(scale * maps), spectrum(maps) + math.log(scale), rtol=0, atol=1e-2)


@given(side=st.integers(4, 16), dy=st.integers(0, 15), dx=st.integers(0, 15), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_a_shift_does_not_change_amplitudes(side, dy, dx, seed):
    maps = noise(1, 2, side, side, seed=seed)
    for spectrum in SPECTRA:
        torch.testing.assert_close(spectrum(maps.roll((dy, dx), (2, 3))), spectrum(maps), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (14, 14), (8, 12)])
def test_a_cosine_has_its_energy_in_one_bin(size):
    h, w = size
    n = min(size)
    for k in range(1, (n + 1) // 2):
        pure = wave(size, (round(k * h / n), round(k * w / n)))
        amplitudes = log_amplitude(pure)[0].exp()
        assert amplitudes[k].item() == pytest.approx(h * w / 2, rel=1e-6)  # a cosine is two waves of half its amplitude
        amplitudes[k] = 0
        assert amplitudes.max() < 1e-5


def test_a_checkerboard_is_pi():
    board = wave((8, 8), (4, 4), phase=0)
    assert log_amplitude(board)[0, -1].exp().item() == pytest.approx(64)
    assert diagonal_frequencies((8, 8))[-1] == 1


def test_a_wave_across_the_diagonal_is_in_the_rings_only():
    across = wave((16, 16), (5, -5))
    assert log_amplitude(across).exp().max() < 1e-5
    ring = round(math.hypot(5, 5))
    bins = sum(round(math.hypot(y, x)) == ring for y in range(-8, 8) for x in range(-8, 8))
    empty = math.log(1e-6)
    expected = torch.full((9,), empty, dtype=torch.float64)
    expected[ring] += 2 / bins * (math.log(16 * 16 / 2) - empty)  # two bins of the ring, a mean of logarithms
    torch.testing.assert_close(radial_log_amplitude(across)[0], expected, rtol=0, atol=1e-5)


def test_the_mean_over_channels_is_of_logarithms():
    quiet, loud = noise(1, 1, 8, 8), 100 * noise(1, 1, 8, 8)
    both = log_amplitude(torch.cat([quiet, loud], dim=1))
    torch.testing.assert_close(both, (log_amplitude(quiet) + log_amplitude(loud)) / 2)


# --- filtering and subsampling


def level(maps):
    """Log amplitude per pixel, by cycles per image, as the transfer function compares it."""
    return log_amplitude(maps) - math.log(maps.shape[-1] * maps.shape[-2])


def test_a_blur_has_the_transfer_function_of_its_kernel():
    """A circular binomial blur has (1 + cos w) / 2 along each side, and the square of it on the diagonal."""
    maps = noise(4, 3, 16, 16)
    blurred = sum(
        weight / 16 * maps.roll((dy, dx), (2, 3))
        for dy, wy in ((-1, 1), (0, 2), (1, 1)) for dx, wx in ((-1, 1), (0, 2), (1, 1)) for weight in [wy * wx]
    )  # fmt: skip
    known = ((1 + torch.cos(math.pi * diagonal_frequencies((16, 16)))) / 2).square().log()
    torch.testing.assert_close((level(blurred) - level(maps))[:, :-1], known[:-1].expand(4, -1), rtol=0, atol=1e-3)


def test_subsampling_a_band_limited_map_has_transfer_zero():
    """Every second pixel of a map without waves beyond π / 2: each wave keeps its amplitude.

    But Δ at the highest frequency, the authors' measure, changes: a wave of π / 2 is now one of π.
    """
    spectrum = torch.fft.fft2(noise(3, 2, 32, 32))
    cycles = (torch.fft.fftfreq(32) * 32).abs()
    falling = torch.exp(-cycles / 3) * (cycles < 8)  # as in natural images
    maps = torch.fft.ifft2(spectrum * falling[:, None] * falling).real
    small = maps[..., ::2, ::2]
    torch.testing.assert_close(level(small)[:, :8], level(maps)[:, :8], rtol=0, atol=1e-3)
    half_pi, pi = 8 - 1, 16
    assert (delta(maps)[:, pi] < delta(small)[:, half_pi] - 5).all()
