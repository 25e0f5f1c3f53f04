"""One node that fetches blobs from a misbehaving origin: always the right bytes or a clear error."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mesh import entries, fill, layout
from mesh.blobs import Blobs
from mesh.content import Digest
from mesh.errors import BlobCorrupt, MeshError, SourceFailed, StoreFull, StoreUnusable
from mesh.house import House
from mesh.partial import Partial
from mesh.store import Blob, Store
from tests.mesh.origin import Origin, node

MIB = 1 << 20


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def read(
    blobs: Blobs, origin: Origin, start: int = 0, stop: int | None = None, *, digest: Digest | None = None
) -> bytes:
    """Read as a client does: in order, and only bytes that are ready."""
    size = len(origin.content)
    stop = size if stop is None else stop
    is_whole = (start, stop) == (0, size)
    source = await blobs.read(digest or origin.digest, size, start, stop, origin, is_whole=is_whole)
    got = bytearray()
    try:
        while start < stop:
            await source.wait(start)
            ready = min(stop, source.ready(start))
            got += os.pread(source.fd, ready - start, start)
            start = ready
    finally:
        source.close()
    return bytes(got)


@pytest.mark.parametrize("is_whole", [False, True], ids=["range", "rest of a download"])
async def test_who_begins_in_the_midst_of_a_piece_does_not_wait_for_what_is_before(
    tmp_path: Path, is_whole: bool
) -> None:
    start = MIB + 600_000
    whole = content(3 * MIB)
    async with Origin(whole, pause=0.01).running() as origin, node(tmp_path) as (_, blobs):
        source = await blobs.read(origin.digest, 3 * MIB, start, start + 100, origin, is_whole=is_whole)
        await source.wait(start)
        assert (start, 2 * MIB) in origin.requests
        assert (MIB, start) not in origin.requests
        source.close()
        assert await read(blobs, origin) == whole
        assert origin.sent == len(whole), "what is before comes once, and what is behind not again"


async def test_nor_does_it_wait_for_the_piece_before_that_is_just_coming(tmp_path: Path) -> None:
    start = MIB + 600_000
    async with Origin(content(12 * MIB), pause=0.2).running() as origin, node(tmp_path) as (_, blobs):
        first = await blobs.read(origin.digest, 12 * MIB, 0, 12 * MIB, origin, is_whole=True)
        await first.wait(0)
        source = await blobs.read(origin.digest, 12 * MIB, start, start + 100, origin, is_whole=False)
        await source.wait(start)
        assert (start, 2 * MIB) in origin.requests
        source.close()
        first.close()


async def test_who_goes_on_with_a_download_from_elsewhere_does_not_wait_for_the_proof_of_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill, "_AHEAD", 2 * MIB)
    whole, start = content(8 * MIB), 5 * MIB
    async with Origin(whole, pause=0.03).running() as origin, node(tmp_path) as (house, blobs):
        source = await blobs.read(origin.digest, 8 * MIB, start, 8 * MIB, origin, is_whole=True)
        await source.wait(start)
        assert blobs.swarms[origin.digest].fill.proof.hashed < start - 2 * MIB
        while (ready := source.ready(start)) < 8 * MIB:
            await source.wait(start := ready)
        assert os.pread(source.fd, 3 * MIB, 5 * MIB) == whole[5 * MIB :]
        source.close()
        await blobs.want(origin.digest, 8 * MIB, origin)
        assert origin.digest in house.store
        assert origin.sent == len(whole)


async def test_what_only_waits_for_the_disk_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_durable, may_flush = layout.make_durable, threading.Event()

    def slow(*arguments: Any) -> None:
        assert may_flush.wait(20)
        make_durable(*arguments)

    monkeypatch.setattr(layout, "make_durable", slow)
    async with Origin(content(2 * MIB)).running() as origin, node(tmp_path) as (_, blobs):
        source = await blobs.read(origin.digest, 2 * MIB, 0, 2 * MIB, origin, is_whole=True)
        assert not source.is_here
        source.close()
        assert await read(blobs, origin) == origin.content
        again = await blobs.read(origin.digest, 2 * MIB, 0, 2 * MIB, origin, is_whole=True)
        assert not isinstance(again, Blob)
        assert again.is_here
        again.close()
        may_flush.set()


async def test_many_readers_cost_the_origin_one_copy(tmp_path: Path) -> None:
    async with Origin(content(9 * MIB + 17)).running() as origin, node(tmp_path) as (house, blobs):
        bodies = await asyncio.gather(*(read(blobs, origin) for _ in range(8)), read(blobs, origin, 5 * MIB, 6 * MIB))
        assert all(body == origin.content for body in bodies[:8])
        assert bodies[8] == origin.content[5 * MIB : 6 * MIB]
        assert origin.sent == len(origin.content) == house.stats.origin_received
        assert origin.located == 1
        await blobs.want(origin.digest, len(origin.content), origin)
        assert await read(blobs, origin) == origin.content
        assert isinstance(await blobs.read(origin.digest, len(origin.content), 0, 1, origin, is_whole=False), Blob)
        assert origin.sent == len(origin.content)


async def test_a_range_wakes_only_its_pieces(tmp_path: Path) -> None:
    async with Origin(content(12 * MIB)).running() as origin, node(tmp_path) as (_, blobs):
        assert await read(blobs, origin, 7 * MIB + 5, 7 * MIB + 50) == origin.content[7 * MIB + 5 : 7 * MIB + 50]
        assert origin.requests == [(7 * MIB, 8 * MIB)]
        assert await read(blobs, origin) == origin.content
        assert origin.sent == len(origin.content)


async def test_a_fill_outlives_the_reader_who_began_it(tmp_path: Path) -> None:
    async with Origin(content(4 * MIB), pause=0.005).running() as origin, node(tmp_path) as (house, blobs):
        source = await blobs.read(origin.digest, len(origin.content), 0, len(origin.content), origin, is_whole=True)
        await source.wait(0)
        source.close()
        async with asyncio.timeout(10):
            while origin.digest not in house.store:
                await asyncio.sleep(0.01)
        assert origin.sent == len(origin.content)


async def test_bytes_are_seen_long_before_the_piece_is_complete(tmp_path: Path) -> None:
    origin = Origin(content(2 * MIB), gate=asyncio.Event(), gate_at=256 << 10)
    assert origin.gate is not None
    async with origin.running(), node(tmp_path) as (_, blobs):
        source = await blobs.read(origin.digest, 2 * MIB, 0, 2 * MIB, origin, is_whole=True)
        async with asyncio.timeout(5):
            position = 0
            while position < 240 << 10:  # a sixteenth is held back as long as nothing more arrives
                await source.wait(position)
                position = source.ready(position)
        assert os.pread(source.fd, position, 0) == origin.content[:position]
        origin.gate.set()
        source.close()


@pytest.mark.parametrize("cut_after", [0, 1, 100_000, MIB, 3 * MIB + 1])
async def test_breaks_are_resumed_at_the_byte_they_reached(tmp_path: Path, cut_after: int) -> None:
    origin = Origin(content(8 * MIB), cut_after=cut_after, cuts=3)
    async with origin.running(), node(tmp_path) as (_, blobs):
        assert await read(blobs, origin) == origin.content
        assert origin.sent <= len(origin.content) + 2 * MIB  # what was in flight when the connection broke


async def test_an_origin_without_ranges_is_read_in_order(tmp_path: Path) -> None:
    origin = Origin(content(5 * MIB), knows_ranges=False, cut_after=2 * MIB + 5, cuts=1)
    async with origin.running(), node(tmp_path) as (_, blobs):
        ranged = asyncio.ensure_future(read(blobs, origin, 3 * MIB, 3 * MIB + 10))  # noqa: TID251
        assert await read(blobs, origin) == origin.content
        assert await ranged == origin.content[3 * MIB : 3 * MIB + 10]


async def test_a_refused_address_is_asked_for_anew(tmp_path: Path) -> None:
    origin = Origin(content(20 * MIB), good_tokens=2)
    async with origin.running(), node(tmp_path) as (_, blobs):
        assert await read(blobs, origin) == origin.content
        assert origin.located == 2


async def test_server_errors_are_retried_then_told(tmp_path: Path) -> None:
    origin = Origin(content(3 * MIB), statuses=[503, 500])
    async with origin.running(), node(tmp_path) as (_, blobs):
        assert await read(blobs, origin) == origin.content
    origin = Origin(content(3 * MIB, 2), statuses=[503] * 50)
    async with origin.running(), node(tmp_path) as (_, blobs):
        with pytest.raises(SourceFailed, match="HTTP 503"):
            await read(blobs, origin)
        origin.statuses.clear()
        assert await read(blobs, origin) == origin.content


async def test_who_may_not_have_it_is_told_at_once(tmp_path: Path) -> None:
    origin = Origin(content(MIB))
    origin.is_closed = True
    async with origin.running(), node(tmp_path) as (_, blobs):
        with pytest.raises(MeshError, match="401"):
            await read(blobs, origin)


async def test_one_wrong_byte_never_gets_to_the_end_and_the_next_attempt_is_clean(tmp_path: Path) -> None:
    good = content(3 * MIB)
    bad = bytearray(good)
    bad[2 * MIB + 7] ^= 1
    origin = Origin(good)
    digest = origin.digest
    async with origin.running(), node(tmp_path) as (house, blobs):
        origin.content = bytes(bad)
        with pytest.raises(BlobCorrupt):
            await read(blobs, origin, digest=digest)
        assert digest not in house.store
        assert house.stats.pieces_rejected["origin"] == 3
        origin.content = good
        assert await read(blobs, origin) == good


async def test_wrong_bytes_go_even_when_the_disk_has_no_room_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = content(3 * MIB)
    origin = Origin(good)
    digest = origin.digest
    async with origin.running(), node(tmp_path) as (house, blobs):
        origin.content = bytes(MIB) + good[MIB:]
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", lambda *_: os.pread(-1, 1, 0))
            with pytest.raises(BlobCorrupt):
                await read(blobs, origin, digest=digest)
        assert not list((tmp_path / "partial").iterdir())
        origin.content = good
        assert await read(blobs, origin) == good
        await blobs.want(digest, 3 * MIB, origin)
        assert house.store.size == 3 * MIB


async def test_large_files_on_a_slow_line_leave_a_way_for_another(tmp_path: Path) -> None:
    gate = asyncio.Event()
    larges = [Origin(content(8 * MIB, seed), gate=gate, gate_at=MIB) for seed in range(10)]
    small = Origin(content(MIB, 99))
    async with contextlib.AsyncExitStack() as stack:
        for origin in (*larges, small):
            await stack.enter_async_context(origin.running())
        _, blobs = await stack.enter_async_context(node(tmp_path))
        reading = [asyncio.create_task(read(blobs, origin)) for origin in larges]  # noqa: TID251
        async with asyncio.timeout(10):
            while sum(len(origin.requests) for origin in larges) < 32:
                await asyncio.sleep(0.01)
            assert await read(blobs, small) == small.content
            gate.set()
            for task, origin in zip(reading, larges, strict=True):
                assert await task == origin.content


async def test_readers_wait_for_the_proof_and_not_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushing, may_go_on = threading.Event(), threading.Event()
    make_durable = layout.make_durable

    def slow(partial: Partial, final: Path, mode: int) -> None:
        flushing.set()
        assert may_go_on.wait(20)
        make_durable(partial, final, mode)

    monkeypatch.setattr(layout, "make_durable", slow)
    origin = Origin(content(3 * MIB))
    async with origin.running():
        async with node(tmp_path) as (house, blobs):
            assert await read(blobs, origin) == origin.content
            assert await asyncio.to_thread(flushing.wait, 20)
            assert await read(blobs, origin) == origin.content  # later readers get it from the same file
            assert origin.digest not in house.store
            wanting = asyncio.ensure_future(blobs.want(origin.digest, 3 * MIB, origin))  # noqa: TID251
            closing = asyncio.ensure_future(blobs.close())  # noqa: TID251
            await asyncio.sleep(0)
            assert not wanting.done()  # nobody is told that it is stored before it is
            may_go_on.set()
            await closing
            await wanting
            assert origin.digest in house.store  # a stop waits for proven blobs
        assert origin.sent == 3 * MIB


async def test_a_disk_that_fails_at_the_end_does_not_take_the_proof_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with monkeypatch.context() as patch:
        patch.setattr(layout, "make_durable", fail)
        async with Origin(content(3 * MIB)).running() as origin, node(tmp_path) as (house, blobs):
            assert await read(blobs, origin) == origin.content
            with pytest.raises(StoreUnusable, match="the disk is broken"):
                await blobs.want(origin.digest, 3 * MIB, origin)
            patch.undo()
            await blobs.want(origin.digest, 3 * MIB, origin)
            assert origin.digest in house.store
            assert origin.sent == 3 * MIB


async def test_what_is_being_flushed_makes_room_as_soon_as_it_is_kept(tmp_path: Path) -> None:
    first, second = Origin(content(3 * MIB, 3)), Origin(content(3 * MIB, 4))
    async with first.running(), second.running(), node(tmp_path, max_size=4 * MIB) as (house, blobs):
        assert await read(blobs, first) == first.content
        assert await read(blobs, second) == second.content
        await blobs.want(second.digest, 3 * MIB, second)
        assert first.digest not in house.store


async def test_a_restart_keeps_every_piece(tmp_path: Path) -> None:
    origin = Origin(content(6 * MIB), gate=asyncio.Event(), gate_at=4 * MIB)
    assert origin.gate is not None
    async with origin.running():
        async with node(tmp_path) as (house, blobs):
            source = await blobs.read(origin.digest, 6 * MIB, 0, 6 * MIB, origin, is_whole=True)
            async with asyncio.timeout(10):
                while len(blobs.swarms[origin.digest].fill.partial.have) < 4:
                    await asyncio.sleep(0.01)
            source.close()
        origin.gate.set()
        origin.requests.clear()
        async with node(tmp_path) as (house, blobs):
            assert await read(blobs, origin) == origin.content
            assert sorted(origin.requests)[0][0] == 4 * MIB
            assert sum(stop - start for start, stop in origin.requests) == 2 * MIB
            assert house.store.size == 6 * MIB


async def test_bytes_lost_after_a_power_cut_are_fetched_again(tmp_path: Path) -> None:
    origin = Origin(content(3 * MIB))
    async with origin.running():
        async with node(tmp_path) as (_, blobs):
            await read(blobs, origin, 0, MIB)
            await read(blobs, origin, 2 * MIB, 3 * MIB)
        [partial] = [p for p in (tmp_path / "partial").iterdir() if not p.suffix]
        with partial.open("r+b") as file:
            file.seek(100)
            file.write(bytes(1000))
        async with node(tmp_path) as (_, blobs):
            assert await read(blobs, origin) == origin.content


@contextlib.asynccontextmanager
async def room_for_two(path: Path) -> AsyncIterator[tuple[House, Blobs, Origin, Origin, Origin]]:
    """A node with room for two of three blobs of 2 MiB."""
    origins = [Origin(content(2 * MIB, seed)) for seed in (10, 11, 12)]
    async with contextlib.AsyncExitStack() as stack:
        for origin in origins:
            await stack.enter_async_context(origin.running())
        house, blobs = await stack.enter_async_context(node(path, max_size=5 * MIB))
        yield house, blobs, origins[0], origins[1], origins[2]


@pytest.mark.parametrize("trouble", ["unreadable", "full"])
async def test_what_cannot_be_read_back_after_a_restart_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    async with Origin(content(3 * MIB)).running() as origin:
        async with node(tmp_path) as (_, blobs):
            await read(blobs, origin, 0, 2 * MIB)
        origin.requests.clear()
        [partial] = [p for p in (tmp_path / "partial").iterdir() if not p.suffix]
        with partial.open("r+b") as file:
            file.write(bytes(1000))
        preadv = os.preadv

        def unreadable(fd: int, buffers: list[memoryview], offset: int) -> int:
            if not origin.requests:
                raise OSError(errno.EIO, "a sector has gone bad")
            return preadv(fd, buffers, offset)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        if trouble == "unreadable":
            monkeypatch.setattr(os, "preadv", unreadable)
        else:
            monkeypatch.setattr(Path, "write_bytes", full)  # the journal must not need to be rewritten
        async with node(tmp_path) as (_, blobs), asyncio.timeout(20):
            assert await read(blobs, origin, 0, 2 * MIB) == origin.content[: 2 * MIB]


async def test_what_is_being_deleted_can_be_brought_in_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting its file takes a while; the next download writes to another file."""
    may_go_on, unlink = threading.Event(), os.unlink

    def slow(path: Path) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert may_go_on.wait(20)
        unlink(path)

    origin = Origin(content(3 * MIB))
    async with origin.running():
        async with node(tmp_path) as (_, blobs):
            await read(blobs, origin, 0, MIB)
        monkeypatch.setattr(os, "unlink", slow)
        async with node(tmp_path) as (house, blobs):
            for kept in range(2):  # a partial blob, then the whole one
                removing = asyncio.ensure_future(house.store.remove(origin.digest))  # noqa: TID251
                await asyncio.sleep(0)
                origin.gate = asyncio.Event()
                wanting = asyncio.ensure_future(blobs.want(origin.digest, 3 * MIB, origin))  # noqa: TID251
                async with asyncio.timeout(20):
                    while not blobs.swarms:
                        await asyncio.sleep(0.01)
                    may_go_on.set()
                    assert await removing == (3 * MIB if kept else MIB)
                    origin.gate.set()
                    await wanting
                may_go_on.clear()
                assert origin.digest in house.store
                assert house.store.size == 3 * MIB
                assert await read(blobs, origin) == origin.content
            may_go_on.set()
        assert list((tmp_path / "partial").iterdir()) == []


def test_what_was_to_be_deleted_when_the_node_died_goes_at_the_next_start(tmp_path: Path) -> None:
    store = Store(tmp_path, MIB)
    partial = store.open_partial(Digest("sha256", "a" * 64), MIB)
    partial.record(0, bytes(32), True)
    partial.close()
    store.close()
    layout.set_aside(partial.path, tmp_path / "partial")
    assert len(list((tmp_path / "partial").iterdir())) == 1
    store = Store(tmp_path, MIB)
    assert list((tmp_path / "partial").iterdir()) == list(store.partials()) == []
    store.close()


async def test_what_cannot_be_removed_goes_on_to_count_and_others_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with room_for_two(tmp_path) as (house, blobs, first, second, third):

        def refusing(call: Callable[..., None]) -> Callable[..., None]:
            def wrapped(path: Path, *rest: object) -> None:
                if first.digest.hex in str(path):
                    raise OSError(errno.EROFS, "read-only file system")
                call(path, *rest)

            return wrapped

        for origin in (first, second):
            await blobs.want(origin.digest, 2 * MIB, origin)
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", refusing(os.unlink))
            patch.setattr(os, "rename", refusing(os.rename))
            assert await read(blobs, third) == third.content
            await blobs.want(third.digest, 2 * MIB, third)
            assert sorted(digest for digest, _, _ in house.store.blobs()) == sorted([first.digest, third.digest])
            assert house.store.size == 4 * MIB
            with pytest.raises(StoreUnusable, match="read-only"):
                await house.store.remove(first.digest)
            assert house.store.size == 4 * MIB
            assert not await house.store.evict(3 * MIB)
            assert house.store.size == 2 * MIB
            assert await read(blobs, first) == first.content
        assert await house.store.remove(first.digest) == 2 * MIB
        assert house.store.size == 0


def test_what_had_arrived_of_a_blob_that_came_whole_from_elsewhere_goes_at_the_next_start(tmp_path: Path) -> None:
    """The process died in `adopt`, before it removed the partial file."""
    digest = Digest("sha256", "a" * 64)
    store = Store(tmp_path, 4 * MIB)
    partial = store.open_partial(digest, 2 * MIB)
    partial.record(0, bytes(32), False)
    (tmp_path / "staged").write_bytes(bytes(2 * MIB))
    final = tmp_path / "blobs" / "sha256" / "aa" / digest.hex
    layout.take_over(tmp_path / "staged", final, 2 * MIB, [b"p" * 32, b"q" * 32], 0o400, None)
    store.close()
    store = Store(tmp_path, 4 * MIB)
    assert list((tmp_path / "partial").iterdir()) == []
    assert store.manifest(digest, 2 * MIB) == {0: b"p" * 32, 1: b"q" * 32}
    assert store.size == 2 * MIB
    store.close()


async def test_no_room_is_a_clear_error_and_harms_nothing_else(tmp_path: Path) -> None:
    small, large = Origin(content(MIB, 3)), Origin(content(8 * MIB))
    async with small.running(), large.running(), node(tmp_path, max_size=4 * MIB) as (house, blobs):
        assert await read(blobs, small) == small.content
        keep = await blobs.read(small.digest, MIB, 0, MIB, small, is_whole=True)
        with pytest.raises(StoreFull):
            await read(blobs, large)
        assert os.pread(keep.fd, MIB, 0) == small.content
        keep.close()
        assert house.store.size <= 4 * MIB
        assert await read(blobs, small) == small.content


async def test_a_disk_that_others_filled_makes_room_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Origin(content(MIB, 3)), Origin(content(MIB, 4))
    async with first.running(), second.running(), node(tmp_path) as (house, blobs):
        await blobs.want(first.digest, MIB, first)
        write, files = os.write, open_files()

        def full(fd: int, data: bytes) -> int:
            if first.digest in house.store:
                raise OSError(errno.ENOSPC, "no space left on device")
            return write(fd, data)

        monkeypatch.setattr(os, "write", full)
        with monkeypatch.context() as patch:
            patch.setattr(house.store, "_is_pinned", lambda _: True)
            with pytest.raises(StoreFull):
                await read(blobs, second)
        assert open_files() == files
        assert await read(blobs, second) == second.content
        assert house.store.evicted_bytes == MIB


@pytest.mark.parametrize("clock", ["right", "set back again and again"])
async def test_what_was_used_longest_ago_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    if clock != "right":
        backwards = itertools.count(time.time(), -3600.0)
        monkeypatch.setattr(entries, "time", SimpleNamespace(time=lambda: next(backwards)))
    async with room_for_two(tmp_path) as (house, blobs, first, second, third):
        for origin in (first, second, first):  # the second is now the least recently used
            assert await read(blobs, origin) == origin.content
            await blobs.want(origin.digest, 2 * MIB, origin)  # a blob that is still being flushed cannot make room
        assert await read(blobs, third) == third.content
        await blobs.want(third.digest, 2 * MIB, third)
        assert first.digest in house.store
        assert second.digest not in house.store
        assert house.store.size <= 5 * MIB
        assert house.store.evicted_bytes == 2 * MIB


async def test_what_is_here_fits_whoever_pinned_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check_fits` is asked while a blob is in doubt: counted twice, the blob would be refused."""
    async with Origin(content(MIB)).running() as origin, node(tmp_path, max_size=MIB + 1) as (house, blobs):
        await blobs.want(origin.digest, MIB, origin)
        monkeypatch.setattr(house.store, "_is_pinned", lambda _: True)
        house.store.check_fits(origin.digest, MIB)
        with pytest.raises(StoreFull, match="that are pinned"):
            house.store.check_fits(Digest("sha256", "0" * 64), MIB)
