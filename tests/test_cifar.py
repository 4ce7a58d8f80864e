"""The paper's networks on CIFAR equal the official ones; the locality ablation equals masked global attention."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from reference import GOLDEN, golden_state, relative_error, wave
from timm.layers import Attention
from torch import nn

import backlight.models
from backlight import spell, units
from backlight.errors import UserError
from backlight.models.architectures.local_vit import LocalViT, NeighbourAttention
from backlight.models.cost import macs, parameters
from backlight.models.sources.load import load_model
from backlight.models.sources.paper_checkpoints import official_model

RELEASED = ("resnet_50_cifar", "vit_ti_cifar", "pit_ti_cifar", "swin_ti_cifar")


@pytest.fixture(scope="module", params=RELEASED)
def released(request, tmp_path_factory):
    """A checkpoint of each released architecture: its name, its file, its tensors, and the official model's logits."""
    reference = json.loads((GOLDEN / f"{request.param}.json").read_text())
    state = golden_state(reference)
    path = tmp_path_factory.mktemp(request.param) / "model.pth.tar"
    torch.save({"state_dict": state, "epoch": 305}, path)
    return request.param, path, state, reference


def test_logits_are_those_of_the_official_checkpoint(released):
    _, path, _, reference = released
    model = load_model(f"official:{path}")
    images, logits = wave(reference["input_shape"], 0).float(), torch.tensor(reference["logits"], dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(model(images).double(), logits) < 1e-4
        assert relative_error(model.double()(images.double()), logits) < 1e-6
    assert parameters(model) == reference["parameters"]
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert model.pretrained_cfg["mean"] == (0.5071, 0.4867, 0.4408)


def test_the_registered_model_is_the_official_one(released):
    name, _, state, _ = released
    official = official_model(state).state_dict()
    with torch.device("meta"):
        registered = timm.create_model(name).state_dict()
    assert {key: tensor.shape for key, tensor in registered.items()} == {key: x.shape for key, x in official.items()}


def test_a_checkpoint_that_does_not_fit_names_what_differs(released):
    _, _, state, _ = released
    names = [name for name, tensor in state.items() if tensor.ndim > 1]
    without = {name: tensor for name, tensor in state.items() if name != names[-2]}
    with pytest.raises(UserError, match=r"not an? (complete )?(ResNet|ViT|PiT|Swin)"):
        official_model(without)
    with pytest.raises(UserError, match=r"blocks\.0\.gamma differ|layer1\.0\.gamma differ"):
        official_model(state | {"layer1.0.gamma" if "layer0.0.weight" in state else "blocks.0.gamma": torch.ones(3)})


def test_a_resnext_and_a_basic_resnet_are_read_from_their_shapes():
    for arguments in (
        {"block": timm.models.resnet.BasicBlock, "layers": (1, 2, 1, 1)},
        {"block": timm.models.resnet.Bottleneck, "layers": (2, 1, 1, 1), "cardinality": 8, "base_width": 16},
    ):
        model = backlight.models.cifar.CifarResNet(**arguments, channels=(16, 32, 48, 64), num_classes=10).eval()
        theirs = {"conv1": "layer0.0", "bn1": "layer0.1", "fc": "classifier.0.dense"}
        state = {}
        for name, tensor in model.state_dict().items():
            module, _, leaf = name.rpartition(".")
            block, _, layer = module.rpartition(".")
            if ".downsample" in module:
                module = module.replace("downsample", "shortcut")
            elif block:
                module = f"{block}.conv{layer[-1]}.{0 if layer.startswith('conv') else 1}"
            state[f"{theirs.get(module, module)}.{leaf}"] = tensor
        loaded = official_model(state)
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(loaded(x), model(x))
        assert loaded.pretrained_cfg["mean"] == (0.4914, 0.4822, 0.4465), "ten classes: CIFAR-10"


@pytest.mark.parametrize(
    ("name", "millions", "giga"),  # paper.md sections 1 and 3.4, whose MACs do not count attention's own products
    [
        ("resnet_50_cifar", 23.71, 1.298),
        ("vit_ti_cifar", 5.40, 1.365 + 12 * 2 * 257**2 * 192 / 1e9),
        ("pit_ti_cifar", 4.58, None),
        ("swin_ti_cifar", 27.56, 1.431),
        ("mixer_ti_cifar", 4.77, None),
        ("alternet_50_cifar", 33.01, 1.510),
        ("preact_resnet_50_cifar", 28.16, 1.369),
    ],
)
def test_parameters_and_macs(name, millions, giga):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.005)
    if giga:
        assert macs(model, (3, 32, 32)) / 1e9 == pytest.approx(giga, abs=0.0015)


def test_macs_equal_a_count_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert macs(model, (3, 4, 4)) == 16 * 8 * 27 + 8 * 16 * 5


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("resnet_50_cifar", "ccc cccc cccccc ccc"),
        ("vit_ti_cifar?depth=2&patch_size=4&class_token=false&global_pool=avg", "amam"),
        ("vit_ti_cifar?depth=2&patch_size=8&num_heads=6", "amam"),
        ("mixer_ti_cifar?num_blocks=1", "mm"),
        ("local_vit_ti_cifar?kernel=5&depth=2", "amam"),
        ("convit_ti_cifar?depth=2", "amam"),
    ],
)
def test_the_units_of_each_network(name, word):
    model = load_model(name, pretrained=False)
    images = torch.randn(1, 3, 32, 32)
    assert spell(units(model, images)) == word
    assert model(images).shape == (1, 100)


# --- the locality ablation


def masked(attention: NeighbourAttention, x: torch.Tensor) -> torch.Tensor:
    """The same attention over all tokens, with a mask outside the neighbourhood."""
    h, w = attention.size
    row, column = torch.arange(h * w) // w, torch.arange(h * w) % w
    radius = attention.kernel // 2
    near = ((row[:, None] - row).abs() <= radius) & ((column[:, None] - column).abs() <= radius)
    b, n, c = x.shape
    q, k, v = attention.qkv(x).reshape(b, n, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    logits = (q @ k.mT * attention.scale).masked_fill(~near, float("-inf"))
    return attention.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("size", [(4, 4), (3, 6)])
def test_attention_in_neighbourhoods_is_masked_global_attention(kernel, size):
    torch.manual_seed(0)
    attention = NeighbourAttention(12, num_heads=3, qkv_bias=True).double()
    attention.kernel, attention.size = kernel, size
    x = torch.randn(2, size[0] * size[1], 12, dtype=torch.float64, requires_grad=True)
    expected = masked(attention, x)
    out = attention(x)
    assert torch.allclose(out, expected, atol=1e-12)
    grads = [torch.autograd.grad(y.square().sum(), [x, *attention.parameters()], retain_graph=True) for y in (out, expected)]
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*grads, strict=True))


def test_a_neighbourhood_as_large_as_the_map_is_global_attention():
    torch.manual_seed(0)
    arguments = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 3}
    local, full = LocalViT(kernel=7, **arguments).eval().double(), LocalViT(kernel=None, **arguments).eval().double()
    assert type(full.blocks[0].attn) is Attention
    full.load_state_dict(local.state_dict())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert torch.allclose(local(x), full(x), atol=1e-12)


def test_the_memory_of_neighbourhoods_is_linear_in_the_number_of_tokens():
    largest = []
    for side in (8, 16, 32):
        attention = NeighbourAttention(4, num_heads=1)
        attention.kernel, attention.size = 3, (side, side)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            attention(torch.randn(1, side * side, 4))
        largest.append(max(sizes))
    assert largest[1] / largest[0] == largest[2] / largest[1] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("kernel=4", "kernel=4: it must be odd"),
        ("kernel=0", "kernel=0: it must be odd"),
        ("class_token=true", "a class token has no neighbourhood"),
    ],
)
def test_even_kernels_and_class_tokens_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        load_model(f"local_vit_ti_cifar?{arguments}", pretrained=False)
