"""The section of ``fourier``: figure 8, figure 2a, and the transfer functions."""

from __future__ import annotations

from backlight.report.sections.section import Chart, Results, Section, from_to

SPECTRA = "One small chart per model, on one vertical axis; one curve per unit, darker (on a dark page brighter) with depth. "


def figures(results: Results) -> list[list[Chart]]:
    """Δ log amplitude over depth; then over frequency, with the transfer functions in a second tab."""
    label = "Δ log amplitude at the highest frequency (nepers)"
    depth = Chart("depth", "fourier", label, f"{label} over normalised depth. {from_to(results, 'delta')}", y="delta")
    label = "Δ log amplitude after each unit (nepers)"
    spectrum = Chart("curves", "fourier", label, f"{SPECTRA}{label}.", y="delta", tab="Δ log amplitude")
    label = "Log amplitude after each unit minus before it (nepers)"
    transfer = Chart("curves", "fourier", label, f"{SPECTRA}{label}.", y="transfer", tab="Transfer function")
    return [[depth], [spectrum, transfer]]


SECTION = Section(
    title="Fourier analysis",
    reading=(
        "Δ log amplitude is the log amplitude of the feature map's highest frequency minus that of its mean: lower "
        "means smoother maps, and a step down at a unit means that the unit smooths. "
        "Where a line is faint the resolution changes, and the highest frequency with it, so compare steps within a "
        "stage only; the transfer function compares equal cycles per image, so it is comparable across stages too."
    ),
    needs=("unit", "kind", "stage", "module", "frequency", "delta", "delta_low", "delta_high", "transfer"),
    figures=figures,
)
