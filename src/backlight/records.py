"""The JSON files that Backlight writes and reads again: typed, with a version and a checksum.

A record is a dataclass.  Its file holds its fields, its name under ``backlight``, its ``version``, and the ``sha256`` of all
other values, so that no value changes silently.  This is the only place that reads JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from backlight.errors import UserError, first_line

R = TypeVar("R", bound="Record")
MARK, VERSION, SHA256 = "backlight", "version", "sha256"


class Damaged(UserError):
    """A file is not what Backlight wrote, or is of an older version: it can be replaced."""


@dataclass(frozen=True)
class Record:
    """Base of what a JSON file holds."""

    record: ClassVar[str]  # the name that the file carries
    version: ClassVar[int] = 1


def encoded(record: Record) -> bytes:
    """The contents of a record's file."""
    document = plain({MARK: record.record, VERSION: record.version, **asdict(record)})
    text = json.dumps({**document, SHA256: digest(document)}, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode(errors="backslashreplace")  # half of a surrogate pair, as JSON writes it


def read_record(path: Path, kind: type[R]) -> R | None:
    """The record in a file; None if there is no such file.

    Errors: Damaged if the file is not what was written, or of an older version.  UserError if it cannot be read, if a newer
    version wrote it, or if it holds something else.
    """
    if (content := contents(path)) is None:
        return None
    try:
        document = parsed(content)
        if is_foreign(document):
            raise UserError(f"{path} was not written by Backlight, or by a version before its files were marked")
        verified(document)
        refuse_other(path, document, kind)
        return conforming({key: document[key] for key in document if key not in (MARK, VERSION, SHA256)}, kind, "it")
    except RecursionError as error:
        raise Damaged(f"{path} is damaged: it is nested too deeply") from error
    except Misfit as error:
        raise Damaged(f"{path} is damaged: {error}") from error


def read_verified(path: Path, sha256: str) -> bytes:
    """The contents of a file beside a record that holds its sha256.  Errors: Damaged; UserError if it cannot be read."""
    if (content := contents(path)) is None:
        raise Damaged(f"{path} is missing")
    if sha256_of(content) != sha256:
        raise Damaged(f"{path} is damaged: its sha256 is not that of what was written")
    return content


def is_ours(path: Path) -> bool:
    """Whether a file of this name exists and is not of another program; a damaged one counts as ours."""
    try:
        content = contents(path)
        return content is not None and not is_foreign(parsed(content))
    except (Misfit, RecursionError):
        return True
    except UserError:
        return False


def sha256_of(content: bytes) -> str:
    """The sha256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


# --- values


def plain(value: Any) -> Any:
    """The same value as JSON can hold it: dataclasses as mappings, keys as text, NaN and infinities as null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class Misfit(ValueError):
    """What is wrong with the contents of a file."""


def conforming(value: Any, kind: Any, where: str) -> Any:
    """A value of JSON as this type: dataclasses, lists, tuples of any length, dicts, ``X | None``, literals, plain types.

    null is NaN where a number must stand, because `plain` writes NaN so.  Errors: Misfit that names the place.
    """
    if NoneType in get_args(kind):
        return None if value is None else conforming(value, get_args(kind)[0], where)
    if is_dataclass(kind):
        return _instance(value, kind, where)
    if get_origin(kind) in (list, tuple, dict):
        return _container(value, kind, where)
    return _scalar(value, kind, where)


def _scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is float:
        value = math.nan if value is None else float(value) if type(value) is int and abs(value) < 2**63 else value
    accepted = isinstance(value, str) and value in get_args(kind) if get_origin(kind) is Literal else type(value) is kind
    if not accepted and kind is not Any:
        raise Misfit(f"{where} is {shown(value)}, and no {getattr(kind, '__name__', kind)}")
    return value


def _container(value: Any, kind: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin is dict and isinstance(value, dict):
        return {key: conforming(item, args[1], f"{where}.{key}") for key, item in value.items()}
    if origin is not dict and isinstance(value, list):
        return origin(conforming(item, args[0], f"an entry of {where}") for item in value)
    raise Misfit(f"{where} is {shown(value)}, and no {origin.__name__}")


def _instance(value: Any, kind: Any, where: str) -> Any:
    """The dataclass with these fields."""
    if not isinstance(value, dict):
        raise Misfit(f"{where} is {shown(value)}, and no object")
    types, own = types_of(kind), {field.name: field for field in fields(kind)}
    if unknown := value.keys() - own.keys():
        raise Misfit(f"{where} has an entry {shown(min(unknown))}, which does not belong there")
    absent = [name for name, f in own.items() if name not in value and f.default is f.default_factory is MISSING]
    if absent:
        raise Misfit(f"{where} has no {absent[0]}")
    try:
        return kind(**{name: conforming(item, types[name], name) for name, item in value.items()})
    except UserError as error:
        raise Misfit(str(error)) from error


@cache
def types_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(kind)


def shown(value: Any) -> str:
    """A value of JSON in a few characters."""
    text = json.dumps(value)
    return text if len(text) < 40 else f"{text[:36]} ..."


# --- files


def contents(path: Path) -> bytes | None:
    """The contents of a file; None if there is none.  Errors: UserError if it cannot be read, or is no plain file."""
    try:
        if not path.exists():
            return None
        if not path.is_file():  # a pipe would block
            raise UserError(f"{path} is not a plain file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def parsed(content: bytes) -> Any:
    """A document.  Errors: Misfit; RecursionError if it is nested too deeply."""
    try:
        return json.loads(content.decode(), parse_constant=_refuse_constant)
    except ValueError as error:  # also UnicodeDecodeError, and numbers of thousands of digits
        raise Misfit(f"it is not JSON ({first_line(error)})") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def is_foreign(document: Any) -> bool:
    """Whether this is an object without any mark of Backlight."""
    return isinstance(document, dict) and not document.keys() & {MARK, SHA256}


def verified(document: Any) -> None:
    """Errors: Misfit unless the document's sha256 is that of its other values."""
    if not isinstance(document, dict):
        raise Misfit(f"it holds {shown(document)} instead of an object")
    if document.get(SHA256) != digest({key: value for key, value in document.items() if key != SHA256}):
        raise Misfit("its values do not have the sha256 that was written with them")


def digest(document: Mapping[str, Any]) -> str:
    """The sha256 of the values, however they are laid out in a file."""
    return sha256_of(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def refuse_other(path: Path, document: Mapping[str, Any], kind: type[Record]) -> None:
    """Errors: UserError for another kind of record, or a newer version; Damaged for an older one."""
    name, version = document.get(MARK), document.get(VERSION)
    if name != kind.record:
        raise UserError(f"{path} is a file of Backlight of another kind: {shown(name)}, not {shown(kind.record)}")
    if version != kind.version:
        versions = f"version {shown(version)}, and this Backlight reads version {kind.version}"
        if type(version) is int and version > kind.version:
            raise UserError(f"{path} was written by a newer Backlight: it is {versions}; update Backlight")
        raise Damaged(f"{path} was written by an older Backlight: it is {versions}")
