"""What an analysis returns: a tidy table, the paper's claims tested on it, and the provenance both stand on.

A result is saved as a folder: ``rows.parquet``, ``arrays.safetensors`` if there are arrays, ``result.json`` (claims and
provenance, and the sha256 of those two), and the figure.  The folder is written under another name and renamed, so that a
killed run leaves all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from backlight.errors import UserError
from backlight.files import atomic_folder
from backlight.records import Record, encoded, read_record, read_verified, sha256_of
from backlight.results.charts import CHARTS, ChartText, caption
from backlight.results.claim import Claim
from backlight.results.over import images_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Row = dict[str, Any]
DOCUMENT, ROWS, ARRAYS = "result.json", "rows.parquet", "arrays.safetensors"
OBJECTS = ("data", "model", "request", "settings", "versions")  # of the provenance, if they are there


def columns(name: str, interval: Iterable[Any]) -> Row:
    """An estimate and its interval as three columns of a row.

    >>> columns("nll", (2.0, 1.5, 2.5))
    {'nll': 2.0, 'nll_low': 1.5, 'nll_high': 2.5}
    """
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, interval), strict=True))


@dataclass(frozen=True, repr=False)
class Result:
    """The result of one analysis of one model."""

    model: str
    table: list[Row]
    claims: list[Claim]
    provenance: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    analysis: ClassVar[str]
    panels: ClassVar[tuple[str, ...]]  # the figures that ``draw`` knows, the paper's first

    def __post_init__(self) -> None:
        plain = [{k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()} for row in self.table]
        object.__setattr__(self, "table", plain)

    def rows(self) -> list[Row]:
        """A tidy table: a row an observation, the same keys in each, the model first."""
        return [{"model": self.model, **row} for row in self.table]

    def __repr__(self) -> str:
        """Model, analysis and verdicts in a line.

        >>> from backlight.analyses.calibration.measure import Calibration
        >>> Calibration("demo-cnn", [], [], {"images": 500})
        <calibration of demo-cnn, 500 images: no claims>
        """
        verdicts = ", ".join(f"{claim.id.partition('/')[2]} {claim.verdict}" for claim in self.claims) or "no claims"
        images = f", {count:,} images" if isinstance(count := self.provenance.get("images"), int) else ""
        return f"<{self.analysis} of {self.model}{images}: {verdicts}>"

    def _repr_html_(self) -> str:
        """The figure, the claims and the first rows, for notebooks."""
        from backlight.results.notebook import as_html

        return as_html(f"{self.model}: {self.analysis}", self.figure(), self.caption(), self.claims, self.rows())

    def to_pandas(self) -> Any:
        """The rows as a DataFrame; as a table of pyarrow if pandas is not installed."""
        import pyarrow as pa

        table = pa.Table.from_pylist(self.rows())
        return table.to_pandas() if find_spec("pandas") else table

    def draw(self, ax: Axes, panel: str | None = None) -> None:
        """Draw one panel (default: the first) on ``ax`` as the paper does.  Errors: UserError if there is none so called."""
        if panel not in (None, *self.panels):
            raise UserError(f"{self.analysis} has no panel {panel!r}; there are {', '.join(self.panels)}")
        self._draw(ax, panel or self.panels[0])

    def _draw(self, ax: Axes, panel: str) -> None:
        raise NotImplementedError

    def shown(self) -> tuple[str, ...]:
        """The panels of the figure of this result: those for which it has numbers."""
        return self.panels

    def chart(self, panel: str) -> ChartText:
        """The words of a panel."""
        return CHARTS[f"{self.analysis}/{panel}"]

    @property
    def over(self) -> str:
        """What it is measured on: "200 test images"."""
        return images_of(self.provenance)

    def figure(self) -> Figure:
        """All panels side by side, in a style fit for print, with a caption."""
        from backlight.results.figures import caption_below, paper_figure, paper_style, title

        with paper_style():
            figure, axes = paper_figure(len(self.shown()))
            for ax, panel in zip(axes, self.shown(), strict=True):
                self.draw(ax, panel)
            title(figure, self.model)
            caption_below(figure, self.caption())
        return figure

    @property
    def measured(self) -> str:
        """What the intervals of the figure are over; mini-batches for some results."""
        return self.over

    def caption(self) -> str:
        """What the figure shows, its terms, and over what its intervals are."""
        return caption([self.chart(panel) for panel in self.shown()], self.measured)

    def save(self, folder: str | Path) -> Path:
        """Write the result as a folder of this name, completely or not at all.  Replaces an older one."""
        from backlight.results.figures import paper_style

        folder = Path(folder)
        files = {ROWS: _parquet(self.rows())} | ({ARRAYS: _safetensors(self.arrays)} if self.arrays else {})
        sums = {name: sha256_of(content) for name, content in files.items()}
        document = ResultFile(self.analysis, self.model, self.claims, dict(self.provenance), sums)
        with atomic_folder(folder) as draft:
            for name, content in {**files, DOCUMENT: encoded(document)}.items():
                (draft / name).write_bytes(content)
            figure = self.figure()
            with paper_style():
                for suffix in ("png", "pdf"):
                    figure.savefig(draft / f"{self.analysis}.{suffix}")
        return folder


@dataclass(frozen=True)
class ResultFile(Record):
    """What ``result.json`` holds."""

    record = "result"
    version = 1

    analysis: str
    model: str
    claims: list[Claim]
    provenance: dict[str, Any]
    files: dict[str, str]  # name -> sha256

    def __post_init__(self) -> None:
        for name in OBJECTS:
            if not isinstance(self.provenance.get(name, {}), Mapping):
                raise UserError(f"provenance.{name} is no object")
        if ROWS not in self.files or self.files.keys() - {ROWS, ARRAYS}:
            raise UserError(f"files must be {ROWS} and, if there are arrays, {ARRAYS}")


def read_document(folder: Path) -> tuple[ResultFile, dict[str, bytes]]:
    """The document of the result in a folder, and the contents of its other files.

    Errors: Damaged if a file is missing, or is not what was written; UserError if the folder holds no result.
    """
    document = read_record(folder / DOCUMENT, ResultFile)
    if document is None:
        raise UserError(f"{folder} holds no result of Backlight: there is no {DOCUMENT}")
    return document, {name: read_verified(folder / name, sha256) for name, sha256 in document.files.items()}


def read_result(folder: Path) -> tuple[ResultFile, list[Row], dict[str, np.ndarray]]:
    """Document, table and arrays of the result in a folder.  Errors: as `read_document`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.numpy import load

    document, contents = read_document(folder)
    rows = pq.read_table(pa.BufferReader(contents[ROWS])).to_pylist()
    table = [{key: value for key, value in row.items() if key != "model"} for row in rows]
    arrays = load(contents[ARRAYS]) if ARRAYS in contents else {}
    return document, table, dict(sorted(arrays.items()))  # safetensors gives them in any order


def _parquet(rows: list[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def _safetensors(arrays: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
