"""Telling a machine that is gone from a process that is silent, by the connection to it."""

import errno
import socket
import time

import pytest

from loadtests.network import Site
from mesh.dial import peer_socket
from tests.netns import network

BUSY_SECONDS = 5.0  # longer than a machine may be unresponsive
SOON = 8.0


def test_a_machine_that_is_gone_shows_at_its_connection_and_a_silent_process_does_not():
    with network(2, prefix="10.215.0") as net:
        here, there = (Site(host.ip, host.namespace) for host in net.hosts)
        listener = there.call(lambda: socket.create_server((there.host, 0)))  # never accepts, but its kernel does
        address = listener.getsockname()
        sock = here.call(lambda: peer_socket((socket.AF_INET, socket.SOCK_STREAM, 0)))
        with listener, sock:
            sock.settimeout(BUSY_SECONDS)
            sock.connect(address)
            sock.sendall(b"anybody there?")
            with pytest.raises(TimeoutError) as waited:  # our own time-out, not the kernel's
                sock.recv(1)
            assert waited.value.errno is None
            net.split(net.hosts[1:])
            sock.settimeout(60)
            began = time.monotonic()
            with pytest.raises(OSError) as gone:  # although nothing is in flight
                sock.recv(1)
            assert gone.value.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH)
            assert time.monotonic() - began < SOON
