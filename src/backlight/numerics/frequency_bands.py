"""Bands of spatial frequency, and random fields within one band.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), figure 2b; Yin et al., "A Fourier Perspective on Model Robustness
in Computer Vision" (NeurIPS 2019).  The frequency of a bin is the larger of its frequencies along the two sides, in units of
pi per pixel.  So bands are square rings around zero, as in the authors' code, and adjacent bands divide the plane among them.
A band contains the conjugate of each of its bins, so a field within it is real.

Random numbers: SplitMix64 (Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), one stream
per image.  An image has the same numbers in any batch and on any device, which torch's generators do not offer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

#: A bin this close to the edge of a band is on the edge: 0.3 - 0.05 is not 0.25 in binary.
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
    """Whether each bin of a real transform is in [low, high), in units of pi; with high = 1, pi is included.

    Shapes: (h, w) -> (h, w // 2 + 1), bool.
    """
    frequency = frequencies(size)
    inside = frequency >= low - EDGE
    if high < 1 - EDGE:
        inside &= frequency < high - EDGE
    return inside.to(device)


def bins(mask: Tensor, width: int) -> int:
    """The number of bins of the full transform that a mask of the real one represents.  Shapes: (h, w // 2 + 1)."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    twice = (columns > 0) & (2 * columns != width)  # the real transform omits its conjugate
    return int((mask * torch.where(twice, 2, 1)).sum())


def confined(fields: Tensor, mask: Tensor) -> Tensor:
    """The orthogonal projection of real fields onto a band.

    Shapes: (..., h, w), (h, w // 2 + 1) -> (..., h, w).
    """
    return of_spectrum(torch.fft.rfft2(fields), mask, fields.shape[-1])


def of_spectrum(spectrum: Tensor, mask: Tensor, width: int) -> Tensor:
    """The real field of the bins in a mask.  Shapes: (..., h, w // 2 + 1), (h, w // 2 + 1) -> (..., h, w)."""
    last = int(mask.any(0).nonzero().max()) + 1 if mask.any() else 1  # columns beyond the band are zero: skip them
    columns = torch.fft.ifft(spectrum[..., :last] * mask[:, :last], dim=-2)
    return torch.fft.irfft(columns, n=width, dim=-1)


def root_mean_square(fields: Tensor) -> Tensor:
    """The root mean square of each image, over channels and pixels.  Shapes: (B, C, h, w) -> (B,)."""
    return torch.linalg.vector_norm(fields, dim=(1, 2, 3)) / math.sqrt(fields[0].numel())


def wave(size: tuple[int, int], cycles: tuple[int, int], dtype: torch.dtype | None = None) -> Tensor:
    """The cosine of one bin, of root mean square 1.  Shapes: (h, w), (cycles down, cycles across) -> (h, w)."""
    y, x = (torch.arange(n, dtype=torch.float64) for n in size)
    field = (2 * math.pi * (cycles[0] * y[:, None] / size[0] + cycles[1] * x / size[1])).cos()
    return (field / field.square().mean().sqrt()).to(dtype)


# --- random numbers that depend on the image alone

_MASK, _STEP, _FIRST, _SECOND = 2**64 - 1, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def signs(image_numbers: Tensor, shape: Iterable[int], *, seed: int, stream: int = 0) -> Tensor:
    """White noise of -1 and 1 for the images of these numbers.  Shapes: (B,) -> (B, *shape), float32, on the same device.

    Each number of the generator gives 64 signs, from its lowest bit to its highest.
    ``stream``: another stream gives independent noise for the same seed.
    """
    shape = tuple(shape)
    octets = _bits(image_numbers, (math.ceil(math.prod(shape) / 64),), seed, stream).view(torch.uint8)  # lowest first
    bits = (octets[..., None] >> torch.arange(8, dtype=torch.uint8, device=image_numbers.device)) & 1
    return bits.flatten(1)[:, : math.prod(shape)].float().mul_(2).sub_(1).view(len(image_numbers), *shape)


def uniform(image_numbers: Tensor, shape: Iterable[int], *, seed: int, stream: int = 0) -> Tensor:
    """White noise, uniform in [-1, 1), for the images of these numbers.  Shapes: (B,) -> (B, *shape), float32, same device."""
    return (_bits(image_numbers, tuple(shape), seed, stream) >> 40).float() / 2**23


def _bits(image_numbers: Tensor, shape: tuple[int, ...], seed: int, stream: int) -> Tensor:
    """64 random bits per entry, as int64: SplitMix64 from a hash of seed, stream and image number."""
    start = _mixed(image_numbers.long() * _signed(_STEP) + _signed(_mix(_mix(seed & _MASK) + stream)))
    steps = torch.arange(1, math.prod(shape) + 1, device=image_numbers.device) * _signed(_STEP)
    return _mixed(start[:, None] + steps).view(len(image_numbers), *shape)


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's output function; int64 overflows as its unsigned numbers do."""
    z = (z ^ _shifted(z, 30)) * _signed(_FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(_SECOND)
    return z ^ _shifted(z, 31)


def _mix(z: int) -> int:
    """SplitMix64's output function of a Python number."""
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """The logical right shift; that of int64 copies the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(z: int) -> int:
    """The int64 with the same 64 bits."""
    z &= _MASK
    return z - 2**64 if z >= 2**63 else z
