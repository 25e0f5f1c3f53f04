"""Connections to peers on which a machine that is gone shows within seconds, however busy those are that are there.

A process that has too much to do answers late; its kernel acknowledges at once all the same. So what is not
acknowledged tells a dead machine or a broken line from a slow node, which no time limit on answers can.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

_ALONE_SECONDS = 1  # without a word, until the kernel asks whether the other one is there
_DEAF_SECONDS = 2.5  # without an acknowledgement, of such a question or of data: three retransmissions on a LAN


def peer_socket(address: tuple[Any, ...]) -> socket.socket:
    """An unconnected socket for an address as getaddrinfo(3) gives it. Reads and writes on it raise OSError in time."""
    family, kind, protocol = address[:3]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":  # tcp(7)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ALONE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ALONE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_DEAF_SECONDS * 1000))
    return sock
