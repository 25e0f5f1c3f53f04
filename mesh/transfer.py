"""Fetching a range of a blob over HTTP, in a worker thread, with as few copies as possible.

The event loop never sees these bytes: a thread receives into one buffer, over and over, and hands each part to a
callback that writes and hashes it. Both the origin's storage and other nodes are read this way.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

from mesh.errors import LocationRefused, NotHere, RangeIgnored, SourceBusy, SourceDishonest, SourceFailed, SourceLate
from mesh.proxies import Proxy, proxy_of
from mesh.stated import HEADER

BUFFER_SIZE = 512 << 10
_GATHERED = 256 << 10  # bytes to gather for one call of the sink, which costs as much for a few as for many
_GATHER_SECONDS = 0.005  # longest wait for them
_CLOSED = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)  # the other side closed the connection
_MAX_INTERIM = 8  # status lines read for one answer, interim ones (1xx) included
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_HOPS = 5
_SHORT = 64 << 10  # bytes of a redirect's body up to which it is read, so that the connection can be kept
_KEPT_PER_HOST = 32
_IDLE_SECONDS = 30.0  # shorter than the 60 s after which servers usually close idle connections
_SWEEP_SECONDS = 5.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")
_SECONDS = re.compile(r"[0-9]{1,9}\Z")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a blob's bytes are: an absolute URL, and the headers to send with each request.

    `expires_at` is in seconds since the epoch; infinity if the location never expires.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a token
    expires_at: float = float("inf")


class _Response(http.client.HTTPResponse):
    """A response with bounded interim answers: the standard library reads any number of "100 Continue"."""

    _interim = 0

    def _read_status(self) -> tuple[str, int, str]:
        self._interim += 1
        if self._interim > _MAX_INTERIM:
            raise http.client.HTTPException(f"more than {_MAX_INTERIM} interim answers")
        status: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
        return status


@dataclass(slots=True)
class _Connection:
    http: http.client.HTTPConnection
    to: tuple[str, str]  # scheme and host
    used_at: float = 0.0
    is_fresh: bool = True


class Connections:
    """Kept-alive HTTP connections for worker threads, TLS verified, the environment's proxies honoured.

    Times are in seconds: `connect` for opening a connection, `first_byte` until an answer begins (None: as `stall`),
    `stall` without a byte after that. `redirects`: whether redirects are followed, which not every source is trusted
    with. `asked` is called for each request, in the thread that waited for it, with the HTTP status (0: no answer) and
    the time until the answer came; not for a request cancelled before that.
    """

    def __init__(
        self,
        *,
        connect: float = 5.0,
        first_byte: float | None = None,
        stall: float = 8.0,
        tls: ssl.SSLContext | None = None,
        proxies: bool = True,
        redirects: bool = False,
        asked: Callable[[int, float], None] = lambda status, seconds: None,
    ) -> None:
        self.redirects = redirects
        self.asked = asked
        self.first_byte = stall if first_byte is None else first_byte
        self.stall = stall
        self._connect = connect
        self._tls = tls
        self._proxies = proxies
        self._idle: dict[tuple[str, str], list[_Connection]] = {}  # in each list, the longest idle comes first
        self._sweep_at = 0.0
        self._lock = threading.Lock()
        self._is_closed = False

    def acquire(self, scheme: str, netloc: str) -> _Connection:
        """Return an open connection, kept or new. Raises OSError when none can be opened."""
        now = time.monotonic()
        oldest = now - _IDLE_SECONDS
        with self._lock:
            self._sweep(now)
            kept = self._idle.get((scheme, netloc))
            while kept:
                connection = kept.pop()
                if connection.used_at > oldest:
                    return connection
                connection.http.close()
        return self._open(scheme, netloc)

    def release(self, connection: _Connection) -> None:
        """Keep a connection whose last answer was read to its end."""
        connection.used_at = time.monotonic()
        connection.is_fresh = False
        with self._lock:
            self._sweep(connection.used_at)
            kept = self._idle.setdefault(connection.to, [])
            if len(kept) < _KEPT_PER_HOST and not self._is_closed:
                kept.append(connection)
                return
        connection.http.close()

    def drop(self, to: tuple[str, str]) -> None:
        """Close the idle connections to a host that hangs: each of them would have to time out in turn."""
        with self._lock:
            for connection in self._idle.pop(to, []):
                connection.http.close()

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are released."""
        with self._lock:
            self._is_closed = True
            for kept in self._idle.values():
                for connection in kept:
                    connection.http.close()
            self._idle.clear()

    def _sweep(self, now: float) -> None:
        """Close connections that have been idle for too long, such as those to peers that left or moved."""
        if now < self._sweep_at:
            return
        self._sweep_at = now + _SWEEP_SECONDS
        for key, kept in list(self._idle.items()):
            while kept and kept[0].used_at <= now - _IDLE_SECONDS:
                kept.pop(0).http.close()
            if not kept:
                del self._idle[key]

    def _open(self, scheme: str, netloc: str) -> _Connection:
        host, port = _split(netloc, scheme)
        proxy = self._proxy(scheme, host)
        connection: http.client.HTTPConnection
        if scheme == "https":
            if self._tls is None:
                self._tls = ssl.create_default_context()
            if proxy:
                there = (proxy.host, proxy.port)
                connection = http.client.HTTPSConnection(*there, timeout=self._connect, context=self._tls)
                connection.set_tunnel(host, port, proxy.headers)
            else:
                connection = http.client.HTTPSConnection(host, port, timeout=self._connect, context=self._tls)
        else:
            there = (proxy.host, proxy.port) if proxy else (host, port)
            connection = http.client.HTTPConnection(*there, timeout=self._connect)
        connection.response_class = _Response
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _Connection(connection, (scheme, netloc))

    def _proxy(self, scheme: str, host: str) -> Proxy | None:
        return proxy_of(scheme, host) if self._proxies else None

    def target(self, scheme: str, netloc: str, path: str) -> tuple[str, Mapping[str, str]]:
        """The request target (RFC 9112, section 3.2), in absolute form for a proxy, and the headers for that proxy."""
        proxy = self._proxy(scheme, _split(netloc, scheme)[0]) if scheme == "http" else None
        return (f"http://{netloc}{path}", proxy.headers) if proxy else (path, {})


def _split(netloc: str, scheme: str) -> tuple[str, int]:
    parts = urlsplit(f"//{netloc}")
    return parts.hostname or "", parts.port or (443 if scheme == "https" else 80)


@dataclass(slots=True)
class Transfer:
    """One range of one blob from one source. `run` blocks; `cancel` may be called from any other thread."""

    source: str
    location: Location
    start: int
    stop: int
    size: int  # of the whole blob; the source must agree with it
    stated: str = ""  # the digests that the source states with the bytes (`mesh.stated`), once they come
    _socket: socket.socket | None = None  # of the connection in use
    _is_cancelled: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # guards both

    def cancel(self) -> None:
        with self._lock:  # or the connection could go to another transfer just before it is shut down
            self._is_cancelled = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # closed already
                    # Wakes the thread that is blocked in it. Not `SSLSocket.shutdown`, which removes the TLS layer
                    # first: the thread would then read ciphertext, and take it for the blob's bytes.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def run(self, connections: Connections, sink: Callable[[memoryview], None]) -> None:
        """Receive the whole range in order, passing each part to `sink` as it arrives.

        The view is valid only during the call of `sink`. What `sink` raises propagates, except OSError and ValueError.

        Raises LocationRefused, RangeIgnored, SourceDishonest or SourceFailed; `sink` may have had a part by then.
        """
        try:
            connection, response = self._answer(connections)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed(error) from error
        try:
            with response:  # it holds the socket too, and alone if the answer is the last one of the connection
                self._check(response)
                self.stated = response.getheader(HEADER, "")
                self._receive(response, sink)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.http.close()
            raise self._failed(error) from error
        except BaseException:
            connection.http.close()
            raise
        self._let_go(connections, connection, is_read=not response.will_close)

    def _answer(self, connections: Connections) -> tuple[_Connection, http.client.HTTPResponse]:
        """Send the request, following redirects if allowed, and return the final answer and its connection."""
        url, headers = self.location.url, self.location.headers
        for _ in range(_MAX_HOPS):
            parts = urlsplit(url)
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection, response = self._ask(connections, parts.scheme, parts.netloc, path, headers)
            if response.status not in _REDIRECTS or not connections.redirects:
                return connection, response
            self._pass_by(connections, connection, response)
            url = urljoin(url, response.getheader("Location", ""))
            there = urlsplit(url)
            if there.scheme != "https" and (there.scheme, parts.scheme) != ("http", "http"):
                raise SourceFailed(self.source, f"sends us to {there.scheme}:, where nobody vouches for the bytes")
            if (there.scheme, there.netloc) != (parts.scheme, parts.netloc):  # a token goes to no other host
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        raise SourceFailed(self.source, "sends us in circles")

    def _pass_by(self, connections: Connections, connection: _Connection, response: http.client.HTTPResponse) -> None:
        """Keep the connection of a redirect if its body is short: the next range starts there again."""
        with response:
            is_short = response.length is not None and response.length <= _SHORT and not response.will_close
            if is_short:
                response.read()
        self._let_go(connections, connection, is_read=is_short)

    def _let_go(self, connections: Connections, connection: _Connection, *, is_read: bool) -> None:
        """Release a connection whose answer was read to its end, or close it; this transfer no longer uses it."""
        with self._lock:
            self._socket = None
        if is_read and not self._is_cancelled:
            connections.release(connection)
        else:
            connection.http.close()

    def _ask(
        self, connections: Connections, scheme: str, netloc: str, path: str, headers: Mapping[str, str]
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        began, status = time.monotonic(), 0
        try:
            connection, response = self._request(connections, scheme, netloc, path, headers)
            status = response.status
            return connection, response
        finally:
            if status or not self._is_cancelled:
                connections.asked(status, time.monotonic() - began)

    def _request(
        self, connections: Connections, scheme: str, netloc: str, path: str, headers: Mapping[str, str]
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        target, more = connections.target(scheme, netloc, path)
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={self.start}-{self.stop - 1}", **headers, **more}
        while True:
            connection = connections.acquire(scheme, netloc)
            sock = connection.http.sock
            with self._lock:
                self._socket = sock
            if self._is_cancelled:  # checked only now: from here on, `cancel` finds the socket
                connection.http.close()
                raise SourceLate(self.source, "cancelled")
            try:
                sock.settimeout(connections.first_byte)
                connection.http.request("GET", target, headers=headers)
                response = connection.http.getresponse()
                sock.settimeout(connections.stall)
                return connection, response
            except (OSError, http.client.HTTPException) as error:
                connection.http.close()
                if isinstance(error, TimeoutError):
                    connections.drop(connection.to)
                # It is no failure if the other side has just closed a kept connection: try another one.
                if not isinstance(error, _CLOSED) or connection.is_fresh or self._is_cancelled:
                    raise

    def _check(self, response: http.client.HTTPResponse) -> None:
        status = response.status
        if status == 200:
            if self.start or self.stop != self.size:
                raise RangeIgnored(self.source, "answered a range with the whole blob")
            if response.length is not None and response.length != self.size:
                raise SourceDishonest(self.source, f"has {response.length} bytes instead of {self.size}")
        elif status == 206:
            match = _CONTENT_RANGE.match(sent := response.getheader("Content-Range", ""))
            if match is None or (int(match[1]), int(match[2]) + 1) != (self.start, self.stop):
                raise SourceDishonest(self.source, f"sent {sent!r} for {self.start}-{self.stop - 1}")
            if match[3] not in ("*", str(self.size)):
                raise SourceDishonest(self.source, f"has {match[3]} bytes instead of {self.size}")
            if response.length not in (None, self.stop - self.start):
                raise SourceDishonest(self.source, f"announced {response.length} bytes for a range of another length")
        elif status in (401, 403, 404, 410):
            raise (NotHere if status in (404, 410) else LocationRefused)(self.source, f"HTTP {status}")
        elif status in (429, 503):
            raise SourceBusy(self.source, f"HTTP {status}", _retry_after(response))
        else:
            raise SourceFailed(self.source, f"HTTP {status}", _retry_after(response))
        if response.getheader("Content-Encoding", "identity") != "identity":
            raise SourceDishonest(self.source, "compressed the bytes although asked not to")

    def _receive(self, response: http.client.HTTPResponse, sink: Callable[[memoryview], None]) -> None:
        remaining = self.stop - self.start
        buffer = memoryview(bytearray(min(BUFFER_SIZE, remaining)))
        # `readinto` waits until the buffer is full, `readinto1` for one receive only: on a slow line readers should
        # see bytes as they arrive. It receives straight into this buffer, bypassing that of the file object.
        receive = response.readinto if response.chunked else response.fp.readinto1
        has_more = _backlog(self._socket)
        asked_at = time.monotonic()
        while remaining:
            if self._is_cancelled:  # closing with bytes unread tells the other side at once that the rest is not wanted
                raise SourceLate(self.source, "cancelled")
            count = received = receive(buffer[:remaining])
            while received and count < min(_GATHERED, remaining) and has_more():
                received = receive(buffer[count:remaining])
                count += received
            if not count:
                if self._is_cancelled:
                    raise SourceLate(self.source, "cancelled")
                raise SourceFailed(self.source, f"ended {remaining} bytes early")
            remaining -= count
            if response.length is not None and not response.chunked:
                response.length -= count
            sink(buffer[:count])
            now = time.monotonic()
            if 0 < count < min(_GATHERED, remaining):
                # Until enough has come at the recent pace: a sender with room in its window goes on meanwhile.
                time.sleep(min(_GATHER_SECONDS, (now - asked_at) * (_GATHERED / count - 1)))
            asked_at = now
        if response.read(1):
            raise SourceDishonest(self.source, "sent more than it was asked for")

    def _failed(self, error: Exception) -> SourceFailed:
        if self._is_cancelled:
            return SourceLate(self.source, "cancelled")
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        # The answer is not HTTP. An answer cut short is no proof of that: a connection may end anywhere.
        if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError | http.client.IncompleteRead):
            return SourceDishonest(self.source, f"answered nonsense: {reason}")
        return (SourceLate if isinstance(error, TimeoutError) else SourceFailed)(self.source, reason)


def _backlog(sock: socket.socket | None) -> Callable[[], bool]:
    """Return a function that tells whether there is more to receive right now than one receive has brought.

    With TLS one receive brings one record, of 16 KiB at most (RFC 8446, section 5.1); without, all that is there.
    """
    if not isinstance(sock, ssl.SSLSocket):
        return lambda: False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return lambda: sock.pending() > 0 or bool(poll.poll(0))


def _retry_after(response: http.client.HTTPResponse) -> float | None:
    """Seconds before the source wants to be asked again: `Retry-After`, or the `t` of a `RateLimit` that is used up.

    The origin sends `RateLimit` with every answer: unless the status is 429, it says nothing about this request.
    """
    text = response.getheader("Retry-After", "")
    if _SECONDS.match(text):  # untrusted: not all that Unicode calls a digit is a number
        return float(text)
    limit = response.getheader("RateLimit", "") if response.status == 429 else ""
    match = re.search(r"\bt=([0-9]{1,9})\b", limit)
    return float(match[1]) if match else None
