"""Whether a loader gave several models the same images, where nothing records which they were."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from backlight.errors import UserError
from backlight.inputs import images_and_labels
from backlight.results.provenance import sha256


class Watched:
    """Data, and a hash of the images of each complete pass over them."""

    def __init__(self, data: Iterable[Any]) -> None:
        self.data = data
        self.passes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def __iter__(self) -> Iterator[Any]:
        digest = hashlib.sha256()
        for batch in self.data:
            images, labels = images_and_labels(batch)
            digest.update(
                sha256({str(i): part for i, part in enumerate((images, labels)) if isinstance(part, Tensor)}).encode()
            )
            yield batch
        self.passes.append(digest.hexdigest())

    def refuse_different(self) -> None:
        """Errors: UserError if two passes gave different images, labels or batches."""
        if len(set(self.passes)) > 1:
            raise UserError(
                "the data give other images, or in another order, at each pass, so no image of both models can be compared: "
                "give a loader that neither shuffles nor augments, or a list of batches"
            )
