"""A node that has as many files and connections open as it may: it says so and stays whole."""

from __future__ import annotations

import errno
import hashlib
import http.client
import math
import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from mesh import descriptors
from tests.hub.process import HubProcess
from tests.node import NodeProcess, until

LIMIT = 96
CONTENT = os.urandom(1 << 20)  # too long to be sent by the event loop itself
FILE = "/acme/tiny/resolve/main/model.bin"
BLOB = f"/mesh/blobs/sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def fill(node: NodeProcess, stack: ExitStack) -> list[socket.socket]:
    """Take all of a node's descriptors with idle connections; return these."""
    taken: list[socket.socket] = []
    host, port = node.url.removeprefix("http://").split(":")
    while True:
        line = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        try:
            line.sendall(b"GET /-/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if not line.recv(1000):
                return taken
        except ConnectionError:
            return taken
        taken.append(line)


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted in /proc")
def test_who_asks_when_there_is_no_descriptor_is_told_to_come_again(hub: HubProcess, tmp_path: Path) -> None:
    hub.folder.commit("acme/tiny", {"model.bin": CONTENT})
    limited = ("bash", "-c", f'ulimit -n {LIMIT}; exec "$@"', "limited")
    with NodeProcess(tmp_path / "node", hub.url, prefix=limited) as node, ExitStack() as stack:
        assert node.get(FILE) == CONTENT
        client = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=10)
        peer = http.client.HTTPConnection(node.mesh, timeout=10)
        for line in (client, peer):
            line.connect()
            stack.callback(line.close)

        def ask(line: http.client.HTTPConnection, target: str, **fields: str) -> tuple[int, str | None]:
            line.request("GET", target, headers=fields)
            answer = line.getresponse()
            body = answer.read()
            assert body == CONTENT or answer.status in (429, 503)
            return answer.status, answer.headers["Retry-After"]

        def wait_for(free: int) -> None:
            """Wait until as many descriptors are free: a node closes its files a moment after the last byte."""
            opened = Path(f"/proc/{node.pid}/fd")
            until(lambda: len(list(opened.iterdir())) == LIMIT - free, f"{free} descriptors do not become free")

        span = f"bytes=0-{len(CONTENT) - 1}"
        ask(client, FILE)
        assert ask(peer, BLOB, Range=span) == (206, None)
        idle = fill(node, stack)
        for free in range(4):
            wait_for(free)
            # The file takes one, and the connection's duplicate for the sending thread another one.
            assert ask(client, FILE) == ((429, "2") if free < 2 else (200, None))
            wait_for(free)
            assert ask(peer, BLOB, Range=span)[0] == (503 if free < 2 else 206)
            wait_for(free)
            idle.pop().close()
        log = node.log()
        assert "Traceback" not in log
        assert "Too many open files: clients and peers are turned away" in log


def test_the_log_says_it_once_a_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(descriptors, "_logged_at", -math.inf)
    lack = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    assert [descriptors.notice_lack(lack) for _ in range(3)] == [True] * 3
    assert not descriptors.notice_lack(OSError(errno.EIO, "a bad disk"))
    assert len(caplog.records) == 1
