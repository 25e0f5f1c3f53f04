"""One range from one source: a transfer passes on exactly the bytes that were sent, or none."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.errors import SourceDishonest, SourceFailed, SourceLate
from mesh.tls import Tls, load_tls
from mesh.transfer import Connections, Location, Transfer
from tests.mesh.certificates import Authority

SIZE = 32 << 20


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    mine = Authority(tmp_path).sign("node")
    return load_tls(mine.cert, mine.key, mine.ca)


@pytest.fixture
def url(tls: Tls) -> Iterator[str]:
    """A server that answers one connection with SIZE times "x"."""

    def serve() -> None:
        raw, _ = listener.accept()
        # The client may reject the certificate, or disconnect early.
        with raw, contextlib.suppress(OSError), tls.server.wrap_socket(raw, server_side=True) as connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
            for _ in range(SIZE >> 16):
                connection.sendall(b"x" * (1 << 16))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/blob"
        thread.join(10)


def test_bytes_come_over_tls(url: str, tls: Tls) -> None:
    got: list[bytes] = []
    connections = Connections(proxies=False, tls=tls.client)
    Transfer("peer", Location(url), 0, SIZE, SIZE).run(connections, lambda view: got.append(bytes(view)))
    connections.close()
    assert b"".join(got) == b"x" * SIZE
    assert len(got) < SIZE // (32 << 10), "records are gathered, or each costs a write and a pause"


def test_what_is_broken_off_never_gives_on_what_was_on_the_wire(url: str, tls: Tls) -> None:
    transfer = Transfer("peer", Location(url), 0, SIZE, SIZE)
    wrong = bytearray()

    def sink(view: memoryview) -> None:
        wrong.extend(bytes(view).replace(b"x", b""))
        transfer.cancel()

    connections = Connections(proxies=False, tls=tls.client)
    with pytest.raises(SourceLate):
        transfer.run(connections, sink)
    connections.close()
    assert not wrong


@dataclass
class Asking:
    """A transfer of ten bytes in a thread of its own, and the server's end of its connection."""

    connection: socket.socket
    transfer: Transfer
    thread: threading.Thread
    has_begun: threading.Event
    errors: list[SourceFailed]


@contextlib.contextmanager
def asking(**how: Any) -> Iterator[Asking]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transfer = Transfer("peer", Location(f"http://127.0.0.1:{listener.getsockname()[1]}/"), 0, 10, 10)
        begun, errors = threading.Event(), list[SourceFailed]()

        def run() -> None:
            try:
                transfer.run(Connections(proxies=False, **how), lambda view: begun.set())
            except SourceFailed as error:
                errors.append(error)  # its traceback refers to the answer

        thread = threading.Thread(target=run)
        thread.start()
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            yield Asking(connection, transfer, thread, begun, errors)
        thread.join(10)


def test_who_is_broken_off_in_the_midst_of_silence_was_late_and_has_refused_nothing() -> None:
    with asking() as asked:
        asked.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx")
        assert asked.has_begun.wait(10)
        asked.thread.join(0.1)  # it is waiting for more bytes
        asked.transfer.cancel()
        asked.thread.join(10)
        assert [type(error) for error in asked.errors] == [SourceLate]


def test_an_answer_may_take_longer_to_begin_than_to_go_on() -> None:
    with asking(first_byte=20, stall=0.2) as asked:
        asked.thread.join(0.5)  # a fixed wait: nothing must arrive during it
        assert asked.thread.is_alive()
        asked.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nx")
        assert asked.has_begun.wait(10)
        asked.thread.join(10)
        assert [type(error) for error in asked.errors] == [SourceLate]


def test_who_does_not_begin_to_answer_in_time_is_late() -> None:
    with asking(first_byte=0.2, stall=60) as asked:
        asked.thread.join(10)
        assert [type(error) for error in asked.errors] == [SourceLate]


@pytest.mark.parametrize(
    ("status", "failure"), [(429, "busy"), (503, "busy"), (500, "refused"), (404, "missing"), (401, "refused")]
)
def test_what_a_source_answers_is_what_the_tracker_hears(status: int, failure: str) -> None:
    with asking() as asked:
        asked.connection.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)
        asked.thread.join(10)
        assert [error.failure for error in asked.errors] == [failure]


@pytest.mark.parametrize(("status", "seconds"), [(429, 20.0), (502, None), (503, None)])
def test_the_limit_that_the_hub_states_in_every_answer_is_a_pause_only_where_it_is_used_up(
    status: int, seconds: float | None
) -> None:
    with asking() as asked:
        said = b'HTTP/1.1 %d No\r\nRateLimit: "resolvers";r=2990;t=20\r\nContent-Length: 0\r\n\r\n' % status
        asked.connection.sendall(said)
        asked.thread.join(10)
        assert [error.retry_after for error in asked.errors] == [seconds]


class Storage(ThreadingHTTPServer):
    """Redirects requests for ten bytes as `leads` says, or serves them. Records each request's path and token."""

    def __init__(self, leads: dict[str, str]) -> None:
        self.leads = leads  # from a path to the URL that it redirects to
        self.asked: list[tuple[str, str | None]] = []
        self.connections = 0
        super().__init__(("127.0.0.1", 0), Answerer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Storage:
        threading.Thread(target=self.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Answerer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Storage

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        if (there := self.server.leads.get(self.path)) is not None:
            self.send_response(307)
            self.send_header("Location", there)
        else:
            self.send_response(206)
            self.send_header("Content-Range", "bytes 0-9/20")
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"x" * 10)

    def log_message(self, *_: object) -> None:
        pass


def bring(location: Location, connections: Connections) -> bytes:
    got = bytearray()
    Transfer("origin", location, 0, 10, 20).run(connections, got.extend)
    return bytes(got)


def test_an_origin_may_send_us_elsewhere_but_our_token_stays() -> None:
    connections = Connections(proxies=False, redirects=True)
    with Storage({}) as other, Storage({"/a": "/b?c=1", "/b?c=1": f"{other.url}/d"}) as first:
        location = Location(f"{first.url}/a", {"Authorization": "Bearer t", "User-Agent": "u"})
        assert [bring(location, connections) for _ in range(2)] == [b"x" * 10] * 2
        assert first.asked == [("/a", "Bearer t"), ("/b?c=1", "Bearer t")] * 2
        assert other.asked == [("/d", None)] * 2
        connections.close()  # otherwise the servers would wait for us
        assert (first.connections, other.connections) == (1, 1)


def test_the_connection_of_a_redirect_is_not_ours_any_more_when_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time the transfer is broken off, the connection may belong to another one."""
    connections = Connections(proxies=False, redirects=True)
    with Storage({}) as other, Storage({"/a": f"{other.url}/d"}) as first:
        transfer = Transfer("origin", Location(f"{first.url}/a"), 0, 10, 20)
        acquire, statuses = connections.acquire, list[int]()

        def acquire_or_cancel(scheme: str, netloc: str) -> Any:
            if netloc in other.url:
                somebodys = acquire(scheme, first.url.removeprefix("http://"))
                transfer.cancel()
                somebodys.http.request("GET", "/c")
                with somebodys.http.getresponse() as response:
                    statuses.append(response.status)
                somebodys.http.close()
            return acquire(scheme, netloc)

        monkeypatch.setattr(connections, "acquire", acquire_or_cancel)
        with pytest.raises(SourceLate):
            transfer.run(connections, lambda view: pytest.fail("bytes"))
        assert statuses == [206]
        assert first.connections == 1
        assert other.asked == []


def test_who_is_broken_off_just_after_it_connected_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connected(http.client.HTTPConnection):
        """Cancels the transfer as it learns of the socket: the last moment at which it cannot be woken yet."""

        def __getattribute__(self, name: str) -> Any:
            if name == "sock" and moments:
                moments.pop()
                transfer.cancel()
            return super().__getattribute__(name)

    moments: list[str] = []
    connections = Connections(proxies=False)
    acquire = connections.acquire

    def acquire_and_say(scheme: str, netloc: str) -> Any:
        connection = acquire(scheme, netloc)
        moments.append("connected")
        return connection

    monkeypatch.setattr("http.client.HTTPConnection", Connected)
    monkeypatch.setattr(connections, "acquire", acquire_and_say)
    with Storage({}) as origin:
        transfer = Transfer("origin", Location(f"{origin.url}/a"), 0, 10, 20)
        with pytest.raises(SourceLate, match="cancelled"):
            transfer.run(connections, lambda view: pytest.fail("bytes"))
    assert origin.asked == []


def test_each_request_is_counted_by_what_came_of_it(unused_tcp_port: int) -> None:
    heard: list[int] = []
    connections = Connections(proxies=False, redirects=True, asked=lambda status, seconds: heard.append(status))
    with Storage({"/a": "/b"}) as origin:
        for _ in range(2):
            bring(Location(f"{origin.url}/a"), connections)
        connections.close()
    with pytest.raises(SourceFailed):
        bring(Location(f"http://127.0.0.1:{unused_tcp_port}/"), connections)
    assert heard == [307, 206, 307, 206, 0]


@pytest.mark.parametrize("is_ours", [False, True])
def test_what_we_break_off_is_no_failure_of_the_source(is_ours: bool) -> None:
    heard: list[int] = []
    with asking(asked=lambda status, seconds: heard.append(status)) as asked:
        asked.connection.recv(1 << 16)
        if is_ours:
            asked.transfer.cancel()
        asked.connection.shutdown(socket.SHUT_RDWR)
        asked.thread.join(10)
    assert heard == ([] if is_ours else [0])


def test_not_without_end_and_not_to_what_is_no_web_address() -> None:
    for there, reason in (("/a", "circles"), ("file:///etc/passwd", "file:"), ("", "circles")):
        connections = Connections(proxies=False, redirects=True)
        with Storage({"/a": there}) as origin:
            with pytest.raises(SourceFailed, match=reason):
                bring(Location(f"{origin.url}/a"), connections)
            connections.close()


def test_a_peer_may_send_us_nowhere() -> None:
    connections = Connections(proxies=False)
    with Storage({}) as other, Storage({"/a": f"{other.url}/d"}) as peer:
        with pytest.raises(SourceFailed, match="307"):
            bring(Location(f"{peer.url}/a"), connections)
        assert other.asked == []
        connections.close()


def test_from_a_line_that_is_encrypted_nobody_leads_us_to_one_that_is_not(tls: Tls) -> None:
    def serve() -> None:
        raw, _ = listener.accept()
        with raw, contextlib.suppress(OSError), tls.server.wrap_socket(raw, server_side=True) as connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 302 Go\r\nLocation: %s/d\r\nContent-Length: 0\r\n\r\n" % other.url.encode())

    with Storage({}) as other, socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        connections = Connections(proxies=False, redirects=True, tls=tls.client)
        with pytest.raises(SourceFailed, match="http:"):
            bring(Location(f"https://127.0.0.1:{listener.getsockname()[1]}/a"), connections)
        assert other.asked == []
        connections.close()
        thread.join(10)


def test_a_source_without_our_certificate_is_not_listened_to(url: str, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other").sign("node")
    stranger = load_tls(other.cert, other.key, other.ca)
    transfer = Transfer("peer", Location(url), 0, SIZE, SIZE)
    with pytest.raises(SourceFailed, match="CERTIFICATE_VERIFY_FAILED"):
        transfer.run(Connections(proxies=False, tls=stranger.client), lambda view: pytest.fail("bytes"))


def test_a_connection_that_failed_is_closed_at_once_whatever_still_speaks_of_it() -> None:
    with asking() as asked:
        asked.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 11)
        asked.thread.join(10)
        with contextlib.suppress(ConnectionResetError):
            while asked.connection.recv(1 << 16):  # the request, then end of file
                pass
        assert [type(error) for error in asked.errors] == [SourceDishonest]


@pytest.mark.parametrize("by", ["acquired", "released"])
def test_idle_connections_to_peers_that_are_gone_are_closed_when_another_is_used(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, connections = 1000.0, Connections(proxies=False)
    monkeypatch.setattr("mesh.transfer.time", SimpleNamespace(monotonic=lambda: now))
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        gone, kept, third = (f"127.0.0.1:{peer.getsockname()[1]}" for peer in peers)
        used = {netloc: connections.acquire("http", netloc) for netloc in (gone, kept, third)}
        at_gone, at_kept = (stack.enter_context(peer.accept()[0]) for peer in peers[:2])
        connections.release(used[gone])
        now += 10.0
        connections.release(used[kept])
        now += 21.0
        if by == "released":
            connections.release(used[third])
        else:
            connections.acquire("http", third).http.close()
        at_gone.settimeout(10)
        assert at_gone.recv(1) == b""
        at_kept.setblocking(False)
        with pytest.raises(BlockingIOError):
            at_kept.recv(1)
        assert ("http", gone) not in connections._idle, "its name is forgotten, too"
        connections.close()
        used[third].http.close()


@pytest.mark.parametrize("does", ["hang", "close"])
def test_a_host_that_hangs_is_asked_once_and_one_that_closed_what_was_idle_is_asked_anew(does: str) -> None:
    heard: list[int] = []
    connections = Connections(proxies=False, first_byte=0.2, asked=lambda status, seconds: heard.append(status))
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        netloc = f"127.0.0.1:{host.getsockname()[1]}"
        idle = [connections.acquire("http", netloc) for _ in range(2)]
        ends = [stack.enter_context(host.accept()[0]) for _ in idle]
        for connection in idle:
            connections.release(connection)
        if does == "close":
            for end in ends:
                end.close()
        with pytest.raises(SourceLate):
            bring(Location(f"http://{netloc}/"), connections)
        if does == "close":
            ends = [stack.enter_context(host.accept()[0])]
        asked = []
        for end in ends:
            end.settimeout(10)
            asked.append(b"".join(iter(lambda end=end: end.recv(1 << 16), b"")))  # type: ignore[misc]
        assert [request[:3] for request in asked if request] == [b"GET"]
        assert len(heard) == 1, "counted for what it cost"
        host.setblocking(False)
        with pytest.raises(BlockingIOError):
            host.accept()
    connections.close()


@pytest.mark.parametrize("field", [b"Retry-After: \xb2", b"Retry-After: -1", b"RateLimit: t=" + b"9" * 400])
def test_a_pause_that_is_no_number_is_as_good_as_none(field: bytes) -> None:
    """A superscript two is a digit to Unicode, but not to float()."""
    with asking() as asked:
        asked.connection.sendall(b"HTTP/1.1 503 No\r\n%s\r\nContent-Length: 0\r\n\r\n" % field)
        asked.thread.join(10)
        assert [(error.failure, error.retry_after) for error in asked.errors] == [("busy", None)]
