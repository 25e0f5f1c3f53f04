"""A node behind an HTTP proxy that requires a password: everything from the Hub comes through it, bodies too."""

from __future__ import annotations

import base64
import http.client
import random
import select
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.http import ask
from tests.hub.process import HubProcess
from tests.mesh.certificates import Authority
from tests.node import NodeProcess

REPO = "acme/tiny"
BIG = random.Random(1).randbytes((1 << 20) + 123)
SIGNED = "Basic " + base64.b64encode("us/er:p@ßword".encode()).decode()


class Gate(ThreadingHTTPServer):
    """A proxy that lets clients with the password through, for tunnels and plain requests alike."""

    daemon_threads = True

    def __init__(self) -> None:
        self.passed: set[str] = set()  # host and port
        self.refused = 0
        super().__init__(("127.0.0.1", 0), Passing)
        self.host = f"127.0.0.1:{self.server_address[1]}"


class Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gate

    def is_let_in(self, netloc: str) -> bool:
        if self.headers["Proxy-Authorization"] == SIGNED:
            self.server.passed.add(netloc)
            return True
        self.server.refused += 1
        self.send_response(407)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_CONNECT(self) -> None:
        if not self.is_let_in(self.path):
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: there, there: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    if not (part := end.recv(1 << 16)):
                        self.close_connection = True
                        return
                    ends[end].sendall(part)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if not self.is_let_in(parts.netloc):
            return
        there = http.client.HTTPConnection(parts.netloc)
        headers = {name: value for name, value in self.headers.items() if name != "Proxy-Authorization"}
        there.request(self.command, self.path.split(parts.netloc, 1)[1], headers=headers)
        with there.getresponse() as answer:
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read())
        there.close()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as gate:
        thread = threading.Thread(target=gate.serve_forever, args=(0.01,))
        thread.start()
        yield gate
        gate.shutdown()
        thread.join()


def behind(folder: Path, gate: Gate, hub: HubProcess, signed: str, before: str = "http://") -> NodeProcess:
    """A node with that proxy in its environment. Lower-case variables take precedence over upper-case ones."""
    proxy = f"{before}{signed}@{gate.host}"
    environment = {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": ""}
    environment["SSL_CERT_FILE"] = str(folder / "tls" / "mesh-ca.pem")
    return NodeProcess(folder / "node", hub.url, environment=environment)


@pytest.mark.parametrize(("scheme", "before"), [("https", "http://"), ("https", ""), ("http", "http://"), ("http", "")])
def test_all_that_is_asked_of_the_hub_goes_through_the_proxy(
    tmp_path: Path, gate: Gate, scheme: str, before: str
) -> None:
    tls = Authority(tmp_path / "tls").sign("hub", address="127.0.0.1") if scheme == "https" else None
    with (
        HubProcess(tmp_path / "hub", tls=tls, cdn_tls=tls) as hub,
        behind(tmp_path, gate, hub, "us%2Fer:p%40%C3%9Fword", before) as node,
    ):
        hub.folder.commit(REPO, {"model.bin": BIG})
        assert ask(f"{node.url}/{REPO}/resolve/main/model.bin", "HEAD").status == 200
        assert ask(f"{node.url}/api/models/{REPO}").status == 200
        assert ask(f"{node.url}/docs/hub/index", X_Echo="1").status == 200
        body = ask(f"{node.url}/{REPO}/resolve/main/model.bin")
        assert (body.status, body.body) == (200, BIG)
        assert gate.passed == {urlsplit(url).netloc for url in (hub.url, hub.cdn_url)}
        assert gate.refused == 0
        assert all("proxy-authorization" not in heard for kind in hub.stats()["seen"].values() for heard in kind)


def test_nothing_goes_past_a_proxy_that_refuses_us_and_nobody_is_told_the_password(tmp_path: Path, gate: Gate) -> None:
    tls = Authority(tmp_path / "tls").sign("hub", address="127.0.0.1")
    with (
        HubProcess(tmp_path / "hub", tls=tls, cdn_tls=tls) as hub,
        behind(tmp_path, gate, hub, "us%2Fer:wr0ng") as node,
    ):
        hub.folder.commit(REPO, {"model.bin": BIG})
        for method, target in (
            ("HEAD", f"/{REPO}/resolve/main/model.bin"),
            ("GET", f"/api/models/{REPO}"),
            ("GET", "/docs/hub/index"),
        ):
            answer = ask(node.url + target, method)
            assert answer.status == 502
            assert "407" in (answer["X-Error-Message"] or "")
            assert "wr0ng" not in str(answer)
        assert hub.stats()["requests"] == {}
        assert "wr0ng" not in node.log()
        assert gate.refused >= 3
