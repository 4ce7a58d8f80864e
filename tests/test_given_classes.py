"""Which output of the model each class of the data is, as a file says: `--classes`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from torch import nn

from backlight.analyses.calibration import calibration
from backlight.curvature.batches import draw_batches
from backlight.data.given_classes import read_classes
from backlight.data.loading import load_data
from backlight.errors import UserError
from backlight.report.sections.calibration import metrics as shown_metrics
from backlight.study.cells import folder_name, load
from backlight.study.plan import plan
from backlight.study.run import run_study
from backlight.study.settings import StudySettings

FOLDERS = ("alpha", "beta two", "gamma")


class Brightness(nn.Module):
    """Five outputs: the logits are fixed multiples of the mean of the image."""

    num_classes = 5

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, -1.0, 2.5, 9.0, 0.5]))
        cfg = {"input_size": (3, 8, 8), "mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0, "interpolation": "bilinear"}
        cfg["crop_mode"] = "center"
        self.pretrained_cfg = cfg | {"num_classes": 5} | ({"label_names": names} if names else {})

    def forward(self, images):
        return images.mean((1, 2, 3))[:, None] * self.weight


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder in FOLDERS:
        (tmp_path / "set" / folder).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "set" / folder / f"{i}.png")
    return tmp_path / "set"


def csv_of(folder: Path, text: str, name: str = "classes.csv") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_text_and_csv_say_the_same(tmp_path: Path) -> None:
    table = read_classes(csv_of(tmp_path, 'n1,3\n\n"beta two","great, white"\n'))
    assert table.outputs == {"n1": "3", "beta two": "great, white"}
    text = read_classes(csv_of(tmp_path, "\ufeffn1 3\n\nn2\tgreat, white\n", "classes.txt"))
    assert text.outputs == {"n1": "3", "n2": "great, white"}


def test_labels_are_the_outputs_that_are_given(images: Path) -> None:
    given = {"alpha": 4, "beta two": 0, "gamma": "2", "not here": 1}
    data = load_data(str(images), model=Brightness(), classes=given)
    labels = torch.cat([labels for _, labels in data])
    assert labels.tolist() == [4] * 4 + [0] * 4 + [2] * 4
    assert len(data.classes) == 5
    assert data.provenance["outputs"] == {"of": None, "by": "file", "numbers": [4, 0, 2]}


def test_outputs_are_given_by_their_names(images: Path) -> None:
    model = Brightness(("red", "green", "Light Blue", "grey", "grey"))
    data = load_data(str(images), model=model, classes={"alpha": "light_blue", "beta two": "red", "gamma": "4"})
    assert data.provenance["outputs"]["numbers"] == [2, 0, 4]
    with pytest.raises(UserError, match=r"gamma is 'grey', and outputs \[3, 4\] have this name: give the output's number"):
        load_data(str(images), model=model, classes={"alpha": "red", "beta two": "red", "gamma": "grey"})


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("alpha,0\ngamma,1\n", "has no row for the class 'beta two'"),
        ("alpha,0\nbeta two,5\ngamma,1\n", "beta two is 5, and the model's outputs are 0 to 4"),
        ("alpha,0\nbeta two,1\ngamma,cat\n", "gamma is 'cat', and the model's outputs have no names: give a number"),
        ("alpha,0\nalpha,1\n", "row 2 lists 'alpha' a second time"),
        ("alpha,0\nbeta two\n", "row 2: write a class folder and the number or the name"),
        ("alpha,\n", "row 1: write a class folder"),
        ("", "is empty"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_the_file_and_the_class(images: Path, rows: str, sentence: str) -> None:
    file = csv_of(images.parent, rows)
    with pytest.raises(UserError) as error:
        load_data(str(images), model=Brightness(), classes=read_classes(file))
    assert str(error.value).startswith(str(file))
    assert sentence in str(error.value)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.csv", "binary.csv"):
        with pytest.raises(UserError, match=name):
            read_classes(tmp_path / name)


def test_scores_are_over_all_outputs_and_restricted_to_the_classes_of_the_data(images: Path) -> None:
    """The largest logit is that of output 3, which is no class of the data; among the three, that of output 0."""
    model, given = Brightness(), {"alpha": 4, "beta two": 0, "gamma": 2}
    data = load_data(str(images), model=model, classes=given)
    result = calibration(model, data, resamples=20)
    rows = {row["metric"]: row["value"] for row in result.table}
    assert rows["accuracy"] == 0
    assert rows["accuracy_restricted"] == pytest.approx(1 / 3)
    expected = []
    for pixels, labels in data:
        log_probabilities = model(pixels)[:, [0, 2, 4]].double().log_softmax(1)
        expected += [-row[{0: 0, 2: 1, 4: 2}[int(label)]].item() for row, label in zip(log_probabilities, labels, strict=True)]
    assert rows["nll_restricted"] == pytest.approx(np.mean(expected))
    plain = [name for name in rows if not name.endswith("_restricted")]
    assert {f"{name}_restricted" for name in plain} == set(rows) - set(plain)
    shown = {title: text for title, text, _ in shown_metrics([result]).rows}
    assert shown["Accuracy, restricted"] == "%; among the data's classes"


def test_there_is_nothing_to_restrict_where_the_data_have_all_classes() -> None:
    batch = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    result = calibration(Brightness(), [batch], resamples=20)
    assert not [row for row in result.table if row["metric"].endswith("_restricted")]


def test_targets_of_the_training_loss_are_the_outputs_too(images: Path) -> None:
    file = csv_of(images.parent, "alpha,4\nbeta two,0\ngamma,2\n")
    batches = draw_batches(str(images), model=Brightness(), images=12, batch_size=6, classes=read_classes(file), mixup=0.0)
    mass = sum(targets.sum(0) if targets.ndim == 2 else nn.functional.one_hot(targets, 5).sum(0) for _, targets in batches)
    assert len(mass) == 5
    assert mass[4] > 1
    assert batches.provenance["outputs"]["numbers"] == [4, 0, 2]


def test_a_study_takes_the_file_and_its_content_is_part_of_the_request(tmp_path: Path) -> None:
    (cell,) = plan([TINY], {"calibration": {}}, StudySettings())
    assert cell.request()["classes"] is None
    names = [f"{i}" for i in range(10)]
    data = load_data("fashion", limit=20)
    reverse = "\n".join(f'"{name}",{9 - i}' for i, name in enumerate(data.classes or names))
    shared = StudySettings(limit=20, resamples=20, pretrained=False, classes=str(csv_of(tmp_path, reverse)))
    (outcome,) = run_study([TINY], {"calibration": {}}, shared, tmp_path / "runs")
    assert outcome.error == ""
    saved = load(tmp_path / "runs" / folder_name(TINY) / "calibration")
    assert saved.provenance["data"]["outputs"]["numbers"] == list(range(9, -1, -1))
    assert json.loads((tmp_path / "runs" / folder_name(TINY) / "calibration" / "result.json").read_text())
    csv_of(tmp_path, reverse.replace(",9", ",8"))
    with pytest.raises(UserError, match="was made with classes"):
        list(run_study([TINY], {"calibration": {}}, shared, tmp_path / "runs"))


def test_the_command_line_takes_the_file(run, tmp_path: Path) -> None:
    code, out, err = run("calibration", TINY, "--no-pretrained", "--limit", 20, "--quiet", "--classes", tmp_path / "none.csv")
    assert (code, out) == (2, "")
    assert err.strip().endswith(f"{tmp_path / 'none.csv'} cannot be read: No such file or directory")
