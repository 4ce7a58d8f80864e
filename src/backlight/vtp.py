"""A landscape as a file for ParaView: a surface of squares, every column of the table a field on its points.

XML PolyData of the Visualization Toolkit; numbers are inline, little-endian, base64, each array after its length in bytes.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as xml

import numpy as np

from .errors import UserError
from .whole import write_whole

if TYPE_CHECKING:
    from .analyses.landscape import Landscape

#: NumPy's kinds of numbers in the words of VTK.
TYPES = {"f4": "Float32", "f8": "Float64", "i8": "Int64"}


def write_vtp(result: Landscape, path: str | Path, *, column: str | None = None, scale: float = 1.0) -> Path:
    """Write the surface of a column, times ``scale``, as PATH.vtp; default: the column that figures show.

    Squares with a corner that is not finite are left out; the fields keep NaN and infinity as they are.
    Errors: UserError for a line, for no such column, or if the file cannot be written.
    """
    path = Path(path).with_suffix(".vtp")
    column = column or result.height
    if column not in result.table[0]:
        raise UserError(f"the landscape has no column {column!r}; there are {', '.join(result.table[0])}")
    x, y, z = result.surface(column)
    if len(y) < 2:
        raise UserError("a line has no surface to export: look along two directions")
    fields = {name: result.surface(name)[2].ravel() for name in result.table[0] if name not in ("x", "y")}
    document = polydata(points(x, y, z * scale), squares(np.isfinite(z)), fields)
    try:
        write_whole(path, xml.tostring(document, encoding="utf-8", xml_declaration=True))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def points(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Corners in space; one of no finite height, which no square has, lies at the highest.  Shapes: -> (Y X, 3)."""
    finite = np.isfinite(z)
    heights = np.where(finite, z, z[finite].max() if finite.any() else 0.0)
    across, along = np.meshgrid(x, y)
    return np.stack([across, along, heights], -1).reshape(-1, 3)


def squares(known: np.ndarray) -> np.ndarray:
    """Corners of each square whose four are known, counter-clockwise.  Shapes: (Y, X) -> (squares, 4)."""
    index = np.arange(known.size).reshape(known.shape)
    corners = np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]], -1).reshape(-1, 4)
    return corners[known.ravel()[corners].all(1)]


def polydata(at: np.ndarray, polygons: np.ndarray, fields: dict[str, np.ndarray]) -> xml.Element:
    """The XML document."""
    root = xml.Element("VTKFile", type="PolyData", version="1.0", byte_order="LittleEndian", header_type="UInt64")
    piece = xml.SubElement(
        xml.SubElement(root, "PolyData"), "Piece", NumberOfPoints=str(len(at)), NumberOfPolys=str(len(polygons))
    )
    of_points = xml.SubElement(piece, "PointData", Scalars=next(iter(fields)))
    for name, values in fields.items():
        _array(of_points, name, values.astype("<f8"))
    _array(xml.SubElement(piece, "Points"), "points", at.astype("<f4"), NumberOfComponents="3")
    polys = xml.SubElement(piece, "Polys")
    _array(polys, "connectivity", polygons.astype("<i8"))
    _array(polys, "offsets", 4 * np.arange(1, len(polygons) + 1, dtype="<i8"))
    return root


def _array(parent: xml.Element, name: str, values: np.ndarray, **more: str) -> None:
    kind = TYPES[f"{values.dtype.kind}{values.dtype.itemsize}"]
    element = xml.SubElement(parent, "DataArray", {"type": kind, "Name": name, "format": "binary", **more})
    content = np.ascontiguousarray(values).tobytes()
    element.text = base64.b64encode(len(content).to_bytes(8, "little") + content).decode()
