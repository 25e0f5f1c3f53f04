"""The composition root: makes, connects, starts and stops all parts of a node."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web

from mesh.access import OriginAccess
from mesh.blobs import Blobs
from mesh.content import Digest
from mesh.dial import peer_socket
from mesh.discovery.seeds import Seeds
from mesh.door import Door
from mesh.house import House
from mesh.limiter import Limiter
from mesh.mesh import Mesh
from mesh.outflow import Outflow
from mesh.protocol import MAX_MESSAGE
from mesh.server import MeshServer
from mesh.store import Store
from mesh.threads import Pool, start_resolver
from mesh.transfer import Connections
from proxy.admin.routes import add_routes
from proxy.api import Api
from proxy.app import App, guard_host
from proxy.descriptors import allow_many
from proxy.files import Files, HubAccess
from proxy.ground import Ground, lay
from proxy.hearsay import Hearsay
from proxy.hf_cache import HfCache
from proxy.hub.access import Grants
from proxy.hub.freshness import Freshness
from proxy.inventory import Inventory
from proxy.lfs import Lfs
from proxy.listings import Listings
from proxy.origin import Origin
from proxy.passes import Passes
from proxy.passes import load_key as load_xet_key
from proxy.passthrough import Passthrough
from proxy.port import ClientRunner
from proxy.preheat import Preheater
from proxy.relay import Relay
from proxy.resolve import Resolver
from proxy.settings import Settings
from proxy.units import HostPort, format_size
from proxy.version import VERSION
from proxy.xet import Xet
from proxy.xet_tokens import XetTokens

log = logging.getLogger(__name__)

_UPLOAD_THREADS = 8
_OTHER_THREADS = 16  # for what has no pool of its own: large JSON documents, Xet bodies and small files
# Seconds until a node that has found no peer counts as ready. A named seed may be busy. Nodes answer a multicast
# question within a quarter of a second (RFC 6762, sections 5.2 and 6), and a node that gets no answer is most likely
# alone.
_SEED_SECONDS = 3.0
_MDNS_SECONDS = 0.6
# Seconds that a thread waits for the interpreter lock before it requests it. On a machine with more work than cores the
# holder may not be running, and at the default of 5 ms each waiting thread would wake up only to wait again.
_SWITCH_SECONDS = 0.02


def run(settings: Settings) -> int:
    """Run a node until SIGTERM, SIGINT or SIGHUP; returns the exit status.

    Raises MeshError and OSError when it cannot start.
    """
    return uvloop.run(_run(settings))


async def _run(settings: Settings) -> int:
    sys.setswitchinterval(_SWITCH_SECONDS)
    allow_many()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(number, stop.set)
    await start_resolver()
    async with AsyncExitStack() as stack:
        node = await _build(settings, stack)
        # All objects made so far live as long as the process: keep the garbage collector from traversing them again and
        # again.
        gc.collect()
        gc.freeze()
        log.info("hubmesh %s serves %s at http://%s", VERSION, settings.origin, node.listen)
        log.info(
            "peers come to %s, in a mesh %s; up to %s are kept in %s",
            node.mesh_listen,
            node.trust,
            format_size(node.max_size),
            settings.data_dir,
        )
        await stop.wait()
        log.info("stopping: running downloads have %.0f s", settings.drain_timeout)
    log.info("stopped")
    return 0


@dataclass(frozen=True, slots=True)
class Node:
    """What is displayed about a running node. `trust`: how peers prove themselves, in words."""

    listen: HostPort
    mesh_listen: HostPort
    trust: str
    max_size: int


async def _build(settings: Settings, stack: AsyncExitStack) -> Node:
    """Make the parts, the lowest first; `stack` closes them in reverse order."""
    ground = lay(settings, stack)
    sharing = await _share(ground)
    asking = _ask(ground, sharing)
    preheater = Preheater(
        api=asking.api, resolver=asking.resolver, blobs=sharing.blobs, mesh=sharing.mesh, tasks=ground.tasks
    )
    inventory = Inventory(
        node_id=ground.auth.node_id,
        role=settings.role,
        settings=settings.changed(),
        stats=ground.stats,
        catalog=ground.catalog,
        pins=ground.pins,
        store=ground.store,
        blobs=sharing.blobs,
        mesh=sharing.mesh,
        preheater=preheater,
    )
    app, admin = _answer(ground, sharing, asking, inventory)
    await _open_to_peers(ground, sharing, asking, preheater)
    # Leave the mesh after the clients have been served: until then peers help this node, and it helps them.
    stack.push_async_callback(sharing.mesh.leave)
    runner = ClientRunner(app, admin, drain=settings.drain_timeout)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    # The last of the pools: closing the loop takes one more thread if it has an executor, and a start that failed for
    # lack of threads would fail there once more.
    asyncio.get_running_loop().set_default_executor(Pool(_OTHER_THREADS, "other"))
    await web.SockSite(runner, ground.listener, backlog=1024).start()
    _start_discovery(ground, sharing.mesh)
    ground.tasks.start(_tidy(ground.store, sharing.blobs), name="tidy")
    if settings.hf_cache is not None:
        cache = HfCache(
            settings.hf_cache, settings.data_dir, store=ground.store, blobs=sharing.blobs, resolver=asking.resolver
        )
        ground.tasks.start(cache.run(), name="hf-cache")
    _announce(settings.data_dir, ground.listen, ground.mesh_listen, stack)
    log.debug("%s in %d blobs are here", format_size(ground.store.size), len(ground.store))
    trust = [name for name, has in (("key", settings.mesh_key_file), ("certificates", settings.mesh_tls_files)) if has]
    return Node(
        ground.listen,
        ground.mesh_listen,
        f"with {' and '.join(trust)}" if trust else "without a key",
        ground.store.max_size,
    )


@dataclass(frozen=True, slots=True)
class _Sharing:
    """The parts that fetch blobs, from the Hub or from peers, and what may be passed on to peers."""

    mesh: Mesh
    house: House
    blobs: Blobs
    may_share: Callable[[Digest], bool]


async def _share(ground: Ground) -> _Sharing:
    settings, stack, auth, store = ground.settings, ground.stack, ground.auth, ground.store
    session = await stack.enter_async_context(
        # Messages between nodes are not compressed: a small answer could expand to a huge one.
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=256, limit_per_host=8, socket_factory=peer_socket),
            auto_decompress=False,
        )
    )

    def may_share(digest: Digest) -> bool:
        """Whether peers may have a blob: in a keyed mesh any; in an open one those that the Hub gives to anybody."""
        return auth.is_keyed or store.is_public(digest)

    mesh = Mesh(
        node_id=auth.node_id,
        auth=auth,
        session=session,
        store=store,
        tasks=ground.tasks,
        address=ground.advertised,
        role=settings.role,
        version=VERSION,
        may_share=may_share,
    )
    house = House(
        auth.node_id,
        store,
        ground.stats,
        ground.tasks,
        exchange=mesh.exchange,
        peers=mesh.exchange,
        origin_connections=Connections(
            connect=settings.origin_connect_timeout,
            first_byte=settings.origin_first_byte_timeout,
            stall=settings.origin_stall_timeout,
            redirects=True,
            asked=lambda status, seconds: ground.metrics.origin_request("body", status, seconds),
        ),
        origin_limiter=Limiter(settings.max_origin),
        peer_limiter=Limiter(settings.max_download),
        disproved=ground.catalog.disprove,
        brought=ground.catalog.set_sources,
    )
    # A connect time-out short enough to notice a peer that is switched off while there is time to use another one.
    tls = None if auth.tls is None else auth.tls.client
    house.peer_connections = Connections(connect=3.0, proxies=False, tls=tls)
    stack.callback(house.close)
    blobs = Blobs(house)
    stack.push_async_callback(blobs.close)
    return _Sharing(mesh, house, blobs, may_share)


@dataclass(frozen=True, slots=True)
class _Asking:
    """The parts that ask the Hub, and peers for its answers, and keep those answers while they hold."""

    origin: Origin
    resolver: Resolver
    api: Api
    hearsay: Hearsay
    grants: Grants


def _ask(ground: Ground, sharing: _Sharing) -> _Asking:
    settings, catalog = ground.settings, ground.catalog
    origin = Origin(
        settings.origin,
        metrics=ground.metrics,
        offline=settings.offline,
        connect_timeout=settings.origin_connect_timeout,
        answer_timeout=settings.origin_metadata_timeout,
        silence=settings.origin_silence_timeout,
    )
    ground.stack.push_async_callback(origin.close)
    freshness, grants, listings = Freshness(settings.freshness), Grants(settings.grant_life), Listings()
    Relay(sharing.mesh.questions, origin, catalog, freshness)
    resolver = Resolver(origin=origin, catalog=catalog, listings=listings, freshness=freshness, grants=grants)
    api = Api(
        origin=origin,
        catalog=catalog,
        listings=listings,
        freshness=freshness,
        grants=grants,
        xet=settings.xet,
        patience=settings.origin_metadata_timeout,
    )
    resolver.hearsay = api.hearsay = hearsay = Hearsay(sharing.mesh, origin, catalog, ground.tasks)
    return _Asking(origin, resolver, api, hearsay, grants)


def _answer(ground: Ground, sharing: _Sharing, asking: _Asking, inventory: Inventory) -> tuple[App, web.Application]:
    """The parts that answer clients; the second one answers for the node's own pages."""
    settings, stats, catalog, blobs = ground.settings, ground.stats, ground.catalog, sharing.blobs
    origin, resolver, api = asking.origin, asking.resolver, asking.api
    outflow = Outflow(threads=_UPLOAD_THREADS, sent=lambda count: stats.add("client_sent", count))
    ground.stack.callback(outflow.close)
    passthrough = Passthrough(origin=origin, catalog=catalog)
    files = Files(resolver=resolver, catalog=catalog, blobs=blobs, outflow=outflow, xet=settings.xet)
    passes = Passes(load_xet_key(settings.data_dir))
    lfs = Lfs(
        origin=origin, catalog=catalog, grants=asking.grants, passthrough=passthrough, blobs=blobs, outflow=outflow
    )
    admin = web.Application()
    add_routes(admin, inventory, ground.metrics)
    app = App(
        admin=admin.router,
        files=files,
        api=api,
        lfs=lfs,
        passthrough=passthrough,
        xet=Xet(passes=passes, files=files, blobs=blobs, resolver=resolver, catalog=catalog, stats=stats),
        xet_tokens=XetTokens(use=settings.xet, passes=passes, api=api, resolver=resolver, catalog=catalog),
        metrics=ground.metrics,
        guard=guard_host(settings.allow_hosts),
    )
    return app, admin


async def _open_to_peers(ground: Ground, sharing: _Sharing, asking: _Asking, preheater: Preheater) -> None:
    """Answer on the mesh port."""
    stack, stats, mesh = ground.stack, ground.stats, sharing.mesh

    async def access(hint: bytes, digest: Digest, size: int) -> OriginAccess | None:
        """How this node, as a seed, fetches a public file for the others."""
        return await HubAccess.of_hint(hint, asking.resolver, digest, size)

    outflow = Outflow(
        threads=_UPLOAD_THREADS,
        limiter=Limiter(ground.settings.max_upload),
        sent=lambda count: stats.add("peer_sent", count),
        gives_way=True,
    )
    stack.callback(outflow.close)
    server = MeshServer(
        house=sharing.house,
        blobs=sharing.blobs,
        tracker=mesh.tracker,
        outflow=outflow,
        may_share=sharing.may_share,
        is_seed=mesh.is_seed,
        is_from=mesh.is_from,
        access=access,
    )
    app = web.Application(client_max_size=MAX_MESSAGE, middlewares=[mesh.middleware()])
    for part in (mesh, server, preheater, asking.hearsay):
        part.add_routes(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=75, auto_decompress=False)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    assert runner.server is not None
    door = Door(runner.server, ground.auth, ground.tasks)
    stack.push_async_callback(door.close)
    door.open(ground.mesh_listener)


async def _tidy(store: Store, blobs: Blobs) -> None:
    """Settle what the last run left: more blobs than `--max-size` allows, and files that were written to since."""
    if not await store.fit():
        log.warning("%s are pinned or in use, more than --max-size %s", format_size(store.size), store.max_size)
    await blobs.settle_doubts()


def _settle_seconds(settings: Settings) -> float:
    if not (settings.seeds or settings.mdns):
        return 0.0
    if settings.discovery_timeout is not None:
        return settings.discovery_timeout
    return _SEED_SECONDS if settings.seeds else _MDNS_SECONDS


def _start_discovery(ground: Ground, mesh: Mesh) -> None:
    settings, tasks = ground.settings, ground.tasks
    mesh.start(settle=_settle_seconds(settings))
    Seeds(settings.seeds, mesh.gossip, tasks).start()
    if settings.mdns:
        from mesh.discovery.mdns import Mdns  # zeroconf takes 8 MB, which other nodes can save

        mdns = Mdns(mesh.gossip, tasks, address=ground.advertised, mesh_id=mesh.auth.mesh_id)
        mdns.start()
        ground.stack.push_async_callback(mdns.close)


def _announce(data_dir: Path, listen: HostPort, mesh_listen: HostPort, stack: AsyncExitStack) -> None:
    """Write down where the node listens, for the commands on this machine."""
    file = data_dir / "node.json"
    temporary = file.with_suffix(".new")
    temporary.write_text(
        json.dumps({"listen": str(listen.reachable), "mesh_listen": str(mesh_listen), "pid": os.getpid()})
    )
    temporary.replace(file)
    stack.callback(file.unlink, missing_ok=True)
