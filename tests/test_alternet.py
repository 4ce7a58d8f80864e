"""AlterNet equals the official one, runs on maps of any size, and behaves as timm's own models do."""

import json
import math
from itertools import chain

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import GOLDEN, golden_state, relative_error, wave
from timm.models import group_parameters, save_for_hf
from torch import nn

from backlight.errors import UserError
from backlight.models.architectures.alternet import AlterNet, BlurDifference, PreActivation, Smoothing
from backlight.models.architectures.window_attention import WindowAttention, from_windows, windows
from backlight.models.sources.paper_checkpoints import official_model

REGISTERED = timm.list_models(module="alternet")
TINY = {"dim": 8, "dim_head": 4, "num_classes": 5}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, and lose much time on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The official models


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("alternet_50_cifar", "ccc ccca ccccca caca"),
        ("alternet_50_imagenet", "ccc ccca cacaca caca"),
        ("preact_resnet_50_cifar", "ccc cccc cccccc cccc"),
    ],
)
def test_logits_are_those_of_the_official_model(name, word):
    reference = json.loads((GOLDEN / f"{name}.json").read_text())
    model = official_model(golden_state(reference))
    images, logits = wave(reference["input_shape"], 0).float(), torch.tensor(reference["logits"], dtype=torch.float64)
    assert model.word == word
    assert parameters(model) == reference["parameters"]
    with torch.inference_mode():
        assert relative_error(model(images).double(), logits) < 1e-4
        assert relative_error(model.double()(images.double()), logits) < 1e-6


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("alternet_18", 9.50),
        ("alternet_34", 22.36),
        ("alternet_50", 34.06),
        ("alternet_101", 53.05),
        ("alternet_152", 68.70),
        ("alternet_50_cifar", 33.01),
        ("preact_resnet_50", 28.16),
        ("preact_resnet_50_cifar", 28.16),
    ],
)
def test_parameter_counts_are_the_papers(name, millions):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=100, stem="cifar", window=4)
    assert round(parameters(model) / 1e6, 2) == millions


def test_dim_head_40_makes_attention_as_large_as_the_bottleneck_it_replaces():
    with torch.device("meta"):
        official, matched = (AlterNet("c cca", dim_head=dim_head).stages[1] for dim_head in (64, 40))
    assert parameters(official[2]) / parameters(official[1]) == pytest.approx(1.47, abs=0.01)
    assert parameters(matched[2]) / parameters(matched[1]) == pytest.approx(1, abs=0.02)


# Any word, any map

words = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(words, st.sampled_from(["basic", "bottleneck"]), st.integers(5, 30), st.integers(5, 30), st.integers(1, 8))
def test_any_word_runs_on_a_map_of_any_size(word, block, h, w, window):
    model = AlterNet(word, block=block, stem="cifar", window=window, **TINY).eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, 3, h, w))
        streams = model.forward_intermediates(torch.randn(2, 3, h, w), intermediates_only=True)
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    for stream, info in zip(streams, model.feature_info, strict=True):
        reduction = info["reduction"]
        assert stream.shape == (2, info["num_chs"], math.ceil(h / reduction), math.ceil(w / reduction))
    assert f"'{word}'" in repr(model)


def test_the_imagenet_stem_takes_maps_of_odd_size():
    assert AlterNet("cb ca", **TINY).eval()(torch.zeros(1, 3, 30, 26)).shape == (1, 5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.booleans())
def test_window_attention_is_global_attention_masked_to_the_window(h, w, window, bias_per_head):
    """The reference: every pixel with every other, in loops, without windows, padding or fused attention."""
    torch.manual_seed(h * 100 + w * 10 + window)
    attend = WindowAttention(3, 4, heads=2, dim_head=5, window=window, bias_per_head=bias_per_head).double()
    x = torch.randn(2, 3, h, w, dtype=torch.float64)
    q, k, v = attend.qkv(x.flatten(2).mT).mT.unflatten(1, (3, 2, 5)).unbind(1)  # (B, heads, d, N)
    logits = torch.einsum("bhdi,bhdj->bhij", q, k) / math.sqrt(5)
    pixels = [(row, column) for row in range(h) for column in range(w)]
    for i, (row, column) in enumerate(pixels):
        for j, (row_, column_) in enumerate(pixels):
            same = row // window == row_ // window and column // window == column_ // window
            table = attend.bias_table[:, row_ - row + window - 1, column_ - column + window - 1] if same else -torch.inf
            logits[:, :, i, j] += table
    out = attend.out(torch.einsum("bhij,bhdj->bihd", logits.softmax(-1), v).flatten(2))
    torch.testing.assert_close(attend(x), out.mT.unflatten(2, (h, w)))


def test_from_windows_is_the_inverse_of_windows():
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(from_windows(windows(x, 2, 3), 2, 3, 4, 6), x)
    assert torch.equal(windows(x, 2, 3)[0, 4], x[0, :, 1, 1])  # the second row of the first window


def test_attention_can_begin_a_stage():
    model = AlterNet("a a", stem="cifar", window=3, **TINY)
    unit = model.stages[1][0]
    assert unit.shortcut.stride == unit.branch.conv.stride == (2, 2)
    stem, first, second = (model.forward_intermediates(torch.randn(2, 3, 15, 11))[1], *model.stages)
    assert [tuple(stream.shape[2:]) for stream in stem] == [(15, 11), (8, 6)]
    model(torch.randn(2, 3, 15, 11)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for stage in (first, second) for p in stage.parameters())


def test_every_block_returns_skip_plus_branch():
    model = AlterNet("cab cab", stem="cifar", window=3, **TINY).eval()
    x = model.stem(torch.randn(2, 3, 9, 9))
    for unit in (unit for stage in model.stages for unit in stage):
        if isinstance(unit, PreActivation):
            activated = unit.act(unit.norm(x))
            skip = x if unit.shortcut is None else unit.shortcut(activated)
        else:
            assert isinstance(unit, Smoothing)
            activated = skip = unit.shortcut(x)
        expected, x = skip + unit.branch(activated), unit(x)
        assert torch.equal(x, expected)


def test_the_response_of_the_blur_to_a_wave_is_half_of_one_plus_its_cosine():
    columns = torch.arange(32, dtype=torch.float64)
    for cycles in (0, 1, 4, 8, 16):
        frequency = 2 * math.pi * cycles / 32
        x = torch.cos(frequency * columns).expand(1, 2, 5, 32)
        blurred = x + BlurDifference().double()(x)
        inner = slice(1, -1)
        torch.testing.assert_close(blurred[..., inner], x[..., inner] * (1 + math.cos(frequency)) / 2)
    constant = torch.full((1, 2, 4, 4), 3.0)
    assert torch.equal(BlurDifference()(constant), torch.zeros_like(constant))  # also at the borders


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype):
    torch.manual_seed(0)
    model = AlterNet("ca cab", stem="cifar", window=3, **TINY).eval()
    images = torch.randn(4, 3, 10, 10)
    with torch.inference_mode():
        exact = model(images)
        with torch.autocast("cpu", dtype):
            mixed = model(images)
        half = model.to(dtype)(images.to(dtype))
    assert half.dtype == mixed.dtype == dtype
    assert relative_error(half.float(), exact) < 0.05
    assert relative_error(mixed.float(), exact) < 0.05


def test_trains_in_bfloat16():
    model = AlterNet("ca cb", stem="cifar", window=3, drop_path_rate=0.2, drop_rate=0.1, **TINY).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 10, 10)), torch.arange(4))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_rate_of_drop_path_grows_linearly_over_the_units():
    model = AlterNet("cc ab", drop_path_rate=0.3, **TINY)
    rates = [getattr(unit.drop_path, "drop_prob", 0.0) for stage in model.stages for unit in stage]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"word": "cc cx"}, "'cc cx' has ['x']"),
        ({"word": "CCA"}, "'CCA' has ['A', 'C']"),
        ({"word": " "}, "at least one letter"),
        ({"block": "wide"}, "basic or bottleneck"),
        ({"stem": "patch"}, "imagenet or cifar"),
        ({"window": 0}, "window=0"),
        ({"dim": 8.5}, "dim=8.5"),
        ({"heads": (3, 0)}, "heads=(3, 0)"),
        ({"heads": (3, 6, 12)}, "too few for the 4 stages"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(UserError) as refused:
        AlterNet(**arguments)
    assert message in str(refused.value)


# As timm's own models


def test_all_are_registered():
    sizes = ("18", "34", "50", "50_cifar", "101", "152")
    assert [f"{family}_{size}" for family in ("alternet", "preact_resnet") for size in sizes] == REGISTERED


@pytest.mark.parametrize("name", ["alternet_18", "alternet_50_cifar", "preact_resnet_50"])
def test_timm_conventions(name):
    model = timm.create_model(name, in_chans=1, drop_path_rate=0.1, **TINY).eval()
    images = torch.randn(2, 1, 40, 40)
    cfg = model.pretrained_cfg
    assert model.get_submodule(cfg["first_conv"]).in_channels == 1
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    with torch.inference_mode():
        maps = model.forward_features(images)
        assert torch.equal(model.forward_head(maps), model(images))
        pooled = model.forward_head(maps, pre_logits=True)
        assert torch.equal(pooled, maps.mean((2, 3)))
        last, streams = model.forward_intermediates(images, norm=True)
        assert torch.equal(last, maps)
        assert torch.equal(streams[-1], maps)
        (second,) = model.forward_intermediates(images, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(second, streams[1])
    assert set(model.no_weight_decay()) == {n for n, _ in model.named_parameters() if "bias_table" in n}
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse))
        assert sorted(chain(*groups.values())) == sorted(name for name, _ in model.named_parameters())
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), pooled)
    assert model.prune_intermediate_layers(1) == [3]
    assert model.prune_intermediate_layers([1]) == [1]
    torch.testing.assert_close(model(images), second)


def test_features_only():
    arguments = {"dim": 8, "dim_head": 4, "features_only": True}
    model = timm.create_model("alternet_50", out_indices=(1, 3), **arguments).eval()
    assert model.feature_info.channels() == [64, 256]
    assert model.feature_info.reduction() == [8, 32]
    assert [tuple(m.shape) for m in model(torch.zeros(1, 3, 64, 96))] == [(1, 64, 8, 12), (1, 256, 2, 3)]
    two_stages = timm.create_model("alternet_50", word="cc ca", **arguments)
    assert [m.shape[1] for m in two_stages(torch.zeros(1, 3, 32, 32))] == [32, 64]


def test_checkpointing_changes_no_gradient():
    model = AlterNet("ca ca", stem="cifar", window=3, **TINY)
    images, gradients = torch.randn(2, 3, 8, 8), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_local_dir_round_trip_is_bit_equal(tmp_path):
    model = timm.create_model("alternet_50_cifar", window=3, **TINY).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert loaded.word == model.word
    assert torch.equal(loaded(images), model(images))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
