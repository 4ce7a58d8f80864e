"""The paper's figures from stored results: what is drawn where, which models, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, TINY_ALTERNATING

from backlight.analyses.catalog import CATALOG
from backlight.analyses.variance.measure import Variance
from backlight.errors import UserError
from backlight.figures.catalog import FIGURES
from backlight.figures.drawing import colours, draw, models_in, save, short_names
from backlight.results.charts import CHARTS
from backlight.study.folder import Model
from backlight.study.run import run_study
from backlight.study.settings import StudySettings

ANALYSES = {
    "fourier": {}, "variance": {}, "similarity": {}, "lesion": {}, "calibration": {},
    "noise": {"frequencies": (0.25, 0.75), "severities": (0.1,), "width": 0.5},
    "corruption": {"corruptions": ("brightness",), "severities": (1, 3)},
    "hessian": {"batches": 3, "top": 2}, "landscape": {"grid": 3, "batches": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two tiny untrained models, with everything that the figures show."""
    out = tmp_path_factory.mktemp("figures") / "study"
    outcomes = list(run_study([TINY, TINY_ALTERNATING], ANALYSES, StudySettings(limit=24, resamples=50, pretrained=False), out))
    assert not [outcome.error for outcome in outcomes if outcome.error]
    return out


@pytest.fixture(scope="module")
def models(folder: Path) -> list[Model]:
    return models_in([folder])


def lines(ax, colour: str) -> list[np.ndarray]:
    """The coordinates of the lines of this colour, without those that only stand in the legend."""
    drawn = [line.get_xydata() for line in ax.get_lines() if line.get_color() == colour]
    return [xy for xy in drawn if len(xy)]


@pytest.mark.parametrize("number", FIGURES)
def test_every_figure_is_drawn_and_names_every_model(number: str, models: list[Model], tmp_path: Path) -> None:
    figure = draw(number, models)
    path = save(figure, tmp_path / f"{number}.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    for model in models:
        assert any(short_names([m.name for m in models])[model.name] in text for text in texts), (number, texts)


def test_figure_2b_is_the_share_of_right_answers_less_that_on_clean_images(models: list[Model]) -> None:
    """Of answers made up here: 24 images, clean and in two bands, each the mean over severities."""
    correct = np.random.default_rng(0).integers(0, 3, (3, 24)) / 2
    noises = {model.name: replace(model.results["noise"], arrays={"per_image/correct": correct}) for model in models}
    (ax,) = draw("2b", [replace(model, results={"noise": noises[model.name]}) for model in models]).axes
    expected = [100 * (sum(band) - sum(correct[0])) / 24 for band in correct[1:]]
    for colour in set(colours([m.name for m in models]).values()):
        (drawn,) = (xy for xy in lines(ax, colour) if len(xy) == 2)
        np.testing.assert_allclose(drawn, np.column_stack([[0.25, 0.75], expected]))


def test_figure_5_has_the_error_and_the_loss_at_the_trained_weights(models: list[Model]) -> None:
    (ax,) = draw("5", models).axes
    for model in models:
        correct = model.results["calibration"].arrays["per_image/correct"]
        nll = model.results["landscape"].arrays["per_image/nll"]
        point = lines(ax, colours([m.name for m in models])[model.name])[0]
        np.testing.assert_allclose(point, [[nll.mean(), 100 * (1 - correct.mean())]], rtol=1e-5)


def test_the_area_under_a_spectrum_is_the_share_of_eigenvalues_of_its_sign(models: list[Model]) -> None:
    """Over the logarithm the density times the eigenvalue integrates to the same share as the density over the eigenvalue."""
    negative, positive = draw("4", models).axes
    for model in models:
        colour = colours([m.name for m in models])[model.name]
        values = np.array([row["eigenvalue"] for row in model.results["hessian"].table])
        if (values < 0).any():
            area = np.trapezoid(*lines(negative, colour)[0].T[::-1])
            assert area == pytest.approx((values < 0).mean(), abs=0.03)
        at, density = lines(positive, colour)[0].T
        assert np.trapezoid(density, np.log(at)) == pytest.approx((values > 0).mean(), abs=0.08)


def test_figure_12a_orders_models_by_their_attentions(models: list[Model]) -> None:
    (ax,) = draw("12a", models[::-1]).axes
    assert [label.get_text().split("\n") for label in ax.get_xticklabels()] == [["0", "cc", "c"], ["1", "c", "ca"]]


def test_panels_of_one_scale_have_the_same_limits(models: list[Model]) -> None:
    limits = {ax.get_ylim() for ax in draw("10b", models).axes}
    assert len(limits) == 1


def test_patterns_choose_models_and_their_order(folder: Path) -> None:
    chosen = models_in([folder], ["*c ca*", "word:*"])
    assert [model.name for model in chosen] == [TINY_ALTERNATING, TINY]
    with pytest.raises(UserError, match="no model here is called so"):
        models_in([folder], ["resnet*"])


def test_two_results_of_one_model_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="give one of the two folders"):
        models_in([folder, folder])


def test_several_folders_are_one_study(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "attention"
    assert [
        outcome.error
        for outcome in run_study([TINY_ALTERNATING], {"attention": {}}, StudySettings(limit=8, pretrained=False), other)
    ] == [""]
    (one,) = models_in([folder, other], ["*c ca*"])
    assert {"attention", "hessian"} <= one.results.keys()


def test_names_lose_the_folders_that_all_share() -> None:
    assert short_names(["a/b/vit/seed-0", "a/b/vit/seed-1"]) == {"a/b/vit/seed-0": "seed-0", "a/b/vit/seed-1": "seed-1"}
    assert short_names(["resnet50", "vit"]) == {"resnet50": "resnet50", "vit": "vit"}
    assert short_names(["vit?heads=1", "vit?heads=2", "cnn?dim=8"])["cnn?dim=8"] == "cnn?dim=8"
    assert list(short_names(["vit?heads=1", "cnn?dim=8"]).values()) == ["vit", "cnn"]
    assert short_names(["x", "x/y"]) == {"x": "x", "x/y": "x/y"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["3", "DIR"], "no figure is numbered '3'"),
        (["2a", "DIR", "--out", "x.jpeg"], "x.jpeg is no .png, .pdf, .svg"),
        (["1b", "DIR/nothing"], "there is no folder"),
    ],
)
def test_refusals_are_a_sentence(words: list[str], sentence: str, folder: Path, run) -> None:
    code, _, err = run("figure", *(word.replace("DIR", str(folder)) for word in words))
    assert code == 2
    assert sentence in err


def test_the_command_writes_into_the_first_folder(folder: Path, run) -> None:
    code, out, _ = run("figure", "9", folder, "--models", "*c ca*")
    assert (code, out) == (0, f"{folder / 'figure-9.png'}\n")
    assert (folder / "figure-9.png").exists()


def test_a_figure_says_what_is_missing(models: list[Model]) -> None:
    without = [Model(m.name, m.units, m.parameters, {"fourier": m.results["fourier"]}) for m in models]
    with pytest.raises(UserError, match="figure 12b needs the result of calibration and the result of corruption"):
        draw("12b", without)


def test_every_panel_of_every_analysis_has_words() -> None:
    """Terms and marks: no chart is without them."""
    panels = [f"{name}/{panel}" for name, about in CATALOG.items() for panel in about.result_type().panels]
    assert all(CHARTS[panel].terms for panel in panels)
    assert all(name in CHARTS for figure in FIGURES.values() for name in figure.charts)


def test_a_caption_says_terms_interval_and_over_how_many_images() -> None:
    row = {"unit": 0, "kind": "conv", "stage": 0, "variance": 1.0, "variance_low": 0.5, "variance_high": 1.5}
    result = Variance("m", [row], [], {"images": 60, "data": {"split": "test"}})
    figure = result.figure()
    figure.canvas.draw()
    assert figure._supxlabel.get_text().replace("\n", " ") == result.caption()  # type: ignore[attr-defined]
    assert result.caption().startswith("Variance over positions of the stream")
    assert result.caption().endswith("Intervals: 95% bootstrap, over 60 test images.")
    box = figure.get_tightbbox()
    assert 0 <= box.x0 <= box.x1 <= figure.get_figwidth()
    assert 0 <= box.y0 <= box.y1 <= figure.get_figheight()
    normalised = Variance("m", [row], [], {"images": 60, "settings": {"normalise": True}})
    assert "over its mean square" in normalised.caption()


def test_a_figure_of_models_says_over_what_each_is(models: list[Model]) -> None:
    assert draw("1b", models)._supxlabel.get_text().endswith("over 3 mini-batches of 48 training images in all.")  # type: ignore[attr-defined]
