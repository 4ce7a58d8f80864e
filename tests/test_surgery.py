"""After surgery the outputs are the model's, bit for bit; each later state equals a model that is built in another way."""

import copy
import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import scipy.ndimage
import torch
import torchvision
from conftest import TINY
from timm.layers import BatchNormAct2d
from timm.models.convnext import ConvNeXt
from timm.models.regnet import RegNet, RegNetCfg
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import backlight
from backlight.cli.main import main
from backlight.errors import UserError
from backlight.model_names.saved import describe
from backlight.models.architectures.alternet import AlterNet, attention_branch
from backlight.models.architectures.window_attention import WindowAttention
from backlight.models.sources.load import load_model
from backlight.models.sources.saved import save_model
from backlight.models.surgery.hybridize import drop_original, gates, hybridize, set_gates, smooth, surgery_of, with_surgery
from backlight.models.surgery.modules import Blend, Placeholder, from_grid
from backlight.records import encoded
from backlight.tracing import hooks
from backlight.tracing.layout import Layout, grid

WORD = "word:cc cc?block=basic&dim=8&stem=cifar&num_classes=5&img_size=16"
CHANNELS = {"channels": (8, 16, 16, 16), "stem_width": 8, "num_classes": 4}


def torchvision_resnet():
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)
    model.layer3, model.layer4 = nn.Identity(), nn.Identity()
    model.fc = nn.Linear(128, 4)
    return model


NETWORKS = {
    "resnet": lambda: ResNet(BasicBlock, [1, 2, 1, 1], **CHANNELS),
    "resnet with stochastic depth and squeezing": lambda: ResNet(
        Bottleneck, [1, 2, 1, 1], drop_path_rate=0.2, block_args={"attn_layer": "se"}, **CHANNELS
    ),
    "resnext": lambda: ResNet(Bottleneck, [1, 2, 1, 1], cardinality=4, base_width=16, **CHANNELS),
    "pre-activation": lambda: ResNetV2(
        layers=[1, 2, 1, 1], channels=(16, 32, 32, 32), stem_chs=8, num_classes=4, norm_layer=BatchNormAct2d
    ),
    "convnext": lambda: ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 16, 16, 16), num_classes=4),
    "regnet": lambda: RegNet(RegNetCfg(depth=6, w0=8, wa=8.0, wm=2.0, group_size=4, se_ratio=0.25), num_classes=4),
    "torchvision resnet": torchvision_resnet,
    "torchvision convnext": lambda: torchvision.models.convnext.ConvNeXt(
        [torchvision.models.convnext.CNBlockConfig(8, 16, 1), torchvision.models.convnext.CNBlockConfig(16, None, 2)],
        num_classes=4,
    ),
    "alternet": lambda: alternating("cc ca"),
}  # fmt: skip
vit = partial(VisionTransformer, img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=4)
TRANSFORMERS = {
    "vit": vit,
    "swin": lambda: SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2), num_classes=4
    ),
    "torchvision vit": lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4),
    "alternet": lambda: alternating("ca ca"),
}


def alternating(word, **arguments):
    return AlterNet(word, block="basic", dim=8, dim_head=8, heads=(1, 2), num_classes=4, stem="cifar", **arguments)


def made(build):
    """A model whose batch norms have random statistics and scales, in eval mode."""
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return model.eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES = noise(2, 3, 32, 32)


def word(model, images=IMAGES):
    return backlight.spell(backlight.units(model, images))


def indices(model, kind, images=IMAGES):
    return [unit.index for unit in backlight.units(model, images) if unit.kind == kind]


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def outputs(model, images=IMAGES):
    with torch.no_grad():
        return model(images)


def blurred(maps):
    """The binomial blur of maps (B, C, h, w), borders replicated, as scipy computes it."""
    kernel = torch.outer(torch.tensor([0.25, 0.5, 0.25]), torch.tensor([0.25, 0.5, 0.25]))[None, None].double().numpy()
    return torch.from_numpy(scipy.ndimage.convolve(maps.double().numpy(), kernel, mode="nearest"))


# --- closed gates, and dropped originals


@pytest.mark.parametrize("name", NETWORKS)
def test_a_hybrid_has_the_models_outputs_and_loses_its_convolutions_when_they_are_dropped(name):
    model, images, larger = made(NETWORKS[name]).double(), IMAGES.double(), noise(1, 3, 40, 56).double()
    before, state = word(model, images), copy.deepcopy(model.state_dict())
    selected = indices(model, "conv", images)[:2]
    hybrid = hybridize(model, images, selected, dim_head=8)
    assert torch.equal(outputs(hybrid, images), outputs(model, images))
    assert torch.equal(outputs(hybrid, larger), outputs(model, larger))
    assert list(state) == list(model.state_dict()), "the model itself was changed"
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert not any(isinstance(module, Blend) for module in model.modules())

    expected = before.replace("c", "a", len(selected))
    assert word(hybrid, images) == expected
    dropped = drop_original(hybrid, images)
    assert word(dropped, images) == expected
    assert not gates(dropped)
    assert len(gates(hybrid)) == len(selected), "the hybrid itself was changed"
    units = backlight.units(dropped, images)
    assert all(silent is not False for _, silent in hooks.check(dropped, images, units))
    set_gates(hybrid, 1)
    torch.testing.assert_close(outputs(dropped, images), outputs(hybrid, images))
    dropped.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in dropped.parameters()), "an unused parameter was left"


@pytest.mark.parametrize(("to", "name"), [*(("convolution", name) for name in TRANSFORMERS), ("blur", "swin")])
def test_attention_becomes_convolution_or_blur(name, to):
    model = made(TRANSFORMERS[name])
    hybrid = hybridize(model, IMAGES, indices(model, "attention"), to=to)
    assert torch.equal(outputs(hybrid), outputs(model))
    dropped = drop_original(hybrid, IMAGES)
    assert word(dropped) == word(model).replace("a", to[0])
    set_gates(hybrid, 1)
    torch.testing.assert_close(outputs(dropped), outputs(hybrid))
    assert size(dropped) < size(model)
    dropped.train()(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in dropped.parameters())


def test_a_hybrid_keeps_the_training_mode_and_its_random_numbers():
    model = made(NETWORKS["resnet with stochastic depth and squeezing"]).train()
    hybrid = hybridize(model, IMAGES, [1, 2], dim_head=8)
    assert all(module.training for module in hybrid.modules())
    torch.manual_seed(1)
    expected = model(IMAGES)
    torch.manual_seed(1)
    assert torch.equal(hybrid(IMAGES), expected)


# --- gates between 0 and 1


def test_the_gate_blends_the_branches():
    model = made(NETWORKS["alternet"]).double()
    images = IMAGES.double()
    hybrid = hybridize(model, images, [1], dim_head=8)
    blend = hybrid.stages[0][1].branch
    set_gates(hybrid, 0.3)
    x = noise(2, 8, 32, 32).double()
    by_hand = 0.7 * model.stages[0][1].branch(x) + 0.3 * blend.replacement(x)
    torch.testing.assert_close(blend(x), by_hand, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_the_gate_is_the_finite_difference():
    model = made(NETWORKS["resnet"]).double()
    hybrid = hybridize(model, IMAGES.double(), [1], dim_head=8)
    (gate,) = gates(hybrid).values()
    (slope,) = torch.autograd.grad(hybrid(IMAGES.double()).square().sum(), gate)
    sums = []
    for value in (1e-5, -1e-5):
        set_gates(hybrid, value)
        sums.append(outputs(hybrid, IMAGES.double()).square().sum())
    assert slope != 0
    torch.testing.assert_close(slope, (sums[0] - sums[1]) / 2e-5, rtol=1e-6, atol=1e-9)


def test_one_step_moves_the_gate_and_the_next_one_the_attention():
    images = IMAGES.double()  # in float32 some second steps are below the precision
    hybrid = hybridize(made(NETWORKS["resnet"]).double(), images, [2], dim_head=8).train()
    (blend,) = (module for module in hybrid.modules() if isinstance(module, Blend))
    start = copy.deepcopy(blend.state_dict())
    optimizer = torch.optim.SGD(hybrid.parameters(), lr=0.1)

    def moved():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(hybrid(images), torch.tensor([0, 1])).backward()
        optimizer.step()
        return {name for name, parameter in blend.named_parameters() if not torch.equal(parameter, start[name])}

    first, second = moved(), moved()
    assert "gate" in first
    assert not any(name.startswith("replacement") for name in first)
    assert {f"replacement.{name}" for name, _ in blend.replacement.named_parameters()} <= second


# --- the same model built in another way


def test_surgery_turns_the_baseline_into_alternet():
    baseline = made(lambda: alternating("cc cc"))
    dropped = drop_original(hybridize(baseline, IMAGES, [1, 3], dim_head=8, heads=2), IMAGES)
    torch.manual_seed(0)
    written = AlterNet("ca ca", block="basic", dim=8, dim_head=8, heads=2, num_classes=4, stem="cifar").eval()
    weights = {name.replace(".branch.replacement.", ".branch."): value for name, value in dropped.state_dict().items()}
    written.load_state_dict(weights)  # strict: no name is missing or unexpected
    for stage in written.stages:
        stage[1].act = nn.ReLU()  # the block around the branch stays as it was
    torch.testing.assert_close(outputs(dropped), outputs(written))


def test_a_dropped_block_of_a_resnet_is_its_skip_plus_attention():
    dropped = drop_original(hybridize(made(NETWORKS["resnet"]), IMAGES, [1], dim_head=8), IMAGES)
    block = dropped.layer2[0].module
    (attention,) = (module.replacement for module in block.modules() if isinstance(module, Blend))
    x = noise(2, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(dropped.layer2[0](x), (block.downsample(x) + attention(x)).relu())


def test_dropping_removes_the_cost_of_the_convolutions():
    def flops(module, x):
        with FlopCounterMode(display=False) as counter:
            outputs(module, x)
        return counter.get_total_flops()

    model = made(NETWORKS["resnet"])
    dropped = drop_original(hybridize(model, IMAGES, [1], dim_head=8), IMAGES)
    (attention,) = (module.replacement for module in dropped.modules() if isinstance(module, Blend))
    old, x = model.layer2[0], noise(2, 8, 8, 8)
    branch = nn.Sequential(old.conv1, old.bn1, old.act1, old.conv2, old.bn2)
    assert flops(dropped, IMAGES) == flops(model, IMAGES) - flops(branch, x) + flops(attention, x)
    assert size(dropped) == size(model) - size(branch) + size(attention)
    names = {name for name, module in dropped.layer2[0].module.named_modules() if isinstance(module, Placeholder)}
    assert {"conv1", "bn1", "act1", "conv2"} <= names


@pytest.mark.parametrize("name", ["resnet", "resnext", "convnext", "alternet"])
def test_matched_attention_has_as_many_parameters(name):
    model = made(NETWORKS[name])
    index = indices(model, "conv")[1]
    dropped = drop_original(hybridize(model, IMAGES, [index], match_parameters=True, window=4), IMAGES)
    (blend,) = (module for module in dropped.modules() if isinstance(module, Blend))
    old = size(model) - (size(dropped) - size(blend))
    assert abs(size(blend) / old - 1) < 0.03


def test_matched_attention_of_a_bottleneck_keeps_the_width():
    model = AlterNet("cc", dim=64, stem="cifar", num_classes=4)
    hybrid = hybridize(model, noise(1, 3, 8, 8), [1], heads=3, match_parameters=True, window=7)
    blend = hybrid.stages[0][1].branch
    assert size(blend.replacement) == pytest.approx(size(blend.original), rel=0.01)
    assert blend.replacement.conv.out_channels == 64
    assert blend.replacement.attn.dim_head == pytest.approx(40, abs=1)  # docs/models.md says 40


def test_the_default_attention_is_alternets():
    hybrid = hybridize(AlterNet("cc c", dim=64, stem="cifar", num_classes=4), noise(1, 3, 8, 8), [1, 2])
    for s, heads in enumerate((3, 6)):
        attention = hybrid.stages[s][-1].branch.replacement
        width = 64 * 2**s
        official = attention_branch(256, width, 1 + s, WindowAttention(width, 4 * width, heads=heads))
        assert {n: p.shape for n, p in attention.named_parameters()} == {n: p.shape for n, p in official.named_parameters()}


@pytest.mark.parametrize(("name", "index"), [("torchvision resnet", 0), ("alternet", 3), ("vit", 2)])
def test_a_blur_that_replaces_a_branch_blurs_the_stream(name, index):
    model = made((NETWORKS | TRANSFORMERS)[name])  # a blurred rectified stream is not changed by the rectifier
    dropped = drop_original(hybridize(model, IMAGES, [index], to="blur"), IMAGES)
    before, after = streams_around(dropped, backlight.units(dropped, IMAGES)[index])
    torch.testing.assert_close(after.double(), blurred(before), rtol=1e-5, atol=1e-5)


def streams_around(model, unit):
    """The stream before and after a unit, as maps."""
    maps, taps = {}, (unit.before, unit.after)

    def store(i, activation):
        maps[i] = grid(activation, taps[i].layout).clone()

    with hooks.reading(model, taps, store):
        outputs(model)
    return maps[0], maps[1]


def test_stochastic_depth_drops_the_new_branch_too():
    model = made(NETWORKS["resnet with stochastic depth and squeezing"])
    hybrid = hybridize(model, IMAGES, [2], dim_head=8)
    set_gates(hybrid, 1)
    for one in (hybrid, drop_original(hybrid, IMAGES)):
        (depth,) = (module for name, module in one.layer2[1].named_modules() if type(module).__name__ == "DropPath")
        depth.drop_prob = 1 - 1e-12
        depth.train()
        x = noise(2, 64, 4, 4)
        with torch.no_grad():
            assert torch.equal(one.layer2[1](x), x.relu())


@pytest.mark.parametrize("name", ["resnet", "regnet", "convnext"])
def test_smoothing_blurs_the_end_of_each_stage(name):
    model = made(NETWORKS[name])
    units = backlight.units(model, IMAGES)
    smoothed = smooth(model, IMAGES)
    assert word(smoothed) == " ".join(f"{letters}b" for letters in word(model).split())
    stream, after = (backlight.feature_maps(m, IMAGES, backlight.units(m, IMAGES)) for m in (model, smoothed))
    end = next(unit.index for unit in units if units[unit.index + 1].stage > 0)
    torch.testing.assert_close(after[end], stream[end])
    torch.testing.assert_close(after[end + 1].double(), blurred(stream[end]), rtol=1e-5, atol=1e-6)
    set_gates(smoothed, 0)
    assert torch.equal(outputs(smoothed), outputs(model))


def test_smoothing_of_an_alternet_is_the_word_with_b():
    smoothed = smooth(made(lambda: alternating("cc ca")), IMAGES)
    written = alternating("ccb cab").eval()
    written.load_state_dict(smoothed.state_dict(), strict=False)
    torch.testing.assert_close(outputs(smoothed), outputs(written))


def test_smoothing_after_given_units_starts_with_the_given_gate():
    model = made(NETWORKS["resnet"])
    smoothed = smooth(model, IMAGES, after=[2, 1], gate=0)
    assert word(smoothed) == "c cbcb c c"
    assert torch.equal(outputs(smoothed), outputs(model))


def test_tokens_are_smoothed_as_a_map_and_the_class_token_does_not_change():
    model = made(vit)
    smoothed = smooth(model, IMAGES)
    assert word(smoothed) == "amamb"
    model.norm = smoothed.norm = nn.Identity()
    with torch.no_grad():
        before, after = model.forward_features(IMAGES), smoothed.forward_features(IMAGES)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    maps = (tokens[:, 1:].mT.reshape(2, 16, 4, 4) for tokens in (before, after))
    torch.testing.assert_close(blurred(next(maps)).float(), next(maps))


def test_a_convolution_of_tokens_acts_on_the_map_and_adds_nothing_to_the_class_token():
    hybrid = hybridize(made(vit), IMAGES, [0], to="convolution")
    replacement = hybrid.blocks[0].attn.replacement
    tokens = noise(2, 17, 16)
    with torch.no_grad():
        out = replacement(tokens)
        maps = replacement.branch(tokens[:, 1:].mT.reshape(2, 16, 4, 4))
    assert torch.equal(out[:, 0], torch.zeros(2, 16))
    torch.testing.assert_close(out[:, 1:].mT.reshape(2, 16, 4, 4), maps)
    with pytest.raises(UserError, match="17 tokens, not 26"):
        replacement(noise(2, 26, 16))


@pytest.mark.parametrize("order", ["channels first", "channels last", "tokens", "channels first tokens"])
def test_from_grid_is_the_inverse_of_grid_in_every_layout(order):
    x = noise(2, 4, 3, 5)
    layout = Layout(order, (3, 5), prefix=1 if "tokens" in order else 0)
    assert torch.equal(grid(from_grid(x, layout, 18), layout), x)


# --- a hybrid compiles, exports, is copied and trains as any model


def partly_open(name="resnet", units=(1, 2)):
    hybrid = smooth(hybridize(made(NETWORKS[name]), IMAGES, units, dim_head=8), IMAGES, gate=0.5)
    set_gates(hybrid, 0.3)
    return hybrid


def test_a_hybrid_compiles_as_one_graph_and_exports():
    hybrid = partly_open("torchvision resnet", [0, 1])
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(hybrid, fullgraph=True, backend="eager")(IMAGES)
    torch.testing.assert_close(compiled, outputs(hybrid))
    for model in (hybrid, drop_original(hybrid, IMAGES)):
        torch.testing.assert_close(torch.export.export(model, (IMAGES,)).module()(IMAGES), outputs(model))


def test_a_copy_is_independent():
    hybrid = partly_open()
    expected = outputs(hybrid)
    other = copy.deepcopy(hybrid)
    set_gates(other, 1)
    assert torch.equal(outputs(hybrid), expected)
    assert not torch.equal(outputs(other), expected)
    other.load_state_dict(hybrid.state_dict())
    assert torch.equal(outputs(other), expected)
    stored = [{id(m.stored) for m in one.modules() if getattr(m, "stored", None)} for one in (hybrid, other)]
    assert len(stored[0]) == 2
    assert not stored[0] & stored[1]


def test_a_hybrid_runs_in_half_precision_and_under_autocast():
    hybrid = partly_open()
    expected = outputs(hybrid)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(outputs(hybrid).float(), expected, rtol=0.1, atol=0.02)
    torch.testing.assert_close(outputs(hybrid.bfloat16(), IMAGES.bfloat16()).float(), expected, rtol=0.1, atol=0.02)
    assert hybridize(hybrid, IMAGES.bfloat16(), [5], dim_head=8)(IMAGES.bfloat16()).dtype == torch.bfloat16


def test_checkpointed_gradients_are_the_same():
    hybrid = partly_open().train()
    plain, checkpointed = copy.deepcopy(hybrid), copy.deepcopy(hybrid)
    checkpointed.set_grad_checkpointing()
    for model in (plain, checkpointed):
        model(IMAGES).square().sum().backward()
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_lesions_work_on_the_units_of_a_hybrid():
    hybrid = partly_open()
    units = backlight.units(hybrid, IMAGES)
    unit = next(unit for unit in units if unit.kind == "attention" and unit.identity)
    stream = backlight.feature_maps(hybrid, IMAGES, units)
    with backlight.without(hybrid, unit):
        cut = backlight.feature_maps(hybrid, IMAGES, units)
    before = next(u for u in units if u.after == unit.before)
    assert torch.equal(cut[unit.index], stream[before.index])
    assert not torch.equal(cut[unit.index], stream[unit.index])


def test_the_new_weights_come_from_the_seed_and_the_callers_generator_is_not_used():
    model = made(NETWORKS["resnet"])
    torch.manual_seed(7)
    state = torch.get_rng_state()
    weights = [nn.utils.parameters_to_vector(hybridize(model, IMAGES, [1], dim_head=8, seed=s).parameters()) for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# --- repeated surgery, and saved models


def test_operations_accumulate():
    model = made(NETWORKS["resnet"])
    once = drop_original(hybridize(model, IMAGES, [1], dim_head=8), IMAGES)
    twice = hybridize(once, IMAGES, [2], dim_head=8)
    assert torch.equal(outputs(twice), outputs(once))
    with pytest.raises(UserError, match=r"unit 2 .* has a replacement already"):
        hybridize(twice, IMAGES, [2], to="convolution")
    back = hybridize(once, IMAGES, [1], to="convolution")
    assert torch.equal(outputs(back), outputs(once))
    assert word(drop_original(back, IMAGES)) == "c cc c c"
    assert [operation["operation"] for operation in surgery_of(back)] == ["hybridize", "drop_original", "hybridize"]
    assert surgery_of(model) == []


def test_a_hybrid_is_saved_and_loaded(tmp_path):
    images = noise(2, 3, 16, 16)
    model = load_model(WORD, pretrained=False, seed=3)
    once = hybridize(model, images, [1, 2], dim_head=8, window=4)
    set_gates(once, 0.4)
    save_model(once, tmp_path / "once", spec=WORD, num_classes=5)
    again = load_model(str(tmp_path / "once"))
    assert torch.equal(outputs(again, images), outputs(once, images))
    assert surgery_of(again) == surgery_of(once)

    twice = smooth(drop_original(again, images), images)
    twice = hybridize(twice, images, [0], dim_head=8)
    save_model(twice, tmp_path / "twice", spec=str(tmp_path / "once"), num_classes=5)
    described = json.loads((tmp_path / "twice" / "model.json").read_text())
    assert described["model"] == WORD
    assert len(described["surgery"]) == 4
    loaded = load_model(str(tmp_path / "twice"))
    assert torch.equal(outputs(loaded, images), outputs(twice, images))
    assert word(loaded, images) == "aab acb"

    random = load_model(str(tmp_path / "twice"), pretrained=False, seed=5)
    assert random.state_dict().keys() == twice.state_dict().keys()
    assert not torch.equal(outputs(random, images), outputs(twice, images))
    other = load_model(str(tmp_path / "twice"), pretrained=False, seed=6)
    weight = next(name for name in random.state_dict() if "replacement" in name and name.endswith("qkv.weight"))
    assert not torch.equal(random.state_dict()[weight], other.state_dict()[weight])
    assert load_model(str(tmp_path / "twice"), num_classes=9)(images).shape == (2, 9)


@pytest.mark.parametrize(
    ("operation", "sentence"),
    [
        ({"operation": "exec"}, "there is no operation 'exec'"),
        ({"operation": "smoth", "images": [3, 16, 16]}, "did you mean smooth"),
        ({"operation": "drop_original"}, "images=None must be"),
        ({"operation": "hybridize", "units": [9], "images": [3, 16, 16]}, "there is no unit 9"),
        ({"operation": "hybridize", "units": "1", "images": [3, 16, 16]}, "must be a list of unit indices"),
        ({"operation": "hybridize", "units": [1], "knife": 2, "images": [3, 16, 16]}, "knife"),
        ({"operation": "smooth", "gate": "wide", "images": [3, 16, 16]}, "gate='wide'"),
        ("hybridize", "not a list of operations"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(tmp_path, operation, sentence):
    save_model(load_model(WORD, pretrained=False), tmp_path, spec=WORD, num_classes=5)
    path = tmp_path / "model.json"
    path.write_bytes(encoded(replace(describe(tmp_path), surgery=[operation])))
    with pytest.raises(UserError, match=r"model\.json: ") as error:
        load_model(str(tmp_path))
    assert sentence in str(error.value)


def test_the_page_about_surgery_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "surgery.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec("\n".join(blocks), names)
    assert word(names["hybrid"]) == "cca cca"
    assert list(gates(names["loaded"])) == ["stages.0.2.branch.gate", "stages.1.2.branch.gate"]


# --- refusals


class Mixed(nn.Module):
    """A block that adds two branches, and one whose branch no module returns."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.kernel = nn.Parameter(torch.randn(3, 3, 3, 3))

    def forward(self, x):
        x = self.stem(x)
        x = x + self.one(x) + self.two(x)
        return (x + torch.tanh(torch.nn.functional.conv2d(x, self.kernel, padding=1))).mean((2, 3))


@pytest.mark.parametrize(
    ("build", "units", "settings", "sentence"),
    [
        ("alternet", [9], {}, "there is no unit 9: the model has units 0 to 3"),
        ("alternet", [-1], {}, "there is no unit -1"),
        ("alternet", [3], {}, r"unit 3 \(stages.1.1.branch\) is of kind attention: only conv becomes attention"),
        ("alternet", [0], {"to": "convolution"}, "is of kind conv: only attention becomes convolution"),
        ("alternet", [2], {"to": "blur"}, "changes the stream's shape"),
        ("alternet", [0], {"to": "atention"}, "did you mean attention"),
        ("alternet", [0], {"heads": 0}, "heads=0"),
        ("alternet", [0], {"window": 2.5}, "window=2.5"),
        ("alternet", [3], {"to": "blur", "match_parameters": True}, "to='blur' makes none"),
        ("alternet", [0, 0], {}, "listed twice"),
        ("alternet", [], {}, "must be a list of unit indices"),
        ("alternet", [True], {}, "must be an integer"),
        ("plain", [0], {}, "no residual units"),
        ("mixed", [0], {}, "unit 0 .* cannot be replaced: no module that runs once returns its branch"),
        ("mixed", [1], {}, "unit 1 .* cannot be replaced: no module that runs once returns its branch"),
    ],
)
def test_units_that_cannot_be_replaced_and_bad_settings_are_refused(build, units, settings, sentence):
    plain = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # noqa: E731
    model = made({"plain": plain, "mixed": Mixed, **NETWORKS}[build])
    with pytest.raises(UserError, match=sentence):
        hybridize(model, IMAGES, units, **settings)


def test_missing_branches_gates_and_maps_are_refused():
    model = made(NETWORKS["alternet"])
    with pytest.raises(UserError, match="no branches to drop"):
        drop_original(model, IMAGES)
    with pytest.raises(UserError, match="no gates"):
        set_gates(model, 1)
    with pytest.raises(UserError, match=r"stream after unit 0 .* cannot be smoothed"):
        smooth(made(vit), IMAGES, after=[0])
    with pytest.raises(UserError, match="gate=nan"):
        smooth(model, IMAGES, gate=math.nan)
    with pytest.raises(UserError, match="there is no unit 4"):
        smooth(model, IMAGES, after=[4])
    with pytest.raises(UserError, match="not a list of operations"):
        with_surgery(model, {"operation": "smooth"})


# --- the command line


@pytest.fixture
def run(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def test_the_command_saves_a_folder_that_loads(run, tmp_path):
    out = tmp_path / "hybrid"
    command = partial(run, "hybridize", TINY_CNN, "--no-pretrained", "--out", out)
    code, printed, _ = command("--units", "1,2", "--window", 4, "--heads", 1, "--drop", "--smooth")
    assert code == 0
    before, after = printed.splitlines()[1:]
    assert before.endswith(f" c cc    {size(load_model(TINY_CNN, pretrained=False))}")
    assert after.endswith(f" cb aab  {size(load_model(str(out)))}")
    assert load_model(str(out))(noise(1, 1, 28, 28)).shape == (1, 10)
    code, printed, _ = run("units", out, "--check")
    assert code == 0
    assert printed.splitlines()[0].endswith(": cb aab")
    assert "CHANGED" not in printed

    code, _, err = command("--units", "1")
    assert code == 2
    assert "--overwrite" in err
    code, printed, _ = command("--units", "1", "--overwrite")
    assert code == 0
    assert " c ac " in printed
    code, printed, _ = run("hybridize", out, "--units", "0", "--to", "blur", "--out", tmp_path / "second")
    assert code == 0
    assert len(gates(load_model(str(tmp_path / "second")))) == 2


TINY_CNN = TINY.replace("cc c", "c cc")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--units", "7"], "there is no unit 7: the model has units 0 to 2"),
        (["--units", "1;2"], "no list of unit numbers"),
        (["--units", "1", "--to", "atention"], "did you mean attention"),
        (["--units", "1", "--to", "convolution"], "is of kind conv"),
        (["--drop"], "nothing to do"),
        (["--smooth", "--drop"], "--drop removes the old branches"),
        (["--units", "1", "--window", "0"], "--window"),
    ],
)
def test_a_mistake_gets_one_sentence(run, tmp_path, words, sentence):
    code, out, err = run("hybridize", TINY_CNN, "--no-pretrained", "--out", tmp_path / "x", *words)
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_a_model_without_units_is_refused(run, tmp_path):
    (tmp_path / "plain.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())"
    )
    code, _, err = run("hybridize", f"{tmp_path}/plain.py:make?input_size=(3,8,8)", "--units", "0", "--out", tmp_path / "x")
    assert code == 2
    assert "no residual units" in err
