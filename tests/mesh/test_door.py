"""The way in at the mesh port."""

import asyncio
import socket
from contextlib import ExitStack

from aiohttp import web

from mesh.auth import Auth
from mesh.door import Door
from mesh.tasks import Tasks

CALLERS = 60
FEW = 20  # turns of the loop


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
