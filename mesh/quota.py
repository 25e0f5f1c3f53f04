"""How often something may be done for each host. Pure: the time is an argument."""

from __future__ import annotations

import ipaddress

from mesh.bounded import Bounded

_MAX_HOSTS = 1000


class Quota:
    """Allows each host `burst` turns at once, and one more turn every `seconds`."""

    def __init__(self, burst: int, seconds: float) -> None:
        self._room = burst * seconds
        self._seconds = seconds
        self._free_at: Bounded[str, float] = Bounded(_MAX_HOSTS)  # host → when it has all its turns again

    def take(self, host: str, now: float, turns: int = 1) -> bool:
        """Take turns for a host; False when it has not so many left."""
        mine = network(host)
        free_at = max(now, self._free_at.get(mine, now))
        may = free_at + turns * self._seconds - now <= self._room
        self._free_at[mine] = free_at + turns * self._seconds if may else free_at
        return may


def network(host: str) -> str:
    """Return the addresses that one machine can choose from: with IPv6 a /64 network."""
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Network((address, 64), strict=False).network_address)
