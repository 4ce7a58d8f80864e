"""Attacks on linear models, whose worst case has a closed form, and on models whose gradients mislead."""

import math

import numpy as np
import pytest
import torch
from known_models import unchanged
from torch import nn

from backlight.analyses.adversarial import adversarial
from backlight.analyses.adversarial.attacks import ATTACKS, Attack, Goal
from backlight.analyses.adversarial.settings import AdversarialSettings
from backlight.analyses.pixel_scores import logits_of_pixels
from backlight.data.normalisation import Normalisation
from backlight.errors import UserError
from backlight.numerics.bootstrap import skewed_mean_interval
from backlight.numerics.frequency_bands import band, confined
from backlight.numerics.proportions import paired_difference_interval, share_interval

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
SPACE = {"mean": MEAN, "std": STD}
GREY = {"mean": (0.0,), "std": (1.0,)}
SIZE = (9, 14)


def channelwise(statistic):
    return torch.tensor(statistic, dtype=torch.float64).view(3, 1, 1)


def data_of(pixels, labels, batch=7):
    images = (pixels - channelwise(MEAN)) / channelwise(STD)
    return list(zip(images.split(batch), labels.split(batch), strict=True))


def pixels_of(n, low=0.0, high=1.0, seed=0):
    return low + (high - low) * torch.rand(n, 3, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear(nn.Module):
    """Two classes, separated by an inner product with the pixels; records the pixels that it receives."""

    def __init__(self, gain=0.05):
        super().__init__()
        weight = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.weight = nn.Parameter(gain * weight)
        self.recorded = []

    def forward(self, images):
        pixels = images * channelwise(STD) + channelwise(MEAN)
        self.recorded.append(pixels.detach())
        score = (self.weight * (pixels - 0.5)).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(score) - 0.1, score], 1)

    def answers(self, pixels, labels):
        with torch.no_grad():
            score = (self.weight * (pixels - 0.5)).sum((1, 2, 3))
            logits = torch.stack([torch.zeros_like(score) - 0.1, score], 1)
            return (logits.argmax(1) == labels).double(), nn.functional.cross_entropy(logits, labels, reduction="none")


class Network(nn.Module):
    """A small convolutional network with smooth gradients."""

    def __init__(self, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.GELU(), nn.Flatten(),
            nn.Linear(8 * 7 * 12, classes),
        ).double()  # fmt: skip
        self.recorded = []

    def forward(self, images):
        self.recorded.append((images * channelwise(STD) + channelwise(MEAN)).detach())
        return 10 * self.layers(images)


def own_labels(model, pixels):
    """The model's own answers as labels, so that it answers every clean image correctly."""
    with torch.no_grad():
        labels = torch.cat([model.eval()(images).argmax(1) for images, _ in data_of(pixels, torch.zeros(len(pixels)))])
    model.recorded.clear()
    return labels


def row_of(result, attack, epsilon):
    return next(row for row in result.rows() if (row["attack"], row["epsilon"]) == (attack, epsilon))


def assert_scores(row, attacked, clean):
    for values, before, score in zip(attacked, clean, ("accuracy", "nll"), strict=True):
        value, change = (skewed_mean_interval(x.numpy(), resamples=100, seed=3) for x in (values, values - before))
        if score == "accuracy":
            value, change = share_interval(values.numpy()), paired_difference_interval(values.numpy(), before.numpy())
        for column, expected in ((score, value), (f"{score}_change", change)):
            assert [row[column + end] for end in ("", "_low", "_high")] == pytest.approx(list(map(float, expected)), abs=1e-9)


# --- closed forms


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_of_a_linear_model_the_worst_change_is_the_sign_of_its_weights(attack):
    """x - epsilon sign(w), clipped to valid pixels, with a normalisation that has a scale for each channel."""
    pixels, model = pixels_of(20), Linear()
    labels = torch.arange(20) % 2
    result = adversarial(model, data_of(pixels, labels), epsilons=(8, 2, 32), **SPACE, resamples=100, seed=3)
    direction = (1 - 2 * labels).view(-1, 1, 1, 1) * model.weight.detach().sign()
    clean = model.answers(pixels, labels)
    for epsilon in (2, 8, 32):
        worst = (pixels + epsilon / 255 * direction).clamp(0, 1)
        row, attacked = row_of(result, attack, epsilon), model.answers(worst, labels)
        assert_scores(row, attacked, clean)
        assert row["rms"] == pytest.approx(float((worst - pixels).square().mean((1, 2, 3)).sqrt().mean()))
        fooled = 1 - attacked[0][clean[0] > 0]
        assert row["success"] == pytest.approx(float(fooled.mean()))
    assert [row["epsilon"] for row in result.rows()] == [2] * 3 + [8] * 3 + [32] * 3
    assert result.provenance["attackable"] == clean[0].sum()


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_of_a_linear_model_the_worst_change_of_a_length_is_along_its_weights(attack):
    pixels, model = pixels_of(12, 0.4, 0.6), Linear(0.3)
    labels = torch.arange(12) % 2
    result = adversarial(model, data_of(pixels, labels), norm="l2", epsilons=(64,), steps=50, **SPACE, resamples=100, seed=3)
    weight = model.weight.detach()
    worst = pixels + 64 / 255 * (1 - 2 * labels).view(-1, 1, 1, 1) * weight / weight.norm()
    attacked, row = model.answers(worst, labels), row_of(result, attack, 64)
    assert row["nll"] == pytest.approx(float(attacked[1].mean()), rel=1e-6 if attack == "fgsm" else 1e-2)
    assert row["rms"] == pytest.approx(64 / 255 / math.sqrt(3 * math.prod(SIZE)), rel=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_a_linear_model_the_worst_change_in_a_band_is_along_its_weights_there(norm):
    """The part of the weights in the band, computed by bins in NumPy; for the largest change of a pixel, that of their sign."""
    pixels, model = pixels_of(6, 0.4, 0.6), Linear()
    labels = torch.arange(6) % 2
    result = adversarial(model, data_of(pixels, labels), norm=norm, epsilons=(10,), band=(0.3, 0.7), steps=1, **SPACE)
    ring = np.array([[max(2 * min(y, 9 - y) / 9, 2 * min(x, 14 - x) / 14) for x in range(14)] for y in range(9)])
    inside = (ring >= 0.3) & (ring < 0.7)

    def part(field):
        return np.fft.ifft2(np.fft.fft2(field) * inside).real

    along = part(model.weight.detach().numpy())
    if norm == "l2":
        change = along / np.linalg.norm(along)
    else:
        change = part(np.sign(along))
        change /= np.abs(change).max()
    worst = pixels + 10 / 255 * torch.tensor(change) * (1 - 2 * labels).view(-1, 1, 1, 1)
    row = row_of(result, "fgsm", 10)
    assert row["nll"] == pytest.approx(float(model.answers(worst, labels)[1].mean()), rel=1e-9)
    assert row["in_band"] == pytest.approx(1)
    assert (change * along).sum() > 0


def test_a_targeted_attack_raises_the_probability_of_its_target():
    """Of two classes the target is the other one: the same change as away from the label."""
    pixels, model = pixels_of(20), Linear()
    labels = torch.arange(20) % 2
    away, towards = (
        adversarial(model, data_of(pixels, labels), epsilons=(4, 16), targeted=targeted, **SPACE).rows()
        for targeted in (False, True)
    )
    for one, other in zip(away, towards, strict=True):
        assert one["nll"] == pytest.approx(other["nll"])
        assert one["success"] == pytest.approx(other["success"])


def test_targets_are_other_classes_and_reached_where_epsilon_is_large():
    pixels, model = pixels_of(24), Network()
    labels = own_labels(model, pixels)
    result = adversarial(model, data_of(pixels, labels), epsilons=(0.5, 64), targeted=True, **SPACE)
    assert result.provenance["attackable"] == 24  # no target is the label
    assert row_of(result, "pgd", 64)["success"] > 0.9
    assert row_of(result, "pgd", 64)["accuracy"] < 0.1
    assert row_of(result, "pgd", 0.5)["success"] < row_of(result, "pgd", 64)["success"]


def test_a_single_step_to_the_edge_is_fgsm():
    pixels, model = pixels_of(15), Network()
    result = adversarial(
        model, data_of(pixels, own_labels(model, pixels)), epsilons=(3,), steps=1, step_size=3, random_start=False, **SPACE
    )
    fgsm, pgd = row_of(result, "fgsm", 3), row_of(result, "pgd", 3)
    assert scores_of(fgsm) == scores_of(pgd)
    assert not any("steps" in claim.statement for claim in result.claims)


def scores_of(row):
    return {column: value for column, value in row.items() if column != "attack"}


# --- bounds


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("frequencies", [None, (0.0, 0.4)])
def test_what_the_model_receives_is_valid_and_within_epsilon(norm, frequencies):
    """Both bounds, for every image that the model received: black and white pixels, a different scale for each channel."""
    pixels, model = pixels_of(8, -0.3, 1.3).clamp(0, 1), Network()
    labels = own_labels(model, pixels)
    epsilon = 20.0
    result = adversarial(model, data_of(pixels, labels, 8), norm=norm, epsilons=(epsilon,), band=frequencies, steps=6, **SPACE)
    largest = 0.0
    for attacked in model.recorded:
        assert attacked.min() > -1e-12
        assert attacked.max() < 1 + 1e-12
        change = attacked - pixels
        size = change.abs().amax((1, 2, 3)) if norm == "linf" else change.flatten(1).norm(dim=1)
        assert size.max() < epsilon / 255 * (1 + 1e-9)
        largest = max(largest, float(size.max()))
    assert largest > 0.5 * epsilon / 255
    if frequencies:
        assert all(0.5 < row["in_band"] < 1 for row in result.rows())  # clipping adds frequencies outside the band


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_where_nothing_is_clipped_a_change_stays_in_its_band(norm):
    pixels, model = pixels_of(8, 0.3, 0.7), Network()
    labels = own_labels(model, pixels)
    result = adversarial(model, data_of(pixels, labels, 8), norm=norm, epsilons=(20,), band=(0.2, 0.6), steps=6, **SPACE)
    outside = ~band(SIZE, 0.2, 0.6)
    changes = [attacked - pixels for attacked in model.recorded]
    assert max(float(confined(change, outside).abs().max()) for change in changes) < 1e-12
    assert all(row["in_band"] == pytest.approx(1) for row in result.rows())
    accuracy = {attack: row_of(result, attack, 20)["accuracy"] for attack in ATTACKS}
    assert accuracy["pgd"] <= accuracy["fgsm"] <= accuracy["random"]


def test_a_band_of_all_frequencies_is_no_band():
    pixels, model = pixels_of(8, 0.3, 0.7), Network()
    data = data_of(pixels, own_labels(model, pixels))
    no_band, full_band = (adversarial(model, data, epsilons=(2,), band=b, **SPACE) for b in (None, (0.0, 1.0)))
    assert row_of(no_band, "fgsm", 2)["nll"] == pytest.approx(row_of(full_band, "fgsm", 2)["nll"])
    assert row_of(no_band, "random", 2)["nll"] == pytest.approx(row_of(full_band, "random", 2)["nll"])


# --- laws


def test_more_steps_and_larger_epsilons_never_harm_less():
    pixels, model = pixels_of(30), Network()
    data = data_of(pixels, own_labels(model, pixels))
    results = [
        adversarial(model, data, epsilons=(1, 2, 4), steps=steps, step_size=0.3, random_start=False, **SPACE)
        for steps in (1, 2, 5, 10)
    ]
    for epsilon in (1, 2, 4):
        accuracy = [row_of(result, "pgd", epsilon)["accuracy"] for result in results]
        assert accuracy == sorted(accuracy, reverse=True)
    over_epsilon = [row_of(results[-1], "pgd", epsilon)["accuracy"] for epsilon in (1, 2, 4)]
    assert over_epsilon == sorted(over_epsilon, reverse=True)
    assert over_epsilon[-1] < over_epsilon[0] < 1


def test_every_law_holds_with_smooth_gradients():
    pixels, model = pixels_of(40), Network()
    result = adversarial(model, data_of(pixels, own_labels(model, pixels)), epsilons=(1, 2, 4), **SPACE)
    assert {claim.verdict for claim in result.claims} == {"holds"}
    assert len(result.claims) == 5
    masking = result.provenance["gradient_masking"]
    assert not masking["suspected"]
    assert masking["zero_gradients"] == pytest.approx([0, 0, 1 - 0.025 ** (1 / 40)])


def verdicts(result):
    return {claim.statement: claim.verdict for claim in result.claims}


class Scored(nn.Module):
    """Two classes, separated by the sign of a function of the image: 0 where it is positive."""

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def forward(self, images):
        return torch.stack([self.margin(images), torch.zeros(len(images), dtype=images.dtype)], 1)


def grey(n=24):
    return [(torch.full((n, 1, 8, 8), 0.5, dtype=torch.float32), torch.zeros(n, dtype=torch.long))]


def test_a_model_that_rounds_its_images_is_suspected():
    """It has no gradient, so attacks change nothing, while random noise does harm."""

    def margin(images):
        rounded = (255 * images).round() / 255
        return 0.01 - (rounded - 0.5).abs().mean((1, 2, 3))

    result = adversarial(Scored(margin), grey(), epsilons=(8,), random_start=False, **GREY)
    assert row_of(result, "random", 8)["accuracy"] == 0
    assert row_of(result, "pgd", 8)["accuracy"] == row_of(result, "fgsm", 8)["accuracy"] == 1
    assert row_of(result, "pgd", 8)["rms"] == 0
    verdict_of = verdicts(result)
    assert verdict_of["Every image has a gradient."] == "does not hold"
    assert verdict_of["The gradient harms more than random noise of the same size."] == "does not hold"
    masking = result.provenance["gradient_masking"]
    assert masking["suspected"]
    assert masking["zero_gradients"] == masking["random_beats_pgd"] == pytest.approx([1, 0.025 ** (1 / 24), 1])


def test_a_model_with_a_valley_before_the_cliff_is_suspected():
    """Small steps stay in the valley at a third of epsilon; one large step falls off the cliff."""

    def margin(images):
        t = (images.mean((1, 2, 3)) - 0.5) / (16 / 255)  # 1 at the edge of the ball
        return torch.where(t < 0.8, 1 + 20 * (t - 0.33).square(), -1 - 0 * t)

    result = adversarial(Scored(margin), grey(), epsilons=(16,), steps=20, step_size=0.8, random_start=False, **GREY)
    assert row_of(result, "fgsm", 16)["accuracy"] == 0
    assert row_of(result, "pgd", 16)["accuracy"] == 1
    assert verdicts(result)["PGD is at least as strong as FGSM."] == "does not hold"
    assert result.provenance["gradient_masking"]["fgsm_beats_pgd"] == pytest.approx([1, 0.025 ** (1 / 24), 1])


def test_accuracy_that_rises_with_epsilon_is_suspected():
    def margin(images):
        t = (images.mean((1, 2, 3)) - 0.5) * 255
        return torch.where((t > 1) & (t < 3), -1 - 0 * t, 3 - 0.01 * t)

    result = adversarial(Scored(margin), grey(), epsilons=(2, 8), steps=2, step_size=None, random_start=False, **GREY)
    assert [row_of(result, "pgd", epsilon)["accuracy"] for epsilon in (2, 8)] == [0, 1]
    assert verdicts(result)["Accuracy never rises with epsilon."] == "does not hold"


def test_confidence_near_one_has_a_gradient():
    """The gradient of a log-softmax at a margin of 40 nats is zero; yet the model is easy to fool."""

    def margin(images):
        return 1000 * (images.mean((1, 2, 3)) - 0.46)

    result = adversarial(Scored(margin), grey(), epsilons=(16,), **GREY)
    assert row_of(result, "fgsm", 16)["accuracy"] == row_of(result, "pgd", 16)["accuracy"] == 0
    assert result.provenance["gradient_masking"]["zero_gradients"] == pytest.approx([0, 0, 1 - 0.025 ** (1 / 24)])


def test_pgd_returns_the_point_that_reached_its_goal():
    """Fooled at 2/255 and not at 8/255, where the loss is larger and the answer is correct again."""

    class Passing(nn.Module):
        def forward(self, images):
            t = 255 * (images.mean((1, 2, 3)) - 0.5)
            fooled = ((t > 1) & (t < 3))[:, None]
            scores = torch.tensor([0.1, -10.0]).where(fooled, torch.tensor([-0.05, -0.05])) + 0.001 * t[:, None]
            return torch.cat([torch.zeros(len(images), 1), scores], 1)

    result = adversarial(Passing(), grey(), epsilons=(8,), steps=4, step_size=2, random_start=False, **GREY)
    assert row_of(result, "pgd", 8)["accuracy"] == 0
    assert row_of(result, "pgd", 8)["rms"] == pytest.approx(2 / 255)


def test_a_step_has_the_requested_length_however_small_the_gradient():
    """A gradient of 1e-32, whose square is zero in float32."""
    model = Scored(lambda images: 1000 * (images.mean((1, 2, 3)) - 0.43))
    settings = {"norm": "l2", "epsilons": (200,), "steps": 1, "step_size": 50, "random_start": False}
    assert row_of(adversarial(model, grey(), **settings, **GREY), "pgd", 200)["rms"] == pytest.approx(50 / 255 / 8)


def test_clipped_pixels_have_no_gradient():
    """Against finite differences of the loss at the clipped pixels."""
    pixels, model = pixels_of(1, -0.3, 1.3).clamp(0, 1), Network().eval()
    logits_of = logits_of_pixels(model, Normalisation(MEAN, STD))
    settings = AdversarialSettings((8.0,), steps=2, random_start=False, band=(0.0, 0.5))
    with torch.no_grad():
        attack = Attack(settings, logits_of, pixels, Goal(torch.tensor([1]), None), torch.arange(1), 0)
        delta = 0.05 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        gradient, _ = attack.gradient(delta)
        clipped = (pixels + delta < 0) | (pixels + delta > 1)
        assert 20 < clipped.sum() < pixels.numel() - 20
        assert not gradient[clipped].any()
        for index in [*clipped.nonzero()[::20], *(~clipped).nonzero()[::20]]:
            ends = []
            for h in (-1e-6, 1e-6):
                moved = delta.clone()
                moved[tuple(index)] += h
                ends.append(attack.goal.loss(logits_of(attack.attacked(moved))))
            assert float(gradient[tuple(index)]) == pytest.approx(float(ends[1] - ends[0]) / 2e-6, rel=1e-3, abs=1e-6)


def test_without_a_change_all_energy_counts_as_in_band():
    rounding = Scored(lambda images: 0.01 - ((255 * images).round() / 255 - 0.5).abs().mean((1, 2, 3)))
    result = adversarial(rounding, grey(), epsilons=(8,), random_start=False, band=(0.2, 0.6), **GREY)
    assert (row_of(result, "pgd", 8)["rms"], row_of(result, "pgd", 8)["in_band"]) == (0, 1)


# --- side effects, dependences, errors


def test_nothing_stays_on_the_model():
    pixels, model = pixels_of(8), Network()
    data = data_of(pixels, own_labels(model, pixels))
    frozen, carrying = model.layers[0].weight, model.layers[3].weight
    frozen.requires_grad_(False)
    carrying.grad = torch.ones_like(carrying)
    model.recorded = type("Nothing", (), {"append": lambda *_: None})()
    model.train()
    with unchanged(model), torch.no_grad():
        adversarial(model, data, epsilons=(1,), **SPACE)
    assert carrying.grad.eq(1).all()
    assert all(p.grad is None for p in model.parameters() if p is not carrying)


def test_attacks_depend_only_on_the_seed_and_the_position_of_an_image():
    pixels, model = pixels_of(20), Network()
    labels = own_labels(model, pixels)
    one, other, third, fourth = (
        adversarial(model, data_of(pixels, labels, batch), epsilons=(1.5,), steps=3, targeted=True, **SPACE, seed=seed).rows()
        for batch, seed in ((20, 0), (7, 0), (3, 0), (20, 1))
    )
    for row, *others in zip(one, other, third, strict=True):
        for column in row.keys() - {"model", "attack", "norm"}:
            assert [o[column] for o in others] == pytest.approx([row[column]] * 2, rel=1e-9)
    assert one[0]["nll"] != fourth[0]["nll"]
    assert one[2]["nll"] != fourth[2]["nll"]


def test_images_made_in_inference_mode_are_accepted():
    with torch.inference_mode():
        data = grey()
        result = adversarial(Scored(lambda images: 0.01 - (images - 0.5).mean((1, 2, 3))), data, epsilons=(8,), **GREY)
    assert row_of(result, "fgsm", 8)["accuracy"] == 0


def test_the_figure_starts_at_the_clean_accuracy():
    result = adversarial(Scored(lambda images: 0.01 - (images - 0.5).mean((1, 2, 3))), grey(), epsilons=(1, 8), **GREY)
    axes = result.figure().axes
    assert [ax.get_ylabel() for ax in axes] == ["Accuracy (%)", "Success of the attack (%)"]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes[0].lines}
    assert lines == {"random": [100] * 3, "FGSM": [100, 100, 0], "PGD": [100, 100, 0]}


def test_a_model_that_is_always_wrong_cannot_be_fooled():
    result = adversarial(Scored(lambda images: -1 + 0 * images.mean((1, 2, 3))), grey(), epsilons=(8,), **GREY)
    assert result.provenance["attackable"] == 0
    assert math.isnan(row_of(result, "pgd", 8)["success"])


def without_gradient(images):
    return images.detach().mean((1, 2, 3)) - 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilons": (8, 0)}, "epsilons is 0.0; it must be above 0"),
        ({"epsilons": (300,)}, "epsilons has 300; in units of 1/255 a pixel cannot change by more than 255"),
        ({"norm": "l1"}, "norm is 'l1'; it must be linf or l2"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"step_size": -1.0}, "step_size is -1.0; it must be above 0"),
        ({"band": (0.5, 0.4)}, "band is 0.5, 0.4; it must be two numbers from 0 to 1 .*, the first the smaller"),
        ({"band": (0.5,)}, "band is 0.5; it must be two numbers"),
        ({"band": (0.5, 1.5)}, "band is 1.5; it must be at least 0, at most 1"),
        ({"band": (0.3, 0.45)}, "images of 8 x 8 have no frequency in the band"),
        ({"mean": (0, 0, 0), "std": (1, 1, 1)}, "the images have 1 channels"),
        ({"mean": None}, "do not say how their images were normalised"),
    ],
)
def test_refuses_in_one_sentence(settings, message):
    model = Scored(lambda images: -1 + 0 * images.mean((1, 2, 3))).train()
    with unchanged(model), pytest.raises(UserError, match=message) as refusal:
        adversarial(model, grey(), **{**GREY, **settings})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (Scored(without_gradient), grey(), "no gradient flows"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), grey(), None),
        (Scored(without_gradient), [grey()[0][0]], "no tensor of labels"),
        (Scored(without_gradient), [], "no images"),
    ],
)
def test_refuses_models_and_data_in_one_sentence(model, data, message):
    message = message or "the model has 1 output"
    with pytest.raises(UserError, match=message):
        adversarial(model, data, **GREY, targeted="1 output" in message)
