"""The page from a server of this machine, made again when the folder changes: for a study that runs."""

from __future__ import annotations

import hashlib
import html as markup
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from backlight.errors import UserError, first_line
from backlight.report.page import html
from backlight.report.sections import checked
from backlight.study.folder import read_study

#: Only programs of this machine reach it.
HOST = "127.0.0.1"
#: While there is no result.
WAITING = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="3"><title>Backlight</title><p>{}'
#: Of a folder, what a page is made from.
FILES = ("study.json", "*/units.json", "*.reason.json", "*/*.reason.json", "result.json", "*/result.json", "*/*/result.json")


def version_of(folder: Path) -> str:
    """What changes when a result, or the reason why there is none, arrives: a hash of names, times and sizes."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        try:
            state = path.stat()
        except OSError:  # replaced just now
            continue
        digest.update(f"{path.relative_to(folder)} {state.st_mtime_ns} {state.st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


class Pages:
    """The page of a folder, made again only when the folder has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = Lock()
        self.made: tuple[str, str] = ("", "")  # version, page

    def page(self) -> str:
        """The page of the folder as it is now; a sentence while there is no result."""
        with self.lock:
            version = version_of(self.folder)
            if self.made[0] != version:
                self.made = version, self._page(version)
            return self.made[1]

    def _page(self, version: str) -> str:
        try:
            return html(checked(read_study(self.folder)), live=version)
        except UserError as error:
            return WAITING.format(markup.escape(first_line(error)))


def handler(pages: Pages, port: int) -> type[BaseHTTPRequestHandler]:
    """What answers: the page, and its version, to which the page compares itself."""
    names = {f"{host}:{port}" for host in (HOST, "localhost")}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host") not in names:  # another site's name that leads here
                self.send_error(403)
            elif self.path == "/":
                self.answer(pages.page(), "text/html")
            elif self.path == "/version":
                self.answer(version_of(pages.folder), "text/plain")
            else:
                self.send_error(404)

        def answer(self, text: str, kind: str) -> None:
            content = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    return Handler


@contextmanager
def serving(folder: str | Path, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """A server of the folder's page on the loopback address; ``port`` 0: any that is free.

    Errors: UserError if there is no such folder, or the port is taken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the --out of a study")
    try:
        server = ThreadingHTTPServer((HOST, port), BaseHTTPRequestHandler)
    except OSError as error:
        raise UserError(f"cannot serve on port {port}: {error.strerror}; choose another --port") from error
    server.RequestHandlerClass = handler(Pages(folder), server.server_port)
    with server:
        yield server
