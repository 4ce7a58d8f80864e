"""Damaged and foreign files: a sentence, or the work is done again, and never other numbers.

Every file that Backlight reads again is damaged here: bits flipped, cut, replaced, values of other types in the place of any
field, with the sum that belongs to them and without.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from backlight.buildup.search import BuildupRun
from backlight.data.parquet import hub_class_names
from backlight.errors import UserError
from backlight.files import PartialResults
from backlight.model_names.saved import BUNDLED, SavedModel, describe
from backlight.models.sources.load import load_model
from backlight.models.sources.saved import save_model
from backlight.recipes import FASHION
from backlight.records import SHA256, Damaged, Record, digest, encoded, read_record
from backlight.results.claim import Claim
from backlight.results.result import Result, ResultFile
from backlight.study.cells import Reason, folder_name, load, stored
from backlight.study.config import read_config
from backlight.study.folder import ModelUnits, StudyRequest, UnitRow, read_study
from backlight.study.outcome import Outcome
from backlight.study.plan import plan
from backlight.study.run import run_study
from backlight.study.settings import StudySettings
from backlight.training.checkpoints import Manifest, read_checkpoint, write_checkpoint
from backlight.training.run import Run

CLAIM = Claim("a/b", "a statement", "figure 1", "nats", 1.0, float("nan"), 2.0, "holds", 50, "images")
#: One record of each kind that is read again, each field with a value.
RECORDS: list[Record] = [
    ResultFile("variance", "a model", [CLAIM], {"images": 3, "model": {"parameters": 4}}, {"rows.parquet": "0" * 64}),
    Reason("a model", "variance", "it failed", True, {"seed": 0, "at": []}),
    StudyRequest({"a model": ["variance", "lesion"]}, {"limit": None, "seed": 0}),
    ModelUnits("a model", "c", 5, [UnitRow(0, "conv", 0, "body.0", [4, 8, 8], True, False)]),
    SavedModel(TINY, 10, {"mean": [0.5]}, ["a"], [{"operation": "smooth"}], "0" * 64, {"nll": [1.0, 0.5, 2.0]}, 3.5, {"a": 1}),
    Manifest(0.5, 3, 0.25, 1.5, [{"epoch": 1, "loss": 0.1}], {"state.pt": "0" * 64}),
    Run(TINY, FASHION, snapshots=("init", "2")),
    BuildupRun(TINY, FASHION),
]
KINDS = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.record)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

#: What JSON can hold, with what breaks a careless reader.
VALUES = st.recursive(
    st.sampled_from([None, True, False, "", "x", 0, -1, 2**63, 10**400, 1.5, 1e308, [], {}, "\ud800", "nan"])
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
#: Files that hold none of our records.
OTHERS = {
    "empty": b"", "null": b"null", "list": b"[]", "object": b"{}", "number": b"3", "text": b'"x"', "true": b"true",
    "nan": b"NaN", "brackets": b"[" * 100_000,
    "braces": b'{"a":' * 100_000, "inner brackets": b'{"sha256": ' + b"[" * 900 + b"]" * 900 + b"}",
    "digits": b"9" * 10_000, "large": b"1e999", "not text": b"\xff\xfe\x00", "two": b"{} {}", "zeros": b"\x00" * 300,
    "another program's": b'{"name": "x", "version": "1.0.0"}',
}  # fmt: skip


def attempt(read: Callable[[], Any]) -> tuple[Any, str]:
    """What ``read`` returns, or the sentence of its UserError; any other exception is a fault."""
    try:
        return read(), ""
    except UserError as error:
        return None, str(error)


def flipped(content: bytes, i: int) -> bytes:
    """One bit of a byte, another one for each byte."""
    return content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a document holds a value."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value in a place."""
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def changed(record: Record, data: st.DataObject, *, summed: bool) -> bytes:
    """A record's file with some value in the place of one that it holds, or without it, or with one more."""
    document = json.loads(encoded(record))
    path = data.draw(st.sampled_from([path for path in places(document) if path[-1] != SHA256]))
    document = replaced(document, path, data.draw(VALUES))
    if data.draw(st.integers(0, 9)) == 0:
        document.pop(path[0])
    if data.draw(st.integers(0, 9)) == 0:
        document[data.draw(st.text(max_size=5))] = data.draw(VALUES)
    if summed:
        document[SHA256] = digest({key: value for key, value in document.items() if key != SHA256})
    return json.dumps(document).encode()


# --- one record


@KINDS
def test_a_record_is_read_as_it_was_written(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    assert read_record(path, type(record)) is None
    path.write_bytes(encoded(record))
    again = read_record(path, type(record))
    assert type(again) is type(record)
    assert repr(again) == repr(record)  # NaN as itself
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    assert repr(read_record(path, type(record))) == repr(record), "the layout of the file does not count"


@KINDS
def test_a_flipped_bit_changes_no_value(record: Record, tmp_path: Path) -> None:
    """One bit in each byte of the file."""
    path, content = tmp_path / "file.json", encoded(record)
    unnoticed = 0
    for i in range(len(content)):
        path.write_bytes(flipped(content, i))
        again, said = attempt(lambda: read_record(path, type(record)))
        assert str(path) in said or repr(again) == repr(record)
        unnoticed += not said
    assert unnoticed <= 0.01 * len(content), "only what JSON writes in two ways, such as 1e-6 and 1E-6"


@KINDS
def test_a_cut_file_is_damaged(record: Record, tmp_path: Path) -> None:
    path, content = tmp_path / "file.json", encoded(record)
    for length in range(0, len(content) - 2, 5):  # without the newline at the end it is complete
        path.write_bytes(content[:length])
        with pytest.raises(Damaged, match=r"file\.json is damaged"):
            read_record(path, type(record))


@KINDS
@pytest.mark.parametrize("other", OTHERS)
def test_a_file_of_something_else_is_named(record: Record, other: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(OTHERS[other])
    with pytest.raises(UserError, match=r"file\.json (is damaged|was not written by Backlight)") as refused:
        read_record(path, type(record))
    assert isinstance(refused.value, Damaged) == (other not in ("object", "another program's"))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < len(str(path)) + 200


@KINDS
@QUICK
@given(data=st.data())
def test_a_changed_value_is_noticed(record: Record, data: st.DataObject, tmp_path: Path) -> None:
    """Without its sum no value counts but the one that was written."""
    path = tmp_path / "file.json"
    path.write_bytes(changed(record, data, summed=False))
    again, said = attempt(lambda: read_record(path, type(record)))
    assert str(path) in said or repr(again) == repr(record)


@KINDS
@QUICK
@given(data=st.data())
def test_a_value_of_another_type_is_refused(record: Record, data: st.DataObject, tmp_path: Path) -> None:
    """With its sum a file is read if its types fit, and what is read has the types of its fields; else it is a UserError."""
    path = tmp_path / "file.json"
    path.write_bytes(changed(record, data, summed=True))
    again, said = attempt(lambda: read_record(path, type(record)))
    if not said:
        path.write_bytes(encoded(again))
        assert repr(read_record(path, type(record))) == repr(again)
    else:
        assert str(path) in said


@KINDS
def test_each_field_has_a_type(record: Record, tmp_path: Path) -> None:
    """A list where there is none, and null where a value must be."""
    path, document = tmp_path / "file.json", json.loads(encoded(record))
    for name, value in document.items():
        wrong = {"x": 1} if isinstance(value, list) else [1]
        values = replaced(document, (name,), wrong)
        path.write_text(json.dumps(values | {SHA256: digest({k: v for k, v in values.items() if k != SHA256})}))
        if name != SHA256:
            with pytest.raises(UserError, match=r"file\.json"):
                read_record(path, type(record))


@KINDS
def test_another_version_and_another_kind_are_refused(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, kind = tmp_path / "file.json", type(record)
    for version, sentence in ((kind.version + 1, "was written by a newer Backlight"), (kind.version - 1, "an older Backlight")):
        with monkeypatch.context() as other:
            other.setattr(kind, "version", version)
            path.write_bytes(encoded(record))
        with pytest.raises(UserError, match=rf"file\.json .*{sentence}") as refused:
            read_record(path, kind)
        assert isinstance(refused.value, Damaged) == (version < kind.version), "what is newer must not be replaced"
    path.write_bytes(encoded(RECORDS[(RECORDS.index(record) + 1) % len(RECORDS)]))
    with pytest.raises(UserError, match="is a file of Backlight of another kind"):
        read_record(path, kind)


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("pipe", "folder"):
        with pytest.raises(UserError, match=rf"{name} is not a plain file"):
            read_record(tmp_path / name, Reason)
    assert read_record(tmp_path / "nowhere", Reason) is None


# --- results


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with results, with and without arrays, a failed cell, and one that is not applicable."""
    out = tmp_path_factory.mktemp("studies") / "study"
    outcomes = list(measured(out))
    assert [outcome.state.partition(":")[0] for outcome in outcomes] == ["done", "done", "not applicable", *3 * ["failed"]]
    return out


def measured(out: Path, show: Callable[[Any], None] = lambda _: None) -> Iterator[Outcome]:
    """The study, without figures, which take most of the time."""
    shared = StudySettings(limit=20, resamples=10, pretrained=False)
    analyses: dict[str, dict[str, Any]] = {"variance": {}, "calibration": {}, "attention": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Result, "figure", lambda _: Figure(figsize=(1, 1)))
        yield from run_study([TINY, "resnet5"], analyses, shared, out, show=show)


def rows(out: Path) -> dict[str, str]:
    return {path.parent.name: str(load(path.parent).rows()) for path in out.rglob("result.json")}


def test_a_flipped_bit_in_a_result_is_noticed(study: Path, tmp_path: Path) -> None:
    """One bit in every third byte of each file that `load` reads."""
    folder = Path(shutil.copytree(study / folder_name(TINY) / "calibration", tmp_path / "there"))
    expected = load(folder)
    for name in ("rows.parquet", "arrays.safetensors", "result.json"):
        content = (folder / name).read_bytes()
        for i in range(0, len(content), 3):
            (folder / name).write_bytes(flipped(content, i))
            again, said = attempt(lambda: load(folder))
            assert str(folder / name) in said or (name == "result.json" and repr(again) == repr(expected))
        (folder / name).write_bytes(content)
    assert repr(load(folder)) == repr(expected)


@pytest.fixture(scope="module")
def expected_rows(study: Path) -> dict[str, str]:
    return rows(study)


@pytest.mark.parametrize("name", ["data", "model", "request", "settings", "versions"])
def test_provenance_of_another_type_is_refused(study: Path, tmp_path: Path, name: str) -> None:
    """The page and a study that goes on look into these, so they are objects, also if the sum belongs to the file."""
    folder = Path(shutil.copytree(study / folder_name(TINY) / "calibration", tmp_path / "calibration"))
    document = json.loads((folder / "result.json").read_text())
    for wrong in (None, 3, [], "x"):
        values = replaced(document, ("provenance", name), wrong)
        values[SHA256] = digest({key: value for key, value in values.items() if key != SHA256})
        (folder / "result.json").write_text(json.dumps(values))
        with pytest.raises(Damaged, match=rf"result\.json is damaged: provenance\.{name}"):
            load(folder)


@QUICK
@given(data=st.data())
def test_a_result_with_other_values_is_read_or_refused(study: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Also if the sum belongs to them; the page and a study that goes on are included."""
    folder = tmp_path / "calibration"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(study / folder_name(TINY) / "calibration", folder)
    record = read_record(folder / "result.json", ResultFile)
    assert record is not None
    (folder / "result.json").write_bytes(changed(record, data, summed=data.draw(st.booleans())))
    attempt(lambda: load(folder))
    attempt(lambda: read_study(tmp_path))
    (cell,) = plan([TINY], {"calibration": {}}, StudySettings())
    out = tmp_path / "out" / folder_name(TINY)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out / "calibration")
    attempt(lambda: stored(tmp_path / "out", cell))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "flipped": lambda content: flipped(content, 61),
    **{
        name: lambda _, other=other: other for name, other in OTHERS.items() if name in ("null", "number", "brackets", "digits")
    },
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name",
    ["study.json", "{}/variance/result.json", "{}/variance/rows.parquet", "{}/calibration/arrays.safetensors",
     "{}/attention.reason.json", "{}/units.json", "resnet5/variance.reason.json"],
)  # fmt: skip
def test_a_damaged_file_of_a_study_is_made_again(study: Path, tmp_path: Path, name: str, damage: str) -> None:
    out = Path(shutil.copytree(study, tmp_path / "out"))
    file = out / name.format(folder_name(TINY))
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    broken = ("could not be read", "left out")
    (absent,) = [sentence for sentence in read_study(out).absent if any(each in sentence for each in broken)]
    assert str(file.relative_to(out)) in absent or str(file.relative_to(out).parent) in absent
    if file.name == "units.json":  # of the model, and made when any of its cells is measured
        shutil.rmtree(file.parent / "variance")
    lines: list[Any] = []
    list(measured(out, lines.append))
    assert rows(out) == rows(study)
    said = [line for line in lines if isinstance(line, str)]
    assert [line.startswith(str(file)) and line.endswith(": it is made again") for line in said] == [True] * len(said)
    assert len(said) == (file.name != "units.json")
    assert not [sentence for sentence in read_study(out).absent if any(each in sentence for each in broken)]


def test_a_missing_file_of_a_result_is_made_again(study: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(study, tmp_path / "out"))
    (out / folder_name(TINY) / "calibration" / "arrays.safetensors").unlink()
    lines: list[Any] = []
    list(measured(out, lines.append))
    assert [line for line in lines if "arrays.safetensors is missing: it is made again" in str(line)]
    assert rows(out) == rows(study)


@pytest.mark.parametrize("damage", ["newer", "foreign", "gone"])
def test_what_must_not_be_replaced_is_refused_before_any_work(
    study: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(study, tmp_path / "out"))
    file = out / folder_name(TINY) / "variance" / "result.json"
    if damage == "newer":
        record = read_record(file, ResultFile)
        with monkeypatch.context() as later:
            later.setattr(ResultFile, "version", 2)
            file.write_bytes(encoded(record))  # type: ignore[arg-type]
    elif damage == "foreign":
        file.write_text('{"name": "my package"}')
    else:
        file.unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="newer Backlight" if damage == "newer" else "holds what Backlight did not write"):
        list(measured(out))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@QUICK
@given(data=st.data())
def test_a_page_reads_any_damaged_study(
    study: Path, expected_rows: dict[str, str], tmp_path: Path, data: st.DataObject
) -> None:
    """`read_study` names what it leaves out, or says that nothing is left."""
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(study, out)
    files = sorted(path for path in out.rglob("*") if path.suffix in (".json", ".parquet", ".safetensors"))
    for file in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=4, unique=True)):
        content = file.read_bytes()
        where = data.draw(st.integers(0, len(content) - 1))
        other = data.draw(st.sampled_from([*OTHERS.values()]) | st.binary(max_size=20))
        file.write_bytes(data.draw(st.sampled_from([other, content[:where], content[:where] + other + content[where + 1 :]])))
    read, said = attempt(lambda: read_study(out))
    assert read is not None or "holds no results of Backlight" in said
    for model in read.models if read else ():
        for result in model.results.values():
            assert str(result.rows()) == expected_rows[result.analysis]


# --- models, checkpoints, partial results


@pytest.mark.parametrize("other", OTHERS)
def test_a_damaged_model_is_named(other: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLED / "demo-cnn", tmp_path / "model"))
    (folder / "model.json").write_bytes(OTHERS[other])
    for read in (describe, lambda path: load_model(str(path))):
        with pytest.raises(UserError, match=r"model\.json (is damaged|was not written)"):
            read(folder)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    return save_model(load_model(TINY, pretrained=False, seed=0), folder, spec=TINY, num_classes=10)


@QUICK
@given(data=st.data())
def test_a_model_with_other_values_loads_or_is_refused(small_model: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Also if the sum belongs to them."""
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(small_model, folder)
    (folder / "model.json").write_bytes(changed(describe(small_model), data, summed=data.draw(st.booleans())))
    attempt(lambda: load_model(str(folder)))


def state(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"w": torch.full((3,), float(step))}, "average": {}, "optimizer": {}, "scaler": None}


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    """Every 7th byte of each file: the checkpoint before it is used."""
    for step in (1, 2):
        write_checkpoint(tmp_path, state(step), Manifest(seconds=step, rows=[{"epoch": step}]))
    for name in ("checkpoint.json", "model.safetensors", "state.pt"):
        file = tmp_path / "00000002" / name
        content = file.read_bytes()
        for i in range(0, len(content), 7):
            file.write_bytes(flipped(content, i))
            read, manifest, damaged = read_checkpoint(tmp_path)
            assert read is not None
            step = int(read["step"])
            assert step == (1 if damaged else 2)
            assert (manifest.seconds, manifest.rows) == (step, [{"epoch": step}])
            assert torch.equal(read["model"]["w"], torch.full((3,), float(step)))
            assert bool(damaged) or name == "checkpoint.json"
        file.write_bytes(content)
    assert read_checkpoint(tmp_path)[2] == []


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_something_else_is_passed_over(other: str, tmp_path: Path) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, state(step), Manifest())
    (tmp_path / "00000002" / "checkpoint.json").write_bytes(OTHERS[other])
    read, _, (sentence,) = read_checkpoint(tmp_path)
    assert read is not None
    assert read["step"] == 1
    assert "00000002" in sentence


def test_a_flipped_bit_in_a_partial_result_is_noticed(tmp_path: Path) -> None:
    partial_results = PartialResults(tmp_path, {"seed": 0})
    partial_results.put("row", {"loss": np.arange(5.0)})
    (file,) = tmp_path.rglob("*.part")
    content = file.read_bytes()
    for i in range(len(content)):
        file.write_bytes(flipped(content, i))
        assert partial_results.get("row") is None
        file.write_bytes(content[:i])
        assert partial_results.get("row") is None
    file.write_bytes(content)
    stored = partial_results.get("row")
    assert stored is not None
    np.testing.assert_array_equal(stored["loss"], np.arange(5.0))


# --- study files


@QUICK
@given(data=st.data())
def test_any_value_in_a_study_file_is_read_or_refused_with_file_and_key(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "study.toml"
    keys = ["models", "analyses", "out", "limit", "seed", "batch_size", "pretrained", "resamples", "at", "data", "workers"]
    key = data.draw(st.sampled_from([*keys, "hessian", "hessian.batches", "landscape.grid", "noise.severities", "unknown"]))
    value = data.draw(VALUES.filter(lambda value: value is not None))
    file.write_text(f"{key} = {json.dumps(value)}\n", encoding="utf-8")
    _, said = attempt(lambda: read_config(file))
    assert not said or (str(file) in said and (key.split(".")[0] in said or "is not TOML" in said))


# --- the JSON of others


@pytest.mark.parametrize(
    "content",
    [b"null", b"[]", b'{"info": 3}', b'{"info": {"features": []}}', b"[" * 100_000, b"\xff", b'{"info": {"features": 1e999}}',
     b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": null}}}}',
     b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, null]}}}}'],
)  # fmt: skip
def test_metadata_of_another_type_in_a_parquet_file_is_named(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^a\.parquet: its huggingface metadata cannot be read: "):
        hub_class_names(content, Path("a.parquet"))


def test_metadata_of_the_hub_gives_the_class_names() -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["a", "b"]}, "image": {"_type": "Image"}, "boxes": [{"_type": "x"}]}
    content = json.dumps({"info": {"features": features, "splits": None}, "fingerprint": "x"}).encode()
    assert hub_class_names(content, Path("a.parquet")) == {"label": ["a", "b"]}
    assert hub_class_names(b"{}", Path("a.parquet")) == {}
