"""Sending the bytes of a blob to a client or a peer, without the event loop touching them.

The loop sends the header; a pool thread then sends the file straight to the socket. If the socket stays full for a
short while, the thread leaves it and the loop waits for it instead, so slow readers occupy no thread.

The thread uses sendfile(2), which costs a fifth to a third less CPU time than sending from a mapping
(docs/benchmarks.md).
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

from mesh.descriptors import duplicate
from mesh.limiter import Limiter
from mesh.shared import Stamp
from mesh.threads import NICE_OF_UPLOADS, Pool, to_its_end
from mesh.whole import WholeResponse

_T = TypeVar("_T")

# Key of a request for the time.perf_counter() at which the head of its answer went out, to measure time to first byte.
FIRST_BYTE_AT = web.RequestKey("first_byte_at", float)
SMALL_BODY = 256 << 10  # bytes of a body up to which the loop sends it itself: a thread would cost more than it saves
_WINDOW = 4 << 20  # bytes per send
_TLS_WINDOW = 256 << 10  # bytes encrypted at once: this blocks the loop for about a millisecond
_QUANTUM = 32 << 20  # bytes until a thread turns to a body that waits for one; under a rate limit, a portion of that
_LINGER_MS = 20  # for which a thread waits on a full socket: a reader about as fast as the sender frees it in this time
_BULK = 2  # TC_PRIO_BULK of linux/pkt_sched.h: see tc-prio(8)
_STALL_SECONDS = 300.0  # clients may pause a download; a dead client is dropped after this long


class Source(Protocol):
    """A file whose bytes may become ready only while it is being sent."""

    @property
    def fd(self) -> int: ...

    @property
    def stamp(self) -> Stamp | None:
        """Set when another program may write to the file."""

    def ready(self, position: int) -> int:
        """One past the last byte that may be sent to a reader that has all bytes before `position`."""

    async def wait(self, position: int) -> None:
        """Wait until `ready(position) > position`. Raises MeshError if that can never be."""


class Held:
    """The simplest source: a file whose bytes up to `stop` are all there."""

    def __init__(self, fd: int, stop: int, stamp: Stamp | None = None) -> None:
        self.fd = fd
        self.stamp = stamp
        self._stop = stop

    def ready(self, position: int) -> int:
        return self._stop

    async def wait(self, position: int) -> None:
        return


class Outflow:
    """Sends bodies. `sent` is called with the number of bytes after every few MiB, from any thread.

    `threads` bounds how many bodies move at the same instant, not how many are being sent. `gives_way`: all else that
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
        self._threads = threads
        self._turns = 0  # of threads: under way, or waiting for one
        self._pool = Pool(threads, "outflow", NICE_OF_UPLOADS)
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
        """Answer with the bytes from `start` up to `stop`. `headers` lack only Content-Length.

        If the source fails midway, the connection is closed, so that the client sees a truncated body. Raises what the
        source raises, OSError when the file cannot be read, and TooManyFiles before anything has been sent.
        """
        is_limited = self._limiter.portion(SMALL_BODY) is not None  # then a thread waits for its turn, small or not
        if stop - start <= SMALL_BODY and not is_limited and source.ready(start) >= stop:
            body = _read_cached(source.fd, start, stop)
            if body is None:
                # Not in the loop's default executor: its threads may all be deleting large files.
                body = await self._turn(None, _read, source.fd, start, stop)
            if source.stamp is not None:
                source.stamp.check(source.fd)
            self._sent(len(body))
            return WholeResponse(status, headers, body)
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = stop - start
        transport = request.transport
        if transport is None or transport.is_closing():
            return response  # the client has gone; aiohttp notices when it ends the response
        # A duplicate: the transport may close its own descriptor while a thread still uses this one. Made before the
        # head goes out: without one, the client can still be told to come again. With TLS only the transport encrypts.
        is_plain = transport.get_extra_info("sslcontext") is None
        sock = socket.socket(fileno=duplicate(transport.get_extra_info("socket").fileno())) if is_plain else None
        try:
            await response.prepare(request)
            request[FIRST_BYTE_AT] = time.perf_counter()
            if self._gives_way:
                _give_way(transport)
            if sock is not None:
                await self._send(transport, sock, source, start, stop)
            else:
                await self._write(response, source, start, stop)
        except ConnectionError:
            transport.close()  # the client has gone: there is nobody to report it to
        except BaseException:
            transport.close()
            raise
        finally:
            if sock is not None:
                sock.close()
        return response

    async def _send(
        self, transport: asyncio.Transport, sock: socket.socket, source: Source, start: int, stop: int
    ) -> None:
        await _flushed(transport)
        position = start
        while position < stop:
            ready = min(stop, source.ready(position))
            if ready <= position:
                await source.wait(position)
                if transport.is_closing():
                    raise ConnectionResetError("the client has gone")
                continue
            position, is_blocked = await self._turn(sock, self._push, sock, source, position, ready)
            if is_blocked:
                await _writable(sock)

    async def _write(self, response: web.StreamResponse, source: Source, start: int, stop: int) -> None:
        """Send through the transport, which encrypts in the loop's thread and says when its buffer is full."""
        position = start
        while position < stop:
            ready = min(stop, source.ready(position), position + _TLS_WINDOW)
            if ready <= position:
                await source.wait(position)
                continue
            data = await self._turn(None, self._copy, source, position, ready)
            try:
                async with asyncio.timeout(_STALL_SECONDS):
                    await response.write(data)
            except TimeoutError:
                raise ConnectionResetError("the client took no byte for too long") from None
            position = ready
            self._sent(len(data))

    async def _turn(self, sock: socket.socket | None, work: Callable[..., _T], *args: object) -> _T:
        """Have a thread do `work`, which may use `sock`, and return what that returns."""

        def hurry() -> None:
            if sock is not None:
                with contextlib.suppress(OSError):  # not connected any more
                    sock.shutdown(socket.SHUT_RDWR)  # nothing more is to be sent: end the thread's turn at once

        self._turns += 1
        try:
            return await to_its_end(asyncio.get_running_loop().run_in_executor(self._pool, work, *args), hurry)
        finally:
            self._turns -= 1

    def _copy(self, source: Source, start: int, stop: int) -> bytes:
        self._limiter.take(stop - start)
        data = _read(source.fd, start, stop)
        if source.stamp is not None:
            source.stamp.check(source.fd)
        return data

    def _push(self, sock: socket.socket, source: Source, position: int, stop: int) -> tuple[int, bool]:
        """Send until `stop`, the end of this turn, or a socket that stays full.

        Returns the position reached, and whether the socket is full.
        """
        portion = self._limiter.portion(_WINDOW)
        end = min(stop, position + (portion or _QUANTUM))
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
                if position >= end < stop and not portion and self._turns <= self._threads:
                    # No other body waits for a thread: giving this one back to the loop would cost time for nothing.
                    self._sent(position - began)
                    began, end = position, min(stop, position + _QUANTUM)
        finally:
            _cork(sock, False)
            self._sent(position - began)
        return position, False


def send_some(sock: socket.socket, source: Source, position: int, end: int) -> int:
    """Send some of the bytes from `position` up to `end` and return how many.

    Raises BlockingIOError for a full socket, OSError or StoreUnusable when the file has changed.
    """
    if source.stamp is not None:  # another program may write to the file while its pages are in flight: send a copy
        copied = _read(source.fd, position, min(end, position + SMALL_BODY))
        source.stamp.check(source.fd)
        return sock.send(copied)
    count = os.sendfile(sock.fileno(), source.fd, position, end - position)
    if not count:
        raise OSError("the file is shorter than it was")
    return count


def _give_way(transport: asyncio.Transport) -> None:
    """Have the kernel's queue send all other traffic before this connection's.

    On a slow line that is full, requests, reports and acknowledgements would wait behind bodies, and the lines of the
    nodes that wait for them would stand idle. Queues without priorities, such as fq_codel, let small flows through.
    """
    if sys.platform == "linux" and not transport.is_closing():
        with contextlib.suppress(OSError):  # refused in a sandbox: the connection keeps its normal priority
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _BULK)


def _cork(sock: socket.socket, is_corked: bool) -> None:
    """Turn TCP_CORK (tcp(7)) on or off. While it is on, the kernel sends full segments only, also at a window's end."""
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, is_corked)


def _read_cached(fd: int, start: int, stop: int) -> bytearray | bytes | None:
    """Read the bytes if they are in the page cache, else return None: the loop must never wait for a disk."""
    if sys.platform != "linux":  # a thread reads them
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
    """Wait until the transport has handed its buffer to the socket. Raises ConnectionResetError or TimeoutError."""
    async with asyncio.timeout(_STALL_SECONDS):
        pause = 0.0
        while transport.get_write_buffer_size():
            if transport.is_closing():
                raise ConnectionResetError("the client has gone")
            await asyncio.sleep(pause)  # usually one turn of the loop; longer after pipelined answers
            pause = min(0.05, pause + 0.001)


async def _writable(sock: socket.socket) -> None:
    """Wait until the socket takes bytes again or its other end has gone. Raises ConnectionResetError after a stall."""
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
