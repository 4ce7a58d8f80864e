"""Small real models, by the names that the command line takes."""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)  # small models on shared cores: more threads wait for each other
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tests need no network; a test of being offline sees what a user sees

#: A convolutional and an alternating word of two stages for 28 px grey images: milliseconds a batch.
TINY = "word:cc c?block=basic&dim=8&stem=cifar&in_chans=1&num_classes=10&img_size=28"
TINY_ALTERNATING = "word:c ca?block=basic&dim=8&dim_head=8&heads=(1, 2)&stem=cifar&in_chans=1&num_classes=10&img_size=28"
