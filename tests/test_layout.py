"""Layouts of activations, against slow loops and against images whose pixels encode their position."""

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from backlight.errors import UserError
from backlight.tracing.find import units
from backlight.tracing.hooks import feature_maps, reading
from backlight.tracing.layout import Layout, grid
from backlight.tracing.tap import stream_taps
from backlight.tracing.trace import record_calls

sides = st.integers(1, 5)
ORDERS = ["channels first", "channels last", "tokens", "channels first tokens"]


# --- grid


def laid_out(maps, order, before, after):
    """The inverse of grid, one number at a time; other tokens are filled with -1."""
    B, C, h, w = maps.shape
    if order == "channels last":
        out = torch.empty(B, h, w, C)
    elif order == "tokens":
        out = torch.full((B, before + h * w + after, C), -1.0)
    else:
        out = torch.full((B, C, before + h * w + after), -1.0)
    for b in range(B):
        for c in range(C):
            for i in range(h):
                for j in range(w):
                    index = {
                        "channels last": (b, i, j, c),
                        "tokens": (b, before + i * w + j, c),
                        "channels first tokens": (b, c, before + i * w + j),
                    }[order]
                    out[index] = maps[b, c, i, j]
    return out


@given(st.integers(1, 2), sides, sides, sides, st.integers(0, 3), st.integers(0, 3), st.sampled_from(ORDERS[1:]))
def test_a_grid_is_the_map_whatever_its_layout(B, C, h, w, before, after, order):
    maps = torch.arange(B * C * h * w, dtype=torch.float32).view(B, C, h, w)
    layout = Layout(order, (h, w), 0 if order == "channels last" else before)
    assert torch.equal(grid(laid_out(maps, order, before, after), layout), maps)


def test_a_map_with_its_channels_first_is_its_own_grid():
    maps = torch.randn(2, 3, 4, 5)
    assert grid(maps, Layout("channels first", (4, 5))) is maps


@pytest.mark.parametrize(("order", "shape"), [("channels last", (2, 4, 5, 3)), ("tokens", (2, 22, 3))])
def test_a_grid_is_a_view(order, shape):
    activation = torch.zeros(shape)
    grid(activation, Layout(order, (4, 5), prefix=2 if order == "tokens" else 0)).fill_(1)
    assert activation.sum() == 2 * 3 * 4 * 5


def test_too_few_tokens_are_refused():
    with pytest.raises(UserError, match="19 tokens do not hold a 4 x 5 map behind 1 other tokens; find the units again"):
        grid(torch.zeros(1, 19, 3), Layout("tokens", (4, 5), prefix=1))


def test_an_activation_with_other_axes_is_refused():
    with pytest.raises(UserError, match="does not hold a map as tokens"):
        grid(torch.zeros(1, 4, 5, 3), Layout("tokens", (4, 5)))


# --- layouts of recorded calls


class Steps(nn.Module):
    """A model that applies these functions in order."""

    def __init__(self, *steps):
        super().__init__()
        self.steps = steps

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


def layout_after(images, *steps):
    """The layout of the result, and the result."""
    trace = record_calls(Steps(*steps), images)
    return trace.calls[trace.last].layout, Steps(*steps)(images)


FIRST_TO_LAST = [
    lambda x: x.permute(0, 2, 3, 1),
    lambda x: x.movedim(1, -1),
    lambda x: x.transpose(1, 2).transpose(2, 3),
]
FIRST_TO_TOKENS = [lambda x: x.flatten(2).transpose(1, 2), lambda x: x.reshape(*x.shape[:2], -1).mT]
LAST_TO_TOKENS = [lambda x: x.flatten(1, 2), lambda x: x.reshape(len(x), -1, x.shape[-1])]
CLASS_TOKEN = [
    lambda x: torch.cat([torch.ones(len(x), 1, x.shape[2]), x], 1),
    lambda x: torch.cat((x, torch.ones(len(x), 2, x.shape[2])), dim=1),
    lambda x: F.pad(x, (0, 0, 1, 0)),
    lambda x: x,
]
POINTWISE = [torch.relu, lambda x: x * 1.5, lambda x: x.to(torch.float32), lambda x: x + torch.ones(x.shape[-1])]


@given(sides, sides, sides, st.data())
def test_a_map_is_recognised_after_reshapes(C, h, w, data):
    """Whatever the reshapes, the grid with the recorded layout is the images again."""
    images = torch.arange(2 * C * h * w, dtype=torch.float32).view(2, C, h, w) + 1
    draw = lambda steps: data.draw(st.sampled_from(steps))  # noqa: E731
    to_last, to_tokens = draw(FIRST_TO_LAST), draw(LAST_TO_TOKENS)
    sequences = [[to_last], [to_last, to_tokens], [draw(FIRST_TO_TOKENS)], [lambda x: x.flatten(2)]]
    steps = data.draw(st.sampled_from(sequences))
    layout, result = layout_after(images, *steps)
    assert torch.equal(grid(result, layout), images)


@given(st.integers(2, 5), st.integers(2, 5), st.integers(2, 5), st.sampled_from(CLASS_TOKEN), st.sampled_from(POINTWISE))
def test_class_tokens_are_no_positions(C, h, w, add, pointwise):
    images = torch.arange(2 * C * h * w, dtype=torch.float32).view(2, C, h, w) + 1
    layout, result = layout_after(images, FIRST_TO_TOKENS[0], add)
    assert torch.equal(grid(result, layout), images)
    assert layout_after(images, FIRST_TO_TOKENS[0], add, pointwise)[0] == layout


def test_a_number_of_tokens_that_fits_two_maps():
    """141 tokens: 10 x 14 and a class token."""
    layout, _ = layout_after(torch.zeros(1, 3, 10, 14), FIRST_TO_TOKENS[0], CLASS_TOKEN[0])
    assert layout == Layout("tokens", (10, 14), prefix=1)


def test_a_map_as_wide_as_it_has_channels():
    images = torch.zeros(1, 14, 14, 14)
    assert layout_after(images)[0] == Layout("channels first", (14, 14))
    assert layout_after(images, FIRST_TO_LAST[0])[0] == Layout("channels last", (14, 14))
    assert layout_after(images, lambda x: x.permute(0, 3, 2, 1))[0] is None  # transposed: not as an image is read


def windows(x, side):
    """(B, H, W, C) -> (B windows, side, side, C), as in Swin."""
    B, H, W, C = x.shape
    return x.view(B, H // side, side, W // side, side, C).transpose(2, 3).reshape(-1, side, side, C)


def unwindowed(x, B, H, W):
    side, C = x.shape[1], x.shape[-1]
    return x.view(B, H // side, W // side, side, side, C).transpose(2, 3).reshape(B, H, W, C)


def test_windows_are_a_map_only_after_they_are_merged():
    images = torch.randn(2, 3, 8, 12)
    cut = [FIRST_TO_LAST[0], lambda x: windows(x, 4)]
    assert layout_after(images, *cut)[0] is None
    layout, result = layout_after(images, *cut, lambda x: unwindowed(x, 2, 8, 12))
    assert layout == Layout("channels last", (8, 12))
    assert torch.equal(grid(result, layout), images)


def test_a_rolled_map_is_a_map_only_after_it_is_rolled_back():
    images = torch.randn(1, 3, 8, 8)
    roll = lambda by: lambda x: x.roll((by, by), (2, 3))  # noqa: E731
    assert layout_after(images, roll(2))[0] is None
    assert layout_after(images, roll(2), roll(-2))[0] == Layout("channels first", (8, 8))


def test_a_padded_map_is_a_map_only_after_the_padding_is_cut_off():
    images = torch.randn(1, 3, 6, 6)
    pad = lambda x: F.pad(x, (0, 2, 0, 2))  # noqa: E731
    assert layout_after(images, pad)[0] is None
    assert layout_after(images, pad, lambda x: x[:, :, :6, :6])[0] == Layout("channels first", (6, 6))


def test_tokens_in_the_order_of_pooling_are_no_map():
    """As in Hiera: 2 x 2 neighbours are a quarter of the sequence apart; after pooling they are a map."""
    unroll = lambda x: x.reshape(1, 3, 4, 2, 4, 2).permute(0, 3, 5, 2, 4, 1).reshape(1, 64, 3)  # noqa: E731
    images = torch.randn(1, 3, 8, 8)
    assert layout_after(images, unroll)[0] is None
    pooled, result = layout_after(images, unroll, lambda x: x.view(1, 4, 16, 3).max(dim=1).values)
    assert pooled == Layout("tokens", (4, 4))
    assert torch.equal(grid(result, pooled), F.max_pool2d(images, 2))


RESAMPLING = {
    "strided convolution": (nn.Conv2d(3, 5, 3, 2, 1), "channels first", (4, 6)),
    "padding by hand": (nn.Sequential(nn.ZeroPad2d((3, 3, 3, 3)), nn.Conv2d(3, 5, 7)), "channels first", (8, 12)),
    "asymmetric padding": (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 5, 3, 2)), "channels first", (4, 6)),
    "reflected padding": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), "channels first", (8, 12)),
    "max pooling": (nn.MaxPool2d(3, 2, 1), "channels first", (4, 6)),
    "adaptive pooling": (nn.AdaptiveAvgPool2d((3, 5)), "channels first", (3, 5)),
    "transposed convolution": (nn.ConvTranspose2d(3, 5, 2, 2), "channels first", (16, 24)),
    "upsampling": (nn.Upsample(scale_factor=4), "channels first", (32, 48)),
    "pixel unshuffle": (nn.PixelUnshuffle(2), "channels first", (4, 6)),
    "slices": (Steps(lambda x: x[:, :, 1::2, ::2]), "channels first", (4, 6)),
    "patch merging": (
        Steps(FIRST_TO_LAST[0], lambda x: x.view(1, 4, 2, 6, 2, 3).transpose(2, 3).flatten(3), nn.Linear(12, 7)),
        "channels last",
        (4, 6),
    ),
    "patches of a rearranged image": (
        Steps(lambda x: x.view(1, 3, 4, 2, 6, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 24, 12), nn.Linear(12, 7)),
        "tokens",
        (4, 6),
    ),
}


@pytest.mark.parametrize("name", RESAMPLING)
def test_a_coarser_or_finer_map_is_a_map(name):
    module, order, size = RESAMPLING[name]
    assert layout_after(torch.randn(1, 3, 8, 12), module)[0] == Layout(order, size)


class Pooled(nn.Module):
    """Attention whose queries are a class token and every other row and column, as in LeViT."""

    def __init__(self, fused):
        super().__init__()
        self.q, self.k, self.v, self.fused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 8), fused

    def forward(self, x):
        tokens = x.flatten(2).mT
        q = self.q(x.permute(0, 2, 3, 1)[:, ::2, ::2].flatten(1, 2))
        q = torch.cat([q.new_ones(len(q), 1, 4), q], 1)
        if self.fused:
            return F.scaled_dot_product_attention(q, self.k(tokens), self.v(tokens))
        return (q @ self.k(tokens).mT).softmax(-1) @ self.v(tokens)


@pytest.mark.parametrize("fused", [False, True])
def test_the_output_of_attention_has_the_positions_of_its_queries(fused):
    assert layout_after(torch.randn(1, 4, 8, 12), Pooled(fused))[0] == Layout("tokens", (4, 6), prefix=1)


def test_a_learned_query_gives_no_map():
    """An attention pooling head: its output is no map, however it is computed."""
    query = torch.randn(1, 1, 4)
    pool = lambda x: F.scaled_dot_product_attention(query, x.flatten(2).mT, x.flatten(2).mT)  # noqa: E731
    assert layout_after(torch.randn(1, 4, 8, 12), pool)[0] is None


def test_positions_written_into_another_tensor():
    def fill(x):
        out = torch.zeros(1, 3, 10, 14)
        out[:, :, 1:9, 1:13] = x
        return out[:, :, 1:-1, 1:-1]

    assert layout_after(torch.randn(1, 3, 8, 12), fill)[0] == Layout("channels first", (8, 12))


def test_attention_between_channels_keeps_the_positions():
    attend = lambda x: (x.flatten(2) @ x.flatten(2).mT).softmax(-1) @ x.flatten(2)  # noqa: E731
    assert layout_after(torch.randn(1, 4, 8, 12), attend)[0] == Layout("channels first tokens", (8, 12))


# --- against timm's own maps

#: Families with every layout, with maps that are not square or of odd size where possible; and how many of timm's
#: intermediate features are a stream (the others come after a stem, a downsampling or a norm).
MODELS = {
    "resnet18": ((40, 72), {}, 4),
    "convnext_atto": ((64, 96), {}, 4),
    "tf_mobilenetv3_small_100": ((65, 97), {}, 2),  # pads by hand
    "vit_tiny_patch16_224": ((32, 48), {"img_size": (32, 48)}, 12),
    "vit_wee_patch16_reg1_gap_256": ((32, 48), {"img_size": (32, 48)}, 14),
    "deit_tiny_distilled_patch16_224": ((48, 32), {"img_size": (48, 32)}, 12),
    "swin_tiny_patch4_window7_224": ((64, 96), {"img_size": (64, 96), "window_size": 2}, 4),
    "maxvit_pico_rw_256": ((64, 64), {"img_size": 64}, 5),
    "xcit_nano_12_p16_224": ((32, 48), {}, 12),
    "davit_tiny": ((64, 96), {}, 4),
    "levit_128s": ((64, 64), {"img_size": 64}, 3),
    "poolformer_s12": ((64, 96), {}, 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_maps_are_those_that_timm_gives(name):
    size, arguments, streams = MODELS[name]
    torch.manual_seed(0)
    model, images = timm.create_model(name, **arguments).eval(), torch.randn(1, 3, *size)
    ours = all_maps(model, images)
    with torch.no_grad():
        theirs = model.forward_intermediates(images, norm=False, output_fmt="NCHW", intermediates_only=True)
    assert sum(any(torch.equal(our, their) for our in ours) for their in theirs) == streams
    assert not any(is_permuted(our, their) for our in ours for their in theirs)


def all_maps(model, images):
    taps, maps = stream_taps(units(model, images)), {}
    with torch.no_grad(), reading(model, taps, lambda i, x: maps.__setitem__(i, grid(x, taps[i].layout).clone())):
        model(images)
    return list(maps.values())


def is_permuted(a, b):
    if a.numel() != b.numel() or torch.equal(a, b):
        return False
    return torch.equal(a.flatten().sort().values, b.flatten().sort().values)


class Local(nn.Module):
    """Tokens behind three other tokens; each depends on its own patch only, so a changed patch shows its position."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        x = torch.cat([x.new_ones(len(x), 3, 6), x], 1)
        x = x + self.mix(x)
        return self.head(self.norm(x).mean(1))


@given(st.integers(0, 1), st.integers(0, 2))
@settings(max_examples=6, deadline=None)
def test_a_changed_patch_changes_its_position_of_the_map(i, j):
    model, images = Local(), torch.randn(1, 3, 8, 12)
    changed = images.clone()
    changed[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] += 1
    residual = units(model, images)
    (before,), (after,) = feature_maps(model, images, residual), feature_maps(model, changed, residual)
    differs = (before != after).any(1)[0]
    expected = torch.zeros(2, 3, dtype=torch.bool)
    expected[i, j] = True
    assert torch.equal(differs, expected)
