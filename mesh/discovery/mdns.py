"""Discovery on the local network by multicast DNS (RFC 6762, RFC 6763), without any configured address.

Each node announces one instance of `_hubmesh._tcp.local.`, named by its node id, with the TXT keys `mesh` (it tells
meshes apart without revealing their keys) and `version`. A node joins every announced node that gossip does not
know yet. Without multicast, or without a network, the only effect is a line in the log.
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
from mesh.hosts import is_local, parse_ip
from mesh.membership import Address, State
from mesh.protocol import difference
from mesh.tasks import Tasks

log = logging.getLogger(__name__)

TYPE = "_hubmesh._tcp.local."
MAX_HEARD = 1000  # announced instances that are followed
_MAX_ADDRESSES = 8  # addresses tried of one instance
_JOINS = 4  # concurrent joins; few, because the first answer names most of the other nodes
_FIRST_PAUSE = 0.5  # seconds before a failed join is repeated; doubled each time
_MAX_PAUSE = 30.0  # the most that this pause grows to
_KNOWN_PAUSE = 5.0  # seconds between two checks that a joined node is still alive
_LOOK_AGAIN = 10.0  # seconds between two looks at this machine's interfaces
_RESOLVE_MS = 3000  # milliseconds to wait for an instance's address records


class Mdns:
    """Announces this node and joins the nodes that are announced. Belongs to the event loop's thread.

    `address` is announced; with an empty host, all addresses of this machine are.
    """

    def __init__(self, gossip: Gossip, tasks: Tasks, *, address: Address, mesh_id: str = "") -> None:
        self._gossip = gossip
        self._tasks = tasks
        self._address = address
        self._mesh_id = mesh_id
        self._own = gossip.members.me
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._run_task: asyncio.Task[None] | None = None
        self._heard: dict[str, asyncio.Task[None]] = {}
        self._joins = asyncio.Semaphore(_JOINS)
        self._has_warned = False
        self._has_met_strangers = False

    def start(self) -> None:
        # Failures that matter are logged here, once each.
        logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
        self._run_task = self._tasks.start(self._run(), name="mdns")

    async def close(self) -> None:
        """Withdraw the announcement. Call this before the tasks are closed."""
        if self._run_task is not None:
            self._run_task.cancel()
        await self._stop()

    async def _run(self) -> None:
        """Keep announcing and browsing on all interfaces, as interfaces come and go."""
        used: list[ipaddress.IPv4Interface] = []
        while True:
            present = _interfaces(self._address.host)
            if present != used or not used:
                await self._stop()
                used = present if await self._begin(present) else []
            await asyncio.sleep(_LOOK_AGAIN)

    async def _begin(self, interfaces: list[ipaddress.IPv4Interface]) -> bool:
        ips = [str(interface.ip) for interface in interfaces]
        try:
            if not ips:
                raise OSError("no interface has an IPv4 address")
            self._zeroconf = AsyncZeroconf(interfaces=ips, ip_version=IPVersion.V4Only)
            await self._zeroconf.zeroconf.async_wait_for_start()
            self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, TYPE, handlers=[self._notice])
            # The instance name holds 128 random bits, so no probing for a conflict is needed.
            await self._zeroconf.async_register_service(self._service(ips), cooperating_responders=True)
        except (OSError, RuntimeError, ValueError, ZeroconfError) as error:
            if not self._has_warned:
                log.warning("no mDNS on this network, trying again from time to time: %s", error)
            self._has_warned = True
            await self._stop()
            return False
        self._has_warned = False
        log.debug("announced by mDNS on %s", ", ".join(ips))
        return True

    async def _stop(self) -> None:
        running, self._zeroconf = self._zeroconf, None
        browser, self._browser = self._browser, None
        for task in self._heard.values():
            task.cancel()
        self._heard.clear()
        if running is not None:
            try:
                async with asyncio.timeout(3.0):
                    if browser is not None:
                        await browser.async_cancel()
                    await running.async_close()
            except (OSError, RuntimeError, ZeroconfError) as error:
                log.debug("mDNS did not end cleanly: %s", error)

    def _service(self, ips: list[str]) -> AsyncServiceInfo:
        host = self._address.host
        # A loopback address is of no use to other machines: announce it only if there is no other.
        hosts = [host] if parse_ip(host) is not None else [ip for ip in ips if not is_local(ip)] or ips
        return AsyncServiceInfo(
            TYPE,
            f"{self._own.node_id}.{TYPE}",
            parsed_addresses=hosts,
            port=self._address.port,
            properties={"mesh": self._mesh_id, "version": self._own.version},
            server=f"{self._own.node_id}.local.",
        )

    def _notice(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        node_id = name.removesuffix(f".{TYPE}")
        if node_id == self._own.node_id or self._zeroconf is None:
            return
        if (task := self._heard.pop(name, None)) is not None:
            task.cancel()
        if state_change is not ServiceStateChange.Removed and len(self._heard) < MAX_HEARD:
            self._heard[name] = self._tasks.start(self._meet(zeroconf, name, node_id), name=f"mdns {node_id}")

    async def _meet(self, zeroconf: Zeroconf, name: str, node_id: str) -> None:
        """Join an announced node, and join it again whenever it is not known to be alive."""
        pause = _FIRST_PAUSE
        while True:
            async with self._joins:
                if not self._is_known(node_id):
                    await self._join(zeroconf, name, node_id)
            if self._is_known(node_id):
                pause = _FIRST_PAUSE
                await asyncio.sleep(_KNOWN_PAUSE)
            else:
                pause = min(_MAX_PAUSE, pause * 2)
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))

    def _is_known(self, node_id: str) -> bool:
        member = self._gossip.members.get(node_id)
        return member is not None and member.state <= State.SUSPECT

    async def _join(self, zeroconf: Zeroconf, name: str, node_id: str) -> None:
        service = AsyncServiceInfo(TYPE, name)
        if not await service.async_request(zeroconf, _RESOLVE_MS) or not service.port:
            return
        theirs = (service.properties.get(b"mesh") or b"").decode(errors="replace")
        if theirs != self._mesh_id:
            if not self._has_met_strangers:
                log.info("ignoring nodes of another mesh: they have %s", difference(theirs, self._mesh_id))
            self._has_met_strangers = True
            return
        for host in _nearest(service.parsed_addresses(IPVersion.V4Only), _interfaces(self._address.host)):
            address = Address(host, service.port)
            try:
                await self._gossip.join(address)
            except (OSError, MeshError, ValueError) as error:
                log.debug("announced by mDNS, but no answer from %s: %s", address, error)
            if self._is_known(node_id):  # an answer alone is not enough: another node may have this address
                return


def _interfaces(host: str) -> list[ipaddress.IPv4Interface]:
    """Return the interfaces to use for mDNS, sorted: only that of `host` if this machine has it, otherwise all."""
    present = sorted(
        {
            ipaddress.IPv4Interface(f"{ip.ip}/{ip.network_prefix}")
            for adapter in ifaddr.get_adapters()
            for ip in adapter.ips
            if isinstance(ip.ip, str)
        }
    )
    return [interface for interface in present if str(interface.ip) == host] or present


def _nearest(hosts: list[str], own: list[ipaddress.IPv4Interface]) -> list[str]:
    """Return the addresses of an instance to try, best first: those on our networks, then others, then our own.

    An address that equals one of ours comes last because container bridges have the same address on every machine.
    Loopback addresses are left out, unless loopback is all that this machine has.
    """
    near = [interface.network for interface in own]
    ips = [ipaddress.IPv4Address(host) for host in hosts]
    if not all(interface.ip.is_loopback for interface in own):
        ips = [ip for ip in ips if not ip.is_loopback]
    ours = {interface.ip for interface in own}
    ips.sort(key=lambda ip: (ip in ours, not any(ip in network for network in near)))
    return [str(ip) for ip in ips[:_MAX_ADDRESSES]]
