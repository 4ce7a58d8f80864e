"""Firefox by its own protocol, Marionette: JSON with its length before it, over a socket of this machine."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Marionette:
    """A connection to a Firefox that runs."""

    def __init__(self, port: int) -> None:
        self.socket = _connected(port)
        self.count = 0
        self.receive()  # its greeting

    def receive(self) -> Any:
        digits = b""
        while (byte := self.socket.recv(1)) != b":":
            digits += byte
        content = b""
        while len(content) < int(digits):
            content += self.socket.recv(int(digits) - len(content))
        return json.loads(content)

    def send(self, command: str, **parameters: Any) -> Any:
        self.count += 1
        content = json.dumps([0, self.count, f"WebDriver:{command}", parameters])
        self.socket.sendall(f"{len(content)}:{content}".encode())
        _, _, error, result = self.receive()
        assert error is None, error
        return result

    def value(self, expression: str) -> Any:
        """An expression's value in the page."""
        return self.send("ExecuteScript", script=f"return {expression}", args=[])["value"]


def _connected(port: int) -> socket.socket:
    for _ in range(300):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=60)
        except OSError:
            time.sleep(0.1)
    raise AssertionError("Firefox does not answer")


@contextmanager
def firefox(executable: str, profile: Path) -> Iterator[Marionette]:
    """A Firefox without a window, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    profile.mkdir()
    (profile / "user.js").write_text(f'user_pref("marionette.port", {port});\n')
    command = [executable, "--headless", "--marionette", "--no-remote", "--profile", str(profile)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            browser = Marionette(port)
            browser.send("NewSession")
            yield browser
            browser.socket.close()
        finally:
            process.terminate()
