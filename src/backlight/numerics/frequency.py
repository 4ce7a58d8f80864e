"""Log amplitudes of feature maps by frequency.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figures 2a and 8: the half diagonal of the map's two-dimensional
Fourier transform.  The amplitude at the frequency (k, k) is a one-dimensional transform of the map's sums along
anti-diagonals, because exp(-2 pi i (k y + k x) / n) depends on y + x alone.  So the half diagonal is one small matrix product
with the map in its memory layout, tokens or pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

#: Added to every amplitude, so that the log of an empty bin is finite.  The authors' value.
EPSILON = 1e-6


def diagonal_frequencies(size: tuple[int, int]) -> Tensor:
    """The frequencies of the bins on the half diagonal, in units of pi per pixel.  Shapes: (h, w) -> (F,).

    F = n // 2 + 1 for the shorter side n.  Bin k is k cycles per map, 2 k / n of pi.  An odd side has no bin at pi.

    >>> diagonal_frequencies((4, 4))
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    n = min(size)
    return 2 * torch.arange(n // 2 + 1, dtype=torch.float64) / n


def paper_bins(size: tuple[int, int]) -> int:
    """The number of bins in the authors' code, whose half diagonal omits the bin at pi on maps of even size."""
    return (min(size) + 1) // 2


def log_amplitude(maps: Tensor) -> Tensor:
    """Log amplitude at each frequency of the half diagonal, averaged over channels.

    Shapes: (B, C, h, w) -> (B, F).  Unit: nepers, natural log of the amplitude of the unnormalised transform.
    A map that is not square has no bin of equal frequencies along both sides; the nearest bin of the longer side is used.
    """
    real, imaginary = _project(_floating(maps), _diagonal_waves(tuple(maps.shape[-2:]), maps.device)).chunk(2, dim=1)
    return (torch.hypot(real, imaginary) + EPSILON).log().mean(2)


def radial_log_amplitude(maps: Tensor) -> Tensor:
    """Log amplitude averaged over channels and over the bins of each ring of frequencies.

    Ring k contains the bins whose distance from zero rounds to the k-th frequency of the half diagonal; bins beyond pi, in
    the corners, are in no ring.  Shapes: (B, C, h, w) -> (B, F).  Unit: nepers.
    """
    maps = _floating(maps)
    h, w = maps.shape[-2:]
    rings = diagonal_frequencies((h, w)).numel()
    logs = (torch.fft.rfft2(maps).abs() + EPSILON).log().mean(1).flatten(1)  # (B, h * (w // 2 + 1))
    ring, weight = _rings(h, w, maps.device)
    inside = ring < rings
    total = torch.zeros(len(maps), rings, device=maps.device, dtype=logs.dtype)
    total.index_add_(1, ring[inside], logs[:, inside] * weight[inside].to(logs.dtype))
    return total / torch.zeros(rings, device=maps.device, dtype=logs.dtype).index_add_(
        0, ring[inside], weight[inside].to(logs.dtype)
    )


def _floating(maps: Tensor) -> Tensor:
    """Half precision as float32, because a sum of 3,136 pixels needs more digits."""
    return maps if maps.dtype in (torch.float32, torch.float64) else maps.float()


def _project(maps: Tensor, waves: Tensor) -> Tensor:
    """Inner products of maps with waves, without a copy of the maps.  Shapes: (B, C, h, w), (G, h, w) -> (B, G, C)."""
    waves = waves.to(maps.dtype)
    if maps.stride(1) == 1 and maps.shape[1] > 1:  # channels are adjacent in memory: tokens, or channels last
        tokens = maps.permute(0, 2, 3, 1).flatten(1, 2)  # a view
        return torch.bmm(waves.flatten(1).expand(len(maps), -1, -1), tokens)
    folded = _along_antidiagonals(maps)
    return (folded.flatten(2) @ waves[:, :: waves.shape[1] // folded.shape[2]].flatten(1).T).transpose(1, 2)


def _along_antidiagonals(maps: Tensor) -> Tensor:
    """Square maps with up to eight rows added into one, shifted so that positions on one anti-diagonal are added.

    Products with the waves of the half diagonal stay the same, with fewer entries to read.  Other maps are returned as they
    are.  Shapes: (B, C, n, n) -> (B, C, n / 1..8, n).
    """
    shift, side = 1, maps.shape[3]
    if maps.shape[2] != side:
        return maps
    while maps.shape[2] % 2 == 0 and shift < 8:
        upper, lower = maps[:, :, 0::2], maps[:, :, 1::2]  # rows that are ``shift`` rows apart in the input
        maps = torch.empty(upper.shape, dtype=maps.dtype, device=maps.device)
        torch.add(upper[..., shift:], lower[..., : side - shift], out=maps[..., shift:])
        torch.add(upper[..., :shift], lower[..., side - shift :], out=maps[..., :shift])
        shift *= 2
    return maps


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached: a later call can need it in a graph of gradients
def _diagonal_waves(size: tuple[int, int], device: torch.device) -> Tensor:
    """Cosines, then sines, at the half diagonal's frequencies.  Shapes: (h, w) -> (2 F, h, w)."""
    h, w = size
    k = torch.arange(min(h, w) // 2 + 1, dtype=torch.float64)
    y, x = torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64)
    ky, kx = (k * h / min(h, w)).round(), (k * w / min(h, w)).round()
    phase = 2 * math.pi * (ky[:, None, None] * y[:, None] / h + kx[:, None, None] * x / w)
    return torch.cat([phase.cos(), phase.sin()]).to(torch.float32 if device.type == "mps" else None).to(device)


@lru_cache(maxsize=64)
def _rings(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The ring of each bin of a real transform, and the number of bins of the full transform that it represents."""
    fy = torch.fft.fftfreq(h, dtype=torch.float64)
    fx = torch.fft.rfftfreq(w, dtype=torch.float64)
    radius = (fy[:, None] ** 2 + fx**2).sqrt()  # cycles per pixel; 0.5 is pi
    columns = torch.arange(len(fx))
    twice = (columns > 0) & (2 * columns != w)  # the real transform omits its conjugate
    weight = torch.where(twice, 2.0, 1.0).expand(h, -1)
    return (radius * min(h, w)).round().long().flatten().to(device), weight.flatten().to(device)
