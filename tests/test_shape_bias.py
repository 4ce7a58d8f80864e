"""The drawn shapes: the splits, whether either cue identifies the class, and the bias of models whose answers are known."""

from collections import Counter

import numpy as np
import pytest
import torch
from known_models import unchanged
from scipy.stats import beta, binomtest
from torch import nn

from backlight.analyses.shape_bias import shape_bias
from backlight.data.cue_conflict import OUTLINES, SPLITS, TEXTURES, outlines, pixel_centres, shapes, textures
from backlight.data.sampling import stratified
from backlight.errors import UserError


def pixels(split, rows, **settings):
    """Shapes: -> (N, H, W) in [0, 1]."""
    images = shapes(split, size=32, channels=1, **settings)
    return np.stack([np.asarray(images[int(row)][0], float) for row in rows]) / 255


# --- the splits


@pytest.mark.parametrize("split", ["train", "test"])
def test_outline_and_fill_agree_in_train_and_test(split):
    rows = np.arange(SPLITS[split])
    np.testing.assert_array_equal(outlines(split, rows), textures(split, rows))
    assert set(Counter(outlines(split, rows).tolist()).values()) == {SPLITS[split] // 8}
    np.testing.assert_array_equal(shapes(split).labels, outlines(split, rows))


def test_in_conflict_every_pair_that_disagrees_is_equally_frequent():
    rows = np.arange(SPLITS["conflict"])
    pairs = Counter(zip(outlines("conflict", rows).tolist(), textures("conflict", rows).tolist(), strict=True))
    assert set(pairs) == {(i, j) for i in range(8) for j in range(8) if i != j}
    assert set(pairs.values()) == {SPLITS["conflict"] // 56}
    np.testing.assert_array_equal(shapes("conflict").labels, outlines("conflict", rows))


def test_splits_have_synonyms():
    assert shapes("val").split == "test"
    assert len(shapes("training")) == SPLITS["train"]
    assert shapes("conflict").classes == tuple(OUTLINES)
    assert len(OUTLINES) == len(TEXTURES) == 8


# --- the pictures


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("size", [16, 28, 101])
def test_pictures_have_the_requested_size_and_channels(size, channels, mode):
    image, label = shapes("test", size=size, channels=channels)[11]
    assert image.size == (size, size)
    assert image.mode == mode
    assert label == 3


def test_a_picture_depends_only_on_seed_split_and_row():
    one, two, other = shapes("train"), shapes("train"), shapes("train", seed=1)
    np.testing.assert_array_equal(one[17][0], two[17][0])
    assert (np.asarray(one[17][0]) != np.asarray(other[17][0])).any()
    assert (np.asarray(one[17][0]) != np.asarray(one[25][0])).any()  # of the same class
    assert (np.asarray(one[17][0]) != np.asarray(shapes("test")[17][0])).any()
    assert one.content() == two.content() != other.content()
    assert len(set(one.ids())) == len(one)
    state = np.random.get_state()[1].copy()
    one[3]
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_a_picture_is_the_same_at_any_size():
    small, large = (np.asarray(shapes("conflict", size=s, channels=1)[40][0], float) for s in (24, 96))
    assert np.abs(large.reshape(24, 4, 24, 4).mean((1, 3)) - small).mean() < 12  # of 255; lines are one pixel wide


def test_areas_of_outlines_have_a_closed_form():
    along = np.linspace(-1.2, 1.2, 1201)
    u, v = np.meshgrid(along, along)
    star = 5 * 0.45 * 1.05 * np.sin(np.pi / 5)
    area = {
        "disk": np.pi * 0.81, "ring": np.pi * (0.96**2 - 0.36**2), "square": 1.6**2, "triangle": 3 * 3**0.5 * 0.55**2,
        "cross": 4 * 0.95 * 0.34 * 2 - 0.68**2, "star": star, "hourglass": 4 * (0.2 * 0.9 + 0.75 * 0.81 / 2),
    }  # fmt: skip
    for name, expected in area.items():
        assert (OUTLINES[name](u, v) < 0).mean() * 2.4**2 == pytest.approx(expected, rel=0.01), name


def test_half_of_every_fill_is_light():
    """So a fill cannot be identified by its brightness."""
    random = np.random.default_rng(0).random
    x, y = pixel_centres(90)
    for name, texture in TEXTURES.items():
        assert np.mean([texture(x, y, 0.3, random) for _ in range(60)]) == pytest.approx(0.5, abs=0.03), name


def direction(images):
    """Mean and fourth moment of the gradient along each of four directions.  Shapes: (N, H, W) -> (N, 8)."""
    centre = images[:, 8:24, 8:24]
    dy, dx = np.gradient(centre, axis=(1, 2))
    up, down = (dy + dx) / 2**0.5, (dy - dx) / 2**0.5
    return np.stack([(abs(d) ** p).mean((1, 2)) for d in (dx, dy, up, down) for p in (1, 4)], 1)


def nearest_accuracy(train, labels, test, labels_of_test):
    distance = ((test[:, None] - train[None]) ** 2).sum(-1)
    return (labels[distance.argmin(1)] == labels_of_test).mean()


def test_either_cue_alone_identifies_the_class():
    """The silhouette identifies the outline, gradients in the middle identify the fill; in conflict neither identifies the
    other cue."""
    train, conflict = np.arange(480), np.arange(224)
    images, conflicting = pixels("train", train), pixels("conflict", conflict)

    def silhouette(pictures):
        """What differs from the background, centred and filled."""
        ground = pictures[:, :1, :1]
        ink = np.abs(pictures - ground) > 0.12
        rows = [np.roll(one, (16 - np.round(np.argwhere(one).mean(0)).astype(int)), (0, 1)) for one in ink]
        filled = np.stack([np.maximum.accumulate(r, 1) & np.maximum.accumulate(r[:, ::-1], 1)[:, ::-1] for r in rows])
        return filled.reshape(len(pictures), -1).astype(float)

    outline, texture = outlines("conflict", conflict), textures("conflict", conflict)
    by_outline = [nearest_accuracy(silhouette(images), train % 8, silhouette(conflicting), cue) for cue in (outline, texture)]
    gradients = direction(images)
    scale = gradients.std(0)
    by_fill = [
        nearest_accuracy(gradients / scale, train % 8, direction(conflicting) / scale, cue) for cue in (texture, outline)
    ]
    assert by_outline[0] > 0.6  # chance is 1 / 8
    assert by_fill[0] > 0.35
    assert max(by_outline[1], by_fill[1]) < 0.2


# --- the bias


class Conflict(list):
    """Batches of the conflict split with the record that `load_data` gives; an image holds its row number only."""

    classes = tuple(OUTLINES)

    def __init__(self, size=100, limit=None, seed=0, split="conflict", data="shapes"):
        rows = np.arange(SPLITS["conflict"])
        subset = stratified(outlines("conflict", rows), limit, seed) if limit else rows
        images = torch.from_numpy(subset).double().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        labels = torch.from_numpy(outlines("conflict", subset))
        super().__init__(zip(images.split(size), labels.split(size), strict=True))
        self.provenance = {"data": data, "split": split, "limit": limit, "seed": seed}


class Scripted(nn.Module):
    """Of each pair's 20 images it answers ``by_shape`` by the outline, ``by_texture`` by the fill, and the rest by neither."""

    def __init__(self, by_shape, by_texture):
        super().__init__()
        self.by_shape, self.by_texture = by_shape, by_texture
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, images):
        rows = images[:, 0, 0, 0].long().numpy()
        shape, texture, turn = outlines("conflict", rows), textures("conflict", rows), rows // 56
        other = np.array([next(k for k in range(8) if k not in pair) for pair in zip(shape, texture, strict=True)])
        answer = np.where(turn < self.by_shape, shape, np.where(turn < self.by_shape + self.by_texture, texture, other))
        return 5 * nn.functional.one_hot(torch.from_numpy(answer), 8).double()


@pytest.mark.parametrize(("shape", "texture"), [(20, 0), (0, 20), (10, 10), (12, 4), (1, 0), (3, 5)])
def test_the_bias_is_the_share_of_shape_among_answers_by_either(shape, texture):
    result = shape_bias(Scripted(shape, texture), Conflict())
    for row in result.table:
        assert row["shape_bias"] == pytest.approx(shape / (shape + texture))
        assert row["by_shape"] == pytest.approx(shape / 20)
        assert row["by_texture"] == pytest.approx(texture / 20)
        assert row["by_neither"] == pytest.approx(1 - (shape + texture) / 20)
    assert [row["outline"] for row in result.table] == ["all", *OUTLINES]
    assert result.table[0]["images"] == SPLITS["conflict"] == 8 * result.table[1]["images"]
    assert result.provenance["images"] == SPLITS["conflict"]


@pytest.mark.parametrize(("shape", "texture"), [(12, 4), (20, 0), (0, 3), (1, 0)])
def test_the_intervals_are_jeffreys(shape, texture):
    """With Clopper & Pearson's end at 0 and at 1; a bootstrap says 100% to 100% where all answers agree."""
    table = shape_bias(Scripted(shape, texture), Conflict()).table
    counts = {
        "shape_bias": (shape, shape + texture), "by_shape": (shape, 20), "by_texture": (texture, 20),
        "by_neither": (20 - shape - texture, 20),
    }  # fmt: skip
    for row, pairs in ((table[0], 56), (table[1], 7)):  # 20 images of each pair
        for name, (k, n) in ((name, (pairs * k, pairs * n)) for name, (k, n) in counts.items()):
            jeffreys = beta(k + 0.5, n - k + 0.5).ppf([0.025, 0.975])
            exact = binomtest(k, n).proportion_ci(0.95, method="exact")
            expected = exact if k in (0, n) else jeffreys
            assert (row[f"{name}_low"], row[f"{name}_high"]) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


def test_a_subset_is_reproduced_from_its_limit_and_seed():
    by_shape, data = shape_bias(Scripted(20, 0), Conflict(limit=60, seed=3)), Conflict(limit=60, seed=3)
    assert by_shape.table[0]["shape_bias"] == 1  # with the fills of other rows some answers would count for the fill
    assert by_shape.table[0]["images"] == 60
    assert shape_bias(Scripted(0, 20), data).table[0]["shape_bias"] == 0
    a, b = (shape_bias(Scripted(7, 7), Conflict(size=s)).table for s in (1120, 9))
    assert a == b


def test_without_answers_by_either_the_bias_is_nan():
    row = shape_bias(Scripted(0, 0), Conflict()).table[0]
    assert np.isnan(row["shape_bias"])
    assert row["by_neither"] == 1


def test_the_figure_shows_the_table(tmp_path):
    model = Scripted(9, 3)
    with unchanged(model.train()):
        result = shape_bias(model, Conflict())
    (axes,) = result.figure().axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(OUTLINES)
    assert axes.lines[-1].get_xdata()[0] == 0.75
    assert (result.save(tmp_path / "bias") / "rows.parquet").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shapes("middle"), "no split middle in shapes: it has conflict, test, train"),
        (lambda: shapes("train", size=8), "they need at least 16 px"),
        (lambda: shapes("train", channels=2), "2 channels"),
        (lambda: shape_bias(Scripted(1, 1), Conflict(split="test")), "split conflict"),
        (lambda: shape_bias(Scripted(1, 1), Conflict(data="fashion")), "give the data shapes"),
        (lambda: shape_bias(Scripted(1, 1), []), "give the data shapes"),
        (lambda: shape_bias(nn.Sequential(nn.Flatten(), nn.Linear(4, 3).double()), Conflict()), "the model has 3 outputs"),
    ],
)
def test_refuses_in_one_sentence(call, message):
    with pytest.raises(UserError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)
