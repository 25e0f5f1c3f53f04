"""Runs that are taken apart while their bytes arrive."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from mesh.content import Digest
from mesh.fill import Fill
from mesh.intake import Run
from mesh.limiter import Limiter
from mesh.messages import ORIGIN
from mesh.partial import Partial
from mesh.transfer import Connections, Location

MIB = 1 << 20
CONTENT = random.Random(1).randbytes(4 * MIB)


@pytest.mark.parametrize("beyond", [0, 1000])
async def test_a_run_ends_where_it_was_cut_short_even_between_two_reads(tmp_path: Path, beyond: int) -> None:
    """`beyond`: how many bytes of the piece that was taken away come together with the end of the last one kept."""
    landed: dict[int, bytes] = {}
    has_landed, is_cut = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONTENT))
        writer.write(CONTENT[: MIB + MIB // 2])
        await is_cut.wait()
        writer.write(CONTENT[MIB + MIB // 2 : 2 * MIB + beyond])
        await has_landed.wait()  # the client has all of the second piece: what comes now is read by itself
        writer.write(CONTENT[2 * MIB + beyond :])
        writer.close()

    def on_landed(run: Run, piece: int, digest: bytes) -> None:
        landed[piece] = digest
        if piece == 0:
            assert list(run.shorten(2)) == [2, 3]
            is_cut.set()
        if piece == 1:
            has_landed.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    partial = Partial(tmp_path / "partial", Digest("sha256", "a" * 64), len(CONTENT))
    run = Run(
        Fill(partial),
        ORIGIN,
        0,
        4,
        digests={},
        limiter=Limiter(None),
        received=lambda count: None,
        answered=lambda: None,
        landed=on_landed,
    )
    host, port = server.sockets[0].getsockname()
    connections = Connections()
    try:
        async with asyncio.timeout(20):
            await asyncio.to_thread(run.execute, connections, Location(f"http://{host}:{port}/"))
        await asyncio.sleep(0)  # what the thread has called for on the loop
        assert sorted(landed) == [0, 1]
        assert (tmp_path / "partial").read_bytes()[: 2 * MIB] == CONTENT[: 2 * MIB]
        assert not run.pieces
        assert run.begun is None
    finally:
        connections.close()
        partial.close()
        server.close()


async def test_what_counts_already_is_never_written_over(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "partial", Digest("sha256", "a" * 64), len(CONTENT))
    fill = Fill(partial)
    run = Run(
        fill,
        "peer",
        0,
        4,
        digests={},
        limiter=Limiter(None),
        received=lambda count: None,
        answered=lambda: None,
        landed=lambda run, piece, digest: None,
    )
    run._sink(memoryview(b"X" * 1000))
    partial.write(0, memoryview(CONTENT[:MIB]))
    partial.add(0, bytes(32), True)
    fill.added(0)
    run._sink(memoryview(b"X" * (MIB - 1000)))
    assert (tmp_path / "partial").read_bytes()[:MIB] == CONTENT[:MIB]
    partial.close()
