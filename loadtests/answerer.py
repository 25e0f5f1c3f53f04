"""Replay recorded answers: the least work that a server can do.

    python -m loadtests.answerer PORT URL OWNER/NAME

Asks the server at URL for everything that `snapshot_download` of a model asks for, then serves those answers on PORT.
The time that a client takes against it is the client's own.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import Iterator

import uvloop

_MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_NOT_KEPT = ("connection", "transfer-encoding")


def record(base: str, repo: str) -> dict[bytes, bytes]:
    """Return complete answers (head and body), keyed by "METHOD target"."""
    return {f"{method} {target}".encode(): answer for method, target, answer in _ask_all(base, repo)}


def _ask_all(base: str, repo: str) -> Iterator[tuple[str, str, bytes]]:
    info = f"/api/models/{repo}/revision/main"
    head, body = _ask(base, "GET", info)
    yield "GET", info, head + body
    commit = json.loads(body)["sha"]
    tree = f"/api/models/{repo}/tree/{commit}?recursive=true&expand=false"
    head, body = _ask(base, "GET", tree)
    yield "GET", tree, head + body
    for entry in json.loads(body):
        for method in ("HEAD", "GET"):
            target = f"/{repo}/resolve/{commit}/{entry['path']}"
            yield method, target, b"".join(_ask(base, method, target))


def _ask(base: str, method: str, target: str) -> tuple[bytes, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(base + target, method=method, headers={"Accept-Encoding": "identity"})
    with opener.open(request, timeout=60) as answer:
        fields = "".join(f"{k}: {v}\r\n" for k, v in answer.headers.items() if k.lower() not in _NOT_KEPT)
        return f"HTTP/1.1 {answer.status} OK\r\n{fields}\r\n".encode(), answer.read()


class Answerer(asyncio.Protocol):
    """One connection. Only the request line is parsed; header fields are ignored."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self._heard = b""

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while b"\r\n\r\n" in self._heard:
            request, _, self._heard = self._heard.partition(b"\r\n\r\n")
            line = request.partition(b"\r\n")[0].rpartition(b" ")[0]
            self._transport.write(self._answers.get(line, _MISSING))


async def _serve(port: int, base: str, repo: str) -> None:
    answers = record(base, repo)
    server = await asyncio.get_running_loop().create_server(lambda: Answerer(answers), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), *sys.argv[2:4]))
