"""What a cell is a measurement of: weights, configuration and code of its models, its images, the version of the analysis.

The settings and the seed are in `Cell.request`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from backlight.records import plain, sha256_of
from backlight.results.versions import versions
from backlight.study.plan import Cell


@dataclass(frozen=True)
class ModelIdentity:
    """Hashes of a model."""

    source: str | None  # None: only the loaded model says what it is
    weights: str
    configuration: str  # of the modules and the preprocessing
    code: str  # of a factory and the local files that it imports


@dataclass(frozen=True)
class DataIdentity:
    """Which images; None for what a stream does not say."""

    images: int
    ids: str | None
    content: str | None
    files: str | None  # of the files of the images themselves, unless they are large


@dataclass(frozen=True)
class Identity:
    """What a cell is a measurement of."""

    version: int  # of the analysis
    data: DataIdentity
    models: dict[str, ModelIdentity]


def source_digest(name: str, cell: Cell, content: str) -> str:
    """The ``source`` of a model with this content, as `source_sha256s` says it."""
    return digest([cell.spec(name), cell.shared.pretrained, cell.shared.seed, dict(versions()), content])


def digest(values: Any) -> str:
    """A hash of plain values."""
    return sha256_of(json.dumps(plain(values), sort_keys=True, default=str).encode(errors="backslashreplace"))
