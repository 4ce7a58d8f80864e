"""Bands of spatial frequency, and random fields confined to one (Park & Kim 2022, figure 2b; Yin et al. 2019).

The frequency of a bin is the larger of its frequencies along the two sides, in units of pi per pixel: bands are square rings
about zero, as in the authors' code, and rings that touch share the whole plane out among them.  A ring holds the conjugate
of each of its bins, so a field confined to it is real.

Random numbers are SplitMix64's (Steele, Lea & Flood 2014), a stream an image: the same for an image whatever batch it comes in
and on every device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

#: A bin this near to the edge of a band counts as on it: 0.3 - 0.05 is not 0.25 in binary.
EDGE = 1e-9


def frequencies(size: tuple[int, int]) -> Tensor:
    """The frequency of each bin of a real transform, in units of pi.  Shapes: (h, w) -> (h, w // 2 + 1).

    >>> frequencies((2, 4))
    tensor([[0.0000, 0.5000, 1.0000],
            [1.0000, 1.0000, 1.0000]], dtype=torch.float64)
    """
    y = 2 * torch.fft.fftfreq(size[0], dtype=torch.float64).abs()
    x = 2 * torch.fft.rfftfreq(size[1], dtype=torch.float64)
    return torch.maximum(y[:, None], x)


def band(size: tuple[int, int], low: float, high: float, device: torch.device | None = None) -> Tensor:
    """Which bins of a real transform lie in [low, high), in units of pi; one that reaches pi holds it.

    Shapes: (h, w) -> (h, w // 2 + 1), of bool.
    """
    frequency = frequencies(size)
    inside = frequency >= low - EDGE
    if high < 1 - EDGE:
        inside &= frequency < high - EDGE
    return inside.to(device)


def bins(mask: Tensor, width: int) -> int:
    """How many bins of the full transform a mask of the real one stands for.  Shapes: (h, w // 2 + 1)."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    twice = (columns > 0) & (2 * columns != width)  # its conjugate is left out of the real transform
    return int((mask * torch.where(twice, 2, 1)).sum())


def confined(fields: Tensor, mask: Tensor) -> Tensor:
    """The part of real fields that lies in a band: the orthogonal projection.  Shapes: (..., h, w), (h, w // 2 + 1)."""
    return of_spectrum(torch.fft.rfft2(fields), mask, fields.shape[-1])


def of_spectrum(spectrum: Tensor, mask: Tensor, width: int) -> Tensor:
    """The real field of the masked bins.  Shapes: (..., h, w // 2 + 1) twice -> (..., h, w).

    Columns beyond the band hold nothing, so that the first half of the transform leaves them out.
    """
    last = int(mask.any(0).nonzero().max()) + 1 if mask.any() else 1
    columns = torch.fft.ifft(spectrum[..., :last] * mask[:, :last], dim=-2)
    return torch.fft.irfft(columns, n=width, dim=-1)


def root_mean_square(fields: Tensor) -> Tensor:
    """Of each image, over its channels and places.  Shapes: (B, C, h, w) -> (B,)."""
    return torch.linalg.vector_norm(fields, dim=(1, 2, 3)) / math.sqrt(fields[0].numel())


def wave(size: tuple[int, int], cycles: tuple[int, int], dtype: torch.dtype | None = None) -> Tensor:
    """The real field of root mean square 1 of one bin and its conjugate.  Shapes: (h, w), (rows, columns) -> (h, w)."""
    y, x = (torch.arange(n, dtype=torch.float64) for n in size)
    field = (2 * math.pi * (cycles[0] * y[:, None] / size[0] + cycles[1] * x / size[1])).cos()
    return (field / field.square().mean().sqrt()).to(dtype)


# --- random numbers that depend on an image and nothing else

_MASK, _STEP, _FIRST, _SECOND = 2**64 - 1, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def signs(positions: Tensor, shape: Iterable[int], *, seed: int, stream: int = 0) -> Tensor:
    """White noise of plus and minus one.  Shapes: (B,) -> (B, *shape), float32, on the device of the positions.

    Each number of the generator gives 64 signs, from its lowest bit to its highest.
    ``stream`` tells apart the uses that one analysis makes of its seed.
    """
    shape = tuple(shape)
    octets = _bits(positions, (math.ceil(math.prod(shape) / 64),), seed, stream).view(torch.uint8)  # the lowest first
    bits = (octets[..., None] >> torch.arange(8, dtype=torch.uint8, device=positions.device)) & 1
    return bits.flatten(1)[:, : math.prod(shape)].float().mul_(2).sub_(1).view(len(positions), *shape)


def uniform(positions: Tensor, shape: Iterable[int], *, seed: int, stream: int = 0) -> Tensor:
    """White noise, uniform in [-1, 1).  Shapes: (B,) -> (B, *shape), float32, on the device of the positions."""
    return (_bits(positions, tuple(shape), seed, stream) >> 40).float() / 2**23


def _bits(positions: Tensor, shape: tuple[int, ...], seed: int, stream: int) -> Tensor:
    """64 random bits each, as int64: the stream of SplitMix64 that starts at a hash of seed, stream and position."""
    start = _mixed(positions.long() * _signed(_STEP) + _signed(_mix(_mix(seed & _MASK) + stream)))
    steps = torch.arange(1, math.prod(shape) + 1, device=positions.device) * _signed(_STEP)
    return _mixed(start[:, None] + steps).view(len(positions), *shape)


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's output function; int64 wraps around as its unsigned numbers do."""
    z = (z ^ _shifted(z, 30)) * _signed(_FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(_SECOND)
    return z ^ _shifted(z, 31)


def _mix(z: int) -> int:
    """The same of a Python number."""
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """The logical shift; that of int64 drags the sign along."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(z: int) -> int:
    """The int64 of the same 64 bits."""
    z &= _MASK
    return z - 2**64 if z >= 2**63 else z
