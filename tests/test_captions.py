"""Captions of figures for print: every panel has one, and it lies below the axes and within the figure."""

from __future__ import annotations

import pytest
import torch
from known_models import averaging, batches, blur, noise, sharpen, tower

from backlight import calibration, fourier, lesion, similarity, variance
from backlight.analyses.catalog import CATALOG
from backlight.buildup.result import Buildup
from backlight.figures.catalog import FIGURES
from backlight.results.captions import wrapped, write_below
from backlight.results.figures import paper_figure, paper_style
from backlight.results.result import Result

LONG = "Δ log amplitude: log amplitude at a frequency minus that at frequency zero, of every unit. " * 4


def classes() -> list[type[Result]]:
    """The class of each analysis's results, and that of the search."""
    return [*(entry.result_type() for entry in CATALOG.values()), Buildup]


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.analysis)
def test_every_panel_has_a_caption(kind: type[Result]) -> None:
    assert set(kind.panels) <= kind.captions.keys()
    assert set(kind.marks) <= set(kind.panels)
    for text in kind.captions.values():
        assert text.endswith(".")
        assert 1 <= text.count(". ") + 1 <= 3


def test_every_figure_of_the_paper_is_explained() -> None:
    for figure in FIGURES.values():
        assert figure.panels or figure.terms
        for name, _, panel in (key.partition("/") for key in figure.panels):
            assert name in figure.analyses
            assert panel in CATALOG[name].result_type().panels


def caption_of(figure):
    (caption,) = (text for text in figure.texts if text.get_gid() == "caption")
    return caption


def refuse_overlap(figure) -> None:
    """The caption, drawn, is within the figure and below all axes with their labels."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    caption = caption_of(figure).get_window_extent(renderer)
    assert caption.x0 >= 0
    assert caption.x1 <= figure.bbox.x1
    assert caption.y0 >= 0
    assert caption.y1 < min(ax.get_tightbbox(renderer).y0 for ax in figure.axes)


@pytest.mark.parametrize("analysis", [fourier, variance, lesion, calibration, similarity])
def test_it_is_below_the_axes_and_within_the_figure(analysis) -> None:
    data = batches(noise(12, 3, 8, 8), 6, torch.arange(12) % 10)
    result = analysis(tower(blur(), averaging(1.0), sharpen()), data, resamples=20)
    figure = result.figure()
    refuse_overlap(figure)
    text = " ".join(caption_of(figure).get_text().split())
    assert all(result.caption(panel) in text for panel in result.panels)
    assert "Over 12 images." in text
    assert ("95% intervals over images" in text) == (analysis is not similarity)


@pytest.mark.parametrize("panels", [1, 3])
def test_a_long_text_wraps_and_the_axes_keep_their_height(panels: int) -> None:
    heights = []
    for paragraphs in (["Short."], [LONG, LONG]):
        with paper_style():
            figure, (ax, *_) = paper_figure(panels)
            write_below(figure, paragraphs)
        refuse_overlap(figure)
        heights.append(ax.get_window_extent().height)
    assert caption_of(figure).get_text().count("\n") > 3
    assert " ".join(caption_of(figure).get_text().split()) == " ".join(f"{LONG}{LONG}".split())
    assert heights[0] == pytest.approx(heights[1], rel=0.02)


def test_special_characters_are_letters_and_long_words_break() -> None:
    """A split comes from a user: mathematics, markup and a word longer than a line."""
    text = f"Over 3 $x_1^$ \\frac{{ <b>&% {'w' * 300} images."
    with paper_style():
        figure, _ = paper_figure(1)
        write_below(figure, [text])
    refuse_overlap(figure)
    assert "".join(caption_of(figure).get_text().split()) == "".join(text.split())
    assert wrapped("a b", lambda line: len(line) < 2) == ["a", "b"]
