"""The build-up rule gives the paper's own search and rejects noise; a stopped search ends as one that was not stopped."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, ttest_rel

from backlight.buildup import search as search_module
from backlight.buildup.result import Buildup, gain_over_both, over_both
from backlight.buildup.rule import Search, Trial, candidates, replaceable_units
from backlight.buildup.search import Bench, BuildupRun, buildup_to_folder
from backlight.errors import UserError
from backlight.model_names.saved import describe
from backlight.models.cost import parameters
from backlight.models.sources.load import load_model
from backlight.models.sources.saved import save_model
from backlight.models.surgery.hybridize import gates
from backlight.numerics.proportions import paired_difference_interval
from backlight.progress import Progress
from backlight.recipes import recipe
from backlight.tracing.find import units
from backlight.tracing.tap import spell
from backlight.training import run_folder
from backlight.training.run import Run
from backlight.training.settings import Execution

#: Figure 12a: attentions in each stage of the (3, 4, 6, 4) baseline, accuracy, and whether it stayed; in the authors' order.
PUBLISHED = [
    ((0, 0, 0, 0), 82.48, "baseline"),
    ((0, 0, 0, 1), 83.45, "keep"),
    ((0, 0, 0, 2), 83.66, "keep"),
    ((0, 0, 1, 2), 83.77, "keep"),
    ((0, 0, 2, 2), 83.52, "reject"),
    ((0, 0, 3, 2), 83.19, "reject"),
    ((0, 1, 1, 2), 84.02, "keep"),
    ((0, 2, 1, 2), 83.39, "reject"),
    ((1, 1, 1, 2), 83.80, "reject"),
]
MODEL = "word:cc cc?block=basic&dim=4"
EXECUTION: dict[str, Any] = {"device": "cpu"}


def units_of(word: str) -> list[Any]:
    """Units with what `replaceable_units` reads of them."""
    kinds = {"c": "conv", "a": "attention", "m": "mlp"}
    letters = [(stage, letter) for stage, group in enumerate(word.split()) for letter in group]
    return [SimpleNamespace(index=i, stage=stage, kind=kinds[letter]) for i, (stage, letter) in enumerate(letters)]


def answers(*accuracies: float, images: int = 10_000) -> np.ndarray:
    """Answers of each seed, of which the first are right, so that a better model has all right answers of a worse one.

    Shapes: -> (seeds, images).
    """
    return np.stack([np.arange(images) < round(images * accuracy) for accuracy in accuracies]).astype(float)


def searched(search: Search, score: Callable[[tuple[int, ...]], np.ndarray]) -> Search:
    while search.candidate is not None:
        search.tell(score(search.candidate))
    return search


# The rule


@pytest.mark.parametrize(("patience", "left_out"), [(1, None), (0, (0, 0, 3, 2))])
def test_the_published_accuracies_give_the_published_search(patience: int, left_out: tuple[int, ...] | None) -> None:
    """With a patience of 1 all of figure 12a; with the README's rule all except what follows a rejection in its stage."""
    baseline = units_of("ccc cccc cccccc cccc")

    def layout(replaced: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sum(u.index in replaced for u in baseline if u.stage == stage) for stage in range(4))

    accuracy = {layout: accuracy for layout, accuracy, _ in PUBLISHED}
    rule = Search(replaceable_units(baseline), patience=patience)
    search = searched(rule, lambda replaced: answers(*3 * [accuracy[layout(replaced)] / 100]))
    trials = [(layout(t.units), round(100 * t.accuracies[0], 2), t.verdict) for t in search.trials]
    assert trials == [row for row in PUBLISHED if row[0] != left_out]
    assert layout(search.best.units) == (0, 1, 1, 2)
    letters = ["a" if u.index in search.best.units else "c" for u in baseline]
    assert "".join(letters) == "ccc" + "ccca" + "ccccca" + "caca"  # the paper's figure 11


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("ccc cccc cccccc cccc", [[2], [6, 4], [12, 10, 8], [16, 14]]),
        ("c cc", [[], [2]]),
        ("cca ccac", [[], []]),  # behind an attention, or before one, no other
        ("ccccac", [[2]]),
        ("cmcmcc", [[5]]),
        ("amam", [[]]),
    ],
)
def test_attention_follows_a_convolution_of_its_stage(word: str, expected: list[list[int]]) -> None:
    assert replaceable_units(units_of(word)) == expected


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_every_candidate_is_one_replacement_from_what_was_kept(patience: int) -> None:
    rng = np.random.default_rng(patience)
    for _ in range(50):
        stages = [[2], [6, 4], [12, 10, 8], [16, 14]]
        stage_of = {unit: s for s, stage in enumerate(stages) for unit in stage}
        order, best, failed, before = candidates(stages, patience), (), 0, 3
        tried = next(order)
        while True:
            stage = min(stage_of[unit] for unit in tried)
            failed = failed if stage == before else 0
            assert set(best) < set(tried)
            assert len(tried) == len(best) + failed + 1
            assert failed <= patience
            better = bool(rng.integers(2))
            best, failed, before = (tried, 0, stage) if better else (best, failed + 1, stage)
            try:
                tried = order.send(better)
            except StopIteration:
                break


def test_at_most_that_many_are_left() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        search = Search([[2], [6, 4], [12, 10, 8], [16, 14]])
        announced = []
        while search.candidate is not None:
            announced.append(search.left)
            search.tell(answers(*3 * [rng.random()]))
        assert all(count >= len(announced) - i for i, count in enumerate(announced))
        assert announced[0] == 9
        assert search.left == 0
    always = Search([[2], [6, 4]])
    counts = []
    while always.candidate is not None:
        counts.append(always.left)
        always.tell(answers(*3 * [0.1 * len(counts)]))
    assert counts == [4, 3, 2, 1], "exact where everything is kept"


# The test


@pytest.mark.parametrize("shift", [0.02, 0.01, -0.01])
def test_kept_where_the_paired_interval_over_seeds_is_above_the_margin(shift: float) -> None:
    """Where seeds differ by more than images do, it is the paired t test."""
    rng = np.random.default_rng(3)
    accuracies = 0.8 + 0.05 * rng.standard_normal(5)  # seeds differ far more than their differences do
    old = answers(*accuracies)
    new = answers(*accuracies + shift + 0.006 * rng.standard_normal(5))
    expected = ttest_rel(new.mean(1), old.mean(1)).confidence_interval(0.95)
    baseline = Trial((), old, "baseline")
    trial = Trial.compared((1,), new, baseline)
    assert trial.difference == pytest.approx(((new - old).mean(), expected.low, expected.high))
    assert trial.verdict == ("keep" if expected.low > 0 else "reject")
    assert trial.accuracies == pytest.approx(new.mean(1).tolist())
    edge = trial.difference[1]
    assert Trial.compared((1,), new, baseline, margin=max(0.0, edge + 1e-6)).verdict == "reject"
    assert trial.detectable == pytest.approx(trial.difference[0] - edge)


def test_two_seeds_that_differ_by_the_same_image_keep_nothing() -> None:
    """The same 1 of 20 images right with both seeds: no variance over seeds, and an interval from +5 to +5 points."""
    old, new = answers(0.5, 0.6, images=20), answers(0.55, 0.65, images=20)
    assert ((new - old).sum(1) == 1).all()
    baseline = Trial((), old, "baseline")
    two = Trial.compared((1,), new, baseline)
    assert two.verdict == "undecided: too few seeds"
    assert two.detectable == np.inf
    three = Trial.compared((1,), answers(0.55, 0.65, 0.75, images=20), Trial((), answers(0.5, 0.6, 0.7, images=20), "baseline"))
    value, low, high = three.difference
    assert three.verdict == "reject"
    assert three.detectable >= 0.05
    assert value == pytest.approx(0.05)
    assert low < 0 < high
    for trial in (two, three):
        search = Search([[1]])
        search.tell(old if trial is two else answers(0.5, 0.6, 0.7, images=20))
        search.tell(trial.correct)
        assert not search.kept
        assert search.best.units == ()


def test_seeds_that_agree_by_chance_have_the_interval_over_images() -> None:
    old, new = np.zeros((3, 50)), np.zeros((3, 50))
    old[:, :10], new[:, 5:21] = 1, 1  # of each seed 11 gained, 5 lost
    trial = Trial.compared((1,), new, Trial((), old, "baseline"))
    assert trial.difference == pytest.approx(tuple(map(float, paired_difference_interval(new.ravel(), old.ravel()))))
    assert trial.difference[1] < trial.difference[0] - 0.05


@pytest.mark.parametrize("seeds", [3, 6, 10])
def test_what_is_detectable_is_at_least_an_image(seeds: int) -> None:
    """With ten seeds of which half gain an image the mean gain is significant, and still less than one image of a seed."""
    old = answers(*seeds * [0.5], images=20)
    new = answers(*[0.5 + 0.05 * (seed % 2) for seed in range(seeds)], images=20)
    trial = Trial.compared((1,), new, Trial((), old, "baseline"))
    assert trial.detectable >= 0.05
    assert trial.verdict == "reject"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_decide_nothing(seeds: int) -> None:
    baseline = Trial((), answers(*seeds * [0.5]), "baseline")
    better = Trial.compared((1,), answers(*seeds * [0.9]), baseline)
    assert better.verdict == "undecided: too few seeds"
    assert better.difference[0] == pytest.approx(0.4)
    assert np.isinf(better.difference[1:]).all() == (seeds == 1)
    with pytest.raises(ValueError, match="shape"):
        Trial.compared((1,), answers(*(seeds + 1) * [0.9]), baseline)


@pytest.mark.parametrize(("of_seeds", "least"), [(0.03, 0.012), (0.0, 0.0)])
def test_noise_is_rarely_kept(of_seeds: float, least: float) -> None:
    """Of candidates that are no better, at most one in forty: the share above a 95% interval."""
    rng = np.random.default_rng(0)
    stages = [[unit] for unit in range(5)]

    def noise(_: tuple[int, ...]) -> np.ndarray:
        return (rng.random((3, 200)) < 0.8 + of_seeds * rng.standard_normal((3, 1))).astype(float)

    kept, tried = 0, 0
    for _ in range(300):
        search = searched(Search(stages), noise)
        kept, tried = kept + len(search.kept), tried + len(search.trials) - 1
    assert least < kept / tried < 0.035


def test_the_interval_over_seeds_and_images_covers() -> None:
    """Two designs that are equally good: seeds, images and their interaction at random; the joint interval holds 0."""
    rng = np.random.default_rng(0)
    inside = {"seeds": 0, "images": 0, "both": 0}

    def design(shared: np.ndarray) -> np.ndarray:
        seeds, images, both = (rng.standard_normal(shape) for shape in ((4, 1), (1, 100), (4, 100)))
        return (1 + shared + 0.3 * seeds + images + 0.5 * both > 0).astype(float)

    for _ in range(200):
        shared = rng.standard_normal((1, 100))
        for name, (_, low, high) in gain_over_both(design(shared), design(shared)).items():
            inside[name] += low < 0 < high
    assert inside["both"] >= 186
    assert inside["both"] > inside["images"] + 10
    assert inside["both"] > inside["seeds"] + 5


def test_all_test_images_right_is_not_a_certain_accuracy() -> None:
    """Clopper and Pearson's end; resampling says 100% to 100%."""
    value, low, high = over_both(np.ones((3, 20)))["both"]
    assert (value, high) == (1, 1)
    assert low == pytest.approx(binomtest(20, 20).proportion_ci(0.95, method="exact").low)


# In a folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two classes of 8 px images, bright above and bright below."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 10)):
        for label, share in (("above", 1.0), ("below", 0.5)):
            (root / split / label).mkdir(parents=True)
            for i in range(round(share * count)):
                pixels = rng.integers(0, 120, (8, 8)).astype(np.uint8)
                pixels[:4] += np.uint8(100 * (label == "above"))
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return str(root)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the searches here; one test draws."""
    monkeypatch.setattr(Buildup, "figure", lambda _: SimpleNamespace(savefig=lambda _: None))


@pytest.fixture(scope="module")
def run(data: str) -> BuildupRun:
    fast = recipe("fashion", epochs=1, batch_size=8, drop_path=0.1)
    return BuildupRun(MODEL, fast, data=data, held_out=0.25, seeds=(0, 1, 2), dim_head=4)


@cache
def untrained(folder: str, _: str, seed: int) -> tuple[torch.nn.Module, str]:
    """The random model of a design, and its word."""
    model = load_model(folder, pretrained=False, num_classes=2, seed=seed)
    return model, spell(units(model, torch.zeros(2, *model.pretrained_cfg["input_size"])))


class Trainer:
    """Replaces `train_to_folder`: saves a random model, with the accuracy that its word has in ``known``."""

    def __init__(self, known: dict[str, float], seconds: float = 6.0) -> None:
        self.known, self.seconds = known, seconds
        self.trained: list[str] = []

    def __call__(self, run: Run, folder: Path, **_: Any) -> Iterator[str | Progress]:
        yield Progress(1, 2, "halfway")
        model, word = untrained(run.model, Path(run.model, "model.json").read_text(), run.seed)
        matched = " matched" if run.model.endswith("-matched") else ""
        accuracy = self.known[word + matched] + (0.01 + 0.002 * len(word.replace("c", ""))) * run.seed
        origin = describe(Path(run.model)).model
        self.trained.append(f"{word}{matched} {run.seed}")
        about = {"run": {"model": run.model}, "seconds": self.seconds, "test": {"accuracy": [accuracy, 0, 1]}}
        save_model(model, folder, spec=origin, num_classes=2, **about)


KNOWN = {"cc cc": 0.5, "cc ca": 0.7, "ca ca": 0.6, "ca cc": 0.8, "cc ca matched": 0.65}


def trained_by(monkeypatch: pytest.MonkeyPatch, trainer: Trainer) -> Trainer:
    monkeypatch.setattr(search_module, "train_to_folder", trainer)
    monkeypatch.setattr(search_module, "scores_held_out", known_answers)
    return trainer


def known_answers(bench: Bench, design: search_module.Design, seed: int) -> np.ndarray:
    """Replaces `scores_held_out`: answers with the accuracy that `Trainer` wrote."""
    return answers(describe(bench.folder(design, seed)).test["accuracy"][0], images=1000)[0]


@pytest.fixture
def untested(monkeypatch: pytest.MonkeyPatch) -> None:
    """For searches whose result on the test images does not matter."""
    monkeypatch.setattr(search_module, "scores_on_test", lambda *_: np.zeros(4))


def rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "buildup" / "rows.parquet").to_pylist()


def provenance(out: Path) -> dict[str, Any]:
    return json.loads((out / "buildup" / "result.json").read_text())["provenance"]


@pytest.fixture(scope="module")
def finished(run: BuildupRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer, list[str]]:
    """A complete search, its trainings, and its lines."""
    out, trainer = tmp_path_factory.mktemp("finished") / "out", Trainer(KNOWN)
    with pytest.MonkeyPatch.context() as monkeypatch:
        trained_by(monkeypatch, trainer)
        return out, trainer, [line for line in buildup_to_folder(run, out, **EXECUTION) if isinstance(line, str)]


def test_a_search_in_a_folder(finished: tuple[Path, Trainer, list[str]]) -> None:
    out, trainer, lines = finished
    table = rows(out)
    assert [(row["word"], row["layout"], row["verdict"], row["against"]) for row in table] == [
        ("cc cc", "0, 0", "baseline", ""),
        ("cc ca", "0, 1", "keep", "baseline"),
        ("ca ca", "1, 1", "reject", "units-3"),
        ("cc ca", "0, 1", "control", "baseline"),
    ]
    words = ("cc cc", "cc ca", "ca ca", "cc ca matched")
    assert trainer.trained == [f"{word} {seed}" for word in words for seed in (0, 1, 2)]
    assert table[1]["difference"] == pytest.approx(0.202)
    assert table[3]["difference"] == pytest.approx(0.152), "a control is compared with the baseline, whose size it has"
    sizes = [row["parameters"] for row in table]
    assert abs(sizes[3] - sizes[0]) < abs(sizes[1] - sizes[0])
    facts = provenance(out)
    assert facts["winner"] == [3]
    assert facts["trainings"] == 12
    assert facts["seconds"] == 72
    best = load_model(str(out / "model"))
    assert spell(units(best, torch.zeros(2, 1, 8, 8))) == "cc ca"
    assert parameters(best) == sizes[1]
    assert not gates(best), "the convolutions are removed"
    assert any("a training takes 6 s; at most 14 left, in all 1:24 min" in line for line in lines), lines
    assert len(json.loads((out / "buildup" / "result.json").read_text())["claims"]) == 3


def test_the_test_scores_are_accuracies(run: BuildupRun, finished: tuple[Path, Trainer, list[str]]) -> None:
    """The accuracies on the test images, by a slow loop over the files."""
    out = finished[0]
    facts = provenance(out)
    for role, name in {"baseline": "baseline", "winner": "units-3", "matched": "units-3-matched"}.items():
        correct = []
        for seed in run.seeds:
            model = load_model(str(out / "trainings" / name / f"seed-{seed}"))
            mean, std = (model.pretrained_cfg[key][0] for key in ("mean", "std"))
            for file in sorted((Path(run.data) / "test").rglob("*.png")):
                pixels = torch.from_numpy(np.array(Image.open(file))).float()[None, None] / 255
                answer = model((pixels - mean) / std).argmax().item()
                correct.append(answer == ["above", "below"].index(file.parent.name))
        assert facts["test"][role]["both"][0] == pytest.approx(np.mean(correct))
    gain = facts["test_gain"]["winner"]["both"][0]
    assert gain == pytest.approx(facts["test"]["winner"]["seeds"][0] - facts["test"]["baseline"]["seeds"][0])


def test_the_trainings_share_all_weights_but_the_new_ones(run: BuildupRun, tmp_path: Path) -> None:
    bench = Bench(run, tmp_path, Execution(**EXECUTION))
    baseline, design = (bench.design(layout) for layout in ((), (3,)))
    one, two, other = (
        load_model(str(d.folder), pretrained=False, seed=s) for d, s in ((baseline, 5), (design, 5), (design, 6))
    )
    before, after = one.state_dict(), two.state_dict()
    shared = [name for name in after if name in before and before[name].shape == after[name].shape]
    assert len(shared) > 20
    assert all(torch.equal(before[name], after[name]) for name in shared)
    drawn = [name for name, p in two.named_parameters() if p.std() > 0 and "bn" not in name]
    assert drawn
    assert not any(torch.equal(after[name], other.state_dict()[name]) for name in drawn)
    assert "drop_path_rate=0.1" in describe(baseline.folder).model, "the recipe's drop path is in the design"


def test_stopped_anywhere_it_ends_the_same(run: BuildupRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real trainings with a checkpoint after every step, stopped after a few events."""
    monkeypatch.setattr(run_folder, "calibration", partial(run_folder.calibration, resamples=10))
    execution = EXECUTION | {"checkpoint_seconds": 0.0}
    list(buildup_to_folder(run, tmp_path / "unstopped", **execution))
    stops = 0
    for limit in (3, 6, 1000):
        search = buildup_to_folder(run, tmp_path / "stopped", resume=True, **execution)
        for count, _ in enumerate(search, 1):
            if count == limit:
                stops += 1
                break
        search.close()
    assert stops == 2
    assert [str(row) for row in rows(tmp_path / "stopped")] == [str(row) for row in rows(tmp_path / "unstopped")]
    for name in ("baseline", "units-1", "units-3"):
        folders = [tmp_path / out / "trainings" / name / "seed-1" for out in ("stopped", "unstopped")]
        one, two = (load_model(str(folder)).state_dict() for folder in folders)
        assert all(torch.equal(one[key], two[key]) for key in one)
    first = provenance(tmp_path / "unstopped")
    assert {key: first[key] for key in ("test", "winner")} == {
        key: provenance(tmp_path / "stopped")[key] for key in ("test", "winner")
    }


@pytest.mark.usefixtures("untested")
def test_complete_trainings_are_not_repeated(run: BuildupRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained_by(monkeypatch, Trainer(KNOWN))
    search = buildup_to_folder(run, tmp_path / "out", **EXECUTION)
    while len(trainer.trained) < 4:
        next(search)
    search.close()
    (tmp_path / "out").rename(tmp_path / "moved")
    list(buildup_to_folder(run, tmp_path / "moved", resume=True, **EXECUTION))
    assert len(trainer.trained) == len(set(trainer.trained)) == 12
    list(buildup_to_folder(replace(run, margin=0.3), tmp_path / "moved", resume=True, **EXECUTION))
    changed = [(row["word"], row["verdict"]) for row in rows(tmp_path / "moved")]
    assert changed[:3] == [("cc cc", "baseline"), ("cc ca", "reject"), ("ca cc", "reject")], "decided by the new margin"
    assert trainer.trained[12:] == ["ca cc 0", "ca cc 1", "ca cc 2"], "what the first search did not train"


@pytest.mark.usefixtures("untested")
def test_an_unfinished_training_resumes_after_its_folder_was_moved(
    run: BuildupRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "calibration", partial(run_folder.calibration, resamples=10))
    execution = EXECUTION | {"checkpoint_seconds": 0.0}
    one_seed = replace(run, seeds=(0,), recipe=replace(run.recipe, epochs=2))
    search = buildup_to_folder(one_seed, tmp_path / "out", **execution)
    next(event for event in search if isinstance(event, Progress))
    search.close()
    (tmp_path / "out").rename(tmp_path / "moved")
    events = list(buildup_to_folder(one_seed, tmp_path / "moved", resume=True, **execution))
    assert any(str(event).startswith("resuming from step") for event in events)
    assert any("seeds: 1, too few for the noise between seeds" in str(event) for event in events)
    assert {row["verdict"] for row in rows(tmp_path / "moved")} == {"baseline", "undecided: too few seeds"}
    assert all(row["accuracy_low"] == -np.inf for row in rows(tmp_path / "moved"))


# The budget


@pytest.mark.usefixtures("untested")
def test_a_design_over_the_budget_is_not_started(run: BuildupRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed search counts the same trainings: it does not drop the second seed of a candidate."""
    trainer, out = trained_by(monkeypatch, Trainer(KNOWN, seconds=60)), tmp_path / "out"
    search = buildup_to_folder(replace(run, minutes=6), out, **EXECUTION)
    while len(trainer.trained) < 4:
        next(search)
    search.close()
    events = list(buildup_to_folder(replace(run, minutes=6), out, resume=True, **EXECUTION))  # 3 + 3 minutes, not 3 more
    assert trainer.trained == [f"{word} {seed}" for word in ("cc cc", "cc ca") for seed in (0, 1, 2)]
    sentence = "the budget of 6 minutes ends before (1, 1) ca ca, which takes about 3:00 min; --resume"
    assert any(str(event).startswith(sentence) for event in events)
    assert [row["verdict"] for row in rows(out)] == ["baseline", "keep"]
    assert "ends before" in provenance(out)["stopped"]
    list(buildup_to_folder(replace(run, minutes=12), out, resume=True, **EXECUTION))
    assert len(trainer.trained) == 12
    assert rows(out)[-1]["verdict"] == "control"


@pytest.mark.usefixtures("untested")
def test_a_budget_too_small_for_the_baseline(run: BuildupRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained_by(monkeypatch, Trainer(KNOWN, seconds=60))
    with pytest.raises(
        UserError, match=r"the baseline alone takes about 3:00 min with 3 seeds, and the budget is 2\.5 minutes"
    ):
        list(buildup_to_folder(replace(run, minutes=2.5), tmp_path / "out", **EXECUTION))
    assert trainer.trained == ["cc cc 0"]
    with pytest.raises(UserError, match="the baseline alone"):
        list(buildup_to_folder(replace(run, minutes=1e-9), tmp_path / "early", **EXECUTION))
    assert len(trainer.trained) == 1, "refused before the end of the first training"
    list(buildup_to_folder(replace(run, minutes=3), tmp_path / "out", resume=True, **EXECUTION))
    assert len(rows(tmp_path / "out")) == 1, "the baseline alone"


# What cannot be done


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "word:aa a?block=basic&dim=4&heads=1&dim_head=4"}, "no convolution follows another in a stage of 'aa a'"),
        ({"model": "word:c c?block=basic&dim=4"}, "has nothing to replace"),
        ({"minutes": 0}, "minutes is 0.0; it must be above 0"),
        ({"minutes": float("nan")}, "minutes is nan; it must be above 0"),
        ({"margin": -0.1}, "margin is -0.1; it must be at least 0, below 1"),
        ({"margin": float("nan")}, "margin is nan; it must be at least 0, below 1"),
        ({"patience": -1}, "patience is -1; it must be at least 0"),
        ({"dim_head": 0}, "dim_head is 0; it must be at least 1"),
    ],
)
def test_refused(run: BuildupRun, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        list(buildup_to_folder(replace(run, **changes), tmp_path / "out", **EXECUTION))
    assert not (tmp_path / "out").exists()


def test_seeds_and_held_out_images_are_needed(run: BuildupRun) -> None:
    for seeds in ((), (1, 1)):
        with pytest.raises(UserError, match="one seed or more, each given once"):
            replace(run, seeds=seeds)
    with pytest.raises(UserError, match="hold some training images out"):
        replace(run, held_out=0.0)


def test_what_a_resumed_search_may_change(run: BuildupRun) -> None:
    changed = replace(run, margin=0.1, patience=1, controls=False, minutes=5.0)
    assert changed.request() == run.request()
    assert replace(run, window=5).request() != run.request()


def test_several_processes_are_refused(run: BuildupRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        list(buildup_to_folder(run, tmp_path / "out", **EXECUTION))


def test_a_folder_in_use(run: BuildupRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained_by(monkeypatch, Trainer(KNOWN))
    out = tmp_path / "out"
    search = buildup_to_folder(run, out, **EXECUTION)
    next(search)
    with pytest.raises(UserError, match="another search uses"):
        list(buildup_to_folder(run, out, resume=True, **EXECUTION))
    search.close()
    with pytest.raises(UserError, match="--resume to resume it"):
        list(buildup_to_folder(run, out, **EXECUTION))
    other = replace(run, dim_head=8, recipe=replace(run.recipe, lr=0.5))
    with pytest.raises(UserError, match=r"dim_head 4, not 8; lr 0.001, not 0.5"):
        list(buildup_to_folder(other, out, resume=True, **EXECUTION))
    held = os.open(out, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another search uses"):
        list(buildup_to_folder(run, out, overwrite=True, **EXECUTION))
    os.close(held)
    search = buildup_to_folder(run, out, resume=True, **EXECUTION)
    while len(trainer.trained) < 1:
        next(search)
    search.close()
    search = buildup_to_folder(other, out, overwrite=True, **EXECUTION)
    next(search)
    assert not (out / "trainings").exists(), "started again"
    search.close()
    shutil.rmtree(out)
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="did not write"):
        list(buildup_to_folder(run, out, overwrite=True, **EXECUTION))
    assert (out / "letter.txt").exists()


# Models of others, and the figure


def test_a_cnn_of_timm(run: BuildupRun, tmp_path: Path) -> None:
    small = replace(
        run, model="resnet18?channels=(8, 16, 32, 64)", data="fashion", limit=40, recipe=replace(run.recipe, drop_path=0.0)
    )
    bench = Bench(small, tmp_path, Execution(**EXECUTION))
    assert bench.stages == [[1], [3], [5], [7]]
    plain, control = bench.design((5, 7)), bench.design((5, 7), matched=True)
    assert plain.word == control.word == "cc cc ca ca"
    assert plain.added == (0, 0, 1, 1)
    assert control.parameters == pytest.approx(bench.design(()).parameters, rel=0.01)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_figure(seeds: int) -> None:
    from matplotlib.figure import Figure

    spread = np.linspace(0, 0.004, seeds) if seeds > 1 else np.zeros(1)
    baseline = Trial((), answers(*0.80 + spread), "baseline")
    kept = Trial.compared((3,), answers(*0.82 + 1.2 * spread), baseline)
    tried = [baseline, kept, Trial.compared((1, 3), answers(*0.81 + spread), kept)]
    tried.append(Trial.compared((3,), answers(*0.79 + spread), baseline, control=True))
    designs = [search_module.Design("x", t.units, Path(), (len(t.units),), "", 1) for t in tried]
    result = Buildup("some", [search_module.trial_row(d, t) for d, t in zip(designs, tried, strict=True)], [], {})
    ax = Figure().add_subplot()
    result.draw(ax)
    line, others, control = (next(iter(container.lines)) for container in ax.containers)
    heights = [[0, pytest.approx(80 + 100 * spread.mean())], [1, pytest.approx(82 + 120 * spread.mean(), abs=0.01)]]
    assert line.get_xydata().tolist() == heights[: 2 if seeds > 1 else 1]
    assert ax.containers[1].get_label() == ("rejected" if seeds > 1 else "undecided")
    assert others.get_markerfacecolor() == "white"
    assert control.get_color() == "0.6"
    assert [text.get_text() for text in ax.texts] == ["(0)", "(1)", "(2)"]
    bars = [bar for bar in ax.containers[0].lines[2][0].get_segments() if np.isfinite(bar).all() and len(bar)]
    assert len(bars) == (2 if seeds > 1 else 0)
    with pytest.raises(UserError, match="no panel"):
        result.draw(ax, "other")
