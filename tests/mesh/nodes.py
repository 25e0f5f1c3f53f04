"""Whole mesh nodes in this process, each with its own port, store and identity."""

from __future__ import annotations

import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from mesh.access import OriginAccess
from mesh.auth import Auth
from mesh.blobs import Blobs
from mesh.content import Digest
from mesh.door import Door
from mesh.house import House
from mesh.membership import Address, Role
from mesh.mesh import Mesh
from mesh.outflow import Outflow
from mesh.server import MeshServer, nowhere
from mesh.stats import Stats
from mesh.store import Store
from mesh.tasks import Tasks
from mesh.tls import Tls
from mesh.transfer import Connections


@dataclass
class Node:
    mesh: Mesh
    house: House
    blobs: Blobs
    address: Address
    runner: web.AppRunner
    door: Door

    async def stop_answering(self) -> None:
        """Stop as if the node had died: its port is closed and it sends nothing any more."""
        await self.door.close()
        await self.runner.cleanup()
        await self.blobs.close()
        await self.house.tasks.close()


@asynccontextmanager
async def mesh_node(
    root: Path,
    *,
    role: Role = "peer",
    key: bytes | None = None,
    access: Callable[[bytes, Digest, int], Awaitable[OriginAccess | None]] = nowhere,
    tls: Tls | None = None,
    connections: int | None = None,
    tamper: Callable[[web.Application], None] = lambda _: None,
) -> AsyncIterator[Node]:
    """Run one node, not yet introduced to others."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        tasks = Tasks()
        stats = Stats()
        store = Store(root, 1 << 40)
        auth = Auth(uuid.uuid4().hex, key, tls=tls)
        # The mesh needs the port, which is known only once bound: bind first.
        app = web.Application(client_max_size=1 << 19)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        sock = socket.create_server(("127.0.0.1", 0))
        address = Address("127.0.0.1", sock.getsockname()[1])

        def may_share(digest: object) -> bool:
            return True

        mesh = Mesh(
            node_id=auth.node_id,
            auth=auth,
            session=session,
            store=store,
            tasks=tasks,
            address=address,
            role=role,
            version="0",
            may_share=may_share,
        )
        house = House(
            auth.node_id,
            store,
            stats,
            tasks,
            exchange=mesh.exchange,
            peers=mesh.exchange,
            origin_connections=Connections(connect=10.0, stall=10.0),  # the origin runs in this process, too
            peer_connections=Connections(connect=1.0, stall=2.0, proxies=False, tls=tls and tls.client),
        )
        blobs = Blobs(house)
        outflow = Outflow(sent=lambda count: stats.add("peer_sent", count))
        server = MeshServer(
            house=house,
            blobs=blobs,
            tracker=mesh.tracker,
            outflow=outflow,
            may_share=may_share,
            is_seed=mesh.is_seed,
            is_from=mesh.is_from,
            access=access,
        )
        app.middlewares.append(mesh.middleware())  # type: ignore[arg-type]
        tamper(app)
        mesh.add_routes(app)
        server.add_routes(app)
        await runner.setup()
        assert runner.server is not None
        door = Door(runner.server, auth, tasks, limit=connections)
        door.open(sock)
        mesh.start(settle=0.2)
        try:
            yield Node(mesh, house, blobs, address, runner, door)
        finally:
            await door.close()
            await runner.cleanup()
            await blobs.close()
            await tasks.close()
            house.close()
            outflow.close()
            store.close()
