"""Models that change their images, their weights or their answers, return nothing, or end the process."""

import math
import subprocess
import sys

import pytest
import torch
from known_models import noise
from torch import nn

import backlight
from backlight.errors import UserError
from backlight.models.sources.load import load_model
from backlight.results.figures import paper_figure, paper_style, title
from backlight.study.failures import batch_size_that_fits
from backlight.tracing.repeat import check_repeats
from backlight.tracing.trace import evaluating


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


def network(first):
    torch.manual_seed(0)
    return nn.Sequential(first, Block(), Block(), nn.Flatten(), nn.Linear(3 * 8 * 8, 3)).eval()


class InPlace(nn.Module):
    def forward(self, x):
        return x.mul_(0.5).add_(0.1)


class NotInPlace(nn.Module):
    def forward(self, x):
        return x * 0.5 + 0.1


def batches():
    images, labels = noise(24, 3, 8, 8).clamp(-1, 1), torch.arange(24) % 3
    return [(images[i : i + 8].clone(), labels[i : i + 8]) for i in (0, 8, 16)]


MORE = {
    "noise": {"frequencies": (0.3, 0.8), "mean": [0.5] * 3, "std": [0.5] * 3},
    "adversarial": {"steps": 2, "epsilons": (4,), "mean": [0.5] * 3, "std": [0.5] * 3},
    "corruption": {"corruptions": ["fog"], "severities": (1,), "mean": [0.5] * 3, "std": [0.5] * 3},
    "landscape": {"grid": 3}, "hessian": {"top": 1},
}  # fmt: skip


LOSSES = ("landscape", "hessian")


@pytest.mark.parametrize(
    "name",
    ["calibration", "lesion", "fourier", "variance", "similarity", "erf", "noise", "adversarial", "corruption", *LOSSES],
)  # fmt: skip
def test_a_model_that_changes_its_images_in_place_is_measured_like_one_that_does_not(name):
    data = batches()
    ours, theirs = (
        getattr(backlight, name)(network(first), d, **MORE.get(name, {}))
        for first, d in ((InPlace(), data), (NotInPlace(), batches()))
    )
    for row, other in zip(ours.table, theirs.table, strict=True):
        for key, value in row.items():
            if isinstance(value, float) and key not in ("residual", "residual_low", "residual_high"):
                assert value == pytest.approx(other[key], rel=1e-4, abs=1e-5, nan_ok=True), key
    assert all(torch.equal(images, before) for (images, _), (before, _) in zip(data, batches(), strict=True))


class Counting(nn.Module):
    """A buffer and a weight that every pass changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        self.passes += 1
        with torch.no_grad():
            self.weight.mul_(1.5)
        return x * self.weight


def test_buffers_are_as_they_were_after_an_analysis():
    model = network(Counting())
    with evaluating(model), torch.no_grad():
        model(batches()[0][0])
        assert model[0].passes == 1
    assert model[0].passes == 0


def test_a_pass_that_changes_the_model_is_noticed_and_undone():
    model = network(Counting())
    assert (
        check_repeats(model, batches()[0][0])
        == "a forward pass changes 0.weight, 0.passes and outputs change from call to call"
    )
    assert (model[0].weight.item(), model[0].passes.item()) == (1, 0)
    caution = backlight.variance(model, batches()).provenance["caution"]
    assert caution.startswith("a forward pass changes 0.weight")


def test_random_outputs_are_noticed():
    class Random(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, training=True)

    assert check_repeats(network(Random()), batches()[0][0]) == "outputs change from call to call"


@pytest.mark.parametrize("first", [nn.Identity(), nn.BatchNorm2d(3), nn.Dropout()])
def test_an_ordinary_model_repeats(first):
    model = network(first)
    assert check_repeats(model, batches()[0][0]) == ""
    assert "caution" not in backlight.variance(model, batches()).provenance


class Spoilt(nn.Module):
    """Answers with NaN or infinity for three images of each batch."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, logits):
        logits = logits.clone()
        logits[:3, 0] = self.value
        return logits


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["calibration", "variance", "lesion", "noise", "corruption", "adversarial"])
def test_outputs_that_are_not_finite_are_counted(name, value):
    model = nn.Sequential(network(nn.Identity()), Spoilt(value))
    with pytest.raises(UserError, match="not applicable: outputs are not finite for 9 of 24 images"):
        getattr(backlight, name)(model, batches(), **MORE.get(name, {}))


def test_a_model_that_returns_nothing():
    class Nothing(nn.Module):
        def forward(self, x):
            return None

    with pytest.raises(UserError, match="the model returns NoneType without a tensor"):
        backlight.calibration(nn.Sequential(network(nn.Identity()), Nothing()), batches())


@pytest.mark.parametrize(
    "body", ["sys.exit(3)", "raise SystemExit", "raise BaseException('no')", "1 / 0", "raise GeneratorExit"]
)
def test_a_factory_does_not_end_the_process(tmp_path, body):
    (tmp_path / "m.py").write_text(f"import sys\ndef make():\n    {body}\n")
    (tmp_path / "n.py").write_text(f"import sys\n{body}\n")
    with pytest.raises(UserError, match=r"m\.py:make failed: "):
        load_model(f"{tmp_path}/m.py:make")
    with pytest.raises(UserError, match=r"n\.py cannot be imported: "):
        load_model(f"{tmp_path}/n.py:make")


def test_ctrl_c_in_a_factory_is_ctrl_c(tmp_path):
    (tmp_path / "m.py").write_text("def make():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_model(f"{tmp_path}/m.py:make")


@pytest.mark.parametrize("name", ["$$x$$", "$\\frac{1$", "a_b^c", "100%$"])
def test_a_name_is_no_formula(name):
    with paper_style():
        figure, _ = paper_figure(1)
        title(figure, name)
        figure.canvas.draw()


class Hungry(nn.Module):
    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return x


@pytest.mark.parametrize(("most", "size"), [(5, 4), (3, 2), (1, 1), (0, 0)])
def test_the_batch_size_that_fits(most, size):
    assert batch_size_that_fits(Hungry(most), torch.zeros(16, 1, 2, 2)) == size


def test_the_rest_of_a_study_runs(tmp_path):
    """A factory that exits, a forward pass that exits, one whose memory runs out, one that is random, and one that works."""
    (tmp_path / "m.py").write_text(
        "import sys, torch\nfrom torch import nn\n"
        "def plain():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
        "class Odd(nn.Module):\n"
        "    def __init__(self, kind):\n        super().__init__()\n        self.kind, self.inner = kind, plain()\n"
        "    def forward(self, x):\n"
        "        if self.kind == 'exits':\n            sys.exit(7)\n"
        "        if self.kind == 'hungry' and len(x) > 5:\n            raise MemoryError\n"
        "        return self.inner(x) + (torch.rand(1) if self.kind == 'random' else 0)\n"
        "def exits():\n    sys.exit(7)\n"
        "def make(kind):\n    return Odd(kind)\n"
    )
    size = "input_size=(1, 28, 28)"
    kinds = ["exits", "hungry", "random"]
    models = [f"{tmp_path}/m.py:exits?{size}", *(f"{tmp_path}/m.py:make?kind='{kind}'&{size}" for kind in kinds), "demo-cnn"]
    words = ["study", "--models", *models, "--analyses", "calibration", "--limit", "20", "--out", str(tmp_path / "out")]
    process = subprocess.run([sys.executable, "-m", "backlight", *words], capture_output=True, text=True, check=False)
    assert process.returncode == 5, process.stderr
    assert "demo-cnn calibration: done" in process.stderr
    assert "a forward pass ends the program (sys.exit(7))" in process.stderr
    assert "the memory is used up: a forward pass fits with --batch-size 5" in process.stderr
    assert "outputs change from call to call" in process.stderr
    assert "3 of 5 cells failed" in process.stderr
    assert "Traceback" not in process.stderr
