"""What a verdict may be said of: encoders are refused, untrained and chance-level models have a caution, parallel units."""

import numpy as np
import pytest
import torch
from known_models import noise
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import nn

import backlight
from backlight.analyses.chance import Answers
from backlight.errors import NotApplicable, UserError
from backlight.inputs import WITHOUT_CLASSIFIER
from backlight.models.sources.load import load_model
from backlight.tracing.find import units
from backlight.tracing.hooks import without

ENCODER = "test_vit?num_classes=0&img_size=32"
CLASS_SCORES = ["calibration", "lesion", "noise", "corruption", "adversarial", "hessian", "landscape"]
FEATURES = ["fourier", "variance", "similarity", "attention", "erf"]


def batches(count=24, classes=3, size=32, channels=3):
    images = noise(count, channels, size, size)
    labels = torch.arange(count) % classes
    return [(images[i : i + 8], labels[i : i + 8]) for i in range(0, count, 8)]


def pixels(count=24, classes=3, size=32):
    """Images whose pixels are in [0, 1] once mean 0.5 and standard deviation 0.5 are undone."""
    return [(images.clamp(-1, 1), labels) for images, labels in batches(count, classes, size)]


def measured(name, model):
    more = {"noise": {"frequencies": (0.5,)}, "corruption": {"corruptions": ["fog"], "severities": [1]}, "hessian": {"top": 1}}
    more |= {"landscape": {"grid": 3}}
    pixel = {"mean": [0.5] * 3, "std": [0.5] * 3} if name in ("noise", "corruption", "adversarial") else {}
    return getattr(backlight, name)(model, pixels(), **more.get(name, {}), **pixel)


@pytest.fixture(scope="module")
def encoder():
    return load_model(ENCODER, pretrained=False)


@pytest.mark.parametrize("name", CLASS_SCORES)
def test_an_encoder_has_no_class_scores(name, encoder):
    with pytest.raises(NotApplicable, match=r"^no classifier: the model was built with num_classes=0, and its .* are features"):
        measured(name, encoder)


@pytest.mark.parametrize("name", FEATURES)
def test_an_encoder_has_feature_maps(name, encoder):
    assert getattr(backlight, name)(encoder, batches()).table


def test_the_refusal_names_what_works():
    for name in FEATURES:
        assert name in WITHOUT_CLASSIFIER


def test_a_head_that_is_an_identity_or_a_map_is_no_classifier():
    model = nn.Sequential()
    model.body, model.fc = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 12)), nn.Identity()
    with pytest.raises(NotApplicable, match="the model's fc is an Identity, and its 12 outputs are features"):
        backlight.calibration(model, batches())
    with pytest.raises(NotApplicable, match=r"no classifier: the model returns \(8, 4, 30, 30\) for 8 images"):
        backlight.calibration(nn.Conv2d(3, 4, 3), batches())


def test_many_outputs_at_chance_are_taken_for_features():
    """Nothing about the model says so; yet a random answer among 64 is right as often as this one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 64))
    with pytest.raises(NotApplicable, match="no classifier: the model has 64 outputs, the labels name 3 classes, and accuracy"):
        backlight.calibration(model, batches())


class Knowing(nn.Module):
    """Answers with the class that is written in the first pixel."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs, self.weight = outputs, nn.Parameter(torch.ones(1))

    def forward(self, images):
        return 5 * self.weight * nn.functional.one_hot(images[:, 0, 0, 0].round().long(), self.outputs).float()


@pytest.mark.parametrize("outputs", [3, 64])
def test_a_model_above_chance_has_no_caution(outputs):
    data = batches()
    for images, labels in data:
        images[:, 0, 0, 0] = labels.float()
    assert "caution" not in backlight.calibration(Knowing(outputs), data).provenance


def test_at_chance_level_the_result_says_so():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    caution = backlight.calibration(model, batches()).provenance["caution"]
    assert caution.startswith("at chance level: accuracy 33.3% [")
    assert caution.endswith("] of 3 classes")


def test_chance_is_counted_over_batches():
    answers = Answers()
    logits = torch.eye(4)
    answers.add(logits, torch.tensor([0, 1, 0, 0]))
    answers.add(logits[:2], torch.tensor([0, 1]))
    assert (answers.right, answers.images, answers.outputs, answers.named) == (4, 6, 4, 2)


def test_random_weights_have_a_caution_until_they_are_trained():
    model = load_model("test_vit?img_size=32", pretrained=False, num_classes=3)
    assert backlight.variance(model, batches()).provenance["caution"] == "untrained: random weights"
    assert backlight.lesion(model, batches()).provenance["caution"] == "untrained: random weights"
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    assert "caution" not in backlight.variance(model, batches()).provenance
    assert "caution" not in backlight.variance(load_model("demo-cnn"), batches(size=28, channels=1)).provenance


def test_a_command_refuses_an_encoder_and_a_study_does_not_fail(run, tmp_path):
    words = ["--no-pretrained", "--limit", "20", "--out", str(tmp_path / "out")]
    code, out, err = run("calibration", ENCODER, *words)
    assert (code, out) == (2, "")
    assert "no classifier" in err.splitlines()[-1]
    code, _, err = run("study", "--models", ENCODER, "--analyses", "calibration", "variance", *words)
    assert code == 0
    assert "calibration: not applicable: no classifier" in err


# --- parallel units and the label-free lesion


@pytest.fixture(scope="module")
def parallel():
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=3, block_fn=ParallelScalingBlock
    ).eval()


def test_branches_of_a_parallel_unit_are_removed_one_at_a_time(parallel):
    data = batches(size=16)
    result = backlight.lesion(parallel, data, branches=True)
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    rows = [row for row in result.table if row["lesion"] == "branch"]
    assert [(row["unit"], row["kind"]) for row in rows] == [(u, k) for u in range(3) for k in ("attention", "mlp")]
    for row in rows:
        unit = units(parallel, images[:2])[row["unit"]]
        with without(parallel, unit.only(row["kind"])), torch.no_grad():
            logits = parallel(images)
        assert row["nll"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    changes = {(row["unit"], row["kind"]): row["nll_change"] for row in result.table if row["unit"] == 1}
    assert len({round(change, 6) for change in changes.values()}) == 3  # the unit and each of its branches


def test_a_parallel_unit_is_neither_attention_nor_another_kind(parallel):
    result = backlight.lesion(parallel, batches(size=16))
    assert {row["of"] for row in result.provenance["by_position"]} == {"all"}
    assert {claim.id for claim in result.claims} == {"lesion/first-unit"}


def test_branches_need_a_parallel_unit():
    with pytest.raises(UserError, match="has no unit with branches of different kinds"):
        backlight.lesion(load_model("demo-cnn"), batches(size=28, channels=1), branches=True)


def test_the_label_free_lesion_is_one_minus_the_cosine(encoder):
    """Against a loop over images, one at a time."""
    images = torch.cat([batch for batch, _ in batches()])
    result = backlight.lesion(encoder, [images[:16], images[16:]], by="similarity")
    assert result.claims == []
    assert [row["distance"] for row in result.table if row["unit"] == -1] == [pytest.approx(0, abs=1e-6)]
    for row in result.singles():
        unit = units(encoder, images[:2])[row["unit"]]
        each = []
        for image in images:
            with torch.no_grad():
                intact = encoder(image[None])[0].double()
                with without(encoder, unit):
                    changed = encoder(image[None])[0].double()
            each.append(1 - (intact @ changed / intact.norm() / changed.norm()).item())
        assert row["distance"] == pytest.approx(np.mean(each), abs=1e-5)
        assert row["distance_low"] <= row["distance"] <= row["distance_high"]
    result.figure()


def test_shortcuts_that_pad_can_be_lesioned():
    """ResNets of CIFAR: where the width doubles, the shortcut is every second pixel with channels of zeros (option A)."""

    class Padding(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(width // 2, width, 3, 2, 1), nn.Conv2d(width, width, 3, 1, 1)

        def forward(self, x):
            shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2))
            return torch.relu(shortcut + self.conv2(torch.relu(self.conv1(x))))

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), Padding(16), Padding(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)
    )
    data = batches()
    result = backlight.lesion(model, data)
    assert [row["kind"] for row in result.singles()] == ["conv", "conv"]
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    with torch.no_grad():
        x = model[0](images)
        x = torch.relu(nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))  # the unit adds nothing
        logits = model[2:](x)
    assert result.singles()[0]["nll"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
