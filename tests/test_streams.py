"""Output that is closed, full, in another encoding, or without a reader; and a machine that has run out of something."""

import errno
import os
import resource
import subprocess
import sys

import pytest
import torch

from backlight.shortage import DISK, FILES, MEMORY, THREADS, WORKER, shortage

BACKLIGHT = f"{sys.executable} -m backlight"
CLOSED = "backlight: standard output is closed, so nothing can be printed: open it, or send it to a file"
FULL = "backlight: cannot write to standard output: No space left on device: send it to another place"


def shell(command, **environment):
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "code", "last"),
    [
        ("models 'demo*' >&-", 2, CLOSED),
        ("--version >&-", 2, CLOSED),
        ("models > /dev/full", 2, FULL),
        ("recipes --json > /dev/full", 2, FULL),
        ("models | true", 0, ""),
        ("models 'demo*' 2>&- >/dev/null", 0, ""),
        ("frobnicate 2>&-", 2, ""),
        ("frobnicate 2>/dev/full", 2, ""),
        ("models 'demo*' <&- >/dev/null", 0, ""),
    ],
)
def test_a_stream_that_takes_nothing(command, code, last):
    process = shell(f"{BACKLIGHT} {command}")
    assert process.returncode == code
    assert process.stdout == ""
    assert process.stderr.rstrip("\n") == last


def test_lines_for_people_do_not_move_to_standard_output_when_standard_error_is_closed(tmp_path):
    process = shell(f"{BACKLIGHT} variance demo-cnn --limit 20 --out {tmp_path}/é 2>&-", PYTHONIOENCODING="latin-1")
    assert process.returncode == 0
    assert process.stdout.startswith("model,unit,")


def test_a_name_that_does_not_fit_the_encoding_is_written_with_escapes():
    process = shell(f"{BACKLIGHT} units 日本", PYTHONIOENCODING="ascii")
    assert process.returncode == 2
    assert "\\u65e5\\u672c" in process.stderr
    assert "Traceback" not in process.stderr


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    """Otherwise what is printed would go into a file of results."""
    process = shell(f"{BACKLIGHT} variance demo-cnn --limit 20 --out {tmp_path}/out >&- 2>&-")
    assert process.returncode == 2
    assert (tmp_path / "out" / "demo-cnn" / "variance" / "result.json").read_bytes().startswith(b"{")


def test_few_file_descriptors_are_a_sentence():
    process = shell(f"ulimit -n 20; {BACKLIGHT} calibration demo-cnn --workers 4 --limit 200")
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1] == f"backlight: {FILES}"


def test_a_limit_of_the_address_space_is_a_sentence():
    """A limit that Python can notice: below it torch does not load."""
    process = subprocess.run(
        [sys.executable, "-m", "backlight", "calibration", "demo-cnn"], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1_200_000_000,) * 2),
    )  # fmt: skip
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1] == f"backlight: {MEMORY}"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), MEMORY),
        (OSError(errno.EMFILE, "Too many open files"), FILES),
        (OSError(errno.ENOSPC, "No space left on device"), DISK),
        (RuntimeError("received 0 items of ancdata"), FILES),
        (RuntimeError("can't start new thread"), THREADS),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "), WORKER),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (OSError(errno.ENOENT, "No such file"), None),
    ],
)
def test_what_ran_out_is_named(error, sentence):
    assert shortage(error) == sentence
    wrapped = ValueError("a wrapper")
    wrapped.__cause__ = error
    assert shortage(wrapped) == sentence


def test_memory_that_cannot_be_allocated_is_noticed():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert shortage(caught.value) == MEMORY
