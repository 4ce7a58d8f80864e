"""The models of a study: names, lines of a file, and patterns over the registries of timm, torchvision and the package."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from backlight.errors import UserError, did_you_mean, first_line


def models_in(file: Path) -> list[str]:
    """The models in a file, one a line; what follows # is a comment.  Errors: UserError."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise UserError(f"{file} cannot be read: {reason}") from error
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not names:
        raise UserError(f"{file} names no model: write one a line")
    return names


def expanded(names: Iterable[str]) -> list[str]:
    """The models, each once, with every pattern replaced by the names that it fits, sorted.

    A pattern has a ``*``: ``timm:convnext*``, ``torchvision:*``, ``demo-*``; arguments follow as in a MODEL.
    Errors: UserError for a pattern that fits no name.
    """
    return list(dict.fromkeys(model for name in names for model in (fitting(name) if is_pattern(name) else [name])))


def is_pattern(name: str) -> bool:
    """Whether the name has a ``*`` before its arguments."""
    return "*" in name.partition("?")[0]


def fitting(pattern: str) -> list[str]:
    """The models whose name fits.  Errors: UserError if there are none."""
    from backlight.models.sources.load import list_names

    address, mark, arguments = pattern.partition("?")
    source, _, rest = address.rpartition(":")
    if source not in PREFIXES:
        known = ", ".join(f"{prefix}:" for prefix in PREFIXES if prefix)
        raise UserError(f"{pattern!r}: a pattern is over {known} or the models of the package{did_you_mean(source, PREFIXES)}")
    registries = list_names("*")
    names = sorted(name for registry in PREFIXES[source] for name in registries[registry])
    wanted = address if source == "torchvision" else rest
    fits = [f"{name}{mark}{arguments}" for name in names if fnmatchcase(name, wanted)]
    if not fits:
        raise UserError(f"no model fits {pattern!r}{did_you_mean(wanted.strip('*'), names)}")
    return fits


#: Prefix of a pattern -> the registries of `list_names`.
PREFIXES = {"timm": ("timm", "ours"), "torchvision": ("torchvision",), "": ("demo", "ours")}
