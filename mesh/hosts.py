"""What the host in an address can mean, given which node names it. Pure."""

from __future__ import annotations

import ipaddress


def is_local(host: str) -> bool:
    """Return whether a host has a meaning only on this machine, as loopback or an unknown remote ("") does."""
    name = host.rstrip(".").casefold()
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def is_name(host: str) -> bool:
    """Return whether a host has to be looked up, and so can lead anywhere: a name, or a spelling such as 127.1."""
    return bool(host) and _address(host) is None


def is_fit(host: str, teller: str) -> bool:
    """Return whether another node can be at `host` when a node at `teller` says so.

    A DNS name passes: check the addresses that it resolves to.
    """
    address, near = _address(host), _address(teller)
    if is_local(host):
        return is_local(teller)
    if address is None:
        return True
    if address.is_link_local:
        return near is not None and near.is_link_local
    is_broadcast = address.version == 4 and address.is_reserved
    return not address.is_multicast and not address.is_unspecified and not is_broadcast


def as_written(remote: str | None) -> str:
    """Return a remote host as other nodes would write it: IPv4 even if it came through an IPv6 socket."""
    try:
        mapped = ipaddress.IPv6Address(remote or "").ipv4_mapped
    except ValueError:
        return remote or ""
    return remote or "" if mapped is None else str(mapped)


def parse_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a host is; None when it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    address = parse_ip(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
