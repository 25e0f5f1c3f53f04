"""Nodes of the local network, found by multicast DNS (RFC 6762, RFC 6763): no address is configured anywhere.

Announced is one instance of `_hubmesh._tcp.local.` named by the node id, with TXT `mesh` (which tells keys apart without
telling the key) and `version`. Whom we hear of we join, unless gossip knows it already. A network without multicast,
or no network at all, costs nothing but a line in the log.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random

import ifaddr
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from mesh.errors import MeshError
from mesh.gossip import Gossip
from mesh.membership import Address, is_local
from mesh.tasks import Tasks

log = logging.getLogger(__name__)

TYPE = "_hubmesh._tcp.local."
MAX_HEARD = 1000  # instances that we keep
_MAX_ADDRESSES = 8  # of one instance that we try
_JOINS = 4  # at the same time: the first answer names most of the others
_FIRST_PAUSE = 0.5  # seconds
_MAX_PAUSE = 30.0
_LOOK_AGAIN = 10.0  # seconds between two looks at our own interfaces
_RESOLVE_MS = 3000


class Mdns:
    """Announces this node and joins those that are announced.

    `address` is what we announce: with an empty host, all addresses of this machine.
    """

    def __init__(self, gossip: Gossip, tasks: Tasks, *, address: Address, mesh_id: str = "") -> None:
        self._gossip = gossip
        self._tasks = tasks
        self._address = address
        self._mesh_id = mesh_id
        self._own = gossip.members.me
        self._zeroconf: AsyncZeroconf | None = None
        self._heard: dict[str, asyncio.Task[None]] = {}
        self._joins = asyncio.Semaphore(_JOINS)
        self._is_told = False
        self._has_met_strangers = False

    def start(self) -> None:
        # What matters of it we say ourselves, once.
        logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
        self._tasks.start(self._run(), name="mdns")

    async def close(self) -> None:
        """Say goodbye to the network. To be called before the tasks are closed."""
        await self._stop()

    async def _run(self) -> None:
        """Be on all interfaces there are, also when they come and go."""
        used: list[str] = []
        while True:
            present = _interfaces(self._address.host)
            if present != used:
                await self._stop()
                used = present if await self._begin(present) else []
            await asyncio.sleep(_LOOK_AGAIN)

    async def _begin(self, interfaces: list[str]) -> bool:
        try:
            if not interfaces:
                raise OSError("no network interface has an IPv4 address")
            # Both may fail, and so may what runs between them: it must be closed all the same.
            self._zeroconf = AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
            await self._zeroconf.zeroconf.async_wait_for_start()
            AsyncServiceBrowser(self._zeroconf.zeroconf, TYPE, handlers=[self._notice])
            # The name holds 128 random bits: nobody needs to be asked whether it is taken.
            await self._zeroconf.async_register_service(self._service(interfaces), cooperating_responders=True)
        except (OSError, RuntimeError, ValueError, ZeroconfError) as error:
            if not self._is_told:
                log.warning("no mDNS on this network, trying again from time to time: %s", error)
            self._is_told = True
            await self._stop()
            return False
        self._is_told = False
        log.debug("announced by mDNS on %s", ", ".join(interfaces))
        return True

    async def _stop(self) -> None:
        running, self._zeroconf = self._zeroconf, None
        for task in self._heard.values():
            task.cancel()
        self._heard.clear()
        if running is not None:
            try:
                async with asyncio.timeout(3.0):
                    await running.async_close()
            except (OSError, RuntimeError, ZeroconfError) as error:
                log.debug("mDNS did not end cleanly: %s", error)

    def _service(self, interfaces: list[str]) -> AsyncServiceInfo:
        host = self._address.host
        # Other machines can do nothing with our loopback address; it is announced only if there is nothing else.
        hosts = [host] if _is_ip(host) else [ip for ip in interfaces if not is_local(ip)] or interfaces
        properties = {"mesh": self._mesh_id, "version": self._own.version}
        if host and not _is_ip(host):
            properties["host"] = host
        return AsyncServiceInfo(
            TYPE,
            f"{self._own.node_id[:63]}.{TYPE}",
            parsed_addresses=hosts,
            port=self._address.port,
            properties=properties,
            server=f"{self._own.node_id[:63]}.local.",
        )

    def _notice(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        node_id = name.removesuffix(f".{TYPE}")
        if node_id == self._own.node_id[:63] or self._zeroconf is None:
            return
        if (task := self._heard.pop(name, None)) is not None:
            task.cancel()
        if state_change is not ServiceStateChange.Removed and len(self._heard) < MAX_HEARD:
            self._heard[name] = self._tasks.start(self._meet(zeroconf, name, node_id), name=f"mdns {node_id}")

    async def _meet(self, zeroconf: Zeroconf, name: str, node_id: str) -> None:
        """Join a node that is announced, again whenever it is not known to be alive."""
        pause = _FIRST_PAUSE
        while True:
            async with self._joins:
                if not self._is_known(node_id) and not await self._join(zeroconf, name):
                    pause = min(_MAX_PAUSE, pause * 2)
                else:
                    pause = _FIRST_PAUSE
            await asyncio.sleep(pause * random.uniform(0.8, 1.2) if pause > _FIRST_PAUSE else 5.0)

    def _is_known(self, node_id: str) -> bool:
        return any(member.node_id[:63] == node_id for member in self._gossip.members.alive())

    async def _join(self, zeroconf: Zeroconf, name: str) -> bool:
        service = AsyncServiceInfo(TYPE, name)
        if not await service.async_request(zeroconf, _RESOLVE_MS) or not service.port:
            return False
        if _text(service, b"mesh") != self._mesh_id:
            if not self._has_met_strangers:
                log.info("ignoring nodes of another mesh: they have another key, or none (--mesh-key-file)")
            self._has_met_strangers = True
            return False
        for host in self._reachable(service):
            address = Address(host, service.port)
            try:
                await self._gossip.join(address)
            except (OSError, MeshError, ValueError) as error:
                log.debug("announced by mDNS, but no answer from %s: %s", address, error)
            else:
                return True
        return False

    def _reachable(self, service: AsyncServiceInfo) -> list[str]:
        """Where to try an instance: what others say of our loopback interface is no concern of theirs."""
        told = _text(service, b"host")
        hosts = [told] if told else service.parsed_addresses(IPVersion.V4Only)
        is_lonely = all(is_local(ip) for ip in _interfaces(self._address.host))
        return [host for host in hosts if is_lonely or not is_local(host)][:_MAX_ADDRESSES]


def _interfaces(host: str) -> list[str]:
    """The IPv4 addresses to speak mDNS on, sorted: if we listen on one only, that one."""
    addresses = sorted(
        {ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if isinstance(ip.ip, str)},
    )
    return [host] if host in addresses else addresses


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _text(service: AsyncServiceInfo, key: bytes) -> str:
    return (service.properties.get(key) or b"").decode(errors="replace")
