"""A whole node: every part made, connected, started and stopped, in one place."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import re
import signal
import socket
import sys
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web

from mesh.access import OriginAccess
from mesh.auth import Auth
from mesh.blobs import Blobs
from mesh.content import Digest
from mesh.dial import peer_socket
from mesh.discovery.seeds import Seeds
from mesh.door import Door
from mesh.gossip import MAX_MESSAGE
from mesh.house import House
from mesh.limiter import Limiter
from mesh.membership import Address
from mesh.mesh import Mesh
from mesh.outflow import Outflow
from mesh.server import MeshServer
from mesh.stats import Stats
from mesh.store import Store
from mesh.tasks import Tasks
from mesh.transfer import Connections
from proxy.admin.metrics import Metrics
from proxy.admin.routes import add_routes
from proxy.api import Api
from proxy.app import App, guard_host
from proxy.budget import default_budget
from proxy.catalog import Catalog
from proxy.descriptors import allow_many
from proxy.files import Files, HubAccess
from proxy.hearsay import Hearsay
from proxy.hf_cache import HfCache
from proxy.holdings import Holdings
from proxy.hub.access import Grants
from proxy.hub.freshness import Freshness
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
from proxy.trust import auth_of
from proxy.units import HostPort, format_size
from proxy.version import VERSION
from proxy.xet import Xet
from proxy.xet_tokens import XetTokens

log = logging.getLogger(__name__)

_UPLOAD_THREADS = 8
# That a thread waits for the interpreter until it asks for it: who holds it on a machine with more to do than it has
# cores may not be running, and each of the others would wake every 5 ms only to wait on.
_SWITCH_SECONDS = 0.02
_NODE_ID = re.compile(r"[0-9A-Za-z_-]{1,128}")  # what peers take for one


def run(settings: Settings) -> int:
    """Run a node until SIGTERM or SIGINT; the exit status.

    Raises MeshError and OSError when it cannot start.
    """
    return uvloop.run(_run(settings))


async def _run(settings: Settings) -> int:
    sys.setswitchinterval(_SWITCH_SECONDS)
    allow_many()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        node = await _build(settings, stack)
        # What was made so far lives as long as the process: keep the collector from walking it again and again.
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
    """What is known of a running node by those who show it. `trust`: with what peers prove themselves, in words."""

    listen: HostPort
    mesh_listen: HostPort
    trust: str
    max_size: int


async def _build(settings: Settings, stack: AsyncExitStack) -> Node:
    """Make the parts from the ground up; the stack takes them down in the reverse order."""
    data_dir = settings.data_dir
    data_dir.mkdir(parents=True, exist_ok=True)
    auth = _auth(settings)

    # The ports first: what cannot listen should not touch anything else.
    listener = _bind(settings.listen)
    stack.callback(listener.close)
    mesh_listener = _bind(settings.mesh_listen)
    stack.callback(mesh_listener.close)
    listen, mesh_listen = _bound(settings.listen, listener), _bound(settings.mesh_listen, mesh_listener)

    stats = Stats()
    metrics = Metrics(stats)
    # The store before the catalog: its lock keeps other nodes out of both.
    store = Store(data_dir, settings.max_size or 0, is_pinned=lambda digest: holdings.is_pinned(digest))
    stack.callback(store.close)
    store.max_size = settings.max_size or default_budget(data_dir, store.size)
    catalog = Catalog(data_dir / "catalog")
    stack.push_async_callback(catalog.close)
    holdings = Holdings(catalog)
    tasks = Tasks()
    stack.push_async_callback(tasks.close)
    session = await stack.enter_async_context(
        # Nothing that nodes say to each other is compressed: a small answer could become a huge one.
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=256, limit_per_host=8, socket_factory=peer_socket),
            auto_decompress=False,
        )
    )

    def may_share(digest: Digest) -> bool:
        """In a keyed mesh everything; in an open one what anybody could get from the Hub."""
        return auth.is_keyed or store.is_public(digest)

    mesh = Mesh(
        node_id=auth.node_id,
        auth=auth,
        session=session,
        store=store,
        tasks=tasks,
        address=_advertised(settings, mesh_listen),
        role=settings.role,
        version=VERSION,
        may_share=may_share,
    )
    house = House(
        auth.node_id,
        store,
        stats,
        tasks,
        mesh.exchange,
        mesh.exchange,
        origin_connections=Connections(
            connect=settings.origin_connect_timeout,
            first_byte=settings.origin_first_byte_timeout,
            stall=settings.origin_stall_timeout,
            redirects=True,
            asked=lambda status, seconds: metrics.origin_request("body", status, seconds),
        ),
        origin_limiter=Limiter(settings.max_origin),
        peer_limiter=Limiter(settings.max_download),
        disproved=catalog.disprove,
    )
    # A machine that is switched off is found out while there is time to go elsewhere.
    tls = None if auth.tls is None else auth.tls.client
    house.peer_connections = Connections(connect=3.0, proxies=False, tls=tls)
    stack.callback(house.close)
    blobs = Blobs(house)
    stack.push_async_callback(blobs.close)

    origin = Origin(
        settings.origin,
        metrics=metrics,
        offline=settings.offline,
        connect_timeout=settings.origin_connect_timeout,
        answer_timeout=settings.origin_metadata_timeout,
    )
    stack.push_async_callback(origin.close)
    freshness, grants = Freshness(settings.freshness), Grants(settings.grant_life)
    Relay(mesh.questions, origin, catalog, freshness)
    listings = Listings()
    resolver = Resolver(origin=origin, catalog=catalog, listings=listings, freshness=freshness, grants=grants)
    api = Api(origin=origin, catalog=catalog, listings=listings, freshness=freshness, grants=grants, xet=settings.xet)
    resolver.hearsay = api.hearsay = hearsay = Hearsay(mesh, origin, catalog, tasks)
    outflow = Outflow(threads=_UPLOAD_THREADS, sent=lambda count: stats.add("client_sent", count))
    stack.callback(outflow.close)
    passthrough = Passthrough(origin=origin, catalog=catalog)
    files = Files(resolver=resolver, catalog=catalog, blobs=blobs, outflow=outflow, xet=settings.xet)
    passes = Passes(load_xet_key(data_dir))
    admin = web.Application()
    add_routes(admin, holdings, metrics)
    app = App(
        admin=admin.router,
        files=files,
        api=api,
        lfs=Lfs(
            origin=origin,
            catalog=catalog,
            grants=grants,
            passthrough=passthrough,
            blobs=blobs,
            outflow=outflow,
        ),
        passthrough=passthrough,
        xet=Xet(passes=passes, files=files, blobs=blobs, resolver=resolver, catalog=catalog, stats=stats),
        xet_tokens=XetTokens(use=settings.xet, passes=passes, api=api, resolver=resolver, catalog=catalog),
        metrics=metrics,
        guard=guard_host(settings.allow_hosts),
    )
    preheater = Preheater(api=api, resolver=resolver, blobs=blobs, mesh=mesh, tasks=tasks)
    holdings.connect(
        node_id=auth.node_id,
        role=settings.role,
        stats=stats,
        store=store,
        blobs=blobs,
        mesh=mesh,
        preheater=preheater,
    )

    async def access(hint: bytes, digest: Digest, size: int) -> OriginAccess | None:
        """How this node, as a seed, fetches a public file for the others."""
        return await HubAccess.of_hint(hint, resolver, digest, size)

    peer_outflow = Outflow(
        threads=_UPLOAD_THREADS,
        limiter=Limiter(settings.max_upload),
        sent=lambda count: stats.add("peer_sent", count),
        gives_way=True,
    )
    stack.callback(peer_outflow.close)
    server = MeshServer(
        house=house,
        blobs=blobs,
        tracker=mesh.tracker,
        outflow=peer_outflow,
        may_share=may_share,
        is_seed=mesh.is_seed,
        access=access,
    )
    mesh_app = _mesh_app(mesh, server, preheater, hearsay)
    mesh_runner = web.AppRunner(
        mesh_app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=75, auto_decompress=False
    )
    await mesh_runner.setup()
    stack.push_async_callback(mesh_runner.cleanup)
    assert mesh_runner.server is not None
    door = Door(mesh_runner.server, auth, tasks)
    stack.push_async_callback(door.close)
    door.open(mesh_listener)
    # Once the clients have what they came for: until then others help, and are helped.
    stack.push_async_callback(mesh.leave)
    runner = ClientRunner(app, admin, drain=settings.drain_timeout)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener, backlog=1024).start()
    _start_discovery(settings, mesh, mesh_listen, tasks, stack)
    tasks.start(_tidy(store, blobs), name="tidy")
    if settings.hf_cache is not None:
        cache = HfCache(settings.hf_cache, data_dir, store=store, blobs=blobs, resolver=resolver)
        tasks.start(cache.run(), name="hf-cache")
    _announce(data_dir, listen, mesh_listen, stack)
    log.debug("%s in %d blobs are here", format_size(store.size), len(store))
    trust = [name for name, has in (("key", settings.mesh_key_file), ("certificates", settings.mesh_tls_files)) if has]
    return Node(listen, mesh_listen, f"with {' and '.join(trust)}" if trust else "without a key", store.max_size)


async def _tidy(store: Store, blobs: Blobs) -> None:
    """What the last start left: more than `--max-size` is now, and files that somebody has written to since."""
    if not await store.fit():
        log.warning("%s are pinned or in use, more than --max-size %s", format_size(store.size), store.max_size)
    await blobs.settle_doubts()


def _mesh_app(mesh: Mesh, server: MeshServer, preheater: Preheater, hearsay: Hearsay) -> web.Application:
    mesh_app = web.Application(client_max_size=MAX_MESSAGE, middlewares=[mesh.middleware()])
    mesh.add_routes(mesh_app)
    server.add_routes(mesh_app)
    preheater.add_routes(mesh_app)
    hearsay.add_routes(mesh_app)
    return mesh_app


def _start_discovery(
    settings: Settings, mesh: Mesh, mesh_listen: HostPort, tasks: Tasks, stack: AsyncExitStack
) -> None:
    has_others = bool(settings.seeds) or settings.mdns
    mesh.start(settle=settings.discovery_timeout if has_others else 0.0)
    Seeds([Address(seed.host, seed.port) for seed in settings.seeds], mesh.gossip, tasks).start()
    if settings.mdns:
        from mesh.discovery.mdns import Mdns  # zeroconf is 8 MB that others need not hold

        mdns = Mdns(mesh.gossip, tasks, address=_advertised(settings, mesh_listen), mesh_id=mesh.auth.mesh_id)
        mdns.start()
        stack.push_async_callback(mdns.close)


def _auth(settings: Settings) -> Auth:
    """Who this node is to its peers, and how it and they prove it."""
    auth = auth_of(settings, _node_id(settings.data_dir))
    if auth.tls is not None and (trouble := auth.tls.trouble(time.time())):
        log.error("no other node will let us in: the certificate in %s %s", settings.mesh_tls_cert_file, trouble)
    return auth


def _node_id(data_dir: Path) -> str:
    """128 random bits, kept with the data: a node is its store. What a power cut made of them is replaced."""
    file = data_dir / "node-id"
    try:
        known = file.read_text("latin-1").strip()
    except FileNotFoundError:
        known = ""
    if _NODE_ID.fullmatch(known):
        return known
    node_id = uuid.uuid4().hex
    temporary = file.with_suffix(".new")
    with temporary.open("w", encoding="ascii") as written:
        written.write(node_id)
        written.flush()
        os.fsync(written.fileno())
    temporary.replace(file)
    if known:
        log.warning("what %s holds is no name for a node: this one is now %s, a new one to its peers", file, node_id)
    return node_id


def _bind(address: HostPort) -> socket.socket:
    """A listening socket. Raises OSError that says where."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server(
            (address.host, address.port), family=family, backlog=4096, dualstack_ipv6=address.host == "::"
        )
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {address}: {os.strerror(error.errno or 0)}") from error


def _bound(wanted: HostPort, listener: socket.socket) -> HostPort:
    return HostPort(wanted.host, listener.getsockname()[1])


def _advertised(settings: Settings, mesh_listen: HostPort) -> Address:
    """Where peers reach us. An empty host means: wherever they see our messages come from."""
    if settings.advertise is not None:
        return Address(settings.advertise.host, settings.advertise.port)
    return Address("" if mesh_listen.wildcard else mesh_listen.host, mesh_listen.port)


def _announce(data_dir: Path, listen: HostPort, mesh_listen: HostPort, stack: AsyncExitStack) -> None:
    """Tell the commands on this machine where the node is."""
    file = data_dir / "node.json"
    temporary = file.with_suffix(".new")
    temporary.write_text(
        json.dumps({"listen": str(listen.reachable), "mesh_listen": str(mesh_listen), "pid": os.getpid()})
    )
    temporary.replace(file)
    stack.callback(file.unlink, missing_ok=True)
