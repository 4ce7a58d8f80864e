"""Attention of models whose attention weights are known."""

import math

import numpy as np
import pytest
import torch
from known_models import Averaging, Mean, Residual, batches, blur, noise, stem, tower, unchanged
from torch import nn
from torch.nn import functional as F

from backlight import attention, units
from backlight.analyses.attention.measure import METRICS, NEVER, summary
from backlight.errors import UserError
from backlight.models.architectures.window_attention import WindowAttention, windows
from backlight.numerics.bootstrap import mean_interval
from backlight.report.sections import attention as section
from backlight.tracing import attention_maps as module
from backlight.tracing.attention_maps import attention_calls, reading_attention


def positions(h, w, stride=1.0):
    """The centres of a map's positions in pixels, row by row."""
    return [((y + 0.5) * stride, (x + 0.5) * stride) for y in range(h) for x in range(w)]


def slowly(weights, queries, keys):
    """The four metrics of one attention matrix with loops."""
    n, m = len(queries), len(keys)
    mean_distance = mean_entropy = 0.0
    for q in range(n):
        for k in range(m):
            mean_distance += weights[q][k] * math.dist(queries[q], keys[k]) / n
            mean_entropy -= weights[q][k] * math.log(weights[q][k]) / n if weights[q][k] else 0
    key = [sum(weights[q][k] for q in range(n)) / n for k in range(m)]
    information = sum(weights[q][k] / n * math.log(weights[q][k] / key[k]) for q in range(n) for k in range(m) if weights[q][k])
    of_keys = -sum(p * math.log(p) for p in key if p)
    above = sum((weights[q][k] - key[k]) ** 2 for q in range(n) for k in range(m))
    total = sum(weights[q][k] ** 2 for q in range(n) for k in range(m))
    nmi = information / math.sqrt(math.log(n) * of_keys) if of_keys else 0
    return [mean_distance, mean_entropy, nmi, math.sqrt(above / total)]


def quickly(weights, queries, keys):
    queries, keys = (torch.tensor(t, dtype=torch.float64)[None] for t in (queries, keys))
    log_weights = weights.log().nan_to_num(neginf=NEVER)[None, None, None]
    return summary(log_weights, torch.cdist(queries, keys))[0, 0, 0].tolist()


def values(result):
    return [[row[metric] for metric in METRICS] for row in result.rows()]


# --- the mathematics


def test_uniform_attention():
    at = positions(3, 4)
    uniform = torch.full((12, 12), 1 / 12, dtype=torch.float64)
    expected = np.mean([math.dist(a, b) for a in at for b in at])
    assert quickly(uniform, at, at) == pytest.approx([expected, math.log(12), 0, 0], abs=1e-7)


def test_attention_of_each_token_to_itself():
    at = positions(3, 4)
    assert quickly(torch.eye(12, dtype=torch.float64), at, at) == pytest.approx([0, 0, 1, math.sqrt(11 / 12)])


def test_attention_to_one_key_has_no_information_about_the_query():
    at = positions(2, 2)
    one = torch.zeros(4, 4, dtype=torch.float64)
    one[:, 0] = 1
    assert quickly(one, at, at) == pytest.approx([(0 + 1 + 1 + math.sqrt(2)) / 4, 0, 0, 0])


@pytest.mark.parametrize("keys", [(3, 3), (2, 1)])
def test_the_metrics_are_their_definitions(keys):
    queries, keys = positions(3, 3), positions(*keys, stride=2.0)
    weights = (2 * noise(9, len(keys))).double().softmax(-1)
    assert quickly(weights, queries, keys) == pytest.approx(slowly(weights.tolist(), queries, keys))


# --- the models


def test_a_model_that_averages_has_uniform_attention():
    result = attention(tower(Residual(Averaging(torch.eye(3)))), batches(noise(6, 3, 8, 8), 3))
    at = positions(8, 8)
    expected = np.mean([math.dist(a, b) for a in at for b in at])
    (row,) = result.rows()
    assert [row[metric] for metric in METRICS] == pytest.approx([expected, math.log(64), 0, 0], abs=1e-5)
    assert (row["unit"], row["kind"], row["stage"], row["head"]) == (0, "attention", 0, 0)
    assert result.provenance["uniform"][0] == pytest.approx({"distance": expected, "entropy": math.log(64)})


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


class ClassToken(nn.Module):
    """Patches of 2 x 2 pixels as tokens after a class token, one attention, a classifier on the class token."""

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
def test_a_class_token_is_left_out_and_the_metrics_are_those_of_the_matrix_fused_or_not(how):
    model, images = ClassToken(how).double().eval(), noise(6, 3, 6, 8).double()
    with torch.no_grad():
        weights = model.attend.weights(model.tokens(images))[..., 1:, 1:]
    weights = weights / weights.sum(-1, keepdim=True)
    at = positions(3, 4, stride=2.0)
    known = np.array([[slowly(head.tolist(), at, at) for head in image] for image in weights])
    with unchanged(model):
        result = attention(model, batches(images, 4), resamples=200, seed=3)
    expected = mean_interval(known, resamples=200, seed=3)
    for head, row in enumerate(result.rows()):
        for k, metric in enumerate(METRICS):
            interval = [row[f"{metric}{end}"] for end in ("", "_low", "_high")]
            assert interval == pytest.approx([ends[head, k] for ends in expected], abs=1e-9)


def test_windows_with_relative_positions_and_padding():
    """A map of 6 x 6 in windows of 4 x 4: padding is left out, as a query and as a key."""
    torch.manual_seed(0)
    branch = WindowAttention(4, 4, heads=2, dim_head=3, window=4, bias_per_head=True)
    nn.init.normal_(branch.bias_table)
    model, images = tower(Residual(branch), channels=4, classes=5, first=stem(3, 4)).double().eval(), noise(3, 3, 6, 6).double()
    with torch.no_grad():
        q, k, _ = branch.qkv(windows(F.pad(model[0](images), (0, 2, 0, 2)), 4, 4)).unflatten(2, (3, 2, 3)).unbind(2)
        logits = torch.einsum("wnhd,wmhd->whnm", q, k) / math.sqrt(3) + branch.bias(4, 4)
    at = torch.tensor(positions(8, 8)).T.reshape(1, 2, 8, 8)
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
    measured = values(attention(model, [images]))
    assert np.array(measured) == pytest.approx(np.array(known), abs=1e-9)


def test_shifted_windows_have_the_positions_before_the_roll():
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(2,), num_heads=(2,), num_classes=3
    ).eval()  # fmt: skip
    images = noise(2, 3, 16, 16)
    unshifted, shifted = attention_calls(model, images)[0]
    assert unshifted.queries[0, [0, 1, 4]].tolist() == [[1, 1], [1, 3], [3, 1]]
    assert shifted.queries[0, 0].tolist() == [5, 5]  # rolled by two tokens of two pixels
    rows = shifted.queries[-1, :, 0].unique().tolist()
    assert rows == [1, 3, 13, 15]  # both edges of the image in one window
    distances = [row["distance"] for row in attention(model, [images]).rows()]
    assert all(0 < d < math.hypot(6, 6) for d in distances)  # the mask separates both edges


def test_channel_attention_is_not_attention_between_positions():
    class Channels(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
            return ((q @ k.transpose(1, 2)).softmax(-1) @ v).view(x.shape)

    with pytest.raises(UserError, match="no attention between positions"):
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
            outputs.append((v, F.scaled_dot_product_attention(q, k, v, **options)))
            return x + outputs[-1][1].mean(1).transpose(1, 2).view(x.shape)

    keys = 2 if "enable_gqa" in options else 4
    outputs, logits = [], []
    model, images = Fused(), noise(2, 3, 2, 3)
    calls, _ = attention_calls(model, images)
    outputs.clear()
    with torch.no_grad(), reading_attention(model, calls, lambda i, values: logits.append(values)):
        model(images)
    ((v, mixed),) = outputs
    v = v.repeat_interleave(4 // v.shape[1], 1)
    assert torch.allclose(logits[0][:, 0].softmax(-1) @ v, mixed, atol=1e-6)


def test_reading_changes_nothing():
    model, images = ClassToken("fused").eval(), noise(2, 3, 6, 8)
    calls, unknown = attention_calls(model, images)
    assert unknown == []
    with torch.no_grad():
        before = model(images)
        with reading_attention(model, calls, lambda i, logits: None):
            assert torch.equal(model(images), before)


def test_few_images_at_a_time_or_all(monkeypatch):
    model, data = ClassToken("fused").eval(), [noise(5, 3, 6, 8)]
    expected = np.array(values(attention(model, data)))
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", {"cpu": 2 * 2 * 13 * 13})
    assert np.array(values(attention(model, data))) == pytest.approx(expected)


# --- the page, claims, refusals


def test_the_page_names_the_metrics_in_their_order():
    assert tuple(section.NAMES) == METRICS


class SimilarTokens(nn.Module):
    """Attention to similar tokens, more concentrated with a larger gain; uniform if the gain is 0."""

    def __init__(self, gain):
        super().__init__()
        self.gain, self.out = gain, nn.Identity()

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.out(((self.gain * tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens).transpose(1, 2).view(x.shape))


@pytest.mark.parametrize(("gains", "verdicts"), [((50, 0), ["holds", "holds"]), ((0, 50), ["does not hold"] * 2)])
def test_the_claims_compare_the_ends_of_a_stage(gains, verdicts):
    model = tower(*(Residual(SimilarTokens(gain)) for gain in gains))
    result = attention(model, batches(noise(24, 3, 6, 6), 8))
    assert [claim.verdict for claim in result.claims] == verdicts
    first, last = result.rows()
    assert result.claims[0].value == pytest.approx(last["distance"] - first["distance"])
    assert result.claims[1].value == pytest.approx(last["nmi"] - first["nmi"])
    assert [row["unit"] for row in (first, last)] == [unit.index for unit in units(model, noise(2, 3, 6, 6))]


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (tower(blur()), [noise(2, 3, 8, 8)], "no attention between positions of the image"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), Mean()), [noise(2, 3, 8, 8)], "no attention between positions of the image"),
        (ClassToken("fused"), [], "no images"),
        (ClassToken("fused"), [noise(2, 3, 8, 8), noise(2, 3, 6, 6)], "images of 8 x 8 and 6 x 6"),
    ],
)
def test_refuses_in_one_sentence(model, data, message):
    with unchanged(model.train()), pytest.raises(UserError, match=message) as refusal:
        attention(model, data)
    assert "\n" not in str(refusal.value)


def test_the_depth_of_an_attention_is_its_place_among_all_units() -> None:
    """Not among the attentions: in an AlterNet they stand at the ends of stages."""
    from backlight import attention, load_data, load_model

    model = load_model("demo-alternet")  # ccc ccca ccca: attentions are units 6 and 10 of 11
    result = attention(model, load_data("fashion", model=model, limit=4))
    assert list(result._depths()) == [0.6, 1.0]


def test_attention_shares_the_pass_of_other_analyses_and_is_the_same_to_the_bit():
    """Five analyses, one forward pass a batch; where a model has no attention the others run without a second pass."""
    from backlight import calibration, fourier, similarity, variance
    from backlight.analyses.together import measured_together

    torch.manual_seed(0)
    functions = {f.__name__: f for f in (fourier, variance, similarity, attention, calibration)}
    model = tower(Residual(Averaging(torch.eye(3))), blur(), Residual(Averaging(torch.eye(3))))
    data = batches(noise(12, 3, 8, 8), 6, torch.arange(12) % 10)
    alone = {name: f(model, data, resamples=20) for name, f in functions.items()}
    passes = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    together = measured_together(model, data, list(functions), resamples=20)
    found = len(passes)
    assert {result.analysis for result in together.results} == set(functions)
    for result in together.results:
        assert str(result.rows()) == str(alone[result.analysis].rows())
        assert result.provenance["settings"] == alone[result.analysis].provenance["settings"]
    passes.clear()
    measured_together(model, data, ["variance"], resamples=20)
    looking = 2  # for the attention and, once more, for the units around it
    assert found <= len(passes) + looking
    handle.remove()

    without, seen = tower(blur(), blur()), []
    handle = without.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    outcome = measured_together(without, data, ["fourier", "attention"], resamples=20)
    assert [result.analysis for result in outcome.results] == ["fourier"]
    assert "no attention between positions" in outcome.not_applicable["attention"]
    assert seen.count(6) == 2  # each batch once
    handle.remove()
