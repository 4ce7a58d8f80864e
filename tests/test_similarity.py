"""Similarity of units in models whose similarities are known."""

import itertools

import numpy as np
import pytest
import torch
from known_models import Mean, batches, blur, identity, noise, pointwise, sharpen, stem, tower, unchanged
from scipy.stats import sem, t
from torch import nn

from backlight import feature_maps, similarity, units
from backlight.analyses.fourier.measure import Spectra
from backlight.analyses.fourier.settings import FourierSettings
from backlight.analyses.similarity import measure as module
from backlight.analyses.similarity.measure import Grams
from backlight.analyses.similarity.settings import SimilaritySettings
from backlight.analyses.single_pass import single_pass
from backlight.errors import UserError
from backlight.numerics.cka import cka, hsic


def matrix(result):
    return result.arrays["cka"][0]


def formula(several_batches):
    """CKA of (U, n, P) features per batch: HSIC summed over batches, weighted by the number of images, then divided."""
    weighted = [len(b[0]) * hsic(np.stack([(x @ x.T).numpy() for x in b])) for b in several_batches]
    return cka(np.sum(weighted, axis=0))


def streams(model, parts):
    all_units = units(model, parts[0])
    features = []
    for images in parts:
        with torch.no_grad():
            features.append([model[0](images).flatten(1), *(m.flatten(1) for m in feature_maps(model, images, all_units))])
    return features


# --- the matrix


def test_it_is_the_formula_on_the_streams():
    model = tower(blur(), sharpen(), pointwise(noise(3, 3))).double().eval()
    parts = batches(noise(24, 3, 8, 8).double(), 8)
    result = similarity(model, parts)
    assert matrix(result) == pytest.approx(formula(streams(model, parts)), abs=1e-10)
    first = result.rows()[0]
    assert (first["unit"], first["kind"], first["other_unit"], first["other_kind"]) == (-1, "stem", 0, "conv")
    assert [(row["unit"], row["other_unit"]) for row in result.rows()] == list(itertools.combinations(range(-1, 3), 2))
    assert [row["cka"] for row in result.rows()] == pytest.approx(matrix(result)[np.triu_indices(4, 1)])


def test_another_library_gives_the_same_numbers():
    oracle = pytest.importorskip("cka", reason="pytorch-cka is not installed")
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 8, 3)]
    model = nn.Sequential(*layers, Mean(), nn.Linear(8, 5)).double().eval()
    data = torch.utils.data.DataLoader(noise(30, 3, 16, 16).double(), batch_size=10)
    at = ["0", "2", "4"]
    (expected,) = oracle.compute_cka(model, model, data, layers=at, device="cpu", progress=False)
    rows = {row["module"]: k for k, row in enumerate(similarity(model, data, at=at).provenance["rows"])}
    measured = matrix(similarity(model, data, at=at))
    order = [len(measured) - 3 + k for k in range(3)]
    assert set(at) <= set(rows)
    assert measured[np.ix_(order, order)] == pytest.approx(expected.double().numpy(), abs=1e-6)


def test_rotations_scaling_and_added_zeros_have_cka_1():
    rotation = torch.linalg.qr(noise(3, 3)).Q
    model = tower(identity(), pointwise(rotation - torch.eye(3)), pointwise(2 * torch.eye(3)))
    assert matrix(similarity(model, batches(noise(20, 3, 8, 8), 10))) == pytest.approx(np.ones((4, 4)), abs=1e-6)


def test_float32_is_as_good_as_float64():
    model = tower(blur(), sharpen(), pointwise(noise(3, 3))).eval()
    images = noise(24, 3, 8, 8) + 20 * noise(1, 3, 8, 8, seed=1)
    exact = matrix(similarity(model.double(), batches(images.double(), 8)))
    assert matrix(similarity(model.float(), batches(images, 8))) == pytest.approx(exact, abs=1e-6)


def test_batches_are_weighted_by_their_images_and_tiny_ones_are_left_out():
    model = tower(blur(), sharpen()).double().eval()
    images = noise(29, 3, 8, 8).double()
    parts = batches(images, 8)  # 8, 8, 8, 5
    assert matrix(similarity(model, parts)) == pytest.approx(formula(streams(model, parts)), abs=1e-10)
    result = similarity(model, [*parts, images[:3]])
    assert matrix(result) == pytest.approx(matrix(similarity(model, parts)), abs=1e-12)
    assert (result.provenance["images"], result.provenance["images_in_batches_below_4"]) == (32, 3)


def test_it_shares_the_forward_pass():
    model, data = tower(blur(), sharpen()), batches(noise(16, 3, 8, 8), 8)
    _, together = single_pass(model, data, {Spectra: FourierSettings(), Grams: SimilaritySettings()})
    assert together.rows() == similarity(model, data).rows()


# --- intervals


def left_out(per_batch):
    """CKA without each of the mini-batches, by a loop."""
    return np.stack([cka(np.sum([*per_batch[:i], *per_batch[i + 1 :]], axis=0)) for i in range(len(per_batch))])


def test_the_interval_is_the_jackknife_over_mini_batches():
    model, data = tower(blur(), sharpen(), pointwise(noise(3, 3))).double(), batches(noise(48, 3, 8, 8).double(), 6)
    per_batch = [hsic(np.stack([(x @ x.T).numpy() for x in b])) for b in streams(model, data)]
    pseudovalues = 8 * cka(np.sum(per_batch, axis=0)) - 7 * left_out(per_batch)
    half = t.interval(0.95, 7, scale=sem(pseudovalues, axis=0))[1]
    value, low, high = similarity(model, data).arrays["cka"]
    off = ~np.eye(4, dtype=bool)
    assert (value - low)[off] == pytest.approx(half[off], abs=1e-9)
    assert (high - value)[off] == pytest.approx(np.minimum(half, 1 - value)[off], abs=1e-9)
    assert (low[~off], high[~off]) == (pytest.approx(1), pytest.approx(1))


def test_the_same_numbers_from_any_seed():
    model, data = tower(blur(), sharpen()), batches(noise(24, 3, 8, 8), 6)
    one, two = (similarity(model, data, resamples=10, seed=s) for s in (0, 1))
    assert one.arrays["cka"] == pytest.approx(two.arrays["cka"], abs=0)


@pytest.mark.parametrize("parts", [4, 8, 16])
def test_the_claims_cover_with_few_mini_batches(parts):
    """Streams that share a part of their features, with a truth from many images; percentile resamples cover 80% at 4."""
    rng, size, simulations = np.random.default_rng(0), 8, 400
    stages, shared = [0, 0, 1, 1], np.array([[1.0, 0, 0.5, 0], [0.5, 1, 0, 0], [0, 0.5, 1, 0], [0, 0, 0.5, 1]])

    def dependence(images):
        latent = rng.standard_normal((4, images, 16)) * np.exp(0.15 * rng.standard_normal((images, 1)))  # as in demo-cnn
        features = np.einsum("us,sif->uif", shared, latent)
        return hsic(features @ features.transpose(0, 2, 1))

    contrast = module._contrast(stages, matched=False)
    truth = (cka(np.sum([dependence(400) for _ in range(40)], axis=0)) * contrast).sum()
    inside = 0
    for _ in range(simulations):
        groups = np.stack([dependence(size) for _ in range(parts)])
        square, without = cka(groups.sum(0)), cka(groups.sum(0) - groups)
        _, low, high = module._contrasted(contrast, square, without)
        inside += low <= truth <= high
    assert 0.925 <= inside / simulations <= 0.985


def test_few_mini_batches_decide_nothing():
    images = noise(60, 2, 8, 8) * torch.tensor([10.0, 1])[:, None, None]
    few, enough = (similarity(staged(swap=True), batches(images, size)).claims[0] for size in (15, 6))
    assert (few.count, few.over, few.verdict) == (4, "mini-batches", "undecided")
    assert few.low > 0
    assert few.reason.startswith("too few mini-batches: 4")
    assert (enough.count, enough.verdict) == (10, "holds")


def test_a_long_run_is_stored_in_groups_of_batches(monkeypatch):
    model, data = tower(blur(), sharpen()), batches(noise(4 * 23, 3, 8, 8), 4)
    ungrouped = similarity(model, data)
    monkeypatch.setattr(module, "GROUPS", 3)
    grouped = similarity(model, data)
    assert matrix(grouped) == pytest.approx(matrix(ungrouped), abs=1e-12)
    assert grouped.provenance["interval_over"] == "mini-batches, in 6 groups"  # of 4 batches, the last of 3
    assert grouped.provenance["batches"] == ungrouped.provenance["batches"] == 23
    low, high = (result.arrays["cka"][:, 0, 1] for result in (ungrouped, grouped))
    assert low[0] == pytest.approx(high[0])
    assert high[1] < high[0] < high[2]


def test_one_batch_has_no_interval():
    result = similarity(tower(blur()), [noise(8, 3, 8, 8)])
    assert np.isnan(result.arrays["cka"][1:]).all()
    assert np.isfinite(matrix(result)).all()


# --- blocks


def staged(swap):
    """Two stages of three units.  Between them the resolution is halved; ``swap`` gives the variance to the other channel."""
    down = nn.Conv2d(2, 2, 2, stride=2, bias=False)
    nn.init.zeros_(down.weight)
    with torch.no_grad():
        down.weight[:, :, 0, 0] = torch.tensor([[0.0, 100], [0.01, 0]]) if swap else torch.eye(2)
    return nn.Sequential(stem(2), identity_2(), identity_2(), identity_2(), down, identity_2(), identity_2(), identity_2(),
                         Mean(), nn.Linear(2, 3))  # fmt: skip


def identity_2():
    return pointwise(torch.zeros(2, 2))


def test_stages_with_independent_streams_are_blocks():
    images = noise(60, 2, 8, 8) * torch.tensor([10.0, 1])[:, None, None]
    plain, matched = similarity(staged(swap=True), batches(images, 6)).claims
    for claim in (plain, matched):
        assert claim.verdict == "holds"
        assert claim.low < claim.value < claim.high
        assert claim.value == pytest.approx(1, abs=0.1)  # 1 within, about 0 across
    constant = noise(60, 2, 1, 1).expand(-1, -1, 8, 8)  # a coarser map loses nothing
    plain, matched = similarity(staged(swap=False), batches(constant, 10)).claims
    assert plain.value == pytest.approx(0, abs=1e-6)
    assert matched.value == pytest.approx(0, abs=1e-6)


def test_the_contrast_is_the_difference_of_means():
    stages = [-1, 0, 0, 0, 1, 1, 2, -1, 2]
    value = noise(9, 9).double().numpy()
    pairs = [(i, j) for i, j in itertools.combinations(range(9), 2) if -1 not in (stages[i], stages[j])]
    within = [value[i, j] for i, j in pairs if stages[i] == stages[j]]
    across = [value[i, j] for i, j in pairs if stages[i] != stages[j]]
    assert (module._contrast(stages, matched=False) * value).sum() == pytest.approx(np.mean(within) - np.mean(across))
    differences = []
    for i, j in pairs:
        across = [value[k, m] for k, m in pairs if stages[k] != stages[m] and m - k == j - i]
        if stages[i] == stages[j] and across:
            differences.append(value[i, j] - np.mean(across))
    assert (module._contrast(stages, matched=True) * value).sum() == pytest.approx(np.mean(differences))


def test_distance_alone_gives_blocks_but_not_at_equal_distance():
    """If CKA depends on the distance only, the plain number is positive and the matched one is zero."""
    position = np.arange(10)
    fading = 0.9 ** np.abs(position[:, None] - position)
    stages = [0] * 3 + [1] * 4 + [2] * 3
    assert (module._contrast(stages, matched=False) * fading).sum() > 0.2
    assert (module._contrast(stages, matched=True) * fading).sum() == pytest.approx(0, abs=1e-12)


def test_one_stage_has_no_blocks():
    assert similarity(tower(blur(), sharpen()), batches(noise(16, 3, 8, 8), 8)).claims == []


# --- two models, branches


def test_two_models_get_the_same_images():
    one, two = tower(blur(), sharpen()).double(), tower(pointwise(noise(3, 3))).double()
    data = batches(noise(24, 3, 8, 8).double(), 8)
    result = similarity(one, data, other=two, other_name="two")
    joint = formula([a + b for a, b in zip(streams(one, data), streams(two, data), strict=True)])
    assert matrix(result) == pytest.approx(joint[:3, 3:], abs=1e-10)
    assert [(row["unit"], row["other_unit"]) for row in result.rows()] == [(i, j) for i in (-1, 0, 1) for j in (-1, 0)]
    assert result.claims == []
    assert result.provenance["other"]["name"] == "two"
    swapped = similarity(two, data, other=one)
    assert swapped.arrays["cka"].transpose(0, 2, 1) == pytest.approx(result.arrays["cka"], abs=1e-10)
    itself = similarity(one, data, other=one)
    assert matrix(itself) == pytest.approx(matrix(similarity(one, data)), abs=1e-10)


def test_branches_are_what_units_add():
    model, data = tower(blur(), sharpen()).double().eval(), batches(noise(16, 3, 8, 8).double(), 8)
    expected = []
    with torch.no_grad():
        for images in data:
            before = model[0](images)
            first = model[1].branch(before)
            expected.append([first.flatten(1), model[2].branch(before + first).flatten(1)])
    result = similarity(model, data, branch=True)
    assert matrix(result) == pytest.approx(formula(expected), abs=1e-10)
    assert [row["unit"] for row in result.provenance["rows"]] == [0, 1]


# --- undefined numbers, and refusals


def test_a_stream_that_is_the_same_for_all_images_is_named():
    silence = pointwise(-torch.eye(3))
    result = similarity(tower(silence, identity()), batches(noise(16, 3, 8, 8), 8))
    assert np.isnan(matrix(result)[1:]).all()
    assert matrix(result)[0, 0] == pytest.approx(1)
    first, _ = result.provenance["same_for_all_images"]
    assert first.startswith("the stream at unit 0 (1.branch) is the same for all images")


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        (tower(blur()), [noise(3, 3, 8, 8)], {}, "needs at least 4: raise the batch size"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), [noise(8, 3, 8, 8)], {}, "no residual units"),
        (tower(blur()), [], {}, "no images"),
        (tower(blur()), [], {"branch": True}, "no images"),
        (tower(blur()), [noise(8, 3, 8, 8)], {"branch": True, "at": ["0"]}, "give one of the two"),
        (tower(blur()), [noise(8, 3, 8, 8)], {"other": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())}, "no residual units"),
    ],
)
def test_refuses_in_one_sentence(model, data, options, message):
    with unchanged(model.train()), pytest.raises(UserError, match=message) as refusal:
        similarity(model, data, **options)
    assert "\n" not in str(refusal.value)


def test_nothing_stays_on_either_model():
    one, two = tower(blur()).train(), tower(sharpen()).train()
    with unchanged(one), unchanged(two):
        similarity(one, [noise(8, 3, 8, 8)], other=two)
        similarity(one, [noise(8, 3, 8, 8)], branch=True)
