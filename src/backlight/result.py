"""What an analysis returns: a tidy table, the paper's claims tested on it, and the evidence both stand on.

A result is saved as a folder: ``rows.parquet``, ``result.json`` (claims and evidence), ``arrays.safetensors`` if there are
arrays, and the figure.  The folder is written beside its place and renamed, so that a killed run leaves none or all of it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, SupportsFloat

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The files of which one makes a folder Backlight's own, which a newer one may replace.
OURS = ("result.json", "model.json")

#: Age in seconds after which a draft is what a killed run left behind; writing one takes seconds.
STALE = 3600

Row = dict[str, Any]
Verdict = Literal["holds", "does not hold", "undecided"]
Sign = Literal["positive", "negative"]


def columns(name: str, interval: Iterable[Any]) -> Row:
    """An estimate and its interval as three columns of a row.

    >>> columns("nll", (2.0, 1.5, 2.5))
    {'nll': 2.0, 'nll_low': 1.5, 'nll_high': 2.5}
    """
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, interval), strict=True))


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and a number with its interval that decides whether it holds for this model."""

    statement: str  # what should be so
    source: str  # where the paper says it
    quantity: str  # what was measured, with its unit
    value: float
    low: float
    high: float
    verdict: Verdict

    @classmethod
    def of_sign(
        cls,
        sign: Sign,
        interval: Iterable[SupportsFloat],
        *,
        statement: str,
        source: str,
        quantity: str,
    ) -> Claim:
        """The claim that ``interval`` (value, low, high) is of one sign; undecided where the interval holds zero.

        >>> Claim.of_sign("negative", (-2, -3, -1), statement="", source="", quantity="").verdict
        'holds'
        """
        value, low, high = (float(x) for x in interval)
        side = "positive" if low > 0 else "negative" if high < 0 else None
        verdict: Verdict = "undecided" if side is None else "holds" if side == sign else "does not hold"
        return cls(statement, source, quantity, value, low, high, verdict)


@dataclass(frozen=True)
class Result:
    """What one analysis found in one model."""

    model: str
    table: list[Row]
    claims: list[Claim]
    evidence: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    analysis: ClassVar[str]
    panels: ClassVar[tuple[str, ...]]  # the figures that ``draw`` knows, the paper's first

    def __post_init__(self) -> None:
        plain = [{k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()} for row in self.table]
        object.__setattr__(self, "table", plain)

    def rows(self) -> list[Row]:
        """The finding as a tidy table: a row an observation, the same keys in each, the model first."""
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
        from .drawing import paper_figure, paper_style, title

        with paper_style():
            figure, axes = paper_figure(len(self.panels))
            for ax, panel in zip(axes, self.panels, strict=True):
                self.draw(ax, panel)
            title(figure, self.model)
        return figure

    def save(self, folder: str | Path) -> Path:
        """Write the result as a folder of this name, whole or not at all.  Replaces an older one."""
        import pyarrow as pa
        import pyarrow.parquet as pq
        from safetensors.numpy import save_file

        from .drawing import paper_style

        folder = Path(folder)
        with writing(folder) as draft:
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
                "evidence": dict(self.evidence),
            }
            text = json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False)
            (draft / "result.json").write_text(text + "\n", encoding="utf-8")
            figure = self.figure()
            with paper_style():
                for suffix in ("png", "pdf"):
                    figure.savefig(draft / f"{self.analysis}.{suffix}")
        return folder


def load(folder: str | Path) -> Result:
    """The result that :meth:`Result.save` wrote.  Errors: UserError if the folder does not hold a whole one."""
    import pyarrow.parquet as pq
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from . import analyses

    folder = Path(folder)
    try:
        document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        table = pq.read_table(folder / "rows.parquet").to_pylist()
        arrays = load_file(folder / "arrays.safetensors") if (folder / "arrays.safetensors").exists() else {}
        kind = analyses.result_type(document["analysis"])
        claims = [_claim(**claim) for claim in document["claims"]]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} does not hold a whole result of Backlight: {reason}") from error
    for row in table:
        row.pop("model")
    return kind(document["model"], table, claims, document["evidence"], arrays)


def _claim(**saved: Any) -> Claim:
    """A claim whose numbers JSON could not hold are NaN."""
    return Claim(**(saved | {name: math.nan for name, value in saved.items() if value is None}))


class writing:
    """A draft folder that takes the place of ``folder`` when the block ends well, and is gone when it does not.

    Errors: UserError if the folder cannot be written, or holds something that Backlight did not write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def __enter__(self) -> Path:
        refuse_unwritable(self.folder)
        for draft in self.folder.parent.glob(f".{self.folder.name}-*"):
            if time.time() - draft.stat().st_mtime > STALE:
                shutil.rmtree(draft, ignore_errors=True)
        self.draft = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
        return self.draft

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self._take_place()
        except OSError as failure:
            error = failure
        finally:
            shutil.rmtree(self.draft, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {self.folder}: {error.strerror or error}; nothing was left behind") from error

    def _take_place(self) -> None:
        """Two renames: at no moment is there half a folder, old or new."""
        self.draft.chmod(0o755)
        if self.folder.exists():
            old = self.draft.with_name(self.draft.name + "-old")
            os.replace(self.folder, old)
            os.replace(self.draft, self.folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(self.draft, self.folder)


def refuse_unwritable(folder: Path) -> None:
    """Make sure that a folder can be put here.  Errors: UserError if not, or if it holds what Backlight did not write."""
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and any(folder.iterdir()) and not any((folder / f).exists() for f in OURS):
            raise UserError(f"{folder} holds what Backlight did not write; choose another --out, or empty it")
        tempfile.TemporaryFile(dir=folder.parent).close()
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(folder: Path, error: OSError) -> UserError:
    """What to say where a folder cannot be written."""
    blocked = isinstance(error, (FileExistsError, NotADirectoryError))
    reason = "a file is in the way" if blocked else error.strerror or error
    return UserError(f"cannot write {folder}: {reason}; choose another --out")


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
