"""The script that draws: Plotly's Cartesian bundle, or all of Plotly where there is a surface in space.

`web/vendor` holds the bundle of the npm package plotly.js-cartesian-dist-min 4.1.1 (MIT licence), gzipped, because Plotly's
Python package has only the bundle of everything, which is three times as large.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

#: Kinds of charts that need WebGL.
IN_SPACE = frozenset({"surface"})


@cache
def script(in_space: bool) -> bytes:
    """The script, gzipped."""
    if in_space:
        everything = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
        return gzip.compress(everything, 9, mtime=0)
    return files(__package__).joinpath("web", "vendor", "plotly-cartesian.min.js.gz").read_bytes()


def needs_space(kinds: Iterable[str]) -> bool:
    """Whether one of these kinds of charts is drawn in space."""
    return bool(IN_SPACE & set(kinds))
