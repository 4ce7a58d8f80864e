"""Whether weights can be fetched from the network, found out within seconds.

Hub clients retry for most of a minute before they give up; one connection attempt tells as much.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants
from safetensors import SafetensorError

from ..errors import Unavailable, UserError

OFFLINE_SWITCHES = ("BACKLIGHT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
NETWORK_LIBRARIES = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3", "urllib")


def why_offline(url: str, *, seconds: float = 3.0) -> str:
    """Why the host of ``url`` cannot be asked, in words, or nothing where it can.

    A proxy is taken at its word: only it can say what it reaches.
    """
    for switch in OFFLINE_SWITCHES:
        if os.environ.get(switch, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"{switch} is set"
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return ""
    place = urlsplit(url)
    port = place.port or (80 if place.scheme == "http" else 443)
    try:
        socket.create_connection((place.hostname or "", port), timeout=seconds).close()
    except OSError:
        return f"cannot reach {place.hostname}"
    return ""


@contextmanager
def hub_or_cache(name: str, *, needed: str = "weights") -> Iterator[None]:
    """Within the block, the Hugging Face hub is asked only if it answers; else its local cache must do.

    A failure to get what is needed becomes Unavailable, one sentence about ``name``.
    """
    reason, before = why_offline(constants.ENDPOINT), constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(reason)
    try:
        with fetching(name, constants.HF_HUB_CACHE, needed=needed, reason=reason):
            yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def fetching(name: str, folder: str | Path, *, needed: str = "weights", reason: str = "") -> Iterator[None]:
    """Within the block, a file that is missing or broken becomes Unavailable, one sentence that says where it goes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not about_a_file(error):
            raise
        raise missing(name, reason or first_line(error), folder, needed=needed) from error


def refuse_unreachable(name: str, *, url: str = "", repository: str = "") -> None:
    """Raise Unavailable if weights at a URL, or in a hub repository, are neither in the cache nor to be downloaded.

    Seconds before a large model is built in vain.
    """
    if repository:
        folder, file, url = Path(constants.HF_HUB_CACHE), "models--" + repository.replace("/", "--"), constants.ENDPOINT
    else:
        folder, file = checkpoints(), Path(urlsplit(url).path).name
    if not (folder / file).exists() and (reason := why_offline(url)):
        raise missing(name, reason, folder)


def checkpoints() -> Path:
    """Where torch, torchvision and timm keep weights that they downloaded from a plain address."""
    return Path(torch.hub.get_dir(), "checkpoints")


def missing(name: str, reason: str, folder: str | Path, *, needed: str = "weights") -> Unavailable:
    """The one sentence that says what is not here, why, and what to do."""
    remedy = "use --no-pretrained for random weights, or " if needed == "weights" else ""
    return Unavailable(f"no {needed} for {name} here: {reason}; {remedy}put the files into {folder}")


def about_a_file(error: Exception) -> bool:
    """Whether an exception says that a file could not be fetched, found or read."""
    if isinstance(error, RuntimeError):  # torch has no type of its own for a truncated or altered download
        return "PytorchStreamReader" in str(error) or "invalid hash value" in str(error)
    known = (OSError, EOFError, pickle.UnpicklingError, SafetensorError)
    return isinstance(error, known) or type(error).__module__.partition(".")[0] in NETWORK_LIBRARIES


def first_line(error: Exception) -> str:
    """An exception in one line: its first, or the type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
