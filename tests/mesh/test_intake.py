"""Runs that are cut short or split while their bytes arrive."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh import intake
from mesh.content import Digest
from mesh.errors import SourceFailed
from mesh.fill import TAIL, Fill, Reader
from mesh.intake import Run
from mesh.limiter import Limiter
from mesh.messages import ORIGIN
from mesh.partial import Partial
from mesh.transfer import Connections, Location

MIB = 1 << 20
CONTENT = random.Random(1).randbytes(4 * MIB)


@pytest.mark.parametrize("beyond", [0, 1000])
async def test_a_run_ends_where_it_was_cut_short_even_between_two_reads(tmp_path: Path, beyond: int) -> None:
    """`beyond`: bytes of the piece that was taken away which arrive together with the end of the last one kept."""
    landed: dict[int, bytes] = {}
    has_landed, is_cut = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONTENT))
        writer.write(CONTENT[: MIB + MIB // 2])
        await is_cut.wait()
        writer.write(CONTENT[MIB + MIB // 2 : 2 * MIB + beyond])
        await has_landed.wait()  # the client has all of the second piece: the next bytes are read on their own
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
        await asyncio.sleep(0)  # the callbacks that the thread has scheduled on the loop
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


class Line:
    """A source of CONTENT that breaks off after so many bytes, or sends wrong ones."""

    def __init__(self, count: int, wrong: bytes, look: Callable[[], None]) -> None:
        self.count, self.wrong, self.look = count, wrong, look
        self.asked: list[tuple[int, int]] = []

    def transfer(self, source: str, _: Location, start: int, stop: int, size: int) -> Line:
        self.asked.append((start, stop))
        self.source, self.start, self.stop = source, start, stop
        return self

    def run(self, _: Connections, sink: Callable[[memoryview], None]) -> None:
        for position in range(self.start, self.stop, 100_000):
            stop = min(self.stop, position + min(100_000, self.count))
            sink(memoryview(self.wrong * (stop - position) if self.wrong else CONTENT[position:stop]))
            self.look()
            self.count -= stop - position
            if not self.count:
                raise SourceFailed(self.source, "breaks off")


offsets = st.integers(0, MIB - 1)


@settings(max_examples=60, deadline=None)
@given(
    waited=offsets,
    others=st.lists(offsets, max_size=3),
    lines=st.lists(st.tuples(st.integers(1, 2 * MIB), st.booleans()), max_size=4),
    is_completing=st.booleans(),
)
@example(waited=600_000, others=[], lines=[], is_completing=True)
@example(
    waited=600_000, others=[900_000], lines=[(300_000, False), (500_000, True), (200_000, False)], is_completing=False
)
def test_a_piece_comes_from_where_it_is_waited_for(
    waited: int, others: list[int], lines: list[tuple[int, bool]], is_completing: bool
) -> None:
    """Whatever breaks off, and whatever a peer sends in between: bytes that readers saw are right, and stay.

    `lines`: after how many bytes each source breaks off, and whether it is a lying peer.
    """

    async def check() -> None:
        with tempfile.TemporaryDirectory() as folder:
            partial = Partial(
                Path(folder, "partial"), Digest("sha256", hashlib.sha256(CONTENT).hexdigest()), len(CONTENT)
            )
            fill = Fill(partial)
            for piece in (0, 2, 3) if is_completing else (0,):
                partial.write(piece * MIB, memoryview(CONTENT)[piece * MIB : (piece + 1) * MIB])
                partial.add(piece, blake3(CONTENT[piece * MIB : (piece + 1) * MIB]).digest(), True)
                fill.added(piece)
            readers = [fill.reader(MIB + at, 2 * MIB, is_whole=False) for at in (waited, *others)]
            seen: dict[Reader, int] = {}

            def look() -> None:
                for reader in readers:
                    end = fill.visible(reader.start, reader.stop, is_whole=False)
                    assert os.pread(partial.fd, end - reader.start, reader.start) == CONTENT[reader.start : end]
                    assert end >= seen.get(reader, 0)
                    seen[reader] = end
                assert shown() <= (MIB - TAIL if is_completing else MIB if 1 in partial.have else MIB - 1)

            def shown() -> int:
                """Return how many bytes of the piece two readers can have between them, at most."""
                total = 0
                for at in (MIB, MIB + fill.arrival(1).split):
                    probe = fill.reader(max(at, MIB + total), 2 * MIB, is_whole=False)
                    total += probe.frontier() - probe.start
                    probe.close()
                return total

            begun = None
            digests: list[bytes] = []

            def landed(run: Run, piece: int, digest: bytes) -> None:
                digests.append(digest)

            for count, is_lie in [*lines, (10 * MIB, False)]:
                line = Line(count, b"!" if is_lie else b"", look)
                if not is_lie:
                    fill.begin(1)
                run = Run(
                    fill,
                    "peer" if is_lie else ORIGIN,
                    1,
                    2,
                    begun=None if is_lie else begun,
                    digests={1: bytes(32)},
                    limiter=Limiter(None),
                    received=lambda count: None,
                    answered=lambda: None,
                    landed=landed,
                )
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(intake, "Transfer", line.transfer)
                    try:
                        await asyncio.to_thread(run.execute, Connections(), Location(""))
                    except SourceFailed:
                        begun = begun if is_lie else run.begun
                        continue
                    break
            await asyncio.sleep(0)
            assert digests == [blake3(CONTENT[MIB : 2 * MIB]).digest()]
            partial.add(1, digests[0], True)
            fill.added(1)
            look()
            for reader in readers:
                reader.close()
            partial.close()

    asyncio.run(check())
