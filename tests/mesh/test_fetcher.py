"""What a fetcher takes on, and that it neither loses nor fetches twice any of it."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mesh import watch
from mesh.errors import SourceFailed, StoreFull
from mesh.intake import Run
from mesh.messages import ORIGIN, Plan, Report, Task
from mesh.partial import Partial
from mesh.transfer import Location
from tests.mesh.nodes import mesh_node
from tests.mesh.origin import Origin, node
from tests.mesh.test_mesh import KEY, MIB, content, introduce

LIMIT = 20.0  # seconds after which an awaited event counts as never


async def test_a_piece_never_comes_from_the_origin_and_from_a_peer_at_once(tmp_path: Path) -> None:
    """The second source would overwrite bytes that were already checked, and perhaps hashed."""
    async with Origin(content(12 * MIB), pause=0.05).running() as origin, node(tmp_path) as (_, blobs):
        reader = await blobs.read(origin.digest, 12 * MIB, 0, 12 * MIB, origin, is_whole=True)
        fetcher = blobs.swarms[origin.digest].fetcher
        fetcher.take([Task.lease_of(piece) for piece in range(12)])
        fetcher.take([Task(piece, ("peer",), b"", 60.0) for piece in range(12)])
        assert sorted(fetcher.active()) == [(piece, ORIGIN) for piece in range(12)]
        reader.close()


async def test_a_lease_for_a_piece_that_a_peer_fails_to_send_is_not_lost(tmp_path: Path) -> None:
    """The tracker learns of one failure when the node is already at the next source."""
    async with Origin(content(2 * MIB)).running() as origin, node(tmp_path) as (house, blobs):
        lost = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await lost.wait()
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        house.peers.locate = lambda *_: Location(f"http://{host}:{port}/")  # type: ignore[method-assign]
        plans = [
            Plan((Task(1, ("peer",), b"", 60.0),), retry_after=0.1),
            Plan((Task.lease_of(0), Task.lease_of(1))),
        ]

        async def report(digest: object, size: int, report: Report, hint: bytes) -> Plan:
            if len(plans) == 1:
                asyncio.get_running_loop().call_later(0.2, lost.set)
            return plans.pop(0) if plans else Plan(retry_after=60.0)

        house.exchange.report = report  # type: ignore[method-assign, assignment]
        async with server, asyncio.timeout(4.0):  # a starving reader would be rescued after 5.5
            await blobs.want(origin.digest, 2 * MIB, origin)


async def test_the_time_that_a_run_waits_for_a_thread_is_not_held_against_its_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SHORTEST", 0.0)
    cancel, is_free = Run.cancel, threading.Event()
    were_free: list[bool] = []

    def note_and_cancel(self: Run) -> None:
        were_free.append(is_free.is_set())
        cancel(self)

    monkeypatch.setattr(Run, "cancel", note_and_cancel)
    async with Origin(content(MIB)).running() as origin, node(tmp_path) as (house, blobs):
        with socket.create_server(("127.0.0.1", 0)) as peer:  # never answers
            host, port = peer.getsockname()
            house.peers.locate = lambda *_: Location(f"http://{host}:{port}/")  # type: ignore[method-assign]
            reports: list[Report] = []

            async def report(digest: object, size: int, report: Report, hint: bytes) -> Plan:
                reports.append(report)
                is_first = len(reports) == 1
                return Plan((Task(0, ("peer" if is_first else ORIGIN,), b"", 0.0),), retry_after=60.0)

            house.exchange.report = report  # type: ignore[method-assign, assignment]
            house.pool.shutdown()
            house.pool = ThreadPoolExecutor(1)
            house.pool.submit(is_free.wait)
            async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
                group.create_task(blobs.want(origin.digest, MIB, origin))
                while not house.pool._work_queue.qsize():
                    await asyncio.sleep(0)
                for _ in range(10):  # rounds of the loop, in each of which the peer's time would be up
                    await asyncio.sleep(0)
                is_free.set()
        assert were_free == [True]
        assert [(f.source, f.reason) for report in reports for f in report.failed] == [("peer", "timeout")]


async def test_an_origin_without_ranges_sends_all_of_it_once(tmp_path: Path) -> None:
    size = 40 * MIB
    async with Origin(content(size), knows_ranges=False).running() as origin, node(tmp_path) as (house, blobs):
        await blobs.want(origin.digest, size, origin)
        assert len(origin.requests) == 2, "one for a range, one for the whole"
        assert house.stats.origin_received == size


async def test_a_lease_that_comes_when_the_origin_was_given_up_is_no_hope(tmp_path: Path) -> None:
    async with Origin(content(4 * MIB)).running() as origin, node(tmp_path) as (house, blobs):
        asked, given_up = asyncio.Event(), asyncio.Event()

        async def report(digest: object, size: int, report: Report, hint: bytes) -> Plan:
            if report.can_fetch:  # the state when it was sent; the answer takes its time
                asked.set()
                await given_up.wait()
                return Plan((Task.lease_of(0),), retry_after=1.0)
            return Plan(retry_after=1.0)

        house.exchange.report = report  # type: ignore[method-assign, assignment]
        reader = await blobs.read(origin.digest, 4 * MIB, 0, 4 * MIB, origin, is_whole=True)
        fetcher = blobs.swarms[origin.digest].fetcher
        await asked.wait()
        fetcher._give_up_origin(SourceFailed(ORIGIN, "HTTP 500"))
        given_up.set()
        with pytest.raises(SourceFailed, match="HTTP 500"):
            async with asyncio.timeout(LIMIT):
                await reader.wait(0)
        reader.close()


async def test_what_a_full_disk_broke_off_is_asked_for_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 8 * MIB
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(Origin(content(size)).running())
        old = await stack.enter_async_context(Origin(content(2 * size, 2)).running())
        holder = await stack.enter_async_context(mesh_node(tmp_path / "holder", role="seed", key=KEY))
        other = await stack.enter_async_context(mesh_node(tmp_path / "other", key=KEY))
        await introduce([holder, other])
        await holder.blobs.want(origin.digest, size, origin)
        await other.blobs.want(old.digest, 2 * size, old)
        write, full = Partial.write, [True]

        def write_or_not(self: Partial, offset: int, data: memoryview) -> None:
            if self.digest == origin.digest and offset >= 3 * MIB and full:
                full.clear()
                raise StoreFull("the disk is full")
            write(self, offset, data)

        monkeypatch.setattr(Partial, "write", write_or_not)
        async with asyncio.timeout(LIMIT):
            await other.blobs.want(origin.digest, size, None)
        assert old.digest not in other.house.store, "nothing made room"


async def test_a_store_that_cannot_make_room_is_an_error_for_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Origin(content(4 * MIB)).running() as origin, node(tmp_path) as (house, blobs):

        async def reserve(partial: Partial, count: int) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(house.store, "reserve", reserve)
        async with asyncio.timeout(LIMIT):
            with pytest.raises(Exception, match="Permission denied"):
                await blobs.want(origin.digest, 4 * MIB, origin)
            await blobs.close()


async def test_a_piece_that_is_there_and_could_not_be_recorded_is_fetched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part of the piece is missing that could be requested."""
    size = 4 * MIB
    async with (
        Origin(content(size)).running() as origin,
        Origin(content(2 * MIB, 2)).running() as old,
        node(tmp_path) as (house, blobs),
    ):
        await blobs.want(old.digest, 2 * MIB, old)
        record, full = Partial.record, [True]

        def record_or_not(self: Partial, piece: int, digest: bytes, *, trusted: bool) -> None:
            if self.digest == origin.digest and piece == 3 and full:
                full.clear()
                raise StoreFull("no room for the journal")
            record(self, piece, digest, trusted=trusted)

        monkeypatch.setattr(Partial, "record", record_or_not)
        async with asyncio.timeout(LIMIT):
            await blobs.want(origin.digest, size, origin)
        assert not full
        assert house.stats.origin_received == size + MIB + 2 * MIB


@pytest.mark.parametrize("then", ["the swarm once more", "every task"])
async def test_a_file_is_not_closed_while_a_thread_writes_to_it_whatever_is_cancelled(
    then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor may belong to another file by the next write. `then`: what is cancelled while the swarm ends."""
    loop, begun, may_end = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    write, were_open = Partial.write, []

    def slow_write(self: Partial, offset: int, data: memoryview) -> None:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(LIMIT)
        were_open.append(self.fd >= 0)
        write(self, offset, data)

    async def a_moment() -> None:
        for _ in range(100):  # rounds of the loop
            await asyncio.sleep(0)

    monkeypatch.setattr(Partial, "write", slow_write)
    async with Origin(content(MIB)).running() as origin, node(tmp_path) as (house, blobs), asyncio.timeout(LIMIT):
        reader = await blobs.read(origin.digest, MIB, 0, MIB, origin, is_whole=True)
        life = blobs._lives[origin.digest]
        await begun.wait()
        life.cancel()
        await a_moment()
        if then == "every task":
            closing = loop.create_task(house.tasks.close())
        else:
            life.cancel()
        await a_moment()
        may_end.set()
        await asyncio.wait([life, closing] if then == "every task" else [life])
        reader.close()
    assert were_open == [True]


async def test_what_cannot_be_fetched_any_more_is_not_taken_from_who_still_brings_it(tmp_path: Path) -> None:
    size = 12 * MIB
    async with Origin(content(size), pause=0.02).running() as origin, node(tmp_path) as (_, blobs):
        reader = await blobs.read(origin.digest, size, 0, size, origin, is_whole=True)
        fetcher = blobs.swarms[origin.digest].fetcher
        async with asyncio.timeout(LIMIT):
            while not any(len(run.pieces) > 2 for run in fetcher.runs):
                await asyncio.sleep(0.01)
            long = next(run for run in fetcher.runs if len(run.pieces) > 2)
            fetcher._give_up_origin(SourceFailed(ORIGIN, "HTTP 401"))
            fetcher.hurry([], [long.stop - 1])
            with pytest.raises(SourceFailed, match="HTTP 401"):  # once the rest of what was on its way has arrived
                await reader.wait(size)
        assert not fetcher.pending
        reader.close()
