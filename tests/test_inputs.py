"""A batch is a tensor, a tuple or a dict, and its spelling changes no result."""

from __future__ import annotations

from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn

import backlight
from backlight.curvature.hessian import Hessian
from backlight.curvature.loss import Objective
from backlight.errors import UserError
from backlight.inputs import image_batches


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 8 * 8, 3)).eval()


@pytest.fixture(scope="module")
def pairs():
    torch.manual_seed(1)
    return [(torch.randn(n, 3, 8, 8), torch.randint(0, 3, (n,))) for n in (6, 6, 4)]


SPELLINGS = {
    "transformers": lambda x, y: {"pixel_values": x, "labels": y},
    "datasets": lambda x, y: {"label": y, "image": x},
    "BatchFeature": lambda x, y: UserDict(pixel_values=x, labels=y, ids=["a"] * len(y)),
    "list": lambda x, y: [x, y],
    "with ids": lambda x, y: (x, y, torch.arange(len(y))),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_batch_gives_the_same_results(model, pairs, spelling):
    batches = [SPELLINGS[spelling](x, y) for x, y in pairs]
    for analysis, settings in ((backlight.calibration, {}), (backlight.landscape, {"grid": 3})):
        expected, result = analysis(model, pairs, **settings), analysis(model, batches, **settings)
        assert str(result.table) == str(expected.table)  # as text, in which NaN equals NaN
    for (x, y), (images, labels) in zip(pairs, image_batches(batches), strict=True):
        assert torch.equal(x, images)
        assert torch.equal(y, labels)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_hessian_of_dicts_is_that_of_tuples(model, pairs, spelling):
    batches = [SPELLINGS[spelling](x, y) for x, y in pairs]
    vector = torch.randn(sum(p.numel() for p in model.parameters()), generator=torch.Generator().manual_seed(0))
    products = [Hessian(model, Objective(), b) @ vector for b in (pairs, batches)]
    np.testing.assert_array_equal(*products)


def test_data_without_labels_are_refused_in_one_sentence(model, pairs):
    for batches in ([x for x, _ in pairs], [{"image": x} for x, _ in pairs], [(x,) for x, _ in pairs]):
        with pytest.raises(UserError, match="have no labels, and the loss needs them"):
            Hessian(model, Objective(), batches)
        with pytest.raises(UserError, match="give no tensor of labels"):
            backlight.calibration(model, batches)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.zeros(1, 3, 8, 8)}, "a dict of x; call its images pixel_values or"),
        (3, "this yields a int"),
        ("ab", "this yields a str"),
        ({"image": [1, 2]}, "this yields a dict"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(batch, message):
    with pytest.raises(UserError, match=message):
        list(image_batches([batch]))
