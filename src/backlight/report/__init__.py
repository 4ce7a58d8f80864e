"""A folder of results -> one HTML page that needs nothing else: no network, no fonts, no server.

The page is a template filled with sentences and tables, the numbers as compressed JSON, one script that draws the charts from
it, and Plotly, once.  The same folder gives the same bytes.  A file in ``sections/`` gives an analysis its own section.
"""

from __future__ import annotations

from pathlib import Path

from backlight.errors import UserError
from backlight.files import write_atomic
from backlight.report.page import html
from backlight.report.sections import checked
from backlight.study.folder import read_study

__all__ = ["write_report"]


def write_report(folder: str | Path, out: str | Path | None = None, *, images: bool = False) -> Path:
    """Write the page of a study's folder, or of any folder of saved results, and return where: ``FOLDER/report.html``.

    ``images``: with small pictures of images that lesions flip, read from the data set, which must be on this machine.

    Errors: UserError if there is no such folder, no result in it, or the page cannot be written.
    """
    folder = Path(folder)
    page = html(checked(read_study(folder)), images=images).encode()
    path = Path(out) if out is not None else folder / "report.html"
    try:
        write_atomic(path, page)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    return path
