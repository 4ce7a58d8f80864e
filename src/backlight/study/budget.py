"""An analysis that stops after a time: batches until then, and the same batches in each later pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from backlight.results.claim import LEAST

#: An analysis goes on until it has seen so many images: with fewer no claim is decided.
LEAST_IMAGES = LEAST["images"]


class Budgeted:
    """Data whose first pass ends once its time is over; a later pass has as many batches.  All else is the data's own."""

    def __init__(self, data: Any, seconds: float) -> None:
        self.data, self.seconds = data, seconds
        self.used: int | None = None  # batches of the first pass, once it ended
        self.images = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def __len__(self) -> int:
        return len(self.data) if self.used is None else self.used

    def __iter__(self) -> Iterator[Any]:
        started, images = time.monotonic(), 0
        for count, batch in enumerate(self.data):
            over = time.monotonic() - started > self.seconds and images >= LEAST_IMAGES
            if count == self.used or (self.used is None and over):
                break
            images += len(batch[0])
            yield batch
        else:
            count = len(self.data)
        if self.used is None:
            self.used, self.images = count, images

    @property
    def said(self) -> dict[str, Any]:
        """What the provenance says about it."""
        early = self.used is not None and self.used < len(self.data)
        return {"seconds": self.seconds, "stopped": early, "images": self.images}
