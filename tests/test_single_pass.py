"""One forward pass for several analyses: the same numbers as separate passes, an unchanged model, constant memory."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from known_models import (
    Mean,
    Residual,
    averaging,
    batches,
    blur,
    identity,
    noise,
    sharpen,
    stem,
    tower,
    unchanged,
)
from torch import nn

from backlight import calibration, fourier, lesion, variance
from backlight.analyses.calibration.measure import Confidence
from backlight.analyses.calibration.settings import CalibrationSettings
from backlight.analyses.fourier.measure import Spectra
from backlight.analyses.fourier.settings import FourierSettings
from backlight.analyses.single_pass import single_pass
from backlight.analyses.variance.measure import Variances
from backlight.analyses.variance.settings import VarianceSettings
from backlight.errors import UserError

ALL = {Spectra: FourierSettings(), Variances: VarianceSettings(), Confidence: CalibrationSettings()}
ANALYSES = [fourier, variance, calibration, lesion]
LABELS = torch.arange(12) % 10


def data(size=4, n=12):
    return batches(noise(n, 3, 8, 8), size, LABELS[:n])


def mixed():
    """A model with units of several kinds and normalisation, some modules in training mode."""
    model = tower(blur(), nn.BatchNorm2d(3), averaging(1.0), nn.Sequential(nn.Dropout(0.5), sharpen()))
    model.train()
    model[1].eval()
    return model


def numbers(result):
    """Every number of a result: of its table, its claims, its arrays."""
    table = [value for row in result.rows() for value in row.values() if isinstance(value, (int, float))]
    claims = [x for claim in result.claims for x in (claim.value, claim.low, claim.high)]
    return np.concatenate([table, claims, *(array.ravel() for array in result.arrays.values())])


# --- together and alone


def test_one_pass_gives_the_same_numbers_as_separate_passes():
    model = mixed()
    together = single_pass(model, data(), ALL, resamples=30)
    for result, alone in zip(together, (fourier, variance, calibration), strict=True):
        np.testing.assert_array_equal(numbers(result), numbers(alone(model, data(), resamples=30)))
        assert type(result) is type(alone(model, data(), resamples=2))


def test_settings_reach_their_reducer_and_its_provenance():
    reducers = {Spectra: FourierSettings(radial=True), Variances: VarianceSettings(normalise=True)}
    spectra, variances = single_pass(mixed(), data(), reducers, resamples=7, seed=3)
    common = {"resamples": 7, "seed": 3, "at": None}
    assert spectra.provenance["settings"] == {"radial": True, "paper": False} | common
    assert variances.provenance["settings"] == {"normalise": True, "over": "space"} | common
    np.testing.assert_array_equal(numbers(spectra), numbers(fourier(mixed(), data(), radial=True, resamples=7, seed=3)))


@pytest.mark.parametrize("analysis", ANALYSES)
def test_batches_do_not_matter(analysis):
    one, three, uneven = (analysis(mixed(), data(size), resamples=30) for size in (12, 4, 5))
    for other in (three, uneven):
        np.testing.assert_allclose(numbers(other), numbers(one), rtol=1e-4, atol=2e-5)
    assert one.provenance["images"] == three.provenance["images"] == 12
    assert [claim.verdict for claim in one.claims] == [claim.verdict for claim in three.claims]


@pytest.mark.parametrize("analysis", ANALYSES)
def test_the_seed_changes_the_intervals_only(analysis):
    one, same, other = (analysis(mixed(), data(), resamples=30, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(numbers(one), numbers(same))
    assert not np.array_equal(numbers(one), numbers(other), equal_nan=True)
    values = [[v for k, v in row.items() if not k.endswith(("low", "high"))] for r in (one, other) for row in r.rows()]
    assert str(values[: len(values) // 2]) == str(values[len(values) // 2 :])


@pytest.mark.parametrize("analysis", [fourier, variance])
def test_labels_are_not_needed_to_read_the_stream(analysis):
    images = list(noise(12, 3, 8, 8).split(4))
    np.testing.assert_array_equal(
        numbers(analysis(mixed(), images, resamples=30)), numbers(analysis(mixed(), data(), resamples=30))
    )


@pytest.mark.parametrize("analysis", ANALYSES)
def test_data_can_be_a_loader_of_tensors(analysis):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(noise(12, 3, 8, 8), LABELS), batch_size=4)
    np.testing.assert_array_equal(
        numbers(analysis(mixed(), loader, resamples=5)), numbers(analysis(mixed(), data(), resamples=5))
    )


def test_data_can_be_a_loader_of_images_alone():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(noise(12, 3, 8, 8)), batch_size=4)
    assert variance(mixed(), loader, resamples=5).provenance["images"] == 12


@pytest.mark.parametrize("analysis", ANALYSES)
def test_data_can_be_a_generator(analysis):
    assert analysis(mixed(), (batch for batch in data()), resamples=5).provenance["images"] == 12


@pytest.mark.parametrize("analysis", ANALYSES)
def test_models_in_half_and_double_precision(analysis):
    single = analysis(mixed(), data(), resamples=5)
    double = analysis(mixed().double(), data(), resamples=5)
    half = analysis(mixed().bfloat16(), data(), resamples=5)
    np.testing.assert_allclose(numbers(double), numbers(single), atol=1e-3)
    assert len(numbers(half)) == len(numbers(single))
    assert (double.provenance["dtype"], half.provenance["dtype"]) == ("float64", "bfloat16")


# --- the model is unchanged


@pytest.mark.parametrize("analysis", ANALYSES)
def test_the_model_is_unchanged(analysis):
    model = mixed()
    with unchanged(model):
        analysis(model, data(), resamples=5)


@pytest.mark.parametrize("analysis", ANALYSES)
def test_the_model_is_unchanged_after_a_failure(analysis):
    model = mixed()

    def failing():
        yield from data()[:2]
        raise ZeroDivisionError

    with unchanged(model), pytest.raises(ZeroDivisionError):
        analysis(model, failing(), resamples=5)


def test_normalisation_uses_the_running_statistics():
    """The authors' notebook never calls eval(): the batch norms of their ResNet use statistics of one image."""
    model = mixed()
    model[2].running_mean += 3.0
    model.train()
    expected = variance(model.eval(), data(), resamples=5)
    np.testing.assert_array_equal(numbers(variance(model.train(), data(), resamples=5)), numbers(expected))


# --- refusals: one sentence, and the model is unchanged


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("empty", [[], [(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long))]])
def test_no_images(analysis, empty):
    with pytest.raises(UserError, match="no images"):
        analysis(mixed(), empty)


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("fashion", "yields a str"),
        (noise(4, 3, 8, 8), r"shape \(3, 8, 8\)"),  # images instead of batches of images
        ((noise(4, 3, 8, 8), LABELS[:4]), r"shape \(4,\)"),  # one batch instead of a list of it
        ([(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), LABELS[:4])], "uint8"),
        ([{"picture": noise(4, 3, 8, 8), "label": LABELS[:4]}], "dict"),
    ],
)
def test_data_that_are_no_batches_of_images(analysis, wrong, says):
    model = mixed()
    if analysis in (calibration, lesion):
        says += "|no tensor of labels"  # whichever error comes first
    with unchanged(model), pytest.raises(UserError, match=says) as refusal:
        analysis(model, wrong)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("analysis", [fourier, variance])
@pytest.mark.parametrize("size", [(10, 8), (8, 10)])
def test_images_of_two_sizes_are_refused(analysis, size):
    with pytest.raises(UserError, match=f"8 x 8 and {size[0]} x {size[1]}"):
        analysis(mixed(), [noise(4, 3, 8, 8), noise(4, 3, *size)])


@pytest.mark.parametrize("analysis", [fourier, variance])
def test_a_model_without_units_is_refused_with_modules_to_name(analysis):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), Mean(), nn.Linear(4, 10))
    with unchanged(model), pytest.raises(UserError, match=r"no residual units; .* --at 0 --at 2") as refusal:
        analysis(model, data())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("analysis", [fourier, variance])
def test_a_wrong_module(analysis):
    with pytest.raises(UserError, match=r"no module of this name; did you mean 1\.branch"):
        analysis(mixed(), data(), at=["1.brunch"])
    with pytest.raises(UserError, match="no feature map at 6"):
        analysis(mixed(), data(), at=["6"])


# --- streams that are not maps


class Vectors(nn.Module):
    """Two units on a map, then two on the pooled vector."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Sequential(stem(3), blur(), sharpen())
        self.vectors = nn.Sequential(Mean(), Residual(nn.Linear(3, 3)), Residual(nn.Linear(3, 3)), nn.Linear(3, 10))

    def forward(self, x):
        return self.vectors(self.maps(x))


class Points(nn.Module):
    """Two units on a map, then one on a map of a single position, which has no frequencies and no spatial variance."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Sequential(stem(3), blur(), sharpen(), nn.AdaptiveAvgPool2d(1))
        self.point = Residual(nn.Conv2d(3, 3, 1))
        self.head = nn.Linear(3, 10)

    def forward(self, x):
        return self.head(self.point(self.maps(x)).flatten(1))


@pytest.mark.parametrize("analysis", [fourier, variance])
@pytest.mark.parametrize(
    ("model", "left_out"),
    [(Vectors, ["unit 2 (vectors.1.branch)", "unit 3 (vectors.2.branch)"]), (Points, ["unit 2 (point.branch)"])],
)
def test_units_whose_stream_is_not_a_map_are_omitted_and_named(analysis, model, left_out, recwarn):
    result = analysis(model(), data(), resamples=5)
    assert {row["unit"] for row in result.rows()} == {-1, 0, 1}
    assert result.provenance["left_out"] == left_out
    assert all(np.isfinite(claim.value) for claim in result.claims)
    assert not [w for w in recwarn if "degrees of freedom" in str(w.message)]


def test_a_unit_that_cannot_be_removed_is_omitted_from_lesions_and_named():
    class Inline(nn.Module):
        def forward(self, x):
            return x + torch.linalg.qr(x).R  # a function's second result

    result = lesion(tower(blur(), Inline(), identity()), data(), resamples=5)
    assert [row["unit"] for row in result.rows()] == [-1, 0, 2]
    assert len(result.provenance["left_out"]) == 1
    assert result.provenance["left_out"][0].startswith("unit 1")
    with pytest.raises(UserError, match=r"no unit .* can be removed"):
        lesion(tower(Inline()), data())


# --- memory

PEAK = """
    import resource, sys
    import torch
    from torch import nn
    sys.path.insert(0, sys.argv[2])
    from backlight.analyses.calibration.measure import Confidence
    from backlight.analyses.calibration.settings import CalibrationSettings
    from backlight.analyses.fourier.measure import Spectra
    from backlight.analyses.fourier.settings import FourierSettings
    from backlight.analyses.single_pass import single_pass
    from backlight.analyses.variance.measure import Variances
    from backlight.analyses.variance.settings import VarianceSettings
    from known_models import Residual, stem, tower

    torch.set_num_threads(1)
    model = tower(Residual(nn.BatchNorm2d(32)), Residual(nn.BatchNorm2d(32)), channels=32, first=stem(3, 32))
    data = ((torch.rand(200, 3, 32, 32), torch.arange(200) % 10) for _ in range(int(sys.argv[1]) // 200))
    reducers = {Spectra: FourierSettings(), Variances: VarianceSettings(), Confidence: CalibrationSettings()}
    single_pass(model, data, reducers, resamples=50)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_images():
    """A map of a batch has 26 MB; 1,800 more images would add 236 MB for each map that is stored."""

    def measuring(images):
        command = [sys.executable, "-c", textwrap.dedent(PEAK), str(images), str(Path(__file__).parent)]
        # Large blocks come from the system, because their reuse by the allocator is random.
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
        )

    running = [measuring(200), measuring(2000)]
    few, many = (int(process.communicate()[0]) for process in running)
    assert many < 1.05 * few


def test_a_pass_ends_at_the_first_batch_if_nothing_reads_it():
    """The outputs of an encoder are no class scores, which is known after one batch."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3))  # returns maps
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(UserError, match="no classifier"):
        calibration(model, data())
    assert len(passes) == 1
