"""Parsing and formatting of sizes, rates, durations and addresses. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mesh.hosts import parse_ip
from mesh.membership import Address

if TYPE_CHECKING:
    from typing import Self

_UNITS = {
    "": 1,
    **{letter: 1000**power for power, letter in enumerate("kmgtp", start=1)},
    **{f"{letter}i": 1024**power for power, letter in enumerate("kmgtp", start=1)},
}
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
# Any name that a resolver may know; wider than RFC 1123, since container names may contain "_".
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")
_HOST_PATTERN = re.compile(r"[A-Za-z0-9_*](?:[A-Za-z0-9_.*-]{0,251}[A-Za-z0-9_*])?")


def parse_host_pattern(text: str) -> str:
    """Parse a host name without a port, or a pattern such as ``*.example.org``. Raises ValueError for anything else."""
    name = str(text).strip().rstrip(".")
    if _HOST_PATTERN.fullmatch(name) is None and not _is_ip(name.strip("[]"), version=6):
        raise ValueError(f"{text!r} is not a host name such as hub.example.org or *.example.org (without a port)")
    return name


def parse_size(text: str | float) -> int:
    """Parse a number of bytes.

    ``200GiB`` and ``200Gi`` are multiples of powers of 1024, ``5GB`` and ``5G`` of powers of 1000; a bare number is
    bytes. Raises ValueError for anything else, for less than one byte and for 2**63 bytes or more.
    """
    match = _NUMBER.fullmatch(str(text).strip())
    unit = _UNITS.get(match[2].lower().removesuffix("b")) if match else None
    if match is None or unit is None or not 1 <= (size := int(float(match[1]) * unit)) < 1 << 63:
        raise ValueError(f"{text!r} is not a size such as 200GiB or 500MB")
    return size


def parse_rate(text: str | float) -> int:
    """Parse a rate in bytes per second: a size, with or without ``/s``. Raises ValueError for anything else."""
    try:
        return parse_size(re.sub(r"\s*/\s*s\s*\Z", "", str(text)))
    except ValueError:
        raise ValueError(f"{text!r} is not a rate such as 500MB/s") from None


def parse_duration(text: str | float) -> float:
    """Parse a duration in seconds: ``250ms``, ``10s``, ``5m``, ``1h``, ``2d``; a bare number is seconds.

    Raises ValueError for anything else.
    """
    match = _NUMBER.fullmatch(str(text).strip())
    unit = _SECONDS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a duration such as 10s or 5m")
    return float(match[1]) * unit


def format_size(size: float) -> str:
    """Format a number of bytes in decimal units, as the Hub and disk makers do: ``90.9 MB``."""
    power = 0
    # Rounding to three digits prints 999.5 and more as 1000, which is 1 of the next unit.
    while size >= 999.5 and power < 5:
        size /= 1000
        power += 1
    unit = ("B", "kB", "MB", "GB", "TB", "PB")[power]
    return f"{size:.3g} {unit}" if power else f"{size:.0f} B"


class HostPort(Address):
    """An address in the settings. One to listen on may be a wildcard, or have port 0 for any free port."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``name:8090``, ``127.0.0.1:8090`` or ``[::1]:8090``. Raises ValueError for anything else."""
        host, _, port = str(text).strip().rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            good_host = _is_ip(host[1:-1], version=6)
            host = host[1:-1]
        else:
            good_host = _is_ip(host, version=4) or _HOST_NAME.fullmatch(host) is not None
        if not good_host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{text!r} is not HOST:PORT such as 127.0.0.1:8090 or [::1]:8090")
        return cls(host, int(port))

    @property
    def wildcard(self) -> bool:
        """Whether the host stands for all addresses of this machine: usable to listen on, not to connect to."""
        return self.host in ("0.0.0.0", "::")

    @property
    def reachable(self) -> HostPort:
        """The address by which a process on this machine reaches a server that listens on this one."""
        return HostPort({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.port)


def _is_ip(text: str, *, version: int) -> bool:
    ip = parse_ip(text)
    return ip is not None and ip.version == version
