"""The bodies of requests to the mesh port: how much of them is in memory, and whose."""

import asyncio
from contextlib import AsyncExitStack

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from mesh.auth import Auth, guard
from mesh.bodies import Room
from mesh.tasks import Tasks
from tests.mesh.members import until

LIMIT = 512 << 10
MOST = 8 << 20  # bytes for a single host
FLOOD = 40  # half-sent bodies


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_however_many_hosts_take_all_they_can_there_is_room_for_another_one(sizes: list[int]) -> None:
    room = Room(10_000)
    taken: list[tuple[str, int]] = []
    for number, size in enumerate(sizes):
        host, before = f"10.0.0.{number}", room.taken
        while room.take(host, size):
            taken.append((host, size))
        assert room.taken - before >= (10_000 - before) / 4 - size
        assert room.taken < 10_000
    for host, size in taken:
        room.give(host, size)
    assert room.taken == 0
    assert not room._of


def test_the_addresses_of_one_machine_share_their_room() -> None:
    room = Room(100)
    assert room.take("2001:db8::1", 25)
    assert not room.take("2001:db8::2", 1)
    assert room.take("2001:db8:0:1::1", 15)


async def half(server: TestServer, stack: AsyncExitStack, head: bytes) -> asyncio.StreamReader:
    """Begin a request whose body does not end."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    stack.callback(writer.close)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n" + b"1000\r\n" + bytes(0x1000))
    return reader


async def test_half_sent_bodies_of_a_host_fill_its_share_and_keep_nobody_else_out(aiohttp_server) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=str(len(await request.read())).encode())

    app = web.Application(client_max_size=LIMIT, middlewares=[guard(Auth("me"))])
    app.router.add_post("/", handler)
    server = await aiohttp_server(app)

    async def post(size: int, host: str = "127.0.0.1") -> int:
        connector = aiohttp.TCPConnector(local_addr=(host, 0))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(f"http://{server.host}:{server.port}/", data=bytes(size)) as response,
        ):
            assert response.status == 503 or await response.read() == str(size).encode()
            return response.status

    async with AsyncExitStack() as stack, asyncio.timeout(20):
        tasks = Tasks()
        stack.push_async_callback(tasks.close)
        ends = (b"Content-Length: %d" % LIMIT, b"Transfer-Encoding: chunked")
        readers = [await half(server, stack, ends[n % 2]) for n in range(FLOOD)]
        answers = [tasks.start(reader.readline(), name="answer") for reader in readers]
        await until(lambda: sum(answer.done() for answer in answers) == FLOOD - MOST // LIMIT)
        assert {answer.result() for answer in answers if answer.done()} == {b"HTTP/1.1 503 Service Unavailable\r\n"}
        assert await post(LIMIT - 1) == 503
        assert await post(1000) == 200  # it may still ask whether this node is alive
        assert await post(LIMIT - 1, "127.0.0.2") == 200
    async with asyncio.timeout(20):
        while await post(LIMIT - 1) != 200:  # until the server has seen that they are closed
            pass
