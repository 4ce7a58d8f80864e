"""The settings of `noise`; torch is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backlight.errors import UserError
from backlight.settings import Settings, setting

#: The centres of the bands of figure 2b, in units of π.
FREQUENCIES = tuple(k / 10 for k in range(1, 10))
#: Root mean square of the noise, for pixels from 0 to 1.
SEVERITIES = (0.025, 0.05, 0.1)
#: Root mean square of the white noise before the mask.  A band 0.1π wide holds a tenth of its energy on average, so that the
#: mean energy over the bands is that of the severities above.
PAPER_SEVERITIES = (0.08, 0.16, 0.32)


@dataclass(frozen=True)
class NoiseSettings(Settings):
    """The noise."""

    frequencies: tuple[float, ...] = setting(FREQUENCIES, "Centres of the bands, in units of π.", least=0, most=1)
    width: float = setting(0.1, "Width of a band, in units of π.", above=0)
    severities: tuple[float, ...] | None = setting(
        None,
        "Root mean square of the noise, for pixels from 0 to 1; default: 0.025, 0.05, 0.1, with --paper 0.08, 0.16, 0.32.",
        above=0,
    )
    paper: bool = setting(False, "The same amplitude at every frequency, not the same energy in every band.")
    clip: bool = setting(True, "Keep noisy pixels in [0, 1].")
    basis: int = setting(0, "Waves along each side of the Fourier heat map, an odd number; 0: no heat map.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.frequencies:
            raise UserError("frequencies is empty; give the centre of at least one band, in units of π")
        for centre in self.frequencies:
            low, high = centre - self.width / 2, centre + self.width / 2
            if low < -1e-9 or high > 1 + 1e-9:
                raise UserError(
                    f"the band of width {self.width:g}π around {centre:g}π reaches outside 0 to 1π, where all frequencies of "
                    "an image lie; move it or make it narrower"
                )
        if self.basis and (self.basis < 3 or self.basis % 2 == 0):
            raise UserError(f"basis is {self.basis}; it must be odd, at least 3, or 0 for no heat map")

    @property
    def severities_or_default(self) -> tuple[float, ...]:
        """The severities, or their default."""
        return self.severities or (PAPER_SEVERITIES if self.paper else SEVERITIES)

    @property
    def bands(self) -> list[tuple[float, float]]:
        """Where each band begins and ends, in units of π."""
        ends = ((f - self.width / 2, f + self.width / 2) for f in self.frequencies)
        return [(max(0.0, round(low, 12)), min(1.0, round(high, 12))) for low, high in ends]  # 0.15, not 0.15000000000000002


def middle_severity(severities: Sequence[float]) -> float:
    """The severity of the heat map, and of the solid lines on the page; of an even number the larger of the middle two."""
    return sorted(severities)[len(severities) // 2]
