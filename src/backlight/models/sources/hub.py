"""Pretrained weights from the Hugging Face Hub, from a plain address, or from their caches; a failure is one sentence.

A user without network gets this sentence within seconds.  huggingface_hub retries a download five times, for most of a
minute, and has no setting for it; so its metadata request, which does not retry, is made first.  torch.hub has no timeout of
its own; so the default timeout of Python's sockets is set during a download.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError

from backlight.errors import Unavailable, UserError, first_line
from backlight.offline import offline

SECONDS = 5.0  # a host that is silent for so long counts as unreachable; HF_HUB_ETAG_TIMEOUT replaces it for the Hub
NETWORK_LIBRARIES = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3", "urllib")


@contextmanager
def from_hub(name: str, repository: str, *, needed: str = "weights") -> Iterator[None]:
    """Within the block, the Hub's files are available, from the Hub or from its cache.

    Errors: Unavailable, one sentence about ``name``; before the block if neither has the repository.
    """
    with hub_or_cache(repository) as unreachable:
        folder = Path(constants.HF_HUB_CACHE)
        if unreachable and not (folder / f"models--{repository.partition('@')[0].replace('/', '--')}").exists():
            raise missing(name, unreachable, folder, needed=needed)
        with fetching(name, folder, needed=needed, reason=unreachable):
            yield


@contextmanager
def hub_or_cache(repository: str) -> Iterator[str]:
    """Within the block, the Hub's libraries use only their cache if the Hub cannot be reached; yields the reason, or ""."""
    reason, before = why_unreachable(repository), constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(reason)
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = before


def why_unreachable(repository: str) -> str:
    """Why the Hub gives no answer about a repository, or "" if it does.  Errors: UserError for an invalid name."""
    try:
        url = hf_hub_url(repository.partition("@")[0], "config.json")
    except HFValidationError as error:
        raise UserError(f"{repository!r} is not the name of a repository: {first_line(error)}") from error
    if variable := offline():
        return f"{variable} is set"
    try:
        get_hf_file_metadata(url, timeout=float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or SECONDS))
    except HfHubHTTPError:
        return ""  # an answer: there is no such repository or file, or no permission; the download says which
    except Exception as error:
        if not is_about_files(error):
            raise
        return f"cannot reach {urlsplit(url).hostname} ({first_line(error)})"
    return ""


@contextmanager
def from_address(name: str, url: str, *, check_hash: bool = False) -> Iterator[None]:
    """Within the block, the file at a plain address is in torch's cache, from which torchvision and timm read it.

    It is downloaded before the block, because a large model takes long to build.  check_hash: the name of the file ends with
    the first digits of its sha256.  Errors: Unavailable, one sentence about ``name``.
    """

    folder = checkpoints()
    with fetching(name, folder):
        if not (file := folder / Path(urlsplit(url).path).name).exists():
            if variable := offline():
                raise missing(name, f"{variable} is set", folder)
            digits = torch.hub.HASH_REGEX.search(file.name) if check_hash else None
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with socket_timeout(SECONDS):
                    torch.hub.download_url_to_file(url, str(file), digits and digits[1], progress=sys.stderr.isatty())
            except (URLError, ConnectionError, TimeoutError) as error:
                if isinstance(error, HTTPError):  # an answer
                    raise
                cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
                raise missing(name, f"cannot reach {urlsplit(url).hostname} ({first_line(cause)})", folder) from error
        yield


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Within the block, a new socket that is silent for so long raises TimeoutError, unless its owner sets another time."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def fetching(name: str, folder: str | Path, *, needed: str = "weights", reason: str = "") -> Iterator[None]:
    """Within the block, a file that is missing or broken becomes Unavailable, one sentence that says where it belongs."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_about_files(error):
            raise
        raise missing(name, reason or first_line(error), folder, needed=needed) from error


def checkpoints() -> Path:
    """The folder in which torch, torchvision and timm cache weights from a plain address."""
    return Path(torch.hub.get_dir(), "checkpoints")


def missing(name: str, reason: str, folder: str | Path, *, needed: str = "weights") -> Unavailable:
    """One sentence: what is missing, why, and what to do."""
    remedy = "use --no-pretrained for random weights, or " if needed == "weights" else ""
    return Unavailable(f"no {needed} for {name} here: {reason}; {remedy}put the files into {folder}")


def is_about_files(error: Exception) -> bool:
    """Whether an exception says that a file could not be downloaded, found or read."""
    if isinstance(error, RuntimeError):  # torch has no type of its own for a truncated or altered download
        return "PytorchStreamReader" in str(error) or "invalid hash value" in str(error)
    known = (OSError, EOFError, pickle.UnpicklingError, SafetensorError)
    return isinstance(error, known) or type(error).__module__.partition(".")[0] in NETWORK_LIBRARIES
