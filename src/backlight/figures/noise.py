"""Figure 2b: the change of accuracy by the frequency of noise, a line a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from backlight.claims.comparisons import per_image
from backlight.figures.drawing import colours
from backlight.numerics.proportions import paired_difference_interval
from backlight.results.figures import LEGEND, label, paper_figure, paper_style
from backlight.study.folder import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(models: Sequence[Model]) -> Figure:
    """The mean over severities, with its interval over images."""
    colour = colours([model.name for model in models])
    with paper_style():
        figure, (ax,) = paper_figure(1)
        for model in models:
            noise = model.results["noise"]
            clean, *bands = per_image(noise, "correct")
            frequencies = noise.provenance["settings"]["frequencies"]
            value, low, high = 100 * np.stack([paired_difference_interval(band, clean) for band in bands], axis=1)
            ax.fill_between(frequencies, low, high, color=colour[model.name], alpha=0.2, lw=0)
            ax.plot(frequencies, value, "o-", color=colour[model.name], label=model.name)
        ax.axhline(0, color="0.2", lw=0.6)
        ax.set_xticks([0, 0.5, 1], ["0", "0.5π", "1.0π"])
        ax.set_xlim(0, 1)
        label(ax, models[0].results["noise"].chart("accuracy"))
        ax.legend(**LEGEND)
    return figure
