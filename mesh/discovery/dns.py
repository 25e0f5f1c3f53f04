"""DNS resolution of node addresses: one name (a headless service, several A records) can stand for several nodes."""

from __future__ import annotations

import asyncio
import socket

from mesh.hosts import is_fit, parse_ip
from mesh.membership import Address

MAX_ADDRESSES = 256  # addresses of one name that are used
_SECONDS = 5.0  # seconds one lookup may take


async def resolve(named: Address) -> list[Address]:
    """Return all addresses of a host, in no particular order; an IP address is returned as it is.

    Raises OSError when the name cannot be resolved, or not in time.
    """
    if parse_ip(named.host) is not None:
        return [named]
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_SECONDS):
            found = await loop.getaddrinfo(named.host, named.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label of the name is empty or too long
        raise OSError(f"{named.host!r} is not a DNS name") from error
    hosts = dict.fromkeys(str(info[4][0]) for info in found)
    return [Address(host, named.port) for host in hosts][:MAX_ADDRESSES]


async def find(claimed: Address, teller: str) -> Address | None:
    """Resolve an address that a node at the host `teller` claims; None if no node can be where it leads.

    Raises OSError as `resolve` does.
    """
    return next((address for address in await resolve(claimed) if is_fit(address.host, teller)), None)
