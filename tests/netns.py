"""A network of namespaces for tests and load tests: hosts on a bridge, with limits on their links. Needs root.

The machine's own network is not touched: the bridge lives in a namespace, too, and everything goes away with the
namespaces.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

_COUNTER = itertools.count()
_MIN_BURST = 128 << 10  # bytes: with less, a segmentation-offload packet could never pass


@dataclass(frozen=True)
class Host:
    """A namespace with a loopback interface and one link, `eth0`, to the bridge."""

    namespace: str
    index: int
    ip: str

    def command(self, *argv: str) -> list[str]:
        """Return the command that runs `argv` in this namespace, under the process id that it is started with."""
        return ["ip", "netns", "exec", self.namespace, *argv]


@dataclass(frozen=True)
class Network:
    """Hosts that all reach each other until a link is cut or the network is split."""

    hosts: tuple[Host, ...]
    switch: str  # the namespace of the bridge

    def limit(self, host: Host, *, up: float | None = None, down: float | None = None) -> None:
        """Limit a host's link, in bytes per second; None is unlimited."""
        _limit(host.namespace, "eth0", up)
        _limit(self.switch, f"port{host.index}", down)

    def cut(self, host: Host) -> None:
        """Pull a host's cable: packets to it are lost silently."""
        _ip("-n", self.switch, "link", "set", f"port{host.index}", "down")

    def mend(self, host: Host) -> None:
        _ip("-n", self.switch, "link", "set", f"port{host.index}", "up")

    def split(self, away: Iterable[Host]) -> None:
        """Split the network in two: these hosts, and all others."""
        for host in self.hosts:
            bridge = "bridge1" if host in away else "bridge0"
            _ip("-n", self.switch, "link", "set", f"port{host.index}", "master", bridge)

    def heal(self) -> None:
        self.split(())


@contextmanager
def network(count: int, *, prefix: str = "10.213.0") -> Iterator[Network]:
    """Make `count` hosts, at most 250, with addresses from `prefix`.1 on. Skips the test without namespaces or root."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    name = f"hubmesh-{os.getpid()}-{next(_COUNTER)}"
    switch = f"{name}-switch"
    hosts = tuple(Host(f"{name}-{index}", index, f"{prefix}.{index + 1}") for index in range(count))
    try:
        try:
            _ip("netns", "add", switch)
            for bridge in ("bridge0", "bridge1"):
                # Without snooping, multicast goes to every port, as on a plain switch.
                _ip("-n", switch, "link", "add", bridge, "type", "bridge", "mcast_snooping", "0", "forward_delay", "0")
                _ip("-n", switch, "link", "set", bridge, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        for host in hosts:
            port = f"port{host.index}"
            _ip("netns", "add", host.namespace)
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "eth0", "netns", host.namespace)
            _ip("-n", switch, "link", "set", port, "master", "bridge0", "up")
            _ip("-n", host.namespace, "addr", "add", f"{host.ip}/24", "dev", "eth0")
            _ip("-n", host.namespace, "link", "set", "eth0", "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
        yield Network(hosts, switch)
    finally:
        for namespace in (*(host.namespace for host in hosts), switch):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


def _limit(namespace: str, device: str, rate: float | None) -> None:
    tc = ["ip", "netns", "exec", namespace, "tc", "qdisc"]
    subprocess.run([*tc, "delete", "dev", device, "root"], capture_output=True, check=False)
    if rate is not None:
        burst = max(_MIN_BURST, int(rate / 250))
        bucket = ["tbf", "rate", f"{int(rate * 8)}bit", "burst", str(burst), "latency", "50ms"]
        _run([*tc, "add", "dev", device, "root", *bucket])


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(argv: list[str]) -> None:
    subprocess.run(argv, capture_output=True, text=True, check=True)
