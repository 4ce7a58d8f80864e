"""Where a unit is the identity there is no effect, and no verdict: rounding is not evidence."""

import copy

import pytest
import timm
import torch
from known_models import averaging, batches, identity, labelled_images, noise, pointwise, reading_upper_channels, tower
from torch import nn

from backlight import attention, erf, fourier, lesion, similarity, trajectory, variance


class Reordered(nn.Module):
    """The identity, whose result lies in memory in another order, so that sums over it round in another way."""

    def __init__(self):
        super().__init__()
        self.branch = pointwise(torch.zeros(3, 3)).branch

    def forward(self, x):
        return (x + self.branch(x)).contiguous(memory_format=torch.channels_last)


def verdicts(result):
    assert result.claims
    return {claim.verdict for claim in result.claims}


@pytest.mark.parametrize("analysis", [fourier, variance])
@pytest.mark.parametrize("unit", [identity, lambda: averaging(0.0), lambda: pointwise(torch.zeros(3, 3)), Reordered])
@pytest.mark.parametrize("mean", [0.0, 3.0, 5.0, 10.0])
def test_streams_that_do_not_change_decide_nothing(analysis, unit, mean):
    """The variance of a map far from zero is the rest of two sums that are 1000 times larger."""
    images = mean + torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert verdicts(analysis(tower(unit(), unit()), batches(images, 16))) == {"undecided"}


@pytest.mark.parametrize("seed", [1, 14])
def test_the_rounding_of_a_variance_decides_nothing(seed):
    """The intervals are near [-2.6e-5, -2e-6] nepers, without zero; the branch is smaller than the rounding of the stream."""
    unit = Reordered()
    with torch.no_grad():
        unit.branch.weight.copy_(1e-8 * noise(3, 3, 1, 1))
    images = 7 + torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    assert verdicts(variance(tower(unit), batches(images, 16))) == {"undecided"}


@pytest.mark.parametrize("analysis", [fourier, variance])
@pytest.mark.parametrize(("effect", "decided"), [(1e-5, False), (1e-3, True)])
def test_small_effects_above_rounding_are_decided(analysis, effect, decided):
    """A stream times 1 + effect: only the readings that do not divide by the mean of the map change."""
    unit = pointwise(effect * torch.eye(3))
    claims = analysis(tower(unit), batches(noise(64, 3, 16, 16), 16)).claims
    assert any(claim.verdict != "undecided" for claim in claims) == decided


def test_units_without_effect_are_no_lesion():
    images, labels = labelled_images(64)
    model = reading_upper_channels(*(pointwise(torch.zeros(8, 8)) for _ in range(3)))
    assert verdicts(lesion(model, batches(images, 16, labels))) == {"undecided"}


def test_streams_that_are_equal_are_no_blocks():
    def halving():
        down = nn.Conv2d(3, 3, 2, stride=2, bias=False)
        nn.init.zeros_(down.weight)
        with torch.no_grad():
            down.weight[:, :, 0, 0] = torch.eye(3)
        return down

    flat = noise(96, 3, 1, 1).expand(-1, -1, 8, 8)  # a coarser map loses nothing
    stages = [[pointwise(torch.zeros(3, 3)) for _ in range(3)] for _ in range(2)]
    model = tower(*stages[0], halving(), *stages[1])
    assert verdicts(similarity(model, batches(flat, 8))) == {"undecided"}


def test_receptive_fields_do_not_grow_without_units():
    claims = {claim.id: claim for claim in erf(tower(identity(), identity()), batches(noise(32, 3, 8, 8), 16)).claims}
    assert claims["erf/grows"].verdict == "undecided"
    assert claims["erf/grows"].value == 0


def test_equal_attentions_neither_spread_nor_collapse():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.load_state_dict(model.blocks[0].state_dict())
            for last in (block.attn.proj, block.mlp.fc2):
                last.weight.zero_()
                last.bias.zero_()
    images = noise(24, *model.pretrained_cfg["input_size"])
    assert verdicts(attention(model, batches(images, 8))) == {"undecided"}


def test_a_training_that_changes_no_output_lowers_no_loss():
    """Added to every class score, a constant changes the loss by rounding only."""
    model = tower(identity()).eval()
    images, labels = noise(32, 3, 8, 8), torch.arange(32) % 10
    first, second = (copy.deepcopy(model.state_dict()) for _ in range(2))
    bias = next(name for name in first if name.endswith("bias") and len(first[name]) == 10)
    first[bias] += 0.3
    second["0.weight"] *= 2  # so that the path is no line
    result = trajectory(model, batches(images, 16, labels), snapshots=[first, second], resamples=50)
    assert verdicts(result) == {"undecided"}
    assert result.claims[0].value != 0
