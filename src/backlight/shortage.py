"""What this machine ran out of, in a sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator

MEMORY = "the memory is used up: use a smaller --batch-size, fewer --workers, or another --device"
FILES = "too many files are open: use fewer --workers, or raise the limit (ulimit -n)"
THREADS = "no more threads or processes can be started: use fewer --workers, or raise the limits (ulimit -u, ulimit -v)"
DISK = "the disk is full: free some space, or choose another --out"
WORKER = "a process that decodes images was killed, probably for its memory: use fewer --workers, or --workers 0"

#: What an exception says, in small letters -> the sentence.  torch raises RuntimeError for most of these.
TEXTS = {
    "too many open files": FILES,
    "items of ancdata": FILES,  # a file descriptor that could not be received
    "unable to open shared memory": FILES,
    "not enough memory": MEMORY,
    "can't allocate memory": MEMORY,
    "cannot allocate memory": MEMORY,
    "out of memory": MEMORY,
    "failed to map segment": MEMORY,  # a library that does not fit
    "can't start new thread": THREADS,
    "no space left on device": DISK,
    "is killed by signal": WORKER,
    "exited unexpectedly": WORKER,
}
NUMBERS = {errno.EMFILE: FILES, errno.ENFILE: FILES, errno.ENOMEM: MEMORY, errno.EAGAIN: THREADS, errno.ENOSPC: DISK}


def shortage(error: BaseException) -> str | None:
    """The sentence for an exception, or for what caused it; None if nothing ran out.

    >>> shortage(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    'the memory is used up: use a smaller --batch-size, fewer --workers, or another --device'
    >>> shortage(RuntimeError("shape mismatch"))
    """
    return next((sentence for each in causes(error) if (sentence := sentence_for(each))), None)


def sentence_for(error: BaseException) -> str | None:
    """The sentence for this exception alone."""
    if isinstance(error, MemoryError):
        return MEMORY
    if isinstance(error, OSError) and error.errno in NUMBERS:
        return NUMBERS[error.errno]
    text = str(error).lower()
    return next((sentence for part, sentence in TEXTS.items() if part in text), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, what it was raised from, and so on."""
    current: BaseException | None = error
    for _ in range(20):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__
