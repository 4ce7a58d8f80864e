"""Log amplitudes of feature maps by frequency (Park & Kim 2022, figures 2a and 8).

A map is a sum of waves.  Its amplitude at the frequency (k, k) is a one-dimensional transform of its sums along
anti-diagonals, because exp(-2 pi i (k y + k x) / n) depends on y + x alone; so the half diagonal of the two-dimensional
transform is one small matrix product with the map where it lies, tokens or pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

#: Keeps the log of an empty bin finite.  The authors' value.
EPSILON = 1e-6


def diagonal_frequencies(size: tuple[int, int]) -> Tensor:
    """The frequencies of the bins on the half diagonal, in units of pi per pixel.  Shapes: (h, w) -> (F,).

    F = n // 2 + 1 for the shorter side n: bin k is k cycles a map, 2 k / n of pi.  An odd side has no bin at pi itself.

    >>> diagonal_frequencies((4, 4))
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    n = min(size)
    return 2 * torch.arange(n // 2 + 1, dtype=torch.float64) / n


def paper_bins(size: tuple[int, int]) -> int:
    """How many bins the authors' code keeps: its half diagonal stops one bin short of pi on even maps."""
    return (min(size) + 1) // 2


def log_amplitude(maps: Tensor) -> Tensor:
    """Log amplitude at each frequency of the half diagonal, averaged over channels.

    Shapes: (B, C, h, w) -> (B, F).  Unit: nepers, natural log of the amplitude of the unnormalised transform.
    A map that is not square has no bin at equal frequencies along both sides: on its longer side the nearest is taken.
    """
    real, imaginary = _project(_floating(maps), _diagonal_waves(tuple(maps.shape[-2:]), maps.device)).chunk(2, dim=1)
    return (torch.hypot(real, imaginary) + EPSILON).log().mean(2)


def radial_log_amplitude(maps: Tensor) -> Tensor:
    """Log amplitude averaged over channels and over the bins of each ring of frequencies, all directions alike.

    Shapes: (B, C, h, w) -> (B, F).  Ring k holds the bins whose distance from zero rounds to the k-th frequency of the
    half diagonal; the corners beyond pi belong to none.  Unit: nepers.
    """
    maps = _floating(maps)
    h, w = maps.shape[-2:]
    rings = diagonal_frequencies((h, w)).numel()
    logs = (torch.fft.rfft2(maps).abs() + EPSILON).log().mean(1).flatten(1)  # (B, h * (w // 2 + 1))
    ring, weight = _rings(h, w, maps.device)
    kept = ring < rings
    total = torch.zeros(len(maps), rings, device=maps.device, dtype=logs.dtype)
    total.index_add_(1, ring[kept], logs[:, kept] * weight[kept].to(logs.dtype))
    return total / torch.zeros(rings, device=maps.device, dtype=logs.dtype).index_add_(
        0, ring[kept], weight[kept].to(logs.dtype)
    )


def _floating(maps: Tensor) -> Tensor:
    """Half precision as float32: a sum of 3,136 pixels needs more digits."""
    return maps if maps.dtype in (torch.float32, torch.float64) else maps.float()


def _project(maps: Tensor, waves: Tensor) -> Tensor:
    """Inner products of maps with waves, without moving the maps.  Shapes: (B, C, h, w), (G, h, w) -> (B, G, C)."""
    waves = waves.to(maps.dtype)
    if maps.stride(1) == 1 and maps.shape[1] > 1:  # channels lie together: tokens, or channels last
        tokens = maps.permute(0, 2, 3, 1).flatten(1, 2)  # a view
        return torch.bmm(waves.flatten(1).expand(len(maps), -1, -1), tokens)
    folded = _along_antidiagonals(maps)
    return (folded.flatten(2) @ waves[:, :: waves.shape[1] // folded.shape[2]].flatten(1).T).transpose(1, 2)


def _along_antidiagonals(maps: Tensor) -> Tensor:
    """Square maps with up to eight rows summed into one, places of one anti-diagonal together: the waves of the half
    diagonal see the same, and the product with them has less to read.  Shapes: (B, C, n, n) -> (B, C, n / 1..8, n).
    """
    shift, side = 1, maps.shape[3]
    if maps.shape[2] != side:
        return maps
    while maps.shape[2] % 2 == 0 and shift < 8:
        upper, lower = maps[:, :, 0::2], maps[:, :, 1::2]  # a row and, ``shift`` rows below, the next
        maps = torch.empty(upper.shape, dtype=maps.dtype, device=maps.device)
        torch.add(upper[..., shift:], lower[..., : side - shift], out=maps[..., shift:])
        torch.add(upper[..., :shift], lower[..., side - shift :], out=maps[..., :shift])
        shift *= 2
    return maps


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept between calls: a gradient may want it after an analysis made it
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
    """The ring of each bin of a real transform, and how many bins of the full one it stands for."""
    fy = torch.fft.fftfreq(h, dtype=torch.float64)
    fx = torch.fft.rfftfreq(w, dtype=torch.float64)
    radius = (fy[:, None] ** 2 + fx**2).sqrt()  # cycles a pixel; 0.5 is pi
    columns = torch.arange(len(fx))
    twice = (columns > 0) & (2 * columns != w)  # its conjugate is left out of the real transform
    weight = torch.where(twice, 2.0, 1.0).expand(h, -1)
    return (radius * min(h, w)).round().long().flatten().to(device), weight.flatten().to(device)
