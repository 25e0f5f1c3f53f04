"""HTTP on the client port, byte by byte: when connections stay open, framing of answers, and reserved requests."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from proxy.app import _say_go_on
from tests.http import ask
from tests.hub.process import HubProcess
from tests.lateness import Lateness
from tests.node import NodeProcess

CONFIG = b'{"a": 1}'
FILE, INFO = "/acme/tiny/resolve/main/config.json", "/api/models/acme/tiny"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with HubProcess(tmp_path_factory.mktemp("hub") / "hub") as process:
        process.folder.commit("acme/tiny", {"config.json": CONFIG})
        yield process


@pytest.fixture(scope="module")
def node(hub: HubProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node") / "node", hub.url, "--drain-timeout", "60") as process:
        for target in (FILE, INFO):
            assert ask(process.url + target).status == 200
        yield process


class Line:
    """One connection to a node."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.host = parts.netloc
        self.socket = socket.create_connection((parts.hostname, parts.port or 80), timeout=10)
        self._came = _Came(socket.SocketIO(self.socket, "r"))

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, request: str, *fields: str, version: str = "1.1", body: bytes = b"") -> None:
        lines = [f"{request} HTTP/{version}", f"Host: {self.host}", *fields, "", ""]
        self.socket.sendall("\r\n".join(lines).encode() + body)

    def receive(self, method: str) -> tuple[HTTPResponse, bytes]:
        """Return the next answer, reading nothing beyond its end."""
        response = HTTPResponse(self._came, method=method)  # type: ignore[arg-type]
        response.begin()
        return response, response.read()

    @property
    def is_at_its_end(self) -> bool:
        """Whether the node has closed the connection without another byte."""
        return self._came.read(1) == b""


class _Came(io.BufferedReader):
    """The received bytes, shared by successive answers: HTTPResponse would read ahead, and close its own file."""

    def makefile(self, _: str) -> _Came:
        return self

    def close(self) -> None: ...


def test_answers_on_one_connection_are_framed_whatever_comes_before_and_after(node: NodeProcess) -> None:
    length_of_info = str(len(ask(node.url + INFO).body))
    asked = [
        ("HEAD " + FILE, (), 200, b"", str(len(CONFIG))),
        ("GET " + FILE, (), 200, CONFIG, str(len(CONFIG))),
        ("GET " + FILE, ("Range: bytes=2-4",), 206, CONFIG[2:5], "3"),
        ("GET " + FILE, ("Range: bytes=99-",), 416, b"", "0"),
        ("GET " + FILE, ("If-None-Match: *",), 304, b"", None),
        ("HEAD " + INFO, (), 200, b"", length_of_info),
        ("GET " + FILE, ("Expect:",), 200, CONFIG, str(len(CONFIG))),  # a list may be empty
        ("GET " + INFO, ("If-None-Match: *",), 304, b"", None),
        ("HEAD /-/health", (), 200, b"", "6"),
        ("GET /-/health", (), 200, b"alive\n", "6"),
    ]
    with Line(node.url) as line:
        for request, fields, *_ in asked:  # all at once: an answer with a wrong length spoils the next one
            line.send(request, *fields)
        for request, _, status, body, length in asked:
            response, found = line.receive(request.partition(" ")[0])
            assert (response.status, found) == (status, body), request
            assert response.getheader("Content-Length") == length, request
            assert response.getheader("Date"), request
            assert response.getheader("Connection") is None, request
        line.send("GET " + INFO, "Connection: close")
        response, found = line.receive("GET")
        assert json.loads(found)["id"] == "acme/tiny"
        assert response.getheader("Connection") == "close"
        assert line.is_at_its_end


@pytest.mark.parametrize("request_line", ["GET " + FILE, "HEAD " + FILE, "GET " + INFO])
def test_connections_stay_as_each_version_of_http_has_it(node: NodeProcess, request_line: str) -> None:
    method = request_line.partition(" ")[0]
    with Line(node.url) as line:
        for _ in range(2):
            line.send(request_line, "Connection: keep-alive", version="1.0")
            response, _ = line.receive(method)
            assert (response.status, response.version, response.getheader("Connection")) == (200, 10, "keep-alive")
        line.send(request_line, version="1.0")
        response, _ = line.receive(method)
        assert (response.status, response.getheader("Connection")) == (200, None)
        assert line.is_at_its_end


def test_who_asks_before_sending_a_body_is_told_to_go_on(node: NodeProcess) -> None:
    body = b'{"a": 1}'
    about = (f"Content-Length: {len(body)}", "X-Echo: 1")
    with Line(node.url) as line:
        line.send("POST /api/validate-yaml", *about, "Expect: 100-continue")
        assert line.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.socket.sendall(body)
        response, found = line.receive("POST")
        assert (response.status, json.loads(found)["sha256"]) == (200, hashlib.sha256(body).hexdigest())
        line.send("POST /api/validate-yaml", *about, "Expect: a-wonder", body=body)
        assert line.receive("POST")[0].status == 417
    with Line(node.url) as line:  # RFC 9110, section 10.1.1: HTTP/1.0 has no interim answers
        line.send("POST /api/validate-yaml", *about, "Expect: 100-continue", version="1.0", body=body)
        assert line.socket.recv(12) == b"HTTP/1.0 200"


async def test_what_fails_after_that_is_answered_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await _say_go_on(request)
        raise RuntimeError("a mistake of ours")

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n")
            assert b" 500 " in (await reader.read())
            writer.close()
    finally:
        await runner.cleanup()
    assert "a mistake of ours" in caplog.text


def test_each_request_has_its_id_in_the_log(node: NodeProcess) -> None:
    """The client's own id, so that its log and ours can be compared; otherwise one of ours, never the same twice."""
    said = ["from-a-client", "0" * 100, "", ""]
    for name in said:
        assert ask(f"{node.url}/ids{FILE}", **({"X_Request_Id": name} if name else {})).status == 200
    found: list[str] = []
    until = time.monotonic() + 10
    while len(found) < len(said):  # a request is logged once it has been answered
        assert time.monotonic() < until, node.log()
        found = re.findall(rf"/ids{FILE} 200 .*  \[(\S+)\]$", node.log(), re.MULTILINE)
    assert found[:2] == ["from-a-client", "0" * 64]
    assert len(set(found)) == len(said)


def test_what_is_ours_is_never_asked_of_the_hub(hub: HubProcess, node: NodeProcess) -> None:
    hub.reset()
    with Line(node.url) as line:
        for method, target, status in (
            ("GET", "/-/health", 200),
            ("GET", "/-/health?x=/acme/tiny/resolve/main/a", 200),
            ("GET", f"{node.url}/-/health", 200),
            ("GET", "/%2D/health", 200),
            ("POST", "/-/health", 404),
            ("DELETE", "/-/", 404),
            ("GET", "/-/nothing", 404),
            ("PUT", "/-/acme/tiny", 404),
            ("GET", "/-/xet/nothing", 404),
            ("GET", "/-/xet%2Fnothing", 404),
            ("GET", "/-/xet/resolve/main/config.json", 404),
            ("GET", "/-/%78et/nothing", 404),
            ("GET", "/%2D/xet/nothing", 404),
            ("GET", "//-/xet/nothing", 404),
            ("GET", "//-/health", 404),
            ("POST", "///-/pin", 404),
            ("GET", "/./-/health", 404),
            ("GET", "/%2e/-/health", 404),
            ("GET", "/acme/..//-/metrics", 404),
            ("GET", "/acme/%2E%2E/-/", 404),
            ("GET", "/%2F-%2fhealth", 404),
            ("GET", f"{node.url}//-/health", 404),
            ("GET", f"{node.url}/./%2D/health?x", 404),
            ("OPTIONS", "*", 404),
            ("HEAD", "/-/events", 404),
            ("CONNECT", "internal.example:22", 404),
        ):
            line.send(f"{method} {target}")
            assert line.receive(method)[0].status == status, target
        assert not hub.stats()["requests"]
        for target in ("/acme/-/resolve/main/a", "/acme/tiny/resolve/main/-/a"):
            line.send(f"GET {target}")
            assert line.receive("GET")[0].getheader("X-Error-Code"), target  # the Hub's own answer


def test_who_is_being_served_has_the_time_to_drain_and_no_more(hub: HubProcess, tmp_path: Path) -> None:
    hub.folder.commit("acme/tiny", {"slow.bin": bytes(32 << 20)})
    with (
        NodeProcess(tmp_path / "node", hub.url, "--drain-timeout", "4", "--max-origin", "1MiB/s") as node,
        Line(node.url) as line,
        Lateness() as late,
    ):
        line.send("GET /acme/tiny/resolve/main/slow.bin")
        assert line.socket.recv(1000).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        assert node.stop(signal.SIGTERM) == 0
        assert 3.5 < time.monotonic() - began < 7.5 + late.seconds  # once it took twice the time-out
        assert "slow.bin 200 broken" in node.log()


def test_who_asks_and_asks_and_reads_nothing_is_not_waited_upon(hub: HubProcess, node: NodeProcess) -> None:
    hub.folder.commit("acme/sixty", {"sixty.bin": bytes(60_000)})
    target = "/acme/sixty/resolve/main/sixty.bin"
    assert len(node.get(target)) == 60_000
    with Line(node.url) as line:
        request = f"GET {target} HTTP/1.1\r\nHost: {line.host}\r\nX-Padding: {'x' * 6000}\r\n\r\n".encode()
        line.socket.settimeout(3)
        with pytest.raises(TimeoutError):  # the node has stopped reading
            line.socket.sendall(request * 5000)
    assert ask(node.url + "/-/health").status == 200


def test_who_leaves_in_the_midst_of_a_body_is_no_mistake_of_ours(node: NodeProcess) -> None:
    for target in ("/api/models/acme/tiny/paths-info/main", "/acme/tiny.git/info/lfs/objects/batch", "/-/pin"):
        with Line(node.url) as line:
            line.send("POST " + target, "Content-Length: 100", "Content-Type: application/json", body=b"{")
    until = time.monotonic() + 10
    while node.log().count(" 400 broken ") < 2:  # requests to /-/ are not logged at this level
        assert time.monotonic() < until
    assert "Traceback" not in node.log()


@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b'{"name":' * 20_000, b'{"operation": "download", "transfers": [["x"]], "objects": []}'],
    ids=["lists", "objects", "list in a list"],
)
def test_json_of_an_unexpected_form_is_no_mistake_of_ours(node: NodeProcess, body: bytes) -> None:
    kind = "Content-Type: application/json"
    for target in ("/acme/tiny.git/info/lfs/objects/batch", "/api/repos/create", "/-/pin"):
        with Line(node.url) as line:
            line.send("POST " + target, f"Content-Length: {len(body)}", kind, body=body)
            answer, found = line.receive("POST")
            if target == "/-/pin":
                assert (answer.status, list(json.loads(found))) == (400, ["error"])
            elif b"objects" in body and "batch" in target:
                assert (answer.status, json.loads(found)["objects"]) == (200, [])
            assert b"Traceback" not in found
    assert "Traceback" not in node.log()


def test_dashboards_do_not_keep_a_node_from_stopping(hub: HubProcess, tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "node", hub.url, "--drain-timeout", "60") as node, Line(node.url) as line:
        line.send("GET /-/events")
        assert line.socket.recv(1000).startswith(b"HTTP/1.1 200")
        assert node.stop(signal.SIGTERM) == 0  # at once, long before the 60 s are over
