import json
from pathlib import Path

import pytest
import torch
from backlight.models.official import alternet_from
GOLDEN = Path(__file__).parent / "golden"

def golden(name):
    """The official state dict and input that shared formula gives (float32), and the official logits (float64)."""
    reference = json.loads((GOLDEN / f"{name}.json").read_text())
    state = {key: golden_tensor(key, shape, i) for i, (key, shape) in enumerate(reference["state"])}
    images = formula(reference["input_shape"], 0).float()
    return state, images, torch.tensor(reference["logits"], dtype=torch.float64)

def formula(shape, i):
    j = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.618 * j * j + i).reshape(shape)

def golden_tensor(name, shape, i):
    v = formula(shape, i)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        v = 1 + 0.5 * v
    elif name.endswith("running_mean"):
        v = 0.1 * v
    elif v.ndim >= 2:
        v = 1.5 * v / v[0].numel() ** 0.5
    elif name.endswith("weight"):
        v = 1 + 0.1 * v
    else:
        v = 0.1 * v
    return v.float()

@pytest.mark.parametrize("name", ["alternet_50_cifar", "alternet_50_imagenet", "preact_resnet_50_cifar"])
def test_golden(name):
    state, images, logits = golden(name)
    model = alternet_from(state)
    print(model.word)
    with torch.inference_mode():
        single = model(images).double()
        double = model.double()(images.double())
    for got, bound in ((single, 1e-4), (double, 1e-6)):
        err = torch.linalg.vector_norm(got - logits) / torch.linalg.vector_norm(logits)
        print(name, bound, float(err))
        assert err < bound
