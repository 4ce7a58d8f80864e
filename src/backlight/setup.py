"""On what models are measured: plain settings, so that ``--help`` can state the library's defaults without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Setup:
    """On what models are measured: the options that all analyses share."""

    data: str = "fashion"
    split: str | None = None  # None: the test images, or training images where an analysis is about training
    limit: int | None = None
    seed: int = 0
    resamples: int = 1000
    pretrained: bool = True
    at: tuple[str, ...] = ()
    batch_size: int | None = None  # None: as the analysis has it
    dtype: str = "float32"
    device: str = "auto"
    workers: int | None = None
    data_root: str | None = None
    download: bool = False

    def request(self, analysis: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What decides a cell's numbers: two runs that ask the same need only one."""
        elsewhere = {"device", "workers", "data_root", "download", "shard"}
        asked = {"analysis": analysis, **asdict(self), "at": list(self.at), **settings}
        return {name: value for name, value in asked.items() if name not in elsewhere}
