"""How often each host may ask for something. Pure: the time is an argument."""

from __future__ import annotations

import ipaddress

_MAX_HOSTS = 1000


class Quota:
    """`burst` times at once, and again one time every `seconds`."""

    def __init__(self, burst: int, seconds: float) -> None:
        self._room = burst * seconds
        self._seconds = seconds
        self._free_at: dict[str, float] = {}  # when a host has all its times again; the one used last comes last

    def take(self, host: str, now: float) -> bool:
        """Whether a host may once more, which then counts."""
        network = _network(host)
        free_at = max(now, self._free_at.pop(network, now))
        may = free_at + self._seconds - now <= self._room
        if len(self._free_at) >= _MAX_HOSTS:  # who has not asked for longest is no longer remembered
            del self._free_at[next(iter(self._free_at))]
        self._free_at[network] = free_at + self._seconds if may else free_at
        return may


def _network(host: str) -> str:
    """What one machine can choose its addresses from: with IPv6 a network of 64 bits."""
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Network((address, 64), strict=False).network_address)
