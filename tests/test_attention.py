"""Attention of which it is known where it looks."""

import math

import numpy as np
import pytest
import torch
from known_models import Averaging, Mean, Residual, batches, blur, noise, stem, tower, unchanged
from torch import nn
from torch.nn import functional as F

from backlight import units
from backlight.analyses import attention as module
from backlight.analyses.attention import NUMBERS, attention, distance, entropy, high_frequency, mutual_information
from backlight.attending import attentions, watching
from backlight.errors import UserError
from backlight.models.attention import WindowAttention, windows
from backlight.numerics.bootstrap import mean_interval


def places(h, w, stride=1.0):
    """The centres of a map's places in pixels, as an image is read."""
    return [((y + 0.5) * stride, (x + 0.5) * stride) for y in range(h) for x in range(w)]


def slowly(weights, queries, keys):
    """The four numbers of one attention matrix with loops."""
    n, m = len(queries), len(keys)
    far = looks = 0.0
    for q in range(n):
        for k in range(m):
            far += weights[q][k] * math.dist(queries[q], keys[k]) / n
            looks -= weights[q][k] * math.log(weights[q][k]) / n if weights[q][k] else 0
    key = [sum(weights[q][k] for q in range(n)) / n for k in range(m)]
    information = sum(weights[q][k] / n * math.log(weights[q][k] / key[k]) for q in range(n) for k in range(m) if weights[q][k])
    of_keys = -sum(p * math.log(p) for p in key if p)
    above = sum((weights[q][k] - key[k]) ** 2 for q in range(n) for k in range(m))
    whole = sum(weights[q][k] ** 2 for q in range(n) for k in range(m))
    return [far, looks, information / math.sqrt(math.log(n) * of_keys) if of_keys else 0, math.sqrt(above / whole)]


def quickly(weights, queries, keys):
    queries, keys = (torch.tensor(t, dtype=torch.float64)[None] for t in (queries, keys))
    far = distance(weights[None, None, None], queries, keys)[0, 0, 0].mean()
    return [t.item() for t in (far, entropy(weights).mean(), mutual_information(weights), high_frequency(weights))]


def values(result):
    return [[row[number] for number in NUMBERS] for row in result.rows()]


# --- the mathematics


def test_attention_that_looks_everywhere_alike():
    at = places(3, 4)
    even = torch.full((12, 12), 1 / 12, dtype=torch.float64)
    far = np.mean([math.dist(a, b) for a in at for b in at])
    assert quickly(even, at, at) == pytest.approx([far, math.log(12), 0, 0], abs=1e-7)


def test_attention_that_looks_at_itself():
    at = places(3, 4)
    assert quickly(torch.eye(12, dtype=torch.float64), at, at) == pytest.approx([0, 0, 1, math.sqrt(11 / 12)])


def test_attention_that_looks_at_one_place_tells_nothing_of_the_query():
    at = places(2, 2)
    one = torch.zeros(4, 4, dtype=torch.float64)
    one[:, 0] = 1
    assert quickly(one, at, at) == pytest.approx([(0 + 1 + 1 + math.sqrt(2)) / 4, 0, 0, 0])


@pytest.mark.parametrize("keys", [(3, 3), (2, 1)])
def test_the_numbers_are_their_definitions(keys):
    queries, keys = places(3, 3), places(*keys, stride=2.0)
    weights = (2 * noise(9, len(keys))).double().softmax(-1)
    assert quickly(weights, queries, keys) == pytest.approx(slowly(weights.tolist(), queries, keys))


# --- the models


def test_a_model_that_averages_looks_everywhere_alike():
    result = attention(tower(Residual(Averaging(torch.eye(3)))), batches(noise(6, 3, 8, 8), 3))
    at = places(8, 8)
    far = np.mean([math.dist(a, b) for a in at for b in at])
    (row,) = result.rows()
    assert [row[number] for number in NUMBERS] == pytest.approx([far, math.log(64), 0, 0], abs=1e-5)
    assert (row["unit"], row["kind"], row["stage"], row["head"]) == (0, "attention", 0, 0)
    assert result.evidence["evenly"][0] == pytest.approx({"distance": far, "entropy": math.log(64)})


class Heads(nn.Module):
    """Attention of two heads of four channels over tokens: fused, by softmax, or torch's own."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.qkv = nn.Linear(8, 24)
        self.out = nn.MultiheadAttention(8, 2, batch_first=True) if how == "torch" else nn.Linear(8, 8)
        if how == "torch":
            with torch.no_grad():
                self.out.in_proj_weight.copy_(self.qkv.weight)
                self.out.in_proj_bias.copy_(self.qkv.bias)

    def weights(self, tokens):
        q, k, _ = self.split(tokens)
        return (q @ k.transpose(-2, -1) / 2).softmax(-1)

    def split(self, tokens):
        return self.qkv(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)

    def forward(self, tokens):
        if self.how == "torch":
            return self.out(tokens, tokens, tokens)[0]
        q, k, v = self.split(tokens)
        if self.how == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "einsum":
            mixed = torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q / 2, k).softmax(-1), v)
        else:
            mixed = (q * 0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Behind(nn.Module):
    """Patches of 2 x 2 pixels as tokens behind a class token, one attention, a head on the class token."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(2)
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        self.attend = Heads(how)
        self.head = nn.Linear(8, 4)

    def tokens(self, x):
        patches = self.patches(2 * x).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1)

    def forward(self, x):
        x = self.tokens(x)
        return self.head((x + self.attend(x))[:, 0])


@pytest.mark.parametrize("how", ["fused", "softmax", "einsum", "torch"])
def test_a_class_token_is_left_out_and_fused_or_not_the_numbers_are_those_of_the_matrix(how):
    model, images = Behind(how).double().eval(), noise(6, 3, 6, 8).double()
    with torch.no_grad():
        weights = model.attend.weights(model.tokens(images))[..., 1:, 1:]
    weights = weights / weights.sum(-1, keepdim=True)
    at = places(3, 4, stride=2.0)
    known = np.array([[slowly(head.tolist(), at, at) for head in image] for image in weights])
    with unchanged(model):
        result = attention(model, batches(images, 4), resamples=200, seed=3)
    expected = mean_interval(known, resamples=200, seed=3)
    for head, row in enumerate(result.rows()):
        for k, number in enumerate(NUMBERS):
            found = [row[f"{number}{end}"] for end in ("", "_low", "_high")]
            assert found == pytest.approx([ends[head, k] for ends in expected], abs=1e-9)


def test_windows_with_relative_positions_and_padding():
    """A map of 6 x 6 in windows of 4 x 4: padding is no place, neither as a query nor as a key."""
    torch.manual_seed(0)
    branch = WindowAttention(4, 4, heads=2, dim_head=3, window=4, bias_per_head=True)
    nn.init.normal_(branch.bias_table)
    model, images = tower(Residual(branch), channels=4, classes=5, first=stem(3, 4)).double().eval(), noise(3, 3, 6, 6).double()
    with torch.no_grad():
        q, k, _ = branch.qkv(windows(F.pad(model[0](images), (0, 2, 0, 2)), 4, 4)).unflatten(2, (3, 2, 3)).unbind(2)
        logits = torch.einsum("wnhd,wmhd->whnm", q, k) / math.sqrt(3) + branch.bias(4, 4)
    at = torch.tensor(places(8, 8)).T.reshape(1, 2, 8, 8)
    where = windows(at, 4, 4)  # (4, 16, 2)
    known = []
    for head in range(2):
        several = []
        for image in range(3):
            for w in range(4):
                here = [t for t in range(16) if max(where[w, t]) < 6]
                weights = logits[4 * image + w, head][here][:, here].softmax(-1).tolist()
                at_here = [tuple(where[w, t].tolist()) for t in here]
                several.append(slowly(weights, at_here, at_here))
        known.append(np.mean(several, axis=0).tolist())
    found = values(attention(model, [images]))
    assert np.array(found) == pytest.approx(np.array(known), abs=1e-9)


def test_shifted_windows_know_what_was_rolled():
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(2,), num_heads=(2,), num_classes=3
    ).eval()  # fmt: skip
    images = noise(2, 3, 16, 16)
    straight, shifted = attentions(model, images)[0]
    assert straight.queries[0, [0, 1, 4]].tolist() == [[1, 1], [1, 3], [3, 1]]
    assert shifted.queries[0, 0].tolist() == [5, 5]  # rolled by two tokens of two pixels
    rows = shifted.queries[-1, :, 0].unique().tolist()
    assert rows == [1, 3, 13, 15]  # both edges of the image in one window
    far = [row["distance"] for row in attention(model, [images]).rows()]
    assert all(0 < d < math.hypot(6, 6) for d in far)  # the mask keeps them apart


def test_channel_attention_is_not_attention_between_places():
    class Channels(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
            return ((q @ k.transpose(1, 2)).softmax(-1) @ v).view(x.shape)

    with pytest.raises(UserError, match="no attention between places"):
        attention(tower(Residual(Channels())), [noise(2, 3, 8, 8)])


# --- the fused call


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.ones(6, 6).tril().bool()},
        {"attn_mask": noise(6, 6, seed=5)},
        {"enable_gqa": True},
    ],
    ids=",".join,
)
def test_the_matrix_of_a_fused_call_is_the_one_it_uses(options):
    class Fused(nn.Module):
        def forward(self, x):
            t = x.flatten(2).transpose(1, 2)[:, None]
            q, k, v = (torch.cat([gain * t for gain in range(1, heads + 1)], 1) for heads in (4, keys, keys))
            seen.append((v, F.scaled_dot_product_attention(q, k, v, **options)))
            return x + seen[-1][1].mean(1).transpose(1, 2).view(x.shape)

    keys = 2 if "enable_gqa" in options else 4
    seen, logits = [], []
    model, images = Fused(), noise(2, 3, 2, 3)
    found, _ = attentions(model, images)
    seen.clear()
    with torch.no_grad(), watching(model, found, lambda i, given: logits.append(given)):
        model(images)
    ((v, mixed),) = seen
    v = v.repeat_interleave(4 // v.shape[1], 1)
    assert torch.allclose(logits[0][:, 0].softmax(-1) @ v, mixed, atol=1e-6)


def test_watching_changes_nothing():
    model, images = Behind("fused").eval(), noise(2, 3, 6, 8)
    found, unknown = attentions(model, images)
    assert unknown == []
    with torch.no_grad():
        before = model(images)
        with watching(model, found, lambda i, logits: None):
            assert torch.equal(model(images), before)


def test_few_images_at_a_time_or_all():
    model, data = Behind("fused").eval(), [noise(5, 3, 6, 8)]
    whole = attention(model, data).rows()
    limit, module.LIMIT = module.LIMIT, 2 * 2 * 13 * 13
    try:
        assert np.array(values(attention(model, data))) == pytest.approx(np.array([[row[n] for n in NUMBERS] for row in whole]))
    finally:
        module.LIMIT = limit


# --- claims, refusals


class Sharpening(nn.Module):
    """Attention to alike places, the sharper the greater the gain; 0 looks everywhere."""

    def __init__(self, gain):
        super().__init__()
        self.gain, self.out = gain, nn.Identity()

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.out(((self.gain * tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens).transpose(1, 2).view(x.shape))


@pytest.mark.parametrize(("gains", "verdicts"), [((50, 0), ["holds", "holds"]), ((0, 50), ["does not hold"] * 2)])
def test_the_claims_compare_the_ends_of_a_stage(gains, verdicts):
    model = tower(*(Residual(Sharpening(gain)) for gain in gains))
    result = attention(model, batches(noise(16, 3, 6, 6), 8))
    assert [claim.verdict for claim in result.claims] == verdicts
    first, last = result.rows()
    assert result.claims[0].value == pytest.approx(last["distance"] - first["distance"])
    assert result.claims[1].value == pytest.approx(last["nmi"] - first["nmi"])
    assert [row["unit"] for row in (first, last)] == [unit.index for unit in units(model, noise(2, 3, 6, 6))]


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        (tower(blur()), [noise(2, 3, 8, 8)], "no attention between places of the image"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), Mean()), [noise(2, 3, 8, 8)], "no attention between places of the image"),
        (Behind("fused"), [], "no images"),
        (Behind("fused"), [noise(2, 3, 8, 8), noise(2, 3, 6, 6)], "images of 8 x 8 and 6 x 6"),
    ],
)
def test_refuses_in_one_sentence(model, data, says):
    with unchanged(model.train()), pytest.raises(UserError, match=says) as refusal:
        attention(model, data)
    assert "\n" not in str(refusal.value)
