"""The base of a node: its identity, its listening sockets, its data on disk and its counters."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from mesh.auth import Auth
from mesh.membership import NODE_ID, Address
from mesh.stats import Stats
from mesh.store import Store
from mesh.tasks import Tasks
from proxy.admin.metrics import Metrics
from proxy.budget import default_budget
from proxy.catalog import Catalog
from proxy.pins import Pins
from proxy.settings import Settings
from proxy.trust import auth_of
from proxy.units import HostPort

log = logging.getLogger(__name__)

_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # an address of another machine, or of a family not in use here


@dataclass(frozen=True, slots=True)
class Ground:
    """Everything the other parts are built on. `stack` closes it in reverse order. The sockets do not accept yet."""

    settings: Settings
    stack: AsyncExitStack
    auth: Auth
    listener: socket.socket
    mesh_listener: socket.socket
    stats: Stats
    metrics: Metrics
    store: Store
    catalog: Catalog
    pins: Pins
    tasks: Tasks

    @property
    def listen(self) -> HostPort:
        return _bound(self.settings.listen, self.listener)

    @property
    def mesh_listen(self) -> HostPort:
        return _bound(self.settings.mesh_listen, self.mesh_listener)

    @property
    def advertised(self) -> Address:
        """The address of this node for peers. An empty host means the one from which they see its messages come."""
        if self.settings.advertise is not None:
            return self.settings.advertise
        return Address("" if self.mesh_listen.wildcard else self.mesh_listen.host, self.mesh_listen.port)


def lay(settings: Settings, stack: AsyncExitStack) -> Ground:
    """Bind the ports and open the data directory.

    Raises OSError, ValueError and MeshError for a port, a directory or a secret that cannot be used.
    """
    data_dir = settings.data_dir
    data_dir.mkdir(parents=True, exist_ok=True)
    auth = _auth(settings)

    # The ports first: a node that cannot listen should not touch anything else.
    listener = bind(settings.listen, "--listen")
    stack.callback(listener.close)
    mesh_listener = bind(settings.mesh_listen, "--mesh-listen")
    stack.callback(mesh_listener.close)

    stats = Stats()
    # The store before the catalog: its lock keeps other nodes out of both.
    store = Store(data_dir, settings.max_size or 0, is_pinned=lambda digest: pins.has(digest))
    stack.callback(store.close)
    store.max_size = settings.max_size or default_budget(data_dir, store.size)
    catalog = Catalog(data_dir / "catalog")
    stack.push_async_callback(catalog.close)
    pins = Pins(data_dir / "pins.json", catalog.earlier_pins())
    tasks = Tasks()
    stack.push_async_callback(tasks.close)
    return Ground(settings, stack, auth, listener, mesh_listener, stats, Metrics(stats), store, catalog, pins, tasks)


def _auth(settings: Settings) -> Auth:
    """This node's identity towards its peers, and how it and they prove themselves."""
    auth = auth_of(settings, _node_id(settings.data_dir))
    if auth.tls is not None and (trouble := auth.tls.trouble(time.time())):
        log.error("no other node will let us in: the certificate in %s %s", settings.mesh_tls_cert_file, trouble)
    return auth


def _node_id(data_dir: Path) -> str:
    """The node's id: 128 random bits, kept with the data, since the store is the node. A damaged id is replaced."""
    file = data_dir / "node-id"
    try:
        known = file.read_text("latin-1").strip()
    except FileNotFoundError:
        known = ""
    if NODE_ID.fullmatch(known):
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


def bind(address: HostPort, flag: str) -> socket.socket:
    """A listening socket. A name is bound to the first of its addresses that this machine has, IPv4 first.

    Raises OSError with the address and the flag that it comes from in its message.
    """
    refused = f"cannot listen on {address} ({flag})"
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise OSError(error.errno, f"{refused}: {error.strerror}") from error
    trouble: OSError | None = None
    for family, _, _, _, place in sorted(found, key=lambda one: one[0] != socket.AF_INET):
        try:
            return socket.create_server(place, family=family, backlog=4096, dualstack_ipv6=address.host == "::")
        except OSError as error:
            trouble = error
            if error.errno not in _NOT_OURS:  # where one address is in use, clients would find another program
                break
    number = errno.EADDRNOTAVAIL if trouble is None else trouble.errno
    raise OSError(number, f"{refused}: {os.strerror(number or 0)}") from trouble


def _bound(wanted: HostPort, listener: socket.socket) -> HostPort:
    return HostPort(wanted.host, listener.getsockname()[1])
