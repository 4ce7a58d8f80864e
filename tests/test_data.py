"""Data by name: every expected value is computed in a second way."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backlight import offline as offline_module
from backlight.data import cifar, folders, image_set, parquet, sampling, timm_readers
from backlight.data import loading as data_module
from backlight.data.image_set import as_arrays
from backlight.data.loading import dataset, default_workers, load_data
from backlight.data.opening import FASHION
from backlight.data.preprocessing import preprocessing
from backlight.data.sampling import stratified
from backlight.errors import Unavailable, UserError
from backlight.offline import SWITCHES, hub_offline_if_set, offline

SOURCE = Path("/usr/share/datasets/fashion-mnist")


# Small data sets


def some_pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (8, 8, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_folder(root: Path, counts: dict[str, int], *shape: int) -> Path:
    """CLASS/N.png with different pixels in each."""
    for c, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(encoded(some_pixels(100 * c + i, *shape)))
    return root


def write_parquet(file: Path, labels, *, image="image", label="label", names=("a", "b", "c"), group=2, cells=None) -> Path:
    """One file in the Hub's layout; row i has the pixels of seed i."""
    file.parent.mkdir(exist_ok=True, parents=True)
    cells = cells or [{"bytes": encoded(some_pixels(i)), "path": None} for i in range(len(labels))]
    columns = {image: pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()})), label: pa.array(labels)}
    table = pa.table(columns)
    if names:
        features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file, row_group_size=group)
    return file


def write_cifar10(root: Path, monkeypatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    """torchvision's layout with three images in each file; its checksums are set to those of these files."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name: str, value: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(value))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    written = {}
    for i, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        pixels, labels = some_pixels(i, 3, 32, 32, 3), [i, 9, 5]
        written[name] = (pixels, labels)
        write(name, {"data": pixels.transpose(0, 3, 1, 2).reshape(3, -1), "labels": labels})
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    file, md5 = write("batches.meta", {"label_names": [f"class {c}" for c in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": file, "key": "label_names", "md5": md5})
    return written


class Model(torch.nn.Module):
    """A model that has a pretrained_cfg and nothing else."""

    def __init__(self, **cfg):
        super().__init__()
        self.pretrained_cfg = cfg


def batches(data) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*data, strict=True)
    return torch.cat(images), torch.cat(labels)


def sentence(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        list(load_data(*args, **kwargs))
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


# The embedded set


def test_fashion_is_small_and_stratified():
    assert sum(file.stat().st_size for file in FASHION.glob("*.parquet")) < 4_500_000
    for split, count in (("train", 600), ("test", 200)):
        images = dataset("fashion", split)
        assert [list(images.labels).count(c) for c in range(10)] == [count] * 10
        assert images.classes[0] == "T-shirt/top"
        assert images.classes[9] == "Ankle boot"
    assert "Zalando" in (FASHION / "NOTICE").read_text()


def test_fashion_batches_are_the_pixels_in_the_file():
    data = load_data("fashion", batch_size=300)
    images, labels = batches(data)
    table = pq.read_table(FASHION / "test.parquet")
    assert (len(data), data.images, images.dtype, labels.dtype) == (7, 2000, torch.float32, torch.int64)
    assert labels.tolist() == table["label"].to_pylist()
    for i in range(0, 2000, 97):
        pixels = np.asarray(Image.open(io.BytesIO(table["image"][i].as_py()["bytes"])))
        assert np.array_equal((images[i, 0] * 255).round().numpy(), pixels)


@pytest.mark.skipif(not SOURCE.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_is_what_the_tool_selects():
    spec = importlib.util.spec_from_file_location("make", Path(__file__).parents[1] / "tools/make_fashion.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    images, labels = make.source_arrays("t10k")
    stored = pq.read_table(FASHION / "test.parquet")
    rows = [int(Path(cell["path"]).stem) for cell in stored["image"].to_pylist()]  # the path is the number in the original
    arrays, stored_labels = as_arrays(dataset("fashion", "test"))
    assert np.array_equal(arrays[..., 0], images[rows])
    assert np.array_equal(stored_labels, labels[rows])
    assert make.hub_table(images, labels, stratified(labels, 2000, make.SEED)).equals(stored)


def test_the_datasets_library_reads_the_embedded_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    theirs = datasets.Dataset.from_parquet(str(FASHION / "test.parquet"), cache_dir=str(tmp_path))
    ours = dataset("fashion", "test")
    assert tuple(theirs.features["label"].names) == ours.classes
    for i in (0, 999, 1999):
        assert np.array_equal(np.asarray(theirs[i]["image"]), np.asarray(ours[i][0]))
        assert theirs[i]["label"] == ours[i][1]


# Subsets


def least_shares(counts: list[int], limit: int) -> list[int]:
    """Lower bounds of the shares: the floor of the exact share, and one if the limit allows."""
    return [max(count * limit // sum(counts), int(limit >= len(counts))) for count in counts]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 200), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_a_subset_has_the_classes_in_proportion(counts, limit, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)) * 3, counts))
    subset = stratified(labels, limit, seed)
    taken = [int((labels[subset] == 3 * c).sum()) for c in range(len(counts))]
    assert len(set(subset.tolist())) == len(subset) == min(limit, len(labels))
    assert subset.tolist() == sorted(subset.tolist())
    if limit >= len(labels):
        return
    exact = [count * limit / len(labels) for count in counts]
    if limit >= len(counts):
        assert min(taken) >= 1
    if all(share >= 1 for share in exact) or limit < len(counts):  # no small class took images from another
        assert all(take >= low for take, low in zip(taken, least_shares(counts, limit), strict=True))
        assert all(abs(take - share) < 1 for take, share in zip(taken, exact, strict=True))


@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_no_other_shares_are_nearer_to_the_proportions(counts, limit):
    limit = min(limit, sum(counts) - 1)
    ties = np.arange(len(counts), dtype=np.uint64)
    ours = sampling.shares(np.array(counts), limit, ties).tolist()
    low = int(limit >= len(counts))

    def distance(take):
        return sum((t * sum(counts) - count * limit) ** 2 for t, count in zip(take, counts, strict=True))

    every = np.stack(np.meshgrid(*[range(low, count + 1) for count in counts]), -1).reshape(-1, len(counts))
    assert distance(ours) == min(distance(take.tolist()) for take in every if take.sum() == limit)


def test_the_seed_alone_decides_the_subset():
    labels = dataset("fashion", "test").labels
    same, other = (stratified(labels, 100, seed) for seed in (0, 1))
    assert np.array_equal(same, stratified(labels.copy(), 100, 0))
    assert not np.array_equal(same, other)
    # Fixed numbers: another machine or NumPy version that draws differently fails here.
    assert stratified(labels, 12, 0).tolist() == GOLDEN_ROWS


GOLDEN_ROWS = [11, 269, 600, 850, 855, 921, 1185, 1441, 1526, 1607, 1776, 1839]


def test_few_images_of_many_classes_are_not_the_first_classes():
    labels = np.repeat(np.arange(1000), 5)
    assert labels[stratified(labels, 20)].max() > 500


def test_a_subset_is_those_images_of_the_set():
    images, labels = batches(load_data("fashion", limit=50, seed=3))
    every, all_labels = batches(load_data("fashion"))
    rows = stratified(all_labels.numpy(), 50, 3)
    assert torch.equal(images, every[rows])
    assert torch.equal(labels, all_labels[rows])


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit):
    assert sentence("fashion", limit=limit) == f"limit must be at least 1, got {limit}"


@pytest.mark.parametrize("limit", [2.5, "10", True])
def test_a_limit_that_is_no_whole_number_is_refused(limit):
    assert "whole number" in sentence("fashion", limit=limit)


def test_wrong_seed_and_batch_size_are_refused():
    assert "seed" in sentence("fashion", limit=5, seed=-1)
    assert "batch_size must be at least 1" in sentence("fashion", batch_size=0)


def test_a_limit_beyond_the_set_takes_all_of_it():
    assert load_data("fashion", limit=10**6).images == 2000


# Provenance


def test_provenance_is_plain_and_names_the_images(tmp_path):
    path = write_folder(tmp_path / "set", {"cat": 3, "dog": 3})
    data = load_data(str(path), limit=4, seed=1, batch_size=3)
    provenance = json.loads(json.dumps(data.provenance))
    assert provenance == data.provenance
    rows = stratified(np.array([0, 0, 0, 1, 1, 1]), 4, 1)
    names = [f"{'cat' if row < 3 else 'dog'}/{row % 3}.png" for row in rows]
    sizes = [(path / name).stat().st_size for name in names]
    assert provenance["ids_sha256"] == hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()
    content = "".join(f"{name}\t{size}\n" for name, size in zip(names, sizes, strict=True))
    assert provenance["content_sha256"] == hashlib.sha256(content.encode()).hexdigest()
    assert (provenance["split"], provenance["limit"], provenance["seed"]) == ("all", 4, 1)
    assert (provenance["images"], provenance["batch_size"], len(data)) == (4, 3, 2)


def test_the_hash_of_ids_changes_with_the_subset():
    hashes = {load_data("fashion", limit=limit, seed=seed).provenance["ids_sha256"] for limit in (20, 30) for seed in (0, 1)}
    assert len(hashes) == 4


def test_the_hash_of_content_is_that_of_the_files(tmp_path):
    content = load_data("fashion").provenance
    assert content["content_sha256"] == hashlib.sha256((FASHION / "test.parquet").read_bytes()).hexdigest()
    assert content["content_of"] == "bytes of the files"


def test_large_files_are_hashed_by_name_and_size(tmp_path, monkeypatch):
    file = write_parquet(tmp_path / "test.parquet", [0, 1])
    monkeypatch.setattr(image_set, "HASHED_BYTES", 10)
    provenance = load_data(str(tmp_path)).provenance
    line = f"test.parquet\t{file.stat().st_size}\n"
    assert provenance["content_sha256"] == hashlib.sha256(line.encode()).hexdigest()
    assert provenance["content_of"] == "file names and sizes"


# Preprocessing


def test_preparation_equals_pillow_and_numpy(tmp_path):
    write_folder(tmp_path, {"a": 1, "b": 1}, 30, 40, 3)
    cfg = {
        "input_size": (3, 16, 16),
        "crop_pct": 0.8,
        "interpolation": "bicubic",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.6, 0.7),
    }
    data = load_data(str(tmp_path), model=Model(**cfg))
    images, _ = batches(data)
    opened = Image.open(tmp_path / "a" / "0.png").resize((26, 20), Image.Resampling.BICUBIC)  # 16 / 0.8 = 20 high
    pixels = np.asarray(opened, np.float32)[2:18, 5:21] / 255
    expected = (pixels - np.float32(cfg["mean"])) / np.float32(cfg["std"])
    np.testing.assert_allclose(images[0].permute(1, 2, 0), expected, atol=1e-6)
    record = data.provenance["preprocessing"]
    assert record["input_size"] == [3, 16, 16]
    assert (record["crop_pct"], record["interpolation"], record["crop_mode"]) == (0.8, "bicubic", "center")
    assert (record["mean"], record["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    assert (record["colours"], record["adjusted"]) == ("RGB", [])


def test_preparation_equals_timm_on_a_timm_model(tmp_path):
    write_folder(tmp_path, {"a": 1, "b": 1}, 50, 70, 3)
    model = timm.create_model("test_resnet")
    config = timm.data.resolve_data_config({}, model=model)
    theirs = timm.data.create_transform(**config, is_training=False)(Image.open(tmp_path / "b" / "0.png"))
    assert torch.equal(batches(load_data(str(tmp_path), model=model))[0][1], theirs)


def test_the_size_that_a_model_was_built_for_is_used():
    built = timm.create_model("test_vit", img_size=48)
    assert built.pretrained_cfg["input_size"][1] != 48
    assert preprocessing(built)["input_size"] == [3, 48, 48]
    assert preprocessing(built)["adjusted"] == ["input_size"]
    assert next(iter(load_data("fashion", model=built, limit=2)))[0].shape == (2, 3, 48, 48)


def test_the_channels_that_a_model_was_built_for_are_used():
    record = preprocessing(timm.create_model("resnet18", in_chans=1))
    assert record["input_size"][0] == 1
    assert record["colours"] == "L"
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(record["mean"], [weights @ timm.data.IMAGENET_DEFAULT_MEAN])
    np.testing.assert_allclose(record["std"], [weights @ timm.data.IMAGENET_DEFAULT_STD])


def test_channels_that_a_model_folds_pixels_into_are_not_those_of_its_images():
    class Folding(torch.nn.Module):
        def __init__(self, first):
            super().__init__()
            self.fold, self.conv = first, torch.nn.Conv2d(48, 4, 3)
            self.pretrained_cfg = {"input_size": (3, 32, 32), "first_conv": "conv"}

    assert preprocessing(Folding(torch.nn.PixelUnshuffle(4)))["input_size"] == [3, 32, 32]
    with pytest.raises(UserError, match="takes 48 channels"):  # the convolution reads the images themselves
        preprocessing(Folding(None))


def test_one_mean_is_used_for_three_channels():
    record = preprocessing(Model(input_size=(3, 8, 8), mean=(0.5,), std=(0.25,)))
    assert (record["mean"], record["std"]) == ([0.5] * 3, [0.25] * 3)
    assert record["adjusted"] == ["mean", "std"]


def test_grey_images_go_to_colour_models_as_three_equal_channels():
    images, _ = batches(
        load_data("fashion", model=Model(input_size=(3, 28, 28), mean=[0.0] * 3, std=[1.0] * 3, crop_pct=1.0), limit=3)
    )
    raw, _ = batches(load_data("fashion", limit=3))
    assert torch.equal(images, raw.expand(-1, 3, -1, -1))


def test_colour_images_go_to_grey_models_as_their_luma(tmp_path):
    write_folder(tmp_path, {"a": 1, "b": 1})
    grey = Model(input_size=(1, 8, 8), mean=(0.0,), std=(1.0,), crop_pct=1.0)
    images, _ = batches(load_data(str(tmp_path), model=grey))
    luma = some_pixels(0) @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(images[0, 0] * 255, luma, atol=0.51)


def test_a_model_without_preprocessing_is_refused():
    assert "no pretrained_cfg" in sentence("fashion", model=torch.nn.Flatten())
    assert "4 channels" in sentence("fashion", model=Model(input_size=(4, 8, 8)))


def test_a_transform_replaces_the_preparation():
    def negative(image):
        return 1 - torch.from_numpy(np.array(image, np.float32)).unsqueeze(0) / 255

    data = load_data("fashion", transform=negative, limit=4)
    assert torch.allclose(batches(data)[0], 1 - batches(load_data("fashion", limit=4))[0])
    assert "negative" in data.provenance["preprocessing"]["transform"]
    assert data.provenance["preprocessing"]["mean"] is None


def test_without_a_model_all_images_need_one_size(tmp_path):
    path = write_folder(tmp_path, {"a": 2, "b": 2})
    (path / "b" / "1.png").write_bytes(encoded(some_pixels(9, 9, 8, 3)))
    message = sentence(str(path))
    assert f"{path}/b/1.png has the shape (3, 9, 8), the first image (3, 8, 8)" in message
    assert "model" in message


# Passes


@pytest.mark.parametrize("workers", [0, 2])
def test_every_pass_is_the_same(workers):
    data = load_data("fashion", limit=40, batch_size=7, workers=workers)
    first, second = batches(data), batches(data)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    next(iter(data))  # a pass that does not end
    assert torch.equal(batches(data)[0], first[0])
    for (a, _), (b, _) in zip(data, data, strict=True):  # two at the same time
        assert torch.equal(a, b)
    assert torch.equal(batches(load_data("fashion", limit=40, workers=0))[0], first[0])


def test_the_global_random_state_does_not_change():
    before = torch.get_rng_state()
    batches(load_data("fashion", limit=5))
    assert torch.equal(before, torch.get_rng_state())


def test_small_images_are_read_without_worker_processes():
    cores = len(os.sched_getaffinity(0))
    assert [default_workers(side * side) for side in (28, 64, 65, 224)] == [0, 0, min(8, cores), min(8, cores)]


# A folder of class folders


def test_a_folder_reads_as_torchvision_reads_it(tmp_path):
    from torchvision.datasets import ImageFolder

    path = write_folder(tmp_path, {"dog": 2, "cat": 11, "ant": 1})
    (path / "cat" / "deeper").mkdir()
    (path / "cat" / "deeper" / "x.JPG").write_bytes(encoded(some_pixels(5), "JPEG"))
    (path / "cat" / "notes.txt").write_text("no image")
    theirs, ours = ImageFolder(path), dataset(str(path))
    assert list(ours.classes) == theirs.classes
    assert [str(path / name) for name in ours.ids()] == [file for file, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets
    assert all(np.array_equal(np.asarray(ours[i][0]), np.asarray(theirs[i][0])) for i in range(len(theirs)))


def test_a_split_is_found_by_its_name_or_a_synonym(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path / split, {"a": 2, "b": 1 + (split == "train")})
    assert [len(dataset(str(tmp_path), split)) for split in ("train", "test", "val", "validation")] == [4, 3, 3, 3]
    assert load_data(str(tmp_path)).provenance["split"] == "val"
    assert sentence(str(tmp_path), split="trian") == f"no split trian in {tmp_path}: it has train, val"


def test_validation_is_not_read_as_test_if_both_exist(tmp_path):
    for number, split in enumerate(("test", "validation"), start=1):
        write_folder(tmp_path / split, {"a": number})
    assert [len(dataset(str(tmp_path), split)) for split in ("test", "val")] == [1, 2]


def test_a_class_called_train_is_no_split(tmp_path):
    write_folder(tmp_path, {"train": 2, "tram": 1, ".hidden": 1})
    assert dataset(str(tmp_path)).classes == ("train", "tram")
    assert dataset(str(tmp_path), "test").split == "all"
    assert "not divided into splits" in sentence(str(tmp_path), split="fold1")


def test_imagenet_is_a_folder_of_1000_classes(tmp_path):
    image = encoded(some_pixels(0))
    for c in range(1000):
        (tmp_path / "val" / f"n{c:08d}").mkdir(parents=True)
        (tmp_path / "val" / f"n{c:08d}" / "x.png").write_bytes(image)
    data = load_data("imagenet", root=tmp_path, limit=8)
    assert (data.provenance["split"], len(data.classes), data.images) == ("val", 1000, 8)
    assert "no split train" in sentence("imagenet", root=tmp_path, split="train")


def test_a_part_of_imagenet_is_refused(tmp_path):
    write_folder(tmp_path / "val", {"n01440764": 1, "n01443537": 1})
    assert "imagenet has 1000 classes" in sentence("imagenet", root=tmp_path)
    with pytest.raises(Unavailable, match="--data-root"):
        load_data("imagenet", root=tmp_path / "nowhere")


# Parquet in the Hub's layout


@pytest.mark.parametrize("folder", [".", "data"])
def test_parquet_files_are_read_in_order(tmp_path, folder):
    labels = [0, 1, 2, 2, 1, 0, 1]
    for number, part in enumerate((labels[:3], labels[3:])):
        write_parquet(tmp_path / folder / f"train-0000{number}-of-00002.parquet", part, image="img", label="fine_label")
    images = dataset(str(tmp_path), "train")
    assert images.labels.tolist() == labels
    assert images.classes == ("a", "b", "c")
    seeds = [0, 1, 2, 0, 1, 2, 3]
    for i in np.random.default_rng(0).permutation(7):
        assert np.array_equal(np.asarray(images[i][0]), some_pixels(seeds[i]))
    assert images.where(4).endswith("train-00001-of-00002.parquet row 1")
    assert list(images.ids()) == [str(i) for i in range(7)]


def test_the_label_column_is_found_and_classes_without_names_are_numbered(tmp_path):
    write_parquet(tmp_path / "a" / "test.parquet", [2, 0], label="animal")
    write_parquet(tmp_path / "b" / "test.parquet", [2, 0], names=None)
    assert dataset(str(tmp_path / "a"), "test").classes == ("a", "b", "c")
    assert dataset(str(tmp_path / "b"), "val").classes == ("0", "1", "2")


def test_a_pass_reads_each_row_group_once_and_only_what_it_needs(tmp_path, monkeypatch):
    write_parquet(tmp_path / "test.parquet", [0, 1] * 10, group=4)
    read, original = [], parquet.ParquetRows._encoded
    monkeypatch.setattr(parquet.ParquetRows, "_encoded", lambda rows, group: read.append(group) or original(rows, group))
    images = dataset(str(tmp_path), "test")
    assert read == []
    batches_of_all = [images[i] for i in range(len(images))]
    assert len(batches_of_all) == 20
    assert read == [0, 1, 2, 3, 4]
    images.take(np.array([13, 14]))[1]
    assert read[5:] == [3]


def test_a_set_survives_being_sent_to_a_process(tmp_path):
    write_parquet(tmp_path / "test.parquet", [0, 1, 2])
    for name in (str(tmp_path), "fashion"):
        images = dataset(name, "test", limit=3)
        sent = pickle.loads(pickle.dumps(images))
        assert np.array_equal(np.asarray(sent[2][0]), np.asarray(images[2][0]))


# CIFAR


def test_cifar_is_read_from_torchvisions_folder(tmp_path, monkeypatch):
    written = write_cifar10(tmp_path, monkeypatch)
    arrays, labels = as_arrays(dataset("cifar10", root=tmp_path))
    assert np.array_equal(arrays, np.concatenate([written["data_batch_1"][0], written["data_batch_2"][0]]))
    assert labels.tolist() == written["data_batch_1"][1] + written["data_batch_2"][1]
    data = load_data("cifar10", root=tmp_path)
    assert data.classes[9] == "class 9"
    assert torch.equal((batches(data)[0] * 255).round().byte(), torch.tensor(written["test_batch"][0]).permute(0, 3, 1, 2))
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    assert data.provenance["content_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "no split tset in cifar10" in sentence("cifar10", root=tmp_path, split="tset")

    file.write_bytes(file.read_bytes()[:-1])
    message = sentence("cifar10", root=tmp_path)
    assert f"cannot read {file}: it is missing or damaged" in message


def test_cifar_that_is_not_there_is_unavailable(tmp_path, monkeypatch):
    with pytest.raises(Unavailable, match="cifar-100-python: name another --data-root DIR, or let --download"):
        load_data("cifar100", root=tmp_path)
    monkeypatch.setenv("BACKLIGHT_OFFLINE", "1")
    with pytest.raises(Unavailable, match="BACKLIGHT_OFFLINE"):
        load_data("cifar100", root=tmp_path, download=True)
    monkeypatch.delenv("BACKLIGHT_OFFLINE")
    monkeypatch.setenv("BACKLIGHT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Unavailable, match="cache/data/cifar-10-batches-py"):
        load_data("cifar10")


# Without a network


@pytest.fixture
def no_switch(monkeypatch):
    for switch in SWITCHES:
        monkeypatch.delenv(switch, raising=False)


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize(
    ("value", "forbids"), [("1", True), ("on", True), ("Yes", True), ("TRUE", True), ("0", False), ("", False)]
)
def test_each_switch_forbids_the_network(switch, value, forbids, monkeypatch, no_switch):
    assert offline() == ""
    monkeypatch.setenv(switch, value)
    assert offline() == (switch if forbids else "")


@pytest.mark.parametrize("switch", SWITCHES)
def test_data_name_the_switch_that_forbids_the_network(switch, tmp_path, monkeypatch, no_switch):
    monkeypatch.setenv(switch, "1")
    message = sentence("cifar100", root=tmp_path, download=True)
    assert message.endswith(f"or let --download fetch it, which {switch} forbids now")


def test_the_hub_is_offline_within_the_block_only(monkeypatch, no_switch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(offline_module, "HUB_MODULES", ("huggingface_hub.constants", "not_installed.config"))
    with hub_offline_if_set():
        assert not constants.HF_HUB_OFFLINE
    monkeypatch.setenv("BACKLIGHT_OFFLINE", "yes")
    inside = []

    def fail():
        inside.append(constants.is_offline_mode())
        raise ArithmeticError

    with pytest.raises(ArithmeticError), hub_offline_if_set():
        fail()
    assert inside == [True]
    assert not constants.is_offline_mode()


# Names


def test_wrong_names_are_one_sentence(tmp_path):
    assert sentence("fashoin") == "no data called 'fashoin'; did you mean fashion?"
    assert sentence("qqq") == "no data called 'qqq'; known are fashion, shapes, cifar10, cifar100, imagenet"
    assert sentence(f"{tmp_path}/nowhere") == f"no folder at {tmp_path}/nowhere"
    assert "no data called ''" in sentence("")
    (tmp_path / "file").write_text("")
    assert "is a file" in sentence(f"{tmp_path}/file")


# timm's readers


def test_hub_sets_are_read_through_timm(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        write_folder(tmp_path / "set" / split, {"cat": 3, "dog": 2})
    root = tmp_path / "cache"
    data = load_data(f"hfds/{tmp_path}/set", split="val", root=root, limit=4)
    plain = load_data(f"{tmp_path}/set", split="test", limit=4)
    assert data.classes == plain.classes
    assert torch.equal(batches(data)[0], batches(plain)[0])
    assert data.provenance["split"] == "test"
    assert "train" in sentence(f"hfds/{tmp_path}/set", split="fold1", root=root)
    assert "?input_key=NAME" in sentence(f"hfds/{tmp_path}/set?input_key=img", root=root)

    streamed = load_data(f"hfids/{tmp_path}/set?num_samples=5", root=root)
    assert torch.equal(batches(streamed)[0], batches(load_data(f"{tmp_path}/set"))[0])
    assert "?num_samples=N" in sentence(f"hfids/{tmp_path}/set", root=tmp_path / "another")


def test_a_set_that_the_hub_does_not_give_is_unavailable(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("BACKLIGHT_OFFLINE", "1")
    with pytest.raises(Unavailable, match="hfds/no/such is not available"):
        load_data("hfds/no/such")
    with pytest.raises(Unavailable, match="on the network"):
        load_data("wds/https://example.org/shards", split="x-{0..1}.tar|8")


@pytest.mark.parametrize(("name", "extra"), [("hfds/a/b", "hf"), ("HFIDS/a/b", "hf"), ("wds/a", "wds")])
def test_a_missing_library_names_the_extra(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda library: None)
    with pytest.raises(Unavailable, match=rf"pip install 'backlight\[{extra}\]'"):
        load_data(name)


def write_shards(path: Path, *, promised: int, bad: int | None = None) -> Path:
    path.mkdir()
    with tarfile.open(path / "x-test-0.tar", "w") as tar:
        for i in range(5):
            for suffix, content in (
                ("png", b"text" if i == bad else encoded(some_pixels(i))),
                ("cls", b"%d" % (i % 2)),
            ):
                entry = tarfile.TarInfo(f"{i}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    split = {"name": "test", "num_samples": promised, "filenames": ["x-test-0.tar"], "shard_lengths": [promised]}
    (path / "_info.json").write_text(json.dumps({"splits": {"test": split}}))
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_are_read_in_order(tmp_path, workers):
    pytest.importorskip("webdataset")
    path = write_shards(tmp_path / "set", promised=5)
    data = load_data(f"wds/{path}", batch_size=2, workers=workers)
    for _ in range(2):
        images, labels = batches(data)
        assert labels.tolist() == [0, 1, 0, 1, 0]
        assert torch.equal(
            (images * 255).round().byte(),
            torch.stack([torch.tensor(some_pixels(i)) for i in range(5)]).permute(0, 3, 1, 2),
        )
    assert (data.images, len(data)) == (5, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_with_a_limit_a_wrong_split_or_a_bad_image_are_refused(tmp_path, workers):
    pytest.importorskip("webdataset")
    path = write_shards(tmp_path / "set", promised=5)
    assert "only be read in order" in sentence(f"wds/{path}", limit=2)
    assert "no split" in sentence(f"wds/{path}", split="train")
    short = write_shards(tmp_path / "short", promised=5, bad=3)  # timm's reader leaves the bad one out
    assert "promises 5 images and gave 4" in sentence(f"wds/{short}", workers=workers)


# Bad data


@pytest.fixture
def animals(tmp_path) -> Path:
    return write_folder(tmp_path / "animals", {"cat": 3, "dog": 3})


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_text_is_named(animals, workers):
    (animals / "dog" / "1.png").write_text("no image")
    message = sentence(str(animals), workers=workers, batch_size=2)
    assert message == f"cannot read image {animals}/dog/1.png: not an image"


def test_an_image_cut_short_is_named(animals):
    content = (animals / "cat" / "0.png").read_bytes()
    (animals / "cat" / "0.png").write_bytes(content[: len(content) // 2])
    assert f"cannot read image {animals}/cat/0.png: " in sentence(str(animals))


def test_an_image_of_16_bits_is_not_clipped_to_8(animals):
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(animals / "cat" / "1.png")
    assert "8 bits" in sentence(str(animals))


def test_an_image_that_was_deleted_is_named(animals):
    data = load_data(str(animals))
    (animals / "dog" / "2.png").unlink()
    with pytest.raises(UserError, match=r"dog/2\.png: No such file"):
        list(data)


def test_an_empty_class_is_named(animals):
    (animals / "eel").mkdir()
    assert sentence(str(animals)) == f"class folder {animals}/eel has no images: fill it or remove it"


def test_folders_without_images_or_classes_are_refused(tmp_path):
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    assert f"no images in {tmp_path}/empty" in sentence(f"{tmp_path}/empty")
    assert f"no class folders in {tmp_path}/empty/cat" in sentence(f"{tmp_path}/empty/cat")


def test_a_flat_folder_is_data_without_labels(tmp_path):
    write_folder(tmp_path, {"flat": 5})
    (tmp_path / "flat" / "notes.txt").write_text("not an image")
    data = load_data(f"{tmp_path}/flat", batch_size=2)
    assert (data.images, data.classes, data.provenance["split"]) == (5, (), "all")
    batches_of_it = list(data)
    assert [labels for _, labels in batches_of_it] == [None] * 3
    expected = np.stack([some_pixels(i) for i in range(5)]) / np.float32(255)
    np.testing.assert_allclose(torch.cat([images for images, _ in batches_of_it]).permute(0, 2, 3, 1), expected, atol=1e-6)
    assert load_data(f"{tmp_path}/flat", limit=3).images == 3
    with pytest.raises(UserError, match="have no labels, and the loss needs them"):
        dataset(f"{tmp_path}/flat")


def test_analyses_without_labels_run_on_a_flat_folder_and_others_say_what_is_missing(tmp_path, run):
    write_folder(tmp_path, {"flat": 6})
    model = "word:cc c?block=basic&dim=8&stem=cifar&num_classes=4&img_size=8"
    code, out, err = run("variance", model, "--no-pretrained", "--data", f"{tmp_path}/flat", "--quiet")
    assert code == 0, err
    assert out.count("\n") > 2
    code, _, err = run("calibration", model, "--no-pretrained", "--data", f"{tmp_path}/flat", "--quiet")
    assert code == 2
    assert "give no tensor of labels" in err


@pytest.mark.parametrize("header", ["", "file,label\n"])
def test_a_table_gives_labels_to_a_flat_folder(tmp_path, header):
    write_folder(tmp_path, {"flat": 5})
    table = tmp_path / "labels.csv"
    table.write_text(header + "3.png,7\n0.png,2\n\n1.png, 7\n")
    images, labels = batches(load_data(f"{tmp_path}/flat?labels={table}"))
    assert labels.tolist() == [7, 2, 7]
    expected = np.stack([some_pixels(i) for i in (3, 0, 1)]) / np.float32(255)
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, atol=1e-6)
    assert load_data(f"{tmp_path}/flat?labels={table}").classes == ()  # the model may have more than 8 outputs
    assert len(dataset(f"{tmp_path}/flat?labels={table}").classes) == 8
    first = load_data(f"{tmp_path}/flat?labels={table}").provenance["content_sha256"]
    table.write_text(header + "3.png,7\n0.png,2\n1.png,2\n")
    assert load_data(f"{tmp_path}/flat?labels={table}").provenance["content_sha256"] != first
    table.write_text(header + "3.png,wren\n0.png,finch\n")
    named = load_data(f"{tmp_path}/flat?labels={table}")
    assert (named.classes, batches(named)[1].tolist()) == (("finch", "wren"), [1, 0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9.png,1\n", "row 1: there is no image"),
        ("0.png\n", "row 1 has no label"),
        ("file,label\n0.png,1\n0.png,2\n", "row 3 lists an image twice"),
        ("file,label\n", "lists no images"),
    ],
)
def test_a_wrong_table_of_labels_is_one_sentence(tmp_path, text, message):
    write_folder(tmp_path, {"flat": 2})
    (tmp_path / "labels.csv").write_text(text)
    assert message in sentence(f"{tmp_path}/flat?labels={tmp_path}/labels.csv")


#: Ten classes of ImageNet, and their outputs in every model of its 1,000 classes (the list of Imagenette).
IMAGENETTE = {
    "n01440764": (0, "tench"), "n02102040": (217, "English_springer"), "n02979186": (482, "cassette player"),
    "n03000684": (491, "chain_saw"), "n03028079": (497, "church"), "n03394916": (566, "French-horn"),
    "n03417042": (569, "garbage truck"), "n03425413": (571, "gas pump"), "n03445777": (574, "golf_ball"),
    "n03888257": (701, "parachute"),
}  # fmt: skip


@pytest.mark.parametrize("by", ["WordNet id", "name"])
def test_class_folders_are_mapped_to_the_outputs_of_an_imagenet_model(tmp_path, by):
    names = {wnid if by == "WordNet id" else name: output for wnid, (output, name) in IMAGENETTE.items()}
    write_folder(tmp_path, dict.fromkeys(names, 2))
    model = Model(input_size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0, num_classes=1000)
    data = load_data(str(tmp_path), model=model)
    _, labels = batches(data)
    assert labels.tolist() == [names[name] for name in sorted(names) for _ in range(2)]
    assert len(data.classes) == 1000
    assert data.provenance["outputs"]["by"] == by
    assert data.classes[217] == "n02102040"


def test_class_folders_that_are_not_imagenets_keep_their_numbers(tmp_path):
    described = {"input_size": (3, 8, 8), "mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0}
    for folder, names in (("unknown", ["tench", "gnome"]), ("ambiguous", ["crane", "tench"])):  # a bird and a machine
        write_folder(tmp_path / folder, dict.fromkeys(names, 1))
        data = load_data(f"{tmp_path}/{folder}", model=Model(num_classes=1000, **described))
        assert data.classes == tuple(sorted(names))
        assert "outputs" not in data.provenance
    write_folder(tmp_path / "wordnet", dict.fromkeys(IMAGENETTE, 1))
    data = load_data(f"{tmp_path}/wordnet", model=Model(num_classes=10, **described))  # trained on these ten
    assert batches(data)[1].tolist() == list(range(10))


def test_splits_with_other_classes_are_refused(tmp_path):
    write_folder(tmp_path / "train", {"a": 1, "b": 1})
    write_folder(tmp_path / "val", {"b": 1})
    assert f"{tmp_path}/val has no class folder a" in sentence(str(tmp_path))


@pytest.mark.parametrize(("label", "row"), [(3, 1), (-1, 2)])
def test_a_label_out_of_range_is_named(tmp_path, label, row):
    labels = [0, 1, 2]
    labels[row] = label
    file = write_parquet(tmp_path / "test.parquet", labels)
    message = sentence(str(tmp_path))
    assert message == f"{file} row {row}: label {label} is out of range, the set names 3 classes (0 to 2)"


def test_parquet_files_that_cannot_be_used_are_named(tmp_path):
    file = tmp_path / "test.parquet"

    def message_after(write) -> str:
        write()
        message = sentence(str(tmp_path))
        assert str(file) in message
        return message

    assert "no parquet file" in message_after(lambda: file.write_text("text"))
    write_parquet(file, [0, 1])
    assert "cut short" in message_after(lambda: file.write_bytes(file.read_bytes()[:-20]))
    assert "2 empty cells" in message_after(lambda: write_parquet(file, pa.array([None, None], pa.int64())))
    assert "column label is double" in message_after(lambda: write_parquet(file, [0.0, 1.0]))
    assert "no label column" in message_after(lambda: write_parquet(file, [0, 1], label="x", names=None))
    assert "no image column" in message_after(lambda: pq.write_table(pa.table({"image": [b""], "label": [0]}), file))
    assert "no image bytes" in message_after(lambda: write_parquet(file, [0], cells=[{"bytes": None, "path": "x.png"}]))
    assert "row 1: not an image" in message_after(
        lambda: write_parquet(file, [0, 1], cells=[{"bytes": b, "path": None} for b in (encoded(some_pixels(0)), b"x")])
    )
    write_parquet(file, pa.array([], pa.int64()), cells=[])
    assert "no images in split test" in sentence(str(tmp_path))
    write_parquet(tmp_path / "test-0.parquet", [0])
    write_parquet(file, [0], names=("a", "b"))
    assert "other columns or classes" in message_after(lambda: None)


def test_training_may_skip_what_cannot_be_read(animals):
    (animals / "cat" / "2.png").write_text("no image")
    (animals / "dog" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="cannot read image"):
        as_arrays(dataset(str(animals)))
    images = dataset(str(animals), skip_unreadable=True)
    assert images.skipped == ("cat/2.png", "dog/0.png")
    assert list(images.ids()) == ["cat/0.png", "cat/1.png", "dog/1.png", "dog/2.png"]
    assert as_arrays(images)[1].tolist() == [0, 0, 1, 1]


def test_a_set_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_text("")
    with pytest.raises(UserError, match="none of the 1 images"):
        dataset(str(tmp_path), skip_unreadable=True)


# Arrays


def test_arrays_are_the_images(animals, monkeypatch):
    images = dataset(str(animals))
    arrays, labels = as_arrays(images)
    assert (arrays.dtype, arrays.shape) == (np.uint8, (6, 8, 8, 3))
    assert all(np.array_equal(arrays[i], np.asarray(image)) and labels[i] == label for i, (image, label) in enumerate(images))
    monkeypatch.setattr(image_set, "ARRAY_BYTES", 100)
    with pytest.raises(UserError, match="in batches"):
        as_arrays(images)


def test_arrays_need_one_size(animals):
    (animals / "cat" / "1.png").write_bytes(encoded(some_pixels(1, 4, 4)))
    with pytest.raises(UserError, match=r"cat/1\.png has the shape"):
        as_arrays(dataset(str(animals)))


def test_importing_costs_neither_timm_nor_torchvision():
    for module in (data_module, image_set, folders, parquet, cifar, timm_readers):
        top = [
            node for node in ast.parse(Path(module.__file__).read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {alias.name if isinstance(node, ast.Import) else node.module for node in top for alias in node.names}
        assert not {name.split(".")[0] for name in names} & {"timm", "torchvision", "datasets", "pyarrow", "webdataset"}


def test_labels_of_a_flat_folder_on_the_command_line(run, tmp_path):
    (tmp_path / "flat").mkdir()
    for i in range(4):
        Image.new("L", (28, 28), 60 * i).save(tmp_path / "flat" / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{i}.png,{i}\n" for i in range(4)))
    code, out, err = run("calibration", "demo-cnn", "--data", tmp_path / "flat", "--labels", tmp_path / "labels.csv")
    assert code == 0, err
    assert out.startswith("model,metric,")
    code, _, err = run("calibration", "demo-cnn", "--labels", tmp_path / "labels.csv")
    assert code == 2
    assert "give it with --data FOLDER" in err
