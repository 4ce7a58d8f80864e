"""Claims that compare models: the number is the one the statement names, paired, and refused where models are not alike."""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from backlight.analyses.adversarial.measure import Adversarial
from backlight.analyses.calibration.measure import Calibration
from backlight.analyses.catalog import adversarial, calibration, corruption, fourier, landscape, noise
from backlight.analyses.corruption.measure import Corruption
from backlight.analyses.fourier.measure import CLAIMS as OF_FOURIER
from backlight.analyses.fourier.measure import Fourier
from backlight.analyses.hessian.measure import HessianSpectrum
from backlight.analyses.landscape.measure import Landscape
from backlight.analyses.noise.measure import CLAIMS as OF_NOISE
from backlight.analyses.noise.measure import Noise
from backlight.analyses.trajectory.measure import Trajectory
from backlight.analyses.variance.measure import CLAIMS as OF_VARIANCE
from backlight.claims import comparisons
from backlight.claims import findings as claims_findings
from backlight.claims.comparisons import COMPARISONS, OF_KINDS
from backlight.claims.findings import Finding, anchor, findings, summary
from backlight.claims.kinds import given_kinds, kind_of
from backlight.cli.analyses import outcome
from backlight.cli.main import main
from backlight.errors import UserError
from backlight.results.claim import LEAST, Claim
from backlight.results.result import Result
from backlight.study.folder import Model, Study, load

N = 200
BATCHES, TOP = 30, 5
FREQUENCIES = [0.25, 0.5, 0.75]
DATA = {"data": "noise", "split": "test", "ids_sha256": "abc"}
SETTINGS: dict[str, dict[str, Any]] = {"noise": {"frequencies": FREQUENCIES}, "landscape": {"directions": "random"}}
WORDS = {"vit": "amamam", "cnn": "ccc", "hybrid": "ccca"}
LETTERS = {"a": "attention", "c": "conv", "m": "mlp", "p": "parallel"}
#: How a number of a result is planted: the level of the model, and the image's own.
RNG = np.random.default_rng(0)
OF_IMAGES, LUCK = RNG.normal(0, 3, N), RNG.normal(0, 0.2, (20, N))
UNIFORM = RNG.uniform(size=(4, N))


def provenance(analysis: str, **more: Any) -> dict[str, Any]:
    return {"images": N, "data": DATA, "settings": {"seed": 0} | SETTINGS.get(analysis, {})} | more


def result_of(analysis: str, name: str, level: float, luck: int = 0) -> Result:
    """A result in which the number of the paper rises with ``level``: from 0, low, to 1, high."""
    if analysis == "hessian":
        return HessianSpectrum(name, eigenvalues(level, luck), [], provenance(analysis))
    kinds = {c.analysis: c for c in (Landscape, Fourier, Noise, Calibration, Corruption, Adversarial, Trajectory)}
    return kinds[analysis](name, [{"row": 0}], [], provenance(analysis), arrays(analysis, level, luck))


def arrays(analysis: str, level: float, luck: int) -> dict[str, np.ndarray]:
    smooth, clean = OF_IMAGES + 2 * level + LUCK[luck], UNIFORM[3] < 0.9
    right = (0.3 + 0.5 * level > UNIFORM).astype(float)
    corner = math.pi * (1 - level) * (0.9 + 0.1 * LUCK[luck, 0])
    path = np.array([[0, 0], [1, 0], [1 + math.cos(corner), math.sin(corner)]])
    return {
        "landscape": {"per_image/rise": np.exp(smooth / 3)},
        "fourier": {"per_image/delta": np.stack([OF_IMAGES, OF_IMAGES + smooth])},
        "noise": {"per_image/correct": np.stack([clean, *right[:3]])},  # clean, a low band, the middle, a high band
        "calibration": {"per_image/correct": right[0]},
        "corruption": {"per_image/correct": np.stack([clean, right[0]])},
        "adversarial": {"per_image/correct": np.stack([clean, right[0]])},
        "trajectory": {"distances": np.linalg.norm(path[:, None] - path[None], axis=-1)},
    }[analysis]


def eigenvalues(level: float, luck: int) -> list[dict[str, Any]]:
    shape = BATCHES, TOP
    sizes = np.exp((OF_IMAGES + 2 * level + LUCK[luck])[: BATCHES * TOP].reshape(shape) / 2 + 3)
    values = np.where(UNIFORM[1, : BATCHES * TOP].reshape(shape) < 0.1 + 0.5 * level, -sizes, sizes)
    return [
        {"batch": i, "block": "all", "rank": k + 1, "eigenvalue": float(values[i, k])}
        for i in range(BATCHES)
        for k in range(TOP)
    ]


def units(word: str) -> list[dict[str, Any]]:
    return [{"unit": i, "kind": LETTERS[letter], "stage": 0, "module": str(i)} for i, letter in enumerate(word)]


def model(name: str, kind: str, *results: Result) -> Model:
    return Model(name, units(WORDS[kind]), None, {result.analysis: result for result in results})


def study(*models: Model) -> Study:
    return Study(list(models), {}, [])


def comparison(name: str) -> comparisons.Comparison:
    return next(each for each in COMPARISONS if each.name == name)


def pair(name: str, levels: tuple[float, float], **change: Any) -> Finding:
    """The finding of a comparison for two models whose numbers are at these levels; ``change``: of the second's provenance."""
    about = comparison(name)
    first, second = (result_of(about.analysis, n, level, i) for i, (n, level) in enumerate(zip("xy", levels, strict=True)))
    changed = type(second)(second.model, second.table, [], {**second.provenance, **change}, second.arrays)
    both = study(model("x", about.kinds[0], first), model("y", about.kinds[1], changed))
    return next(f for f in findings(both) if f.claim.id == f"compare/{name}")


# --- kinds


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("amamam", "vit"), ("ccc", "cnn"), ("mmmm", "other"), ("", "other"), ("pp", "vit"),
        ("ccccccccccccccca", "hybrid"),  # an AlterNet with one attention
        ("cccaaa", "hybrid"),  # CoAtNet
        ("am" * 18 + "cccc", "vit"),  # Twins: four convolutions encode positions
        ("aaac", "vit"), ("aaaccm", "hybrid"),
    ],
)  # fmt: skip
def test_the_kind_follows_from_the_word(word: str, kind: str) -> None:
    assert kind_of(units(word)) == kind


def test_the_kind_can_be_given() -> None:
    models = model("x", "vit", result_of("calibration", "x", 1)), model("y", "cnn", result_of("calibration", "y", 0))
    assert not [f for f in findings(study(*models)) if "hybrid" in f.claim.id]
    given = findings(study(*models), given_kinds(["x=hybrid"], ["x", "y"]))
    assert [f.claim.id for f in given] == ["compare/hybrid-accuracy-over-cnn"]
    assert given[0].models == ("x", "y")


@pytest.mark.parametrize("text", ["z=cnn", "x=resnet", "x", "cnn"])
def test_refuses_another_model_or_kind(text: str) -> None:
    with pytest.raises(UserError, match="--kind"):
        given_kinds([text], ["x", "y"])


def test_a_name_may_hold_an_equals_sign() -> None:
    assert given_kinds(["vit?img_size=32=cnn"], ["vit?img_size=32"]) == {"vit?img_size=32": "cnn"}


# --- each comparison


#: With a level of 1 for the first model and 0 for the second, the sign of the difference.
RISES = {each.name: 1 for each in COMPARISONS} | {"noise-by-frequency": 0}


@pytest.mark.parametrize("name", [c.name for c in COMPARISONS if c.over != "models" and RISES[c.name]])
def test_a_planted_difference_decides(name: str) -> None:
    up, down, same = (pair(name, levels).claim for levels in ((0.9, 0.1), (0.1, 0.9), (0.5, 0.5)))
    holds = up if comparison(name).sign == "positive" else down
    fails = down if comparison(name).sign == "positive" else up
    assert (holds.verdict, fails.verdict, same.verdict) == ("holds", "does not hold", "undecided"), (holds, fails, same)
    assert holds.count == (BATCHES if comparison(name).over == "mini-batches" else N)
    assert up.value == pytest.approx(-down.value, rel=0.5)


def test_the_numbers_are_those_that_the_statement_names() -> None:
    result = result_of("hessian", "x", 0.3)
    by_batch = [[row["eigenvalue"] for row in result.table if row["batch"] == i] for i in range(BATCHES)]
    assert comparisons.log_largest_eigenvalue(result) == pytest.approx([math.log(max(map(abs, b))) for b in by_batch])
    assert comparisons.negative_share(result) == pytest.approx([sum(x < 0 for x in b) / TOP for b in by_batch])
    clean, low, _, high = result_of("noise", "x", 0.3).arrays["per_image/correct"]
    other_clean, other_low, _, other_high = result_of("noise", "y", 0.8).arrays["per_image/correct"]
    cost = {"low": clean.mean() - low.mean(), "high": clean.mean() - high.mean()}
    other = {"low": other_clean.mean() - other_low.mean(), "high": other_clean.mean() - other_high.mean()}
    for name, gain in (
        ("noise-of-low-frequency", other["low"] - cost["low"]),
        ("noise-of-high-frequency", other["high"] - cost["high"]),
        ("noise-by-frequency", (other["high"] - cost["high"]) - (other["low"] - cost["low"])),
    ):
        assert pair(name, (0.3, 0.8)).claim.value == pytest.approx(100 * gain), name


def test_directness_of_a_path_with_one_corner() -> None:
    result = Trajectory("x", [{"row": 0}], [], {}, {"distances": np.array([[0, 3, 5], [3, 0, 4], [5, 4, 0.0]])})
    assert comparisons.directness(result) == pytest.approx([5 / 7])


def test_pairs_cancel_what_both_models_find_hard() -> None:
    paired = pair("high-frequencies", (0.5, 0.45)).claim
    first, second = (comparisons.change_of_high_frequencies(result_of("fourier", "x", v, i)) for i, v in enumerate((0.5, 0.45)))
    apart = stats.ttest_ind(first, second).confidence_interval()
    assert paired.high - paired.low < (apart.high - apart.low) / 5


def test_one_band_is_enough_for_a_difference_of_differences() -> None:
    """Noise of low frequency costs both alike, that of high frequency the CNN more."""
    vit, cnn = (np.stack([np.ones(N), UNIFORM[0] < 0.6, np.ones(N), UNIFORM[1] < level]) for level in (0.8, 0.4))
    results = [Noise(n, [{"row": 0}], [], provenance("noise"), {"per_image/correct": a}) for n, a in (("x", vit), ("y", cnn))]
    verdicts = {
        f.claim.id: f.claim.verdict for f in findings(study(model("x", "vit", results[0]), model("y", "cnn", results[1])))
    }
    assert verdicts["compare/noise-by-frequency"] == "holds"
    assert verdicts["compare/noise-of-high-frequency"] == "holds"
    assert verdicts["compare/noise-of-low-frequency"] == "undecided"


def test_statements_about_a_kind() -> None:
    models = [model(n, kind, result_of("fourier", n, level)) for n, kind, level in (("x", "vit", -4), ("y", "cnn", 4))]
    claims = {f.claim.id: f for f in findings(study(*models)) if f.claim.id.startswith("kind/")}
    assert {id: (f.claim.verdict, f.models) for id, f in claims.items()} == {
        "kind/vit-lowers-high-frequencies": ("holds", ("x",)),
        "kind/cnn-raises-high-frequencies": ("holds", ("y",)),
    }


# --- what cannot be compared


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": DATA | {"ids_sha256": "other"}}, "different images: they differ in ids_sha256"),
        ({"data": {"data": "noise"}}, "not recorded which images"),
        ({"data": DATA | {"batch_size": 8}}, "batch_size"),
        ({"data": DATA | {"augmentation": {"flip": True}}}, "augmentation"),
        ({"images": 100}, "images"),
        ({"settings": {"seed": 1, "directions": "random"}}, "different settings: seed"),
        ({"caution": "random weights"}, "y: random weights"),
    ],
)
def test_not_comparable(change: dict[str, Any], reason: str) -> None:
    finding = pair("flatter", (0.1, 0.9), **change)
    assert finding.verdict == "not comparable"
    assert reason in finding.claim.reason
    assert math.isnan(finding.claim.p_value)


def test_what_may_differ() -> None:
    settings = SETTINGS["landscape"] | {"seed": 0, "resamples": 5, "mean": [0.1], "std": [1], "together": 4}
    assert pair("flatter", (0.1, 0.9), settings=settings).verdict == "holds"


def test_a_tuple_is_a_list() -> None:
    """A result of this process has tuples where one that was read has lists."""
    settings = {"seed": 0, "frequencies": tuple(FREQUENCIES)}
    assert pair("noise-of-high-frequency", (0.9, 0.1), settings=settings).claim.verdict == "holds"


@pytest.mark.parametrize(("accuracies", "verdict"), [((0.85, 0.80), "holds"), ((0.95, 0.80), "not comparable")])
def test_the_shape_of_the_loss_wants_like_accuracies(accuracies: tuple[float, float], verdict: str) -> None:
    models = []
    for name, kind, level, accuracy in zip("xy", ("vit", "cnn"), (0.1, 0.9), accuracies, strict=True):
        row = {"metric": "accuracy", "value": accuracy, "low": accuracy, "high": accuracy}
        of_accuracy = Calibration(name, [row], [], provenance("calibration"), {})
        models.append(model(name, kind, result_of("landscape", name, level), of_accuracy))
    (finding,) = [f for f in findings(study(*models)) if f.claim.id == "compare/flatter"]
    assert finding.claim.verdict == verdict
    assert not finding.unknown
    if verdict == "not comparable":
        assert "95.0% and 80.0%" in finding.claim.reason


def test_unknown_accuracies_are_said() -> None:
    assert "accuracies are not known" in pair("flatter", (0.1, 0.9)).note
    assert "accuracies are not known" not in pair("high-frequencies", (0.1, 0.9)).note


def test_a_caution_stands_beside_a_claim_about_accuracy() -> None:
    finding = pair("hybrid-accuracy-over-vit", (0.9, 0.1), caution="at chance level")
    assert (finding.claim.verdict, finding.caution) == ("holds", "y: at chance level")


def test_two_models_are_no_sample() -> None:
    assert "no sample" in pair("high-frequencies", (0.1, 0.9)).note


@pytest.mark.parametrize("rises", [np.array([1.0, np.inf] * 100), None])
def test_numbers_that_are_not_there_or_not_finite(rises: np.ndarray | None) -> None:
    good = model("x", "vit", result_of("landscape", "x", 0))
    arrays = {} if rises is None else {"per_image/rise": rises}
    bad = model("y", "cnn", Landscape("y", [{"row": 0}], [], provenance("landscape"), arrays))
    (finding,) = findings(study(good, bad))
    assert finding.verdict == "not comparable"
    assert "finite" in finding.claim.reason if rises is not None else "no numbers" in finding.claim.reason


# --- several models of a kind


def of_each_kind(analysis: str, vits: list[float], cnns: list[float]) -> Study:
    named = [(f"{kind}{i}", kind, level) for kind, levels in (("vit", vits), ("cnn", cnns)) for i, level in enumerate(levels)]
    return study(*(model(n, kind, result_of(analysis, n, level, i)) for i, (n, kind, level) in enumerate(named)))


def test_with_three_of_each_kind_the_interval_is_over_models() -> None:
    three = of_each_kind("fourier", [0.1, 0.2, 0.15], [0.8, 0.9, 0.7])
    (finding,) = [f for f in findings(three) if f.claim.id == "compare/high-frequencies"]
    assert (finding.claim.verdict, finding.claim.over, finding.claim.count) == ("holds", "models", 3)
    assert len(finding.models) == 6
    assert "no sample" not in finding.note
    means = [float(np.subtract(*m.results["fourier"].arrays["per_image/delta"][::-1]).mean()) for m in three.models]
    error = math.sqrt(np.var(means[:3], ddof=1) / 3 + np.var(means[3:], ddof=1) / 3)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(means[:3]) - np.mean(means[3:]), scale=error)
    assert (finding.claim.low, finding.claim.high) == pytest.approx((low, high))


def test_models_that_vary_as_much_as_the_kinds_differ_decide_nothing() -> None:
    varied = of_each_kind("fourier", [0.0, 0.9, 0.1], [0.3, 1.0, 0.6])
    (finding,) = [f for f in findings(varied) if f.claim.id == "compare/high-frequencies"]
    assert finding.claim.verdict == "undecided"


def test_fewer_are_compared_in_pairs() -> None:
    pairs = [
        f for f in findings(of_each_kind("fourier", [0.1, 0.2], [0.8, 0.9, 0.7])) if f.claim.id == "compare/high-frequencies"
    ]
    assert len(pairs) == 6
    assert all(len(f.models) == 2 for f in pairs)


def test_three_of_which_one_was_measured_differently_are_compared_in_pairs() -> None:
    mixed = of_each_kind("fourier", [0.1, 0.2, 0.1], [0.8, 0.9, 0.7])
    odd = mixed.models[0].results["fourier"]
    results = {"fourier": Fourier(odd.model, odd.table, [], {**odd.provenance, "images": 3}, odd.arrays)}
    mixed.models[0] = Model("vit0", mixed.models[0].units, None, results)
    pairs = [f.claim.verdict for f in findings(mixed) if f.claim.id == "compare/high-frequencies"]
    assert (pairs.count("not comparable"), pairs.count("holds")) == (3, 6)


def test_a_path_is_one_number_a_model() -> None:
    alone = pair("direct", (0.9, 0.1)).claim
    assert (alone.verdict, alone.reason) == ("undecided", f"too few models: 1, fewer than {LEAST['models']}")
    several = findings(of_each_kind("trajectory", [0.9, 0.85, 0.8], [0.3, 0.2, 0.1]))
    assert [f.claim.verdict for f in several] == ["holds"]


# --- many claims


def weak(count: int) -> Claim:
    """Decided alone: its p-value is about 0.03."""
    about = {"id": "a/b", "statement": "s", "source": "Figure 1", "quantity": "q"}
    return Claim.of_sign("positive", (1.0, 0.1, 1.9), count=count, **about)


@pytest.mark.parametrize(("statements", "marked"), [(1, False), (40, True)])
def test_a_verdict_that_many_statements_make_uncertain_is_marked(statements: int, marked: bool) -> None:
    results = {"fourier": Fourier("x", [{"row": 0}], [weak(50)] * statements, {}, {})}
    every = findings(study(Model("x", [], None, results)))
    assert {f.verdict for f in every} == {
        f"holds (not after Holm's correction for {statements} statements)" if marked else "holds"
    }
    assert f"statements tested: {statements} ({statements} hold" in summary(every)
    assert ("after Holm's correction" in summary(every)) == marked


def test_what_is_not_tested_is_not_counted() -> None:
    results = {"fourier": Fourier("x", [{"row": 0}], [weak(50), *[weak(3)] * 40], {}, {})}
    every = findings(study(Model("x", [], None, results)))
    assert (every[0].verdict, every[0].tested) == ("holds", 1)
    assert all(f.claim.verdict == "undecided" and math.isnan(f.adjusted) for f in every[1:])


def test_nothing_to_say() -> None:
    assert findings(study()) == []
    assert summary([]) == "no statement could be tested"


# --- numbers per image, of real measurements


class Toy(nn.Module):
    """A network of two residual convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stream = self.stem(images)
        for block in self.blocks:
            stream = stream + block(stream)
        return self.head(stream.mean((2, 3)))


@pytest.fixture(scope="module")
def toy() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A network, and images that it classifies by a narrow margin: its labels are its own answers."""
    torch.manual_seed(0)
    network, images = Toy().eval(), torch.rand(2, 12, 3, 8, 8)
    with torch.no_grad():
        network.head.bias -= network(images.flatten(0, 1)).mean(0)
        return network, [(batch, network(batch).argmax(1)) for batch in images]


PIXELS = {"mean": [0, 0, 0], "std": [1, 1, 1], "resamples": 20}


def mean_of(result: Result, name: str) -> Any:
    return result.arrays[f"per_image/{name}"].mean(-1)


def test_fourier_per_image(toy: Any) -> None:
    result = fourier(*toy, resamples=20)
    by_unit = {
        unit: max((row for row in result.table if row["unit"] == unit), key=lambda r: r["frequency"]) for unit in (-1, 0, 1)
    }
    assert mean_of(result, "delta") == pytest.approx([row["delta"] for row in by_unit.values()], abs=1e-5)


def test_noise_per_image(toy: Any) -> None:
    result = noise(*toy, frequencies=FREQUENCIES, width=0.3, severities=(0.1, 0.4), **PIXELS)
    clean, *bands = mean_of(result, "correct")
    assert len({*bands}) == len(FREQUENCIES)
    assert clean == pytest.approx(result.provenance["clean"]["accuracy"][0])
    for frequency, band in zip(FREQUENCIES, bands, strict=True):
        accuracies = [row["accuracy"] for row in result.table if row["frequency"] == frequency]
        assert len(accuracies) == 2
        assert band == pytest.approx(np.mean(accuracies))


def test_calibration_and_corruption_per_image(toy: Any) -> None:
    accuracy = next(row["value"] for row in calibration(*toy, resamples=20).table if row["metric"] == "accuracy")
    assert mean_of(calibration(*toy, resamples=20), "correct") == pytest.approx(accuracy)
    result = corruption(*toy, corruptions=("brightness", "contrast"), severities=(1, 5), **PIXELS)
    rows = {(row["corruption"], row["severity"]): row["accuracy"] for row in result.table}
    assert mean_of(result, "correct") == pytest.approx([rows["clean", 0], rows["mean", None]])


def test_adversarial_per_image(toy: Any) -> None:
    result = adversarial(*toy, epsilons=(8, 2), steps=2, **PIXELS)
    pgd = [row["accuracy"] for row in sorted(result.table, key=lambda r: r["epsilon"]) if row["attack"] == "pgd"]
    assert mean_of(result, "correct") == pytest.approx([result.provenance["clean"]["accuracy"][0], *pgd])


def test_landscape_per_image(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    result = landscape(*toy, grid=5, radius=1.0, resamples=20)
    centre = next(row["nll"] for row in result.table if row["x"] == row["y"] == 0)
    ring = [row["nll"] - centre for row in result.table if 0.25 <= math.hypot(row["x"], row["y"]) <= 0.75]
    assert len(ring) == 8  # the eight neighbours of the centre
    assert mean_of(result, "nll") == pytest.approx(centre, abs=1e-5)
    assert mean_of(result, "rise") == pytest.approx(np.mean(ring), abs=1e-5)
    monkeypatch.setattr(Result, "figure", lambda self: Figure(figsize=(1, 1)))
    again = load(type(result).save(result, tmp_path / "toy" / "landscape"))
    assert (again.arrays["per_image/rise"] == result.arrays["per_image/rise"]).all()
    assert again.arrays["per_image/rise"].dtype == np.float32


# --- the documentation


ROOT = Path(__file__).parents[1]


def written_ids() -> set[str]:
    """The ids in the code, with ``*`` for what a variable stands for."""
    texts = set()
    rooms_of_claims = [ROOT / "src" / "backlight" / room for room in ("analyses", "buildup", "claims")]
    for path in (path for room in rooms_of_claims for path in room.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.add("".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    rooms = (
        "fourier|variance|erf|similarity|attention|lesion|noise|corruption|adversarial|shape_bias|calibration|hessian|landscape"
    )
    return {text for text in texts if re.fullmatch(rf"({rooms}|trajectory|buildup|compare|kind)/[a-z*-]+", text)}


def listed_ids() -> set[str]:
    """The ids that the page lists, each with an anchor of its name."""
    page = (ROOT / "docs" / "claims_list.md").read_text(encoding="utf-8")
    pairs = re.findall(r'<a id="([a-z-]+)"></a>`([a-z/-]+)`', page)
    assert all(name == anchor(id) for name, id in pairs)
    assert len(set(pairs)) == len(pairs)
    return {id for _, id in pairs}


def test_every_claim_is_documented() -> None:
    listed = listed_ids()
    written = written_ids()
    patterns = {text: re.compile(re.escape(text).replace(r"\*", "[a-z-]+")) for text in written}
    assert not [text for text, pattern in patterns.items() if not any(map(pattern.fullmatch, listed))]
    assert not [id for id in listed if not any(pattern.fullmatch(id) for pattern in patterns.values())]
    complete = {f"compare/{c.name}" for c in COMPARISONS} | {f"kind/{c.name}" for c in OF_KINDS}
    complete |= {f"fourier/{kind}-{reading}" for kind in OF_FOURIER for reading in ("relative", "absolute")}
    complete |= {f"variance/{kind}" for kind in OF_VARIANCE} | {f"noise/{kind}" for kind in OF_NOISE}
    assert complete <= listed


def test_every_comparison_is_worded_as_documented() -> None:
    page = (ROOT / "docs" / "claims_list.md").read_text(encoding="utf-8")
    for about in (*COMPARISONS, *OF_KINDS):
        assert f"`{'compare' if about in COMPARISONS else 'kind'}/{about.name}`" in page
        assert about.statement in page


# --- the command


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that reads as a study of a ViT and a CNN."""
    two = [
        model(name, name, *(result_of(analysis, name, level, luck) for analysis in ("fourier", "hessian")))
        for luck, (name, level) in enumerate((("vit", 0.1), ("cnn", 0.9)))
    ]
    monkeypatch.setattr("backlight.study.folder.read_study", lambda folder: study(*two))
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["claims", *arguments])
    assert not stopped.value.code
    return capsys.readouterr()


def test_rows_where_nobody_reads_along(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, told = printed(capsys, str(folder))
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(out))}
    row = rows["compare/high-frequencies"]
    assert (row["verdict"], row["models"], row["count"], row["over"]) == ("holds", "vit, cnn", str(N), "images")
    assert row["docs"] == "docs/claims_list.md#compare-high-frequencies"
    assert "statements tested: " in told
    assert [row["id"] for row in json.loads(printed(capsys, str(folder), "--json")[0])] == list(rows)


def test_a_line_a_claim_on_a_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    lines = printed(capsys, str(folder), "--kind", "cnn=hybrid")[0].splitlines()
    assert len(lines) == 2
    assert all(line.startswith(("holds", "does not hold", "undecided", "not comparable")) for line in lines)
    assert any(
        "cnn, vit: Fewer of the Hessian eigenvalues of the hybrid" in line and "30 mini-batches" in line for line in lines
    )
    assert printed(capsys, str(folder), "--csv")[0].startswith("verdict,id,")


def test_a_study_ends_with_how_many_statements_were_tested(folder: Path) -> None:
    assert re.match(r"statements tested: 5 \(\d hold", outcome(folder))


def test_a_study_without_results_tests_nothing(tmp_path: Path) -> None:
    assert outcome(tmp_path) == "no statement could be tested"


def test_refuses_a_kind_that_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["claims", str(folder), "--kind", "vit=transformer"])
    assert stopped.value.code == 2
    assert "cnn, vit, hybrid, other" in capsys.readouterr().err


def test_whether_many_models_are_comparable_takes_a_look_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred models: 99 comparisons with the first, not 4,950 of all pairs; a pair apart in accuracy is still named."""
    looks: list[tuple[Any, Any]] = []
    monkeypatch.setattr(claims_findings, "why_not", lambda one, other: looks.append((one, other)) or "")
    monkeypatch.setattr(claims_findings, "caution_of", lambda result: "")
    about = next(each for each in COMPARISONS if each.of_the_loss)
    accuracy = [0.5] + 98 * [0.58] + [0.42]  # each is like the first; the last is unlike the others

    def model(i: int) -> Model:
        rows = [{"metric": "accuracy", "value": accuracy[i]}]
        return Model(f"m{i}", [], None, {about.analysis: Result("m", [], [], {}), "calibration": Result("m", rows, [], {})})

    models = [model(i) for i in range(100)]
    assert claims_findings._why_not(about, models[:99]) == ""
    assert len(looks) == 98
    assert claims_findings._why_not(about, models).startswith("m1 and m99: accuracies of 58.0% and 42.0%")
