"""Lesions of models in which the contribution of each unit is known."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from known_models import (
    BINOMIAL,
    Averaging,
    Residual,
    batches,
    blur,
    deciding,
    decisive,
    filtering,
    identity,
    labelled_images,
    noise,
    pointwise,
    reading_upper_channels,
    sharpen,
    stem,
    tower,
    unchanged,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from backlight import lesion, load_data, load_model
from backlight.errors import UserError
from backlight.files import PartialResults
from backlight.numerics.bootstrap import skewed_mean_interval
from backlight.tracing import replay
from backlight.tracing.find import units
from backlight.tracing.hooks import without

CLASSES = 4


def data(n=40, size=20):
    images, labels = labelled_images(n, CLASSES)
    return batches(images, size, labels)


def idle():
    return pointwise(torch.zeros(2 * CLASSES, 2 * CLASSES))


def attending(value):
    return Residual(Averaging(value))


# --- what a lesion costs


def test_without_the_deciding_unit_accuracy_is_chance():
    intact, louder, deciding_unit, elsewhere = lesion(decisive(CLASSES), data()).rows()
    assert (intact["unit"], intact["kind"], intact["accuracy"]) == (-1, "whole", 1)
    assert deciding_unit["accuracy"] == 1 / CLASSES
    assert deciding_unit["accuracy_change"] == 1 / CLASSES - 1
    assert deciding_unit["nll"] == pytest.approx(math.log(CLASSES))  # all logits equal
    assert louder["accuracy_change"] == elsewhere["accuracy_change"] == 0
    assert elsewhere["nll_change"] == elsewhere["nll_change_low"] == elsewhere["nll_change_high"] == 0


def test_a_lesion_is_a_branch_whose_weights_are_zero():
    """Computed again: the last layer of each branch is set to zero in a copy of the model."""
    model = tower(blur(), sharpen(), pointwise(noise(3, 3)), classes=CLASSES).eval()
    images, labels = noise(30, 3, 8, 8), torch.arange(30) % CLASSES
    _, *rows = lesion(model, batches(images, 10, labels)).rows()
    for row in rows:
        other = copy.deepcopy(model)
        nn.init.zeros_(other.get_submodule(row["module"]).weight)
        with torch.no_grad():
            logits = other(images)
        assert row["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        assert row["nll"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_change_is_without_minus_intact_with_a_paired_interval():
    images, labels = noise(30, 3, 8, 8), torch.arange(30) % CLASSES
    model = tower(blur(), sharpen(), classes=CLASSES).eval()
    intact, *rows = lesion(model, batches(images, 30, labels), resamples=200, seed=2).rows()
    for i, row in enumerate(rows):
        other = copy.deepcopy(model)
        nn.init.zeros_(other[i + 1].branch.weight)
        with torch.no_grad():
            nll = nn.functional.cross_entropy(model(images), labels, reduction="none")
            without = nn.functional.cross_entropy(other(images), labels, reduction="none")
        paired = skewed_mean_interval((without - nll).double().numpy(), resamples=200, seed=2)
        assert row["nll_change"] == pytest.approx(row["nll"] - intact["nll"])
        assert [row[f"nll_change{end}"] for end in ("", "_low", "_high")] == pytest.approx(list(map(float, paired)), abs=1e-6)
        alone = skewed_mean_interval(without.double().numpy(), resamples=200, seed=2)
        assert paired.high - paired.low < 0.7 * (alone.high - alone.low)  # pairing reduces the variance


def test_an_idle_unit_costs_nothing():
    _, row, _ = lesion(tower(identity(), blur(), classes=CLASSES), [(noise(8, 3, 8, 8), torch.arange(8) % 4)]).rows()
    assert [row[f"nll_change{end}"] for end in ("", "_low", "_high")] == [0] * 3
    half = 1.96**2 / (8 + 1.96**2)  # Tango's interval of 8 images of which none changes
    assert [row[f"accuracy_change{end}"] for end in ("", "_low", "_high")] == pytest.approx([0, -half, half], rel=1e-4)


def test_the_provenance_holds_the_intervals_of_the_intact_model():
    images, labels = labelled_images(40, CLASSES)
    labels[:10] = (labels[:10] + 1) % CLASSES
    value, low, high = lesion(decisive(CLASSES), batches(images, 20, labels)).provenance["whole"]["accuracy"]
    assert value == 0.75
    assert low < 0.75 < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.75 * 0.25 / 40), rel=0.15)


# --- the paper's claims


@pytest.mark.parametrize(
    ("units", "verdict"),
    [
        ([pointwise(deciding(CLASSES)), idle()], "holds"),
        ([idle(), pointwise(deciding(CLASSES))], "does not hold"),
        ([idle(), idle()], "undecided"),
    ],
)
def test_the_first_unit_of_a_stage_against_the_last(units, verdict):
    (claim,) = lesion(reading_upper_channels(*units, classes=CLASSES), data()).claims
    assert claim.statement == "Within a stage, losing the first unit hurts more than losing the last."
    assert claim.verdict == verdict
    if verdict != "undecided":
        assert abs(claim.value) == 75  # percentage points, from 100 to chance


@pytest.mark.parametrize(
    ("attention", "other", "verdict"),
    [(deciding(CLASSES), None, "holds"), (None, deciding(CLASSES), "does not hold"), (None, None, "undecided")],
)
def test_the_last_attention_of_a_stage_against_its_last_other_unit(attention, other, verdict):
    nothing = torch.zeros(2 * CLASSES, 2 * CLASSES)
    model = reading_upper_channels(
        idle(),
        attending(nothing if attention is None else attention),
        pointwise(nothing if other is None else other),
        classes=CLASSES,
    )
    claim = lesion(model, data()).claims[1]
    assert claim.statement == "At the end of a stage, losing an attention hurts more than losing another unit."
    assert claim.verdict == verdict


def test_a_model_of_one_unit_a_stage_has_nothing_to_compare():
    assert lesion(reading_upper_channels(pointwise(deciding(CLASSES)), classes=CLASSES), data()).claims == []


# --- what replaces a branch


def known_replacement(model, module, images, replaced):
    """Logits with the output of a module replaced by a function of its output for all images."""
    handle = model.get_submodule(module).register_forward_hook(lambda module, args, out: replaced(out))
    try:
        with torch.no_grad():
            return model(images)
    finally:
        handle.remove()


def test_a_mean_branch_is_the_mean_over_all_images():
    model = tower(blur(), pointwise(noise(3, 3, seed=1)), pointwise(noise(3, 3)), classes=CLASSES).eval()
    images, labels = noise(33, 3, 8, 8) + 1, torch.arange(33) % CLASSES
    result = lesion(model, batches(images, 10, labels), replace="mean")
    for row in result.rows()[1:]:
        logits = known_replacement(model, row["module"], images, lambda out: out.mean(0, keepdim=True).expand_as(out))
        assert row["nll"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        zeroed = known_replacement(model, row["module"], images, torch.zeros_like)
        assert row["nll"] != pytest.approx(F.cross_entropy(zeroed, labels).item(), rel=1e-3)
    assert result.provenance["settings"]["replace"] == "mean"


def test_a_unit_that_adds_the_same_to_all_images_is_not_needed_if_its_mean_is_left():
    model = tower(attending_constant(), blur(), classes=CLASSES)
    data = batches(noise(20, 3, 8, 8), 10, torch.arange(20) % CLASSES)
    zero, mean = (lesion(model, data, replace=replace).rows()[1] for replace in ("zero", "mean"))
    assert abs(zero["nll_change"]) > 0.1
    assert mean["nll_change"] == pytest.approx(0, abs=1e-5)


def attending_constant():
    unit = pointwise(torch.zeros(3, 3))
    unit.branch.bias = nn.Parameter(torch.tensor([3.0, -4, 5]))
    return unit


def test_a_resampled_branch_is_that_of_another_image():
    """Predictions follow the branch of the deciding unit: correct if the other image has the same class."""
    n = 40
    images, labels = labelled_images(n, CLASSES)
    _, _, row, _ = lesion(decisive(CLASSES), [(images, labels)], replace="resampled", seed=3).rows()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(3)).tolist()
    partner = {image: order[k - 1] for k, image in enumerate(order)}
    assert all(image != other for image, other in partner.items())
    assert row["accuracy"] == pytest.approx(np.mean([labels[i] == labels[partner[i]] for i in range(n)]))
    again, other_seed = (lesion(decisive(CLASSES), data(), replace="resampled", seed=s).rows() for s in (3, 4))
    assert again == lesion(decisive(CLASSES), data(), replace="resampled", seed=3).rows()
    assert again != other_seed


def test_a_last_batch_of_one_image_is_joined_to_the_batch_before():
    images, labels = labelled_images(21, CLASSES)
    result = lesion(decisive(CLASSES), batches(images, 10, labels), replace="resampled")
    assert result.provenance["images"] == 21
    with pytest.raises(UserError, match="needs the branch of another image, and there is only one"):
        lesion(decisive(CLASSES), [(images[:1], labels[:1])], replace="resampled")


def test_a_first_batch_of_one_image_is_joined_to_the_next():
    """Alone it would take its own branch, and seem unharmed."""
    images, labels = labelled_images(9, CLASSES)
    sizes = (1, 4, 4)
    uneven = lesion(decisive(CLASSES), list(zip(images.split(sizes), labels.split(sizes), strict=True)), replace="resampled")
    joined = lesion(decisive(CLASSES), list(zip(images.split((5, 4)), labels.split((5, 4)), strict=True)), replace="resampled")
    assert uneven.table == joined.table


class Windows(nn.Module):
    """Splits a map into quarters and applies a layer to each, as windowed attention does: four parts per image."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        b, c, h, w = x.shape
        parts = x.view(b, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).reshape(b * 4, c, h // 2, w // 2)
        return self.mix(parts).view(b, 2, 2, c, h // 2, w // 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def test_branches_in_windows_are_split_by_image():
    torch.manual_seed(0)
    model = tower(Residual(Windows()), classes=CLASSES).eval()
    images, labels = noise(12, 3, 8, 8), torch.arange(12) % CLASSES
    (unit,) = units(model, images[:2])
    assert unit.branch[0].module.endswith("mix") or unit.branch[0].module.endswith("branch")
    _, row = lesion(model, [(images, labels)], replace="mean").rows()
    logits = known_replacement(model, "1.branch", images, lambda out: out.mean(0, keepdim=True).expand_as(out))
    assert row["nll"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


class TokensFirst(nn.Module):
    """A unit whose only layer returns (N, B, C): its first axis is not the images."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, x):
        return x + self.mix(x.flatten(2).permute(2, 0, 1)).permute(1, 2, 0).reshape(x.shape)


@pytest.mark.parametrize("replace", ["mean", "resampled"])
def test_a_branch_whose_first_axis_is_not_the_images_is_left_out(replace):
    images, labels = noise(8, 3, 8, 8), torch.arange(8) % CLASSES
    with pytest.raises(UserError, match="no branch of Sequential can be split by image"):
        lesion(tower(TokensFirst(), classes=CLASSES), [(images, labels)], replace=replace)
    result = lesion(tower(TokensFirst(), blur(), classes=CLASSES), [(images, labels)], replace=replace)
    assert [row["unit"] for row in result.rows()] == [-1, 1]
    assert result.provenance["left_out"] == ["unit 0 (1.mix)"]
    assert len(lesion(tower(TokensFirst(), blur(), classes=CLASSES), [(images, labels)]).rows()) == 3


def test_without_may_add_something_else():
    model, images = tower(blur()).eval(), noise(2, 3, 8, 8)
    (unit,) = units(model, images)
    with torch.no_grad(), without(model, unit, lambda i, branch: 2 * branch):
        doubled = model(images)
    with torch.no_grad():
        x = model[0](images)
        assert doubled == pytest.approx(model[3](model[2](x + 2 * model[1].branch(x))).numpy(), abs=1e-6)


# --- heads


class Heads(nn.Module):
    """Attention of two heads of four channels over the positions of a map: fused, by softmax, or torch's own."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        if how == "torch":
            self.torch = nn.MultiheadAttention(8, 2, batch_first=True)
            with torch.no_grad():
                self.torch.in_proj_weight.copy_(self.qkv.weight)
                self.torch.in_proj_bias.copy_(self.qkv.bias)
                self.torch.out_proj.load_state_dict(self.out.state_dict())

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        if self.how == "torch":
            return self.torch(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)
        q, k, v = self.qkv(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.how == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


def with_heads(how):
    torch.manual_seed(1)
    first = stem(3, 8)
    unit = Residual(Heads(how))
    return tower(unit, blur_8(), channels=8, classes=CLASSES, first=first).eval()


def blur_8():
    return filtering(BINOMIAL, channels=8)


def test_a_silent_head_is_one_whose_values_are_zero_fused_or_not():
    images, labels = 3 * noise(16, 3, 4, 4), torch.arange(16) % CLASSES
    tables = []
    for how in ("fused", "softmax", "torch"):
        model = with_heads(how)
        with unchanged(model):
            table = lesion(model, batches(images, 8, labels), heads=True).rows()
        assert [(row["lesion"], row["unit"], row["head"]) for row in table] == [
            ("whole", -1, -1), ("unit", 0, -1), ("unit", 1, -1), ("head", 0, 0), ("head", 0, 1),
        ]  # fmt: skip
        tables.append([row["nll"] for row in table])
    assert tables[0] == pytest.approx(tables[1], rel=1e-5)
    assert tables[0] == pytest.approx(tables[2], rel=1e-5)
    for head in range(2):
        other = copy.deepcopy(with_heads("fused"))
        values = slice(16 + 4 * head, 20 + 4 * head)
        with torch.no_grad():
            other[1].branch.qkv.weight[values] = 0
            other[1].branch.qkv.bias[values] = 0
            logits = other(images)
        assert tables[0][3 + head] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


# --- pairs


def test_units_that_do_the_same_are_needed_only_together():
    model = reading_upper_channels(
        pointwise(deciding(CLASSES)), idle(), pointwise(deciding(CLASSES)), classes=CLASSES
    )  # fmt: skip
    table = lesion(model, data(), pairs=10).rows()
    pairs = {(row["unit"], row["other_unit"]): row for row in table if row["lesion"] == "pair"}
    assert list(pairs) == [(0, 1), (0, 2), (1, 2)]
    both = pairs[0, 2]
    assert both["accuracy"] == 1 / CLASSES
    assert both["accuracy_interaction"] == both["accuracy_change"] == 1 / CLASSES - 1
    assert pairs[0, 1]["accuracy_interaction"] == 0
    assert math.isnan(table[1]["accuracy_interaction"])


def test_an_interaction_is_the_pairs_change_less_both_its_units_and_paired():
    images, labels = noise(30, 3, 8, 8), torch.arange(30) % CLASSES
    model = tower(blur(), sharpen(), classes=CLASSES).eval()
    _, one, two, both = lesion(model, batches(images, 30, labels), pairs=1, resamples=200, seed=2).rows()
    nll = {}
    for silent in ((), (1,), (2,), (1, 2)):
        other = copy.deepcopy(model)
        for i in silent:
            nn.init.zeros_(other[i].branch.weight)
        with torch.no_grad():
            nll[silent] = F.cross_entropy(other(images), labels, reduction="none").double().numpy()
    interaction = nll[1, 2] - nll[1,] - nll[2,] + nll[()]
    known = skewed_mean_interval(interaction, resamples=200, seed=2)
    assert [both[f"nll_interaction{end}"] for end in ("", "_low", "_high")] == pytest.approx(list(map(float, known)), abs=1e-6)
    assert both["nll_interaction"] == pytest.approx(both["nll_change"] - one["nll_change"] - two["nll_change"], abs=1e-6)


def test_a_number_of_pairs_is_drawn_by_the_seed():
    model = reading_upper_channels(*(idle() for _ in range(5)), classes=CLASSES)

    def drawn(seed):
        table = lesion(model, data(8, 8), pairs=4, seed=seed, resamples=10).rows()
        return [(row["unit"], row["other_unit"]) for row in table if row["lesion"] == "pair"]

    assert len(set(drawn(0))) == 4
    assert drawn(0) == drawn(0) != drawn(1)
    assert set(drawn(0)) <= set(itertools.combinations(range(5), 2))


# --- position


def test_the_summary_by_position_is_the_mean_over_units():
    nothing = torch.zeros(2 * CLASSES, 2 * CLASSES)
    louder = pointwise(0.5 * torch.eye(2 * CLASSES))
    model = reading_upper_channels(
        pointwise(deciding(CLASSES, 3.0)), attending(nothing), louder, attending(nothing), idle(), classes=CLASSES
    )
    result = lesion(model, data())
    summary = {(row["position"], row["of"]): row for row in result.provenance["by_position"]}
    assert {key: row["units"] for key, row in summary.items()} == {
        ("first", "all"): 1, ("first", "others"): 1, ("middle", "all"): 3, ("middle", "attention"): 2,
        ("middle", "others"): 1, ("last", "all"): 1, ("last", "others"): 1,
    }  # fmt: skip
    assert summary["first", "all"]["accuracy_change"] == pytest.approx(1 / CLASSES - 1)
    assert summary["first", "all"]["accuracy_change_low"] < 1 / CLASSES - 1 < summary["first", "all"]["accuracy_change_high"]
    assert summary["last", "all"]["accuracy_change"] == 0
    for row in summary.values():
        singles = [r for r in result.rows()[1:] if row["of"] in ("all", "attention" if r["kind"] == "attention" else "others")]
        selected = {"first": [0], "middle": [1, 2, 3], "last": [4]}[row["position"]]
        mean = np.mean([r["nll_change"] for r in singles if r["unit"] in selected])
        assert row["nll_change"] == pytest.approx(mean, abs=1e-9)
    assert summary["middle", "all"]["nll_change"] > 0.01  # one of three: a sum would be another number


def test_the_only_unit_of_a_stage_has_no_position():
    assert lesion(reading_upper_channels(idle(), classes=CLASSES), data()).provenance["by_position"] == []


# --- refusals


# --- several processes


@pytest.mark.parametrize(
    "settings",
    [{"pairs": 8, "heads": True}, {"replace": "mean"}, {"replace": "resampled"}, {"by": "similarity"}],
    ids=lambda settings: next(iter(settings)),
)
def test_three_processes_make_the_result_of_one(settings: dict[str, Any], tmp_path: Path) -> None:
    """To the bit; a part alone has the rows that it knows, and neither claims nor positions."""
    model = load_model("test_vit", pretrained=False, num_classes=10)
    data = load_data("fashion", model=model, limit=5, batch_size=3)
    expected = lesion(model, data, **settings, resamples=10, seed=3)
    assert expected.provenance["missing_rows"] == []
    parts = [
        lesion(model, data, **settings, resamples=10, seed=3, shard=(rank, 3), partial_results=PartialResults(tmp_path, {}))
        for rank in (1, 2, 0)
    ]
    assert str(parts[-1].table) == str(expected.table)
    assert parts[-1].claims == expected.claims
    for key in ("by_position", "whole", "missing_rows"):
        assert str(parts[-1].provenance.get(key)) == str(expected.provenance.get(key))
    for key, array in expected.arrays.items():
        np.testing.assert_array_equal(parts[-1].arrays[key], array)
    lesions = len(expected.table) - 1
    score = "distance" if "by" in settings else "nll"
    for count, part in enumerate(parts[:-1], start=1):
        missing = part.provenance["missing_rows"]
        known = [row for i, row in enumerate(expected.table) if i not in missing]
        assert len(missing) == pytest.approx(lesions * (3 - count) / 3, abs=1)
        assert [row[score] for row in part.table] == [row[score] for row in known]
        assert not part.claims
        assert not part.provenance.get("by_position")
        present = {row["unit"] for row in part.table if row["lesion"] == "unit"}
        for row, whole in zip(part.table, known, strict=True):
            if row["lesion"] == "pair":
                both = {row["unit"], row["other_unit"]} <= present
                assert row["nll_interaction"] == whole["nll_interaction"] if both else math.isnan(row["nll_interaction"])


def test_each_process_runs_its_own_lesions_only(tmp_path: Path) -> None:
    passes: list[int] = []
    model = tower(blur(), sharpen(), pointwise(noise(3, 3)), classes=CLASSES).eval()
    data = [(noise(6, 3, 8, 8), torch.arange(6) % CLASSES)]
    model.register_forward_hook(lambda _, inputs, outputs: passes.append(len(outputs)) if len(outputs) == 6 else None)
    for rank in range(4):  # the last has none of the three lesions
        passes.clear()
        part = lesion(model, data, resamples=5, shard=(rank, 4), partial_results=PartialResults(tmp_path / str(rank), {}))
        assert len(passes) == 1 + (rank < 3)
        assert [row["unit"] for row in part.table] == [-1, *([rank] if rank < 3 else [])]


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), torch.tensor([0, 1, 2, 3]), "no residual units"),
        (tower(blur(), classes=4), None, "no tensor of labels"),
        (tower(blur(), classes=4), torch.tensor([0, 1, 2, 9]), "label 9 "),
        (tower(blur(), classes=4), torch.tensor([0, 1, 2, -100]), "label -100 "),
    ],
)
def test_refuses_in_one_sentence(model, labels, message):
    images = noise(4, 3, 8, 8)
    with unchanged(model.train()), pytest.raises(UserError, match=message) as refusal:
        lesion(model, [images if labels is None else (images, labels)])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replace": "means"}, "did you mean mean"),
        ({"replace": "mean", "heads": True}, "leave out heads or replace"),
        ({"pairs": -1}, "pairs is -1; it must be at least 0"),
        ({"shard": (1, 1)}, r"shard is \(1, 1\); it must be"),
        ({"heads": True}, "no attention whose heads can be silenced"),
    ],
)
def test_refuses_settings_in_one_sentence(options, message):
    with pytest.raises(UserError, match=message) as refusal:
        lesion(tower(blur(), classes=CLASSES), [(noise(4, 3, 8, 8), torch.arange(4))], **options)
    assert "\n" not in str(refusal.value)


def test_the_mean_needs_images_that_can_be_read_twice():
    with pytest.raises(UserError, match="reads the images twice"):
        lesion(tower(blur(), classes=CLASSES), iter([(noise(4, 3, 8, 8), torch.arange(4))]), replace="mean")


def test_one_image_has_no_interval():
    images, labels = labelled_images(1, CLASSES)
    result = lesion(decisive(CLASSES), [(images, labels)])
    assert np.isnan([result.rows()[2]["accuracy_change_low"], result.rows()[2]["nll_change_high"]]).all()
    assert {claim.verdict for claim in result.claims} == {"undecided"}


# --- modules that finished before the lesion are not run again


class Awkward(nn.Module):
    """In-place changes, a module that runs twice, a view, and a state: none of them may be handed back."""

    num_classes = 10
    pretrained_cfg: ClassVar = {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.first, self.second, self.third = (
            nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(3)
        )
        self.twice, self.view, self.act = nn.Conv2d(8, 8, 1), nn.Flatten(), nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.stem(images)
        stream = stream + self.first(stream)
        raw = stream
        stream = self.act(stream) + raw  # raw is changed in place
        stream = self.twice(self.twice(stream))
        stream = stream + self.second(stream)
        stream += self.third(stream)
        return self.head(self.view(stream.mean((2, 3), keepdim=True)))


REPLAYED = ["demo-cnn", "demo-vit", "demo-alternet", "test_vit", "test_resnet", "test_convnext2"]


@pytest.mark.parametrize("name", [*REPLAYED, "awkward"])
def test_handing_back_what_has_finished_changes_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to running every pass from the start: rows and the numbers of each image, for units, heads and pairs."""
    model = (
        Awkward().eval()
        if name == "awkward"
        else load_model(name, **({} if "demo" in name else {"pretrained": False, "num_classes": 10}))
    )
    data = load_data("fashion", model=model, limit=10, batch_size=5)
    settings: dict[str, Any] = {"pairs": 2} | ({"heads": True} if "vit" in name or "alternet" in name else {})
    before = {name: "forward" in module.__dict__ for name, module in model.named_modules()}
    quick = lesion(model, data, **settings)
    assert before == {name: "forward" in module.__dict__ for name, module in model.named_modules()}
    monkeypatch.setattr(replay, "LIMIT", 3000)  # few outputs fit
    little = lesion(model, data, **settings)
    monkeypatch.setattr(replay, "tried", lambda *_: {})
    plain = lesion(model, data, **settings)
    for other in (little, plain):
        assert str(other.table) == str(quick.table)
        for key, array in plain.arrays.items():
            np.testing.assert_array_equal(other.arrays[key], quick.arrays[key])
            assert array.dtype == quick.arrays[key].dtype


@pytest.mark.parametrize("name", ["demo-cnn", "demo-vit"])
def test_all_lesions_take_little_more_than_half_of_the_passes(name: str) -> None:
    """Multiply-accumulates, counted by torch: U + 1 passes from the start would be 1."""
    model = load_model(name)
    data = load_data("fashion", model=model, limit=8, batch_size=8)
    ((images, _),) = data
    with FlopCounterMode(display=False) as one, torch.inference_mode():
        model(images)
    count = len(lesion(model, data).table) - 1
    with FlopCounterMode(display=False) as all_of_them:
        lesion(model, data)
    trials = 4 * one.get_total_flops() * 2 / 8  # a few passes of two images find the units and try the modules
    assert all_of_them.get_total_flops() - trials < 0.65 * (count + 1) * one.get_total_flops()


def test_a_module_in_front_of_the_lesion_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Awkward().eval()
    images = torch.randn(2, 1, 28, 28)
    with torch.inference_mode():
        passes = replay.Replay(model, images)
        names = passes.finished(passes.moment("third"))
        assert "second" in names
        assert "stem" in names
        assert not names & {"act", "twice", "view", "third", "second.1"}
        with passes.keeping():
            expected = model(images)
        runs: list[str] = []
        model.second.register_forward_pre_hook(lambda *_: runs.append("hook"))
        conv = model.second[2]
        monkeypatch.setattr(conv, "forward", lambda *_: runs.append("ran"))
        with passes.handing_back(names):
            assert torch.equal(model(images), expected)
        assert runs == ["hook"]
