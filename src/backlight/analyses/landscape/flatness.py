"""How flat a loss landscape is: radius of a rise, rays that never fall, curvature; and the claims about it.

The claims are those of figures 1a and 4 of Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022).  Intervals are over
images; the same resamples serve all points, so that differences between points are paired.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backlight.analyses.landscape.settings import LandscapeSettings
from backlight.numerics import surface_shape
from backlight.numerics.bootstrap import Interval, basic_interval, counts
from backlight.results.claim import Claim

Array = NDArray[np.float64]

#: Curvature at the centre is a second difference over this share of the radius: large enough for the precision of float32,
#: small enough that higher derivatives do not contribute.
STEP = 0.01
#: The rise in nats that defines the radius of flatness.
RISE = 1.0


class ResampledMean(NamedTuple):
    """The mean over images at each point, and the deviations of its resamples, which are paired over points."""

    value: Array  # (points,)
    deviations: Array  # (resamples, points); NaN if the value is not finite, or if there is one image

    def interval(self, offset: Array | float = 0.0) -> Interval:
        """The mean plus ``offset`` with its percentile interval.  Shapes: -> (points,) each."""
        value = self.value + offset
        low, high = value + np.quantile(self.deviations, [0.025, 0.975], axis=0)
        return Interval(value, low, high)


def resampled_mean(samples: Array, resamples: int, seed: int) -> ResampledMean:
    """The mean over images.  Shapes: samples (points, n)."""
    points, images = samples.shape
    with np.errstate(invalid="ignore"):
        value = samples.mean(1)
        centred = (samples - value[:, None]).T
        if images < 2:
            return ResampledMean(value, np.full((1, points), np.nan))
        return ResampledMean(value, np.concatenate([w @ centred for w in counts(images, resamples, seed)]) / images)


def rays(settings: LandscapeSettings) -> list[surface_shape.Ray]:
    """The straight lines of grid points from the centre outwards."""
    return surface_shape.rays(settings.grid if settings.dimensions == 2 else 1, settings.grid)


def flatness(
    nll: ResampledMean, decay: Array, curvature: Interval, decay_curvature: Array, settings: LandscapeSettings
) -> dict[str, Any]:
    """Measures of flatness, each as [value, low, high], in coordinates of the plane; infinite: beyond the plane.

    The interval of a radius is over images and over where between two grid points the surface rises.
    Shapes: decay (points,), curvature and decay_curvature (directions,).
    """
    along = rays(settings)
    spacing = settings.radius / (settings.grid // 2)

    def shape(value: Array) -> dict[str, list[float]]:
        resampled = value + nll.deviations
        radii, resampled_radii = (surface_shape.rise_radii(surface, along, RISE) for surface in (value, resampled))

        def radius(over_rays: Callable[[Array], Array]) -> list[float]:
            ends = _quantile(over_rays(resampled_radii.low), 0.025), _quantile(over_rays(resampled_radii.high), 0.975)
            return [spacing * float(x) for x in (over_rays(radii.value), *ends)]

        share, resampled_shares = (surface_shape.never_falling(surface, along) for surface in (value, resampled))
        return {
            "radius_of_rise": radius(lambda of_rays: np.median(of_rays, -1)),
            "nearest_rise": radius(lambda of_rays: of_rays.min(-1)),
            "share_of_rays_never_falling": [float(share), *(_quantile(resampled_shares, q) for q in (0.025, 0.975))],
        }

    return {
        "nll": shape(nll.value),
        "loss": shape(nll.value + decay),
        "curvature": [[float(end[d]) for end in curvature] for d in range(len(curvature.value))],
        "curvature_of_decay": decay_curvature.tolist(),
        "curvature_step": STEP * settings.radius,
        "rays": len(along),
        "rise": RISE,
    }


def _quantile(resampled: Array, share: float) -> float:
    """A quantile of resamples, of which some are infinite."""
    return float(np.quantile(resampled, share, method="inverted_cdf"))


def claims(nll: ResampledMean, curvature: Interval, settings: LandscapeSettings, images: int) -> list[Claim]:
    """What one plane of one model shows; nothing if the loss at the centre is not finite."""
    if not np.isfinite(nll.value[len(nll.value) // 2]):
        return []
    along = rays(settings)

    def smallest_step(surface: Array) -> Array:
        steps = surface_shape.outward_steps(surface, along)
        return np.where(np.isnan(steps), np.inf, steps).min(-1)  # NaN: not finite on both sides, so it decides nothing

    value = smallest_step(nll.value)
    any_finite = nll.deviations[:, np.isfinite(nll.deviations).all(0)].size > 0
    resampled = smallest_step(nll.value + nll.deviations)
    ends = basic_interval(value, resampled) if any_finite and np.isfinite(resampled).all() else (np.nan, np.nan)
    flattest = int(np.argmin(curvature.value))
    return [
        Claim.of_sign(
            "positive",
            (value, *ends),
            id="landscape/rises",
            count=images,
            statement="In this plane the loss only rises on the way out from the trained weights.",
            source="Figure 1a",
            quantity=f"smallest change of NLL over a step of the grid outwards, on {len(along)} rays (nats)",
        ),
        Claim.of_sign(
            "positive",
            (end[flattest] for end in curvature),
            id="landscape/curves-upwards",
            count=images,
            statement="At the trained weights the loss curves upwards along every direction of the plane.",
            source="Figures 1a and 4",
            quantity="smallest curvature of NLL along a direction (nats per squared coordinate)",
        ),
    ]
