"""The images whose answer changes without a unit: how many, and on request small pictures of some.

A result holds no pixels.  The pictures are read again from the data set of the result, if it is on this machine and its ids
have the hash that the result records.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backlight.data.image_set import ImageSet, sha256_of_lines
from backlight.data.opening import open_data
from backlight.errors import UserError, first_line
from backlight.results.result import Result, Row
from backlight.study.folder import Study

#: Pixels of the longer side of a picture, and pictures of a unit.
SIDE, EACH = 40, 6


def changed(result: Result) -> Iterator[tuple[Row, NDArray[np.int64], NDArray[np.int64]]]:
    """Of each unit its row, and the images that are wrong without it and were right, and the reverse."""
    correct = result.arrays.get("per_image/correct")
    if correct is None or len(correct) != len(result.table):
        return
    for row, of in zip(result.table, correct.astype(bool), strict=True):
        if row["lesion"] == "unit":
            yield row, np.flatnonzero(correct[0].astype(bool) & ~of), np.flatnonzero(~correct[0].astype(bool) & of)


def counts(result: Result) -> list[Row]:
    """How many images each unit's lesion turns wrong, and right."""
    return [
        {key: row[key] for key in ("unit", "kind", "stage", "module")} | {"wronged": len(wrong), "righted": len(right)}
        for row, wrong, right in changed(result)
    ]


@dataclass
class Pictures:
    """Pictures, each once; of each model rows of unit, image, its new answer, number of the picture; and what is missing."""

    addresses: list[str] = field(default_factory=list)
    rows: list[list[Row] | None] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def pictures(study: Study) -> Pictures:
    """Small pictures of the first images that each lesion flips."""
    found, numbers = Pictures(), dict[tuple[str, int], int]()
    for model in study.models:
        result = model.results.get("lesion")
        try:
            images = images_of(result) if result is not None else None
        except (UserError, OSError) as error:
            found.missing.append(f"{model.name}: no pictures of flipped images: {first_line(error)}")
            images = None
        if result is None or images is None:
            found.rows.append(None)
            continue
        rows = []
        for row, wrong, right in changed(result):
            picked = [(int(i), "wrong") for i in wrong] + [(int(i), "right") for i in right]
            for i, now in picked[:EACH]:
                key = str(result.provenance["data"]["ids_sha256"]), i
                if key not in numbers:
                    numbers[key] = len(found.addresses)
                    found.addresses.append(address(images[i][0]))
                rows.append({"unit": row["unit"], "image": i, "now": now, "picture": numbers[key]})
        found.rows.append(rows)
    return found


def images_of(result: Result) -> ImageSet:
    """The images that a result was measured on.  Errors: UserError if they are not here, or are others."""
    facts = result.provenance.get("data") or {}
    if not facts.get("ids_sha256"):
        raise UserError("the result does not record which images it was measured on")
    source = open_data(facts["data"], facts["split"], root=None, download=False, limit=facts["limit"], seed=facts["seed"])
    if not isinstance(source, ImageSet) or sha256_of_lines(source.ids()) != facts["ids_sha256"]:
        raise UserError(f"{facts['data']} on this machine holds other images than the result was measured on")
    return source


def address(image: Image.Image) -> str:
    """A small picture as a data address."""
    small = image.convert("L" if image.mode == "L" else "RGB")
    small.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    small.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
