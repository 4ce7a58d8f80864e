"""Finding, reading and removing units, on models so small that the answer can be written by hand."""

import contextlib
import copy
from collections import namedtuple
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.models as tv
from conftest import TINY_ALTERNATING
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from transformers import ViTConfig, ViTForImageClassification

from backlight.analyses.fourier import fourier
from backlight.analyses.lesion import lesion
from backlight.analyses.single_pass import find_streams
from backlight.errors import UserError
from backlight.models.architectures.alternet import AlterNet
from backlight.tracing.corrections import correct
from backlight.tracing.find import units
from backlight.tracing.hooks import check, feature_maps, reading, without
from backlight.tracing.kinds import LETTER
from backlight.tracing.layout import Layout
from backlight.tracing.tap import Tap, spell, stream_taps
from backlight.tracing.trace import evaluating


def conv(channels=4):
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())


class Model(nn.Module):
    """A stem, units and a head; each test writes what happens between stem and head."""

    def __init__(self, **parts):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        for name, part in parts.items():
            self.add_module(name, part)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def body(self, x):
        raise NotImplementedError

    def forward(self, images):
        return self.finish(self.body(self.stem(images)))

    def finish(self, x):
        return self.head(self.norm(x).mean((2, 3)))


def model_of(body, **parts):
    """An evaluated Model with random statistics, whose body is ``body(model, x)``."""
    torch.manual_seed(0)
    model = type("Written", (Model,), {"body": body})(**parts)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 1, 2)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(1))


def proofs(model, images):
    """What check says of each unit."""
    return [proof for _, proof in check(model, images, units(model, images))]


# --- modules that run more than once


def test_a_block_that_is_two_units_is_removed_once(images):
    def body(self, x):
        x = x + self.block(x)
        return x + self.block(x)

    model = model_of(body, block=conv())
    first, second = units(model, images)
    assert [tap.call for unit in (first, second) for tap in unit.branch] == [0, 1]
    assert proofs(model, images) == [True, True]
    with torch.no_grad():
        stem = model.stem(images)
        once = model.finish(stem + model.block(stem))
        for unit in (first, second):  # without either, one block is left
            with without(model, unit):
                torch.testing.assert_close(model(images), once)
        with without(model, first), without(model, second):
            torch.testing.assert_close(model(images), model.finish(stem))


def test_a_shared_rectifier_is_read_where_it_follows_the_sum():
    model, images = tv.resnet18().eval(), torch.randn(1, 3, 32, 32)
    model_units = units(model, images)
    maps = feature_maps(model, images, model_units)
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            for block in stage:
                x = block(x)
                assert torch.equal(maps.pop(0), x)


def test_streams_that_share_a_dropout_module_are_told_apart(images):
    def body(self, x):
        x = x + self.drop(self.a(x))
        x = x + self.drop(self.b(x))
        return self.drop(x)

    model = model_of(body, drop=nn.Dropout(0.5), a=conv(), b=conv())
    assert spell(units(model, images)) == "cc"
    assert proofs(model, images) == [True, True]


def test_a_tap_prints_its_call():
    assert str(Tap("block", "output")) == "block"
    assert str(Tap("block", "input", 2)) == "block (input) #2"


# --- how a branch is added


BODIES = {
    "in place": lambda self, x: x.add_(self.a(x)),
    "the branch first": lambda self, x: self.a(x) + x,
    "torch.add": lambda self, x: torch.add(x, self.a(x)),
    "scaled in place": lambda self, x: self.a(x).mul_(0.2) + x,
    "reshaped": lambda self, x: (x.flatten(2) + self.a(x).flatten(2)).view(x.shape),
    "cut from a padded map": lambda self, x: x + self.a(F.pad(x, (0, 2, 0, 2)))[:, :, :6, :8],
    "rolled": lambda self, x: x + self.a(x.roll(1, 2)).roll(-1, 2),
    "two at once": lambda self, x: x + self.a(x) + self.b(x),
    "two of a stack": lambda self, x: x + torch.stack([self.a(x), self.b(x)]).sum(0),
    "two of a list": lambda self, x: x + sum([self.a(x), self.b(x)]),
    "halves of the channels": lambda self, x: x + torch.cat([self.a(x)[:, :2], self.b(x)[:, 2:]], 1),
    "beside a bypass": lambda self, x: torch.cat([x, self.b(x + self.a(x))], 1)[:, 4:],
}


@pytest.mark.parametrize("addition", BODIES)
def test_a_branch_is_found_and_removed_however_it_is_added(addition, images):
    body = BODIES[addition]
    model = model_of(lambda self, x: self.end(body(self, self.start(x))), a=conv(), b=conv(), start=conv(), end=conv())
    (unit,) = units(model, images)
    assert (unit.kind, unit.identity) == ("conv", True)
    assert proofs(model, images) == [True]
    with torch.no_grad(), without(model, unit):
        removed = model(images)
        x = model.start(model.stem(images))
        by_hand = model.finish(model.end(model.b(x) if addition == "beside a bypass" else x))
    torch.testing.assert_close(removed, by_hand)


def test_a_projected_unit_is_found_but_there_is_no_proof(images):
    def body(self, x):
        return F.relu(self.down(x) + self.a(x))

    model = model_of(body, down=nn.Conv2d(4, 4, 1), a=nn.Sequential(conv(), conv()))
    (unit,) = units(model, images)
    assert (unit.module, unit.identity) == ("a", False)
    assert proofs(model, images) == [None]
    with torch.no_grad(), without(model, unit):
        torch.testing.assert_close(model(images), model.finish(F.relu(model.down(model.stem(images)))))


def test_a_rectifier_changes_a_stream_that_was_not_rectified(images):
    """The first unit's skip is not the identity: without its branch the rectifier still acts."""
    model = model_of(lambda self, x: self.second(self.first(x)), first=Rectified(conv()), second=Rectified(conv()))
    assert [unit.identity for unit in units(model, images)] == [False, True]
    assert proofs(model, images) == [None, True]
    assert [str(unit.after) for unit in units(model, images)] == ["first", "second"]


def test_a_rectifier_at_the_start_of_the_next_block_does_not_belong_to_the_unit(images):
    """If no skip goes around it, it is the only reader of the stream: as before a downsampling in a network without norms."""
    model = model_of(lambda self, x: self.second(self.first(x)), first=Rectifying(True), second=Rectifying(False))
    first, second = units(model, images)
    assert (str(first.after), first.identity) == ("first", True)
    assert (str(second.before), second.identity) == ("second.act", False)
    assert proofs(model, images) == [True, None]


class Rectifying(nn.Module):
    """A block that rectifies first; its skip is its input, or a projection of its rectified input."""

    def __init__(self, identity):
        super().__init__()
        self.act, self.branch, self.identity = nn.ReLU(), nn.Sequential(conv(), nn.Conv2d(4, 4, 3, padding=1)), identity
        self.down = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        out = self.act(x)
        return (x if self.identity else self.down(out)) + self.branch(out)


class Rectified(nn.Module):
    """As in a ResNet: the sum is rectified."""

    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return F.relu(x + self.branch(x))


SUMS_THAT_ARE_NO_UNITS = {
    "doubled": lambda self, x: x + x,
    "two branches": lambda self, x: self.a(x) + self.b(x),
    "merged streams": lambda self, x: self.a(x) + self.b(x.flip(2)),
    "an offset": lambda self, x: x + self.offset,
    "nothing": lambda self, x: self.a(x),
}


@pytest.mark.parametrize("body", SUMS_THAT_ARE_NO_UNITS)
def test_other_sums_are_no_units(body, images):
    model = model_of(SUMS_THAT_ARE_NO_UNITS[body], a=conv(), b=conv(), offset=nn.ParameterList())
    model.offset = nn.Parameter(torch.ones(4, 1, 1))
    assert units(model, images) == []


def test_two_heads_that_are_averaged_are_no_unit(images):
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1)
    assert spell(units(model, torch.randn(1, 3, 32, 32))) == "am"


def test_a_unit_within_a_branch_is_part_of_it(images):
    def body(self, x):
        y = self.a(x)
        return x + (y + self.b(y))

    model = model_of(body, a=conv(), b=conv())
    (unit,) = units(model, images)
    assert proofs(model, images) == [True]
    assert unit.shape == (4, 6, 8)


def test_results_of_functions_are_read_and_removed_too(images):
    def body(self, x):
        x = (x + torch.tanh(self.a(x))).relu()
        return (x + torch.tanh(self.b(x))).exp() + torch.tanh(torch.ones(1))  # another call of that function

    model = model_of(body, a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1))
    first, second = units(model, images)
    assert {tap.side for tap in (second.after, *first.branch, *second.branch)} == {"function"}
    stem, one = model.stem(images), torch.tanh(torch.ones(1))
    stream = (stem + torch.tanh(model.a(stem))).relu()
    maps = feature_maps(model, images, [first, second])
    assert torch.equal(maps[0], stream)
    assert torch.equal(maps[1], stream + torch.tanh(model.b(stream)))
    with without(model, second):
        assert torch.equal(model(images), model.finish(stream.exp() + one))
    with without(model, first):
        assert torch.equal(feature_maps(model, images, [first])[0], stem.relu())
    output = model(images)
    with reading(model, [second.after], lambda i, activation: torch.tanh(activation)):  # this call is not the model's
        assert torch.equal(model(images), output)
        assert torch.equal(model(images), output)


def test_a_branch_that_is_a_functions_second_result_cannot_be_removed(images):
    model = model_of(lambda self, x: x + torch.linalg.qr(x).R)
    (unit,) = units(model, images)
    assert unit.branch == ()
    assert proofs(model, images) == [None]
    with pytest.raises(UserError, match=r"unit 0 .* cannot be removed: nothing returns what it adds"), without(model, unit):
        pass


def test_a_stream_between_functions_is_read_at_the_sum(images):
    model = model_of(lambda self, x: torch.linalg.qr(x + self.a(x)).R, a=conv())
    (unit,) = units(model, images)
    stem = model.stem(images)
    assert torch.equal(feature_maps(model, images, [unit])[0], stem + model.a(stem))


# --- layouts that change between units


class Block(nn.Module):
    """A transformer block, on tokens."""

    def __init__(self, dim=4):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), nn.MultiheadAttention(dim, 2, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Sequential(nn.Linear(dim, 8), nn.GELU(), nn.Linear(8, dim))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y)[0]
        return x + self.mlp(self.norm2(x))


def test_reshapes_between_blocks(images):
    """Maps, tokens, maps with the channels last: every stream is read as a map of the image."""

    def body(self, x):
        x = x + self.conv(x)
        b, c, h, w = x.shape
        x = self.block(x.flatten(2).transpose(1, 2))
        x = x.view(b, h, w, c)
        x = x + self.mlp(x)
        return x.permute(0, 3, 1, 2)

    model = model_of(body, conv=conv(), block=Block(), mlp=nn.Linear(4, 4))
    model_units = units(model, images)
    assert spell(model_units) == "camm"
    assert proofs(model, images) == [True] * 4
    maps = feature_maps(model, images, model_units)
    with torch.no_grad():
        x = model.stem(images)
        x = x + model.conv(x)
        torch.testing.assert_close(maps[0], x)
        tokens = model.block(x.flatten(2).mT)
        torch.testing.assert_close(maps[2], tokens.mT.unflatten(2, (6, 8)))
        torch.testing.assert_close(maps[3], (tokens + model.mlp(tokens)).mT.unflatten(2, (6, 8)))


@pytest.mark.parametrize(
    ("name", "arguments", "prefix"),
    [
        ("vit_tiny_patch16_224", {}, 1),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, 0),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}, 5),
        ("deit_tiny_distilled_patch16_224", {}, 2),
    ],
)
def test_maps_of_a_transformer_need_not_be_square_and_follow_its_other_tokens(name, arguments, prefix):
    images = torch.randn(1, 3, 32, 48)
    model = timm.create_model(name, img_size=(32, 48), depth=2, **arguments).eval()
    model_units = units(model, images)
    assert {unit.after.layout for unit in model_units} == {Layout("tokens", (2, 3), prefix)}
    with torch.no_grad():
        last = model.blocks(model.norm_pre(model._pos_embed(model.patch_embed(images))))
    assert torch.equal(feature_maps(model, images, model_units)[-1], last[:, prefix:].mT.unflatten(2, (2, 3)))


def test_maps_with_their_channels_last():
    images = torch.randn(1, 3, 16, 24)
    model = tv.SwinTransformer([4, 4], 8, [2], [2], [2, 2]).eval()
    model_units = units(model, images)
    assert {unit.after.layout for unit in model_units} == {Layout("channels last", (4, 6))}
    with torch.no_grad():
        assert torch.equal(feature_maps(model, images, model_units)[-1], model.features(images).permute(0, 3, 1, 2))


def test_taps_are_listed_once(images):
    model = model_of(lambda self, x: self.b(self.a(x)), a=Residual(conv()), b=Residual(conv()))
    assert [str(tap) for tap in stream_taps(units(model, images))] == ["stem", "a", "b"]


class Residual(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


# --- kinds


class Squeeze(nn.Module):
    """Squeeze and excitation: a gate for each channel, no attention between positions."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class Linear(nn.Module):
    """Attention without a softmax, by two products; channel attention is the same on transposed maps."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Conv2d(4, 12, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        return ((v @ k.mT) @ q).view(x.shape)


class Separable(nn.Module):
    """As in MobileViT v2: a weighted sum over positions, no matrix product."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Conv2d(4, 9, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).split([1, 4, 4], 1)
        context = (k * q.flatten(2).softmax(-1).view_as(q)).sum((2, 3), keepdim=True)
        return v.relu() * context


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x):
        y, _ = self.rnn(x.flatten(2).mT)
        return self.out(y).mT.view_as(x)


class Spectral(nn.Module):
    """A filter in the Fourier domain, as in GFNet."""

    def forward(self, x):
        spectrum = torch.fft.rfft2(x)
        return torch.fft.irfft2(spectrum * torch.linspace(1, 0, spectrum.shape[-1]), s=x.shape[-2:])


class Pool(nn.Module):
    """As in PoolFormer."""

    def forward(self, x):
        return F.avg_pool2d(x, 3, 1, 1) - x


class FixedBlur(nn.Module):
    """A convolution with a fixed kernel."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.full((1, 1, 3, 3), 1 / 9))

    def forward(self, x):
        return F.conv2d(x, self.kernel.expand(4, 1, 3, 3), padding=1, groups=4) - x


class Standardised(nn.Conv2d):
    """A kernel that is computed from the parameters, as in BiT."""

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(), None, padding=1)


class Dynamic(nn.Module):
    """A kernel that is computed for each image, as in CondConv."""

    def __init__(self):
        super().__init__()
        self.route, self.experts = nn.Linear(4, 2), nn.Parameter(torch.randn(2, 4 * 4 * 9))

    def forward(self, x):
        kernels = self.route(x.mean((2, 3))).sigmoid() @ self.experts
        b, c, h, w = x.shape
        return F.conv2d(x.reshape(1, b * c, h, w), kernels.view(b * 4, 4, 3, 3), padding=1, groups=b).view(x.shape)


KINDS = {
    "conv": [conv(), Dynamic(), nn.Sequential(conv(), Squeeze()), Standardised(4, 4, 3, bias=False)],
    "attention": [Linear(), Separable(), nn.Sequential(Linear(), conv())],
    "mlp": [nn.Sequential(nn.Conv2d(4, 8, 1), nn.GELU(), nn.Conv2d(8, 4, 1)), Squeeze()],
    "blur": [Pool(), FixedBlur()],
    "other": [Recurrent(), Spectral(), nn.Tanh()],
}


@pytest.mark.parametrize(("kind", "branch"), [(kind, branch) for kind in KINDS for branch in KINDS[kind]])
def test_the_kind_is_what_the_branch_does(kind, branch, images):
    model = model_of(lambda self, x: x + self.branch(x), branch=branch)
    (unit,) = units(model, images)
    assert unit.kind == kind


# --- nothing stays on the model


class Raises(nn.Module):
    def forward(self, x):
        raise ArithmeticError("half-way")


def state_of(model):
    """Everything that could stay on a model and in torch."""
    return {
        "modes": [module.training for module in model.modules()],
        "requires grad": [p.requires_grad for p in model.parameters()],
        "hooks": [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())],
        "function modes": _get_current_function_mode_stack(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "gradients": torch.is_grad_enabled(),
        "numbers": {name: tensor.clone() for name, tensor in model.state_dict().items()},
    }


def assert_untouched(model, before):
    after = state_of(model)
    for name, tensor in before.pop("numbers").items():
        assert torch.equal(after["numbers"][name], tensor)
    assert {key: after[key] for key in before} == before


def half_trained():
    """Modules in both modes, parameters of both kinds, batch norm that would change in training mode."""
    model = model_of(lambda self, x: self.b(self.a(x)), a=Residual(conv()), b=Residual(conv()))
    model.train()
    model.b.eval()
    model.a.branch[0].weight.requires_grad_(False)
    return model


def test_a_model_stays_as_it_was(images):
    model = half_trained()
    before = state_of(model)
    model_units = units(model, images)
    feature_maps(model, images, model_units)
    assert all(proof for _, proof in check(model, images, model_units))
    assert_untouched(model, before)


@pytest.mark.parametrize("name", ["units", "feature_maps", "check", "reading", "without"])
def test_a_model_that_raises_an_error_stays_as_it_was(name, images):
    model = half_trained()
    model_units = units(model, images)
    model.b.branch[1] = Raises()
    before = state_of(model)
    actions = {
        "units": lambda: units(model, images),
        "feature_maps": lambda: feature_maps(model, images, model_units),
        "check": lambda: list(check(model, images, model_units)),
        "reading": lambda: within(reading(model, [model_units[0].after], lambda i, x: None)),
        "without": lambda: within(without(model, model_units[0])),
    }

    def within(context):
        with context, evaluating(model):
            model(images)

    with pytest.raises(ArithmeticError, match="half-way"):
        actions[name]()
    assert_untouched(model, before)


def test_calls_are_counted_from_zero_after_a_pass_that_raised(images):
    def body(self, x):
        for _ in range(3):
            x = x + self.block(x)
            if self.breaks:
                raise ArithmeticError
        return x

    model = model_of(body, block=conv())
    model.breaks = False
    unit = units(model, images)[1]
    with torch.no_grad(), without(model, unit):
        expected = model(images)
        model.breaks = True
        with pytest.raises(ArithmeticError):
            model(images)
        model.breaks = False
        assert torch.equal(model(images), expected)


def test_no_hook_stays_after_a_visitor_raised(images):
    model = half_trained()
    model_units = units(model, images)
    before = state_of(model)

    def refuse(i, activation):
        raise ArithmeticError

    with pytest.raises(ArithmeticError), reading(model, stream_taps(model_units), refuse), evaluating(model):
        model(images)
    assert_untouched(model, before)


def test_units_inside_a_transformer_layer_with_a_fast_path_are_found():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=True)

    def body(self, x):
        y = self.layers(x.flatten(2).mT)
        return y.mT.view_as(x)

    model, images = model_of(body, layers=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)), torch.randn(2, 3, 4, 6)
    assert torch.backends.mha.get_fastpath_enabled()
    model_units = units(model, images)
    assert spell(model_units) == "amam"
    assert proofs(model, images) == [True] * 4
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad(), without(model, model_units[0]), without(model, model_units[1]):
        without_first_layer = model(images)
        tokens = model.layers.layers[1](model.stem(images).flatten(2).mT)
        torch.testing.assert_close(without_first_layer, model.finish(tokens.mT.view(2, 4, 4, 6)))


# --- what modules return

Pair = namedtuple("Pair", "first second")


class Wrapped(nn.Module):
    def __init__(self, branch, wrap):
        super().__init__()
        self.branch, self.wrap = branch, wrap

    def forward(self, x):
        return self.wrap(self.branch(x))


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda y: (y, None), lambda out: out[0]),
        (lambda y: [y, y], lambda out: out[0]),
        (lambda y: Pair(y, 1), lambda out: out.first),
        (lambda y: {"branch": y, "other": 1}, lambda out: out["branch"]),
    ],
    ids=["tuple", "list", "named tuple", "dict"],
)
def test_a_branch_may_be_part_of_a_larger_result(wrap, unwrap, images):
    model = model_of(lambda self, x: x + unwrap(self.a(x)), a=Wrapped(nn.Conv2d(4, 4, 3, padding=1), wrap))
    model_units = units(model, images)
    assert spell(model_units) == "c"
    assert proofs(model, images) == [True]
    outer = Tap("a", "output")
    by_outer = copy.copy(model_units[0])
    object.__setattr__(by_outer, "branch", (outer,))
    assert [proof for _, proof in check(model, images, [by_outer])] == [True]


def test_a_model_may_return_a_dictionary(images):
    model = model_of(lambda self, x: x + self.a(x), a=conv())
    forward = model.forward
    model.forward = lambda images: {"aux": 1, "logits": forward(images)}
    assert spell(units(model, images)) == "c"
    assert proofs(model, images) == [True]


def test_a_model_of_hugging_face_returns_its_own_type():
    config = ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=32)
    model, images = ViTForImageClassification(config), torch.randn(1, 3, 32, 32)
    assert spell(units(model, images)) == "amam"
    assert proofs(model, images) == [True] * 4


# --- modules by name


def test_at_a_convolution_its_input_and_its_output_can_be_read(images):
    model = model_of(lambda self, x: x + self.a(x), a=conv())
    (unit,) = units(model, images, at=["a.0"])
    assert (unit.kind, unit.module, unit.branch, unit.identity) == ("conv", "a.0", (), False)
    maps = {}
    with torch.no_grad(), reading(model, [unit.before, unit.after], lambda i, x: maps.__setitem__(i, x.clone())):
        model(images)
    assert torch.equal(maps[1], model.a[0](maps[0]))


def test_at_an_attention_module():
    model, images = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2).eval(), torch.randn(1, 3, 32, 48)
    (unit,) = units(model, images, at=["blocks.1.attn"])
    assert unit.kind == "attention"
    assert unit.before == Tap("blocks.1.attn", "input", 0, Layout("tokens", (2, 3), 1))
    assert unit.after == Tap("blocks.1.attn", "output", 0, Layout("tokens", (2, 3), 1))


def test_at_the_layers_of_a_plain_sequence(images):
    """A network like VGG: it has no residual units."""
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(5 * 3 * 4, 2)).eval()
    assert units(model, images) == []
    model_units = units(model, images, at=["0", "2", "3"])
    assert [unit.kind for unit in model_units] == ["conv", "blur", "conv"]
    assert [unit.stage for unit in model_units] == [0, 1, 1]
    with torch.no_grad():
        expected = [model[:1](images), model[:3](images), model[:4](images)]
    assert all(torch.equal(a, b) for a, b in zip(feature_maps(model, images, model_units), expected, strict=True))
    assert [str(tap) for tap in stream_taps(model_units)] == ["0 (input)", "0", "2 (input)", "2", "3 (input)", "3"]


def test_an_unknown_path_is_refused_with_a_suggestion(images):
    model = model_of(lambda self, x: self.conv1(x), conv1=conv())
    with pytest.raises(UserError, match="at='conv': the model has no module of this name; did you mean conv1"):
        units(model, images, at=["conv"])


def test_a_module_that_does_not_run_is_refused(images):
    model = model_of(lambda self, x: x, unused=conv())
    with pytest.raises(UserError, match="at='unused': this module does not run in a forward pass"):
        units(model, images, at=["unused"])


# --- reading and removing


def small_model():
    """Two residual blocks; the second runs only while the model is ``deep``."""
    model = model_of(
        lambda self, x: self.second(self.first(x)) if self.deep else self.first(x),
        first=Residual(conv()),
        second=Residual(conv()),
    )
    model.deep = True
    return model


def test_without_a_unit_the_model_is_the_one_built_without_it(images):
    model = small_model()
    for unit in units(model, images):
        shorter = copy.deepcopy(model)
        setattr(shorter, unit.module.split(".")[0], nn.Identity())
        with torch.no_grad(), without(model, unit):
            assert torch.equal(model(images), shorter(images))


def test_reading_inside_without_gives_the_streams_of_the_model_without_the_unit(images):
    model = small_model()
    first, second = units(model, images)
    taps = [first.before, first.after, *first.branch, second.after]
    for remove_first in (True, False):
        maps = {}
        with contextlib.ExitStack() as stack:
            contexts = [without(model, first), reading(model, taps, lambda i, x, maps=maps: maps.update({i: x.clone()}))]
            for context in contexts if remove_first else contexts[::-1]:
                stack.enter_context(context)
            with torch.no_grad():
                model(images)
        assert torch.equal(maps[0], maps[1])
        assert not maps[2].any()
        with torch.no_grad():
            assert torch.equal(maps[3], model.second(maps[1]))


def test_a_tap_that_does_not_run_is_an_error(images):
    model = small_model()
    model_units = units(model, images)
    model.deep = False
    with pytest.raises(RuntimeError, match="the model did not run second in this pass; find its units again"):
        feature_maps(model, images, model_units)


def test_check_refutes_a_wrong_unit(images):
    model = small_model()
    first, second = units(model, images)
    wrong = copy.copy(first)
    object.__setattr__(wrong, "branch", second.branch)
    assert [proof for _, proof in check(model, images, [wrong])] == [False]


def test_check_raises_for_a_model_that_changes(images):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    model = model_of(lambda self, x: self.count(x + self.a(x)), a=conv(), count=Counting())
    with pytest.raises(RuntimeError, match="output changed while its units were checked"):
        proofs(model, images)


# --- AlterNet: the units spell the word that the model was built from

words = st.lists(st.text("cab", min_size=1, max_size=3), min_size=1, max_size=3).map(" ".join)


@given(words, st.sampled_from(["basic", "bottleneck"]))
@settings(max_examples=15, deadline=None)
def test_an_alternet_is_what_its_word_spells(word, block):
    torch.manual_seed(0)
    model = AlterNet(word, block=block, dim=4, heads=(1, 2, 2), dim_head=4, stem="cifar", num_classes=3, window=4)
    images = torch.randn(1, 3, 16, 16)
    model_units = units(model, images)
    assert spell(model_units) == word
    for unit, proof in check(model, images, model_units):
        assert proof is (True if unit.identity else None), unit


# --- branches of different kinds in one sum


def pointwise():
    return nn.Sequential(nn.Conv2d(4, 8, 1), nn.GELU(), nn.Conv2d(8, 4, 1))


def joined(x, *branches):
    return sum(branch(x) for branch in branches)


def residual(x, branch):
    return x + branch(x)


PARALLEL = {
    "one by one": lambda self, x: x + self.a(x) + self.m(x),
    "the sum first": lambda self, x: x + (self.a(x) + self.m(x)),
    "scaled and moved": lambda self, x: x + (0.5 * (self.a(x) + self.m(x))).flatten(2).view(x.shape),
    "dropped": lambda self, x: x + F.dropout(self.a(x) + self.m(x), training=self.training),
    "a stack": lambda self, x: x + torch.stack([self.a(x), self.m(x)]).sum(0),
    "after a shared norm": lambda self, x: x + joined(self.norm(x), self.a, self.m),
}


@pytest.mark.parametrize("addition", PARALLEL)
def test_branches_of_different_kinds_are_a_unit_of_their_own_kind(addition, images):
    """Without one of its branches the model is the one that is written without it."""
    model = model_of(PARALLEL[addition], a=Linear(), m=pointwise())
    (unit,) = units(model, images)
    assert (unit.kind, spell([unit]), unit.identity) == ("parallel", "p", True)
    assert dict(zip(map(str, unit.branch), unit.kinds, strict=True)) == {"a": "attention", "m": "mlp"}
    assert proofs(model, images) == [True]
    for kind, name in (("attention", "a"), ("mlp", "m")):
        only = unit.only(kind)
        assert (only.kind, [str(tap) for tap in only.branch], only.identity) == (kind, [name], False)
        alone = copy.deepcopy(model)
        setattr(alone, name, Nothing())
        with torch.no_grad(), without(model, only):
            torch.testing.assert_close(model(images), alone(images))


class Nothing(nn.Module):
    """Adds nothing to the stream."""

    def forward(self, x):
        return torch.zeros_like(x)


NOT_PARALLEL = {
    "two attentions": ("attention", lambda self, x: x + self.a(x) + self.b(x)),
    "an attention and its linear part": ("attention", lambda self, x: x + self.a(x) + self.p(x)),
    "RepVGG": ("conv", lambda self, x: x + self.c(x) + self.p(x)),
    "an MLP after an attention": ("attention", lambda self, x: x + self.m(self.a(x))),
    "an attention with a residual MLP inside": ("attention", lambda self, x: x + residual(self.a(x), self.m)),
    "an attention on a convolution": ("attention", lambda self, x: x + residual(self.c(x), self.a)),
}


@pytest.mark.parametrize("case", NOT_PARALLEL)
def test_branches_one_after_another_or_of_one_kind_are_not_parallel(case, images):
    kind, body = NOT_PARALLEL[case]
    model = model_of(body, a=Linear(), b=Linear(), m=pointwise(), c=conv(), p=nn.Conv2d(4, 4, 1))
    (unit,) = units(model, images)
    assert unit.kind == kind
    assert set(unit.kinds) == {kind}
    assert unit.only(kind) == unit
    assert proofs(model, images) == [True]


@pytest.mark.parametrize("fused", [False, True])
def test_timms_parallel_block(fused):
    """With one output projection for both branches only the whole unit can be removed: the projection has a bias."""
    block = partial(ParallelScalingBlock, fuse_out_proj=fused)
    model = timm.models.VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, block_fn=block)
    images = torch.randn(2, 3, 16, 16)
    first, _ = units(model, images)
    assert spell([first]) == "p"
    separate = {"blocks.0.attn_out_proj": "attention", "blocks.0.mlp_out_proj": "mlp"}
    branches = dict(zip(map(str, first.branch), first.kinds, strict=True))
    assert branches == ({"blocks.0.drop_path": "parallel"} if fused else separate)
    assert proofs(model, images) == [True, True]


def test_no_statement_about_a_pure_kind_counts_a_parallel_unit(images):
    model = model_of(lambda self, x: x + self.a(x) + self.m(x), a=Linear(), m=pointwise())
    streams = find_streams(model, images, None)
    assert all(streams.transforms([kind]) == [] for kind in LETTER if kind != "parallel")
    assert streams.transforms(["parallel"]) == [(0, 1)]
    sequential = model_of(lambda self, x: self.m(x + self.a(x)), a=Linear(), m=pointwise())
    assert find_streams(sequential, images, None).transforms(["attention"]) == [(0, 1)]


# --- corrections


def test_kinds_and_stages_can_be_corrected(images):
    model = small_model()
    found = units(model, images)
    module = found[1].module
    corrected = units(model, images, kinds={0: "attention", module: "blur"}, stages={len(found) - 1: 5})
    assert [unit.kind for unit in corrected[:2]] == ["attention", "blur"]
    assert set(corrected[1].kinds) == {"blur"}
    assert [unit.stage for unit in corrected] == [*(unit.stage for unit in found[:-1]), 5]
    assert [(u.module, u.branch, u.before, u.after) for u in corrected] == [
        (u.module, u.branch, u.before, u.after) for u in found
    ]
    assert [proof for _, proof in check(model, images, corrected)] == proofs(model, images)
    assert units(model, images, kinds={module: "conv", 1: "mlp"})[1].kind == "mlp"  # an index is more specific
    assert units(model, images, at=[module], kinds={0: "other"})[0].kind == "other"


@pytest.mark.parametrize(
    ("corrections", "sentence"),
    [
        ({"kinds": {9: "conv"}}, r"kinds: the model has \d units, counted from 0, and no unit 9"),
        ({"kinds": {-1: "conv"}}, "no unit -1"),
        ({"kinds": {"no.such": "conv"}}, "kinds: the model has no unit of the module 'no.such'"),
        ({"kinds": {0: "atention"}}, "did you mean attention"),
        ({"stages": {9: 0}}, "stages: the model has"),
        ({"stages": {0: "first"}}, "stages: 0 is 'first'; a stage is a whole number, counted from 0"),
        ({"stages": {0: True}}, "stages: 0 is True"),
        ({"branches": {0: "norm"}}, "branches: 0 is 'norm'; a branch is a list of one or more names of modules"),
        ({"branches": {0: []}}, r"branches: 0 is \[\]"),
        ({"branches": {0: ["no.such"]}}, "branches: 'no.such': the model has no module of this name"),
        ({"branches": {9: ["no.such"]}}, "branches: the model has"),
    ],
)
def test_a_correction_of_nothing_is_refused(corrections, sentence, images):
    with pytest.raises(UserError, match=sentence):
        units(small_model(), images, **corrections)


def parallel_model():
    return model_of(lambda self, x: x + self.a(x) + self.m(x), a=Linear(), m=pointwise())


def test_branches_can_be_corrected(images):
    model = parallel_model()
    (unit,) = units(model, images)
    assert (unit.kind, [tap.module for tap in unit.branch]) == ("parallel", ["a", "m"])
    (half,) = units(model, images, branches={0: ["a"]})
    assert (half.kind, half.kinds, [tap.module for tap in half.branch]) == ("attention", ("attention",), ["a"])
    with without(model, half), torch.no_grad():
        stem = model.stem(images)
        assert torch.equal(model(images), model.finish(stem + model.m(stem)))  # m remains
    assert [proof for _, proof in check(model, images, [unit, half])] == [True, False]
    (named,) = units(model, images, branches={0: ["a", "m"]}, kinds={0: "attention"})
    assert (named.kind, named.kinds) == ("attention", ("attention", "attention"))
    (swapped,) = units(model, images, branches={0: ["m", "a"]})
    assert (swapped.kind, swapped.kinds) == ("parallel", ("mlp", "attention"))


def test_corrections_of_a_model_apply_to_every_search_and_to_no_copy(images):
    model = parallel_model()
    correct(model, kinds={0: "conv"}, stages={0: 3}, branches={0: ["m"]})
    (unit,) = units(model, images)
    assert (unit.kind, unit.stage, [tap.module for tap in unit.branch]) == ("conv", 3, ["m"])
    assert units(torch.compile(model, backend="eager"), images) == [unit]
    assert units(model, images, kinds={0: "blur"})[0].kind == "blur"  # the call comes last
    assert units(model, images, at=["a"])[0].kind == "attention"  # a module by name is no unit of the model
    assert units(copy.deepcopy(model), images)[0].kind == "parallel"
    correct(model)
    assert units(model, images)[0].kind == "parallel"


def test_results_record_corrections_and_analyses_follow_them(images):
    model, data = parallel_model(), [(images, torch.zeros(len(images), dtype=torch.int64))]
    assert "corrections" not in fourier(model, data, resamples=10).provenance
    correct(model, kinds={0: "conv"}, branches={"": ["a"]})
    for result in (fourier(model, data, resamples=10), lesion(model, data, resamples=10)):
        assert result.provenance["corrections"] == {"kinds": {"0": "conv"}, "branches": {"": ["a"]}}
        assert {row["kind"] for row in result.table if row.get("unit") == 0} == {"conv"}
    assert "corrections" not in fourier(model, data, at=["a"], resamples=10).provenance


def test_a_compiled_model_has_the_name_of_the_model_inside(images):
    data = [(images, torch.zeros(len(images), dtype=torch.int64))]
    compiled = torch.compile(parallel_model(), backend="eager")
    assert fourier(compiled, data, resamples=10).model == "Written"
    assert lesion(compiled, data, resamples=10).model == "Written"
    assert lesion(compiled, data, resamples=10, name="mine").model == "mine"


def test_a_file_corrects_units_on_the_command_line(run, tmp_path):
    file, words = tmp_path / "as.toml", ("units", TINY_ALTERNATING, "--no-pretrained", "--as")
    module = next(line.split()[3] for line in run(*words[:-1])[1].splitlines() if line.startswith("1 "))
    tables = f'[kinds]\n0 = "mlp"\n{module} = "blur"\n[stages]\n2 = 2\n'  # a name with dots, without quotes
    for first_line in ("", f'model = "{TINY_ALTERNATING}"\n'):
        file.write_text(first_line + tables)
        code, out, _ = run(*words, file)
        assert (code, out.splitlines()[0]) == (0, f"{TINY_ALTERNATING}: m b a")
    dots = ".".join(["a"] * 5000)
    for text, sentence in {
        "[kinds]\n9 = 'conv'": "kinds: the model has 3 units, counted from 0, and no unit 9",
        "[kinds]\n0 = 3": "kinds: 0 is 3; a kind is one of",
        "[stages]\n'x.y' = -1": "stages: x.y is -1",
        "[branches]\n0 = 'x'": "branches: 0 is 'x'; a branch is a list",
        "[branches]\n0 = ['stem.x']": "branches: 'stem.x': the model has no module of this name",
        "[kind]\n0 = 'conv'": "has 'kind'; it may have model, and the tables [kinds], [stages] and [branches]",
        "kinds = 3": "has 'kinds'",
        "model = 3": "model is 3; it must be the name of a model",
        "model = 'resnet50'": "model is 'resnet50', and this is",
        "[kinds": "is not TOML",
        f"[kinds]\n{dots} = 'conv'": "nested too deeply",
        f"kinds = {'[' * 100_000}": "nested too deeply",
        f"[kinds]\n{'9' * 5000} = 'conv'": "no unit of the module",
    }.items():
        file.write_text(text)
        code, _, err = run(*words, file)
        assert code == 2
        assert sentence in err
        assert str(file) in err
        assert err.count("\n") == 1
    assert run(*words, tmp_path / "missing")[0] == 2


# --- the stem


class Shortcuts(nn.Module):
    """The usual ResNet for CIFAR: rectifiers are functions, a shortcut is an empty sequence or a projection."""

    def __init__(self, project):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(*(Rectified(conv()) for _ in range(2)))
        for block in self.layer1:
            block.forward = lambda x, block=block: F.relu(block.shortcut(x) + block.branch(x))
        for k, block in enumerate(self.layer1):
            block.shortcut = nn.Sequential(*[nn.Conv2d(4, 4, 1)][k if project else 1 :])
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(self.layer1(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def vit(**arguments):
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, **arguments)


STEMS = {
    "CIFAR ResNet": (lambda: Shortcuts(False), "bn1"),
    "CIFAR ResNet, projected": (lambda: Shortcuts(True), "bn1"),
    "torchvision ResNet": (tv.resnet18, "maxpool"),
    "torchvision ResNet, projected": (tv.resnet50, "maxpool"),
    "timm ResNet": (lambda: timm.create_model("resnet26"), "maxpool"),
    "ViT": (vit, "patch_embed"),
    "ViT with a norm before": (lambda: vit(pre_norm=True), "norm_pre"),
    "Swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1)),
        "patch_embed",
    ),
    "torchvision ConvNeXt": (tv.convnext_tiny, "features.0"),
}


@pytest.mark.parametrize("name", STEMS)
def test_the_stem_is_named_by_the_module_that_computes_it(name):
    """Not by a shortcut that passes it on.  A function may still act on it: rectify it, or add positions."""
    make, module = STEMS[name]
    side = 32 if "ViT" in name or "CIFAR" in name else 64
    model, images = make().eval(), torch.randn(1, 3, side, side)
    first, *_ = units(model, images)
    assert first.source == module
    rows = [row for row, _, _ in find_streams(model, images, None).rows()]
    assert (rows[0]["kind"], rows[0]["module"]) == ("stem", module)


# --- lists of feature maps, compiled models


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_units_before_any_of_several_feature_maps_are_found(name):
    """``features_only``: the word is that of the classifier, and timm's maps are among the streams."""
    side = 224 if "vit" in name else 64
    images = torch.randn(1, 3, side, side)
    torch.manual_seed(0)
    features, classifier = timm.create_model(name, features_only=True).eval(), timm.create_model(name)
    found = units(features, images)
    assert spell(found) == spell(units(classifier, images))
    assert False not in proofs(features, images)
    if name in {"resnet18", "convnext_atto"}:  # the last unit is the last call
        maps = feature_maps(features, images, found)
        with torch.no_grad():
            deepest = features(images)[-1]
        assert any(torch.equal(deepest, map_) for map_ in maps)


def test_a_compiled_model_is_analysed_through_the_module_inside(images):
    """The same units, proofs and numbers, names without a prefix, and nothing is compiled; afterwards it is compiled again."""
    model, compilations = small_model(), []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    assert units(compiled, images) == units(model, images)
    assert proofs(compiled, images) == proofs(model, images)
    (unit, *_) = units(model, images)
    with torch.no_grad():
        with without(model, unit):
            expected = model(images)
        with without(compiled, unit):
            torch.testing.assert_close(compiled(images), expected)
    a, b = (fourier(network, [images, images], resamples=20) for network in (model, compiled))
    assert a.model == b.model
    assert repr(a.rows()) == repr(b.rows())
    with pytest.raises(UserError, match="did you mean"):
        units(compiled, images, at=["stemm"])
    assert not compilations
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))
    assert compilations
