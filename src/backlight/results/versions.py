"""Versions of what the numbers depend on; torch is not imported."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def versions() -> Mapping[str, str]:
    """Versions of Python and of the installed packages that compute."""
    installed = {"python": platform.python_version()}
    for package in ("backlight", "torch", "torchvision", "timm", "numpy"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed
