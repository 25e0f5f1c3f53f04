"""TCP sockets to peers that fail within seconds when the peer's machine is gone, however slow live peers may be.

An overloaded process answers late, but its kernel still acknowledges at once. Missing acknowledgements therefore tell
a dead machine or a broken line from a slow node, which a time limit on answers cannot.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

_ALONE_SECONDS = 1  # seconds of silence before the kernel sends a keepalive probe, and between two probes
# Seconds without an acknowledgement, of a probe or of data, until the connection fails: three retransmissions on a LAN.
_DEAF_SECONDS = 2.5


def peer_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return an unconnected socket for an address in the form of `socket.getaddrinfo`.

    On Linux its reads and writes raise OSError once the peer's kernel has been silent for a few seconds.
    """
    family, kind, protocol = address[:3]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":  # tcp(7)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ALONE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ALONE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_DEAF_SECONDS * 1000))
    return sock
