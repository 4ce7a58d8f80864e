"""Whether an environment variable forbids the network, and how the Hub's libraries are made to obey it."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

SWITCHES = ("BACKLIGHT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
ON = ("1", "ON", "YES", "TRUE")  # the values that huggingface_hub accepts
HUB_MODULES = ("huggingface_hub.constants", "datasets.config")  # each has its own copy of HF_HUB_OFFLINE


def offline() -> str:
    """The environment variable that forbids the network, or "" if none does."""
    return next((switch for switch in SWITCHES if os.environ.get(switch, "").upper() in ON), "")


@contextmanager
def hub_offline_if_set() -> Iterator[None]:
    """Within the block the Hub's libraries use only their caches, if the network is forbidden.

    They read the environment once, when they are imported, so their own copies of the value are set.
    """
    installed = [name for name in HUB_MODULES if importlib.util.find_spec(name.partition(".")[0])] if offline() else []
    modules = [importlib.import_module(name) for name in installed]
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]
