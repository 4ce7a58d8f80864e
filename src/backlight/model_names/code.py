"""The Python files behind a factory: its own, and the local ones that it imports.  No file is run."""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from backlight.records import sha256_of


def code_sha256(location: str) -> str:
    """A hash of the files behind a module's name or file, as `load_model` imports them; of nothing if it has no file."""
    file = module_file(location)
    if file is None:
        return sha256_of(b"")
    sums = sorted(sha256_of(content) for content in code_of(file, [Path.cwd(), file.parent]).values())
    return sha256_of("\n".join(sums).encode())


def module_file(location: str) -> Path | None:
    """The file of a module; None for what is no module, or has no file."""
    if (file := local_module(location)) or not is_dotted(location):
        return file
    try:
        spec = importlib.util.find_spec(location)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and os.path.isfile(spec.origin) else None


def local_module(location: str) -> Path | None:
    """The file of a module that is a file, or lies in the working directory."""
    if location.endswith(".py"):
        return Path(location).resolve() if os.path.isfile(location) else None
    return next(reversed([*candidates(Path.cwd(), location)]), None) if is_dotted(location) else None


def is_dotted(location: str) -> bool:
    """Whether this can be the name of a module."""
    return all(part.isidentifier() for part in location.split("."))


def code_of(file: Path, roots: Sequence[Path]) -> dict[Path, bytes]:
    """The contents of a file, of the files below these folders that it imports, and so on."""
    contents: dict[Path, bytes] = {}
    left = [file.resolve()]
    while left:
        if (each := left.pop()) not in contents:
            contents[each] = each.read_bytes()
            left += imported(each, contents[each], roots)
    return contents


def imported(file: Path, content: bytes, roots: Sequence[Path]) -> Iterator[Path]:
    """The local files that a file imports."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from local_files(roots, alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = [file.parents[node.level - 1]] if 0 < node.level <= len(file.parents) else roots
            for name in ["", *(alias.name for alias in node.names)]:
                yield from local_files(above, ".".join(filter(None, (node.module, name))))


def local_files(roots: Sequence[Path], name: str) -> Iterator[Path]:
    """The files of a module and of its packages, below any of these folders."""
    for root in roots:
        yield from candidates(root, name)


def candidates(root: Path, name: str) -> Iterator[Path]:
    """The files of a module and of its packages below a folder, those that exist.

    >>> [path.name for path in candidates(Path(__file__).parents[1], "model_names.code")]
    ['__init__.py', 'code.py']
    """
    place = root
    for part in filter(None, name.split(".")):
        place = place / part
        yield from (path.resolve() for path in (place / "__init__.py", place.with_name(f"{part}.py")) if os.path.isfile(path))
