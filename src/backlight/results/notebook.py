"""A result in a notebook: its figure, its claims, and the first rows, as HTML in which every text is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from backlight.results.figures import paper_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from backlight.results.claim import Claim

HEAD = 8  # rows


def as_html(title: str, figure: Figure, caption: str, claims: Sequence[Claim], rows: Sequence[dict[str, Any]]) -> str:
    """Figure, claims and rows as HTML without scripts."""
    more = f"<p>{len(rows):,} rows; all of them: <code>result.to_pandas()</code></p>" if len(rows) > HEAD else ""
    head = ["verdict", "statement", "effect [95% interval]", "over"]
    parts = [
        f"<p><b>{escape(title)}</b></p>",
        f'<img alt="{escape(f"{title}. {caption}")}" src="data:image/png;base64,{picture(figure)}">',
        table(head, [of_claim(claim) for claim in claims]) if claims else "",
        table(list(rows[0]), [list(row.values()) for row in rows[:HEAD]]) if rows else "",
    ]
    return "".join(parts) + more


def of_claim(claim: Claim) -> list[str]:
    """A claim as the cells of a row."""
    effect = f"{claim.value:.3g} [{claim.low:.3g}, {claim.high:.3g}]"
    return [claim.verdict, claim.statement, effect, f"{claim.count:,} {claim.over}"]


def picture(figure: Figure) -> str:
    """A figure as PNG in base64."""
    buffer = io.BytesIO()
    with paper_style():
        figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers with four figures."""
    cells = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row] for row in rows]
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
    return f"<table><thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr></thead><tbody>{body}</tbody></table>"
