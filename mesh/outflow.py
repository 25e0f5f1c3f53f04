"""Bytes of a blob on their way out, to a client or to a peer, without the event loop touching them.

The loop sends the header; a pool thread then sends the file straight to the socket. A thread leaves a socket that would
block after a short while, and the loop waits for it instead: slow readers cost no thread.

The file's pages go out as they are, by sendfile(2): against sending from a mapping that costs a fifth to a third less
CPU time (docs/benchmarks.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from collections.abc import Mapping as Fields
from typing import Protocol, TypeVar

from aiohttp import web

from mesh.limiter import Limiter
from mesh.shared import Stamp
from mesh.threads import NICE_OF_UPLOADS, bulk_pool
from mesh.whole import WholeResponse

_T = TypeVar("_T")

# In a request: when the head of its answer went out, by time.perf_counter(). For who measures how long that took.
FIRST_BYTE_AT = web.RequestKey("first_byte_at", float)
SMALL = 256 << 10  # sent by the loop itself: a thread would cost more than it saves
_WINDOW = 4 << 20  # bytes for one send
_TLS_WINDOW = 256 << 10  # bytes encrypted at once: a millisecond in which the loop does nothing else
_QUANTUM = 32 << 20  # bytes until a thread lets others have a turn; under a limit it is one portion of that
_LINGER_MS = 20  # a reader about as fast as we are is waited for in the thread
_BULK = 2  # TC_PRIO_BULK of linux/pkt_sched.h: see tc-prio(8)
_STALL_SECONDS = 300.0  # clients may pause a download; a dead one is dropped after this long


class Source(Protocol):
    """A file whose bytes become ready from somewhere on."""

    @property
    def fd(self) -> int: ...

    @property
    def stamp(self) -> Stamp | None:
        """Set when the file has an owner who may write to it."""

    def ready(self, position: int) -> int:
        """One past the last byte that may be sent to somebody who has all before `position`."""

    async def wait(self, position: int) -> None:
        """Until `ready(position) > position`. Raises when that will never be."""


class Held:
    """The simplest source: a range of a file that is there."""

    def __init__(self, fd: int, stop: int, stamp: Stamp | None = None) -> None:
        self.fd = fd
        self.stamp = stamp
        self._stop = stop

    def ready(self, position: int) -> int:
        return self._stop

    async def wait(self, position: int) -> None:
        return


class Outflow:
    """Sends bodies. `sent` is told of every few MiB as they go, from any thread.

    `threads` bounds how many bodies move at the same instant, not how many are being sent. `gives_way`: whatever else
    this machine sends goes first.
    """

    def __init__(
        self,
        *,
        threads: int = 8,
        limiter: Limiter | None = None,
        sent: Callable[[int], None] = lambda _: None,
        gives_way: bool = False,
    ) -> None:
        self._gives_way = gives_way
        self._pool = bulk_pool(threads, "outflow", NICE_OF_UPLOADS)
        self._limiter = limiter or Limiter(None)
        self._sent = sent

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def respond(
        self,
        request: web.BaseRequest,
        status: int,
        headers: Fields[str, str],
        source: Source,
        start: int,
        stop: int,
    ) -> web.StreamResponse:
        """Answer with the bytes from `start` up to `stop`; `headers` are complete but for Content-Length.

        When the source fails on the way, the connection is closed: the client sees a body cut short.
        Raises what the source raises.
        """
        if stop - start <= SMALL and source.ready(start) >= stop:
            body = _read_cached(source.fd, start, stop)
            if body is None:
                # Not in the loop's own threads: they may all wait for a disk that makes large files durable.
                body = await asyncio.get_running_loop().run_in_executor(self._pool, _read, source.fd, start, stop)
            if source.stamp is not None:
                source.stamp.check(source.fd)
            self._sent(len(body))
            return WholeResponse(status, headers, body)
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = stop - start
        transport = request.transport
        if transport is None or transport.is_closing():
            return response  # the client has gone; aiohttp notices when it ends the response
        try:
            await response.prepare(request)
            request[FIRST_BYTE_AT] = time.perf_counter()
            if self._gives_way:
                _give_way(transport)
            if transport.get_extra_info("sslcontext") is None:
                await self._send(transport, source, start, stop)
            else:  # past the transport the bytes would go out in the clear, in the midst of those that do not
                await self._write(response, source, start, stop)
        except ConnectionError:
            transport.close()  # the client has gone: nobody to tell
        except BaseException:
            transport.close()
            raise
        return response

    async def _send(self, transport: asyncio.Transport, source: Source, start: int, stop: int) -> None:
        await _flushed(transport)
        transport_socket = transport.get_extra_info("socket")
        loop = asyncio.get_running_loop()
        # A descriptor of our own: the transport may close its one while a thread still uses it.
        with socket.socket(fileno=os.dup(transport_socket.fileno())) as sock:
            position = start
            while position < stop:
                ready = min(stop, source.ready(position))
                if ready <= position:
                    await source.wait(position)
                    if transport.is_closing():
                        raise ConnectionResetError("the client has gone")
                    continue
                turn = loop.run_in_executor(self._pool, self._push, sock, source, position, ready)
                position, is_blocked = await _to_its_end(turn, sock)
                if is_blocked:
                    await _writable(sock)

    async def _write(self, response: web.StreamResponse, source: Source, start: int, stop: int) -> None:
        """The same by way of the transport: it encrypts, in the loop's thread, and says when it has had enough."""
        loop = asyncio.get_running_loop()
        position = start
        while position < stop:
            ready = min(stop, source.ready(position), position + _TLS_WINDOW)
            if ready <= position:
                await source.wait(position)
                continue
            data = await _to_its_end(loop.run_in_executor(self._pool, self._copy, source, position, ready))
            try:
                async with asyncio.timeout(_STALL_SECONDS):
                    await response.write(data)
            except TimeoutError:
                raise ConnectionResetError("the client took no byte for too long") from None
            position = ready
            self._sent(len(data))

    def _copy(self, source: Source, start: int, stop: int) -> bytes:
        self._limiter.take(stop - start)
        data = _read(source.fd, start, stop)
        if source.stamp is not None:
            source.stamp.check(source.fd)
        return data

    def _push(self, sock: socket.socket, source: Source, position: int, stop: int) -> tuple[int, bool]:
        """Send until `stop`, the end of our turn, or a socket that stays full: where we got to, and if it is full."""
        end = min(stop, position + (self._limiter.portion(_WINDOW) or _QUANTUM))
        began = position
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        _cork(sock, True)
        try:
            while position < end:
                try:
                    count = send_some(sock, source, position, min(end, position + _WINDOW))
                except (BlockingIOError, InterruptedError):
                    if not poll.poll(_LINGER_MS):
                        return position, True
                    continue
                position += count
                self._limiter.take(count)
        finally:
            _cork(sock, False)
            self._sent(position - began)
        return position, False


def send_some(sock: socket.socket, source: Source, position: int, end: int) -> int:
    """Send some of the bytes from `position` up to `end`; how many. Raises BlockingIOError for a full socket."""
    if source.stamp is not None:  # its owner may write to it while pages of it are on their way: those would be wrong
        copied = _read(source.fd, position, min(end, position + SMALL))
        source.stamp.check(source.fd)
        return sock.send(copied)
    count = os.sendfile(sock.fileno(), source.fd, position, end - position)
    if not count:
        raise OSError("the file is shorter than it was")
    return count


def _give_way(transport: asyncio.Transport) -> None:
    """Have the machine's own queue send all else before what this connection sends.

    On a slow line that is full, requests, reports and what acknowledges others' bytes would wait behind bodies, and the
    lines of those who wait for them would stand idle. Queues without priorities, as fq_codel, let small flows through.
    """
    if sys.platform == "linux" and not transport.is_closing():
        with contextlib.suppress(OSError):  # refused in a sandbox: it goes as all else does
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _BULK)


def _cork(sock: socket.socket, is_corked: bool) -> None:
    """Have the kernel send full segments only, or the last (TCP_CORK in tcp(7)): windows would end in short ones."""
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, is_corked)


def _read_cached(fd: int, start: int, stop: int) -> bytearray | bytes | None:
    """The bytes when they are in the page cache, so that the loop never waits for a disk."""
    if sys.platform != "linux":  # then a thread reads it
        return None
    buffer = bytearray(stop - start)
    try:
        count = os.preadv(fd, [buffer], start, os.RWF_NOWAIT)
    except OSError:  # not in the cache, or a file system that cannot say
        return None
    return buffer if count == len(buffer) else None


def _read(fd: int, start: int, stop: int) -> bytes:
    parts = []
    while start < stop:
        part = os.pread(fd, stop - start, start)
        if not part:
            raise OSError("the file is shorter than it was")
        parts.append(part)
        start += len(part)
    return b"".join(parts)


async def _flushed(transport: asyncio.Transport) -> None:
    """Until the transport has handed all of its own bytes to the socket."""
    async with asyncio.timeout(_STALL_SECONDS):
        pause = 0.0
        while transport.get_write_buffer_size():
            if transport.is_closing():
                raise ConnectionResetError("the client has gone")
            await asyncio.sleep(pause)  # most often one turn of the loop; longer after pipelined answers
            pause = min(0.05, pause + 0.001)


async def _to_its_end(turn: asyncio.Future[_T], sock: socket.socket | None = None) -> _T:
    """What a thread's turn gives. Who is cancelled waits all the same: the thread must not find its files closed."""
    try:
        return await asyncio.shield(turn)
    except asyncio.CancelledError:
        if sock is not None:
            with contextlib.suppress(OSError):  # not connected any more
                sock.shutdown(socket.SHUT_RDWR)  # there is nothing more to send, and no need to wait for its end
        while not turn.done():
            with contextlib.suppress(asyncio.CancelledError):  # again, as at the end of `asyncio.run`
                await asyncio.wait([turn])
        raise


async def _writable(sock: socket.socket) -> None:
    """Until the socket takes bytes again, or its other end went away."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(sock.fileno(), wake)
    try:
        async with asyncio.timeout(_STALL_SECONDS):
            await ready
    except TimeoutError:
        raise ConnectionResetError("the client took no byte for too long") from None
    finally:
        loop.remove_writer(sock.fileno())
