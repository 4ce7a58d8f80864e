"""Each image of a folder is read once, upright, and what is no image is counted."""

import os
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from backlight.data.loading import load_data
from backlight.data.opening import open_data
from backlight.errors import UserError


def opened(path, split="test"):
    return open_data(str(path), split, root=None, download=False, limit=None, seed=0)


def classes_of(folder, count=2):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((8, 8, 3), 40 * i + 10, np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def limited():
    """A read that hangs ends after ten seconds."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("hangs"))
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_links_to_folders_above_are_not_followed(tmp_path, target, limited):
    folder = classes_of(tmp_path / "set")
    os.symlink(target, folder / "a" / "round", target_is_directory=True)
    images = opened(folder)
    assert len(images) == 4
    assert images.left_out == {"link to a folder above": 1}
    assert len(set(images.ids())) == 4


def test_a_link_to_the_folder_itself_is_no_class(tmp_path, limited):
    folder = classes_of(tmp_path / "set")
    os.symlink(".", folder / "c", target_is_directory=True)
    assert opened(folder).classes == ("a", "b")
    assert opened(folder).left_out == {"link to a folder above": 1}


def test_links_to_other_folders_and_images_are_followed(tmp_path):
    folder, elsewhere = classes_of(tmp_path / "set"), classes_of(tmp_path / "elsewhere", 3)
    os.symlink(elsewhere / "a", folder / "c", target_is_directory=True)
    os.symlink(elsewhere / "b", folder / "b" / "more", target_is_directory=True)
    os.symlink(elsewhere / "a" / "2.png", folder / "a" / "2.png")
    images = opened(folder)
    assert images.classes == ("a", "b", "c")
    assert np.bincount(images.labels).tolist() == [3, 5, 3]
    assert not images.left_out


def test_what_is_no_regular_file_is_counted_and_not_opened(tmp_path, limited):
    folder = classes_of(tmp_path / "set")
    os.mkfifo(folder / "a" / "pipe.png")
    os.symlink(tmp_path / "nowhere.png", folder / "b" / "gone.png")
    os.symlink("/dev/zero", folder / "b" / "device.jpg")
    with pytest.warns(UserWarning, match=r"not read as images: no regular file \(2\), dangling link \(1\)"):
        data = load_data(str(folder))
    assert data.images == 4
    assert data.provenance["left_out"] == {"no regular file": 2, "dangling link": 1}
    assert sum(len(images) for images, _ in data) == 4


def test_a_flat_folder_is_read_likewise(tmp_path, limited):
    folder = classes_of(tmp_path / "set") / "a"
    os.mkfifo(folder / "pipe.png")
    images = opened(folder)
    assert (len(images), images.left_out) == (2, {"no regular file": 1})


def test_the_order_is_that_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    folder = classes_of(tmp_path / "set")
    for inner in ("b/z", "b/2", "a/x/y"):
        (folder / inner).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / inner / "0.png")
    theirs = [(os.path.relpath(path, folder), label) for path, label in ImageFolder(str(folder)).samples]
    ours = opened(folder)
    assert list(zip(ours.ids(), ours.labels.tolist(), strict=True)) == theirs


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, orientation):
    """Against the eight meanings of the tag, written as flips and rotations of an array."""
    pixels = np.zeros((2, 3), np.uint8)
    pixels[0, 0], pixels[0, 2] = 200, 100
    upright = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.T, 6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].T, 8: np.rot90(pixels),
    }[orientation]  # fmt: skip
    folder = tmp_path / "set"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(folder / "0.png", exif=exif)
    assert np.array_equal(np.array(opened(folder)[0][0]), upright)


def parquet_of(folder, labels, metadata=None):
    folder.mkdir()
    file = folder / "image.png"
    Image.new("RGB", (4, 4)).save(file)
    images = pa.array([{"bytes": file.read_bytes(), "path": None}] * len(labels))
    table = pa.table({"image": images, "label": labels})
    pq.write_table(table.replace_schema_metadata(metadata or {}), folder / "test-0.parquet")
    file.unlink()
    return folder


def test_a_label_is_no_number_of_names(tmp_path, limited):
    with pytest.raises(UserError, match="a label is 1000000000000000; labels are numbers of classes, below 1,048,576"):
        opened(parquet_of(tmp_path / "large", pa.array([0, 10**15])))
    with pytest.raises(UserError, match="column label has a label above 9223372036854775807"):
        opened(parquet_of(tmp_path / "larger", pa.array([0, 2**64 - 1], pa.uint64())))


@pytest.mark.parametrize(
    "metadata",
    [
        b"null", b"[]", b"7", b"not json", b'{"info": []}', b'{"info": {"features": 3}}', b"\xff", b"[" * 100_000,
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", null]}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": "ab"}}}}',
    ],
)  # fmt: skip
def test_metadata_of_another_type_is_a_sentence(tmp_path, metadata):
    with pytest.raises(UserError, match=r"test-0\.parquet: its huggingface metadata cannot be read: "):
        opened(parquet_of(tmp_path / "set", pa.array([0, 1]), {b"huggingface": metadata}))
