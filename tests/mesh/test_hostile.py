"""One malicious peer, as a source of pieces and as a tracker, with and without the key of the mesh.

Whatever it does, the reader gets the right bytes in time, and memory stays bounded. A peer caught lying is named.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web

from mesh.content import MAX_PIECE, Digest, PieceSet
from mesh.errors import BlobCorrupt
from mesh.exchange import Envelope
from mesh.mesh import Announcement
from mesh.messages import ORIGIN, Plan, Report, Task
from tests.mesh.nodes import Node, mesh_node
from tests.mesh.origin import Origin
from tests.mesh.test_mesh import KEY, MIB, content, introduce, known

CLIENT_SECONDS = 10.0  # without a byte, after which clients give up
MOST_MEMORY = 256 << 10  # KiB that this process may grow by
SIZE = 6 * MIB

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


# --- what it does


def raw(*parts: bytes, then: str = "close", pause: float = 0.0) -> Handler:
    """Send these bytes, then close, keep silent, or repeat the last of them without end."""

    async def handler(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        for part in parts:
            transport.write(part)
        while then != "close" and not transport.is_closing():
            if then == "repeat" and transport.get_write_buffer_size() < 1 << 20:
                transport.write(parts[-1])
            await asyncio.sleep(max(pause, 0.001))
        transport.close()
        return web.Response()

    return handler


def piece(headers: str, body: bytes, then: str = "close", pause: float = 0.0) -> Handler:
    """Send a piece with these headers, in which {start}, {last}, {length} and {size} stand for the requested range."""

    async def handler(request: web.Request) -> web.StreamResponse:
        start, last = map(int, request.headers["Range"].removeprefix("bytes=").split("-"))
        filled = headers.format(start=start, last=last, length=last + 1 - start, size=SIZE)
        head = "HTTP/1.1 206 Partial Content\r\n" + filled.replace("\n", "\r\n") + "\r\n"
        return await raw(head.encode(), body or bytes(last + 1 - start), then=then, pause=pause)(request)

    return handler


CHUNK = b"8000\r\n" + bytes(0x8000) + b"\r\n"
RIGHT = "Content-Range: bytes {start}-{last}/{size}\nContent-Length: {length}\n"
SILENT = raw(then="silent", pause=0.05)

# As a source: what it does, and whether that proves malice (otherwise it may just be slow, or gone).
SOURCES: dict[str, tuple[Handler, bool]] = {
    "wrong bytes": (piece(RIGHT, b""), True),
    "silence": (SILENT, False),
    "a head and silence": (piece(RIGHT, b"x", "silence", 0.05), False),
    "a byte a second": (piece(RIGHT, b"x", "repeat", 1.0), False),
    "cut short": (piece(RIGHT, b"x" * 1000), False),
    "a body that never ends": (
        piece("Content-Range: bytes {start}-{last}/{size}\n", b"x" * 65536, "repeat"),
        True,
    ),
    "chunks that never end": (
        piece(
            "Content-Range: bytes {start}-{last}/{size}\nTransfer-Encoding: chunked\n",
            CHUNK,
            "repeat",
        ),
        True,
    ),
    "a longer body": (piece("Content-Range: bytes {start}-{last}/{size}\nContent-Length: 99999999999\n", b"x"), True),
    "another range": (piece("Content-Range: bytes 0-9/{size}\nContent-Length: 10\n", b"0123456789"), True),
    "another size": (piece("Content-Range: bytes {start}-{last}/77\nContent-Length: {length}\n", b""), True),
    "compressed": (piece(RIGHT + "Content-Encoding: gzip\n", b""), True),
    "no HTTP": (raw(b"\x00\xff" * 1000), True),
    "headers that never end": (raw(b"HTTP/1.1 206 OK\r\n", b"X: y\r\n", then="repeat"), True),
    "a header line that never ends": (raw(b"HTTP/1.1 206 OK\r\nX: ", b"y" * 65536, then="repeat"), True),
    "go on, go on": (raw(b"HTTP/1.1 100 Continue\r\n\r\n", then="repeat"), True),
    "come back in a year": (raw(b"HTTP/1.1 503 Busy\r\nRetry-After: 31536000\r\nContent-Length: 0\r\n\r\n"), False),
    "go elsewhere": (raw(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"), False),
}


def plan(*tasks: Task, **more: object) -> Handler:
    """Always answer with this plan, signed if the mesh has a key."""

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(body=msgspec.msgpack.encode(Plan(tasks, **more)))  # type: ignore[arg-type]

    return handler


def body(data: bytes) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=data)

    return handler


GOOD = Task(0, ("nobody",), b"", 10.0)
TRACKERS: dict[str, tuple[Handler, bool]] = {
    "silence": (SILENT, False),
    "nothing to do": (plan(), False),
    "begin anew": (plan(resync=True, retry_after=0.0), False),
    "unknown peers": (plan(*(replace(GOOD, piece=n) for n in range(6))), False),
    "pieces that there are not": (plan(replace(GOOD, piece=10**9)), True),
    "pieces below zero": (plan(replace(GOOD, piece=-1)), True),
    "thousands of tasks": (plan(*(replace(GOOD, piece=n % 6) for n in range(5000))), True),
    "the same twice": (plan(GOOD, replace(GOOD, sources=(ORIGIN,))), True),
    "from nowhere": (plan(replace(GOOD, sources=())), True),
    "from the origin and others": (plan(replace(GOOD, sources=("nobody", ORIGIN))), True),
    "in a year": (plan(retry_after=31536000.0), True),
    "a pause of a year": (plan(pause=31536000.0), True),
    "never": (plan(retry_after=math.inf), True),
    "no number": (plan(replace(GOOD, seconds=math.nan)), True),
    "garbage": (body(b"\xc1" * 100), True),
    "deep nesting": (body(b"\x91" * 200_000), True),
    "a huge message": (body(bytes(8 << 20)), False),
    "a message that never ends": (
        raw(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"8000\r\n" + bytes(0x8000) + b"\r\n",
            then="repeat",
        ),
        False,
    ),
    "headers that never end": (raw(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", then="repeat"), False),
    "no HTTP": (raw(b"\x00\xff" * 1000), False),
}

# --- and its effect


class LoopLateness:
    """How late the event loop gets its turns in total: the fault of a busy machine, not of a node.

    Unlike `tests.lateness`, this counts what the nodes in this process do to each other.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    async def measure(self) -> None:
        while True:
            due = time.monotonic() + 0.1
            await asyncio.sleep(0.1)
            self.seconds += time.monotonic() - due

    @contextlib.asynccontextmanager
    async def measured(self) -> AsyncIterator[LoopLateness]:
        task = asyncio.get_running_loop().create_task(self.measure())
        try:
            yield self
        finally:
            task.cancel()


async def stream(node: Node, origin: Origin) -> tuple[bytes, float]:
    """Read the whole blob as a client would. Return the bytes, and the longest wait for one in seconds."""
    source = await node.blobs.read(origin.digest, SIZE, 0, SIZE, origin, is_whole=True)
    got, longest, before = bytearray(), 0.0, time.monotonic()
    try:
        while len(got) < SIZE:
            await source.wait(len(got))
            got += os.pread(source.fd, source.ready(len(got)) - len(got), len(got))
            now = time.monotonic()
            longest, before = max(longest, now - before), now
    finally:
        source.close()
    return bytes(got), longest


async def read_in_time(node: Node, origin: Origin) -> None:
    """In an open mesh a lie is detected at the end: that attempt fails, and the next is clean."""
    async with LoopLateness().measured() as late:
        for _ in range(3):
            with contextlib.suppress(BlobCorrupt):
                got, longest = await stream(node, origin)
                break
    assert got == origin.content
    assert longest < CLIENT_SECONDS + late.seconds


async def all_of(cases: Iterable[str], run: Callable[[str, AsyncExitStack], Awaitable[None]]) -> None:
    """Run all cases, some at a time, as they mostly wait. An exception names its case in a note."""
    gate = asyncio.Semaphore(8)

    async def one(does: str) -> None:
        async with gate, AsyncExitStack() as stack:
            try:
                await run(does, stack)
            except Exception as error:
                error.add_note(f"the peer's way was: {does}")
                raise

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with asyncio.TaskGroup() as group:
        for does in cases:
            group.create_task(one(does))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MOST_MEMORY


in_both_meshes = pytest.mark.parametrize(
    "key", [pytest.param(None, id="open"), pytest.param(KEY, id="keyed", marks=pytest.mark.slow)]
)


@in_both_meshes
async def test_hostile_sources(tmp_path: Path, key: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    async def run(does: str, stack: AsyncExitStack) -> None:
        handler, is_caught = SOURCES[does]
        origin = await stack.enter_async_context(Origin(content(SIZE)).running())

        def tamper(app: web.Application) -> None:
            app.router.add_get("/mesh/blobs/{digest}", handler)

        liar = await stack.enter_async_context(mesh_node(tmp_path / does / "liar", key=key, tamper=tamper))
        node = await stack.enter_async_context(mesh_node(tmp_path / does / "node", key=key))
        await introduce([liar, node])
        await stream(liar, origin)
        await known([liar, node], liar, origin.digest)
        await read_in_time(node, origin)
        assert bool(node.house.stats.pieces_rejected[liar.mesh.node_id]) == is_caught
        assert is_named(liar, caplog) or not is_caught

    await all_of(SOURCES, run)


@in_both_meshes
async def test_hostile_trackers(tmp_path: Path, key: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    async def run(does: str, stack: AsyncExitStack) -> None:
        handler, is_caught = TRACKERS[does]
        origin = await stack.enter_async_context(Origin(content(SIZE)).running())

        def tamper(app: web.Application) -> None:
            app.router.add_post("/mesh/swarms/{digest}", handler)

        # If there is a seed, it is the tracker, and a malicious node may say that it is one.
        liar = await stack.enter_async_context(mesh_node(tmp_path / does / "a", key=key, tamper=tamper, role="seed"))
        node = await stack.enter_async_context(mesh_node(tmp_path / does / "b", key=key))
        await introduce([liar, node])
        assert node.mesh.exchange.tracker_of(origin.digest) == liar.mesh.node_id
        await read_in_time(node, origin)
        assert is_named(liar, caplog) or not is_caught

    await all_of(TRACKERS, run)


@pytest.mark.parametrize(("size", "status"), [(1 << 40, 200), ((1 << 40) + 1, 400), (0, 400)])
async def test_a_blob_larger_than_any_file_gets_no_ledger(tmp_path: Path, size: int, status: int) -> None:
    digest = Digest("sha256", "ab" * 32)
    async with mesh_node(tmp_path) as node, aiohttp.ClientSession() as session:
        report = msgspec.msgpack.encode(Envelope(size, Report("stranger")))
        async with session.post(f"http://{node.address}/mesh/swarms/{digest}", data=report) as response:
            assert response.status == status
        assert (digest in node.mesh.tracker) == (status == 200)


async def test_a_host_that_announces_ever_other_pieces_has_to_wait_and_others_have_not(tmp_path: Path) -> None:
    count = 1 << 16
    full, none = PieceSet(count, (1 << count) - 1).to_bytes(), PieceSet(count).to_bytes()
    digest = Digest("sha256", "ab" * 32)
    async with mesh_node(tmp_path) as node, AsyncExitStack() as stack:

        async def announce(have: bytes | None, host: str, name: str = "stranger") -> Plan:
            connector = aiohttp.TCPConnector(local_addr=(host, 0))
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            body = msgspec.msgpack.encode(Envelope(count * MAX_PIECE, Report(name, have=have)))
            async with session.post(f"http://{node.address}/mesh/swarms/{digest}", data=body) as response:
                return msgspec.msgpack.decode(await response.read(), type=Plan)

        for _ in range(1000):
            ledger = node.mesh.tracker.ledger(digest)
            held = ledger.held if ledger else 0
            plan = await announce(none if held else full, "127.0.0.1")
            if plan.resync:
                break
        assert plan.pause >= 1.0
        assert ledger is not None
        assert ledger.held == held, "it was not applied"
        assert not (await announce(None, "127.0.0.1")).resync
        assert not (await announce(full, "127.0.0.2", "another")).resync


async def test_a_host_that_ever_announces_a_large_blob_and_takes_it_back_has_to_wait_and_others_have_not(
    tmp_path: Path,
) -> None:
    digest = Digest("sha256", "ab" * 32)
    async with mesh_node(tmp_path / "node") as node, mesh_node(tmp_path / "other") as other, AsyncExitStack() as stack:
        await introduce([node, other])
        node.mesh.tracker.report(digest, MAX_PIECE << 16, Report("a reader"))
        ledger = node.mesh.tracker.ledger(digest)
        assert ledger is not None

        async def announce(host: str, *, holds: bool) -> int:
            connector = aiohttp.TCPConnector(local_addr=(host, 0))
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            held, gone = ((str(digest),), ()) if holds else ((), (str(digest),))
            body = msgspec.msgpack.encode(Announcement(other.mesh.node_id, held, gone))
            async with session.post(f"http://{node.address}/mesh/holdings", data=body) as response:
                return response.status

        for _ in range(1000):
            held = bool(ledger.held)
            if await announce("127.0.0.1", holds=not held) != 200:
                break
        assert bool(ledger.held) == held, "it was not applied"
        if held:
            node.mesh.tracker.drop_holder(digest, other.mesh.node_id)
        assert await announce("127.0.0.2", holds=True) == 200
        assert ledger.held


def is_named(liar: Node, caplog: pytest.LogCaptureFixture) -> bool:
    return any(liar.mesh.node_id in r.getMessage() and r.levelno >= logging.WARNING for r in caplog.records)
