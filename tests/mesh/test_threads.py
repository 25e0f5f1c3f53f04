"""The threads that move bytes beside the event loop."""

import asyncio
import os
import random
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from mesh import outflow, threads
from mesh.limiter import Limiter
from mesh.outflow import Held, Outflow
from tests.mesh.origin import Origin, node


def _nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities belong to processes")
def test_bulk_threads_stand_back_and_their_caller_does_not():
    before = _nice()
    with threads.Pool(1, "bulk", threads.NICE) as pool:
        assert pool.submit(_nice).result() == min(19, before + 10)
    assert _nice() == before


def test_a_sandbox_that_refuses_lower_priorities_stops_nothing(monkeypatch):
    def refuse(_):
        raise PermissionError

    monkeypatch.setattr(os, "nice", refuse)
    with threads.Pool(1, "bulk", threads.NICE) as pool:
        assert pool.submit(lambda: "done").result() == "done"


def allow_threads(monkeypatch, count):
    """Let `count` more threads start, as a limit on processes does."""
    start = threading.Thread.start
    left = iter(range(count))

    def limited(thread):
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)


def test_without_more_threads_a_pool_works_on_with_those_it_has(monkeypatch, caplog):
    over = threading.Event()
    allow_threads(monkeypatch, 1)
    with threads.Pool(4, "bulk") as pool:
        waiting = [pool.submit(over.wait), *(pool.submit(int, number) for number in range(8))]
        over.set()
        assert [work.result(10) for work in waiting] == [True, *range(8)]
    assert caplog.messages == ["can't start new thread; 1 do the work of the bulk pool"]


def test_a_pool_that_cannot_begin_says_so_at_once(monkeypatch):
    allow_threads(monkeypatch, 0)
    with pytest.raises(OSError, match="can't start new thread: the limit on"):
        threads.Pool(4, "bulk")


async def test_a_resolver_that_could_not_begin_is_not_begun(monkeypatch):
    """Libuv would end the process without a word."""
    allow_threads(monkeypatch, 3)
    with pytest.raises(OSError, match="can't start new thread: the limit on"):
        await threads.start_resolver()


async def test_a_blob_is_fetched_with_the_threads_of_the_start(tmp_path, monkeypatch):
    content = random.Random(1).randbytes(6 << 20)
    async with Origin(content).running() as origin, node(tmp_path) as (house, blobs):
        allow_threads(monkeypatch, 0)
        async with asyncio.timeout(20):
            await blobs.want(origin.digest, len(content), origin)
        with house.store.open(origin.digest) as blob:
            assert os.pread(blob.fd, len(content), 0) == content


@pytest.mark.parametrize(("rate", "most"), [(None, 4 << 20), (20 << 20, 1 << 20), (1e12, 4 << 20)])
def test_under_a_limit_less_goes_at_once(tmp_path, monkeypatch, rate, most):
    """Otherwise a slow limit would give megabytes to one reader, then nothing for longer than clients wait."""
    asked = []
    send_some = outflow.send_some

    def watched(sock, source, position, end):
        asked.append(end - position)
        return send_some(sock, source, position, end)

    monkeypatch.setattr(outflow, "send_some", watched)
    (tmp_path / "file").write_bytes(bytes(8 << 20))
    sender = Outflow(limiter=Limiter(rate))
    with (
        (tmp_path / "file").open("rb") as file,
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        sending, _ = listener.accept()
        with sending:
            sending.setblocking(False)
            reading = threading.Thread(target=lambda: client.recv(8 << 20, socket.MSG_WAITALL))
            reading.start()
            position, is_blocked = 0, True
            while position < 8 << 20:
                position, is_blocked = sender._push(sending, Held(file.fileno(), 8 << 20), position, 8 << 20)
            reading.join()
    sender.close()
    assert not is_blocked
    assert max(asked) == most


@asynccontextmanager
async def serving(answer):
    """A server that passes every request to `answer`; yields its runner and its address."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner, runner.addresses[0][:2]
    finally:
        await runner.cleanup()


async def test_who_is_cancelled_leaves_no_thread_with_a_file_that_is_closed(tmp_path):
    """Its descriptor may belong to another file by the next send, and the reader would get bytes of that one."""
    (tmp_path / "file").write_bytes(bytes(8 << 20))
    begun, over, ended, left = asyncio.Event(), asyncio.Event(), [], []
    loop = asyncio.get_running_loop()

    class Slow(Limiter):
        def take(self, count):
            loop.call_soon_threadsafe(begun.set)
            super().take(count)

    sender = Outflow(limiter=Slow(1 << 20), sent=ended.append)

    async def answer(request):
        with (tmp_path / "file").open("rb") as file:
            try:
                return await sender.respond(request, 200, {}, Held(file.fileno(), 8 << 20), 0, 8 << 20)
            finally:
                left.extend(ended)
                over.set()

    async with asyncio.timeout(10), serving(answer) as (runner, address):
        _, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        await begun.wait()
        await runner.cleanup()
        await over.wait()
    writer.close()
    sender.close()
    assert left, "the thread was still sending"
    assert sum(left) < 8 << 20, "nobody waits for what nobody will have"


async def test_small_files_count_against_a_limit_as_well(tmp_path):
    (tmp_path / "file").write_bytes(b"small")
    taken = []

    class Counting(Limiter):
        def take(self, count):
            taken.append(count)

    sender = Outflow(limiter=Counting(1 << 20))

    async def answer(request):
        with (tmp_path / "file").open("rb") as file:
            return await sender.respond(request, 206, {}, Held(file.fileno(), 5), 0, 5)

    async with asyncio.timeout(10), serving(answer) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\nsmall")
        writer.close()
    sender.close()
    assert taken == [5]


async def test_a_small_file_does_not_wait_for_those_that_a_slow_disk_makes_durable(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"small")
    monkeypatch.setattr("mesh.outflow._read_cached", lambda *_: None)
    sender, done, loop = Outflow(), threading.Event(), asyncio.get_running_loop()

    async def answer(request):
        with (tmp_path / "file").open("rb") as file:
            return await sender.respond(request, 200, {}, Held(file.fileno(), 5), 0, 5)

    with ThreadPoolExecutor(1) as slow_disk:
        loop.set_default_executor(slow_disk)
        waiting = loop.run_in_executor(None, done.wait, 20)
        try:
            async with asyncio.timeout(10), serving(answer) as (_, address):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
                assert (await reader.read()).endswith(b"\r\n\r\nsmall")
                writer.close()
        finally:
            done.set()
        assert await waiting
    sender.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere sockets have no priority")
@pytest.mark.parametrize(("gives_way", "priority"), [(True, 2), (False, 0)])
async def test_what_peers_are_sent_gives_way_to_all_else_of_this_machine(tmp_path, gives_way, priority):
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    sender, found = Outflow(gives_way=gives_way), []

    async def answer(request):
        with (tmp_path / "file").open("rb") as file:
            response = await sender.respond(request, 200, {}, Held(file.fileno(), 1 << 20), 0, 1 << 20)
        found.append(request.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY))
        return response

    async with asyncio.timeout(10), serving(answer) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert len((await reader.read()).partition(b"\r\n\r\n")[2]) == 1 << 20
        writer.close()
    sender.close()
    assert found == [priority]


async def test_under_a_limit_all_readers_have_some_of_it_before_one_has_all(tmp_path):
    """There are more readers than threads, and each would have to wait until those before it are done."""
    size, readers = 4 << 20, 12
    (tmp_path / "file").write_bytes(bytes(size))
    sender = Outflow(threads=2, limiter=Limiter(8 << 20))

    async def answer(request):
        with (tmp_path / "file").open("rb") as file:
            return await sender.respond(request, 200, {}, Held(file.fileno(), size), 0, size)

    got = [0] * readers

    async def read(number, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        while not all(got) and (part := await reader.read(64 << 10)):
            got[number] += len(part)
        writer.close()

    async with asyncio.timeout(20), serving(answer) as (_, address):
        await asyncio.gather(*(read(number, address) for number in range(readers)))
    sender.close()
    assert max(got) < size
