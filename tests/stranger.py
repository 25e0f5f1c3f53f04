"""An origin that answers exactly as a test scripts it: what the Hub never would, and what other servers might."""

from __future__ import annotations

import hashlib
import socketserver
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

COMMIT = "a" * 40
Script = Callable[[str, str, Mapping[str, str]], bytes]


def git_sha1(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def said(status: int, body: bytes = b"", **headers: str | int | bytes) -> bytes:
    """Format an answer. Header names have underscores for hyphens; a `Content_Length` of "" leaves that field out."""
    headers = {"Content_Length": len(body)} | headers
    lines = [b"HTTP/1.1 %d -" % status]
    for name, value in headers.items():
        text = value if isinstance(value, bytes) else str(value).encode()
        if text:
            lines.append(name.replace("_", "-").encode() + b": " + text)
    return b"\r\n".join([*lines, b"", body])


def file(body: bytes, **headers: str | int | bytes) -> bytes:
    """Answer with a small file, directly, in the form of the Hub's own cache."""
    return said(200, body, **({"ETag": f'"{git_sha1(body)}"', "X_Repo_Commit": COMMIT} | headers))


class Stranger:
    """A context manager. `script` gets the method, the target and the header fields (names in lower case).

    The bytes that it returns are sent, without the body for a HEAD. If it returns none, the connection is closed.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        stranger = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while stranger._answer(self.rfile.readline, self.wfile.write):
                    pass

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, read: Callable[[], bytes], write: Callable[[bytes], object]) -> bool:
        try:
            if len(first := read().decode("latin-1").split()) != 3:
                return False
            headers: dict[str, str] = {}
            while (line := read()).strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            self.asked.append((first[0], first[1], headers))
            answer = self.script(first[0], first[1], headers)
            head, end, body = answer.partition(b"\r\n\r\n")
            write(head + end + (b"" if first[0] == "HEAD" else body))
        except OSError:  # the client has disconnected
            return False
        return bool(answer)
