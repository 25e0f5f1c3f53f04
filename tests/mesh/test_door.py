"""The mesh port's accepting side."""

import asyncio
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from aiohttp import web

from mesh.auth import Auth
from mesh.door import Door
from mesh.tasks import Tasks
from mesh.tls import load_tls
from tests.mesh.certificates import Authority

CALLERS = 60
MANY = 700
FEW = 20  # turns of the loop
LIMIT = 10  # connections


async def test_all_who_wait_are_let_in_together_not_one_in_each_turn_of_a_busy_loop():
    async def answer(request):
        return web.Response()

    server, tasks, turns = web.Server(answer), Tasks(), 0
    door = Door(server, Auth("me", None), tasks)

    def turn() -> None:
        nonlocal turns
        if len(server.connections) < CALLERS:
            turns += 1
            asyncio.get_running_loop().call_soon(turn)
        else:
            all_in.set()

    all_in = asyncio.Event()
    with ExitStack() as stack:
        listener = socket.create_server(("127.0.0.1", 0), backlog=2 * CALLERS)
        for _ in range(CALLERS):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        try:
            door.open(listener)
            turn()
            async with asyncio.timeout(10):
                await all_in.wait()
        finally:
            await door.close()
            await server.shutdown(0.1)
            await tasks.close()
    assert turns <= FEW


async def test_however_many_come_at_once_nobody_is_sent_away():
    """A seed that is busy for a second finds hundreds of nodes waiting, and each that is reset takes it for dead."""

    async def answer(request):
        return web.Response(text="here")

    server, tasks = web.Server(answer), Tasks()
    door = Door(server, Auth("me", None), tasks)
    with ExitStack() as stack:
        listener = socket.create_server(("127.0.0.1", 0), backlog=MANY)
        callers = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(MANY)]
        for caller in callers:
            caller.sendall(b"GET / HTTP/1.1\r\nHost: peer\r\n\r\n")
            caller.settimeout(10)
        try:
            door.open(listener)
            async with asyncio.timeout(30):
                answers = [await asyncio.to_thread(caller.recv, 12) for caller in callers]
        finally:
            await door.close()
            await server.shutdown(0.1)
            await tasks.close()
    assert answers == [b"HTTP/1.1 200"] * MANY


async def test_the_limit_holds_when_many_connect_in_one_turn_of_the_loop():
    async def answer(request):
        return web.Response()

    server, tasks = web.Server(answer), Tasks()
    door = Door(server, Auth("me", None), tasks, limit=LIMIT)
    with ExitStack() as stack:
        listener = socket.create_server(("127.0.0.1", 0), backlog=2 * CALLERS)
        callers = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(CALLERS)]
        try:
            door.open(listener)
            async with asyncio.timeout(10):
                while not server.connections:  # all are accepted in one turn: none is added after this
                    await asyncio.sleep(0)
                while len(server.connections) > LIMIT:
                    await asyncio.sleep(0)
            for caller in callers[:-LIMIT]:
                caller.settimeout(10)
                with suppress(ConnectionResetError):
                    assert await asyncio.to_thread(caller.recv, 1) == b""
            assert len(server.connections) == LIMIT, "the latest stay"
        finally:
            await door.close()
            await server.shutdown(0.1)
            await tasks.close()


async def test_who_is_still_at_the_door_when_it_closes_is_sent_away(tmp_path: Path):
    mine = Authority(tmp_path).sign("node")
    server, tasks = web.Server(lambda request: web.Response()), Tasks()
    door = Door(server, Auth("me", None, tls=load_tls(mine.cert, mine.key, mine.ca)), tasks)
    listener = socket.create_server(("127.0.0.1", 0))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    door.open(listener)
    async with asyncio.timeout(10):
        while not door._entering:
            await asyncio.sleep(0)
        await door.close()
        assert not door._entering
        assert not tasks, "nobody waits for a handshake that does not begin"
        assert await reader.read() == b""
    writer.close()
