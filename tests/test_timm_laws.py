"""Our registered models keep the laws that timm's own tests ask of timm's models; stock models of timm take the same tests."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from timm.models import FeatureInfo
from torch import fx
from torchvision.models.feature_extraction import NodePathTracer

import backlight.models  # noqa: F401  registers our names
from backlight.models.sources.load import list_names

#: The deeper models have the same modules, and take minutes.
OURS = [name for name in list_names()["ours"] if not name.endswith(("_34", "_101", "_152"))]
STOCK = ["resnetv2_50", "swin_tiny_patch4_window7_224", "pit_ti_224"]
#: The models whose last features are a map, with its axes of height and width.
MAPS = {"swin": (1, 2), "resnet": (2, 3), "resnext": (2, 3), "resnetv2": (2, 3), "alternet": (2, 3), "preact": (2, 3)}


@pytest.fixture(scope="module", params=OURS + STOCK)
def registered(request):
    """A name, a model of it, and images of the size in its configuration."""
    torch.manual_seed(0)
    model = timm.create_model(request.param).eval()
    return request.param, model, torch.randn(2, *model.pretrained_cfg["input_size"])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_features_then_head_is_forward(registered):
    _, model, images = registered
    features = model.forward_features(images)
    assert torch.equal(model.forward_head(features), model(images))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)


def test_the_configuration_tells_the_size_of_the_last_map(registered):
    name, model, images = registered
    features, axes = model.forward_features(images), MAPS.get(name.partition("_")[0])
    if axes is None:  # tokens: no pool_size, as in timm
        assert model.pretrained_cfg.get("pool_size") is None
        assert features.shape[-1] == model.num_features
    else:
        assert tuple(features.shape[axis] for axis in axes) == model.pretrained_cfg["pool_size"]
        assert model.num_features in features.shape


def test_the_configuration_names_the_first_and_the_last_layer(registered):
    _, model, _ = registered
    cfg = model.pretrained_cfg
    classifiers = (cfg["classifier"],) if isinstance(cfg["classifier"], str) else cfg["classifier"]
    assert all(f"{name}.weight" in model.state_dict() for name in (cfg["first_conv"], *classifiers))
    assert model.get_submodule(classifiers[0]) is model.get_classifier()


def test_features_only_gives_maps_of_the_promised_width_and_reduction(registered):
    name, _, images = registered
    model = timm.create_model(name, features_only=True).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(channels) >= 3
    maps = model(images)
    channels_last = name in STOCK and name.startswith("swin")  # ours are (B, C, H, W)
    maps = [m.permute(0, 3, 1, 2) for m in maps] if channels_last else maps
    assert [m.shape[1] for m in maps] == channels
    for m, reduction in zip(maps, reductions, strict=True):
        assert all(abs(side - size / reduction) <= 1 for side, size in zip(m.shape[2:], images.shape[2:], strict=True))


def test_intermediates_are_the_stream_and_the_last_one_leads_to_the_logits(registered):
    _, model, images = registered
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    last, maps = model.forward_intermediates(images)
    assert torch.equal(last, model.forward_features(images))
    assert [m.shape[1] for m in maps] == info.channels()
    assert all(m.shape[2] <= math.ceil(images.shape[2] / r) + 1 for m, r in zip(maps, info.reduction(), strict=True))
    first = model.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)
    assert len(first) == 1
    assert torch.equal(first[0], maps[0])


def test_gradient_checkpointing_does_not_change_the_output(registered):
    _, model, images = registered
    expected, (_, maps) = model(images), model.forward_intermediates(images)
    try:
        model.set_grad_checkpointing(True)
    except AssertionError:
        pytest.skip("timm's class does not support it")
    with torch.enable_grad():
        torch.testing.assert_close(model(images), expected)
        for again, m in zip(model.forward_intermediates(images)[1], maps, strict=True):
            torch.testing.assert_close(again, m)
    model.set_grad_checkpointing(False)


def test_torch_fx_traces_the_model(registered):
    _, model, images = registered
    tracer = NodePathTracer(autowrap_functions=tuple(get_notrace_functions()), leaf_modules=get_notrace_modules())
    traced = fx.GraphModule(model, tracer.trace(model))
    torch.testing.assert_close(traced(images), model(images))


def test_every_parameter_gets_a_gradient(registered):
    name, model, images = registered
    with torch.enable_grad():
        model(images).square().mean().backward()
    assert not [parameter for parameter, p in model.named_parameters() if p.grad is None], name
    model.zero_grad(set_to_none=True)


def test_the_classifier_can_be_replaced_and_left_out(registered):
    name, _, images = registered
    for model in (timm.create_model(name).eval(), timm.create_model(name, num_classes=0).eval()):
        model.reset_classifier(0)
        assert model(images).shape == (2, model.num_features)
        model.reset_classifier(7)
        assert model(images).shape == (2, 7)
        assert model.num_classes == 7
    model.reset_classifier(0, "")
    without = timm.create_model(name, num_classes=0, global_pool="").eval()
    assert model(images).shape == without(images).shape == model.forward_features(images).shape


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        ("swin_ti_cifar", {"depths": (1, 1), "num_heads": (3, 6)}, 2),
        ("resnet_50_cifar", {"layers": (1, 1, 1, 1)}, 5),
        ("vit_ti_cifar", {"depth": 4}, 3),
        ("alternet_18", {"word": "c a"}, 2),
        ("vit_ti_cifar", {"depth": 4, "out_indices": (0, 3)}, 2),
    ],
)
def test_the_default_features_follow_the_depth(name, arguments, count):
    assert len(timm.create_model(name, features_only=True, **arguments).feature_info.channels()) == count


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["preact_resnet_18", "preact_resnet_50_cifar"])
def test_the_convolutional_baseline_can_be_scripted(name):
    model = timm.create_model(name, scriptable=True).eval()
    images = torch.randn(1, *model.pretrained_cfg["input_size"])
    torch.testing.assert_close(torch.jit.script(model)(images), model(images))
