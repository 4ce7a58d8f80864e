"""Figures 1b, 4 and 6: the densities of the largest Hessian eigenvalues of several models, negative and positive apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from backlight.figures.drawing import colours
from backlight.results.figures import LEGEND, paper_figure, paper_style
from backlight.study.folder import Model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(models: Sequence[Model]) -> Figure:
    """Two panels, a curve a model."""
    with paper_style():
        figure, (negative, positive) = paper_figure(2)
        densities(negative, positive, models)
        negative.set_ylabel("Density")
    return figure


def densities(negative: Axes, positive: Axes, models: Sequence[Model]) -> None:
    """The density of each sign.  Positive eigenvalues differ by orders of magnitude, so their axis is logarithmic.

    A density over the logarithm of an eigenvalue is the density times the eigenvalue.
    """
    colour = colours([model.name for model in models])
    for model in models:
        nep = model.results["hessian"].provenance["summary"]["all"]["nep"][0]
        _curve(negative, model, "negative", colour[model.name], f"{model.name} ({100 * float(nep):.0f}%)")
        _curve(positive, model, "positive", colour[model.name], model.name)
    drawn = [model for model in models if "negative" in model.results["hessian"].arrays]
    if not drawn:
        negative.text(0.5, 0.5, "none is negative", transform=negative.transAxes, ha="center", color="0.4")
        negative.set(xticks=[0], yticks=[])
    positive.set_xscale("log")
    positive.xaxis.set_major_formatter("{x:g}")  # the style reads no mathematics, so 10^2 would be spelled out
    negative.set(xlabel="Negative eigenvalues", ylim=(0, None))
    two_columns: dict[str, Any] = {**LEGEND, "ncols": 2}
    negative.legend(**two_columns, title="NEP")
    positive.set(xlabel="Positive eigenvalues", ylim=(0, None))
    positive.legend(**two_columns)
    positive.set_ylabel("Density of the logarithm")


def _curve(ax: Axes, model: Model, side: str, colour: str, label: str) -> None:
    """The density with its interval; only the legend if no eigenvalue has this sign."""
    arrays = model.results["hessian"].arrays
    if side not in arrays:
        ax.plot([], [], color=colour, label=label)
        return
    at, density, low, high = arrays[side]
    scale, shown = (at, at > at.max() / 300) if side == "positive" else (np.ones_like(at), np.ones(len(at), bool))
    ax.fill_between(at[shown], (low * scale)[shown], (high * scale)[shown], color=colour, alpha=0.2, lw=0)
    ax.plot(at[shown], (density * scale)[shown], color=colour, label=label)
