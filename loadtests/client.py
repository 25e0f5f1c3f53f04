"""A cheap client in a process of its own: many connections, bodies discarded in the kernel.

    echo '{"urls": ["http://127.0.0.1:8090/x"], "connections": 8, "requests": 8}' | python -m loadtests.client

Prints one line of JSON, a `Report`. Bodies are received with MSG_TRUNC (tcp(7)): counted but not copied, so that the
measurement is of the server and not of this client.
"""

from __future__ import annotations

import json
import random
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

_SCRATCH = memoryview(bytearray(4 << 20))
_HEAD_BYTES = 64 << 10
_SILENCE_SECONDS = 60.0


@dataclass
class Load:
    """What to request. Ends after `requests`, or after `seconds` if that is set. Sizes in bytes."""

    urls: list[str]  # all of one server; requested in turn
    connections: int = 1
    requests: int = 1
    seconds: float = 0.0
    method: str = "GET"
    range_size: int = 0  # if set, request random aligned ranges of this size from a file of `size` bytes
    size: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Report:
    """The result of a load, times in seconds. `first_byte` ends at the first byte of the body (or head, if none)."""

    seconds: float
    bytes: int
    requests: int
    errors: list[str]
    first_byte: float
    p50: float
    p99: float
    cpu: float

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.seconds

    @property
    def request_rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class _Connection:
    """One keep-alive connection that carries one request at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self.left = -1  # bytes of the body still to come; -1: in the head; -2: in a chunked body
        self.asked = 0.0
        self.first = 0.0
        self.status = 0
        self.open()

    def open(self) -> None:
        self.socket = socket.create_connection(self._address)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = b""

    def ask(self, request: bytes) -> None:
        self._head, self.left, self.first = b"", -1, 0.0
        self.asked = time.monotonic()
        self.socket.sendall(request)

    def receive(self, method: str) -> tuple[int, bool]:
        """Receive what has arrived. Return the number of body bytes, and whether the answer is complete."""
        if self.left > 0:
            return self._body()
        data = self.socket.recv(_HEAD_BYTES)
        if not data:
            raise ConnectionError("closed in the head" if self.left == -1 else "closed in a body")
        if self.left == -2:
            self._head = (self._head + data)[-8:]
            return len(data), self._head.endswith(b"0\r\n\r\n")
        self._head += data
        head, end, body = self._head.partition(b"\r\n\r\n")
        if not end:
            return 0, False
        self.status = int(head[9:12])
        fields = {name.lower(): value.strip() for name, _, value in (x.partition(b":") for x in head.split(b"\r\n"))}
        if body or method == "HEAD":
            self.first = time.monotonic()
        if method == "HEAD" or self.status in (204, 304):
            return 0, True
        if b"chunked" in fields.get(b"transfer-encoding", b""):
            self.left, self._head = -2, body[-8:]
            return len(body), body.endswith(b"0\r\n\r\n")
        self.left = int(fields[b"content-length"]) - len(body)
        return len(body), self.left == 0

    def _body(self) -> tuple[int, bool]:
        came = 0
        while self.left > 0:
            try:
                count = self.socket.recv_into(_SCRATCH, min(self.left, len(_SCRATCH)), socket.MSG_TRUNC)
            except BlockingIOError:
                break
            if not count:
                raise ConnectionError(f"closed, {self.left} bytes before the end")
            self.first = self.first or time.monotonic()
            self.left -= count
            came += count
        return came, self.left == 0


def drive(load: Load) -> Report:
    """Run a load in this process."""
    parts = [urlsplit(url) for url in load.urls]
    address = (parts[0].hostname or "", parts[0].port or 80)
    extra = "".join(f"{name}: {value}\r\n" for name, value in load.headers.items())
    heads = [
        f"{load.method} {part.path}{'?' + part.query if part.query else ''} HTTP/1.1\r\nHost: {part.netloc}\r\n{extra}"
        for part in parts
    ]
    source = random.Random(7)

    def request() -> bytes:
        head = heads[asked % len(heads)]
        if load.range_size:
            start = source.randrange(load.size // load.range_size) * load.range_size
            head += f"Range: bytes={start}-{start + load.range_size - 1}\r\n"
        return (head + "\r\n").encode()

    before = resource.getrusage(resource.RUSAGE_SELF)
    poll = select.epoll()
    connections = [_Connection(address) for _ in range(load.connections)]
    by_file = {connection.socket.fileno(): connection for connection in connections}
    asked = done = size = 0
    firsts, times, errors = [], [], Counter[str]()
    began = time.monotonic()
    end = began + load.seconds if load.seconds else float("inf")
    for connection in connections:
        poll.register(connection.socket.fileno(), select.EPOLLIN)
        connection.ask(request())
        asked += 1
    busy, heard = len(connections), began
    while busy:
        events = poll.poll(_SILENCE_SECONDS)
        now = time.monotonic()
        if not events:
            errors["silence"] += busy
            break
        heard = now
        for file, _ in events:
            connection = by_file[file]
            try:
                count, complete = connection.receive(load.method)
            except BlockingIOError:
                continue
            except (OSError, ValueError, KeyError) as error:
                errors[f"{type(error).__name__}: {error}"] += 1
                poll.unregister(file)
                busy -= 1
                continue
            size += count
            if not complete:
                continue
            heard = time.monotonic()
            done += 1
            times.append(heard - connection.asked)
            firsts.append((connection.first or heard) - connection.asked)
            if connection.status >= 400:
                errors[f"HTTP {connection.status}"] += 1
            if heard < end and (load.seconds or asked < load.requests):
                connection.ask(request())
                asked += 1
            else:
                poll.unregister(file)
                busy -= 1
    for connection in connections:
        connection.socket.close()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Report(
        heard - began,
        size,
        done,
        [f"{count} times {what}" for what, count in errors.items()],
        statistics.median(firsts) if firsts else 0.0,
        statistics.median(times) if times else 0.0,
        sorted(times)[int(len(times) * 0.99)] if times else 0.0,
        used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
    )


def run(load: Load, prefix: Sequence[str] = ()) -> Report:
    """Run a load in a process of its own. `prefix` is put before the command."""
    command = [*prefix, sys.executable, "-m", "loadtests.client"]
    said = subprocess.run(command, input=json.dumps(asdict(load)).encode(), check=True, stdout=subprocess.PIPE)
    return Report(**json.loads(said.stdout))


if __name__ == "__main__":
    print(json.dumps(asdict(drive(Load(**json.load(sys.stdin))))))
