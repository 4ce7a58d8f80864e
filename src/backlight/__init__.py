"""Backlight shows how a vision model works.

Names load on first use, so that ``import backlight`` is instant; ``import backlight.models`` registers our models with timm.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0"


def _public() -> dict[str, str]:
    """Public name -> module: what the stub beside this file imports, and the analyses of the catalogue."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = {alias.name: node.module or "" for node in imports for alias in node.names if alias.name != "*"}
    catalog = "backlight.analyses.catalog"
    return names | dict.fromkeys(import_module(catalog).CATALOG, catalog)


def __getattr__(name: str) -> Any:
    public = {} if name.startswith("_") and name != "__all__" else _public()
    if name == "__all__":
        return ["__version__", *public]
    if name not in public:
        raise AttributeError(f"module 'backlight' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(public[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(["__version__", *_public()])
