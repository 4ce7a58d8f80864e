"""What an analysis returns: a tidy table, the paper's claims tested on it, and the provenance both stand on.

A result is saved as a folder: ``rows.parquet``, ``result.json`` (claims and provenance), ``arrays.safetensors`` if there are
arrays, and the figure.  The folder is written under another name and renamed, so that a killed run leaves all of it or nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from backlight.errors import UserError
from backlight.files import atomic_folder
from backlight.results.claim import Claim

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Row = dict[str, Any]


def columns(name: str, interval: Iterable[Any]) -> Row:
    """An estimate and its interval as three columns of a row.

    >>> columns("nll", (2.0, 1.5, 2.5))
    {'nll': 2.0, 'nll_low': 1.5, 'nll_high': 2.5}
    """
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, interval), strict=True))


@dataclass(frozen=True)
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

    def draw(self, ax: Axes, panel: str | None = None) -> None:
        """Draw one panel (default: the first) on ``ax`` as the paper does.  Errors: UserError if there is none so called."""
        if panel not in (None, *self.panels):
            raise UserError(f"{self.analysis} has no panel {panel!r}; there are {', '.join(self.panels)}")
        self._draw(ax, panel or self.panels[0])

    def _draw(self, ax: Axes, panel: str) -> None:
        raise NotImplementedError

    def figure(self) -> Figure:
        """All panels side by side, in a style fit for print."""
        from backlight.results.figures import paper_figure, paper_style, title

        with paper_style():
            figure, axes = paper_figure(len(self.panels))
            for ax, panel in zip(axes, self.panels, strict=True):
                self.draw(ax, panel)
            title(figure, self.model)
        return figure

    def save(self, folder: str | Path) -> Path:
        """Write the result as a folder of this name, completely or not at all.  Replaces an older one."""
        import pyarrow as pa
        import pyarrow.parquet as pq
        from safetensors.numpy import save_file

        from backlight.results.figures import paper_style

        folder = Path(folder)
        with atomic_folder(folder) as draft:
            pq.write_table(pa.Table.from_pylist(self.rows()), draft / "rows.parquet")
            if self.arrays:
                save_file(
                    {name: np.ascontiguousarray(array) for name, array in self.arrays.items()},
                    draft / "arrays.safetensors",
                )
            document = {
                "analysis": self.analysis,
                "model": self.model,
                "claims": self.claims,
                "provenance": dict(self.provenance),
            }
            text = json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False)
            (draft / "result.json").write_text(text + "\n", encoding="utf-8")
            figure = self.figure()
            with paper_style():
                for suffix in ("png", "pdf"):
                    figure.savefig(draft / f"{self.analysis}.{suffix}")
        return folder


def plain(value: Any) -> Any:
    """The same value as JSON can hold it: dataclasses as mappings, NaN and infinities as null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
