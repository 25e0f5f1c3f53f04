"""A node with membership only: in this process, or as a process that prints the members it knows."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys

import aiohttp
import uvloop
from aiohttp import web

from mesh.ask import ask
from mesh.auth import SENDER, Auth, guard
from mesh.discovery.mdns import Mdns
from mesh.discovery.seeds import Seeds
from mesh.gossip import TARGET, Gossip
from mesh.membership import Address, Claim, Members, State
from mesh.protocol import MAX_MESSAGE
from mesh.tasks import Tasks

ROUND = 0.1  # seconds
SUSPECT = 1.0


class Node:
    """A node with nothing but a mesh port. It can be stopped, and restarted on the same port."""

    def __init__(self, node_id: str, key: bytes | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.auth = Auth(node_id, key)
        self.host = host
        self.port = port
        self.starts = 0
        self.exchanges = 0
        self.changes = []

    async def start(self, settle: float = 0.0) -> Node:
        self.starts += 1
        listener = socket.create_server((self.host, self.port))
        self.port = listener.getsockname()[1]
        me = Claim(self.auth.node_id, self.starts, State.ALIVE, "", self.port, "peer", "1")
        mesh_id, is_open = self.auth.mesh_id, not self.auth.is_keyed
        self.members = Members(me, suspect_for=SUSPECT, is_open=is_open)
        self.tasks = Tasks()
        self.gossip = Gossip(self.members, self._ask, self.tasks, mesh_id=mesh_id, is_open=is_open, interval=ROUND)
        self.gossip.on_change(self.changes.extend)
        app = web.Application(client_max_size=MAX_MESSAGE, middlewares=[guard(self.auth)])
        app.router.add_post(TARGET, self._handle)
        self._session = aiohttp.ClientSession()
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()
        self.gossip.start(settle=settle)
        return self

    async def stop(self) -> None:
        """Stop as if killed: without a message to the others."""
        await self.tasks.close()
        await self._session.close()
        await self._runner.cleanup()

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    @property
    def known(self) -> set[str]:
        return {member.node_id for member in self.members.alive()}

    async def _ask(self, address: Address, body: bytes, node_id: str) -> bytes:
        return await ask(self._session, self.auth, address, TARGET, body, limit=MAX_MESSAGE, to=node_id)

    async def _handle(self, request: web.Request) -> web.Response:
        self.exchanges += 1
        try:
            answer = self.gossip.handle(await request.read(), request.remote, request.get(SENDER))
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return web.Response(body=answer)


async def until(condition, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def main(name: str, port: int, key: str, seeds: list[str], mdns: bool) -> None:
    """Print the known members (name: address) as a line of JSON whenever they change; leave on SIGTERM."""
    node = await Node(name, key.encode() or None, host="0.0.0.0", port=port).start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)

    def say(_=()) -> None:
        known = {m.node_id: [str(m.address), m.state.name, m.named_seed] for m in node.members.alive()}
        print(json.dumps(known), flush=True)

    say()
    node.gossip.on_change(say)
    Seeds([Address(seed, port) for seed in seeds], node.gossip, node.tasks).start()
    finder = Mdns(node.gossip, node.tasks, address=Address("", node.port), mesh_id=node.auth.mesh_id)
    if mdns:
        finder.start()
    await ended.wait()
    await finder.close()
    await node.gossip.leave()
    await node.stop()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    uvloop.run(main(**json.loads(sys.argv[1])))
