"""Bad requests at the mesh port of a real node: refused without a traceback, and without memory growth."""

from __future__ import annotations

import http.client
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.auth import Auth
from tests.node import NodeProcess

KEY = secrets.token_hex(32)
DIGEST = "sha256:" + "ab" * 32
MOST_MEMORY = 96 << 10  # KiB that the node may grow by
NOBODY = "http://127.0.0.1:9"  # an origin that does not exist

CLAIM = ["stranger", 1, 0, "", 1, "peer", "1"]
REPORT = {"node": "stranger", "have": b"\0", "wanted": [[0, 1]], "slots": 1, "gained": [[0, "origin", b""]]}
TARGETS: dict[str, Any] = {
    "/mesh/gossip": ["", CLAIM, b"x" * 8, [CLAIM]],
    "/mesh/holdings": {"node": "stranger", "digests": [DIGEST]},
    f"/mesh/swarms/{DIGEST}": {"size": 1000, "report": REPORT, "hint": b"hint"},
    "/mesh/questions": {"method": "GET", "target": "/api/models/a/b", "headers": {}, "body": b""},
    "/mesh/hearsay": {"type": "lookup", "repo": "models/a/b", "revision": "main", "path": "x"},
    "/mesh/preheat": {"type": "repository", "repo": "models/a/b", "revision": "main"},
}
PATHS = (
    *("/mesh/blobs/..%2f..%2f..%2fetc%2fpasswd", "/mesh/blobs/../../etc/passwd", "/mesh/blobs/sha256:..%2f" + "a" * 60),
    *("/mesh/blobs/sha256:%00", "/mesh/swarms/" + "a" * 5000, "/mesh/blobs/%ff%fe", "/mesh/swarms/%", "//mesh//x"),
    *("/mesh/blobs/sha256:" + "AB" * 32, "/mesh/blobs/git-sha1:" + "a" * 64, "/mesh/", "*", "http://other/mesh/gossip"),
)
RANGES = (
    "bytes=0-",
    "bytes=-5",
    f"bytes=0-{10**18}",
    f"bytes={10**18}-{10**19 - 1}",
    "bytes=9-1",
    "lines=1-2",
    "x" * 999,
)
RAW = (
    b"\0" * 1000,
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500),
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /mesh/gossip\r\n\r\n",
    b"POST /mesh/gossip HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /mesh/gossip HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"POST /mesh/gossip HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    b"POST /mesh/gossip HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"POST /mesh/gossip HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /mesh/gossip HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"GET /mesh/gossip HTTP/1.1\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
)
DEEP = (b"\x91" * 100_000, b"\x81\xa1a" * 50_000, *(kind + b"\xff" * 4 for kind in (b"\xdd", b"\xc6", b"\xdf")))

odd = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1 << 31, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1, float("nan"), float("inf"), 1e308]),
    st.text(max_size=40),
    st.binary(max_size=40),
    st.lists(st.integers(-5, 5), max_size=5),
    st.just("a" * 5000),
    st.just([[0, 1]] * 1000),
    st.just({"a": {"b": {"c": 1}}}),
)


def changed(message: Any, place: list[int], value: Any) -> Any:
    """Return the message with one value inside it replaced."""
    if not place or not isinstance(message, list | dict) or not message:
        return value
    keys = list(message) if isinstance(message, dict) else list(range(len(message)))
    key = keys[place[0] % len(keys)]
    copy = dict(message) if isinstance(message, dict) else list(message)
    copy[key] = changed(message[key], place[1:], value)
    return copy


class Victim:
    """A node, and a member (or, without a key, a stranger) that talks to it."""

    def __init__(self, node: NodeProcess, key: bytes | None) -> None:
        self.node = node
        self.auth = Auth("stranger", key)
        self.memory = self.resident()

    def resident(self) -> int:
        """Return the resident memory in KiB."""
        status = Path(f"/proc/{self.node.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def ask(self, method: str, target: str, body: bytes = b"", **headers: str) -> int:
        """Return the status of the answer; 0 if the node closed the connection."""
        connection = http.client.HTTPConnection(self.node.mesh, timeout=30)
        try:
            connection.request(method, target, body, headers | self.auth.sign(method, target, body))
            return connection.getresponse().status
        except (http.client.RemoteDisconnected, ConnectionError):
            return 0
        finally:
            connection.close()

    def send(self, data: bytes) -> bytes:
        """Send raw bytes and return what comes back."""
        host, _, port = self.node.mesh.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                return connection.recv(100)
            except ConnectionError:
                return b""

    def is_unharmed(self) -> None:
        assert "Traceback" not in self.node.log(), self.node.log()[-3000:]
        assert "Unhandled" not in self.node.log()
        assert self.resident() - self.memory < MOST_MEMORY
        assert self.node.get("/-/health") == b"alive\n"


@pytest.fixture(scope="module", params=["open", "keyed"])
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("fuzz")
    key = folder / "key"
    key.write_text(KEY)
    flags = ("--mesh-key-file", str(key)) if request.param == "keyed" else ()
    with NodeProcess(folder / "node", NOBODY, *flags) as node:
        yield Victim(node, KEY.encode() if flags else None)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    target=st.sampled_from(sorted(TARGETS)),
    place=st.lists(st.integers(0, 7), max_size=4),
    value=odd,
    cut=st.one_of(st.none(), st.integers(0, 200)),
)
def test_messages_that_are_nearly_right(
    victim: Victim, target: str, place: list[int], value: Any, cut: int | None
) -> None:
    try:
        body = msgspec.msgpack.encode(changed(TARGETS[target], place, value))
    except (OverflowError, UnicodeEncodeError):
        return  # not expressible in msgpack
    status = victim.ask("POST", target, body[:cut])
    assert 200 <= status < 500, f"{status} for {body[:cut]!r}"


def test_messages_that_are_not(victim: Victim) -> None:
    for target in TARGETS:
        for body in (*DEEP, b"", b"\xc1", bytes(1 << 20), secrets.token_bytes(5000)):
            status = victim.ask("POST", target, body)
            assert 400 <= status < 500 or (status, target) == (200, "/mesh/questions") or not status, (
                target,
                body[:20],
            )
        assert 400 <= victim.ask("GET", target) < 500
        assert 400 <= victim.ask("PATCH", target, b"x") < 500
    for path in PATHS:
        for method in ("GET", "POST", "DELETE"):
            assert 400 <= victim.ask(method, path, b"x" if method == "POST" else b"") < 500, path
    for value in RANGES:
        assert 400 <= victim.ask("GET", f"/mesh/blobs/{DIGEST}", Range=value) < 500, value
    for data in RAW:
        answer = victim.send(data)
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), (data[:50], answer)
    victim.is_unharmed()
