"""Small real models, by the names that the command line takes."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

torch.set_num_threads(1)  # small models on shared cores: more threads wait for each other
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tests need no network; a test of being offline sees what a user sees

#: A convolutional and an alternating word of two stages for 28 px grey images: milliseconds a batch.
TINY = "word:cc c?block=basic&dim=8&stem=cifar&in_chans=1&num_classes=10&img_size=28"
TINY_ALTERNATING = "word:c ca?block=basic&dim=8&dim_head=8&heads=(1, 2)&stem=cifar&in_chans=1&num_classes=10&img_size=28"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: its exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        from backlight.cli.main import main

        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run
