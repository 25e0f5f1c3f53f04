"""The host that a client names in a request, and what that says of where the request comes from. Pure."""

from __future__ import annotations

from functools import lru_cache

from mesh.hosts import is_local, is_name


@lru_cache(256)
def host_of(field: str) -> str:
    """Return the host in a `Host` field, without its port, in lower case and with IPv6 addresses without brackets."""
    host = field.rsplit(":", 1)[0] if not field.endswith("]") and field.count(":") != 0 else field
    return host.strip("[]").rstrip(".").lower()


def is_this_machine(host: str) -> bool:
    """Return whether a host can only be this machine. An unknown host ("") is not."""
    return bool(host) and is_local(host)


@lru_cache(256)
def cannot_be_rebound(host: str) -> bool:
    """Return whether no other site can let this host lead here: it is an IP address, or localhost."""
    return bool(host) and (is_local(host) or not is_name(host))
